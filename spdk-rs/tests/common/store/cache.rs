//! What a disk with a volatile write cache has not put into its file yet. A flush puts it there; a power
//! cut does so with as much of it as chance will have, block by block, in any order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::common::random::Random;

const BLOCK: usize = super::disk::BLOCK as usize;

/// What was written to a block, and when.
struct Version {
    number: u64,
    data: Box<[u8]>,
}

#[derive(Default)]
pub struct Cache {
    /// Of each block all that was written since it was flushed, the oldest first.
    blocks: BTreeMap<u64, Vec<Version>>,
    writes: u64,
}

impl Cache {
    /// Whole blocks.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.writes += 1;
        for (block, data) in (offset / BLOCK as u64..).zip(data.chunks_exact(BLOCK)) {
            self.blocks.entry(block).or_default().push(Version {
                number: self.writes,
                data: data.into(),
            });
        }
    }

    /// Puts what is newer than the file's content into what was read from there.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (block, data) in (offset / BLOCK as u64..).zip(data.chunks_exact_mut(BLOCK)) {
            if let Some(newest) = self.blocks.get(&block).and_then(|versions| versions.last()) {
                data.copy_from_slice(&newest.data);
            }
        }
    }

    /// What a flush that begins now has to do: all that was written until now.
    pub fn now(&self) -> u64 {
        self.writes
    }

    /// Does it, and no more.
    pub fn flush(&mut self, file: &File, until: u64) -> io::Result<()> {
        for (block, versions) in &mut self.blocks {
            let old = versions.partition_point(|version| version.number <= until);
            if let Some(newest) = versions.drain(..old).next_back() {
                file.write_all_at(&newest.data, block * BLOCK as u64)?;
            }
        }
        self.blocks.retain(|_, versions| !versions.is_empty());
        Ok(())
    }

    /// The power goes: of each block the file has what was flushed last, or anything that was written
    /// since then. `kept` of 4 blocks, about, have something newer than what was flushed.
    pub fn cut(&mut self, file: &File, random: &mut Random, kept: u64) -> io::Result<()> {
        for (block, versions) in std::mem::take(&mut self.blocks) {
            if random.below(4) < kept {
                let newest = versions.len() as u64 - 1;
                // The newest one as often as all others.
                let at = if random.below(2) == 0 {
                    newest
                } else {
                    random.below(newest + 1)
                };
                file.write_all_at(&versions[at as usize].data, block * BLOCK as u64)?;
            }
        }
        Ok(())
    }
}
