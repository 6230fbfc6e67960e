//! A controller that is pulled out while it is used, and comes back.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use spdk_rs::bdev::{Bdev, Descriptor, Mode, wait_for_examine};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, nvme, spawn};

use super::{Part, io};
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Link, Machine, Vm};

/// The part.
pub const PART: Part = Part {
    name: "removal",
    about: "a controller is pulled out during I/O, with SPDK's hotplug monitor and without, and comes back",
    host,
    guest: in_guest,
    programs: &[("removal-io", pulled)],
};

const MIB: u64 = 1 << 20;
const TASKS: u64 = 8;
const SEED: u64 = 0x7777;
/// What may pass until everybody knows.
const LIMIT: Duration = Duration::from_secs(15);

fn host(run: &mut Run) -> Result<()> {
    let drive = Drive::create("disk", run.file("removal.img"), 512 * MIB)?;
    let machine = Machine::for_user_space().controller("nvme0", &drive);
    let mut vm = run.boot(&machine, PART.name, json!({}))?;
    run.serve(&mut vm, |_, vm, what, _| match what {
        "pull" => pull(vm),
        "plug" => plug(vm, &drive),
        what => bail!("nobody here knows {what}"),
    })?;
    vm.quit()
}

fn pull(vm: &mut Vm) -> Result<Value> {
    // On a busy machine Linux takes its time, and does not always hear the first time.
    for _ in 0..4 {
        match vm.qmp.call("device_del", json!({"id": "nvme0"})) {
            Err(error) if error.to_string().contains("not found") => return Ok(Value::Null),
            Err(error) if error.to_string().contains("in the process of unplug") => {}
            answer => drop(answer?),
        }
        while let Some(event) = vm.qmp.event("DEVICE_DELETED", Duration::from_secs(12))? {
            if event["data"]["device"] == "nvme0" {
                return Ok(Value::Null);
            }
        }
    }
    bail!("QEMU does not take the device out")
}

