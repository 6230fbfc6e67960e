//! The one SPDK source that the patches are for: the file `pinned`, which the shell reads too.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// What `pinned` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// SPDK's version, as "20.07".
    pub version: String,
    /// Name of the tarball in Debian's archive.
    pub tarball: String,
    /// SHA-256 of the tarball.
    pub tarball_sha256: String,
    /// Where SPDK is in the tarball.
    pub directory: String,
    /// Hash of the extracted tree, see [`crate::source::tree_hash`].
    pub tree_sha256: String,
    /// Room that a build needs, in MiB.
    pub build_mib: u64,
}

impl Pinned {
    /// Reads `pinned` in the crate's directory.
    pub fn read(manifest_dir: &Path) -> Result<Self> {
        let file = manifest_dir.join("pinned");
        let text = std::fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        Self::parse(&text)
    }

    /// Parses `name=value` lines; `#` starts a comment.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        let values: BTreeMap<&str, &str> = lines.filter_map(|l| l.split_once('=')).collect();
        let get = |name: &str| {
            let value = values.get(name).map(|v| (*v).to_owned());
            value.ok_or_else(|| Error::from(format!("spdk-sys/pinned does not say {name}")))
        };
        let build_mib = get("build_mib")?;
        Ok(Self {
            version: get("version")?,
            tarball: get("tarball")?,
            tarball_sha256: get("tarball_sha256")?,
            directory: get("directory")?,
            tree_sha256: get("tree_sha256")?,
            build_mib: build_mib.parse().map_err(|_| {
                Error::from(format!("spdk-sys/pinned: build_mib={build_mib} is not a number"))
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_s_own_file_is_complete() {
        let text = include_str!("../pinned");
        let pinned = Pinned::parse(text).unwrap();
        assert_eq!(pinned.version, "20.07");
        assert_eq!(pinned.tarball_sha256.len(), 64);
        assert_eq!(pinned.tree_sha256.len(), 64);
        // The version of the crate says which SPDK it is for.
        assert!(env!("CARGO_PKG_VERSION").ends_with(&format!("+{}", pinned.version)));
    }

    #[test]
    fn a_missing_name_is_named() {
        let error = Pinned::parse("# nothing\nbuild_mib=1\n").unwrap_err();
        assert!(error.to_string().contains("does not say version"), "{error}");
        let error = Pinned::parse("build_mib=many\n").unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
