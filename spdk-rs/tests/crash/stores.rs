//! Operations on a whole store, of which an I/O or an allocation fails.

use std::path::Path;

use anyhow::{Result, ensure};
use spdk_rs::lvol::LvolStore;
use spdk_rs::lvol::check::Finding;

use super::actor::{Line, of_lane};
use super::cases::{chain, check, check_volumes, family};
use super::faults::{What, told};
use super::store::disk::FileDisk;
use super::store::place::{Place, Report};
use super::store::volumes::{Family, Op};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoreOp {
    Unload,
    Destroy,
}

pub const OPS: [(&str, StoreOp); 2] = [
    ("unload a store", StoreOp::Unload),
    ("destroy a store", StoreOp::Destroy),
];

/// What there is before, as it should be.
fn before() -> Family {
    family(&chain())
}

/// Does the operation while its n-th step fails. Says whether it came through without.
pub async fn attempt(op: StoreOp, what: What, nth: u64, path: &Path) -> Result<bool> {
    let say = |doing: String| Line::Step(nth, doing).say();
    say("loading it".to_owned())?;
    let place = Place::load(path, what.shape()).await?;

    say("the operation".to_owned())?;
    what.arm(&place.disk, nth);
    let answer = perform(op, &place.store).await;
    let came_through = what.disarm(&place.disk);
    let done = answer.is_ok();
    let told = told(&answer);
    ensure!(done || !came_through, "nothing had failed, answer {told}");

    say(format!("after the answer {told}"))?;
    let is_there = !LvolStore::all().await?.is_empty();
    ensure!(!done || !is_there, "the store is still there");
    // An unloading cannot go back once it has begun to write.
    ensure!(done || is_there || op == StoreOp::Unload, "the store has gone");
    if is_there {
        let report = place.report().await?;
        let should = match op {
            StoreOp::Unload => before(),
            StoreOp::Destroy => what_is_left(&report),
        };
        check_volumes(&report, &[should])?;
        let is_left = |finding: &Finding| op == StoreOp::Destroy && matches!(finding, Finding::Leaked { .. });
        place.check(is_left).await?;
        say(format!("again after the answer {told}"))?;
        perform(op, &place.store).await?;
    }

    say(format!("taking the disk away after the answer {told}"))?;
    what.leave(place, nth).await?;

    say(format!("loading it after the answer {told}"))?;
    if op == StoreOp::Destroy {
        let disk = FileDisk::open(path, what.shape().write_cache)?;
        let registered = disk.register("disk0")?;
        let store = LvolStore::load("disk0").await;
        ensure!(store.is_err(), "it is still on the disk");
        registered.unregister().await?;
        return Ok(came_through);
    }
    let place = Place::load(path, what.shape()).await?;
    check(&place.report().await?, &[before()])?;
    place.leave().await?;
    Ok(came_through)
}

async fn perform(op: StoreOp, store: &LvolStore) -> spdk_rs::Result<()> {
    match op {
        StoreOp::Unload => store.unload().await,
        StoreOp::Destroy => store.destroy().await,
    }
}

/// A store is destroyed volume by volume, a clone before its snapshot.
fn what_is_left(report: &Report) -> Family {
    let mut left = before();
    let found = of_lane(report, 0);
    for name in ["0-vol", "0-new", "0-old"] {
        if found.iter().any(|volume| volume.name == name) {
            break;
        }
        left.apply(&Op::Destroy { vol: name.into() });
    }
    left
}
