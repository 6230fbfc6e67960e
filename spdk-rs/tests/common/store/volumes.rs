//! What the volumes of a store should be: the model, and the operations on it.
//!
//! Data are looked at in *cells*, a few in each cluster: what was written last to a cell has a number,
//! and so has what no test ever wrote.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Cells in a cluster.
pub const CELLS: u64 = 4;

/// An operation on volumes, by their names.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Op {
    Create {
        vol: String,
        clusters: u64,
        thin: bool,
    },
    /// Cells, and what is written to them.
    Write {
        vol: String,
        cells: Vec<(u64, u64)>,
    },
    Snapshot {
        vol: String,
        name: String,
    },
    Clone {
        vol: String,
        name: String,
    },
    Inflate {
        vol: String,
    },
    Decouple {
        vol: String,
    },
    Resize {
        vol: String,
        clusters: u64,
    },
    Rename {
        vol: String,
        name: String,
    },
    ReadOnly {
        vol: String,
    },
    Checksum {
        vol: String,
    },
    Destroy {
        vol: String,
    },
}

impl Op {
    /// The volume that it is on; with [`Op::Create`], the one that it makes.
    pub fn vol(&self) -> &String {
        match self {
            Self::Create { vol, .. }
            | Self::Write { vol, .. }
            | Self::Snapshot { vol, .. }
            | Self::Clone { vol, .. }
            | Self::Inflate { vol }
            | Self::Decouple { vol }
            | Self::Resize { vol, .. }
            | Self::Rename { vol, .. }
            | Self::ReadOnly { vol }
            | Self::Checksum { vol }
            | Self::Destroy { vol } => vol,
        }
    }
}

/// A volume, as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Volume {
    pub clusters: u64,
    pub thin: bool,
    pub read_only: bool,
    pub parent: Option<String>,
    /// Clusters that are its own.
    pub own: BTreeSet<u64>,
    /// What each cell may hold; anything if the list is empty.
    pub cells: Vec<Vec<u64>>,
}

/// A volume, as it was found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Found {
    pub name: String,
    pub clusters: u64,
    pub thin: bool,
    pub read_only: bool,
    pub parent: Option<String>,
    pub clones: Vec<String>,
    /// SPDK takes it for a snapshot.
    pub snapshot: bool,
    pub own: Vec<u64>,
    pub cells: Vec<u64>,
    /// The checksum stored with it, and what it should be.
    pub sum: Option<(u64, u64)>,
    pub uuid: String,
}

/// Volumes that have to do with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Family(pub BTreeMap<String, Volume>);

impl Family {
    /// Takes what was found for what is.
    pub fn of(found: &[Found]) -> Self {
        let volume = |found: &Found| Volume {
            clusters: found.clusters,
            thin: found.thin,
            read_only: found.read_only,
            parent: found.parent.clone(),
            own: found.own.iter().copied().collect(),
            cells: found.cells.iter().map(|id| vec![*id]).collect(),
        };
        let volumes = found.iter().map(|found| (found.name.clone(), volume(found)));
        Self(volumes.collect())
    }

    pub fn clones_of(&self, name: &str) -> Vec<String> {
        let is_clone = |volume: &Volume| volume.parent.as_deref() == Some(name);
        let clones = self.0.iter().filter(|(_, volume)| is_clone(volume));
        clones.map(|(name, _)| name.clone()).collect()
    }

    pub fn can_write(&self, name: &str) -> bool {
        !self.0[name].read_only
    }

    fn get(&mut self, name: &str) -> &mut Volume {
        self.0
            .get_mut(name)
            .expect("operations are on volumes that are there")
    }

    fn take(&mut self, name: &str) -> Volume {
        self.0
            .remove(name)
            .expect("operations are on volumes that are there")
    }

