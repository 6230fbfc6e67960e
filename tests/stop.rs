//! A stop that is held up: by a device that does not answer, before and after the target serves.
//!
//! SPDK waits for the I/O, for ever if it must, and its own handler passes over all signals but the first.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{Place, Process, Reaped, TargetOptions};
use serde_json::{Value, json};
use spdk_rs::rpc::Client;

/// Longer than a test may take, in microseconds.
const NEVER: u64 = 600_000_000;

/// A disk whose writes do not end, and a call that writes to it.
fn slow_disk() -> [(&'static str, Value); 2] {
    [
        (
            "bdev_malloc_create",
            json!({"name": "ram0", "num_blocks": 4096, "block_size": 4096}),
        ),
        (
            "bdev_delay_create",
            json!({"base_bdev_name": "ram0", "name": "slow0", "avg_read_latency": 0, "p99_read_latency": 0,
                "avg_write_latency": NEVER, "p99_write_latency": NEVER}),
        ),
    ]
}

const WRITE: &str = "bdev_lvol_create_lvstore";

fn write() -> Value {
    json!({"bdev_name": "slow0", "lvs_name": "lvs"})
}

/// Waits until a write to the slow disk is under way, seen on a connection of its own.
fn wait_for_write(socket: &Path) -> Result<()> {
    let mut client = Client::connect_within(socket, Duration::from_secs(20))?;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // The disk beneath has done it already; it is the answer that is slow. (An error: the disk is not there yet.)
        if let Ok(stat) = client.call("bdev_get_iostat", json!({"name": "ram0"})) {
            if stat["bdevs"][0]["num_write_ops"].as_u64() > Some(0) {
                return Ok(());
            }
        }
        ensure!(Instant::now() < end, "nobody writes to slow0");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first signal does not end the process, the second does, and the next target takes over.
fn end_with_two_signals(mut process: Process, options: &TargetOptions) -> Result<()> {
    process.signal(libc::SIGTERM);
    let early = process.wait(Duration::from_secs(2));
    ensure!(
        early.is_err(),
        "nothing held the stop up: {early:?}\n{}",
        process.log()
    );
    process.signal(libc::SIGTERM);
    let status = process.wait(Duration::from_secs(5))?;
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
    let next = options.start(None)?;
    assert_eq!(next.into_process().stop()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_second_signal_ends_a_stop_that_is_held_up() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut target = options.start(None)?;
    for (method, params) in slow_disk() {
        target.call(method, params)?;
    }
    let mut writer = target.connect()?;
    let writes = std::thread::spawn(move || writer.call(WRITE, write()));
    wait_for_write(&options.socket)?;
    end_with_two_signals(target.into_process(), &options)?;
    let answer = writes.join().expect("the caller");
    assert!(answer.is_err(), "the write ended: {answer:?}");
    place.discard();
    Ok(())
}

#[test]
fn a_second_signal_ends_it_while_it_is_configured_too() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut calls: Vec<_> = slow_disk().into();
    calls.push((WRITE, write()));
    let calls: Vec<_> = calls
        .into_iter()
        .map(|(method, params)| json!({"method": method, "params": params}))
        .collect();
    let config = place.file("c.json");
    let text = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
    std::fs::write(&config, text.to_string())?;
    let mut command = options.command();
    command.arg("--json").arg(&config);
    let mut child = Reaped::spawn(&mut command, &options.log)?;
    let mut private = options.socket.clone().into_os_string();
    private.push(format!(".{}_config", child.pid()));
    let process = Process::attach("spdk_tgt", child, &options.log, private.as_ref())?;
    wait_for_write(private.as_ref()).context("the configuration's last call")?;
    assert!(!options.socket.exists(), "it does not serve yet");
    end_with_two_signals(process, &options)?;
    place.discard();
    Ok(())
}
