//! One operation, whose process is killed before its n-th write, for every n until the operation comes
//! through.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::actor::{Line, SHAPE, of_lane};
use super::cases::{MANY, cases, check, prepare};
use super::store::disk::Fault;
use super::store::place::{Place, Report};
use super::store::volumes::{Family, Op};
use super::{Actor, common, number, path};
use crate::common::run;

/// Whether it has been done, as far as names and relations tell. (To do a write, an inflation or a
/// resize again does no harm.)
pub fn is_done(op: &Op, before: &Family, report: &Report) -> bool {
    let mut after = before.clone();
    after.apply(op);
    let names = |family: &Family| -> Vec<_> {
        let volumes = family.0.iter();
        volumes
            .map(|(name, volume)| (name.clone(), volume.parent.clone()))
            .collect()
    };
    let found = names(&Family::of(&of_lane(report, 0)));
    names(before) != names(&after) && found == names(&after)
}

#[test]
fn killed_at_each_write() {
    const NAME: &str = "steps::killed_at_each_write";
    if common::is_child() {
        run(one_step()).expect(NAME);
        return;
    }
    let place = tempfile::tempdir().expect("a place");
    let all = number("SPDK_RS_CRASH_CYCLES").is_some_and(|cycles| cycles > 100);
    for (at, case) in cases().iter().enumerate() {
        if !all && !["destroy a snapshot with a clone", "inflate"].contains(&case.name) {
            continue;
        }
        let steps = sweep(NAME, at, place.path());
        let steps = steps.unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
        println!("crash: {}: killed at each of {steps} writes", case.name);
    }
}

/// Kills a process at each write of a case's operation; another one finds out what there is. Says
/// how many writes there are.
fn sweep(name: &str, case: usize, place: &Path) -> Result<u64> {
    let (base, disk) = (place.join("base"), place.join("disk"));
    let number = case.to_string();
    let start = |what: &str, nth: u64, disk: &Path| {
        let env = [
            ("CRASH_DISK", disk.to_str().context("a path")?),
            ("CRASH_CASE", &number),
            ("CRASH_WHAT", what),
            ("CRASH_NTH", &nth.to_string()),
        ];
        Actor::start(name, &env)?.until_the_end(None)
    };
    let (_, status) = start("prepare", 0, &base)?;
    ensure!(status.success(), "the preparation ended with {status}");
    for nth in 1..MANY {
        std::fs::copy(&base, &disk)?;
        let (said, _) = start("kill", nth, &disk)?;
        let done = said.iter().any(|line| matches!(line, Line::Done(_)));
        let (said, status) = start("look", u64::from(done), &disk)?;
        ensure!(status.success(), "killed at write {nth}: {said:?}");
        if done {
            return Ok(nth - 1);
        }
    }
    bail!("it never came through")
}

/// What a process of `sweep` does.
async fn one_step() -> Result<()> {
    let case = cases().swap_remove(number("CRASH_CASE").context("given")? as usize);
    let nth = number("CRASH_NTH").context("given")?;
    let before = case.family();
    match std::env::var("CRASH_WHAT")?.as_str() {
        "prepare" => prepare(&case.before, &path(), SHAPE).await?,
        "kill" => {
            let place = Place::load(&path(), SHAPE).await?;
            place.disk.arm(Fault::Kill, nth);
            place.perform(&case.op).await?;
            place.disk.disarm();
            Line::Done(0).say()?;
        }
        _ => {
            let place = Place::load(&path(), SHAPE).await?;
            let report = place.report().await?;
            let answered = nth == 1;
            let mut after = before.clone();
            after.apply(&case.op);
            let may_be = match answered {
                true => vec![after.clone()],
                false => before.unheard(&case.op),
            };
            let looked = check(&report, &may_be);
            if let Err(error) = looked {
                Line::Failed(0, format!("{error:#}")).say()?;
                bail!("{error:#}");
            }
            // What was not done can be done.
            if !answered && !is_done(&case.op, &before, &report) {
                place.perform(&case.op).await.context("again")?;
                check(&place.report().await?, &[after]).context("again")?;
                place.check(|_| false).await.context("again")?;
            }
        }
    }
    Ok(())
}
