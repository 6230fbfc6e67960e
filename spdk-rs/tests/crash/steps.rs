//! One operation, with something going wrong at each of its steps: its process is killed before the
//! n-th write, or its n-th I/O fails, for every n until the operation comes through.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use spdk_rs::lvol::check::Finding;

use super::actor::{Line, SHAPE, of_lane};
use super::store::disk::Fault;
use super::store::place::{Place, Report};
use super::store::volumes::{CELLS, Family, Op};
use super::{Actor, common, number, path};
use crate::common::run;

/// More steps than any operation has.
const MANY: u64 = 400;

/// What there is before, and what is done then.
struct Case {
    name: &'static str,
    before: Vec<Op>,
    op: Op,
}

fn create(vol: &str, clusters: u64, thin: bool) -> Op {
    let vol = vol.into();
    Op::Create { vol, clusters, thin }
}

/// Something in each of these clusters.
fn fill(vol: &str, clusters: &[u64], id: u64) -> Op {
    Op::Write {
        vol: vol.into(),
        cells: clusters
            .iter()
            .map(|cluster| (cluster * CELLS, id + cluster))
            .collect(),
    }
}

pub fn snapshot(vol: &str, name: &str) -> Op {
    let (vol, name) = (vol.into(), name.into());
    Op::Snapshot { vol, name }
}

fn destroy(vol: &str) -> Op {
    Op::Destroy { vol: vol.into() }
}

/// A volume on two snapshots, each with something of its own.
pub fn chain() -> Vec<Op> {
    vec![
        create("0-vol", 4, true),
        fill("0-vol", &[0, 1], 100),
        snapshot("0-vol", "0-old"),
        fill("0-vol", &[1, 2], 200),
        snapshot("0-vol", "0-new"),
        fill("0-vol", &[2], 300),
    ]
}

fn cases() -> Vec<Case> {
    let case = |name, before, op| Case { name, before, op };
    let vol = || "0-vol".to_owned();
    vec![
        case(
            "destroy a thick volume",
            vec![create("0-vol", 3, false), fill("0-vol", &[0, 2], 1)],
            destroy("0-vol"),
        ),
        case("destroy a clone", chain(), destroy("0-vol")),
        case("destroy a snapshot with a clone", chain(), destroy("0-new")),
        case("destroy a snapshot beneath another", chain(), destroy("0-old")),
        case("create a thick volume", chain(), create("0-more", 3, false)),
        case("create a thin volume", chain(), create("0-more", 3, true)),
        case("take a snapshot", chain(), snapshot("0-vol", "0-more")),
        case(
            "clone",
            chain(),
            Op::Clone {
                vol: "0-old".into(),
                name: "0-more".into(),
            },
        ),
        case("inflate", chain(), Op::Inflate { vol: vol() }),
        case("decouple", chain(), Op::Decouple { vol: vol() }),
        case(
            "grow",
            vec![create("0-vol", 2, false), fill("0-vol", &[0, 1], 1)],
            Op::Resize {
                vol: vol(),
                clusters: 5,
            },
        ),
        case(
            "shrink",
            vec![create("0-vol", 5, false), fill("0-vol", &[0, 4], 1)],
            Op::Resize {
                vol: vol(),
                clusters: 2,
            },
        ),
        case(
            "rename",
            chain(),
            Op::Rename {
                vol: vol(),
                name: "0-more".into(),
            },
        ),
    ]
}

/// A disk as it is before a case's operation.
async fn prepare(case: &Case, disk: &Path) -> Result<Family> {
    let place = Place::create(disk, SHAPE).await?;
    let mut family = Family::default();
    for op in &case.before {
        place.perform(op).await.with_context(|| format!("{op:?}"))?;
        family.apply(op);
    }
    place.leave().await?;
    Ok(family)
}

/// The state is one of these, and no cluster is lost.
fn check(report: &Report, may_be: &[Family]) -> Result<()> {
    report.check_space()?;
    check_volumes(report, may_be)
}

fn check_volumes(report: &Report, may_be: &[Family]) -> Result<()> {
    let found = of_lane(report, 0);
    let wrong: Vec<_> = may_be.iter().map(|family| family.check(&found)).collect();
    ensure!(wrong.iter().any(Result::is_ok), "{wrong:?}; found: {found:?}");
    Ok(())
}

