//! The files whose change makes the build script run again. (The variables: [`crate::config::Env`].)

use std::path::Path;

use crate::config::Config;
use crate::link::Plan;
use crate::store::Entry;

fn changed(path: &Path) -> String {
    format!("cargo::rerun-if-changed={}", path.display())
}

/// Of this crate: the build script, the shim, the pinned source, and every file of the series. cargo
/// looks into directories, but not through the symbolic link that `patches` is in the repository.
pub fn own_files(config: &Config) -> Vec<String> {
    let mut lines: Vec<String> = ["build", "shim", "pinned"]
        .iter()
        .map(|p| changed(Path::new(p)))
        .collect();
    let patches = config.manifest_dir.join("patches");
    // Also when the list cannot be read now: then every file that is there counts.
    lines.push(changed(&patches.join("series")));
    let mut names: Vec<_> = std::fs::read_dir(&patches)
        .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
        .unwrap_or_default();
    names.sort();
    lines.extend(
        names
            .iter()
            .filter(|p| p.extension().is_some_and(|e| e == "patch"))
            .map(|p| changed(p)),
    );
    lines
}

/// Of `SPDK_SYS_DIR`: its configuration, headers and archives.
pub fn tree(root: &Path, plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = ["mk/config.mk", "include", "dpdk/build/include"]
        .iter()
        .map(|p| changed(&root.join(p)))
        .collect();
    lines.extend(plan.archives().iter().map(|a| changed(a)));
    lines
}

/// Of the cache: the marker (a file that is not there any more counts as changed, so a cache that was
/// emptied is filled again) and a source that somebody named.
pub fn cached(config: &Config, entry: &Entry) -> Vec<String> {
    let mut lines = vec![changed(&entry.marker())];
    lines.extend(config.source.iter().map(|s| changed(s)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Features;
    use crate::{config, link, series};

    /// Editing any of them must rebuild: each has been forgotten by somebody.
    #[test]
    fn every_file_of_the_crate_is_watched() {
        let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let config = Config {
            manifest_dir: manifest_dir.clone(),
            ..config::tests::config()
        };
        let lines = own_files(&config);
        for path in ["build", "shim", "pinned"] {
            assert!(
                lines.contains(&format!("cargo::rerun-if-changed={path}")),
                "{path}"
            );
            assert!(manifest_dir.join(path).exists(), "{path}");
        }
        let all = series::Series::read(&manifest_dir.join("patches"), config::Part::Full).unwrap();
        for file in all.files.iter().filter(|f| f.is_file()) {
            assert!(lines.contains(&changed(file)), "{}", file.display());
        }
    }

    #[test]
    fn a_tree_is_watched_to_the_last_archive() {
        let plan = link::plan(Path::new("/r"), &Features::ALL);
        let lines = tree(Path::new("/r"), &plan);
        assert_eq!(lines.len(), 3 + plan.archives().len());
        assert!(lines.contains(&"cargo::rerun-if-changed=/r/include".to_owned()));
    }

    #[test]
    fn the_cache_and_a_named_source_are_watched() {
        let entry = Entry::new(Path::new("/c"), "f");
        let mut config = config::tests::config();
        assert_eq!(cached(&config, &entry), ["cargo::rerun-if-changed=/c/f/complete"]);
        config.source = Some("/s".into());
        assert!(cached(&config, &entry).contains(&"cargo::rerun-if-changed=/s".to_owned()));
    }
}
