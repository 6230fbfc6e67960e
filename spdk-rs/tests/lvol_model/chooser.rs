//! Chooses what is done: much of it on volumes that have to do with each other, some of it wrong.

use super::common::random::Random;
use super::history::MOST;
use super::model::Model;
use super::ops::{Key, Op, Step};
use super::store::volumes::CELLS;

/// Names are few, so that they are often taken.
const NAMES: u64 = 40;
const VOLUMES: usize = 12;
const LARGEST: u64 = 6;

pub struct Chooser {
    pub random: Random,
    /// Of the last step.
    pub key: Key,
}

impl Chooser {
    /// Some steps, up to a look, for a store that is as the model says.
    pub fn some(&mut self, model: &Model) -> Vec<Step> {
        let mut model = model.clone();
        let count = 4 + self.random.below(26) as usize;
        let depth = 1 + self.random.below(6) as usize;
        let mut steps = Vec::new();
        let mut recent = Vec::new();
        for _ in 0..count.min(MOST) {
            // Some are refused, most are not.
            let op = loop {
                match self.attempt(&model, &recent) {
                    Some(op) if model.answer(&op).is_ok() || self.random.below(4) == 0 => break op,
                    _ => {}
                }
            };
            let step = self.step(op, depth);
            if model.answer(&step.op).is_ok() {
                model.apply(&step.op, step.key);
            }
            recent.extend(step.op.vol());
            if step.op.makes().is_some() {
                recent.push(step.key);
            }
            if recent.len() > 6 {
                recent.remove(0);
            }
            steps.push(step);
        }
        let last = match self.random.below(24) {
            n @ 0..2 => Op::Reload { unload: n == 0 },
            _ => Op::Settle,
        };
        steps.push(self.step(last, 1));
        steps
    }

    pub fn step(&mut self, op: Op, depth: usize) -> Step {
        self.key += 1;
        let turns = match self.random.below(3) {
            0 => self.random.below(24) as u32,
            _ => 0,
        };
        let key = self.key;
        Step {
            key,
            depth,
            turns,
            op,
        }
    }

    fn name(&mut self, model: &Model) -> String {
        loop {
            let name = format!("n{}", self.random.below(NAMES));
            if model.named(&name).is_none() || self.random.below(8) == 0 {
                return name;
            }
        }
    }

    fn attempt(&mut self, model: &Model, recent: &[Key]) -> Option<Op> {
        let keys: Vec<Key> = model
            .family
            .0
            .keys()
            .filter_map(|key| key[1..].parse().ok())
            .collect();
        // (Some of the recent ones are gone.)
        let vol = match self.random.below(5) {
            0..3 => self.random.of(recent).or(self.random.of(&keys)).copied(),
            _ => self.random.of(&keys).copied(),
        };
        let name = self.name(model);
        let many = keys.len() >= VOLUMES;
        let size = 1 + self.random.below(LARGEST);
        let cell = |random: &mut Random, vol: Key| match model.volume(vol) {
            Some(volume) if random.below(16) > 0 => random.below(volume.clusters * CELLS),
            _ => random.below(LARGEST * CELLS),
        };
        Some(match self.random.below(100) {
            0..8 if !many => Op::Create {
                name,
                clusters: size,
                thin: self.random.below(3) > 0,
            },
            8..32 => {
                let vol = vol?;
                let cell = cell(&mut self.random, vol);
                Op::Write { vol, cell }
            }
            32..44 => {
                let vol = vol?;
                let cell = cell(&mut self.random, vol);
                Op::Read { vol, cell }
            }
            44..53 if !many => Op::Snapshot { vol: vol?, name },
            53..60 if !many => Op::Clone { vol: vol?, name },
            60..72 => Op::Destroy { vol: vol? },
            72..76 => Op::Inflate { vol: vol? },
            76..80 => Op::Decouple { vol: vol? },
            80..86 => Op::Resize {
                vol: vol?,
                clusters: size,
            },
            86..90 => Op::Rename { vol: vol?, name },
            90 => Op::ReadOnly { vol: vol? },
            91..95 => Op::Checksum { vol: vol? },
            95..97 => Op::StopChecksum { vol: vol? },
            97..99 => Op::Find { name },
            99 => Op::RenameStore {
                name: format!("lvs{}", self.random.below(3)),
            },
            _ => return None,
        })
    }
}
