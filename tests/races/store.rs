//! The deletion of a store, or of the device below it, and what is under way in it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stand::{Call, Stand, delete, delete_base, delete_store, is_busy, is_done, is_io_error};

fn inflate() -> Call {
    ("bdev_lvol_inflate", json!({"name": "lvs/vol"}))
}

/// The store waits for the volume that is going, and goes too.
#[test]
fn a_store_is_deleted_while_a_volume_is() -> Result<()> {
    for ms in [0, 20] {
        let mut stand = Stand::new()?;
        stand.create("other")?;
        stand.slow(ms)?;
        let answers = stand.burst(&[delete("vol"), delete_store()])?.answers()?;
        ensure!(answers.iter().all(is_done), "{answers:?}");
        ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
        stand.finish()?;
    }
    Ok(())
}

#[test]
fn a_volume_is_deleted_while_its_store_is() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(20)?;
    let answers = stand.burst(&[delete_store(), delete("vol")])?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    stand.finish()
}

#[test]
fn a_store_is_deleted_twice_at_once() -> Result<()> {
    let stand = Stand::new()?;
    let answers = stand.burst(&[delete_store(), delete_store()])?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    stand.finish()
}

#[test]
fn a_store_is_renamed_while_it_is_deleted() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let rename = json!({"old_name": "lvs", "new_name": "new"});
    let answers = stand
        .burst(&[delete_store(), ("bdev_lvol_rename_lvstore", rename)])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    stand.finish()
}

#[test]
fn a_store_is_deleted_while_it_is_renamed() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let rename = json!({"old_name": "lvs", "new_name": "new"});
    let answers = stand
        .burst(&[("bdev_lvol_rename_lvstore", rename), delete_store()])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    ensure!(stand.volumes()? == ["new/vol"]);
    stand.call(
        "bdev_lvol_rename_lvstore",
        json!({"old_name": "new", "new_name": "lvs"}),
    )?;
    stand.finish()
}

/// Nothing is made in a store that is going.
#[test]
fn a_volume_is_made_while_its_store_is_deleted() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let create = json!({"lvs_name": "lvs", "lvol_name": "new", "size": 1 << 20});
    let snapshot = json!({"lvol_name": "lvs/vol", "snapshot_name": "snap"});
    let answers = stand
        .burst(&[
            delete_store(),
            ("bdev_lvol_create", create),
            ("bdev_lvol_snapshot", snapshot),
        ])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    // (The snapshot's volume may have gone from the list already.)
    ensure!(is_busy(&answers[1]) && answers[2].is_err(), "{answers:?}");
    stand.finish()
}

/// What is being made holds the store.
#[test]
fn a_store_is_deleted_while_a_volume_is_made() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let create = json!({"lvs_name": "lvs", "lvol_name": "new", "size": 1 << 20});
    let answers = stand
        .burst(&[("bdev_lvol_create", create), delete_store()])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    ensure!(stand.volumes()? == ["lvs/new", "lvs/vol"]);
    stand.finish()
}

/// Refused before anything is undone, and the store stays usable.
#[test]
fn a_store_is_deleted_while_a_clone_inflates() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.create("other")?;
    stand.snapshot("snap")?;
    let mut job = stand.begin(inflate())?;
    let before = stand.state()?;
    let answer = stand.burst(&[delete_store()])?.answer()?;
    ensure!(is_busy(&answer), "{answer:?}");
    ensure!(stand.state()? == before, "the refusal changed something");
    ensure!(job.is_under_way()?);
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));
    let answer = stand.burst(&[delete("other")])?.answer()?;
    ensure!(is_done(&answer), "{answer:?}");
    stand.finish()
}

#[test]
fn a_store_is_deleted_while_a_snapshot_is_summed_up() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let sum = json!({"name": "lvs/snap"});
    let mut job = stand.begin(("bdev_lvol_register_snapshot_checksum", sum))?;
    let before = stand.state()?;
    let answer = stand.burst(&[delete_store()])?.answer()?;
    ensure!(is_busy(&answer), "{answer:?}");
    ensure!(stand.state()? == before, "the refusal changed something");
    ensure!(job.is_under_way()?);
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));
    stand.finish()
}

