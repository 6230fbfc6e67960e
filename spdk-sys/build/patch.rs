//! Applies the patches to a private copy of the source.
//!
//! `git apply` inside somebody else's work tree (a cache below a checkout, a home directory under git)
//! takes the paths as that repository's, skips all of them, and exits with 0. So the search for a
//! repository is stopped at the tree (`GIT_CEILING_DIRECTORIES`), git says what it does (`-v`), a
//! skipped patch is an error, and at the end the stamp must be in the tree.

use std::path::Path;
use std::process::Stdio;

use crate::error::{Context, Error, Result};
use crate::run;
use crate::series::{Patch, Series};

/// Applies all patches of `series` to `tree`.
pub fn apply(tree: &Path, series: &Series) -> Result<()> {
    for patch in &series.patches {
        apply_one(tree, patch)?;
    }
    check_stamp(tree, series.level)
}

fn apply_one(tree: &Path, patch: &Patch) -> Result<()> {
    let mut git = run::command("git");
    git.current_dir(tree)
        .args(["apply", "-v", "--whitespace=nowarn"])
        .arg(&patch.path)
        .env("GIT_CEILING_DIRECTORIES", ceilings(tree))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdout(Stdio::piped());
    let output = git
        .output()
        .context(|| format!("run git apply for {}", patch.name))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("Skipped patch") {
        return Err(Error::from(format!(
            "the patch {} does not apply to {}:\n{}\n\
             The pinned source takes all patches. If you changed a patch, refresh it against SPDK as the patches \
             before it leave it.",
            patch.name,
            tree.display(),
            run::tail(&said, 20)
        )));
    }
    Ok(())
}

/// The directories above the tree, where git must not look for a repository. Its parent as it was given
/// and as it resolves: git compares text.
fn ceilings(tree: &Path) -> String {
    let parent = |p: &Path| p.parent().unwrap_or(p).display().to_string();
    match tree.canonicalize() {
        Ok(real) if real != tree => format!("{}:{}", parent(tree), parent(&real)),
        _ => parent(tree),
    }
}

/// The level in the patched header must be the one that the series promises.
fn check_stamp(tree: &Path, level: u32) -> Result<()> {
    let header = tree.join("include/spdk/spdk_rs.h");
    let text = std::fs::read_to_string(&header).unwrap_or_default();
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix("#define SPDK_RS_PATCHLEVEL"))
        .map(str::trim);
    if level == 0 || found != Some(level.to_string().as_str()) {
        return Err(Error::from(format!(
            "after patching, {} says patch level {}, but the series leads to {level}: the patches did nothing, \
             or the last one of a part does not set the level.",
            header.display(),
            found.unwrap_or("nothing")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const STAMP: &str = "\
diff --git a/include/spdk/spdk_rs.h b/include/spdk/spdk_rs.h
new file mode 100644
--- /dev/null
+++ b/include/spdk/spdk_rs.h
@@ -0,0 +1 @@
+#define SPDK_RS_PATCHLEVEL 1
";

    fn series(dir: &Path, text: &str, level: u32) -> Series {
        let path = dir.join("0001-x.patch");
        fs::write(&path, text).unwrap();
        let patch = Patch {
            name: "0001-x.patch".into(),
            path,
            text: text.into(),
        };
        Series {
            patches: vec![patch],
            level,
            files: vec![],
        }
    }

    #[test]
    fn applies_inside_another_work_tree() {
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path();
        run::output(
            run::command("git").args(["init", "-q"]).arg(outer),
            "make a repository",
        )
        .unwrap();
        let tree = outer.join("cache/spdk");
        fs::create_dir_all(&tree).unwrap();
        apply(&tree, &series(outer, STAMP, 1)).unwrap();
        assert!(tree.join("include/spdk/spdk_rs.h").exists());
    }

    #[test]
    fn applies_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        run::output(
            run::command("git").args(["init", "-q"]).arg(dir.path()),
            "make a repository",
        )
        .unwrap();
        fs::create_dir_all(dir.path().join("real/spdk")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        apply(&dir.path().join("link/spdk"), &series(dir.path(), STAMP, 1)).unwrap();
    }

    #[test]
    fn one_that_does_not_apply_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("spdk");
        fs::create_dir_all(tree.join("include/spdk")).unwrap();
        fs::write(tree.join("include/spdk/spdk_rs.h"), "other\n").unwrap();
        let error = apply(&tree, &series(dir.path(), STAMP, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("0001-x.patch does not apply"), "{error}");
    }

    #[test]
    fn one_that_touches_nothing_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("spdk");
        fs::create_dir_all(&tree).unwrap();
        let other = STAMP.replace("include/spdk/spdk_rs.h", "elsewhere.h");
        let error = apply(&tree, &series(dir.path(), &other, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("the series leads to 1"), "{error}");
    }

    #[test]
    fn another_level_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("spdk");
        fs::create_dir_all(&tree).unwrap();
        let error = apply(&tree, &series(dir.path(), STAMP, 2))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("says patch level 1") && error.contains("leads to 2"),
            "{error}"
        );
    }
}
