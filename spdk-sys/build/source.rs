//! Where the source comes from: `SPDK_SYS_SOURCE` (a tree or the tarball), else the cache, where
//! `spdk-sys/fetch` puts it. Only the pinned source is taken; its hash is checked in the private copy
//! that is then patched, so nothing can change between the check and the use.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::pinned::Pinned;
use crate::run;

/// A source that is there. Its hash has not been checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory.
    Tree(PathBuf),
    /// Debian's tarball.
    Tarball(PathBuf),
}

/// The directory in the cache where `fetch` puts the tree.
pub fn cached(cache: &Path, pinned: &Pinned) -> PathBuf {
    let tree = &pinned.tree_sha256;
    cache.join(format!("source-{}", &tree[..tree.len().min(16)]))
}

/// Chooses the source.
pub fn find(config: &Config, pinned: &Pinned) -> Result<Source> {
    if let Some(path) = &config.source {
        let kind = fs::metadata(path).map_err(|error| {
            Error::from(format!(
                "SPDK_SYS_SOURCE={}: {error}\nGive the directory of an unchanged SPDK v{} tree, or {}.",
                path.display(),
                pinned.version,
                pinned.tarball
            ))
        })?;
        let path = path
            .canonicalize()
            .context(|| format!("resolve {}", path.display()))?;
        return Ok(if kind.is_dir() {
            Source::Tree(path)
        } else {
            Source::Tarball(path)
        });
    }
    let directory = cached(&config.cache, pinned);
    if directory.join("spdk").is_dir() {
        return Ok(Source::Tree(directory.join("spdk")));
    }
    Err(Error::from(format!(
        "there is no SPDK source, and the build does not use the network. Do one of these:\n  \
         * {}/fetch\n      gets SPDK v{} through apt into {}\n  \
         * SPDK_SYS_SOURCE=<tree or {}>\n      takes a source that you have\n  \
         * SPDK_SYS_DIR=<build tree>\n      links an SPDK that you patched and built",
        config.manifest_dir.display(),
        pinned.version,
        directory.display(),
        pinned.tarball
    )))
}

/// Refuses a source that is not the pinned one.
pub fn verify(source: &Source, pinned: &Pinned) -> Result<()> {
    match source {
        Source::Tree(path) => verify_tree(path, &path.display().to_string(), pinned),
        Source::Tarball(path) => {
            let mut command = run::command("sha256sum");
            let text = run::output(command.arg("--").arg(path), "compute the SHA-256 of the tarball")?;
            let hash: String = text
                .trim_start_matches('\\')
                .chars()
                .take_while(char::is_ascii_hexdigit)
                .collect();
            if hash == pinned.tarball_sha256 {
                return Ok(());
            }
            Err(Error::from(format!(
                "{} is not the pinned tarball:\n  its SHA-256 is {hash}\n  pinned is      {} ({})\n\
                 Get the pinned one with spdk-sys/fetch. An SPDK of your own is taken with SPDK_SYS_DIR, patched and built.",
                path.display(),
                pinned.tarball_sha256,
                pinned.tarball
            )))
        }
    }
}

fn verify_tree(path: &Path, name: &str, pinned: &Pinned) -> Result<()> {
    if !path.join("include/spdk/version.h").is_file() {
        return Err(Error::from(format!(
            "{name} is not an SPDK source tree: include/spdk/version.h is not in it."
        )));
    }
    let hash = tree_hash(path)?;
    if hash == pinned.tree_sha256 {
        return Ok(());
    }
    Err(Error::from(format!(
        "{name} is not the pinned SPDK v{}:\n  its tree hash is {hash}\n  pinned is        {}\n\
         The tree must be unchanged: no patches, no build in it. Get it with spdk-sys/fetch (remove the directory \
         first if it is in the cache). An SPDK of your own is taken with SPDK_SYS_DIR, patched and built.",
        pinned.version, pinned.tree_sha256
    )))
}

/// SHA-256 over the sorted list of the SHA-256 and path of each regular file.
pub fn tree_hash(tree: &Path) -> Result<String> {
    const SCRIPT: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum";
    let mut command = run::command("sh");
    let text = run::output(
        command.args(["-c", SCRIPT]).current_dir(tree),
        "compute the hash of the source tree",
    )?;
    Ok(text.chars().take_while(char::is_ascii_hexdigit).collect())
}

/// Makes `to`, a private copy, and checks that it is the pinned source.
pub fn copy(source: &Source, to: &Path, pinned: &Pinned) -> Result<()> {
    fs::create_dir(to).context(|| format!("make {}", to.display()))?;
    match source {
        Source::Tree(from) => {
            let mut cp = run::command("cp");
            cp.args(["-a", "--reflink=auto", "--"])
                .arg(from.join("."))
                .arg(to);
            run::output(&mut cp, "copy the SPDK source")?;
        }
        Source::Tarball(from) => {
            let depth = pinned.directory.split('/').count();
            let mut tar = run::command("tar");
            tar.arg("-xf").arg(from).arg("-C").arg(to);
            tar.arg(format!("--strip-components={depth}"))
                .arg(&pinned.directory);
            run::output(&mut tar, "unpack the SPDK source")?;
        }
    }
    verify_tree(to, &format!("the copy of {}", source.path().display()), pinned)
}

impl Source {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Source::Tree(path) | Source::Tarball(path) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_names_and_contents_but_not_order() {
        let hash = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            tree_hash(dir.path()).unwrap()
        };
        let one = hash(&[("a", "1"), ("d/b", "2")]);
        assert_eq!(one, hash(&[("d/b", "2"), ("a", "1")]));
        assert_ne!(one, hash(&[("a", "1"), ("d/b", "3")]));
        assert_ne!(one, hash(&[("a", "1"), ("d/c", "2")]));
        assert_ne!(one, hash(&[("a", "1")]));
    }
}
