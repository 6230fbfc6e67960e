//! The patch series: which patches, in which order, and which patch level they make.

use std::path::{Path, PathBuf};

use crate::config::Part;
use crate::error::{Context, Error, Result};

/// One patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// File name, as in `series`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: Vec<u8>,
}

/// The part of the series that is to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The patches, in order.
    pub patches: Vec<Patch>,
    /// The value of `SPDK_RS_PATCHLEVEL` that they lead to; 0 if no patch sets it.
    pub level: u32,
    /// All files that were read.
    pub files: Vec<PathBuf>,
}

const MARK: &str = "# part:";

/// The names in `series` that belong to `part`.
pub fn names(text: &str, part: Part) -> Result<Vec<String>> {
    let mut current = None;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(mark) = line.strip_prefix(MARK) {
            current = match (current, mark.trim()) {
                (None, "enabling") => Some(Part::Enabling),
                (Some(Part::Enabling), "delete") => Some(Part::Full),
                (_, other) => {
                    return Err(Error::from(format!(
                        "patches/series: \"{MARK} {other}\" is unexpected there: \
                         \"{MARK} enabling\" comes first, then \"{MARK} delete\"."
                    )));
                }
            };
        } else if !line.is_empty() && !line.starts_with('#') {
            let Some(of) = current else {
                return Err(Error::from(format!(
                    "patches/series: {line} comes before \"{MARK} enabling\"."
                )));
            };
            if part == Part::Full || of == Part::Enabling {
                names.push(line.to_owned());
            }
        }
    }
    if names.is_empty() {
        return Err(Error::from("patches/series names no patch."));
    }
    Ok(names)
}

/// The level that a patch sets, if it does.
pub fn level_set_by(patch: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(patch);
    let added = text
        .lines()
        .filter_map(|l| l.strip_prefix("+#define SPDK_RS_PATCHLEVEL"));
    added.filter_map(|rest| rest.trim().parse().ok()).next_back()
}

impl Series {
    /// Reads the part `part` of the series in `directory`.
    pub fn read(directory: &Path, part: Part) -> Result<Self> {
        let list = directory.join("series");
        let text = std::fs::read_to_string(&list).context(|| format!("read {}", list.display()))?;
        let mut patches = Vec::new();
        for name in names(&text, part)? {
            let path = directory.join(&name);
            let text = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
            patches.push(Patch { name, path, text });
        }
        let level = patches
            .iter()
            .filter_map(|p| level_set_by(&p.text))
            .next_back()
            .unwrap_or(0);
        let mut files = vec![directory.to_owned(), list];
        files.extend(patches.iter().map(|p| p.path.clone()));
        Ok(Self {
            patches,
            level,
            files,
        })
    }

    /// Names and contents, for the fingerprint.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for patch in &self.patches {
            all.extend_from_slice(format!("{} {}\n", patch.name, patch.text.len()).as_bytes());
            all.extend_from_slice(&patch.text);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# words\n# part: enabling\na.patch\n\n# part: delete\nb.patch\n";

    #[test]
    fn parts() {
        assert_eq!(names(LIST, Part::Enabling).unwrap(), ["a.patch"]);
        assert_eq!(names(LIST, Part::Full).unwrap(), ["a.patch", "b.patch"]);
    }

    #[test]
    fn marks_out_of_order_are_refused() {
        for bad in [
            "a.patch\n",
            "# part: delete\n",
            "# part: enabling\n# part: other\n",
            "# part: enabling\n",
        ] {
            assert!(names(bad, Part::Full).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_level_is_the_last_one_set() {
        assert_eq!(level_set_by(b"+#define SPDK_RS_PATCHLEVEL 1\n"), Some(1));
        assert_eq!(
            level_set_by(b"-#define SPDK_RS_PATCHLEVEL 1\n+#define SPDK_RS_PATCHLEVEL 2\n"),
            Some(2)
        );
        assert_eq!(level_set_by(b" #define SPDK_RS_PATCHLEVEL 1\n"), None);
    }

    #[test]
    fn a_missing_patch_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("series"), LIST).unwrap();
        let error = Series::read(dir.path(), Part::Full).unwrap_err().to_string();
        assert!(error.contains("a.patch"), "{error}");
    }

    #[test]
    fn the_crate_s_own_series_has_an_odd_and_an_even_level() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches");
        assert_eq!(Series::read(&directory, Part::Enabling).unwrap().level % 2, 1);
        let full = Series::read(&directory, Part::Full).unwrap();
        assert!(full.level >= 2 && full.level % 2 == 0);
        // Every patch file is in the series: one that is not would silently not be applied.
        for entry in std::fs::read_dir(&directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                !name.ends_with(".patch") || full.patches.iter().any(|p| p.name == name),
                "{name} is not in patches/series"
            );
        }
    }

    #[test]
    fn every_byte_counts() {
        let patch = |name: &str, text: &str| Patch {
            name: name.into(),
            path: name.into(),
            text: text.into(),
        };
        let series = |patches| Series {
            patches,
            level: 0,
            files: vec![],
        };
        let one = series(vec![patch("a", "xy"), patch("b", "z")]).bytes();
        let other = series(vec![patch("a", "x"), patch("b", "yz")]).bytes();
        assert_ne!(one, other);
    }
}
