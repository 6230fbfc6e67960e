//! What can be wrong with a store.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::units::Units;

/// A blob, and the names that it has as a logical volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlobName {
    /// Its id in the blobstore.
    pub blob: u64,
    /// Its name as a logical volume.
    pub name: Option<String>,
    /// Its UUID as a logical volume.
    pub uuid: Option<Uuid>,
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "volume {name} (blob {:#x})", self.blob),
            None => write!(f, "blob {:#x}", self.blob),
        }
    }
}

/// What a store is divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// For data.
    Clusters,
    /// For the blobs' metadata.
    Pages,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clusters => "clusters",
            Self::Pages => "metadata pages",
        })
    }
}

/// Something that is wrong with a store. [`Display`](fmt::Display) says what it is, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// A zombie: it lies on the disk, and the store does not have it. The next recovery after a
    /// crash brings it back.
    Hidden {
        /// Which one.
        blob: BlobName,
        /// Clusters that nobody else has.
        clusters: u64,
        /// Clusters and pages that belong to others by now: if it came back, they would share them.
        conflicts: u64,
    },
    /// A zombie of another kind: the store has it, and it is no logical volume.
    Nameless {
        /// Which one.
        blob: BlobName,
        /// What it lacks: `name`, without which SPDK loads none of the store's volumes, or `uuid`.
        lacks: &'static str,
    },
    /// The store's list of volumes does not show it.
    Unlisted {
        /// Which one.
        blob: BlobName,
    },
    /// More than one volume has this name.
    DuplicateName {
        /// The name.
        name: String,
        /// Who has it.
        blobs: Vec<BlobName>,
    },
    /// More than one volume has this UUID.
    DuplicateUuid {
        /// The UUID.
        uuid: Uuid,
        /// Who has it.
        blobs: Vec<BlobName>,
    },
    /// A snapshot that was being deleted, or whose deletion could not be called off on disk.
    InterruptedDelete {
        /// Which one.
        blob: BlobName,
        /// The clone that takes over its clusters.
        clone: u64,
        /// The clone has: the next load removes the snapshot. Otherwise it keeps it.
        taken_over: bool,
    },
    /// A snapshot that was being taken.
    InterruptedSnapshot {
        /// The snapshot.
        blob: BlobName,
        /// Of this blob.
        of: u64,
        /// The volume lies on it: the next load keeps it. Otherwise it removes it.
        taken: bool,
    },
    /// Said to be used, and nobody has them.
    Leaked {
        /// What they are.
        unit: Unit,
        /// Which ones.
        units: Units,
    },
    /// Somebody has them, and they are said to be free: they may be given to somebody else. (A volume
    /// whose clusters are said to be free is left out when the store is loaded.)
    UsedButFree {
        /// What they are.
        unit: Unit,
        /// Which ones.
        units: Units,
        /// Who has them. `None`: the store's own metadata.
        blob: Option<BlobName>,
    },
    /// Two have them: what one writes, the other reads.
    Shared {
        /// What they are.
        unit: Unit,
        /// Which ones.
        units: Units,
        /// Who.
        blobs: [BlobName; 2],
    },
    /// Its metadata are broken: it cannot be opened. SPDK loads the store without it, and says so in
    /// its log only.
    Broken {
        /// Which one.
        blob: BlobName,
        /// The page of metadata.
        page: u32,
        /// What is wrong with it.
        why: String,
    },
    /// The snapshot on which it lies is not there: it cannot be opened, and is left out, too.
    NoParent {
        /// Which one.
        blob: BlobName,
        /// The snapshot.
        parent: u64,
        /// The snapshot is there, and lies on the volume itself.
        circle: bool,
    },
    /// The blob that says what the store is called is not there, or does not say it.
    NoStore {
        /// What is wrong.
        why: String,
    },
    /// A list of what is used is no list.
    BrokenMask {
        /// Of what.
        of: &'static str,
    },
    /// The loaded store counts its free clusters wrongly.
    FreeCount {
        /// How many it says.
        said: u64,
        /// How many are.
        counted: u64,
    },
}

/// What helps against a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Remedy {
    /// The next load mends it.
    Load,
    /// A [`Repair`](super::Repair) mends it, and nothing is lost.
    Repair,
    /// A [`Repair`](super::Repair) mends it that is told what is to become of that blob.
    Decide,
    /// Nothing here: what is whole should be copied away.
    Nothing,
}

