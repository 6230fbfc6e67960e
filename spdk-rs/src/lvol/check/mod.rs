//! Checks a store: reads its metadata, says what is wrong, and mends what can be mended.
//!
//! # The model
//!
//! A store's metadata are those of its blobs (volumes, and one that says what the store is called),
//! and three lists of what is used: clusters, pages of metadata, blobs. While a store is loaded the
//! lists live in memory; they are written when it is unloaded, and after a crash they are made anew
//! from the blobs (*recovery*). So a volume that is on the disk but not in the list of blobs is a
//! *zombie*: unseen until the next crash, and back after it.
//!
//! A check reads all blobs and compares them with the lists, and with each other. It writes nothing.
//!
//! * [`check_file`] reads a file or block device of the system; no SPDK needs to run, and no store may
//!   be loaded from it.
//! * [`check_bdev`] reads a block device of SPDK: as above, or as below if a store on it is loaded.
//! * [`LvolStore::check`](super::LvolStore::check) compares a loaded store with its disk, while it is
//!   used.
//!
//! # Repairs
//!
//! [`repair_file`] and [`repair_bdev`] mend a store that is not loaded, and only what they are told to.
//! See [`Repair`] for what is safe and what is not.
//!
//! ```no_run
//! # fn main() -> spdk_rs::Result<()> {
//! let report = spdk_rs::lvol::check::check_file("/var/lib/store.img")?;
//! for finding in &report.findings {
//!     println!("{finding}"); // what it is, of which volume, and what to do
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What may not be done here: write, but in `repair`; and believe what is on the disk. Whatever lies
//! there, reading it ends, and takes memory in proportion to the number of clusters.

mod bits;
mod blob;
mod claims;
mod disk;
mod findings;
mod format;
mod judge;
mod loaded;
mod repair;
mod report;
pub(super) mod rpc;
mod survey;
mod units;

use std::path::Path;

pub use findings::{BlobName, Finding, Remedy, Unit};
pub use repair::{Repair, Repaired, repair_bdev, repair_file};
pub use report::{Report, VolumeReport};
pub use units::Units;

use super::{lookup, on_metadata_thread};
use crate::Result;
use crate::bdev::{self, Bdev, Mode};
use disk::{BdevDisk, Disk, FileDisk, at_once};
use judge::Used;
use survey::Survey;

const WHAT: &str = "check lvstore";

/// Checks the store in a file, or on a block device of the system, without SPDK.
///
/// Nothing is written, and nobody may write meanwhile: a store that is loaded from it is checked with
/// [`LvolStore::check`](super::LvolStore::check).
///
/// # Errors
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound): no such file, or no store in it, and why;
/// others if it cannot be read.
pub fn check_file(path: impl AsRef<Path>) -> Result<Report> {
    let disk = FileDisk::open(WHAT, path.as_ref(), false)?;
    Ok(at_once(AtRest::read(&disk))?.report)
}

/// Checks the store on a block device of SPDK, which is opened for reading only. If the store is
/// loaded, as by [`LvolStore::check`](super::LvolStore::check).
///
/// # Errors
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound): no such device, or no store on it, and why;
/// others if it cannot be read.
pub async fn check_bdev(bdev: &str) -> Result<Report> {
    let bdev = bdev.to_owned();
    on_metadata_thread(move || async move {
        // It may be about to be loaded.
        bdev::wait_for_examine().await?;
        let device = Bdev::find(&bdev)?;
        if let Ok(store) = lookup::find_store_on(WHAT, device.name()) {
            return lookup::store_identity(store).check().await;
        }
        let disk = BdevDisk::open(&device, Mode::ReadOnly)?;
        let read = AtRest::read(&disk).await;
        disk.close().await?;
        Ok(read?.report)
    })
    .await
}

/// What was read of a store that is not loaded.
struct AtRest {
    survey: Survey,
    report: Report,
}

impl AtRest {
    async fn read<D: Disk>(disk: &D) -> Result<Self> {
        let superblock = survey::read_super(disk).await?;
        let mut broken = Vec::new();
        let mut masks = None;
        if superblock.clean && superblock.used_blobs.is_some() {
            match survey::read_masks(disk, &superblock).await? {
                Ok(read) => masks = Some(read),
                Err(names) => broken = names,
            }
        }
        let known = masks.as_ref().map(|masks| &masks.blobs);
        let survey = survey::survey(disk, superblock, known).await?;
        let used = masks.as_ref().map(|masks| Used {
            certainly: masks,
            perhaps: masks,
        });
        let mut findings = judge::judge(&survey, used);
        findings.extend(broken.into_iter().map(|of| Finding::BrokenMask { of }));
        let report = Report::new(disk.name(), &survey, findings);
        Ok(Self { survey, report })
    }
}

#[cfg(test)]
mod tests;
