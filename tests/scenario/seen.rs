//! What was seen of volumes and namespaces, in words that a person can read and a check can compare.

use std::fmt;

use anyhow::Result;
use serde_json::Value;

use crate::common::Target;

/// What a volume is known by, wherever it is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// The bdev's UUID.
    pub uuid: String,
    /// `lvstore/lvol`.
    pub aliases: Vec<String>,
    /// Whether it is a snapshot.
    pub snapshot: bool,
    /// The snapshot that it stands on.
    pub base_snapshot: Option<String>,
    /// What stands on it.
    pub clones: Vec<String>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.aliases.join(", "), self.uuid)?;
        match &self.base_snapshot {
            Some(parent) if self.snapshot => write!(f, ", snapshot on {parent}")?,
            Some(parent) => write!(f, ", on {parent}")?,
            None => {}
        }
        if !self.clones.is_empty() {
            write!(f, ", beneath {}", self.clones.join(", "))?;
        }
        Ok(())
    }
}

impl Identity {
    /// What the target says of a volume; `None` if there is no such one.
    pub fn of(target: &mut Target, name: &str) -> Result<Option<Self>> {
        let strings = |value: &Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.filter_map(|s| s.as_str().map(str::to_owned)).collect()
        };
        Ok(target.bdev(name)?.map(|bdev| {
            let lvol = &bdev["driver_specific"]["lvol"];
            Self {
                uuid: bdev["uuid"].as_str().unwrap_or_default().to_owned(),
                aliases: strings(&bdev["aliases"]),
                snapshot: lvol["snapshot"] == true,
                base_snapshot: lvol["base_snapshot"].as_str().map(str::to_owned),
                clones: strings(&lvol["clones"]),
            }
        }))
    }
}

/// What is said where there is nothing.
pub const NONE: &str = "none";

/// A text, or that there is none.
pub fn or_none(text: Option<&str>) -> &str {
    text.unwrap_or(NONE)
}

/// A volume, or that there is none.
pub fn show(identity: Option<&Identity>) -> String {
    identity.map_or(NONE.to_owned(), Identity::to_string)
}

/// Texts in one line.
pub fn list(texts: &[String]) -> String {
    if texts.is_empty() {
        NONE.to_owned()
    } else {
        texts.join("; ")
    }
}

/// A checksum.
pub fn hex(sum: u64) -> String {
    format!("{sum:#018x}")
}

/// Bytes in MiB.
pub fn mib(bytes: &Value) -> u64 {
    bytes.as_u64().unwrap_or_default() >> 20
}

/// Namespaces in one line.
pub fn describe(namespaces: &[Value]) -> String {
    let each = namespaces.iter().map(|ns| {
        let uuid = ns["uuid"].as_str().unwrap_or_default();
        format!("{} = {}", ns["nsid"], uuid.to_lowercase())
    });
    each.collect::<Vec<_>>().join(", ")
}
