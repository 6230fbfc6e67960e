//! What a store should be, and what it should answer where nothing else runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use spdk_rs::ErrorKind;

use super::ops::{Key, Op, called};
use super::store::place::Report;
use super::store::volumes::{CELLS, Family, Volume};

/// Rules that are not so, for the test that such are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A volume that is decoupled keeps its parent.
    Decouple,
    /// A checksum holds nothing.
    Holder,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model {
    /// By what [`called`] calls the volumes.
    pub family: Family,
    pub names: BTreeMap<String, String>,
    /// Volumes that SPDK takes for snapshots: those that were taken as such, that have clones, or had some
    /// since the load.
    marked: BTreeSet<String>,
    /// Those that were taken as such.
    snapshots: BTreeSet<String>,
    /// Volumes with a checksum.
    sums: BTreeSet<String>,
    pub store: String,
    clusters: u64,
    pub wrong: Option<Wrong>,
}

impl Model {
    pub fn new(report: &Report, store: &str, wrong: Option<Wrong>) -> Self {
        Self {
            family: Family::default(),
            names: BTreeMap::new(),
            marked: BTreeSet::new(),
            snapshots: BTreeSet::new(),
            sums: BTreeSet::new(),
            store: store.to_owned(),
            clusters: report.clusters,
            wrong,
        }
    }

    pub fn volume(&self, key: Key) -> Option<&Volume> {
        self.family.0.get(&called(key))
    }

    /// The volume of that name.
    pub fn named(&self, name: &str) -> Option<&String> {
        let mut names = self.names.iter();
        names.find(|(_, own)| *own == name).map(|(key, _)| key)
    }

    pub fn free(&self) -> u64 {
        let used: usize = self.family.0.values().map(|volume| volume.own.len()).sum();
        self.clusters.saturating_sub(used as u64)
    }

    /// Clusters that an operation has to get.
    pub fn needs(&self, op: &Op) -> u64 {
        let Some(volume) = op.vol().and_then(|vol| self.volume(vol)) else {
            return match op {
                Op::Create {
                    clusters,
                    thin: false,
                    ..
                } => *clusters,
                _ => 0,
            };
        };
        let lacks = |cluster: &u64| !volume.own.contains(cluster);
        match op {
            Op::Inflate { .. } => (0..volume.clusters).filter(lacks).count() as u64,
            Op::Decouple { .. } => {
                let parent = volume.parent.as_ref().map(|parent| &self.family.0[parent]);
                let own = parent.iter().flat_map(|parent| &parent.own);
                own.filter(|at| **at < volume.clusters && lacks(at)).count() as u64
            }
            Op::Resize { clusters, .. } if !volume.thin => clusters.saturating_sub(volume.clusters),
            Op::Write { cell, .. } => u64::from(lacks(&(cell / CELLS))),
            _ => 0,
        }
    }

    /// Whether it is done, or how it is refused, where nothing else runs.
    pub fn answer(&self, op: &Op) -> Result<(), ErrorKind> {
        if let Op::StopChecksum { .. } = op {
            return Err(ErrorKind::Other); // none is being computed
        }
        let volume = match op.vol() {
            Some(vol) => Some(self.volume(vol).ok_or(ErrorKind::NotFound)?),
            None => None,
        };
        let taken = |name: &str| self.named(name).is_some();
        let full = self.needs(op) > self.free();
        let refuse = |condition: bool, kind| if condition { Err(kind) } else { Ok(()) };
        if let Some(name) = op.makes() {
            refuse(taken(name), ErrorKind::AlreadyExists)?;
        }
        let Some(volume) = volume else {
            return match op {
                Op::Create { .. } => refuse(full, ErrorKind::NoSpace),
                Op::Find { name } => refuse(!taken(name), ErrorKind::NotFound),
                _ => Ok(()),
            };
        };
        let key = called(op.vol().unwrap_or_default());
        match op {
            Op::Snapshot { .. } => refuse(volume.read_only, ErrorKind::InvalidArgument),
            Op::Clone { .. } => refuse(!volume.read_only, ErrorKind::InvalidArgument),
            Op::Rename { name, .. } if self.names[&key] != *name => {
                refuse(taken(name), ErrorKind::AlreadyExists)?;
                // A name is a note like a checksum, and can be written where that can.
                let writable = !volume.read_only || self.marked.contains(&key);
                refuse(!writable, ErrorKind::PermissionDenied)
            }
            Op::Inflate { .. } | Op::Decouple { .. } => {
                let decouples = matches!(op, Op::Decouple { .. });
                let alone = decouples && volume.parent.is_none();
                refuse(alone, ErrorKind::InvalidArgument)?;
                if volume.thin {
                    refuse(volume.read_only, ErrorKind::PermissionDenied)?;
                    refuse(full, ErrorKind::NoSpace)?;
                }
                Ok(())
            }
            Op::Resize { clusters, .. } => {
                refuse(volume.read_only, ErrorKind::PermissionDenied)?;
                let parent = volume.parent.as_ref().map(|parent| &self.family.0[parent]);
                let uncovers = parent.is_some_and(|parent| *clusters < parent.clusters);
                refuse(
                    uncovers && *clusters < volume.clusters,
                    ErrorKind::InvalidArgument,
                )?;
                refuse(full, ErrorKind::NoSpace)
            }
            Op::Checksum { .. } => refuse(!self.marked.contains(&key), ErrorKind::PermissionDenied),
            Op::Destroy { .. } => {
                let clones = self.family.clones_of(&key).len();
                refuse(clones > 1, ErrorKind::PermissionDenied)
            }
            Op::Write { cell, .. } | Op::Read { cell, .. } => {
                let writes = matches!(op, Op::Write { .. });
                refuse(writes && volume.read_only, ErrorKind::Unsupported)?;
                refuse(*cell >= volume.clusters * CELLS, ErrorKind::OutOfRange)?;
                refuse(writes && full, ErrorKind::Io)
            }
            _ => Ok(()),
        }
    }

