//! The NVMe PCIe driver on an emulated controller: this crate's programs and the target take turns on one disk.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::{Bdev, Mode, wait_for_examine};
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::nvme;
use spdk_rs::rpc::{CallError, RpcError};

use super::{Part, io};
use crate::common::Target;
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Link, Machine};

/// The part.
pub const PART: Part = Part {
    name: "pcie",
    about: "the target on an NVMe controller: volumes, a delete while it is busy, a restart",
    host,
    guest: in_guest,
    programs: &[("pcie-make", make), ("pcie-find", find)],
};

const DISK: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const CLUSTER: u64 = MIB;
const VOLUME: u64 = 64 * MIB;
/// What the backup holds, in clusters, and what the volume wrote anew since.
const BACKED_UP: u64 = 16;
const WRITTEN_ANEW: u64 = 4;
const FIRST: u64 = 0x1111;
const ANEW: u64 = 0x2222;

fn host(run: &mut Run) -> Result<()> {
    let mut drive = Drive::create("disk", run.file("pcie.img"), DISK)?;
    drive
        .filters
        .push("driver=throttle,throttle-group=speed".to_owned());
    let machine = Machine::for_user_space()
        .arguments(["-object", "throttle-group,id=speed"])
        .controller("nvme0", &drive);
    let mut vm = run.boot(&machine, PART.name, json!({}))?;
    run.serve(&mut vm, |_, vm, what, params| match what {
        "speed" => vm.qmp.call(
            "qom-set",
            json!({"path": "/objects/speed", "property": "limits", "value": {"bps-read": params}}),
        ),
        what => bail!("nobody here knows {what}"),
    })?;
    vm.quit()
}

fn in_guest(link: &Link, _params: &Value) -> Result<()> {
    let addresses = guest::bind()?;
    link.same("controllers", addresses.len(), 1)?;
    let address = json!(addresses[0]);
    guest::run_program(link, "pcie-make", &address)?;
    let free = with_target(link, &address)?;
    guest::run_program(link, "pcie-find", &json!({"address": address, "free": free}))
}

/// Attaches the controller in this process: its disk itself, then a store on it.
fn make(link: &Link, address: &Value) -> Result<()> {
    let (link, address) = (link.clone(), address.as_str().context("an address")?.to_owned());
    guest::with_spdk(async move {
        let no_slot = nvme::attach_pcie("None", "0000:1e:00.0").await;
        let error = no_slot.err().context("there is nothing")?;
        link.check(
            error.kind() == spdk_rs::ErrorKind::NotFound,
            format_args!("an empty slot: {error}"),
        )?;
        let names = nvme::attach_pcie("Nvme0", &address).await?;
        link.same("attached over PCIe", names.join(" "), "Nvme0n1")?;
        // It goes on to work all the same.
        let again = nvme::attach_pcie("Nvme1", &address).await.err();
        let again = again.context("it was attached twice")?;
        link.check(
            again.kind() == spdk_rs::ErrorKind::AlreadyExists,
            format_args!("attached again: {again}"),
        )?;
        disk(&link).await?;
        store(&link).await?;
        nvme::detach("Nvme0").await?;
        link.same("block devices when it was let go", Bdev::all()?.len(), 0)
    })
}

/// The controller's namespace, as a block device.
async fn disk(link: &Link) -> Result<()> {
    let bdev = Bdev::find("Nvme0n1")?;
    link.same("bytes", bdev.size(), DISK)?;
    // QEMU's controllers always say so.
    link.same("has a volatile write cache", bdev.has_write_cache(), true)?;
    let descriptor = bdev.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let mut wrong = 0;
    // The largest is more than the controller takes at once; the last ends where the disk does.
    let ranges = [
        (0, MIB, 4096),
        (5 * MIB, MIB, 65536),
        (16 * MIB, 4 * MIB, 2 << 20),
        (DISK - MIB, MIB, 512 << 10),
    ];
    for (seed, (offset, len, step)) in (1..).zip(ranges) {
        io::write(&channel, offset, len, step, seed).await?;
    }
    for (seed, (offset, len, _)) in (1..).zip(ranges) {
        wrong += io::wrong_blocks(&channel, offset, len, 128 << 10, seed).await?;
    }
    link.same("blocks of 7 MiB that are not what was written", wrong, 0)?;
    channel.flush().await?;
    channel.write_zeroes(5 * MIB, MIB).await?;
    channel.unmap(16 * MIB, 4 * MIB).await?;
    let zeroes = io::wrong_blocks(&channel, 5 * MIB, MIB, 65536, 0).await?;
    link.same("blocks that zeroes were written to, and are not", zeroes, 0)?;
    let beyond = channel
        .write_zeroes(DISK, 4096)
        .await
        .err()
        .context("beyond the end")?;
    link.check(
        beyond.kind() == spdk_rs::ErrorKind::OutOfRange,
        format_args!("beyond its end: {beyond}"),
    )?;
    drop(channel);
    Ok(descriptor.close().await?)
}

/// A store, with a volume and its backup.
async fn store(link: &Link) -> Result<()> {
    let options = StoreOptions::default().cluster_size(CLUSTER as u32);
    let store = LvolStore::create("Nvme0n1", "lvs", options).await?;
    let volume = store.create_lvol("vol", VOLUME, Provisioning::Thin).await?;
    let descriptor = volume.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    io::write(&channel, 0, BACKED_UP * CLUSTER, 256 << 10, FIRST).await?;
    let backup = volume.snapshot("backup").await?;
    io::write(&channel, 0, WRITTEN_ANEW * CLUSTER, 64 << 10, ANEW).await?;
    let sum = backup.checksum().await?;
    link.note(format_args!(
        "a store, a volume, its backup; checksum {sum:#018x}"
    ))?;
    drop(channel);
    descriptor.close().await?;
    Ok(store.unload().await?)
}

