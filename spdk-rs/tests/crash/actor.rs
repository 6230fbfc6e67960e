//! What a process does with a store: finds out what there is, and works on it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::Registered;
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::check::{Finding, Remedy, check_file};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};

use super::common::random::Random;
use super::disk::FileDisk;
use super::volumes::{CELLS, Family, Found, GARBAGE, Op};

pub const CLUSTER: u64 = 256 << 10;
/// Of each cell, only its first block is used.
const CELL: u64 = CLUSTER / CELLS;
const BLOCK: usize = 4096;
const DISK: u64 = 48 << 20;

/// What a process tells the test that has started it.
#[derive(Debug, Deserialize, Serialize)]
pub enum Line {
    /// What there is.
    Report(Report),
    /// A lane begins with an operation; has done it; has failed.
    Begins(usize, Op),
    Done(usize),
    Failed(usize, String),
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    pub clusters: u64,
    pub free: u64,
    pub volumes: Vec<Found>,
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

impl Report {
    /// The volumes of a lane.
    pub fn of_lane(&self, lane: usize) -> Vec<Found> {
        let prefix = prefix(lane);
        let volumes = self.volumes.iter();
        volumes
            .filter(|volume| volume.name.starts_with(&prefix))
            .cloned()
            .collect()
    }

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

pub fn prefix(lane: usize) -> String {
    format!("{lane}-")
}

/// A store on a disk in a file.
pub struct Place {
    pub disk: Arc<FileDisk>,
    registered: Registered,
    pub store: LvolStore,
}

impl Place {
    /// Makes the file and the store.
    pub async fn create(path: &Path) -> Result<Self> {
        std::fs::File::create(path)?.set_len(DISK)?;
        let disk = FileDisk::open(path)?;
        let registered = disk.register("disk0")?;
        let options = StoreOptions::default().cluster_size(CLUSTER as u32);
        let store = LvolStore::create("disk0", "lvs", options).await?;
        Ok(Self {
            disk,
            registered,
            store,
        })
    }

    /// Loads the store. Nothing is wrong with it before, but what a load mends, and nothing afterwards.
    pub async fn load(path: &Path) -> Result<Self> {
        Self::load_despite(path, |_| false).await
    }

    /// The same, with findings that are no wonder.
    pub async fn load_despite(path: &Path, expected: impl Fn(&Finding) -> bool) -> Result<Self> {
        let report = check_file(path)?;
        let mended = |finding: &Finding| finding.remedy() == Remedy::Load;
        let mut findings = report.findings.iter();
        ensure!(
            findings.all(|finding| mended(finding) || expected(finding)),
            "before it is loaded: {report}"
        );
        let disk = FileDisk::open(path)?;
        let registered = disk.register("disk0")?;
        let store = LvolStore::load("disk0").await?;
        let place = Self {
            disk,
            registered,
            store,
        };
        place.check(expected).await.context("loaded")?;
        Ok(place)
    }

    /// What the store has in memory, and what lies on its disk, are the same.
    pub async fn check(&self, expected: impl Fn(&Finding) -> bool) -> Result<()> {
        let report = self.store.check().await?;
        ensure!(report.findings.iter().all(expected), "{report}");
        Ok(())
    }

    /// Takes the disk away under the store.
    pub async fn leave(self) -> Result<()> {
        Ok(self.registered.unregister().await?)
    }

    pub async fn report(&self) -> Result<Report> {
        let stats = self.store.stats().await?;
        let mut volumes = Vec::new();
        for lvol in self.store.lvols().await? {
            volumes.push(found(&lvol).await.with_context(|| lvol.to_string())?);
        }
        Ok(Report {
            clusters: stats.total_clusters,
            free: stats.free_clusters,
            volumes,
        })
    }

    pub async fn perform(&self, op: &Op) -> Result<()> {
        let lvol = |name: &String| {
            let (store, name) = (self.store.clone(), name.clone());
            async move { store.lvol(&name).await }
        };
        match op {
            Op::Create { vol, clusters, thin } => {
                let provisioning = if *thin {
                    Provisioning::Thin
                } else {
                    Provisioning::Thick
                };
                let size = clusters * CLUSTER;
                self.store.create_lvol(vol, size, provisioning).await?;
            }
            Op::Write { vol, cells } => write(&lvol(vol).await?, cells).await?,
            Op::Snapshot { vol, name } => {
                lvol(vol).await?.snapshot(name).await?;
            }
            Op::Clone { vol, name } => {
                lvol(vol).await?.clone_to(name).await?;
            }
            Op::Inflate { vol } => lvol(vol).await?.inflate().await?,
            Op::Decouple { vol } => lvol(vol).await?.decouple_parent().await?,
            Op::Resize { vol, clusters } => lvol(vol).await?.resize(clusters * CLUSTER).await?,
            Op::Rename { vol, name } => {
                lvol(vol).await?.rename(name).await?;
            }
            Op::ReadOnly { vol } => lvol(vol).await?.set_read_only().await?,
            Op::Checksum { vol } => {
                lvol(vol).await?.checksum().await?;
            }
            Op::Destroy { vol } => lvol(vol).await?.destroy().await?,
        }
        Ok(())
    }
}

async fn found(lvol: &Lvol) -> Result<Found> {
    let info = lvol.info().await?;
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    let clusters = info.size / CLUSTER;
    let mut cells = Vec::new();
    let mut buf = DmaBuf::new(BLOCK)?;
    for cell in 0..clusters * CELLS {
        ((), buf) = channel.read(buf, cell * CELL).await.ok()?;
        cells.push(identify(buf.as_slice(), cell));
    }
    drop(channel);
    descriptor.close().await?;
    Ok(Found {
        name: info.name,
        clusters,
        thin: info.thin,
        read_only: info.read_only,
        parent: info.parent,
        own: lvol.allocated_clusters().await?,
        cells,
    })
}

async fn write(lvol: &Lvol, cells: &[(u64, u64)]) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let mut buf = DmaBuf::zeroed(BLOCK)?;
    for (cell, id) in cells {
        buf.as_mut_slice().copy_from_slice(&pattern(*cell, *id));
        ((), buf) = channel.write(buf, cell * CELL).await.ok()?;
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

/// Says in every word what it is and where it belongs.
fn pattern(cell: u64, id: u64) -> Vec<u8> {
    let words = BLOCK as u64 / 16;
    (0..words)
        .flat_map(|word| [id, cell << 32 | word])
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn identify(block: &[u8], cell: u64) -> u64 {
    let id = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    if id == 0 && block.iter().all(|byte| *byte == 0) {
        return 0;
    }
    if block == pattern(cell, id) { id } else { GARBAGE }
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