/// Whether it has been done, as far as names and relations tell. (To do a write, an inflation or a
/// resize again does no harm.)
fn is_done(op: &Op, before: &Family, report: &Report) -> bool {
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
    let mut before = Family::default();
    for op in &case.before {
        before.apply(op);
    }
    match std::env::var("CRASH_WHAT")?.as_str() {
        "prepare" => {
            prepare(&case, &path()).await?;
        }
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

#[test]
fn each_io_fails() {
    const NAME: &str = "steps::each_io_fails";
    if !common::is_child() {
        let output = common::run_child(NAME, &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        said.lines()
            .filter_map(|line| line.find("fault: ").map(|at| &line[at..]))
            .for_each(|line| println!("{line}"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", output.status);
        return;
    }
    run(async {
        let place = tempfile::tempdir()?;
        // `SPDK_RS_FAULT_CASE` names some by how they begin.
        let wanted = std::env::var("SPDK_RS_FAULT_CASE").unwrap_or_default();
        let mut cases = cases();
        cases.retain(|case| case.name.starts_with(&wanted));
        ensure!(!cases.is_empty(), "no case begins with {wanted:?}");
        for case in &cases {
            let swept = failures(case, place.path()).await;
            let (steps, leaks) = swept.context(case.name)?;
            println!(
                "fault: {}: each of {steps} I/Os failed; clusters lost: {leaks:?}",
                case.name
            );
        }
        anyhow::Ok(())
    })
    .expect(NAME);
}

/// Fails each I/O of a case's operation. Says how many there are, and which of them lost clusters.
async fn failures(case: &Case, place: &Path) -> Result<(u64, Vec<(u64, u64)>)> {
    let mut leaks = Vec::new();
    let (base, disk) = (place.join("base"), place.join("disk"));
    let before = prepare(case, &base).await?;
    let mut after = before.clone();
    after.apply(&case.op);
    for nth in 1..MANY {
        std::fs::copy(&base, &disk)?;
        let place = Place::load(&disk, SHAPE).await?;
        place.disk.arm(Fault::Fail, nth);
        let answer = place.perform(&case.op).await;
        let came_through = place.disk.disarm();
        let done = answer.is_ok();
        let told = match &answer {
            Ok(()) => "success".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let context = |what: &str| format!("I/O {nth} failed, answer {told}: {what}");
        // (An inflation that fails keeps what it has copied.)
        let is = match done {
            true => after.clone(),
            false => before.unheard(&case.op).swap_remove(0),
        };
        let is = std::slice::from_ref(&is);
        ensure!(done || !came_through, "{}", context("nothing had failed"));
        let report = place.report().await.with_context(|| context("then"))?;
        check_volumes(&report, is).with_context(|| context("then"))?;
        // Where something fails after the point of no return, what belongs to nobody is found by the
        // next load.
        let lost = report.lost_clusters().with_context(|| context("then"))?;
        if done && lost > 0 {
            leaks.push((nth, lost));
        } else {
            ensure!(lost == 0, "{}", context("clusters are lost"));
        }
        // So is a note that could not be taken back.
        let is_left = |finding: &Finding| {
            use Finding::{InterruptedSnapshot, Leaked};
            done && matches!(finding, Leaked { .. } | InterruptedSnapshot { taken: true, .. })
        };
        place.check(is_left).await.with_context(|| context("then"))?;
        place.leave().await?;

        let place = Place::load_despite(&disk, SHAPE, is_left).await;
        let place = place.with_context(|| context("loaded"))?;
        let report = place.report().await.with_context(|| context("loaded"))?;
        check_volumes(&report, is).with_context(|| context("loaded"))?;
        report.check_space().with_context(|| context("loaded"))?;
        if !done {
            place.perform(&case.op).await.with_context(|| context("again"))?;
            check(&place.report().await?, std::slice::from_ref(&after)).with_context(|| context("again"))?;
            place.check(is_left).await.with_context(|| context("again"))?;
        }
        place.leave().await?;
        if came_through {
            return Ok((nth - 1, leaks));
        }
    }
    bail!("it never came through")
}
