//! A volume whose name another device has already, or another volume is about to have.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stand::{Answer, Call, Stand, delete, is_busy, is_done, is_io_error};

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
    // (The snapshot's volume is thick, and stays so.)
    for call in [create("new"), snapshot(&json!("lvs/vol"), "new")] {
        let answer = stand.burst(&[call])?.answer()?;
        ensure!(answer.unwrap_err()["message"] == "File exists");
    }
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

/// The volumes as `bdev_lvol_get_lvols` lists them: alias, and whether it has no bdev.
fn listed(stand: &mut Stand, params: Value) -> Result<Vec<(String, bool)>> {
    let lvols = stand.call("bdev_lvol_get_lvols", params)?;
    let mut lvols: Vec<_> = lvols
        .as_array()
        .context("a list")?
        .iter()
        .map(|lvol| {
            (
                lvol["alias"].as_str().unwrap_or_default().to_owned(),
                lvol["is_degraded"] == true,
            )
        })
        .collect();
    lvols.sort();
    Ok(lvols)
}

/// It is a list of the store's volumes, not of bdevs.
#[test]
fn a_volume_that_could_not_be_shown_is_listed() -> Result<()> {
    let mut stand = Stand::new()?;
    let uuid = stand.create("other")?;
    stand.snapshot("snap")?;
    let store = stand.call("bdev_lvol_get_lvstores", json!({}))?[0].clone();
    let all = stand.call("bdev_lvol_get_lvols", json!({}))?;
    let of = |name: &str| {
        all.as_array()
            .into_iter()
            .flatten()
            .find(|lvol| lvol["name"] == name)
    };
    let lvs = json!({"name": "lvs", "uuid": store["uuid"]});
    let expected = json!({
        "alias": "lvs/other", "uuid": uuid, "name": "other", "lvs": lvs, "is_thin_provisioned": false,
        "is_snapshot": false, "is_clone": false, "is_esnap_clone": false, "is_degraded": false,
    });
    ensure!(of("other") == Some(&expected), "{all:#}");
    let kinds = |name| of(name).map(|lvol| ["is_snapshot", "is_clone"].map(|key| lvol[key] == true));
    ensure!(
        (kinds("snap"), kinds("vol")) == (Some([true, false]), Some([false, true])),
        "{all:#}"
    );
    for params in [
        Value::Null,
        json!({"lvs_name": "lvs"}),
        json!({"lvs_uuid": store["uuid"]}),
    ] {
        ensure!(stand.call("bdev_lvol_get_lvols", params)? == all);
    }
    let no = json!({"lvs_name": "none"});
    let both = json!({"lvs_name": "lvs", "lvs_uuid": store["uuid"]});
    for (params, code) in [(no, -19), (both, -22)] {
        let answer = stand.burst(&[("bdev_lvol_get_lvols", params)])?.answer()?;
        ensure!(answer.unwrap_err()["code"] == code);
    }

    stand.call("bdev_delay_delete", json!({"name": "slow0"}))?;
    ensure!(listed(&mut stand, json!({}))?.is_empty());
    take_the_name(&mut stand, "lvs/other")?;
    stand.target().create_delay("aio0", 0, 0)?;
    stand.call("bdev_wait_for_examine", Value::Null)?;
    ensure!(stand.volumes()? == ["lvs/snap", "lvs/vol"]);
    let expected = [("lvs/other", true), ("lvs/snap", false), ("lvs/vol", false)];
    ensure!(listed(&mut stand, json!({}))? == expected.map(|(alias, hidden)| (alias.to_owned(), hidden)));
    stand.call("bdev_malloc_delete", json!({"name": "lvs/other"}))?;
    stand.restart()?;
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

fn rename(old: &Value, new: &str) -> Call {
    ("bdev_lvol_rename", json!({"old_name": old, "new_name": new}))
}

fn create(name: &str) -> Call {
    let params = json!({"lvs_name": "lvs", "lvol_name": name, "size": 1 << 20});
    ("bdev_lvol_create", params)
}

fn snapshot(vol: &Value, name: &str) -> Call {
    let params = json!({"lvol_name": vol, "snapshot_name": name});
    ("bdev_lvol_snapshot", params)
}

fn rename_store(old: &str, new: &str) -> Call {
    let params = json!({"old_name": old, "new_name": new});
    ("bdev_lvol_rename_lvstore", params)
}

fn says(answer: &Answer, message: &str) -> bool {
    matches!(answer, Err(error) if error["message"] == message)
}

/// From the moment in which a volume is asked to be renamed: what would be made under its new name, or its old one,
/// would have to be undone, so it is not begun.
/// The volume stays thick.
#[test]
fn a_name_is_taken_while_a_volume_gets_it() -> Result<()> {
    let mut stand = Stand::new()?;
    let (vol, other) = (stand.create("a")?, stand.create("b")?);
    let before = stand.state()?;
    stand.slow(20)?;
    let answers = stand
        .burst(&[
            rename(&vol, "new"),
            snapshot(&vol, "new"),
            snapshot(&vol, "a"),
            create("new"),
            create("a"),
            rename(&other, "new"),
            rename(&other, "a"),
        ])?
        .answers()?;
    ensure!(is_done(&answers[0]), "{answers:?}");
    ensure!(
        answers[1..].iter().all(|answer| says(answer, "File exists")),
        "{answers:?}"
    );
    // It is free again, and the name that a volume has is no other one.
    let back = [rename(&vol, "a"), rename(&other, "b")];
    ensure!(stand.burst(&back)?.answers()?.iter().all(is_done));
    stand.slow(0)?;
    ensure!(stand.state()? == before);
    stand.finish()
}

/// The other way round: the volume that is being made has it.
#[test]
fn a_name_is_taken_while_a_volume_is_made() -> Result<()> {
    let mut stand = Stand::new()?;
    let vol = stand.create("a")?;
    stand.slow(20)?;
    let calls = [
        create("new"),
        snapshot(&vol, "snap"),
        rename(&vol, "new"),
        rename(&vol, "snap"),
    ];
    let answers = stand.burst(&calls)?.answers()?;
    ensure!(answers[..2].iter().all(is_done), "{answers:?}");
    ensure!(
        answers[2..].iter().all(|answer| says(answer, "File exists")),
        "{answers:?}"
    );
    stand.slow(0)?;
    ensure!(stand.volumes()? == ["lvs/a", "lvs/new", "lvs/snap", "lvs/vol"]);
    stand.finish()
}

/// A store with a volume of such a name could not be loaded.
#[test]
fn a_name_that_no_load_would_take_is_refused() -> Result<()> {
    let mut stand = Stand::new()?;
    let vol = stand.create("other")?;
    let longest = "x".repeat(63);
    ensure!(is_done(&stand.burst(&[rename(&vol, &longest)])?.answer()?));
    for name in ["", &"x".repeat(64)] {
        let answer = stand.burst(&[rename(&vol, name)])?.answer()?;
        ensure!(says(&answer, "Invalid argument"), "{name:?}: {answer:?}");
        let answer = stand.burst(&[rename_store("lvs", name)])?.answer()?;
        ensure!(says(&answer, "Invalid argument"), "{name:?}: {answer:?}");
    }
    let volumes = ["lvs/vol".to_owned(), format!("lvs/{longest}")];
    ensure!(stand.volumes()? == volumes);
    stand.restart()?;
    ensure!(stand.volumes()? == volumes);
    stand.finish()
}

/// Which of two names it gets would not be known.
#[test]
fn a_store_is_renamed_twice_at_once() -> Result<()> {
    let mut stand = Stand::new()?;
    stand.slow(20)?;
    let both = [rename_store("lvs", "one"), rename_store("lvs", "two")];
    let answers = stand.burst(&both)?.answers()?;
    ensure!(is_done(&answers[0]) && is_busy(&answers[1]), "{answers:?}");
    stand.slow(0)?;
    ensure!(stand.volumes()? == ["one/vol"]);
    ensure!(is_done(&stand.burst(&[rename_store("one", "lvs")])?.answer()?));
    stand.finish()
}
