//! A delete that was granted, and that an I/O error ends: the volume is as it was, whoever uses it notices nothing, and
//! it can be deleted again.

mod common;

use std::fs::File;

use anyhow::{Context, Result};
use common::{Place, Target, TargetOptions};
use serde_json::{Value, json};

const NQN: &str = "nqn.2020-07.org.example:half-deleted";

fn export(target: &mut Target, nsid: u32, name: &str) -> Result<()> {
    target.call(
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"nsid": nsid, "bdev_name": name}}),
    )?;
    Ok(())
}

/// All that a user of the store and of the namespaces can see.
fn seen(target: &mut Target) -> Result<Value> {
    Ok(json!({
        "bdevs": target.call("bdev_get_bdevs", json!({}))?,
        "namespaces": target.namespaces(NQN)?,
        "free": target.lvstore("lvs")?["free_clusters"],
    }))
}

/// The next write of the delete fails: nothing changes, and nobody is said to hold the volume.
fn fails_and_changes_nothing(target: &mut Target, name: &Value) -> Result<()> {
    let before = seen(target)?;
    target.call(
        "bdev_error_inject_error",
        json!({"name": "EE_aio0", "io_type": "write", "error_type": "failure", "num": 1}),
    )?;
    let failed = target
        .call("bdev_lvol_delete", json!({"name": name}))
        .unwrap_err();
    let error = failed.rpc().context("an answer")?;
    assert_eq!(error.message, "Input/output error", "{error:?}");
    assert_eq!(error.data, None, "nobody holds it");
    assert_eq!(seen(target)?, before);
    Ok(())
}

fn is_deleted(target: &mut Target, name: &Value) -> Result<()> {
    target.call("bdev_lvol_delete", json!({"name": name}))?;
    let gone = target
        .call("bdev_lvol_delete", json!({"name": name}))
        .unwrap_err();
    assert_eq!(gone.rpc().context("an answer")?.message, "No such device");
    Ok(())
}

#[test]
fn a_volume_survives_the_late_error_of_its_delete() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    File::create(&disk)?.set_len(64 << 20)?;
    let mut target = options.start(None)?;
    let aio = json!({"name": "aio0", "filename": disk, "block_size": 4096});
    target.call("bdev_aio_create", aio.clone())?;
    target.call("bdev_error_create", json!({"base_name": "aio0"}))?;
    target.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "EE_aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
    )?;
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "allow_any_host": true, "serial_number": "SPDKRS0000000002", "max_namespaces": 8}),
    )?;
    let uuid = target.call(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 8 << 20}),
    )?;
    export(&mut target, 1, "lvs/vol")?;
    let free = target.lvstore("lvs")?["free_clusters"].clone();

    for by_name in [true, false] {
        let snapshot = target.call(
            "bdev_lvol_snapshot",
            json!({"lvol_name": uuid, "snapshot_name": "backup"}),
        )?;
        export(&mut target, 2, "lvs/backup")?;
        let name = if by_name { json!("lvs/backup") } else { snapshot };
        fails_and_changes_nothing(&mut target, &name)?;
        is_deleted(&mut target, &name)?;
        let volume = target.bdev("lvs/vol")?.context("lvs/vol is there")?;
        assert_eq!(volume["driver_specific"]["lvol"]["clone"], json!(false));
        assert_eq!(target.namespaces(NQN)?.len(), 1);
        assert_eq!(target.lvstore("lvs")?["free_clusters"], free);

        let plain = target.call(
            "bdev_lvol_create",
            json!({"lvs_name": "lvs", "lvol_name": "plain", "size": 4 << 20}),
        )?;
        export(&mut target, 2, "lvs/plain")?;
        let name = if by_name { json!("lvs/plain") } else { plain };
        fails_and_changes_nothing(&mut target, &name)?;
        is_deleted(&mut target, &name)?;
        assert_eq!(target.lvstore("lvs")?["free_clusters"], free);
    }

    // What was answered is so after a crash.
    target.into_process().kill()?;
    let mut target = options.start(None)?;
    target.call("bdev_aio_create", aio)?;
    target.call("bdev_wait_for_examine", json!({}))?;
    let volume = target.bdev("lvs/vol")?.context("lvs/vol is there")?;
    assert_eq!(volume["name"], uuid);
    assert_eq!(volume["driver_specific"]["lvol"]["clone"], json!(false));
    assert!(target.bdev("lvs/backup")?.is_none());
    assert!(target.bdev("lvs/plain")?.is_none());
    assert_eq!(target.lvstore("lvs")?["free_clusters"], free);
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