/// The target's turn: how many clusters are free in the end.
fn with_target(link: &Link, address: &Value) -> Result<u64> {
    let mut target = attach_to_target(address)?;
    let sum = target.call("bdev_lvol_get_snapshot_checksum", json!({"name": "lvs/backup"}))?;
    link.check(
        sum["checksum"].is_u64(),
        format_args!("the target finds it: checksum {sum}"),
    )?;
    let before = all_bdevs(&mut target)?;

    link.ask("speed", json!(MIB))?;
    let mut client = target.connect()?;
    let checksum = thread::spawn(move || {
        client.call(
            "bdev_lvol_register_snapshot_checksum",
            json!({"name": "lvs/backup"}),
        )
    });
    thread::sleep(Duration::from_secs(1));
    ensure!(
        !checksum.is_finished(),
        "the checksum is too fast to be in the way"
    );
    let refused = target.call("bdev_lvol_delete", json!({"name": "lvs/backup"}));
    let refused = refused.err().as_ref().and_then(CallError::rpc).cloned();
    let refused: RpcError = refused.context("a delete while a checksum runs is granted")?;
    link.same(
        "a delete while a checksum runs",
        &refused.message,
        "Device or resource busy",
    )?;
    let holder = json!({"lvol": "lvs/backup", "reason": "locked", "operation": "checksum", "holder": "backup",
                        "open_refs": 1, "clones": ["vol"]});
    link.same("who holds it", refused.data.unwrap_or_default(), holder)?;
    let after = all_bdevs(&mut target)?;
    link.check(before == after, "all block devices are as they were")?;
    link.check(!checksum.is_finished(), "the checksum still runs")?;
    link.ask("speed", json!(0))?;
    target.call("bdev_lvol_stop_snapshot_checksum", json!({"name": "lvs/backup"}))?;
    let stopped = checksum
        .join()
        .map_err(|_| anyhow::anyhow!("its caller panicked"))?;
    link.check(
        stopped.is_err(),
        format_args!(
            "it is stopped: {}",
            stopped.err().map(|error| error.to_string()).unwrap_or_default()
        ),
    )?;

    let free = free_clusters(&mut target)?;
    let granted = target.call("bdev_lvol_delete", json!({"name": "lvs/backup"}))?;
    link.same("the delete now", granted, true)?;
    // The volume takes over what it had not written anew.
    let freed = free_clusters(&mut target)? - free;
    link.same("clusters that it gave back", freed, WRITTEN_ANEW)?;
    let status = target.into_process().stop()?;
    link.check(status.success(), format_args!("the target stops: {status}"))?;

    let mut target = attach_to_target(address)?;
    let backup = target.bdev("lvs/backup")?;
    link.check(backup.is_none(), "after a restart the backup is gone")?;
    let volume = target.bdev("lvs/vol")?.context("the volume is gone, too")?;
    link.same(
        "the volume is a clone",
        &volume["driver_specific"]["lvol"]["clone"],
        false,
    )?;
    link.same("free clusters", free_clusters(&mut target)?, free + WRITTEN_ANEW)?;
    let report = target.call("bdev_lvol_check_lvstore", json!({"lvs_name": "lvs"}))?;
    link.same("what is wrong with the store", &report["findings"], "[]")?;
    let status = target.into_process().stop()?;
    link.check(status.success(), format_args!("the target stops: {status}"))?;
    Ok(free + WRITTEN_ANEW)
}

fn attach_to_target(address: &Value) -> Result<Target> {
    let mut target = guest::start_target()?;
    let params = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address});
    let names = target.call("bdev_nvme_attach_controller", params)?;
    ensure!(names == json!(["Nvme0n1"]), "attached: {names}");
    target.call("bdev_wait_for_examine", json!({}))?;
    Ok(target)
}

fn all_bdevs(target: &mut Target) -> Result<Value> {
    Ok(target.call("bdev_get_bdevs", json!({}))?)
}

fn free_clusters(target: &mut Target) -> Result<u64> {
    let store = target.lvstore("lvs")?;
    store["free_clusters"].as_u64().context("free_clusters")
}

/// What the target has left, seen by a program again.
fn find(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        let address = params["address"].as_str().context("an address")?;
        nvme::attach_pcie("Nvme0", address).await?;
        wait_for_examine().await?;
        let store = LvolStore::find("lvs").await?;
        link.same(
            "free clusters",
            store.stats().await?.free_clusters,
            &params["free"],
        )?;
        let descriptor = store.lvol("vol").await?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        let mut wrong = 0;
        let (anew, first) = (WRITTEN_ANEW * CLUSTER, BACKED_UP * CLUSTER);
        for (from, to, seed) in [(0, anew, ANEW), (anew, first, FIRST), (first, VOLUME, 0)] {
            wrong += io::wrong_blocks(&channel, from, to - from, 256 << 10, seed).await?;
        }
        link.same("blocks of the volume that are not what they should be", wrong, 0)?;
        drop(channel);
        descriptor.close().await?;
        // The program ends with the controller attached.
        Ok(())
    })
}
