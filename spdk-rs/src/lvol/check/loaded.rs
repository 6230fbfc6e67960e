//! A loaded store: what it has in memory, against its disk.
//!
//! Nothing is stopped for it, so one reading may see half of what is being done. A cluster that is just
//! being allocated, for one, is used and nobody's until the metadata are written. Therefore what is
//! used is asked before and after the disk is read, and only what several readings have found, with
//! pauses between them, is reported.

use std::collections::HashSet;
use std::time::Duration;

use super::WHAT;
use super::bits::Bits;
use super::disk::{BdevDisk, Disk};
use super::findings::{BlobName, Finding};
use super::format::root_of;
use super::judge::{self, Used};
use super::report::Report;
use super::survey::{self, Masks, Survey};
use crate::bdev::{Bdev, Mode};
use crate::lvol::{Lvol, LvolStore, lookup, on_metadata_thread};
use crate::reactor::sleep;
use crate::{Error, ErrorKind, Result};

/// Between two readings: longer than an allocation takes, but on very slow devices.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(400),
];

impl LvolStore {
    /// Compares the loaded store with its disk; see [`check`](super). It may be used meanwhile, and
    /// nothing is written.
    ///
    /// What was found is read up to four times, and only what stays is reported. While operations are
    /// under way the report may be [unsettled](Report::unsettled); so may, on a device on which one
    /// takes longer than half a second, be clusters that are just being allocated.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it is not loaded any more; [`ErrorKind::Unsupported`]: the linked SPDK
    /// lacks this project's patches; others if the disk cannot be read.
    pub async fn check(&self) -> Result<Report> {
        let store = self.clone();
        on_metadata_thread(move || async move {
            let info = lookup::store_info(store.raw(WHAT)?);
            // SAFETY: the base bdev's name is a C string that lives as long as it.
            let base = unsafe { lookup::text_of(info.base_bdev) }.unwrap_or_default();
            let disk = BdevDisk::open(&Bdev::find(&base)?, Mode::ReadOnly)?;
            let report = settle(&store, &disk).await;
            disk.close().await?;
            report
        })
        .await
    }
}

async fn settle(store: &LvolStore, disk: &BdevDisk) -> Result<Report> {
    let mut reading = Reading::take(store, disk).await?;
    let mut unsettled = reading.busy;
    for pause in PAUSES {
        if reading.findings.is_empty() {
            break;
        }
        sleep(pause).await;
        let before = std::mem::take(&mut reading.findings);
        reading = Reading::take(store, disk).await?;
        let found = std::mem::take(&mut reading.findings);
        let both = before.into_iter().filter_map(|finding| finding.also_in(&found));
        reading.findings = both.collect();
        unsettled &= reading.busy;
    }
    let findings = reading.findings;
    Ok(Report {
        loaded: true,
        unsettled: unsettled && !findings.is_empty(),
        ..Report::new(disk.name(), &reading.survey, findings)
    })
}

/// What was read at one time.
struct Reading {
    survey: Survey,
    findings: Vec<Finding>,
    /// Operations were under way before or after it.
    busy: bool,
}

impl Reading {
    async fn take(store: &LvolStore, disk: &BdevDisk) -> Result<Self> {
        let before = Memory::read(store)?;
        let superblock = survey::read_super(disk).await?;
        if before.masks.clusters.len() != superblock.clusters {
            let why = "the super block on its disk is another one than it was loaded with";
            return Err(Error::new(ErrorKind::Io, WHAT, store.name(), why));
        }
        let survey = survey::survey(disk, superblock, Some(&before.masks.blobs)).await?;
        let after = Memory::read(store)?;
        let used = Used {
            certainly: &before.masks.and(&after.masks),
            perhaps: &before.masks.or(&after.masks),
        };
        let mut findings = judge::judge(&survey, Some(used));
        after.compare(&survey, &mut findings);
        Ok(Self {
            survey,
            findings,
            busy: before.busy || after.busy,
        })
    }
}

/// What a loaded store has in memory.
struct Memory {
    masks: Masks,
    free_clusters: u64,
    /// The blobs of its volumes.
    listed: Vec<(u64, Lvol)>,
    busy: bool,
}

impl Memory {
    /// On the metadata thread only.
    fn read(store: &LvolStore) -> Result<Self> {
        let lvs = store.raw(WHAT)?;
        let used = |list| {
            // SAFETY: the store was found in this very step; with no room for bits it only counts.
            let len = unsafe { spdk_sys::shim_lvs_get_used(lvs.as_ptr(), list, std::ptr::null_mut(), 0) };
            let mut bytes = vec![0; (len as usize).div_ceil(8)];
            // SAFETY: as above, with as much room as is said.
            unsafe { spdk_sys::shim_lvs_get_used(lvs.as_ptr(), list, bytes.as_mut_ptr(), bytes.len()) };
            Bits::from_bytes(&bytes, u64::from(len)).filter(|_| len > 0)
        };
        let masks = Masks::of([
            used(spdk_sys::SHIM_BS_USED_PAGES),
            used(spdk_sys::SHIM_BS_USED_CLUSTERS),
            used(spdk_sys::SHIM_BS_USED_BLOBS),
        ]);
        let masks = masks.ok_or_else(|| {
            let why = "a loaded store is checked with this project's patches in SPDK only";
            Error::new(ErrorKind::Unsupported, WHAT, store.name(), why)
        })?;
        Ok(Self {
            masks,
            free_clusters: lookup::store_info(lvs).free_clusters,
            listed: lookup::list_blobs(lvs),
            // SAFETY: the store was found in this very step.
            busy: unsafe { spdk_sys::shim_lvs_is_busy(lvs.as_ptr()) },
        })
    }

    fn compare(&self, survey: &Survey, findings: &mut Vec<Finding>) {
        let counted = self.masks.clusters.len() - self.masks.clusters.ones().count() as u64;
        if counted != self.free_clusters {
            let said = self.free_clusters;
            findings.push(Finding::FreeCount { said, counted });
        }
        let listed: HashSet<u64> = self.listed.iter().map(|(blob, _)| *blob).collect();
        let known = survey.blobs.iter().filter(|blob| !blob.hidden);
        let unlisted =
            known.filter(|blob| !listed.contains(&blob.id) && survey.superblock.super_blob != Some(blob.id));
        findings.extend(unlisted.map(|blob| Finding::Unlisted {
            blob: judge::name_of(blob),
        }));
        let gone = self.listed.iter();
        let gone = gone.filter(|(blob, _)| !self.masks.blobs.get(u64::from(root_of(*blob))));
        findings.extend(gone.map(|(blob, lvol)| Finding::Broken {
            blob: BlobName {
                blob: *blob,
                name: Some(lvol.name().to_owned()),
                uuid: Some(lvol.uuid()),
            },
            page: root_of(*blob),
            why: "the store does not have it any more, though it lists it".into(),
        }));
    }
}
