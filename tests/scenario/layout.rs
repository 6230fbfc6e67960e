//! What the host writes where: the data of every block follows from its address and its generation.
//!
//! The volume is cut into *units* of one I/O each. The [`Ledger`] knows, unit by unit, the generation that was
//! acknowledged and the one that was last sent, in a file, so that a host that comes after a crash knows them too.
//! Generation 0 is what was never written: zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The volume's size.
pub const VOLUME_SIZE: u64 = 512 << 20;
/// The lvstore's cluster size.
pub const CLUSTER: u64 = 4 << 20;
/// One I/O.
pub const UNIT: u64 = 64 << 10;
/// Units a cluster.
pub const UNITS_PER_CLUSTER: u64 = CLUSTER / UNIT;
/// Units in the volume.
pub const UNITS: u64 = VOLUME_SIZE / UNIT;
/// The part of a unit that carries its own address and generation.
pub const SECTOR: usize = 4096;
/// How many clusters the host goes on writing in while it verifies.
pub const HOT_CLUSTERS: u64 = VOLUME_SIZE / CLUSTER / 8;

/// A part of the volume that is written in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What the older snapshot holds: the first eight clusters, 32 MiB.
    Older,
    /// Four of eight clusters wholly, every other unit of a fifth, and three not at all: 288 MiB.
    Main,
}

impl Part {
    /// The part of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "older" => Some(Self::Older),
            "main" => Some(Self::Main),
            _ => None,
        }
    }

    /// Whether the unit is in this part.
    pub fn has(self, unit: u64) -> bool {
        let cluster = unit / UNITS_PER_CLUSTER;
        match self {
            Self::Older => cluster < 8,
            Self::Main => cluster % 8 < 4 || (cluster % 8 == 4 && unit % 2 == 0),
        }
    }
}

/// The number-th unit of the clusters that are written in all the time: one in eight, half of them in data and half in
/// holes.
pub fn hot_unit(number: u64) -> u64 {
    let (cluster, unit) = (
        number / UNITS_PER_CLUSTER % HOT_CLUSTERS,
        number % UNITS_PER_CLUSTER,
    );
    let cluster = cluster * 8 + if cluster % 2 == 0 { 1 } else { 6 };
    cluster * UNITS_PER_CLUSTER + unit
}

/// How many hot units there are.
pub const HOT_UNITS: u64 = HOT_CLUSTERS * UNITS_PER_CLUSTER;

/// Writes a unit's data of a generation into `data`.
pub fn fill(data: &mut [u8], unit: u64, generation: u32) {
    for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        let address = unit * UNIT / SECTOR as u64 + index as u64;
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word_of(address, generation, word as u64).to_le_bytes());
        }
    }
}

/// The generation of each sector of a unit; `None` for one that is of no generation, torn or of another address.
pub fn generations(data: &[u8], unit: u64) -> impl Iterator<Item = Option<u32>> + '_ {
    data.chunks_exact(SECTOR).enumerate().map(move |(index, sector)| {
        let address = unit * UNIT / SECTOR as u64 + index as u64;
        let words = || {
            sector
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
        };
        let generation = (words().next()? >> 32) as u32;
        let whole = words()
            .enumerate()
            .all(|(word, seen)| seen == word_of(address, generation, word as u64));
        whole.then_some(generation)
    })
}

/// One word of a sector. The first holds generation and address in the clear.
fn word_of(address: u64, generation: u32, word: u64) -> u64 {
    let seed = u64::from(generation) << 32 | address;
    match (generation, word) {
        (0, _) => 0,
        (_, 0) => seed,
        _ => (seed ^ word << 17)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29),
    }
}

/// The generations that a unit may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The last one that was acknowledged.
    pub from: u32,
    /// The last one that was sent.
    pub to: u32,
}

impl Range {
    /// Whether a sector of that generation is right.
    pub fn allows(self, generation: Option<u32>) -> bool {
        generation.is_some_and(|generation| (self.from..=self.to).contains(&generation))
    }
}

/// The two things that a ledger is kept of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The volume.
    Volume,
    /// The backup.
    Backup,
}

/// What was written, on disk and in memory.
pub struct Ledger {
    file: File,
    ranges: [Vec<Range>; 2],
}

impl Ledger {
    /// Opens the ledger, a new one with nothing written if there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.set_len(2 * UNITS * 8)?;
        let mut bytes = vec![0; (2 * UNITS * 8) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let mut ranges = bytes.chunks_exact(8).map(|entry| {
            let number = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            Range {
                from: number as u32,
                to: (number >> 32) as u32,
            }
        });
        let volume = ranges.by_ref().take(UNITS as usize).collect();
        Ok(Self {
            ranges: [volume, ranges.collect()],
            file,
        })
    }

    /// What a unit may hold.
    pub fn get(&self, image: Image, unit: u64) -> Range {
        self.ranges[image as usize][unit as usize]
    }

    /// Sets what a unit may hold from now on. It is in the file when this returns, and survives the process.
    pub fn set(&mut self, image: Image, unit: u64, range: Range) -> io::Result<()> {
        self.ranges[image as usize][unit as usize] = range;
        let entry = u64::from(range.to) << 32 | u64::from(range.from);
        self.file
            .write_all_at(&entry.to_le_bytes(), (image as u64 * UNITS + unit) * 8)
    }

    /// A snapshot is about to be taken: nothing older than this can be in it.
    pub fn snapshot_begins(&mut self) -> io::Result<()> {
        for unit in 0..UNITS {
            let from = self.get(Image::Volume, unit).from;
            self.set(Image::Backup, unit, Range { from, to: from })?;
        }
        Ok(())
    }

    /// The snapshot has been taken: nothing newer than this can be in it.
    pub fn snapshot_done(&mut self) -> io::Result<()> {
        for unit in 0..UNITS {
            let from = self.get(Image::Backup, unit).from;
            let to = self.get(Image::Volume, unit).to;
            self.set(Image::Backup, unit, Range { from, to })?;
        }
        Ok(())
    }

    /// Compares a unit that was read with what it may hold, and returns how many sectors differ. Where it could have
    /// held several generations, it must hold from now on what was read.
    pub fn verify(&mut self, image: Image, unit: u64, data: &[u8]) -> io::Result<u64> {
        let range = self.get(image, unit);
        let wrong = generations(data, unit)
            .filter(|seen| !range.allows(*seen))
            .count() as u64;
        if wrong == 0 && range.from != range.to {
            let mut seen = generations(data, unit);
            let first = seen.next().flatten();
            if let Some(generation) = first.filter(|_| seen.all(|other| other == first)) {
                self.set(
                    image,
                    unit,
                    Range {
                        from: generation,
                        to: generation,
                    },
                )?;
            }
        }
        Ok(wrong)
    }
}
