//! A disk with a volatile write cache, whose power goes. What was answered is so all the same, what was
//! not is wholly done or wholly not, and what was flushed is there.
//!
//! All of it runs in one process. A cut leaves a file behind, from which the store is loaded anew.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use spdk_rs::reactor::timeout;
use spdk_rs::spawn;

use super::actor::{Chooser, Line, WITH_CACHE, of_lane};
use super::cases::{Case, MANY, cases, check, prepare};
use super::common::random::{Random, seed};
use super::common::{self, run};
use super::lane::Lane;
use super::steps::is_done;
use super::store::disk::Fault;
use super::store::place::{Place, Report};
use super::store::volumes::{Family, Op};
use super::{LANES, LIMIT, number};

/// In the sweep: nothing of the cache gets to the disk, all of it, and so many times some of it.
fn some() -> u64 {
    let many = number("SPDK_RS_POWER_CUTS").is_some_and(|cuts| cuts > 1000);
    if many { 12 } else { 1 }
}

/// How many times the power went, and what was wrong afterwards.
#[derive(Default)]
struct Tally {
    cuts: usize,
    answered: usize,
    losses: Vec<String>,
}

impl Tally {
    fn count(&mut self, outcome: Result<()>, when: impl Fn() -> String) {
        self.cuts += 1;
        if let Err(error) = outcome {
            println!("power: lost: {}: {error:#}", when());
            self.losses.push(when());
        }
    }

    fn end(&self) -> Result<()> {
        let Self {
            cuts,
            answered,
            losses,
        } = self;
        println!(
            "power: {cuts} cuts, {answered} operations answered, something lost in {}",
            losses.len()
        );
        ensure!(*answered > 0, "nothing was ever done");
        ensure!(losses.is_empty(), "lost: {losses:#?}");
        Ok(())
    }
}

/// An operation, with the power going at each I/O that changes or flushes anything.
#[test]
fn cut_at_each_io() {
    const NAME: &str = "power::cut_at_each_io";
    common::isolated_and_heard(NAME, "power: ", || {
        let swept = async {
            let place = tempfile::tempdir()?;
            let mut tally = Tally::default();
            for case in &cases() {
                let swept = sweep(case, place.path(), &mut tally).await;
                swept.with_context(|| case.name.to_owned())?;
            }
            tally.end()
        };
        run(swept).expect(NAME);
    });
}

async fn sweep(case: &Case, place: &Path, tally: &mut Tally) -> Result<()> {
    let (base, disk) = (place.join("base"), place.join("disk"));
    prepare(&case.before, &base, WITH_CACHE).await?;
    let before = case.family();
    let mut flushes = 0;
    for nth in 1..MANY {
        let mut came_through = true;
        let some = (0..some()).map(|seed| (seed, 1 + (nth + seed) % 3));
        for (seed, kept) in [(0, 0), (0, 4)].into_iter().chain(some) {
            let seed = seed << 32 | nth;
            std::fs::copy(&base, &disk)?;
            let place = Place::load(&disk, WITH_CACHE).await?;
            let had = place.disk.flushes();
            place.disk.arm(Fault::Cut { seed, kept }, nth);
            let answer = timeout(LIMIT, place.perform(&case.op))
                .await
                .context("no answer")?;
            let answered = !place.disk.is_dark();
            if answered {
                tally.answered += 1;
                answer.context("nothing had failed")?;
            }
            flushes = place.disk.flushes() - had;
            came_through &= answered;
            place.disk.cut(seed, kept);
            timeout(LIMIT, place.leave()).await.context("not left")??;
            let found = look(case, &before, &disk, answered).await;
            tally.count(found, || {
                format!("{}, I/O {nth}, {kept} of 4 kept by {seed}", case.name)
            });
        }
        if came_through {
            println!(
                "power: {}: {flushes} flushes, cut at each of {} I/Os",
                case.name,
                nth - 1
            );
            return Ok(());
        }
    }
    bail!("it never came through")
}

