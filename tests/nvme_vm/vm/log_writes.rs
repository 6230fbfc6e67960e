//! What QEMU's `blklogwrites` has noted of a disk: each change, in the order in which the disk had made them. (The format
//! is that of Linux's dm-log-writes.)

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Bytes of a sector, of the disk and of the log.
const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// A change.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Where, in bytes.
    at: u64,
    len: u64,
    /// Where in the log its data are; without, what was there is gone and reads as zeroes.
    data: Option<u64>,
}

impl Change {
    /// Where it is, in bytes.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether something was written; otherwise the disk was told that nobody needs what is there.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }
}

/// A log, which may be growing.
pub struct LogWrites {
    path: PathBuf,
    /// QEMU's name for it.
    node: String,
}

impl LogWrites {
    /// An empty log.
    pub fn create(node: &str, path: PathBuf) -> Result<Self> {
        File::create(&path)?;
        let node = node.to_owned();
        Ok(Self { path, node })
    }

    /// QEMU's arguments for the log itself.
    pub fn arguments(&self) -> [String; 2] {
        let options = format!(
            "driver=file,filename={},node-name={}",
            self.path.display(),
            self.node
        );
        ["-blockdev".to_owned(), options]
    }

    /// The filter that writes it, for [`Drive::filters`](super::Drive::filters).
    pub fn filter(&self) -> String {
        format!("driver=blklogwrites,log={},log-sector-size={SECTOR}", self.node)
    }

    /// All changes up to now. (What has been done is in it: the log is written before the disk answers.)
    pub fn changes(&self) -> Result<Vec<Change>> {
        let file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        let mut changes = Vec::new();
        let mut place = SECTOR; // behind the header, which is written at the end
        while place + SECTOR <= end {
            let mut entry = [0; 32];
            file.read_exact_at(&mut entry, place)?;
            let word = |n: usize| u64::from_le_bytes(entry[n * 8..][..8].try_into().expect("eight bytes"));
            let (at, len, flags) = (word(0) * SECTOR, word(1) * SECTOR, word(2));
            ensure!(
                flags & !(FLUSH | 2 | DISCARD) == 0,
                "no entry of the log at {place}: {entry:x?}"
            );
            place += SECTOR;
            let discarded = flags & DISCARD != 0;
            if len > 0 {
                let data = (!discarded).then_some(place);
                changes.push(Change { at, len, data });
            }
            if !discarded {
                place += len;
            }
        }
        Ok(changes)
    }

    /// Whether QEMU has ended the log with its header, and how many entries that counts.
    pub fn header(&self) -> Result<u64> {
        let mut header = [0; 24];
        File::open(&self.path)?.read_exact_at(&mut header, 0)?;
        let word = |n: usize| u64::from_le_bytes(header[n * 8..][..8].try_into().expect("eight bytes"));
        ensure!(word(0) == MAGIC, "{} is no log of writes", self.path.display());
        Ok(word(2))
    }

    /// Makes changes once more, on an image.
    pub fn replay(&self, changes: &[Change], image: &Path) -> Result<()> {
        let log = File::open(&self.path)?;
        let image = File::options().write(true).open(image)?;
        for change in changes {
            let mut data = vec![0; usize::try_from(change.len)?];
            if let Some(place) = change.data {
                log.read_exact_at(&mut data, place).context("the log")?;
            }
            image.write_all_at(&data, change.at)?;
        }
        Ok(())
    }
}