/// The device waits for the deletion to end.
#[test]
fn a_base_is_deleted_while_a_volume_is() -> Result<()> {
    for ms in [0, 20] {
        let mut stand = Stand::new()?;
        stand.create("other")?;
        stand.slow(ms)?;
        let answers = stand.burst(&[delete("vol"), delete_base()])?.answers()?;
        ensure!(answers.iter().all(is_done), "{answers:?}");
        ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
        stand.restart()?;
        ensure!(stand.volumes()? == ["lvs/other"]);
        stand.finish()?;
    }
    Ok(())
}

/// The device waits for the job, whose work is not lost.
#[test]
fn a_base_is_deleted_while_a_clone_inflates() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let job = stand.begin(inflate())?;
    let base = stand.burst(&[delete_base()])?;
    ensure!(is_done(&job.answer()?));
    ensure!(is_done(&base.answer()?));
    ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/snap", "lvs/vol"]);
    stand.finish()
}

/// What changes a volume is waited for by its device, and answered with what it has done.
#[test]
fn a_base_is_deleted_while_a_volume_is_changed() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.create("two")?;
    stand.create("three")?;
    stand.slow(10)?;
    let rename = json!({"old_name": "lvs/vol", "new_name": "one"});
    let resize = json!({"name": "lvs/two", "size": 12 << 20});
    let answers = stand
        .burst(&[
            ("bdev_lvol_rename", rename),
            ("bdev_lvol_resize", resize),
            ("bdev_lvol_set_read_only", json!({"name": "lvs/three"})),
            delete_base(),
        ])?
        .answers()?;
    ensure!(
        is_done(&answers[0]) && is_done(&answers[2]) && is_done(&answers[3]),
        "{answers:?}"
    );
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/one", "lvs/three", "lvs/two"]);
    let state = stand.state()?.to_string();
    ensure!(state.contains("3072"), "the resize was lost: {state}");
    ensure!(
        state.contains(r#""write":false"#),
        "set_read_only was lost: {state}"
    );
    stand.finish()
}

#[test]
fn a_base_is_deleted_while_a_volume_is_made() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let create = json!({"lvs_name": "lvs", "lvol_name": "new", "size": 1 << 20});
    let answers = stand
        .burst(&[("bdev_lvol_create", create), delete_base()])?
        .answers()?;
    ensure!(is_done(&answers[1]), "{answers:?}");
    stand.restart()?;
    // What was answered is so.
    let made = stand.volumes()?.contains(&"lvs/new".to_owned());
    ensure!(made == is_done(&answers[0]), "{answers:?}, {made}");
    stand.finish()
}

/// The device goes, whether the store could be deleted or not.
#[test]
fn a_base_is_deleted_while_its_store_is() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(20)?;
    let answers = stand.burst(&[delete_store(), delete_base()])?.answers()?;
    ensure!(answers.iter().all(is_done), "{answers:?}");
    stand.restart()?;
    ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
    stand.finish()
}

#[test]
fn a_store_is_deleted_while_its_base_is() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(20)?;
    let answers = stand.burst(&[delete_base(), delete_store()])?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    stand.restart()?;
    let gone = stand.volumes()?.is_empty();
    ensure!(gone == is_done(&answers[1]), "{answers:?}, {gone}");
    stand.finish()
}

/// The device may go at any moment of the search for the store on it.
#[test]
fn a_base_is_deleted_while_it_is_examined() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.create("two")?;
    stand.create("three")?;
    stand.snapshot("snap")?;
    let before = stand.state()?;
    for step in 0..12 {
        stand.restart_slowly(10)?;
        std::thread::sleep(Duration::from_millis(step * 20));
        let answer = stand.burst(&[delete_base()])?.answer()?;
        ensure!(is_done(&answer), "{step}: {answer:?}");
        ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
    }
    stand.restart()?;
    ensure!(stand.state()? == before);
    stand.finish()
}

