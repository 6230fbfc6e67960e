//! A store on a disk in a file: carries operations out, and finds out what there is.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::Registered;
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::check::{Finding, Remedy, check_file};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};

use super::disk::FileDisk;
use super::volumes::{CELLS, Found, Op};

/// Of each cell, only its first block is used.
const BLOCK: usize = 4096;
/// In what no test wrote; numbers of what tests write are smaller.
const STRANGE: u64 = 1 << 63;

/// How large things are, in bytes, and whether the disk has a volatile write cache.
#[derive(Clone, Copy)]
pub struct Shape {
    pub cluster: u64,
    pub disk: u64,
    pub write_cache: bool,
}

pub struct Place {
    pub shape: Shape,
    pub disk: Arc<FileDisk>,
    registered: Registered,
    pub store: LvolStore,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    pub clusters: u64,
    pub free: u64,
    pub volumes: Vec<Found>,
}

impl Report {
    /// Whether no cluster belongs to nobody, or to two. Says how many belong to nobody.
    pub fn lost_clusters(&self) -> Result<u64> {
        let used: usize = self.volumes.iter().map(|volume| volume.own.len()).sum();
        let (free, used) = (self.free, used as u64);
        ensure!(
            free + used <= self.clusters,
            "{free} of {} clusters are free, and volumes have {used}: some are there twice",
            self.clusters
        );
        Ok(self.clusters - free - used)
    }

    pub fn check_space(&self) -> Result<()> {
        let lost = self.lost_clusters()?;
        ensure!(lost == 0, "{lost} clusters are lost");
        Ok(())
    }
}

impl Place {
    /// Makes the file and the store.
    pub async fn create(path: &Path, shape: Shape) -> Result<Self> {
        std::fs::File::create(path)?.set_len(shape.disk)?;
        let disk = FileDisk::open(path, shape.write_cache)?;
        let registered = disk.register("disk0")?;
        let options = StoreOptions::default().cluster_size(shape.cluster as u32);
        let store = LvolStore::create("disk0", "lvs", options).await?;
        Ok(Self {
            shape,
            disk,
            registered,
            store,
        })
    }

    /// Loads the store. Nothing is wrong with it before, but what a load mends, and nothing afterwards.
    pub async fn load(path: &Path, shape: Shape) -> Result<Self> {
        Self::load_despite(path, shape, |_| false).await
    }

    /// The same, with findings that are no wonder.
    pub async fn load_despite(
        path: &Path,
        shape: Shape,
        expected: impl Fn(&Finding) -> bool,
    ) -> Result<Self> {
        let report = check_file(path)?;
        let mended = |finding: &Finding| finding.remedy() == Remedy::Load;
        let mut findings = report.findings.iter();
        ensure!(
            findings.all(|finding| mended(finding) || expected(finding)),
            "before it is loaded: {report}"
        );
        let disk = FileDisk::open(path, shape.write_cache)?;
        let registered = disk.register("disk0")?;
        let store = match LvolStore::load("disk0").await {
            Ok(store) => store,
            Err(error) => {
                registered.unregister().await?;
                return Err(error.into());
            }
        };
        let place = Self {
            shape,
            disk,
            registered,
            store,
        };
        if let Err(error) = place.check(expected).await.context("loaded") {
            place.leave().await?;
            return Err(error);
        }
        Ok(place)
    }

    /// What the store has in memory, and what lies on its disk, are the same.
    pub async fn check(&self, expected: impl Fn(&Finding) -> bool) -> Result<()> {
        let report = self.store.check().await?;
        ensure!(report.findings.iter().all(expected), "{report}");
        Ok(())
    }

    /// Takes the disk away under the store. It keeps its power, if it has it yet.
    pub async fn leave(self) -> Result<()> {
        self.registered.unregister().await?;
        Ok(self.disk.sync()?)
    }

    pub async fn report(&self) -> Result<Report> {
        report(&self.store, self.shape).await
    }

    /// Carries out an operation on the volume of that name.
    pub async fn perform(&self, op: &Op) -> Result<()> {
        let origin = match op {
            Op::Create { .. } => None,
            _ => Some(self.store.lvol(op.vol()).await?),
        };
        perform(&self.store, origin, op, self.shape).await?;
        Ok(())
    }

    /// Flushes the volume of that name.
    pub async fn flush(&self, vol: &str) -> Result<()> {
        let lvol = self.store.lvol(vol).await?;
        let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadWrite)?;
        let channel = descriptor.channel()?;
        let flushed = channel.flush().await;
        drop(channel);
        descriptor.close().await?;
        Ok(flushed?)
    }
}

