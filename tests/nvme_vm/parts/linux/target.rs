//! The half on this machine: the target, and what is asked of it.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::rpc::CallError;

use super::{ALLOWED, NQN, PART};
use crate::common::{Place, Target, TargetOptions, place};
use crate::run::Run;
use crate::vm::Machine;

const VOLUME: &str = "lvs/vol";
const BACKUP: &str = "lvs/backup";
/// How often the delete is refused.
const DELETES: u32 = 1000;
/// What each read takes while it is, in microseconds, so that a checksum runs all the time.
const SLOW_READ_US: u64 = 1_500_000;

/// What runs on this machine, for a part.
struct Stand {
    target: Target,
    port: u16,
    checksum: Option<JoinHandle<Result<Value, CallError>>>,
}

pub fn host(run: &mut Run) -> Result<()> {
    let mut place = Place::new()?;
    let mut stand = Stand::start(&place)?;
    let mut machine = Machine {
        modules: Vec::new(),
        hugepages: 0,
        ..Machine::with_kernel_driver()
    };
    machine = machine
        .modules(["virtio_pci", "virtio_net", "nvme-tcp"])
        .arguments([
            "-netdev",
            "user,id=net0",
            "-device",
            "virtio-net-pci,netdev=net0,romfile=",
        ]);
    for (from, to) in [
        ("usr/sbin/nvme", "/bin/nvme"),
        ("sbin/mkfs.ext4", "/bin/mkfs.ext4"),
        ("sbin/e2fsck", "/bin/e2fsck"),
        ("usr/bin/fio", "/bin/fio"),
    ] {
        let from = run.files().program(from);
        machine.programs.push((from, to.to_owned()));
    }
    let params = json!({"port": stand.port, "volume": stand.uuid(VOLUME)?});
    let mut vm = run.boot(&machine, PART.name, params)?;
    run.serve(&mut vm, |_, _, what, _| stand.answer(what))?;
    vm.quit()?;
    let status = stand.target.into_process().stop()?;
    run.check(
        status.success(),
        format_args!("the target stops on SIGTERM: {status}"),
    );
    place.discard();
    Ok(())
}

impl Stand {
    /// A volume on a slow disk, exported to one host.
    fn start(place: &Place) -> Result<Self> {
        let port = place::free_port()?;
        let mut target = TargetOptions::in_place(place).start(None)?;
        target.create_slow_store(&place.file("disk"), 1 << 30, 512, 0)?;
        target.call(
            "bdev_lvol_create",
            json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 256 << 20, "thin_provision": true}),
        )?;
        target.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        target.call(
            "nvmf_create_subsystem",
            json!({"nqn": NQN, "serial_number": "VOLUME", "max_namespaces": 4}),
        )?;
        target.call("nvmf_subsystem_add_host", json!({"nqn": NQN, "host": ALLOWED}))?;
        let address =
            json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
        target.call(
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": address}),
        )?;
        let mut stand = Self {
            target,
            port,
            checksum: None,
        };
        stand.export(VOLUME)?;
        Ok(stand)
    }

    fn uuid(&mut self, name: &str) -> Result<String> {
        let bdev = self
            .target
            .bdev(name)?
            .with_context(|| format!("{name} is not there"))?;
        Ok(bdev["uuid"].as_str().context("a UUID")?.to_owned())
    }

    fn export(&mut self, name: &str) -> Result<()> {
        let namespace = json!({"bdev_name": name, "uuid": self.uuid(name)?});
        self.target.call(
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": namespace}),
        )?;
        Ok(())
    }

    fn answer(&mut self, what: &str) -> Result<Value> {
        match what {
            // The guest has stopped its writes for a moment.
            "snapshot" => {
                let params = json!({"lvol_name": VOLUME, "snapshot_name": "backup"});
                self.target.call("bdev_lvol_snapshot", params)?;
                self.export(BACKUP)?;
                Ok(json!(self.uuid(BACKUP)?))
            }
            "connections" => Ok(json!(self.target.connections()?)),
            "refuse" => self.refuse(),
            "grant" => self.grant(),
            "namespaces" => Ok(json!(self.target.namespaces(NQN)?.len())),
            what => bail!("nobody here knows {what}"),
        }
    }

    /// Deletes the backup while a checksum of it runs.
    fn refuse(&mut self) -> Result<Value> {
        self.target.slow_down(&["read"], SLOW_READ_US)?;
        let mut client = self.target.connect()?;
        let checksum = thread::spawn(move || {
            client.call("bdev_lvol_register_snapshot_checksum", json!({"name": BACKUP}))
        });
        // Until the target has heard of it.
        thread::sleep(Duration::from_millis(300));
        let (begun, mut refused) = (Instant::now(), 0);
        while refused < DELETES && self.is_busy()? {
            refused += 1;
        }
        let took = begun.elapsed().as_secs_f32();
        if checksum.is_finished() {
            let ended = checksum.join();
            bail!("the checksum ended within {refused} deletes, {took:.1} s: {ended:?}");
        }
        self.checksum = Some(checksum);
        Ok(json!({"refused": refused, "of": DELETES, "seconds": took}))
    }

    /// Whether a delete of the backup is refused as busy.
    fn is_busy(&mut self) -> Result<bool> {
        match self.target.call("bdev_lvol_delete", json!({"name": BACKUP})) {
            Ok(_) => Ok(false),
            Err(error) => {
                let rpc = error.rpc().context("no answer")?;
                ensure!(rpc.message == "Device or resource busy", "refused with {rpc:?}");
                Ok(true)
            }
        }
    }

    /// Deletes the backup when nobody holds it any more.
    fn grant(&mut self) -> Result<Value> {
        self.target.slow_down(&["read"], 0)?;
        let checksum = self.checksum.take().context("there is no checksum")?;
        self.target
            .call("bdev_lvol_stop_snapshot_checksum", json!({"name": BACKUP}))?;
        let ended = checksum
            .join()
            .map_err(|_| anyhow!("the checksum's caller panicked"))?;
        ensure!(ended.is_err(), "the checksum had ended by itself");
        Ok(self.target.call("bdev_lvol_delete", json!({"name": BACKUP}))?)
    }
}
