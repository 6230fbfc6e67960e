//! How a host is started.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What a host needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostOptions {
    /// The core that it runs on.
    pub core: usize,
    /// Its own RPC socket.
    pub socket: PathBuf,
    /// The file that remembers what was written.
    pub ledger: PathBuf,
    /// The subsystem to connect to.
    pub nqn: String,
    /// The target's port on 127.0.0.1.
    pub port: u16,
}

impl HostOptions {
    /// The command that starts a host: this program, in its other role.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("host").arg(serde_json::to_string(self)?);
        Ok(command)
    }
}