/// What there is in a store.
pub async fn report(store: &LvolStore, shape: Shape) -> Result<Report> {
    let stats = store.stats().await?;
    let mut volumes = Vec::new();
    for lvol in store.lvols().await? {
        volumes.push(found(&lvol, shape).await.with_context(|| lvol.to_string())?);
    }
    Ok(Report {
        clusters: stats.total_clusters,
        free: stats.free_clusters,
        volumes,
    })
}

async fn found(lvol: &Lvol, shape: Shape) -> Result<Found> {
    let info = lvol.info().await?;
    let clusters = info.size / shape.cluster;
    let bdev = Bdev::find(&lvol.to_string())?;
    ensure!(bdev.uuid() == lvol.uuid(), "its name leads to another");
    let descriptor = bdev.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    let buf = DmaBuf::new(info.size as usize)?;
    let ((), data) = channel.read(buf, 0).await.ok()?;
    drop(channel);
    descriptor.close().await?;

    let data = data.as_slice();
    let cells = data.chunks_exact((shape.cluster / CELLS) as usize);
    let own = lvol.allocated_clusters().await?;
    let sum = lvol.stored_checksum().await?.map(|stored| {
        let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
        for cluster in &own {
            let at = (cluster * shape.cluster) as usize;
            digest.update(&data[at..at + shape.cluster as usize]);
        }
        (stored, digest.finalize())
    });
    let mut clones = info.clones;
    clones.sort_unstable();
    Ok(Found {
        name: info.name,
        clusters,
        thin: info.thin,
        read_only: info.read_only,
        parent: info.parent,
        clones,
        snapshot: info.snapshot,
        own,
        cells: (0..)
            .zip(cells)
            .map(|(at, cell)| identify(&cell[..BLOCK], at))
            .collect(),
        sum,
        uuid: lvol.uuid().to_string(),
    })
}

/// Carries out an operation: on `origin`, whatever its name is by now. Gives what was made.
pub async fn perform(
    store: &LvolStore,
    origin: Option<Lvol>,
    op: &Op,
    shape: Shape,
) -> spdk_rs::Result<Option<Lvol>> {
    if let Op::Create { vol, clusters, thin } = op {
        let provisioning = if *thin {
            Provisioning::Thin
        } else {
            Provisioning::Thick
        };
        let size = clusters * shape.cluster;
        return store.create_lvol(vol, size, provisioning).await.map(Some);
    }
    let lvol = origin.expect("all others are on a volume");
    match op {
        Op::Snapshot { name, .. } => return lvol.snapshot(name).await.map(Some),
        Op::Clone { name, .. } => return lvol.clone_to(name).await.map(Some),
        Op::Create { .. } => {}
        Op::Write { cells, .. } => write(&lvol, cells, shape).await?,
        Op::Inflate { .. } => lvol.inflate().await?,
        Op::Decouple { .. } => lvol.decouple_parent().await?,
        Op::Resize { clusters, .. } => lvol.resize(clusters * shape.cluster).await?,
        Op::Rename { name, .. } => drop(lvol.rename(name).await?),
        Op::ReadOnly { .. } => lvol.set_read_only().await?,
        Op::Checksum { .. } => drop(lvol.checksum().await?),
        Op::Destroy { .. } => lvol.destroy().await?,
    }
    Ok(None)
}

async fn write(lvol: &Lvol, cells: &[(u64, u64)], shape: Shape) -> spdk_rs::Result<()> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let mut buf = DmaBuf::zeroed(BLOCK)?;
    let mut result = Ok(());
    for (cell, id) in cells {
        buf.as_mut_slice().copy_from_slice(&pattern(*cell, *id));
        let at = cell * (shape.cluster / CELLS);
        (result, buf) = channel.write(buf, at).await.into_parts();
        if result.is_err() {
            break;
        }
    }
    drop(channel);
    descriptor.close().await?;
    result
}

/// What a cell holds.
pub async fn read(lvol: &Lvol, cell: u64, shape: Shape) -> spdk_rs::Result<u64> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    let at = cell * (shape.cluster / CELLS);
    let (result, buf) = channel.read(DmaBuf::new(BLOCK)?, at).await.into_parts();
    drop(channel);
    descriptor.close().await?;
    result.map(|()| identify(buf.as_slice(), cell))
}

/// Says in every word what it is and where it belongs.
fn pattern(cell: u64, id: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (word, bytes) in (0..).zip(block.chunks_exact_mut(16)) {
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..].copy_from_slice(&(cell << 32 | word).to_le_bytes());
    }
    block
}

/// The number of what a cell holds.
fn identify(block: &[u8], cell: u64) -> u64 {
    if block == [0; BLOCK] {
        return 0;
    }
    let id = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    if block == pattern(cell, id) {
        return id;
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    digest.update(block);
    digest.finalize() | STRANGE
}
