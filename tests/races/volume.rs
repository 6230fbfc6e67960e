//! The deletion of a volume, and what else is done to it.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::namespaces;
use crate::stand::{Burst, Call, Stand, delete, is_busy, is_done};

/// While `job` runs, `name` cannot be deleted, which says so and changes nothing; when it has ended, it can.
fn held(job: Call, name: &str, operation: &str) -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let job = stand.begin(job)?;
    let refused = |stand: &mut Stand, mut job: Burst| -> Result<Burst> {
        let before = stand.state()?;
        let answer = stand.burst(&[delete(name)])?.answer()?;
        ensure!(is_busy(&answer), "{answer:?}");
        let error = answer.as_ref().unwrap_err();
        ensure!(error["code"] == -32603, "{error}");
        ensure!(error["data"]["operation"] == operation, "{answer:?}");
        ensure!(stand.state()? == before, "the refusal changed something");
        ensure!(job.is_under_way()?, "it was to be under way all the time");
        Ok(job)
    };
    let job = refused(&mut stand, job)?;
    let job = refused(&mut stand, job)?;
    stand.slow(0)?;
    let answer = job.answer()?;
    ensure!(is_done(&answer), "{answer:?}");
    let answer = stand.burst(&[delete(name)])?.answer()?;
    ensure!(is_done(&answer), "{answer:?}");
    stand.finish()
}

#[test]
fn held_by_a_snapshot_of_it() -> Result<()> {
    let job = json!({"lvol_name": "lvs/vol", "snapshot_name": "new"});
    held(("bdev_lvol_snapshot", job), "vol", "snapshot")
}

#[test]
fn held_by_a_snapshot_of_its_clone() -> Result<()> {
    let job = json!({"lvol_name": "lvs/vol", "snapshot_name": "new"});
    held(("bdev_lvol_snapshot", job), "snap", "snapshot")
}

#[test]
fn held_by_an_inflate() -> Result<()> {
    held(
        ("bdev_lvol_inflate", json!({"name": "lvs/vol"})),
        "vol",
        "inflate",
    )
}

#[test]
fn held_by_an_inflate_of_its_clone() -> Result<()> {
    held(
        ("bdev_lvol_inflate", json!({"name": "lvs/vol"})),
        "snap",
        "inflate",
    )
}

#[test]
fn held_by_a_decouple() -> Result<()> {
    held(
        ("bdev_lvol_decouple_parent", json!({"name": "lvs/vol"})),
        "vol",
        "decouple",
    )
}

#[test]
fn held_by_a_decouple_of_its_clone() -> Result<()> {
    held(
        ("bdev_lvol_decouple_parent", json!({"name": "lvs/vol"})),
        "snap",
        "decouple",
    )
}

#[test]
fn held_by_a_checksum() -> Result<()> {
    held(
        (
            "bdev_lvol_register_snapshot_checksum",
            json!({"name": "lvs/snap"}),
        ),
        "snap",
        "checksum",
    )
}

/// The clone is held by nobody, and can go meanwhile.
#[test]
fn not_held_by_a_checksum_of_its_snapshot() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let sum = json!({"name": "lvs/snap"});
    let job = stand.begin(("bdev_lvol_register_snapshot_checksum", sum))?;
    let answer = stand.burst(&[delete("vol")])?.answer()?;
    ensure!(is_done(&answer), "{answer:?}");
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));
    ensure!(stand.volumes()? == ["lvs/snap"]);
    stand.finish()
}

/// What else is refused says so in the same way as a deletion.
#[test]
fn refusals_say_who_holds_it() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let name = json!({"name": "lvs/vol"});
    let job = stand.begin(("bdev_lvol_inflate", name.clone()))?;
    let refused = [
        ("bdev_lvol_inflate", name.clone()),
        ("bdev_lvol_decouple_parent", name.clone()),
        ("bdev_lvol_resize", json!({"name": "lvs/vol", "size": 12 << 20})),
        (
            "bdev_lvol_snapshot",
            json!({"lvol_name": "lvs/vol", "snapshot_name": "other"}),
        ),
    ];
    let expected = json!({"lvol": "lvs/vol", "reason": "locked", "operation": "inflate", "holder": "vol"});
    for answer in stand.burst(&refused)?.answers()? {
        ensure!(is_busy(&answer), "{answer:?}");
        let error = answer.unwrap_err();
        ensure!(error["code"] == -32602 && error["data"] == expected, "{error}");
    }
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));

    let sum = json!({"name": "lvs/snap"});
    let job = stand.begin(("bdev_lvol_register_snapshot_checksum", sum.clone()))?;
    let clone = json!({"snapshot_name": "lvs/snap", "clone_name": "new"});
    let answers = stand.burst(&[
        ("bdev_lvol_clone", clone),
        ("bdev_lvol_register_snapshot_checksum", sum),
    ])?;
    for answer in answers.answers()? {
        let error = answer.unwrap_err();
        ensure!(error["message"] == "Device or resource busy", "{error}");
        ensure!(
            error["data"]["operation"] == "checksum" && error["data"]["holder"] == "snap",
            "{error}"
        );
    }
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));

    // One that is going, and one that is not there.
    stand.slow(10)?;
    let rename = |name: &str| ("bdev_lvol_rename", json!({"old_name": name, "new_name": "new"}));
    let read_only = ("bdev_lvol_set_read_only", name);
    let calls = [delete("vol"), rename("lvs/vol"), read_only, rename("lvs/none")];
    let answers = stand.burst(&calls)?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    for answer in &answers[1..3] {
        ensure!(is_busy(answer), "{answers:?}");
        ensure!(
            answer.as_ref().unwrap_err()["data"]["operation"] == "delete",
            "{answers:?}"
        );
    }
    ensure!(
        answers[3].as_ref().unwrap_err().get("data").is_none(),
        "{answers:?}"
    );
    stand.slow(0)?;
    stand.finish()
}

