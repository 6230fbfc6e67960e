//! What is done to a store: operations, and when each begins.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::store::volumes;

/// Names a volume for as long as there is one: the number of the step that made it.
pub type Key = u32;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub enum Op {
    Create {
        name: String,
        clusters: u64,
        thin: bool,
    },
    Snapshot {
        vol: Key,
        name: String,
    },
    Clone {
        vol: Key,
        name: String,
    },
    Rename {
        vol: Key,
        name: String,
    },
    Inflate {
        vol: Key,
    },
    Decouple {
        vol: Key,
    },
    Resize {
        vol: Key,
        clusters: u64,
    },
    ReadOnly {
        vol: Key,
    },
    Checksum {
        vol: Key,
    },
    StopChecksum {
        vol: Key,
    },
    Destroy {
        vol: Key,
    },
    /// One cell. What is written is the number of the step.
    Write {
        vol: Key,
        cell: u64,
    },
    Read {
        vol: Key,
        cell: u64,
    },
    /// Looks a volume up by name.
    Find {
        name: String,
    },
    RenameStore {
        name: String,
    },
    /// All that runs ends; then everything is looked at.
    Settle,
    /// So it is, and once more after a load.
    Reload {
        /// Unload first, or take the disk away.
        unload: bool,
    },
}

/// An operation, and when it begins.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Step {
    pub key: Key,
    /// As soon as fewer than these run,
    pub depth: usize,
    /// and the reactor has turned so many times.
    pub turns: u32,
    pub op: Op,
}

/// A volume's key, as the model and people know it.
pub fn called(key: Key) -> String {
    format!("v{key}")
}

impl Op {
    /// The volume that it is on.
    pub fn vol(&self) -> Option<Key> {
        match self {
            Self::Snapshot { vol, .. }
            | Self::Clone { vol, .. }
            | Self::Rename { vol, .. }
            | Self::Inflate { vol }
            | Self::Decouple { vol }
            | Self::Resize { vol, .. }
            | Self::ReadOnly { vol }
            | Self::Checksum { vol }
            | Self::StopChecksum { vol }
            | Self::Destroy { vol }
            | Self::Write { vol, .. }
            | Self::Read { vol, .. } => Some(*vol),
            Self::Create { .. }
            | Self::Find { .. }
            | Self::RenameStore { .. }
            | Self::Settle
            | Self::Reload { .. } => None,
        }
    }

    /// The name of the volume that it makes.
    pub fn makes(&self) -> Option<&String> {
        match self {
            Self::Create { name, .. } | Self::Snapshot { name, .. } | Self::Clone { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The same for [`volumes`], where what is made is called `new`. `None` for what it does not
    /// know.
    pub fn on_volumes(&self, key: Key, new: &str) -> Option<volumes::Op> {
        let vol = self.vol().map_or_else(|| new.to_owned(), called);
        let name = new.to_owned();
        Some(match *self {
            Self::Create { clusters, thin, .. } => volumes::Op::Create { vol, clusters, thin },
            Self::Snapshot { .. } => volumes::Op::Snapshot { vol, name },
            Self::Clone { .. } => volumes::Op::Clone { vol, name },
            Self::Rename { .. } => volumes::Op::Rename { vol, name },
            Self::Inflate { .. } => volumes::Op::Inflate { vol },
            Self::Decouple { .. } => volumes::Op::Decouple { vol },
            Self::Resize { clusters, .. } => volumes::Op::Resize { vol, clusters },
            Self::ReadOnly { .. } => volumes::Op::ReadOnly { vol },
            Self::Checksum { .. } => volumes::Op::Checksum { vol },
            Self::Destroy { .. } => volumes::Op::Destroy { vol },
            Self::Write { cell, .. } => volumes::Op::Write {
                vol,
                cells: vec![(cell, u64::from(key))],
            },
            _ => return None,
        })
    }
}

/// For people.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { name, clusters, thin } => {
                let kind = if *thin { "thin" } else { "thick" };
                write!(f, "create {name:?}, {clusters} clusters, {kind}")
            }
            Self::Snapshot { vol, name } => write!(f, "snapshot v{vol} as {name:?}"),
            Self::Clone { vol, name } => write!(f, "clone v{vol} as {name:?}"),
            Self::Rename { vol, name } => write!(f, "rename v{vol} to {name:?}"),
            Self::Inflate { vol } => write!(f, "inflate v{vol}"),
            Self::Decouple { vol } => write!(f, "decouple v{vol}"),
            Self::Resize { vol, clusters } => write!(f, "resize v{vol} to {clusters} clusters"),
            Self::ReadOnly { vol } => write!(f, "set v{vol} read-only"),
            Self::Checksum { vol } => write!(f, "checksum of v{vol}"),
            Self::StopChecksum { vol } => write!(f, "stop the checksum of v{vol}"),
            Self::Destroy { vol } => write!(f, "destroy v{vol}"),
            Self::Write { vol, cell } => write!(f, "write cell {cell} of v{vol}"),
            Self::Read { vol, cell } => write!(f, "read cell {cell} of v{vol}"),
            Self::Find { name } => write!(f, "find {name:?}"),
            Self::RenameStore { name } => write!(f, "rename the store to {name:?}"),
            Self::Settle => f.write_str("wait for all, and look"),
            Self::Reload { unload: true } => f.write_str("wait for all, look, unload, load, and look"),
            Self::Reload { unload: false } => {
                f.write_str("wait for all, look, take the disk away, load, and look")
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            depth,
            turns,
            op,
        } = self;
        write!(
            f,
            "v{key} = {op} (with fewer than {depth} running, {turns} turns later)"
        )
    }
}