    /// The operation was done.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { vol, clusters, thin } => {
                let volume = Volume::new(*clusters, *thin);
                self.0.insert(vol.clone(), volume);
            }
            Op::Write { vol, cells } => {
                let volume = self.get(vol);
                for (cell, id) in cells {
                    volume.touch(cell / CELLS);
                    volume.cells[*cell as usize] = vec![*id];
                }
            }
            Op::Snapshot { vol, name } => {
                let volume = self.get(vol);
                let mut snapshot = volume.clone();
                snapshot.read_only = true;
                volume.thin = true;
                volume.own.clear();
                volume.parent = Some(name.clone());
                self.0.insert(name.clone(), snapshot);
            }
            Op::Clone { vol, name } => {
                let mut clone = self.get(vol).clone();
                clone.read_only = false;
                clone.thin = true;
                clone.own.clear();
                clone.parent = Some(vol.clone());
                self.0.insert(name.clone(), clone);
            }
            Op::Inflate { vol } => {
                let volume = self.get(vol);
                for cluster in 0..volume.clusters {
                    volume.touch(cluster);
                }
                volume.thin = false;
                volume.parent = None;
            }
            Op::Decouple { vol } => {
                let parent = self.0[vol].parent.clone().expect("it is a clone");
                let Volume { parent, own, .. } = self.0[&parent].clone();
                let volume = self.get(vol);
                let clusters = volume.clusters;
                volume
                    .own
                    .extend(own.into_iter().filter(|cluster| *cluster < clusters));
                volume.parent = parent;
            }
            Op::Resize { vol, clusters } => self.get(vol).resize(*clusters),
            Op::Rename { vol, name } => {
                let volume = self.take(vol);
                for clone in self.clones_of(vol) {
                    self.get(&clone).parent = Some(name.clone());
                }
                self.0.insert(name.clone(), volume);
            }
            Op::ReadOnly { vol } => self.get(vol).read_only = true,
            Op::Checksum { .. } => {}
            Op::Destroy { vol } => {
                let volume = self.take(vol);
                for clone in self.clones_of(vol) {
                    let clone = self.get(&clone);
                    let clusters = clone.clusters;
                    clone.parent.clone_from(&volume.parent);
                    clone
                        .own
                        .extend(volume.own.iter().filter(|cluster| **cluster < clusters));
                }
            }
        }
    }

    /// What there may be when nobody has heard whether the operation was done.
    pub fn unheard(&self, op: &Op) -> Vec<Self> {
        let before = self.clone();
        let mut after = self.clone();
        after.apply(op);
        let (Op::Write { vol, .. } | Op::Inflate { vol }) = op else {
            return vec![before, after];
        };
        // A write is no transaction: each cell is old or new. And clusters that were got on the way
        // stay, whatever is in them where nothing lay beneath.
        let mut between = before.clone();
        let (old, new) = (&before.0[vol], &after.0[vol]);
        for (at, cell) in between.get(vol).cells.iter_mut().enumerate() {
            let cluster = at as u64 / CELLS;
            let fresh = old.parent.is_none() && !old.own.contains(&cluster) && new.own.contains(&cluster);
            let (old, new) = (&old.cells[at], &new.cells[at]);
            *cell = match fresh || old.is_empty() || new.is_empty() {
                true => Vec::new(),
                false => [&old[..], new].concat(),
            };
        }
        vec![between, after]
    }

    /// Whether what was found is that.
    pub fn check(&self, found: &[Found]) -> Result<()> {
        let names: Vec<_> = found.iter().map(|volume| volume.name.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        ensure!(sorted.len() == names.len(), "a name is there twice: {names:?}");
        let expected: Vec<_> = self.0.keys().collect();
        ensure!(
            sorted == expected,
            "volumes are {sorted:?}, should be {expected:?}"
        );
        for found in found {
            self.0[&found.name].check(found)?;
            let (is, should) = (&found.clones, self.clones_of(&found.name));
            ensure!(
                *is == should,
                "{}: clones are {is:?}, should be {should:?}",
                found.name
            );
        }
        Ok(())
    }
}

impl Volume {
    fn new(clusters: u64, thin: bool) -> Self {
        let mut volume = Self {
            clusters: 0,
            thin,
            read_only: false,
            parent: None,
            own: BTreeSet::new(),
            cells: Vec::new(),
        };
        volume.resize(clusters);
        volume
    }

    /// A cluster becomes its own, if it was not. What lies beneath is copied; where nothing does,
    /// SPDK leaves in it what was there before.
    pub fn touch(&mut self, cluster: u64) {
        if self.own.insert(cluster) && self.parent.is_none() {
            let first = (cluster * CELLS) as usize;
            self.cells[first..first + CELLS as usize].fill(Vec::new());
        }
    }

    fn resize(&mut self, clusters: u64) {
        let nothing = if self.thin { vec![0] } else { Vec::new() };
        self.cells.resize((clusters * CELLS) as usize, nothing);
        if !self.thin {
            self.own.extend(self.clusters..clusters);
        }
        self.own.retain(|cluster| *cluster < clusters);
        self.clusters = clusters;
    }

    fn check(&self, found: &Found) -> Result<()> {
        let name = &found.name;
        let is = (found.clusters, found.read_only, &found.parent);
        let should = (self.clusters, self.read_only, &self.parent);
        ensure!(
            is == should,
            "{name}: clusters, read-only, parent are {is:?}, should be {should:?}"
        );
        for (at, (is, may)) in found.cells.iter().zip(&self.cells).enumerate() {
            if !may.is_empty() && !may.contains(is) {
                bail!("{name}: cell {at} holds {is:#x}, should be one of {may:x?}");
            }
        }
        if let Some((stored, should)) = found.sum {
            ensure!(
                stored == should,
                "{name}: the stored checksum is {stored:#x}, should be {should:#x}"
            );
        }
        Ok(())
    }
}
