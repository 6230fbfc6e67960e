//! The run: its processes, what the steps call again and again, and their order.
//!
//! The steps, and their checks, are the same whatever SPDK the target was built with. What differs in the control run
//! is which checks fail.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::checks::Checks;
use crate::common::{Place, Process, Target, TargetOptions};
use crate::host::{HostOptions, HostStatus};
use crate::seen::Identity;

pub const NQN: &str = "nqn.2016-06.io.spdk:cnode1";
pub const VOLUME: &str = "lvs/vol";
pub const BACKUP: &str = "lvs/backup";
pub const OLDER: &str = "lvs/older";

/// The run: its processes, and what the later steps compare with.
pub struct Scenario<'a> {
    pub(super) checks: &'a mut Checks,
    pub(super) place: &'a Place,
    pub(super) target_options: TargetOptions,
    pub(super) host_options: HostOptions,
    pub(super) target: Option<Target>,
    pub(super) host: Option<Process>,
    pub(super) config: PathBuf,
    pub(super) made: Vec<(&'static str, Value)>,
}

impl<'a> Scenario<'a> {
    /// A run in `place` with the target that `target_options` names.
    pub fn new(checks: &'a mut Checks, place: &'a Place, target_options: TargetOptions) -> Result<Self> {
        let (_, host_core) = crate::common::place::two_cores();
        let host_options = HostOptions {
            core: host_core,
            socket: place.file("host.sock"),
            ledger: place.file("ledger"),
            nqn: NQN.to_owned(),
            port: crate::common::place::free_port()?,
        };
        Ok(Self {
            checks,
            place,
            target_options,
            host_options,
            target: None,
            host: None,
            config: place.file("target.json"),
            made: Vec::new(),
        })
    }

    pub(super) fn target(&mut self) -> Result<&mut Target> {
        self.target.as_mut().context("the target is not running")
    }

    pub(super) fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        Ok(self.target()?.call(method, params)?)
    }

    pub(super) fn ask_host(&mut self, method: &str, params: Value) -> Result<Value> {
        let host = self.host.as_mut().context("the host is not running")?;
        Ok(host.call(method, params)?)
    }

    pub(super) fn host_status(&mut self) -> Result<HostStatus> {
        Ok(serde_json::from_value(self.ask_host("host_status", json!({}))?)?)
    }

    pub(super) fn start_host(&mut self) -> Result<()> {
        let log = self.place.file("host.log");
        let host = Process::start(
            "the host",
            self.host_options.command()?,
            &log,
            &self.host_options.socket,
        )?;
        self.checks.note(format_args!(
            "host: process {} on core {}, NVMe/TCP to 127.0.0.1:{}",
            host.pid(),
            self.host_options.core,
            self.host_options.port
        ));
        self.host = Some(host);
        self.ask_host("host_connect", json!({}))?;
        Ok(())
    }

    pub(super) fn start_target(&mut self, with_config: bool) -> Result<()> {
        let config = with_config.then(|| self.config.clone());
        let target = self.target_options.start(config.as_deref())?;
        self.checks.note(format_args!(
            "target: process {} on core {}",
            target.process().pid(),
            self.target_options.core
        ));
        self.target = Some(target);
        Ok(())
    }

    /// Calls a method that makes something which is not on the disk: a restart has to make it again.
    pub(super) fn configure(&mut self, subsystem: &'static str, method: &str, params: Value) -> Result<()> {
        self.call(method, params.clone())?;
        self.made
            .push((subsystem, json!({"method": method, "params": params})));
        Ok(())
    }

    /// Writes the configuration for a restart: what was made so far.
    pub(super) fn write_config(&mut self) -> Result<()> {
        let calls_of = |subsystem: &str| -> Vec<Value> {
            let of_subsystem = self.made.iter().filter(|(of, _)| *of == subsystem);
            of_subsystem.map(|(_, call)| call.clone()).collect()
        };
        // The delay comes before the file beneath it, and waits for it: else the lvstore could be found on the file
        // itself before the delay is there.
        let mut bdevs = calls_of("bdev");
        bdevs.reverse();
        let config = json!({"subsystems": [
            {"subsystem": "bdev", "config": bdevs},
            {"subsystem": "nvmf", "config": calls_of("nvmf")},
        ]});
        std::fs::write(&self.config, serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }

    pub(super) fn set_read_delay(&mut self, microseconds: u64) -> Result<()> {
        Ok(self.target()?.slow_down(&["read"], microseconds)?)
    }

    pub(super) fn identity(&mut self, name: &str) -> Result<Option<Identity>> {
        Identity::of(self.target()?, name)
    }

    pub(super) fn must_exist(&mut self, name: &str) -> Result<Identity> {
        match self.identity(name)? {
            Some(identity) => Ok(identity),
            None => bail!("{name} is not there"),
        }
    }

    pub(super) fn free_clusters(&mut self) -> Result<u64> {
        let store = self.target()?.lvstore("lvs")?;
        store["free_clusters"]
            .as_u64()
            .context("the lvstore does not say how many clusters are free")
    }

    pub(super) fn add_namespace(&mut self, nsid: u32, bdev: &str) -> Result<()> {
        self.configure(
            "nvmf",
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": {"bdev_name": bdev, "nsid": nsid}}),
        )
    }

    /// Runs all steps. An error is a run that could not go on; promises that were not kept are in the checks.
    pub fn run(mut self) -> Result<()> {
        self.device()?;
        self.store()?;
        let volume = self.volume()?;
        self.export()?;
        self.write_and_verify()?;
        let backup = self.snapshot(&volume)?;
        let volume = self.must_exist(VOLUME)?;
        let sum = self.first_checksum()?;
        let second = self.slow_checksum()?;
        self.refused_delete(&second, &volume, &backup)?;
        self.crash_and_restart(second, &volume, &backup, sum)?;
        let free = self.granted_delete(sum)?;
        self.final_restart(free)?;
        self.checks.end_step()
    }
}
