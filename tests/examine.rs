//! Volumes on a device that is slow to read: they are found a while after the device was made, and whoever needs them
//! waits for that.

mod common;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use common::{Place, TargetOptions};
use serde_json::{Value, json};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";

/// What one read takes, in microseconds. To find a volume takes many, one after another.
const READ: u64 = 50_000;

/// The calls that make the disk and the slow device on it: in this order, or the volumes are looked for on the disk.
fn calls(disk: &Path, read: u64) -> [(&'static str, Value); 2] {
    [
        (
            "bdev_delay_create",
            json!({"base_bdev_name": "aio0", "name": "slow0", "avg_read_latency": read, "p99_read_latency": read,
                "avg_write_latency": 0, "p99_write_latency": 0}),
        ),
        (
            "bdev_aio_create",
            json!({"name": "aio0", "filename": disk, "block_size": 4096}),
        ),
    ]
}

/// Puts the volume `lvs/vol` on the disk. Returns its UUID, which is its bdev's name.
fn make_volume(options: &TargetOptions, disk: &Path) -> Result<Value> {
    File::create(disk)?.set_len(64 << 20)?;
    let mut target = options.start(None)?;
    for (method, params) in calls(disk, 0) {
        target.call(method, params)?;
    }
    target.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "slow0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
    )?;
    let uuid = target.call(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 8 << 20}),
    )?;
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    Ok(uuid)
}

#[test]
fn bdev_wait_for_examine_answers_when_the_volumes_are_there() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    let uuid = make_volume(&options, &disk)?;
    let mut target = options.start(None)?;
    for (method, params) in calls(&disk, READ) {
        target.call(method, params)?;
    }
    assert!(target.bdev("lvs/vol")?.is_none(), "it is not found at once");
    target.call("bdev_wait_for_examine", Value::Null)?;
    let volume = target.bdev("lvs/vol")?.context("lvs/vol is there")?;
    assert_eq!(volume["name"], uuid);
    // With nothing to wait for, the answer comes too.
    target.call("bdev_wait_for_examine", Value::Null)?;
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

/// A saved configuration names the volume as a namespace right after it has made the device.
#[test]
fn a_configuration_is_loaded_when_the_volumes_are_there() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    let uuid = make_volume(&options, &disk)?;
    let bdev = calls(&disk, READ).map(|(method, params)| json!({"method": method, "params": params}));
    let nvmf = [
        ("nvmf_create_transport", json!({"trtype": "TCP"})),
        (
            "nvmf_create_subsystem",
            json!({"nqn": NQN, "allow_any_host": true}),
        ),
        (
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": {"bdev_name": uuid}}),
        ),
    ]
    .map(|(method, params)| json!({"method": method, "params": params}));
    let config = place.file("c.json");
    let subsystems = json!([{"subsystem": "bdev", "config": bdev}, {"subsystem": "nvmf", "config": nvmf}]);
    std::fs::write(&config, json!({"subsystems": subsystems}).to_string())?;

    let mut target = options.start(Some(&config))?;
    let namespaces = target.namespaces(NQN)?;
    assert_eq!(namespaces.len(), 1);
    assert_eq!(namespaces[0]["bdev_name"], uuid);
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