    /// It was done.
    pub fn apply(&mut self, op: &Op, key: Key) {
        let new = called(key);
        let vol = called(op.vol().unwrap_or_default());
        match op {
            Op::Rename { name, .. } => {
                self.names.insert(vol, name.clone());
                return;
            }
            Op::RenameStore { name } => self.store.clone_from(name),
            Op::Checksum { .. } => {
                self.sums.insert(vol.clone());
            }
            Op::Snapshot { .. } => {
                self.marked.insert(new.clone());
                self.snapshots.insert(new.clone());
            }
            Op::Clone { .. } => {
                self.marked.insert(vol.clone());
            }
            Op::Destroy { .. } => {
                self.names.remove(&vol);
                self.marked.remove(&vol);
                self.snapshots.remove(&vol);
                self.sums.remove(&vol);
                for clone in self.family.clones_of(&vol) {
                    self.sums.remove(&clone);
                }
            }
            Op::Decouple { .. } if self.wrong == Some(Wrong::Decouple) => return,
            _ => {}
        }
        if let Some(name) = op.makes() {
            self.names.insert(new.clone(), name.clone());
        }
        if let Some(op) = op.on_volumes(key, &new) {
            self.family.apply(&op);
        }
    }

    /// It was not done, or not yet, and got the first `count` clusters that it needs all the same.
    pub fn touch(&mut self, op: &Op, count: usize) {
        let vol = called(op.vol().unwrap_or_default());
        let Some(volume) = self.family.0.get(&vol) else {
            return;
        };
        let lacks = |cluster: &u64| !volume.own.contains(cluster);
        let wanted: Vec<_> = match (op, &volume.parent) {
            (Op::Write { cell, .. }, _) => vec![cell / CELLS],
            (Op::Decouple { .. }, Some(parent)) => {
                let parent = &self.family.0[parent].own;
                parent
                    .iter()
                    .copied()
                    .filter(|at| *at < volume.clusters)
                    .filter(lacks)
                    .collect()
            }
            _ => (0..volume.clusters).filter(lacks).collect(),
        };
        if let Some(volume) = self.family.0.get_mut(&vol) {
            let inside = |cluster: &u64| *cluster < volume.clusters;
            let wanted: Vec<_> = wanted.into_iter().filter(inside).take(count).collect();
            wanted.into_iter().for_each(|cluster| volume.touch(cluster));
        }
    }

    /// The store was loaded anew.
    pub fn load(&mut self) {
        let marked = |key: &String| self.snapshots.contains(key) || !self.family.clones_of(key).is_empty();
        self.marked = self.family.0.keys().filter(|key| marked(key)).cloned().collect();
    }

    /// Whether what was found is that. `keys` are those of the volumes, by UUID. `may_mark`:
    /// volumes that may have had a clone for a moment.
    pub fn check(&self, report: &Report, keys: &HashMap<String, Key>, may_mark: &[Key]) -> Result<()> {
        let renamed: HashMap<_, _> = report
            .volumes
            .iter()
            .map(|found| {
                let key = keys.get(&found.uuid);
                let key = key.with_context(|| format!("nobody has made {} ({})", found.name, found.uuid))?;
                Ok((found.name.as_str(), called(*key)))
            })
            .collect::<Result<_>>()?;
        let name_of = |name: &String| {
            let key = renamed.get(name.as_str()).cloned();
            key.unwrap_or_else(|| format!("{name:?}, which is not there"))
        };
        let mut volumes = report.volumes.clone();
        for found in &mut volumes {
            let key = name_of(&found.name);
            let name = std::mem::replace(&mut found.name, key.clone());
            let should = self.names.get(&key);
            ensure!(
                should.is_none_or(|should| *should == name),
                "{key}: its name is {name:?}, should be {should:?}"
            );
            found.parent = found.parent.as_ref().map(name_of);
            found.clones = found.clones.iter().map(name_of).collect();
            found.clones.sort_unstable();
        }
        self.family.check(&volumes)?;
        for found in &volumes {
            let (key, volume) = (&found.name, &self.family.0[&found.name]);
            let own: Vec<_> = volume.own.iter().copied().collect();
            let is = (found.thin, &found.own, found.sum.is_some());
            let should = (volume.thin, &own, self.sums.contains(key));
            ensure!(
                is == should,
                "{key}: thin, own clusters, has a checksum: are {is:?}, should be {should:?}"
            );
            let marked = self.marked.contains(key);
            let may_be = may_mark.iter().any(|vol| called(*vol) == *key);
            ensure!(
                found.snapshot == marked || (found.snapshot && may_be),
                "{key}: whether it is a snapshot is {}, should be {marked}",
                found.snapshot
            );
        }
        ensure!(
            report.free == self.free(),
            "{} of {} clusters are free, should be {}",
            report.free,
            report.clusters,
            self.free()
        );
        Ok(())
    }

    /// Takes what was found, and is right, for what is: it says more of the data.
    pub fn adopt(&mut self, report: &Report, keys: &HashMap<String, Key>) {
        for found in &report.volumes {
            let key = called(keys[&found.uuid]);
            if let Some(volume) = self.family.0.get_mut(&key) {
                volume.cells = found.cells.iter().map(|cell| vec![*cell]).collect();
            }
            if found.snapshot {
                self.marked.insert(key);
            }
        }
    }
}