#[test]
fn a_base_is_deleted_while_a_store_is_made_on_it() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.call("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
    stand.slow(10)?;
    let create = json!({"bdev_name": "slow0", "lvs_name": "lvs", "cluster_sz": 1 << 20});
    let answers = stand
        .burst(&[("bdev_lvol_create_lvstore", create), delete_base()])?
        .answers()?;
    ensure!(is_done(&answers[1]), "{answers:?}");
    stand.restart()?;
    let stores = stand.call("bdev_lvol_get_lvstores", json!({}))?;
    ensure!(
        stores.as_array().is_some_and(|stores| stores.len() == 1) == is_done(&answers[0]),
        "{answers:?}, {stores}"
    );
    stand.finish()
}

/// Its writes fail, so what is to be written at the end is lost; the device goes all the same.
#[test]
fn a_broken_base_is_deleted() -> Result<()> {
    let mut stand = Stand::breakable()?;
    let before = stand.state()?;
    stand.break_writes(u32::MAX)?;
    let rename = json!({"old_name": "lvs/vol", "new_name": "other"});
    let answer = stand.burst(&[("bdev_lvol_rename", rename)])?.answer()?;
    ensure!(is_io_error(&answer), "{answer:?}");
    ensure!(stand.state()? == before, "a rename that failed left something");
    let delete = json!({"name": "EE_aio0"});
    let answer = stand.burst(&[("bdev_error_delete", delete)])?.answer()?;
    ensure!(is_done(&answer), "{answer:?}");
    ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
    stand.crash()?;
    let after = stand.state()?;
    ensure!(after == before, "before {before:#}\nafter {after:#}");
    stand.finish()
}

/// Whichever of its writes fail: the answer is an error, and the store is there and usable, or it has gone.
#[test]
fn a_store_that_could_not_be_destroyed_is_kept() -> Result<()> {
    for failures in 1..=6 {
        let mut stand = Stand::breakable()?;
        stand.call("bdev_lvol_delete", json!({"name": "lvs/vol"}))?;
        let before = stand.state()?;
        stand.break_writes(failures)?;
        let mut answer = stand.burst(&[delete_store()])?.answer()?;
        if answer.is_err() {
            ensure!(is_io_error(&answer), "{answer:?}");
            let after = stand.state()?;
            ensure!(
                after == before,
                "after {failures} failures: {after:#}, was {before:#}"
            );
            stand.mend_writes()?;
            stand.create("vol")?;
            stand.call("bdev_lvol_delete", json!({"name": "lvs/vol"}))?;
            answer = stand.burst(&[delete_store()])?.answer()?;
        }
        ensure!(is_done(&answer), "{answer:?}");
        ensure!(stand.state()? == json!({"volumes": {}, "stores": []}));
        stand.mend_writes()?;
        stand.finish()?;
    }
    Ok(())
}

/// Two stores on one device: the second is refused before it has written anything over the first.
#[test]
fn two_stores_are_made_on_one_base_at_once() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.call("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
    let make = |name: &str| {
        let params = json!({"bdev_name": "slow0", "lvs_name": name, "cluster_sz": 1 << 20});
        ("bdev_lvol_create_lvstore", params)
    };
    stand.slow(5)?;
    let answers = stand
        .burst(&[make("lvs"), make("other"), make("lvs")])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    for answer in &answers[1..] {
        ensure!(
            matches!(answer, Err(error) if error["message"] != "Unknown error -1"),
            "{answers:?}"
        );
    }
    stand.slow(0)?;
    stand.create("vol")?;
    let before = stand.state()?;
    stand.restart()?;
    ensure!(stand.state()? == before);
    // The name that was refused is free.
    stand.call(
        "bdev_lvol_rename_lvstore",
        json!({"old_name": "lvs", "new_name": "other"}),
    )?;
    stand.call(
        "bdev_lvol_rename_lvstore",
        json!({"old_name": "other", "new_name": "lvs"}),
    )?;
    stand.finish()
}
