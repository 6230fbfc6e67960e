//! A volume whose name another device has already.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::stand::{Stand, delete, is_io_error};

fn take_the_name(stand: &mut Stand, name: &str) -> Result<()> {
    let ram = json!({"name": name, "num_blocks": 256, "block_size": 4096});
    stand.call("bdev_malloc_create", ram)?;
    Ok(())
}

/// Its answer is an error, so it is not there: not in memory, not on disk, and its clusters are free.
#[test]
fn a_volume_that_could_not_be_shown_is_not_made() -> Result<()> {
    let mut stand = Stand::new()?;
    let before = stand.state()?;
    take_the_name(&mut stand, "lvs/new")?;
    let create = json!({"lvs_name": "lvs", "lvol_name": "new", "size": 1 << 20});
    let answer = stand.burst(&[("bdev_lvol_create", create)])?.answer()?;
    ensure!(answer.unwrap_err()["message"] == "File exists");
    stand.call("bdev_malloc_delete", json!({"name": "lvs/new"}))?;
    ensure!(stand.state()? == before);
    stand.create("new")?;
    stand.finish()
}

/// At load it is there all the same: it can be deleted, and until then its name and its clusters are taken.
#[test]
fn a_volume_that_could_not_be_shown_at_load_is_kept() -> Result<()> {
    let mut stand = Stand::new()?;
    let uuid = stand.create("other")?;
    let before = stand.state()?;
    // The store goes with its device, and comes back on the device below it.
    stand.call("bdev_delay_delete", json!({"name": "slow0"}))?;
    take_the_name(&mut stand, "lvs/other")?;
    stand.target().create_delay("aio0", 0, 0)?;
    stand.call("bdev_wait_for_examine", Value::Null)?;
    ensure!(stand.volumes()? == ["lvs/vol"]);
    let create = json!({"lvs_name": "lvs", "lvol_name": "other", "size": 1 << 20});
    let answer = stand.burst(&[("bdev_lvol_create", create)])?.answer()?;
    ensure!(answer.unwrap_err()["message"] == "File exists");
    // The name is another device's now; the UUID is its own.
    ensure!(stand.burst(&[delete("other")])?.answer()?.is_err());
    stand.call("bdev_malloc_delete", json!({"name": "lvs/other"}))?;
    stand.restart()?;
    ensure!(stand.state()? == before);

    stand.call("bdev_aio_delete", json!({"name": "aio0"}))?;
    take_the_name(&mut stand, "lvs/other")?;
    stand.add_disk()?;
    stand.call("bdev_wait_for_examine", Value::Null)?;
    stand.call("bdev_lvol_delete", json!({"name": uuid}))?;
    stand.call("bdev_malloc_delete", json!({"name": "lvs/other"}))?;
    ensure!(stand.volumes()? == ["lvs/vol"]);
    stand.create("other")?;
    stand.finish()
}

/// What was answered as an error is not done later either, when the volume's metadata is next written.
#[test]
fn a_rename_that_failed_is_forgotten() -> Result<()> {
    let mut stand = Stand::breakable()?;
    stand.break_writes(1)?;
    let rename = json!({"old_name": "lvs/vol", "new_name": "other"});
    let answer = stand.burst(&[("bdev_lvol_rename", rename)])?.answer()?;
    ensure!(is_io_error(&answer), "{answer:?}");
    ensure!(stand.volumes()? == ["lvs/vol"]);
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/vol"]);
    stand.finish()
}
