//! One operation, on volumes or on a whole store, of which something fails: its n-th I/O, or its n-th
//! allocation, for every n until the operation comes through.

use std::fmt::Display;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;

use anyhow::{Context, Result, bail, ensure};
use spdk_rs::lvol::check::Finding;

use super::actor::{Line, SHAPE, WITH_CACHE};
#[cfg(spdk_faults)]
use super::allocations;
use super::cases::{Case, MANY, cases, chain, check, check_volumes, prepare};
use super::store::disk::{Fault, FileDisk};
use super::store::place::{Place, Shape};
use super::stores::{self, OPS};
use super::{Actor, LIMIT, common, number, path};
use crate::common::run;

/// What fails.
#[derive(Clone, Copy)]
pub enum What {
    Io,
    /// And the power goes as soon as the answer is there: of a disk with a volatile cache.
    IoAndPower,
    #[cfg(spdk_faults)]
    Allocation,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Io | Self::IoAndPower => "I/O",
            #[cfg(spdk_faults)]
            Self::Allocation => "allocation",
        }
    }

    /// Of the disk.
    pub fn shape(self) -> Shape {
        match self {
            Self::IoAndPower => WITH_CACHE,
            _ => SHAPE,
        }
    }

    pub fn arm(self, disk: &FileDisk, nth: u64) {
        match self {
            Self::Io | Self::IoAndPower => disk.arm(Fault::Fail, nth),
            #[cfg(spdk_faults)]
            Self::Allocation => allocations::arm(nth),
        }
    }

    /// No more faults; whether the one that was planned has not come.
    pub fn disarm(self, disk: &FileDisk) -> bool {
        match self {
            Self::Io | Self::IoAndPower => disk.disarm(),
            #[cfg(spdk_faults)]
            Self::Allocation => allocations::disarm(),
        }
    }

    /// Takes the disk away, by its power if that is to go.
    pub async fn leave(self, place: Place, nth: u64) -> Result<()> {
        if matches!(self, Self::IoAndPower) {
            place.disk.cut(nth, nth % 5);
        }
        place.leave().await
    }
}