impl Finding {
    /// What helps against it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::InterruptedDelete { .. } | Self::InterruptedSnapshot { .. } | Self::FreeCount { .. } => {
                Remedy::Load
            }
            Self::Leaked { .. } | Self::UsedButFree { .. } | Self::BrokenMask { .. } => Remedy::Repair,
            Self::Unlisted { .. } => Remedy::Load,
            Self::Hidden { .. }
            | Self::Nameless { .. }
            | Self::DuplicateName { .. }
            | Self::DuplicateUuid { .. }
            | Self::Broken { .. }
            | Self::NoParent { .. } => Remedy::Decide,
            Self::Shared { .. } | Self::NoStore { .. } => Remedy::Nothing,
        }
    }

    /// What is left of it if only what another reading has found as well is believed.
    pub(super) fn also_in(self, others: &[Self]) -> Option<Self> {
        let both = |mine: &Units, other: &Self| {
            let theirs = match (&self, other) {
                (Self::Leaked { unit: a, .. }, Self::Leaked { unit: b, units }) if a == b => units,
                (
                    Self::UsedButFree { unit: a, blob: x, .. },
                    Self::UsedButFree {
                        unit: b,
                        blob: y,
                        units,
                    },
                ) if a == b && x == y => units,
                (
                    Self::Shared {
                        unit: a, blobs: x, ..
                    },
                    Self::Shared {
                        unit: b,
                        blobs: y,
                        units,
                    },
                ) if a == b && x == y => units,
                _ => return None,
            };
            let both = mine.in_both(theirs);
            (!both.is_empty()).then_some(both)
        };
        match &self {
            Self::Leaked { units, .. } | Self::UsedButFree { units, .. } | Self::Shared { units, .. } => {
                let left = others.iter().find_map(|other| both(units, other))?;
                let mut kept = self.clone();
                if let Self::Leaked { units, .. }
                | Self::UsedButFree { units, .. }
                | Self::Shared { units, .. } = &mut kept
                {
                    *units = left;
                }
                Some(kept)
            }
            _ => others.contains(&self).then_some(self),
        }
    }
}

fn list(blobs: &[BlobName]) -> String {
    let names: Vec<_> = blobs.iter().map(BlobName::to_string).collect();
    names.join(", ")
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden {
                blob,
                clusters,
                conflicts,
            } => {
                write!(
                    f,
                    "zombie: {blob} lies on the disk with {clusters} clusters of its own, but the store does not have it; a recovery would bring it back"
                )?;
                match conflicts {
                    0 => f.write_str(": have it adopted, or forgotten"),
                    _ => write!(
                        f,
                        ", on {conflicts} clusters and pages that others have by now: have it forgotten"
                    ),
                }
            }
            Self::Nameless { blob, lacks: "name" } => write!(
                f,
                "zombie: {blob} has no name, and SPDK loads no volume of a store with such a blob: have it renamed, or forgotten"
            ),
            Self::Nameless { blob, lacks } => write!(f, "{blob} has no {lacks}: have it given one"),
            Self::Unlisted { blob } => write!(
                f,
                "{blob} is in the store, but not in its list of volumes: load the store anew"
            ),
            Self::DuplicateName { name, blobs } => write!(
                f,
                "{} volumes are called {name}: {}; have all but one renamed",
                blobs.len(),
                list(blobs)
            ),
            Self::DuplicateUuid { uuid, blobs } => write!(
                f,
                "{} volumes have the UUID {uuid}: {}; have all but one given another",
                blobs.len(),
                list(blobs)
            ),
            Self::InterruptedDelete {
                blob,
                clone,
                taken_over: true,
            } => write!(
                f,
                "the deletion of {blob} was interrupted after its clone, blob {clone:#x}, took over: the next load completes it"
            ),
            Self::InterruptedDelete { blob, clone, .. } => write!(
                f,
                "the deletion of {blob}, a snapshot beneath blob {clone:#x}, was interrupted or called off: the next load keeps the snapshot"
            ),
            Self::InterruptedSnapshot {
                blob,
                of,
                taken: true,
            } => write!(
                f,
                "{blob} was being taken as a snapshot of blob {of:#x}: the next load keeps it"
            ),
            Self::InterruptedSnapshot { blob, of, .. } => write!(
                f,
                "{blob} was being taken as a snapshot of blob {of:#x}, which does not lie on it: the next load removes it"
            ),
            Self::Leaked { unit, units } => write!(
                f,
                "{} {unit} are said to be used, and nobody has them ({units}): have the store repaired",
                units.count()
            ),
            Self::UsedButFree { unit, units, blob } => {
                match blob {
                    Some(blob) => write!(f, "{blob} has {} {unit}", units.count())?,
                    None => write!(f, "the metadata have {} {unit}", units.count())?,
                }
                write!(
                    f,
                    " that are said to be free and may be given away ({units}): write nothing to the store, and have it repaired"
                )
            }
            Self::Shared {
                unit,
                units,
                blobs: [one, other],
            } => write!(
                f,
                "{one} and {other} have {} {unit} in common ({units}): what one writes the other reads; copy the data away",
                units.count()
            ),
            Self::Broken { blob, page, why } => write!(
                f,
                "{blob} cannot be opened, and is left out when the store is loaded: on metadata page {page}, {why}; restore it from a backup, or have it forgotten"
            ),
            Self::NoParent {
                blob,
                parent,
                circle: false,
            } => write!(
                f,
                "{blob} lies on blob {parent:#x}, which is not there, and cannot be opened; have it forgotten if it is of no use"
            ),
            Self::NoParent { blob, parent, .. } => write!(
                f,
                "{blob} lies on blob {parent:#x}, which lies on it again; have it forgotten if it is of no use"
            ),
            Self::NoStore { why } => write!(f, "the store cannot be loaded: {why}"),
            Self::BrokenMask { of } => write!(
                f,
                "the list of {of} is broken: have the store repaired before it is loaded"
            ),
            Self::FreeCount { said, counted } => write!(
                f,
                "the store says that {said} clusters are free, and {counted} are: load it anew"
            ),
        }
    }
}