/// A snapshot cannot go while a clone of it is being made; with two clones it may not go at all.
#[test]
fn held_by_a_clone_of_it() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.snapshot("snap")?;
    let clone = json!({"snapshot_name": "lvs/snap", "clone_name": "new"});
    let mut job = stand.begin(("bdev_lvol_clone", clone))?;
    let answer = stand.burst(&[delete("snap")])?.answer()?;
    ensure!(is_busy(&answer), "{answer:?}");
    ensure!(job.is_under_way()?);
    stand.slow(0)?;
    ensure!(is_done(&job.answer()?));
    let answer = stand.burst(&[delete("snap")])?.answer()?;
    let error = answer.unwrap_err();
    ensure!(error["message"] == "Operation not permitted", "{error}");
    ensure!(stand.volumes()? == ["lvs/new", "lvs/snap", "lvs/vol"]);
    stand.finish()
}

#[test]
fn deleted_twice_at_once() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(10)?;
    let answers = stand.burst(&[delete("vol"), delete("vol")])?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    let data = &answers[1].as_ref().unwrap_err()["data"];
    ensure!(data["operation"] == "delete", "{answers:?}");
    let again = stand.burst(&[delete("vol")])?.answer()?;
    ensure!(again.unwrap_err()["code"] == -19);
    stand.slow(0)?;
    stand.create("vol")?;
    stand.finish()
}

/// The snapshot and its clone: the second is refused, whichever it is, and goes when the first has gone.
#[test]
fn deleted_with_its_clone() -> Result<()> {
    for names in [["vol", "snap"], ["snap", "vol"]] {
        let mut stand = Stand::new()?;
        stand.snapshot("snap")?;
        stand.slow(10)?;
        let answers = stand.burst(&names.map(delete))?.answers()?;
        ensure!(is_done(&answers[0]), "{answers:?}");
        ensure!(is_busy(&answers[1]), "{answers:?}");
        stand.slow(0)?;
        ensure!(stand.volumes()? == [format!("lvs/{}", names[1])]);
        let again = stand.burst(&[delete(names[1])])?.answer()?;
        ensure!(is_done(&again), "{again:?}");
        stand.finish()?;
    }
    Ok(())
}

/// Two calls in one packet: the first is carried out, the second finds it under way and is refused as busy.
fn first_wins(first: Call, second: Call) -> Result<()> {
    // A namespace: its bdev is to be seen until the subsystem has let it go.
    let mut stand = namespaces::exported(&["vol"])?;
    stand.snapshot("snap")?;
    stand.slow(5)?;
    let deleted = first.0 == "bdev_lvol_delete";
    let answers = stand.burst(&[first, second])?.answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(is_busy(&answers[1]), "{answers:?}");
    ensure!(stand.volumes()?.len() == if deleted { 1 } else { 2 });
    stand.slow(0)?;
    stand.finish()
}

fn resize() -> Call {
    ("bdev_lvol_resize", json!({"name": "lvs/vol", "size": 12 << 20}))
}

fn rename() -> Call {
    (
        "bdev_lvol_rename",
        json!({"old_name": "lvs/vol", "new_name": "other"}),
    )
}

fn set_read_only() -> Call {
    ("bdev_lvol_set_read_only", json!({"name": "lvs/vol"}))
}

#[test]
fn deleted_while_it_is_resized() -> Result<()> {
    first_wins(resize(), delete("vol"))
}

#[test]
fn resized_while_it_is_deleted() -> Result<()> {
    first_wins(delete("vol"), resize())
}

#[test]
fn deleted_while_it_is_renamed() -> Result<()> {
    first_wins(rename(), delete("vol"))
}

#[test]
fn renamed_while_it_is_deleted() -> Result<()> {
    first_wins(delete("vol"), rename())
}

#[test]
fn deleted_while_it_is_set_read_only() -> Result<()> {
    first_wins(set_read_only(), delete("vol"))
}

#[test]
fn set_read_only_while_it_is_deleted() -> Result<()> {
    first_wins(delete("vol"), set_read_only())
}

/// Renaming the store renames what is not going, and does not wait for what is.
#[test]
fn deleted_while_its_store_is_renamed() -> Result<()> {
    for delete_first in [true, false] {
        let mut stand = Stand::new()?;
        stand.create("other")?;
        stand.slow(5)?;
        let rename = (
            "bdev_lvol_rename_lvstore",
            json!({"old_name": "lvs", "new_name": "new"}),
        );
        let mut calls = vec![rename, delete("vol")];
        if delete_first {
            calls.reverse();
        }
        let answers = stand.burst(&calls)?.answers()?;
        ensure!(answers.iter().all(is_done), "{answers:?}");
        ensure!(stand.volumes()? == ["new/other"]);
        stand.slow(0)?;
        let back = json!({"old_name": "new", "new_name": "lvs"});
        stand.call("bdev_lvol_rename_lvstore", back)?;
        stand.finish()?;
    }
    Ok(())
}