/// How an answer is spoken of.
pub fn told<E: Display>(answer: &std::result::Result<(), E>) -> String {
    match answer {
        Ok(()) => "success".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn each_io_fails() {
    each_fails("faults::each_io_fails", What::Io);
}

/// Everything is as the answer says all the same.
#[test]
fn each_io_fails_and_the_power() {
    each_fails("faults::each_io_fails_and_the_power", What::IoAndPower);
}

#[cfg(spdk_faults)]
#[test]
fn each_allocation_fails() {
    each_fails("faults::each_allocation_fails", What::Allocation);
}

fn each_fails(name: &str, what: What) {
    if common::is_child() {
        run(sweep(what));
        return;
    }
    // `SPDK_RS_FAULT_CASE` names some by how they begin.
    let wanted = std::env::var("SPDK_RS_FAULT_CASE").unwrap_or_default();
    let place = tempfile::tempdir().expect("a place");
    let (mut found, mut wrong) = (0, 0);
    let cases = cases();
    let names = cases.iter().map(|case| case.name);
    for (at, operation) in names.chain(OPS.map(|(name, _)| name)).enumerate() {
        if !operation.starts_with(&wanted) {
            continue;
        }
        found += 1;
        let result = listen(name, at, place.path());
        let result = result.unwrap_or_else(|error| panic!("{operation}: {error:#}"));
        for (step, how) in &result.wrong {
            println!("fault: {operation}: {} {step}: {how}", what.name());
        }
        println!(
            "fault: {operation}: each of {} {}s failed, of which {} have not gone well; clusters lost: {:?}",
            result.steps,
            what.name(),
            result.wrong.len(),
            result.lost
        );
        wrong += result.wrong.len();
    }
    assert!(found > 0, "no case begins with {wanted:?}");
    assert!(wrong == 0, "{wrong} failures have not gone well");
}

/// What came of a case.
#[derive(Default)]
struct Swept {
    steps: u64,
    /// Steps that lost clusters, and how many.
    lost: Vec<(u64, u64)>,
    /// Steps, and what went wrong when they failed.
    wrong: Vec<(u64, String)>,
}

/// Has processes sweep a case: where one comes to grief, the next begins with the step after.
fn listen(name: &str, case: usize, place: &Path) -> Result<Swept> {
    let case = case.to_string();
    let mut swept = Swept::default();
    let mut from = 1;
    loop {
        let env = [
            ("CRASH_DISK", place.to_str().context("a path")?),
            ("CRASH_CASE", &case),
            ("CRASH_NTH", &from.to_string()),
        ];
        let mut actor = Actor::start(name, &env)?;
        let (mut at, mut doing) = (0, "preparing".to_owned());
        let wrong = loop {
            match actor.lines.recv_timeout(LIMIT) {
                Ok(Line::Step(nth, now)) => (at, doing) = (nth, now),
                Ok(Line::Lost(nth, clusters)) => swept.lost.push((nth, clusters)),
                Ok(Line::Failed(_, why)) => break format!("{doing}: {why}"),
                Ok(Line::Through(steps)) => {
                    swept.steps = steps;
                    return Ok(swept);
                }
                Ok(line) => bail!("it says {line:?}"),
                Err(RecvTimeoutError::Disconnected) => break format!("{doing}: {}", actor.child.wait()?),
                Err(RecvTimeoutError::Timeout) => break format!("{doing}: it hangs"),
            }
        };
        ensure!(at >= from, "{wrong}");
        swept.wrong.push((at, wrong));
        from = at + 1;
    }
}

/// What a process of `listen` does.
async fn sweep(what: What) {
    if let Err(error) = attempt_all(what).await {
        Line::Failed(0, format!("{error:#}"))
            .say()
            .expect("somebody listens");
        // (An operation that never ends would keep SPDK from stopping.)
        std::process::exit(1);
    }
}

async fn attempt_all(what: What) -> Result<()> {
    let at = number("CRASH_CASE").context("given")? as usize;
    let cases = cases();
    let (base, disk) = (path().join("base"), path().join("disk"));
    match cases.get(at) {
        Some(case) => prepare(&case.before, &base, what.shape()).await?,
        None => prepare(&chain(), &base, what.shape()).await?,
    }
    #[cfg(spdk_faults)]
    ensure!(allocations::are_seen(), "SPDK's allocations do not come here");
    for nth in number("CRASH_NTH").context("given")?..MANY {
        std::fs::copy(&base, &disk)?;
        let came_through = match cases.get(at) {
            Some(case) => attempt(case, what, nth, &disk).await?,
            None => stores::attempt(OPS[at - cases.len()].1, what, nth, &disk).await?,
        };
        if came_through {
            return Line::Through(nth - 1).say();
        }
    }
    bail!("it never came through")
}

/// Does a case's operation while its n-th step fails. Says whether it came through without.
async fn attempt(case: &Case, what: What, nth: u64, disk: &Path) -> Result<bool> {
    let say = |doing: String| Line::Step(nth, doing).say();
    let before = case.family();
    let mut after = before.clone();
    after.apply(&case.op);

    say("loading it".to_owned())?;
    let place = Place::load(disk, what.shape()).await?;
    say("the operation".to_owned())?;
    what.arm(&place.disk, nth);
    let answer = place.perform(&case.op).await;
    let came_through = what.disarm(&place.disk);
    let done = answer.is_ok();
    let told = told(&answer);
    ensure!(done || !came_through, "nothing had failed, answer {told}");
    // (An inflation that fails keeps what it has copied.)
    let is = match done {
        true => after.clone(),
        false => before.unheard(&case.op).swap_remove(0),
    };
    let is = std::slice::from_ref(&is);

    say(format!("after the answer {told}"))?;
    let report = place.report().await?;
    check_volumes(&report, is)?;
    // Where something fails after the point of no return, what belongs to nobody is found by the
    // next load.
    let lost = report.lost_clusters()?;
    if done && lost > 0 {
        Line::Lost(nth, lost).say()?;
    } else {
        ensure!(lost == 0, "{lost} clusters are lost");
    }
    // So is a note that could not be taken back.
    let is_left = |finding: &Finding| {
        use Finding::{InterruptedSnapshot, Leaked};
        done && matches!(finding, Leaked { .. } | InterruptedSnapshot { taken: true, .. })
    };
    place.check(is_left).await?;
    say(format!("taking the disk away after the answer {told}"))?;
    what.leave(place, nth).await?;

    say(format!("loading it after the answer {told}"))?;
    let place = Place::load_despite(disk, what.shape(), is_left).await?;
    let report = place.report().await?;
    check_volumes(&report, is)?;
    report.check_space()?;
    if !done {
        say(format!("again after the answer {told}"))?;
        place.perform(&case.op).await?;
        check(&place.report().await?, std::slice::from_ref(&after))?;
        place.check(is_left).await?;
    }
    place.leave().await?;
    Ok(came_through)
}
