//! A delete that was granted, and that an I/O error ended: the volume has no bdev any more, but it is there.

mod common;

use std::fs::File;

use anyhow::{Context, Result};
use common::{Place, TargetOptions};
use serde_json::json;

#[test]
fn a_volume_without_a_bdev_can_be_deleted_again() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    File::create(&disk)?.set_len(64 << 20)?;
    let mut target = options.start(None)?;
    target.call(
        "bdev_aio_create",
        json!({"name": "aio0", "filename": disk, "block_size": 4096}),
    )?;
    target.call("bdev_error_create", json!({"base_name": "aio0"}))?;
    target.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "EE_aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
    )?;
    let uuid = target.call(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 8 << 20}),
    )?;
    for by_name in [true, false] {
        let snapshot = target.call(
            "bdev_lvol_snapshot",
            json!({"lvol_name": uuid, "snapshot_name": "backup"}),
        )?;
        // The first write of the deletion notes down in the snapshot that it is under way.
        target.call(
            "bdev_error_inject_error",
            json!({"name": "EE_aio0", "io_type": "write", "error_type": "failure", "num": 1}),
        )?;
        let name = if by_name { json!("lvs/backup") } else { snapshot };
        let failed = target
            .call("bdev_lvol_delete", json!({"name": name}))
            .unwrap_err();
        let error = failed.rpc().context("an answer")?;
        assert_eq!(error.message, "Input/output error", "{error:?}");
        assert_eq!(error.data, None, "nobody holds it");
        assert!(
            target.bdev("lvs/backup")?.is_none(),
            "its bdev went with the grant"
        );

        target.call("bdev_lvol_delete", json!({"name": name}))?;
        let gone = target
            .call("bdev_lvol_delete", json!({"name": name}))
            .unwrap_err();
        assert_eq!(gone.rpc().context("an answer")?.message, "No such device");
        let volume = target.bdev("lvs/vol")?.context("lvs/vol is there")?;
        assert_eq!(volume["driver_specific"]["lvol"]["clone"], json!(false));
    }
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
