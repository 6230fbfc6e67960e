//! A target that is asked to end unloads all its stores: whatever they stand on, and whoever has their volumes open.
//!
//! A store that is not unloaded is recovered by the next load, which reads all its metadata.

mod common;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, ensure};
use common::{Place, Target, TargetOptions, place};
use serde_json::{Value, json};

const NQN: &str = "nqn.2020-07.io.spdk:clean-end";

/// The files that the stores are on, and how many stores are on each.
const DISKS: [(&str, usize); 3] = [("disk0", 2), ("disk1", 1), ("disk2", 1)];

/// Whether they were unloaded: the super blocks that are on the disk, at the start of a page each.
fn super_blocks(disk: &Path) -> Result<Vec<bool>> {
    let (mut disk, mut page, mut found) = (File::open(disk)?, vec![0; 4096], Vec::new());
    while disk.read(&mut page)? == page.len() {
        if page.starts_with(b"SPDKBLOB") {
            // Signature, version, length, and whether it was unloaded.
            found.push(page[16..20] == [1, 0, 0, 0]);
        }
    }
    Ok(found)
}

fn add_disks(target: &mut Target, place: &Place) -> Result<()> {
    for (n, (disk, _)) in DISKS.iter().enumerate() {
        let params = json!({"name": format!("aio{n}"), "filename": place.file(disk), "block_size": 4096});
        target.call("bdev_aio_create", params)?;
    }
    target.call("bdev_wait_for_examine", Value::Null)?;
    Ok(())
}

/// Volumes with their snapshots and clones, an empty store, a store in a volume, on a part, and on a passthru bdev.
fn fill(target: &mut Target) -> Result<()> {
    let store = |bdev: &str, name: &str| {
        let params = json!({"bdev_name": bdev, "lvs_name": name, "cluster_sz": 1 << 20});
        ("bdev_lvol_create_lvstore", params)
    };
    let volume = |store: &str, name: &str, mib: u64| {
        let params = json!({"lvs_name": store, "lvol_name": name, "size": mib << 20});
        ("bdev_lvol_create", params)
    };
    let calls = [
        store("aio0", "outer"),
        volume("outer", "vol", 8),
        (
            "bdev_lvol_snapshot",
            json!({"lvol_name": "outer/vol", "snapshot_name": "snap"}),
        ),
        (
            "bdev_lvol_clone",
            json!({"snapshot_name": "outer/snap", "clone_name": "clone"}),
        ),
        volume("outer", "disk", 64),
        store("outer/disk", "inner"),
        volume("inner", "vol", 8),
        (
            "bdev_split_create",
            json!({"base_bdev": "aio1", "split_count": 2}),
        ),
        store("aio1p1", "part"),
        volume("part", "vol", 8),
        (
            "bdev_passthru_create",
            json!({"base_bdev_name": "aio2", "name": "pt0"}),
        ),
        store("pt0", "empty"),
        ("nvmf_create_transport", json!({"trtype": "TCP"})),
        (
            "nvmf_create_subsystem",
            json!({"nqn": NQN, "allow_any_host": true}),
        ),
    ];
    for (method, params) in calls {
        target.call(method, params)?;
    }
    for bdev in ["outer/vol", "outer/snap", "inner/vol", "part/vol"] {
        let params = json!({"nqn": NQN, "namespace": {"bdev_name": bdev}});
        target.call("nvmf_subsystem_add_ns", params)?;
    }
    let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
        "trsvcid": place::free_port()?.to_string()});
    target.call(
        "nvmf_subsystem_add_listener",
        json!({"nqn": NQN, "listen_address": address}),
    )?;
    Ok(())
}

fn volumes(target: &mut Target) -> Result<Vec<String>> {
    let bdevs = target.call("bdev_get_bdevs", json!({}))?;
    let names = bdevs.as_array().into_iter().flatten();
    let mut names: Vec<_> = names
        .filter_map(|bdev| Some(bdev["aliases"][0].as_str()?.to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn ends_clean(end: impl Fn(Target) -> Result<()>) -> Result<()> {
    let mut place = Place::new()?;
    for (disk, _) in DISKS {
        File::create(place.file(disk))?.set_len(128 << 20)?;
    }
    let options = TargetOptions::in_place(&place);
    let mut target = options.start(None)?;
    add_disks(&mut target, &place)?;
    fill(&mut target)?;
    let before = volumes(&mut target)?;
    for (disk, stores) in DISKS {
        ensure!(
            super_blocks(&place.file(disk))? == vec![false; stores],
            "{disk} is in use"
        );
    }
    end(target)?;
    let log = std::fs::read_to_string(&options.log)?;
    for (disk, stores) in DISKS {
        ensure!(
            super_blocks(&place.file(disk))? == vec![true; stores],
            "{disk}: not all of its stores were unloaded:\n{log}"
        );
    }

    let mut target = options.start(None)?;
    add_disks(&mut target, &place)?;
    target.call(
        "bdev_split_create",
        json!({"base_bdev": "aio1", "split_count": 2}),
    )?;
    target.call("bdev_wait_for_examine", Value::Null)?;
    ensure!(volumes(&mut target)? == before);
    ensure!(target.into_process().stop()?.code() == Some(0));
    place.discard();
    Ok(())
}

#[test]
fn a_signal_unloads_all_stores() -> Result<()> {
    ends_clean(|target| {
        ensure!(target.into_process().stop()?.code() == Some(0));
        Ok(())
    })
}

#[test]
fn a_call_unloads_all_stores() -> Result<()> {
    ends_clean(|mut target| {
        // It may end before it has answered.
        let _ = target.call("spdk_kill_instance", json!({"sig_name": "SIGTERM"}));
        let status = target.into_process().wait(std::time::Duration::from_secs(60))?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    })
}
