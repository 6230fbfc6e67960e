//! The target under test: how it is started, and what is asked of it again and again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use spdk_rs::rpc::{CallError, Client};

use super::{Place, Process};

/// How a target is started.
#[derive(Clone)]
pub struct TargetOptions {
    /// The binary.
    pub binary: PathBuf,
    /// The core that it runs on.
    pub core: usize,
    /// Megabytes of memory.
    pub memory_mb: u32,
    /// The RPC socket.
    pub socket: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

impl TargetOptions {
    /// The binary that was built with this test, its files in `place`.
    pub fn in_place(place: &Place) -> Self {
        Self {
            binary: env!("CARGO_BIN_EXE_spdk_tgt").into(),
            core: super::place::two_cores().0,
            memory_mb: 512,
            socket: place.file("spdk.sock"),
            log: place.file("spdk_tgt.log"),
        }
    }

    /// The command that starts it, as an ordinary user could.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--no-huge")
            .args(["-m", &format!("[{}]", self.core)])
            .args(["-s", &self.memory_mb.to_string()])
            .arg("-r")
            .arg(&self.socket);
        command
    }

    /// Starts it, with a configuration if there is one, and waits until it serves.
    pub fn start(&self, config: Option<&Path>) -> Result<Target> {
        let mut command = self.command();
        if let Some(config) = config {
            command.arg("--json").arg(config);
        }
        let process = Process::start("spdk_tgt", command, &self.log, &self.socket)?;
        Ok(Target { process })
    }
}

/// A running target.
pub struct Target {
    process: Process,
}

impl Target {
    /// A target that was started in another way.
    pub fn of(process: Process) -> Self {
        Self { process }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Gives the process up, to end it.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Calls an RPC method.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        self.process.call(method, params)
    }

    /// Creates the delay bdev `slow0`; latencies in microseconds.
    pub fn create_delay(&mut self, base: &str, read: u64, write: u64) -> Result<Value, CallError> {
        self.call(
            "bdev_delay_create",
            json!({"base_bdev_name": base, "name": "slow0", "avg_read_latency": read, "p99_read_latency": read,
                "avg_write_latency": write, "p99_write_latency": write}),
        )
    }

    /// Makes each of these kinds of I/O of `slow0` take so long (`read`, `write`).
    pub fn slow_down(&mut self, kinds: &[&str], microseconds: u64) -> Result<(), CallError> {
        for kind in kinds {
            for which in ["avg", "p99"] {
                self.call(
                    "bdev_delay_update_latency",
                    json!({"delay_bdev_name": "slow0", "latency_type": format!("{which}_{kind}"),
                        "latency_us": microseconds}),
                )?;
            }
        }
        Ok(())
    }

    /// An AIO bdev `aio0` on a new file, the delay bdev `slow0` on it, and on that the lvstore `lvs` with
    /// clusters of 1 MiB; latencies in microseconds.
    pub fn create_slow_store(
        &mut self,
        disk: &Path,
        bytes: u64,
        block: u32,
        read: u64,
    ) -> anyhow::Result<()> {
        std::fs::File::create(disk)?.set_len(bytes)?;
        self.call(
            "bdev_aio_create",
            json!({"name": "aio0", "filename": disk, "block_size": block}),
        )?;
        self.create_delay("aio0", read, 0)?;
        self.call(
            "bdev_lvol_create_lvstore",
            json!({"bdev_name": "slow0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
        )?;
        Ok(())
    }

    /// A second connection.
    pub fn connect(&self) -> Result<Client, CallError> {
        self.process.connect()
    }

    /// What is known of a bdev, by name or alias; `None` when there is no such bdev.
    pub fn bdev(&mut self, name: &str) -> Result<Option<Value>, CallError> {
        match self.call("bdev_get_bdevs", json!({"name": name})) {
            Ok(mut list) => Ok(list.get_mut(0).map(Value::take)),
            Err(error) if error.rpc().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The namespaces of a subsystem, as the target lists them.
    pub fn namespaces(&mut self, nqn: &str) -> Result<Vec<Value>, CallError> {
        let subsystems = self.call("nvmf_get_subsystems", json!({}))?;
        let found = subsystems
            .as_array()
            .into_iter()
            .flatten()
            .find(|subsystem| subsystem["nqn"] == nqn);
        Ok(found
            .and_then(|subsystem| subsystem["namespaces"].as_array())
            .cloned()
            .unwrap_or_default())
    }

    /// How many connections hosts have made since the target started: a host that reconnects adds to them.
    pub fn connections(&mut self) -> Result<(u64, u64), CallError> {
        let stats = self.call("nvmf_get_stats", json!({}))?;
        let sum = |key: &str| {
            let groups = stats["poll_groups"].as_array();
            groups
                .into_iter()
                .flatten()
                .filter_map(|group| group[key].as_u64())
                .sum()
        };
        Ok((sum("admin_qpairs"), sum("io_qpairs")))
    }

    /// The lvolstore of that name.
    pub fn lvstore(&mut self, name: &str) -> Result<Value, CallError> {
        let mut list = self.call("bdev_lvol_get_lvstores", json!({"lvs_name": name}))?;
        Ok(list[0].take())
    }

    /// The running configuration, in the form that a target is started with.
    pub fn save_config(&mut self) -> Result<Value, CallError> {
        let mut subsystems = Vec::new();
        let list = self.call("framework_get_subsystems", json!({}))?;
        for subsystem in list.as_array().into_iter().flatten() {
            let name = &subsystem["subsystem"];
            let config = self.call("framework_get_config", json!({"name": name}))?;
            subsystems.push(json!({"subsystem": name, "config": config}));
        }
        Ok(json!({"subsystems": subsystems}))
    }
}
