//! The end of the target while something is under way: it ends, and the store is unloaded as it should be.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stand::{Stand, delete, delete_base, delete_store};

/// The deletion was granted before the signal came, so it is carried out.
#[test]
fn a_volume_is_deleted_at_the_end() -> Result<()> {
    for ms in [2, 20, 60] {
        let mut stand = Stand::new()?;
        stand.create("other")?;
        stand.slow(ms)?;
        let _answer = stand.burst(&[delete("vol")])?;
        stand.target().call("bdev_get_bdevs", json!({}))?;
        stand.restart()?;
        ensure!(stand.volumes()? == ["lvs/other"]);
        stand.finish()?;
    }
    Ok(())
}

#[test]
fn a_snapshot_is_deleted_at_the_end() -> Result<()> {
    for ms in [2, 20, 60] {
        let mut stand = Stand::new()?;
        stand.snapshot("snap")?;
        stand.slow(ms)?;
        let _answer = stand.burst(&[delete("snap")])?;
        stand.target().call("bdev_get_bdevs", json!({}))?;
        stand.restart()?;
        ensure!(stand.volumes()? == ["lvs/vol"]);
        stand.finish()?;
    }
    Ok(())
}

#[test]
fn a_clone_inflates_at_the_end() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let _job = stand.begin(("bdev_lvol_inflate", json!({"name": "lvs/vol"})))?;
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/snap", "lvs/vol"]);
    stand.finish()
}

#[test]
fn a_store_is_deleted_at_the_end() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.create("other")?;
    stand.slow(30)?;
    let _answer = stand.burst(&[delete_store()])?;
    stand.target().call("bdev_get_bdevs", json!({}))?;
    stand.restart()?;
    stand.finish()
}

/// The device was going already, and waits for the job.
#[test]
fn a_base_is_deleted_at_the_end() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let _job = stand.begin(("bdev_lvol_inflate", json!({"name": "lvs/vol"})))?;
    let _base = stand.burst(&[delete_base()])?;
    stand.target().call("bdev_get_bdevs", json!({}))?;
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/snap", "lvs/vol"]);
    stand.finish()
}

/// The same on a device with nothing below it, which is the last of all.
#[test]
fn the_last_device_is_deleted_at_the_end() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.restart()?;
    let big = json!({"lvs_name": "lvs", "lvol_name": "big", "size": 96 << 20});
    stand.call("bdev_lvol_create", big)?;
    stand.call(
        "bdev_lvol_snapshot",
        json!({"lvol_name": "lvs/big", "snapshot_name": "snap"}),
    )?;
    let mut job = stand.burst(&[
        ("bdev_lvol_inflate", json!({"name": "lvs/big"})),
        ("bdev_aio_delete", json!({"name": "aio0"})),
    ])?;
    stand.target().call("bdev_get_bdevs", json!({}))?;
    ensure!(job.is_under_way()?);
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/big", "lvs/snap", "lvs/vol"]);
    stand.finish()
}

/// What a crash leaves is as full as before: the clusters that the store's own metadata is in are not free.
#[test]
fn a_crash_frees_nothing() -> Result<()> {
    let mut stand = Stand::new()?;
    let before = stand.state()?;
    stand.crash()?;
    let after = stand.state()?;
    ensure!(after == before, "before {before:#}\nafter {after:#}");
    stand.finish()
}
