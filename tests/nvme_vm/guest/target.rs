//! The target in the guest.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::common::{Process, Target};

const SOCKET: &str = "/tmp/spdk.sock";
const CONFIG: &str = "/tmp/target.json";
const LOG: &str = "/tmp/spdk_tgt.log";

/// A configuration that saves memory, and then makes some calls.
pub fn config(calls: Vec<Value>) -> Value {
    let pools = json!({"bdev_io_pool_size": 4096, "bdev_io_cache_size": 64});
    let mut all = vec![json!({"method": "bdev_set_options", "params": pools})];
    all.extend(calls);
    json!({"subsystems": [{"subsystem": "bdev", "config": all}]})
}

/// Starts it and waits until it serves.
pub fn start_target() -> Result<Target> {
    start_target_with(&[])
}

/// The same, with further options.
pub fn start_target_with(options: &[&str]) -> Result<Target> {
    let mut command = command()?;
    command.args(options);
    start(command)
}

/// Starts it as an ordinary user, who has no privileges.
pub fn start_target_as(user: u32) -> Result<Target> {
    // What vfio maps for the controller is locked in memory. The target inherits the limit.
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `unlimited` is valid for reads during the call.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    ensure!(rc == 0, "{}", std::io::Error::last_os_error());
    // What another user's target left at the socket's place is not this one's.
    for left in [SOCKET.to_owned(), format!("{SOCKET}.lock")] {
        let _ = std::fs::remove_file(left);
    }
    let mut command = command()?;
    command.uid(user).gid(user);
    start(command)
}

fn command() -> Result<Command> {
    std::fs::write(CONFIG, config(Vec::new()).to_string())?;
    let mut command = Command::new("/bin/spdk_tgt");
    command
        .args(["-m", "0x1", "-s", "256", "--num-trace-entries", "64"])
        .args(["-r", SOCKET, "--json", CONFIG])
        .env("RUST_BACKTRACE", "0");
    Ok(command)
}

fn start(command: Command) -> Result<Target> {
    let process = Process::start("spdk_tgt", command, Path::new(LOG), Path::new(SOCKET))?;
    Ok(Target::of(process))
}
