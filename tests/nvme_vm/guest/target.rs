//! The target in the guest.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use crate::common::{Process, Target};

const SOCKET: &str = "/tmp/spdk.sock";
const CONFIG: &str = "/tmp/target.json";

/// The command that starts it. It takes little memory.
pub fn target_command() -> Result<Command> {
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_set_options", "params": {"bdev_io_pool_size": 4096, "bdev_io_cache_size": 64}},
    ]}]});
    std::fs::write(CONFIG, serde_json::to_vec(&config)?)?;
    let mut command = Command::new("/bin/spdk_tgt");
    command
        .args(["-m", "0x1", "-s", "256", "--num-trace-entries", "64"])
        .args(["-r", SOCKET, "--json", CONFIG])
        .env("RUST_BACKTRACE", "0");
    Ok(command)
}

/// Starts it and waits until it serves.
pub fn start_target() -> Result<Target> {
    let process = Process::start(
        "spdk_tgt",
        target_command()?,
        Path::new("/tmp/spdk_tgt.log"),
        Path::new(SOCKET),
    )?;
    Ok(Target::of(process))
}
