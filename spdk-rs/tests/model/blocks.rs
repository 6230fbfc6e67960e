//! What each block of a device may hold.
//!
//! # The rule
//!
//! Numbers of operations are times: one that began later has a higher number. A block may hold what
//! any of its *candidates* wrote.
//!
//! * A write becomes a candidate when it is submitted (not before: one that was dropped before its
//!   first poll must never be seen).
//! * It *has ended* when its future has, with or without success, or, if that was dropped, when its
//!   memory has come back to its pool, or nothing at all is in flight. Neither a flush nor a reset
//!   says so: SPDK orders neither behind I/O in flight, and a device over others may still hold it.
//! * A write that ends with success strikes the candidates that had ended before it began. A failed
//!   or dropped one strikes none: its blocks are old or new, each for itself.
//! * A read may see candidates that were not struck before it began. If all had ended by then, what
//!   it sees is what is there, and the others are struck.

use std::ops::Range;

pub const BLOCK: usize = 512;

#[derive(Debug)]
struct Candidate {
    op: u64,
    zero: bool,
    ended: Option<u64>,
    struck: Option<u64>,
}

pub struct Blocks(Vec<Vec<Candidate>>);

impl Blocks {
    /// All zeroes.
    pub fn new(count: usize) -> Self {
        let zero = || Candidate {
            op: 0,
            zero: true,
            ended: Some(0),
            struck: None,
        };
        Self((0..count).map(|_| vec![zero()]).collect())
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn range(&mut self, range: &Range<u64>) -> &mut [Vec<Candidate>] {
        &mut self.0[range.start as usize..range.end as usize]
    }

    pub fn begins(&mut self, range: &Range<u64>, op: u64, zero: bool) {
        for block in self.range(range) {
            block.push(Candidate {
                op,
                zero,
                ended: None,
                struck: None,
            });
        }
    }

    /// `oldest`: when the oldest operation in flight began.
    pub fn succeeded(&mut self, range: &Range<u64>, op: u64, now: u64, oldest: u64) {
        self.ended(range, op, now);
        for block in self.range(range) {
            for candidate in block.iter_mut().filter(|c| c.struck.is_none()) {
                if candidate.ended.is_some_and(|ended| ended < op) {
                    candidate.struck = Some(now);
                }
            }
            block.retain(|c| c.struck.is_none_or(|struck| struck >= oldest));
        }
    }

    pub fn ended(&mut self, range: &Range<u64>, op: u64, now: u64) {
        for block in self.range(range) {
            for candidate in block.iter_mut().filter(|c| c.op == op) {
                candidate.ended.get_or_insert(now);
            }
        }
    }

    pub fn all_ended(&mut self, now: u64) {
        for candidate in self.0.iter_mut().flatten() {
            candidate.ended.get_or_insert(now);
        }
    }

    /// What a read saw that began at `began`.
    pub fn check(&mut self, first: u64, data: &[u8], began: u64) {
        for (at, data) in data.chunks_exact(BLOCK).enumerate() {
            let number = first + at as u64;
            let block = &mut self.0[number as usize];
            let seen = block.iter().position(|c| {
                c.struck.is_none_or(|struck| struck > began) && holds(data, c.op, c.zero, number)
            });
            let Some(seen) = seen else {
                let head = &data[..16];
                panic!("block {number}, read at {began}, holds {head:?}, which it cannot: {block:?}");
            };
            if block.iter().all(|c| c.ended.is_some_and(|ended| ended < began)) {
                let there = block.swap_remove(seen);
                *block = vec![there];
            }
        }
    }
}

fn word(op: u64, block: u64, at: u64) -> u64 {
    match at {
        0 => op,
        1 => block,
        _ => (op.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block).wrapping_mul(at | 1),
    }
}

/// What the write `op` puts into the blocks from `first` on.
pub fn fill(data: &mut [u8], op: u64, first: u64) {
    for (n, block) in data.chunks_exact_mut(BLOCK).enumerate() {
        for (at, bytes) in block.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word(op, first + n as u64, at as u64).to_le_bytes());
        }
    }
}

pub fn holds(data: &[u8], op: u64, zero: bool, block: u64) -> bool {
    data.chunks_exact(8).enumerate().all(|(at, bytes)| {
        let expected = if zero { 0 } else { word(op, block, at as u64) };
        bytes == expected.to_le_bytes()
    })
}
