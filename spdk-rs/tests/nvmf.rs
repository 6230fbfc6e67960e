//! NVMe over TCP: a target in one process, a host in another.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{builder, child_command, isolated, run};
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::nvme::{self, AttachOptions};
use spdk_rs::nvmf::{Namespace, Subsystem, SubsystemOptions, Target, TcpOptions};
use spdk_rs::reactor::timeout;
use spdk_rs::{ErrorKind, runtime};

const NQN: &str = "nqn.2016-06.io.spdk:test";
const PORT: &str = "SPDK_RS_TEST_PORT";
const LIMIT: Duration = Duration::from_secs(30);

/// A port that is free now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

async fn serve(address: SocketAddr) -> Result<Subsystem> {
    let target = Target::find()?;
    target.create_tcp_transport(TcpOptions::default()).await?;
    let subsystem = target.create_subsystem(NQN, SubsystemOptions::default())?;
    bdev::malloc::create("ram0", 8192, 512)?;
    assert_eq!(subsystem.add_namespace("ram0", Some(3)).await?, 3);
    subsystem.listen(address).await?;
    subsystem.start().await?;
    Ok(subsystem)
}

#[test]
fn host_and_target_in_two_processes() {
    if let Ok(port) = std::env::var(PORT) {
        return target_process(port.parse().expect("a port"));
    }
    isolated("host_and_target_in_two_processes", || {
        let address = free_address();
        let port = address.port().to_string();
        let mut target = child_command("host_and_target_in_two_processes", &[(PORT, &port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the target's process");
        let stdout = target.stdout.take().expect("a pipe");
        // Open to the end: the test harness of that process prints, too.
        let mut lines = BufReader::new(stdout).lines();
        let ready = lines
            .by_ref()
            .map_while(|line| line.ok())
            .any(|line| line.contains("READY"));
        assert!(ready, "the target's process ended early");
        let second = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
            "0x2"
        } else {
            "0x1"
        };
        let runtime = builder().core_mask(second).build().expect("options");
        runtime
            .run(async move { host(address).await })
            .expect("SPDK starts and stops")
            .expect("the host's part");
        drop(target.stdin.take());
        assert!(target.wait().expect("its status").success(), "the target's part");
    });
}

async fn host(address: SocketAddr) -> Result<()> {
    let options = AttachOptions::new(address, "nqn.2016-06.io.spdk:other");
    let refused = timeout(LIMIT, nvme::attach("bad", &options)).await?.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");

    let options = AttachOptions::new(address, NQN);
    let names = timeout(LIMIT, nvme::attach("net", &options)).await??;
    assert_eq!(names, ["netn3"]);
    let taken = timeout(LIMIT, nvme::attach("net", &options)).await?.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");

    let descriptor = Bdev::find("netn3")?.open(Mode::ReadWrite)?;
    assert_eq!(descriptor.size(), 8192 * 512);
    let channel = descriptor.channel()?;
    let data: Vec<u8> = (0..65536_u32).map(|n| (n % 253) as u8).collect();
    let ((), buf) = timeout(LIMIT, channel.write(DmaBuf::copy_of(&data)?, 512))
        .await?
        .ok()?;
    drop(buf);
    let ((), buf) = timeout(LIMIT, channel.read(DmaBuf::new(65536)?, 512))
        .await?
        .ok()?;
    ensure!(buf.as_slice() == data, "read back");

    // Detaching takes the device from under the open descriptor, which lets go by itself.
    timeout(LIMIT, nvme::detach("net")).await??;
    ensure!(descriptor.is_removed());
    let late = channel.read(buf, 0).await;
    assert_eq!(late.err().context("an error")?.kind(), ErrorKind::Removed);
    let gone = nvme::detach("net").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    Ok(())
}

fn target_process(port: u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    run(async move {
        let subsystem = serve(address).await?;
        println!("READY");
        let host = std::thread::spawn(|| std::io::stdin().read(&mut [0; 1]));
        while !host.is_finished() {
            spdk_rs::reactor::sleep(Duration::from_millis(10)).await;
        }
        subsystem.destroy().await?;
        bdev::malloc::delete("ram0").await?;
        anyhow::Ok(())
    })
    .expect("the target's part");
}

#[test]
fn attach_to_oneself_is_refused() {
    isolated("attach_to_oneself_is_refused", || {
        let address = free_address();
        run(async move {
            serve(address).await?;
            let start = Instant::now();
            let error = nvme::attach("self", &AttachOptions::new(address, NQN))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("this very process"), "{error}");
            assert!(start.elapsed() < Duration::from_secs(5));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn attach_to_nobody_is_an_error() {
    isolated("attach_to_nobody_is_an_error", || {
        let address = free_address();
        run(async move {
            let error = nvme::attach("none", &AttachOptions::new(address, NQN))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            let error = nvme::detach("none").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        });
    });
}

#[test]
fn subsystem_changes_and_refusals() {
    isolated("subsystem_changes_and_refusals", || {
        let address = free_address();
        run(async move {
            let target = Target::find()?;
            let absent = target.subsystem(NQN).unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            let bad = target
                .create_subsystem("no nqn", SubsystemOptions::default())
                .unwrap_err();
            assert_eq!(bad.kind(), ErrorKind::InvalidArgument, "{bad}");
            let subsystem = serve(address).await?;
            let again = target
                .create_subsystem(NQN, SubsystemOptions::default())
                .unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            let again = target
                .create_tcp_transport(TcpOptions::default())
                .await
                .unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            let again = subsystem.start().await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Busy, "{again}");

            bdev::malloc::create("ram1", 2048, 512)?;
            let used = subsystem.add_namespace("ram1", Some(3)).await.unwrap_err();
            assert_eq!(used.kind(), ErrorKind::AlreadyExists, "{used}");
            let claimed = subsystem.add_namespace("ram0", None).await.unwrap_err();
            assert_eq!(claimed.kind(), ErrorKind::PermissionDenied, "{claimed}");
            let absent = subsystem.add_namespace("ram9", None).await.unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            assert_eq!(subsystem.add_namespace("ram1", None).await?, 1);
            let namespace = |id, bdev: &str| Namespace {
                id,
                bdev: bdev.to_owned(),
            };
            assert_eq!(
                subsystem.namespaces()?,
                [namespace(1, "ram1"), namespace(3, "ram0")]
            );
            let claimed = Bdev::find("ram1")?.open(Mode::ReadWrite).unwrap_err();
            assert_eq!(claimed.kind(), ErrorKind::PermissionDenied);

            subsystem.remove_namespace(1).await?;
            let absent = subsystem.remove_namespace(1).await.unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            // A change whose caller goes away is made all the same, and leaves nothing paused.
            let mut change = Box::pin(subsystem.add_namespace("ram1", Some(7)));
            std::future::poll_fn(|cx| {
                let _ = change.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(change);
            let deadline = Instant::now() + LIMIT;
            while subsystem.namespaces()?.len() < 2 {
                ensure!(Instant::now() < deadline, "the change was not made");
                spdk_rs::reactor::sleep(Duration::from_millis(1)).await;
            }
            // The device of a namespace can be deleted: the subsystem lets go of it.
            timeout(LIMIT, bdev::malloc::delete("ram1")).await??;
            assert_eq!(subsystem.namespaces()?, [namespace(3, "ram0")]);
            subsystem.pause().await?;
            subsystem.resume().await?;
            subsystem.clone().destroy().await?;
            let gone = subsystem.start().await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::NotFound);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_target_that_is_left_running_stops_with_spdk() {
    isolated("a_target_that_is_left_running_stops_with_spdk", || {
        let address = free_address();
        run(async move { serve(address).await.map(drop) }).expect("served");
        assert!(runtime_is_over());
    });
}

fn runtime_is_over() -> bool {
    let again = builder()
        .build()
        .expect("options")
        .run(runtime::shutdown_requested());
    again.is_err_and(|error| error.kind() == ErrorKind::AlreadyStarted)
}
