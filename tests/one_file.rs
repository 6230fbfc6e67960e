//! A file is a block device of one target, and there of one device.

mod common;

use anyhow::Result;
use common::{Place, Target, TargetOptions};
use serde_json::{Value, json};
use spdk_rs::rpc::CallError;

fn create(target: &mut Target, name: &str, disk: &std::path::Path) -> Result<Value, CallError> {
    target.call(
        "bdev_aio_create",
        json!({"name": name, "filename": disk, "block_size": 512}),
    )
}

/// What a refusal says.
fn refusal(answer: Result<Value, CallError>) -> String {
    answer.expect_err("it is refused").to_string()
}

#[test]
fn a_file_is_opened_by_one_target() -> Result<()> {
    let mut place = Place::new()?;
    let (core, other_core) = common::place::two_cores();
    let mut first = TargetOptions::in_place(&place);
    first.core = core;
    let mut second = first.clone();
    second.core = other_core;
    second.socket = place.file("second.sock");
    second.log = place.file("second.log");
    let disk = place.file("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;

    let mut owner = first.start(None)?;
    create(&mut owner, "aio0", &disk)?;
    owner.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "aio0", "lvs_name": "lvs"}),
    )?;

    let mut other = second.start(None)?;
    let said = refusal(create(&mut other, "aio0", &disk));
    assert!(
        said.contains(&format!("is in use by process {}", owner.process().pid())),
        "{said}"
    );
    assert!(said.contains(&disk.display().to_string()), "{said}");
    assert!(other.bdev("aio0")?.is_none());
    // By another name it is the same file.
    let link = place.file("link");
    std::fs::hard_link(&disk, &link)?;
    let said = refusal(create(&mut owner, "aio1", &link));
    assert!(
        said.contains("is a block device of this process already"),
        "{said}"
    );

    // Nothing was done to it, and when its owner is gone, by whatever way, it is free.
    assert!(owner.bdev("aio0")?.is_some());
    owner.into_process().kill()?;
    create(&mut other, "aio0", &disk)?;
    other.call("bdev_wait_for_examine", json!({}))?;
    let stores = other.call("bdev_lvol_get_lvstores", json!({}))?;
    assert_eq!(stores[0]["name"], "lvs", "{stores}");
    other.call("bdev_aio_delete", json!({"name": "aio0"}))?;
    create(&mut other, "again", &disk)?;
    assert_eq!(other.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
