//! Power that is cut, at random instants, while volumes are written to, made and deleted.
//!
//! What is done, and how it is known what there should be, is that of `spdk-rs/tests/crash`, which kills processes. Here
//! the machine goes, with what its disk had not written yet.

pub mod media;
mod media_deletes;
pub mod prefixes;
mod record;
mod work;

// Their own modules, as they are there.
#[path = "../../../../spdk-rs/tests/crash/actor.rs"]
#[allow(dead_code, reason = "what it says goes another way here")]
mod actor;
#[path = "../../../../spdk-rs/tests/crash/lane.rs"]
mod lane;
#[path = "../../../../spdk-rs/tests/common/random.rs"]
mod random;
#[path = "../../../../spdk-rs/tests/common/store/mod.rs"]
mod store;
mod common {
    pub(super) use super::random;
}

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::lvol::check::{Remedy, check_file};

use self::actor::Line;
use self::lane::Lane;
use self::random::Random;
use super::Part;
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Heard, Link, Machine, Vm};

/// What is written is on the disk.
pub const THROUGH: Part = Part {
    name: "cut",
    about: "power is cut during writes, snapshots and deletes; the disk has no write cache",
    host: |run| sweep(run, Cache::Through),
    guest: in_guest,
    programs: &[("cut-work", work::work)],
};

/// What is written may be lost until it is flushed.
pub const VOLATILE: Part = Part {
    name: "cut-volatile",
    about: "the same with a volatile write cache, and a flush after each operation",
    host: |run| sweep(run, Cache::Volatile),
    guest: in_guest,
    programs: &[],
};

const LANES: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Cache {
    Through,
    Volatile,
}

/// What came of the cuts.
#[derive(Default)]
struct Tally {
    answered: usize,
    unheard: usize,
}

fn sweep(run: &mut Run, cache: Cache) -> Result<()> {
    let cuts: u64 = match (run.full, cache) {
        (true, _) => 40,
        (false, Cache::Through) => 4,
        (false, Cache::Volatile) => 3,
    };
    let seed = random::seed("SPDK_RS_CRASH_SEED").unwrap_or(1);
    run.note(format_args!("{cuts} cuts, SPDK_RS_CRASH_SEED={seed}"));
    let mut random = Random(seed);
    let mut tally = Tally::default();
    let mut lost = Vec::new();
    let mut disk = Disk::new(run, cache, 0)?;
    let mut life = 0;
    for cut in 0..=cuts {
        let time = (cut < cuts).then(|| Duration::from_millis(50 + random.below(2000)));
        if let Err(error) = disk.live(run, life, seed ^ cut << 32, time, &mut tally) {
            lost.push(format!("after cut {cut}: {error:#}"));
            disk = Disk::new(run, cache, cut + 1)?;
            life = 0;
        } else {
            life += 1;
        }
    }
    run.check(
        tally.answered > 0,
        format_args!(
            "{} operations were answered, {} were not",
            tally.answered, tally.unheard
        ),
    );
    for lost in &lost {
        run.note(lost);
    }
    run.check(
        lost.is_empty(),
        format_args!(
            "cuts of {cuts} after which something was not as promised: {}",
            lost.len()
        ),
    );
    Ok(())
}

/// A disk, and what should be on it.
struct Disk {
    drive: Drive,
    cache: Cache,
    lanes: Vec<Lane>,
}

impl Disk {
    fn new(run: &Run, cache: Cache, number: u64) -> Result<Self> {
        let image = run.file(&format!("cut-{number}.img"));
        let drive = match cache {
            Cache::Through => Drive::create("disk", image, actor::SHAPE.disk)?,
            Cache::Volatile => Drive::create_volatile("disk", image, actor::SHAPE.disk)?,
        };
        let lanes = (0..LANES).map(|_| Lane::default()).collect();
        Ok(Self { drive, cache, lanes })
    }

    /// A machine finds what there should be, works, and is cut off; or without a time only finds it.
    fn live(
        &mut self,
        run: &mut Run,
        life: u64,
        seed: u64,
        time: Option<Duration>,
        tally: &mut Tally,
    ) -> Result<()> {
        if life > 0 && self.cache == Cache::Through {
            let report = check_file(&self.drive.image)?;
            let mut findings = report.findings.iter();
            ensure!(
                findings.all(|finding| finding.remedy() == Remedy::Load),
                "before it is loaded: {report}"
            );
        }
        let machine = Machine::for_user_space()
            .arguments(["-trace", "pci_nvme_flush_ns"])
            .controller("nvme0", &self.drive);
        let flush = self.cache == Cache::Volatile;
        let params = json!({"life": life, "seed": seed, "flush": flush, "work": time.is_some()});
        let mut vm = run.boot(&machine, THROUGH.name, params)?;
        let mut end = Instant::now() + Duration::from_secs(60);
        while let Some(heard) = vm.hear_until(end)? {
            match heard {
                Heard::Tell { what } => {
                    if self.hear(serde_json::from_value(what)?, tally)? {
                        // From here on the power may go.
                        end = Instant::now() + time.unwrap_or(Duration::from_secs(30));
                    }
                }
                Heard::Ask { what, params } => {
                    let answer = self.answer(&vm, &what, params)?;
                    vm.answer(&answer)?;
                }
                Heard::Check { ok, what } => run.check(ok, what),
                Heard::Note { what } => run.note(what),
                Heard::End { error: Some(error) } => bail!("in the guest: {error}"),
                Heard::End { error: None } if time.is_none() => return vm.quit(),
                Heard::End { error: None } => bail!("the guest has ended by itself"),
            }
        }
        ensure!(time.is_some(), "the guest does not end");
        for heard in vm.cut() {
            match heard {
                Heard::Tell { what } => drop(self.hear(serde_json::from_value(what)?, tally)?),
                // It was not done: nobody has answered.
                Heard::Ask { .. } => {}
                heard => bail!("the guest says {heard:?}"),
            }
        }
        tally.unheard += self.lanes.iter().filter(|lane| lane.unheard.is_some()).count();
        Ok(())
    }

    /// Whether it was the report of what there is.
    fn hear(&mut self, line: Line, tally: &mut Tally) -> Result<bool> {
        match line {
            Line::Report(report) => {
                report.check_space()?;
                for (number, lane) in self.lanes.iter_mut().enumerate() {
                    lane.find(&report, number)?;
                }
                return Ok(true);
            }
            Line::Begins(lane, _) | Line::Done(lane) | Line::Failed(lane, _) => {
                tally.answered += usize::from(matches!(line, Line::Done(_)));
                self.lanes.get_mut(lane).context("a lane")?.hear(line)?;
            }
            line => bail!("the guest says {line:?}"),
        }
        Ok(false)
    }

    fn answer(&mut self, vm: &Vm, what: &str, params: Value) -> Result<Value> {
        match what {
            // It is not begun before this is known here.
            "begins" => {
                self.hear(serde_json::from_value(params)?, &mut Tally::default())?;
                Ok(Value::Null)
            }
            // QEMU traces each Flush that its controller is sent.
            "flushes" => Ok(json!(vm.log().matches("pci_nvme_flush_ns ").count())),
            what => bail!("nobody here knows {what}"),
        }
    }
}

fn in_guest(link: &Link, params: &Value) -> Result<()> {
    run_with_address(link, "cut-work", params)
}

/// Runs a program of the guest, and tells it where the controller is.
fn run_with_address(link: &Link, program: &str, params: &Value) -> Result<()> {
    let addresses = guest::bind()?;
    let mut params = params.clone();
    params["address"] = json!(addresses[0]);
    guest::run_program(link, program, &params)
}