/// What there is after a cut is what there may be; what was not done can be done.
async fn look(case: &Case, before: &Family, disk: &Path, answered: bool) -> Result<()> {
    let mut after = before.clone();
    after.apply(&case.op);
    let may_be = match answered {
        true => vec![after.clone()],
        false => before.unheard(&case.op),
    };
    let place = Place::load(disk, WITH_CACHE).await?;
    let looked = async {
        let report = place.report().await?;
        check(&report, &may_be)?;
        if !answered && !is_done(&case.op, before, &report) {
            place.perform(&case.op).await.context("again")?;
            check(&place.report().await?, &[after]).context("again")?;
            place.check(|_| false).await.context("again")?;
        }
        anyhow::Ok(())
    };
    let looked = timeout(LIMIT, looked).await;
    timeout(LIMIT, place.leave()).await.context("not left")??;
    looked.context("no answer")?
}

/// Operations on two families of volumes at once, and on the store, until the power goes.
#[test]
fn cut_at_random() {
    const NAME: &str = "power::cut_at_random";
    common::isolated_and_heard(NAME, "power: ", || {
        let cuts = number("SPDK_RS_POWER_CUTS").unwrap_or(200);
        let seed = seed("SPDK_RS_CRASH_SEED").unwrap_or(1);
        println!("power: {cuts} cuts, SPDK_RS_CRASH_SEED={seed}");
        let cut = async move {
            let place = tempfile::tempdir()?;
            let mut tally = Tally::default();
            let mut life = Life::new(place.path().join("disk"), seed).await?;
            for cut in 0..cuts {
                let lived = life.until_the_power_goes(cut).await;
                tally.answered += std::mem::take(&mut life.answered);
                let failed = lived.is_err();
                tally.count(lived, || format!("cut {cut} of seed {seed}"));
                if failed {
                    life = Life::new(place.path().join("disk"), seed ^ cut).await?;
                }
            }
            tally.end()
        };
        run(cut).expect(NAME);
    });
}

struct Life {
    disk: PathBuf,
    random: Random,
    /// Names that the store may have.
    names: Vec<String>,
    lanes: Vec<Lane>,
    /// What each lane heard last.
    heard: Vec<Option<Op>>,
    answered: usize,
}

impl Life {
    /// A new store.
    async fn new(disk: PathBuf, seed: u64) -> Result<Self> {
        let place = Place::create(&disk, WITH_CACHE).await?;
        let names = vec![place.store.name().to_owned()];
        place.leave().await?;
        Ok(Self {
            disk,
            random: Random(seed),
            names,
            lanes: (0..LANES).map(|_| Lane::default()).collect(),
            heard: vec![None; LANES],
            answered: 0,
        })
    }

    async fn until_the_power_goes(&mut self, cut: u64) -> Result<()> {
        let place = Place::load(&self.disk, WITH_CACHE).await?;
        let place = Rc::new(place);
        let lived = timeout(LIMIT * 2, self.live(Rc::clone(&place), cut)).await;
        place.disk.cut(cut, self.random.below(5));
        let place = Rc::into_inner(place).context("nobody is left")?;
        timeout(LIMIT, place.leave()).await.context("not left")??;
        lived.context("no answer")?
    }

