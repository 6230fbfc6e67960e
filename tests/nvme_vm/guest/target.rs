//! The target in the guest.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::common::{Process, Target};

const SOCKET: &str = "/tmp/spdk.sock";
const CONFIG: &str = "/tmp/target.json";
const LOG: &str = "/tmp/spdk_tgt.log";

/// A configuration that saves memory, and nothing else.
pub const SMALL_POOLS: &str = r#"{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_set_options",
    "params": {"bdev_io_pool_size": 4096, "bdev_io_cache_size": 64}}]}]}"#;

/// Starts it and waits until it serves.
pub fn start_target() -> Result<Target> {
    std::fs::write(CONFIG, SMALL_POOLS)?;
    let mut command = Command::new("/bin/spdk_tgt");
    command
        .args(["-m", "0x1", "-s", "256", "--num-trace-entries", "64"])
        .args(["-r", SOCKET, "--json", CONFIG])
        .env("RUST_BACKTRACE", "0");
    let process = Process::start("spdk_tgt", command, Path::new(LOG), Path::new(SOCKET))?;
    Ok(Target::of(process))
}
