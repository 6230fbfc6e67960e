//! The deletion of volumes that are namespaces.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::stand::{Call, Stand, delete, is_done};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";

/// A stand whose volumes are the namespaces of a subsystem, in this order.
pub fn exported(names: &[&str]) -> Result<Stand> {
    let mut stand = Stand::new()?;
    stand.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    stand.call(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "allow_any_host": true}),
    )?;
    for name in names {
        if *name != "vol" {
            stand.create(name)?;
        }
        stand.call(
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": {"bdev_name": format!("lvs/{name}")}}),
        )?;
    }
    Ok(stand)
}

fn namespaces(stand: &mut Stand) -> Result<Vec<Value>> {
    Ok(stand
        .target()
        .namespaces(NQN)?
        .into_iter()
        .map(|namespace| namespace["nsid"].clone())
        .collect())
}

#[test]
fn namespaces_of_one_subsystem_are_deleted_at_once() -> Result<()> {
    let mut stand = exported(&["vol", "two", "three"])?;
    let answers = stand.burst(&[delete("vol"), delete("three")])?.answers()?;
    ensure!(answers.iter().all(is_done), "{answers:?}");
    ensure!(namespaces(&mut stand)? == [2]);
    ensure!(stand.volumes()? == ["lvs/two"]);
    stand.finish()
}

/// The subsystem is paused by somebody else when the volume goes.
#[test]
fn a_namespace_is_deleted_while_another_is_added() -> Result<()> {
    let mut stand = exported(&["vol", "two"])?;
    stand.create("three")?;
    let add: Call = (
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"bdev_name": "lvs/three"}}),
    );
    let answers = stand.burst(&[add, delete("vol")])?.answers()?;
    ensure!(answers.iter().all(is_done), "{answers:?}");
    ensure!(namespaces(&mut stand)? == [2, 3]);
    stand.finish()
}

#[test]
fn namespaces_are_deleted_with_their_store() -> Result<()> {
    let mut stand = exported(&["vol", "two", "three"])?;
    let answers = stand.burst(&[crate::stand::delete_store()])?.answers()?;
    ensure!(answers.iter().all(is_done), "{answers:?}");
    ensure!(namespaces(&mut stand)?.is_empty());
    stand.finish()
}

#[test]
fn namespaces_are_deleted_with_their_base() -> Result<()> {
    let mut stand = exported(&["vol", "two", "three"])?;
    let answers = stand.burst(&[crate::stand::delete_base()])?.answers()?;
    ensure!(answers.iter().all(is_done), "{answers:?}");
    ensure!(namespaces(&mut stand)?.is_empty());
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/three", "lvs/two", "lvs/vol"]);
    stand.finish()
}

/// Whoever takes the namespace out, the volume goes.
#[test]
fn a_namespace_is_deleted_while_it_is_taken_out() -> Result<()> {
    for delete_first in [true, false] {
        let mut stand = exported(&["vol", "two"])?;
        let remove: Call = ("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 1}));
        let mut calls = vec![remove, delete("vol")];
        if delete_first {
            calls.reverse();
        }
        let answers = stand.burst(&calls)?.answers()?;
        let deleted = &answers[usize::from(!delete_first)];
        ensure!(is_done(deleted), "{answers:?}");
        ensure!(namespaces(&mut stand)? == [2]);
        ensure!(stand.volumes()? == ["lvs/two"]);
        stand.finish()?;
    }
    Ok(())
}

#[test]
fn a_namespace_is_deleted_while_its_subsystem_is() -> Result<()> {
    for delete_first in [true, false] {
        let mut stand = exported(&["vol", "two"])?;
        let mut calls = vec![("nvmf_delete_subsystem", json!({"nqn": NQN})), delete("vol")];
        if delete_first {
            calls.reverse();
        }
        let answers = stand.burst(&calls)?.answers()?;
        let deleted = &answers[usize::from(!delete_first)];
        ensure!(is_done(deleted), "{answers:?}");
        ensure!(stand.volumes()? == ["lvs/two"]);
        stand.finish()?;
    }
    Ok(())
}

#[test]
fn namespaces_are_deleted_at_the_end() -> Result<()> {
    let mut stand = exported(&["vol", "two", "three"])?;
    stand.slow(10)?;
    let _answers = stand.burst(&[delete("vol"), delete("three")])?;
    stand.target().call("bdev_get_bdevs", json!({}))?;
    stand.restart()?;
    ensure!(stand.volumes()? == ["lvs/two"]);
    stand.finish()
}