    async fn live(&mut self, place: Rc<Place>, cut: u64) -> Result<()> {
        let report = place.report().await.context("what there is")?;
        self.find(&report, place.store.name())?;

        let (seed, kept) = (self.random.below(u64::MAX), self.random.below(5));
        let nth = 1 + self.random.below(16) * self.random.below(16);
        place.disk.arm(Fault::Cut { seed, kept }, nth);
        if self.random.below(4) == 0 {
            let name = format!("lvs{cut}");
            let renamed = place.store.rename(&name).await;
            self.names.push(name);
            if place.disk.is_dark() {
                return Ok(());
            }
            renamed.context("rename")?;
            self.names.remove(0);
        }
        // Some end by themselves, and are unloaded.
        let by_itself = self.random.below(6) == 0;
        let ops = if by_itself { self.random.below(8) } else { u64::MAX };
        let answered = Rc::new(RefCell::new(0));
        let mut tasks = Vec::new();
        for (at, lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            let worker = Worker {
                place: Rc::clone(&place),
                lane,
                chooser: Chooser {
                    lane: at,
                    random: Random(seed.wrapping_add(at as u64)),
                    next: (cut << 20 | at as u64) << 20,
                },
                answered: Rc::clone(&answered),
            };
            tasks.push(spawn(worker.work(ops)));
        }
        let mut failed = Ok(());
        self.heard.clear();
        for task in tasks {
            let (lane, last, worked) = task.await?;
            self.lanes.push(lane);
            self.heard.push(last);
            failed = failed.and(worked);
        }
        self.answered += *answered.borrow();
        failed?;
        if by_itself && !place.disk.is_dark() {
            let unloaded = place.store.unload().await;
            if !place.disk.is_dark() {
                unloaded.context("unload")?;
                place.disk.cut(seed, kept);
                let report = spdk_rs::lvol::check::check_file(&self.disk)?;
                ensure!(report.is_clean() && !report.recovery_due, "unloaded: {report}");
            }
        }
        Ok(())
    }

    /// Takes what was found for what is, if it may be.
    fn find(&mut self, report: &Report, name: &str) -> Result<()> {
        ensure!(
            self.names.iter().any(|may_be| may_be == name),
            "the store's name is {name}, should be one of {:?}",
            self.names
        );
        self.names = vec![name.to_owned()];
        let open: Vec<_> = self.lanes.iter().map(|lane| lane.unheard.clone()).collect();
        report
            .check_space()
            .with_context(|| format!("not answered: {open:?}"))?;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            // A sum that was answered is there, when that is looked at for the first time: it may go with what
            // was not answered then, and the power may go again before anything is heard.
            let heard = self.heard[at].take();
            if let (Some(Op::Checksum { vol }), None | Some(Op::Write { .. })) = (&heard, &lane.unheard) {
                let found = of_lane(report, at);
                let summed = found
                    .iter()
                    .any(|found| found.name == *vol && found.sum.is_some());
                ensure!(summed, "the checksum of {vol} is lost, found: {found:?}");
            }
            lane.find(report, at)
                .with_context(|| format!("heard last: {heard:?}"))?;
        }
        Ok(())
    }
}

/// Who works on a lane's volumes.
struct Worker {
    place: Rc<Place>,
    lane: Lane,
    chooser: Chooser,
    answered: Rc<RefCell<usize>>,
}

impl Worker {
    /// Gives the lane back, and what was answered last.
    async fn work(mut self, ops: u64) -> (Lane, Option<Op>, Result<()>) {
        let mut last = None;
        for _ in 0..ops {
            let op = self.chooser.choose(&self.lane.family);
            match self.one(&op).await {
                Ok(true) => last = Some(op),
                Ok(false) => return (self.lane, last, Ok(())),
                Err(error) => return (self.lane, last, Err(error.context(format!("{op:?}")))),
            }
        }
        (self.lane, last, Ok(()))
    }

    /// False if the power has gone meanwhile.
    async fn one(&mut self, op: &Op) -> Result<bool> {
        let lane = self.chooser.lane;
        let flushed = self.chooser.random.below(3) > 0;
        if let (Op::Write { vol, cells }, false) = (op, flushed) {
            // Nothing is known of what is not flushed, whatever becomes of it.
            self.lane.family.apply(op);
            let volume = self.lane.family.0.get_mut(vol).context("it is there")?;
            for (cell, _) in cells {
                volume.cells[*cell as usize].clear();
            }
            let written = self.place.perform(op).await;
            return if self.place.disk.is_dark() {
                Ok(false)
            } else {
                written.map(|()| true)
            };
        }
        self.lane.hear(Line::Begins(lane, op.clone()))?;
        let mut answer = self.place.perform(op).await;
        if let (Ok(()), Op::Write { vol, .. }) = (&answer, op) {
            answer = self.place.flush(vol).await;
        }
        if self.place.disk.is_dark() {
            return Ok(false);
        }
        answer?;
        self.lane.hear(Line::Done(lane))?;
        *self.answered.borrow_mut() += 1;
        Ok(true)
    }
}