fn plug(vm: &mut Vm, drive: &Drive) -> Result<Value> {
    let mut device = json!({"driver": "nvme", "write-cache": "off"});
    for (key, value) in [
        ("id", "nvme0"),
        ("serial", "nvme0"),
        ("drive", &drive.node),
        ("bus", "slot-nvme0"),
    ] {
        device[key] = json!(value);
    }
    // QEMU lets the image go a moment after it has said that the device is gone.
    let end = Instant::now() + LIMIT;
    loop {
        match vm.qmp.call("device_add", device.clone()) {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}

fn in_guest(link: &Link, _params: &Value) -> Result<()> {
    let address = guest::bind()?.remove(0);
    for monitor in [true, false] {
        let params = json!({"address": address, "monitor": monitor});
        guest::run_program(link, "removal-io", &params)?;
        target(link, &address, monitor)?;
    }
    Ok(())
}

fn with_or_without(monitor: bool) -> &'static str {
    if monitor { "with the monitor" } else { "without" }
}

/// In a process of this crate.
fn pulled(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    let monitor = params["monitor"] == true;
    let watch =
        json!({"method": "bdev_nvme_set_hotplug", "params": {"enable": monitor, "period_us": 100_000}});
    guest::with_spdk_and(watch, async move {
        let how = with_or_without(monitor);
        let address = params["address"].as_str().context("an address")?;
        nvme::attach_pcie("Nvme0", address).await?;
        wait_for_examine().await?;
        let store = match LvolStore::find("lvs").await {
            Ok(store) => store,
            Err(_) => LvolStore::create("Nvme0n1", "lvs", StoreOptions::default()).await?,
        };
        let name = format!("vol-{monitor}");
        let volume = store.create_lvol(&name, 64 * MIB, Provisioning::Thin).await?;
        let descriptor = Rc::new(volume.open(Mode::ReadWrite)?);
        let channel = descriptor.channel()?;
        io::write(&channel, 0, 64 * MIB, 256 << 10, SEED).await?;
        drop(channel);

        let ops = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| spawn(work(Rc::clone(&descriptor), task, Rc::clone(&ops))))
            .collect();
        sleep(Duration::from_millis(300)).await;
        let before = ops.get();
        let pulling = {
            let link = link.clone();
            thread::spawn(move || link.ask("pull", json!({})))
        };
        while !pulling.is_finished() {
            sleep(Duration::from_millis(5)).await;
        }
        pulling.join().map_err(|_| anyhow!("a panic"))??;
        let begun = Instant::now();
        let mut kinds = Vec::new();
        for task in tasks {
            match timeout(LIMIT, task).await {
                Ok(kind) => kinds.push(kind?),
                Err(_) => break,
            }
        }
        let ended = kinds.len() as u64;
        link.check(
            before > 0 && ended == TASKS,
            format_args!(
                "pulled out {how}: of {TASKS} tasks with I/O, after {before} I/Os, have ended: {ended}, in {} ms, by {kinds:?}",
                begun.elapsed().as_millis()
            ),
        )?;
        if ended < TASKS {
            bail!("I/O hangs");
        }
        let removed = timeout(LIMIT, descriptor.removed()).await.is_ok();
        link.check(removed, "the volume's descriptor hears of it")?;
        let descriptor = Rc::into_inner(descriptor).context("the tasks have ended")?;
        descriptor.close().await?;
        let gone = until(|| Ok(Bdev::all()?.is_empty())).await?;
        link.check(gone, format_args!("block devices: {:?}", names()?))?;
        let store = LvolStore::find("lvs")
            .await
            .err()
            .context("the store is still there")?;
        link.same("the store", format_args!("{:?}", store.kind()), "NotFound")?;

        link.ask("plug", json!({}))?;
        let begun = Instant::now();
        if monitor {
            let back = until(|| Ok(names()?.iter().any(|name| name.starts_with("HotInNvme")))).await?;
            link.check(
                back,
                format_args!(
                    "plugged in, it is there by itself in {} ms",
                    begun.elapsed().as_millis()
                ),
            )?;
        } else {
            // Linux has to notice first.
            loop {
                match nvme::attach_pcie("Nvme1", address).await {
                    Ok(_) => break,
                    Err(error) if begun.elapsed() > LIMIT => return Err(error.into()),
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
            link.check(true, "plugged in, it is attached again")?;
        }
        wait_for_examine().await?;
        let store = LvolStore::find("lvs").await?;
        let report = store.check().await?;
        link.same("what is wrong with the store", report.findings.len(), 0)?;
        let descriptor = store.lvol(&name).await?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        let wrong = io::wrong_blocks(&channel, 0, 8 * MIB, 256 << 10, SEED).await?;
        link.same("blocks that differ", wrong, 0)?;
        drop(channel);
        Ok(descriptor.close().await?)
    })
}

/// Reads and writes until it cannot.
async fn work(descriptor: Rc<Descriptor>, task: u64, ops: Rc<Cell<u64>>) -> ErrorKind {
    let attempt = async {
        let channel = descriptor.channel()?;
        let mut buf = DmaBuf::zeroed(16384)?;
        for turn in 0.. {
            let at = 8 * MIB + (task * 4 + turn % 4) * MIB;
            ((), buf) = channel.write(buf, at).await.ok()?;
            ((), buf) = channel.read(buf, at).await.ok()?;
            ops.set(ops.get() + 2);
        }
        Ok::<_, spdk_rs::Error>(())
    };
    attempt.await.err().map_or(ErrorKind::Other, |error| error.kind())
}

async fn until(mut condition: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + LIMIT;
    while !condition()? {
        if Instant::now() > end {
            return Ok(false);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(true)
}

fn names() -> Result<Vec<String>> {
    Ok(Bdev::all()?.iter().map(|bdev| bdev.name().to_owned()).collect())
}

/// The target, while it reads for a checksum.
fn target(link: &Link, address: &str, monitor: bool) -> Result<()> {
    let how = with_or_without(monitor);
    let mut target = guest::start_target()?;
    let attach = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address});
    target.call("bdev_nvme_attach_controller", attach.clone())?;
    target.call(
        "bdev_nvme_set_hotplug",
        json!({"enable": monitor, "period_us": 100_000}),
    )?;
    target.call("bdev_wait_for_examine", json!({}))?;
    let snapshot = format!("snap-{monitor}");
    let volume = format!("lvs/vol-{monitor}");
    target.call(
        "bdev_lvol_snapshot",
        json!({"lvol_name": volume, "snapshot_name": snapshot}),
    )?;
    let mut client = target.connect()?.with_timeout(LIMIT);
    let name = format!("lvs/{snapshot}");
    let checksums = thread::spawn(move || {
        for sums in 0.. {
            if let Err(error) = client.call("bdev_lvol_register_snapshot_checksum", json!({"name": name})) {
                return Some((sums, error));
            }
        }
        None
    });
    thread::sleep(Duration::from_millis(500));
    link.ask("pull", json!({}))?;
    let ended = checksums.join().map_err(|_| anyhow!("a panic"))?;
    let (sums, error) = ended.context("it does not end")?;
    link.check(
        error.rpc().is_some(),
        format_args!(
            "pulled out {how} while the target computes a checksum again and again: {sums}, then {error}"
        ),
    )?;
    let end = Instant::now() + LIMIT;
    let mut left = json!(null);
    while left != json!([]) && Instant::now() < end {
        left = target.call("bdev_get_bdevs", json!({}))?;
        thread::sleep(Duration::from_millis(50));
    }
    link.same("block devices of the target", &left, "[]")?;
    let stores = target.call("bdev_lvol_get_lvstores", json!({}))?;
    link.same("its stores", &stores, "[]")?;
    link.ask("plug", json!({}))?;
    let end = Instant::now() + LIMIT;
    let mut back = None;
    while back.is_none() && Instant::now() < end {
        if !monitor {
            let _ = target.call("bdev_nvme_attach_controller", attach.clone());
        }
        thread::sleep(Duration::from_millis(100));
        back = target.bdev(&volume)?;
    }
    link.check(back.is_some(), "plugged in, the volume is there again")?;
    let status = target.into_process().stop()?;
    link.check(status.success(), format_args!("the target stops: {status}"))
}
