//! Processes that are killed while they work on a store, at random instants and at each write of an
//! operation; and operations whose I/O fails, one by one, or, where `ci/fault` has built this, whose
//! allocations do. After each: what was answered is so, what was not is wholly done or wholly not, data
//! are what they should be, and no cluster is lost. Then the same on a disk with a volatile write cache,
//! whose power goes.
//!
//! `SPDK_RS_CRASH_CYCLES` says how many times a process is killed at random, `SPDK_RS_CRASH_SEED`
//! what they do (see `common::random`); `SPDK_RS_POWER_CUTS` how many times the power goes at random.
//! A run that fails has said its seed.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/store/mod.rs"]
mod store;

mod actor;
#[cfg(spdk_faults)]
mod allocations;
mod cases;
mod faults;
mod flushes;
mod lane;
mod notes;
mod power;
mod steps;
mod stores;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use actor::{Chooser, Line, SHAPE, of_lane};
use anyhow::{Context, Result, bail, ensure};
use common::random::{Random, seed};
use common::{child_command, run};
use lane::Lane;
use spdk_rs::spawn;
use store::place::{Place, Report};
use store::volumes::Family;

const LANES: usize = 2;
/// For one step of a process, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that works on the store in a file, and what it says.
struct Actor {
    child: Child,
    lines: Receiver<Line>,
}

impl Actor {
    fn start(name: &str, env: &[(&str, &str)]) -> Result<Self> {
        let mut command = child_command(name, env);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("it has a pipe")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for text in BufReader::new(out).lines().map_while(|text| text.ok()) {
                if let Some(line) = Line::read(&text) {
                    let _ = sender.send(line);
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn report(&self) -> Result<Report> {
        match self.lines.recv_timeout(LIMIT).context("no report")? {
            Line::Report(report) => Ok(report),
            line => bail!("no report, but {line:?}"),
        }
    }

    /// All that it says until it ends, by itself or after a time.
    fn until_the_end(&mut self, kill_after: Option<Duration>) -> Result<(Vec<Line>, ExitStatus)> {
        if let Some(time) = kill_after {
            thread::sleep(time);
            self.child.kill()?;
        }
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok((said, self.child.wait()?)),
                Err(RecvTimeoutError::Timeout) => bail!("it says no more, and does not end"),
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where a process finds its disk.
fn path() -> PathBuf {
    std::env::var_os("CRASH_DISK").expect("given").into()
}

#[test]
fn killed_at_random() {
    const NAME: &str = "killed_at_random";
    if common::is_child() {
        run(work_at_random()).expect(NAME);
        return;
    }
    let cycles = number("SPDK_RS_CRASH_CYCLES").unwrap_or(12);
    let seed = seed("SPDK_RS_CRASH_SEED").unwrap_or(1);
    println!("crash: {cycles} cycles, SPDK_RS_CRASH_SEED={seed}");
    let place = tempfile::tempdir().expect("a place");
    let disk = place.path().join("disk");
    let mut random = Random(seed);
    let mut lanes: Vec<_> = (0..LANES).map(|_| Lane::default()).collect();
    let (mut answered, mut unheard) = (0, 0);
    for cycle in 0..=cycles {
        let ended = one_life(&disk, cycle, seed, &mut random, &mut lanes);
        let (done, open) = ended.unwrap_or_else(|error| panic!("cycle {cycle}, seed {seed}: {error:#}"));
        answered += done;
        unheard += open;
    }
    println!("crash: {cycles} cycles, {answered} operations answered, {unheard} not");
    assert!(answered > 0, "nothing was ever done");
}

/// A process finds what there should be, works, and ends.
fn one_life(
    disk: &Path,
    cycle: u64,
    seed: u64,
    random: &mut Random,
    lanes: &mut [Lane],
) -> Result<(usize, usize)> {
    // Some end by themselves, so that clean loads are seen, too.
    let by_itself = random.below(6) == 0;
    let ops = if by_itself { 1 + random.below(30) } else { u64::MAX };
    let (seed, ops, cycle) = (
        (seed ^ cycle << 32).to_string(),
        ops.to_string(),
        cycle.to_string(),
    );
    let env = [
        ("CRASH_DISK", disk.to_str().context("a path")?),
        ("CRASH_SEED", &seed),
        ("CRASH_OPS", &ops),
        ("CRASH_CYCLE", &cycle),
    ];
    let mut actor = Actor::start("killed_at_random", &env)?;
    let report = actor.report()?;
    let open: Vec<_> = lanes.iter().map(|lane| lane.unheard.clone()).collect();
    if let Err(error) = report.check_space() {
        bail!("{error}; not answered: {open:?}; found: {report:?}");
    }
    for (at, lane) in lanes.iter_mut().enumerate() {
        lane.find(&report, at)?;
    }
    let millis = random.below(16) * random.below(16);
    let kill_after = (!by_itself).then(|| Duration::from_millis(millis));
    let (said, status) = actor.until_the_end(kill_after)?;
    let answered = said.iter().filter(|line| matches!(line, Line::Done(_))).count();
    for line in said {
        let (Line::Begins(lane, _) | Line::Done(lane) | Line::Failed(lane, _)) = line else {
            bail!("it says {line:?}");
        };
        lanes[lane].hear(line)?;
    }
    let unheard = lanes.iter().filter(|lane| lane.unheard.is_some()).count();
    if by_itself {
        ensure!(status.success() && unheard == 0, "it ended with {status}");
    }
    Ok((answered, unheard))
}

/// What the process of `killed_at_random` does.
async fn work_at_random() -> Result<()> {
    let cycle = number("CRASH_CYCLE").context("given")?;
    let place = match cycle {
        0 => Place::create(&path(), SHAPE).await?,
        _ => Place::load(&path(), SHAPE).await?,
    };
    let report = place.report().await?;
    let families: Vec<_> = (0..LANES)
        .map(|lane| Family::of(&of_lane(&report, lane)))
        .collect();
    Line::Report(report).say()?;
    let place = Rc::new(place);
    let seed = number("CRASH_SEED").context("given")?;
    let ops = number("CRASH_OPS").context("given")?;
    let mut tasks = Vec::new();
    for (lane, mut family) in families.into_iter().enumerate() {
        let place = Rc::clone(&place);
        let mut chooser = Chooser {
            lane,
            random: Random(seed.wrapping_add(lane as u64)),
            next: (cycle << 20 | lane as u64) << 20,
        };
        tasks.push(spawn(async move {
            for _ in 0..ops {
                let op = chooser.choose(&family);
                Line::Begins(lane, op.clone()).say()?;
                match place.perform(&op).await {
                    Ok(()) => Line::Done(lane).say()?,
                    Err(error) => return Line::Failed(lane, format!("{error:#}")).say(),
                }
                family.apply(&op);
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}
