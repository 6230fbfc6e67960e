//! What a process that works on a store says, and chooses.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::common::random::Random;
use super::store::place::{Report, Shape};
use super::store::volumes::{CELLS, Family, Found, Op};

pub const SHAPE: Shape = Shape {
    cluster: 256 << 10,
    disk: 48 << 20,
    write_cache: false,
};

/// The same, smaller, with a volatile write cache.
pub const WITH_CACHE: Shape = Shape {
    disk: 16 << 20,
    write_cache: true,
    ..SHAPE
};

/// What a process tells the test that has started it.
#[derive(Debug, Deserialize, Serialize)]
pub enum Line {
    /// What there is.
    Report(Report),
    /// A lane begins with an operation; has done it; has failed.
    Begins(usize, Op),
    Done(usize),
    Failed(usize, String),
    /// Which step of an operation is to fail now, and what is being done.
    Step(u64, String),
    /// Where clusters were lost until the next load: the step that failed, and how many.
    Lost(u64, u64),
    /// So many steps there were.
    Through(u64),
}

impl Line {
    const MARK: &'static str = "@crash ";

    /// Writes it out at once: the process may end any moment.
    pub fn say(&self) -> Result<()> {
        let text = format!("{}{}\n", Self::MARK, serde_json::to_string(self)?);
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// `None` for what others print.
    pub fn read(text: &str) -> Option<Self> {
        let (_, json) = text.split_once(Self::MARK)?;
        // A line that was cut off by the end of the process says nothing.
        serde_json::from_str(json).ok()
    }
}

/// The volumes of a lane.
pub fn of_lane(report: &Report, lane: usize) -> Vec<Found> {
    let prefix = prefix(lane);
    let volumes = report.volumes.iter();
    volumes
        .filter(|volume| volume.name.starts_with(&prefix))
        .cloned()
        .collect()
}

pub fn prefix(lane: usize) -> String {
    format!("{lane}-")
}

/// Chooses what can be done, by a family that no other lane works on.
pub struct Chooser {
    pub lane: usize,
    pub random: Random,
    /// For what is written, and for names.
    pub next: u64,
}

impl Chooser {
    pub fn choose(&mut self, family: &Family) -> Op {
        loop {
            if let Some(op) = self.attempt(family) {
                return op;
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn name(&mut self) -> String {
        format!("{}{:x}", prefix(self.lane), self.number())
    }

    fn attempt(&mut self, family: &Family) -> Option<Op> {
        let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
            family.0.keys().filter(|name| wanted(name)).cloned().collect()
        };
        let parent = |name: &str| family.0[name].parent.is_some();
        let clones = |name: &str| family.clones_of(name).len();
        let writable = named(&|name| family.can_write(name));
        let full = family.0.len() >= 7;
        Some(match self.random.below(100) {
            0..12 if !full => Op::Create {
                vol: self.name(),
                clusters: 1 + self.random.below(4),
                thin: self.random.below(3) > 0,
            },
            12..52 => {
                let vol = self.random.of(&writable)?.clone();
                let cells = family.0[&vol].clusters * CELLS;
                let written: BTreeMap<_, _> = (0..1 + self.random.below(3))
                    .map(|_| (self.random.below(cells), self.number()))
                    .collect();
                let cells = written.into_iter().collect();
                Op::Write { vol, cells }
            }
            52..62 if !full => Op::Snapshot {
                vol: self.random.of(&writable)?.clone(),
                name: self.name(),
            },
            62..70 if !full => Op::Clone {
                vol: self.random.of(&named(&|name| !family.can_write(name)))?.clone(),
                name: self.name(),
            },
            70..74 => Op::Inflate {
                vol: self.random.of(&writable)?.clone(),
            },
            74..78 => Op::Decouple {
                vol: self
                    .random
                    .of(&named(&|name| family.can_write(name) && parent(name)))?
                    .clone(),
            },
            78..82 => {
                let alone = named(&|name| family.can_write(name) && !parent(name) && clones(name) == 0);
                Op::Resize {
                    vol: self.random.of(&alone)?.clone(),
                    clusters: 1 + self.random.below(5),
                }
            }
            82..86 => Op::Rename {
                // (A name lies in the volume's metadata, which is then not to be changed.)
                vol: self.random.of(&writable)?.clone(),
                name: self.name(),
            },
            86 => Op::ReadOnly {
                vol: self.random.of(&writable)?.clone(),
            },
            87..90 => {
                let snapshots = named(&|name| !family.can_write(name) && clones(name) > 0);
                Op::Checksum {
                    vol: self.random.of(&snapshots)?.clone(),
                }
            }
            90..100 => Op::Destroy {
                vol: self.random.of(&named(&|name| clones(name) < 2))?.clone(),
            },
            _ => return None,
        })
    }
}
