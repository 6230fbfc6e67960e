//! A target that answers the connection and breaks off while its controller is being set up.

mod common;

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use common::{child_command, isolated, run};
use spdk_rs::ErrorKind;
use spdk_rs::nvme::{self, AttachOptions};

const PORT: &str = "SPDK_RS_TEST_PORT";

/// NVMe/TCP PDU types, and the two Fabrics commands that come before the set-up.
const IC_REQ: u8 = 0;
const IC_RESP: u8 = 1;
const CAPSULE_RESP: u8 = 5;
const CONNECT: u8 = 1;
const PROPERTY_GET: u8 = 4;

/// Capabilities: 128 entries a queue, ready within half a second, NVM command set; and version 1.3.
const CAP: u64 = 127 | 1 << 24 | 1 << 37;
const VS: u64 = 0x1_0300;

fn pdu(kind: u8, header: &[u8]) -> Vec<u8> {
    let len = 8 + header.len();
    let mut pdu = vec![kind, 0, len as u8, 0];
    pdu.extend_from_slice(&(len as u32).to_le_bytes());
    pdu.extend_from_slice(header);
    pdu
}

/// Answers the connection and the two properties that are read while connecting, and no more.
fn serve(mut host: TcpStream) -> Result<()> {
    let mut properties = 0;
    loop {
        let mut common = [0; 8];
        host.read_exact(&mut common)?;
        let len = u32::from_le_bytes(common[4..8].try_into().expect("4 bytes")) as usize;
        let mut rest = vec![0; len - common.len()];
        host.read_exact(&mut rest)?;
        if common[0] == IC_REQ {
            let mut header = [0; 120];
            header[4..8].copy_from_slice(&(128u32 << 10).to_le_bytes()); // MAXH2CDATA
            host.write_all(&pdu(IC_RESP, &header))?;
            continue;
        }
        let (command_id, fabrics_type) = (&rest[2..4], rest[4]);
        let mut completion = [0; 16];
        match fabrics_type {
            CONNECT => completion[0] = 1, // the controller's id
            PROPERTY_GET if properties < 2 => {
                properties += 1;
                let value = if rest[44] == 0 { CAP } else { VS };
                completion[..8].copy_from_slice(&value.to_le_bytes());
            }
            _ => return Ok(()),
        }
        completion[12..14].copy_from_slice(command_id);
        host.write_all(&pdu(CAPSULE_RESP, &completion))?;
    }
}

/// The target, in a process of its own: attaching to the own one is refused.
fn target_process(port: &str) {
    let port: u16 = port.parse().expect("a port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port");
    println!("listening");
    for host in listener.incoming().flatten() {
        // A host that only looks whether somebody is there has closed already.
        let _ = serve(host);
    }
}

/// Without the patch nobody calls back, and the attach ends by its time limit alone.
#[test]
fn a_target_that_breaks_off_is_an_error_at_once() {
    const NAME: &str = "a_target_that_breaks_off_is_an_error_at_once";
    if let Ok(port) = std::env::var(PORT) {
        return target_process(&port);
    }
    isolated(NAME, || {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let mut target = child_command(NAME, &[(PORT, &address.port().to_string())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be started again");
        let lines = BufReader::new(target.stdout.take().expect("piped")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("listening")));

        let result = run(async move {
            let mut options = AttachOptions::new(address, "nqn.2016-06.io.spdk:broken");
            options.timeout = Duration::from_secs(20);
            nvme::attach("broken", &options).await
        });
        target.kill().expect("it runs");
        target.wait().expect("it was killed");
        let error = result.expect_err("there is no controller");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    });
}
