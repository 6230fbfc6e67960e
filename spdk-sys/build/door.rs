//! `SPDK_SYS_DIR`: an SPDK that somebody else patched and built. It is only linked, so everything that
//! would make it a wrong one is asked here, each with its own answer.

use std::path::{Path, PathBuf};

use crate::compile::{configure_flags, display_list};
use crate::config::{Config, DEFAULT_ARCH};
use crate::error::{Context, Error, Result};
use crate::link;
use crate::pinned::Pinned;
use crate::probe::{self, Facts};
use crate::sanitizer::Sanitizer;

/// Looks at the directory from outside; gives its real path.
pub fn open(dir: &Path, pinned: &Pinned) -> Result<PathBuf> {
    let name = format!("SPDK_SYS_DIR={}", dir.display());
    let root = dir.canonicalize().context(|| format!("open {name}"))?;
    let is = |path: &str| root.join(path).exists();
    if is("mk/spdk.common.mk") && is("module/bdev") {
        if !is("mk/config.mk") || !is("include/spdk/config.h") {
            return Err(Error::from(format!(
                "{name} is not built: there is no mk/config.mk or no include/spdk/config.h in it.\n{}",
                how_to_build(None)
            )));
        }
        return Ok(root);
    }
    if is("include/spdk/bdev.h") {
        return Err(Error::from(format!(
            "{name} is an installed prefix, not a build tree. SPDK does not install its internal headers \
             (spdk_internal/lvolstore.h, module/bdev/*/*.h), and they are needed here.\n\
             Give the directory that SPDK was built in."
        )));
    }
    Err(Error::from(format!(
        "{name} is not an SPDK tree: neither mk/spdk.common.mk nor include/spdk/bdev.h is in it.\n\
         Give the directory that SPDK v{} was built in.",
        pinned.version
    )))
}

fn how_to_build(sanitize: Option<Sanitizer>) -> String {
    format!(
        "Build it: ./configure {} && make lib module",
        configure_flags(DEFAULT_ARCH, sanitize).join(" ")
    )
}

/// Entries of CONFIG that must have one value, and why.
const REQUIRED: &[(&str, &str, &str)] = &[
    ("ISAL", "y", "isa-l is linked for its checksums"),
    ("DEBUG", "n", "the bindings are made for SPDK's release build"),
    ("SHARED", "n", "the static archives are linked"),
    ("TSAN", "n", "the thread sanitizer would have to be linked too"),
    ("COVERAGE", "n", "gcov would have to be linked too"),
    ("LTO", "n", "rustc's linker cannot read gcc's intermediate code"),
    (
        "PGO_CAPTURE",
        "n",
        "gcc's profiling library would have to be linked too",
    ),
    (
        "RDMA",
        "n",
        "libibverbs and librdmacm would have to be linked too",
    ),
    ("FC", "n", "a vendor's library would have to be linked too"),
    ("CRYPTO", "n", "DPDK's crypto drivers would have to be linked too"),
    ("REDUCE", "n", "libpmem would have to be linked too"),
    ("NVME_CUSE", "n", "libfuse3 would have to be linked too"),
    ("RAID5", "n", "DPDK's hash library would have to be linked too"),
    ("VTUNE", "n", "a vendor's library would have to be linked too"),
];

/// Looks at what the probe answered.
pub fn check(
    config: &Config,
    pinned: &Pinned,
    expected_level: u32,
    root: &Path,
    facts: &Facts,
) -> Result<()> {
    let name = root.display();
    if facts.version_string() != pinned.version {
        return Err(Error::from(format!(
            "the SPDK in {name} is v{}, but this crate is for v{}.\nTake v{}, or do not set SPDK_SYS_DIR.",
            facts.version_string(),
            pinned.version,
            pinned.version
        )));
    }
    check_config(config, root, facts)?;
    check_level(config, expected_level, root, facts)?;
    let missing = link::plan(root, &config.features).missing_archives();
    if !missing.is_empty() {
        return Err(Error::from(format!(
            "{name} is not built, or not wholly: {} not there.\n{}",
            display_list(&missing),
            how_to_build(config.sanitize)
        )));
    }
    Ok(())
}

fn check_config(config: &Config, root: &Path, facts: &Facts) -> Result<()> {
    let mut wrong = Vec::new();
    for (entry, required, why) in REQUIRED {
        let value = facts.config(entry);
        if value != *required {
            wrong.push(format!("  CONFIG_{entry}={value}, needed is {required}: {why}"));
        }
    }
    for sanitizer in Sanitizer::ALL {
        let (entry, name) = (sanitizer.entry(), sanitizer.name());
        let needed = if config.sanitize == Some(sanitizer) {
            "y"
        } else {
            "n"
        };
        let value = facts.config(entry);
        if value != needed {
            wrong.push(format!(
                "  CONFIG_{entry}={value}, needed is {needed}: this sanitizer is on both sides, or on none \
                 (SPDK_SYS_SANITIZE={name})"
            ));
        }
    }
    if config.features.uring && facts.config("URING") != "y" {
        wrong.push(
            "  CONFIG_URING=n, needed is y: the cargo feature `uring` is on (or build without it)".to_owned(),
        );
    }
    for (entry, path) in [("ENV", "lib/env_dpdk"), ("DPDK_DIR", "dpdk/build")] {
        let (value, needed) = (facts.config(entry), root.join(path));
        if Path::new(value) != needed {
            wrong.push(format!(
                "  CONFIG_{entry}={value}, needed is {}: SPDK's own DPDK is linked, and the tree may not be moved \
                 after configure",
                needed.display()
            ));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::from(format!(
        "the SPDK in {} was built with another configuration:\n{}\n{}",
        root.display(),
        wrong.join("\n"),
        how_to_build(config.sanitize)
    )))
}

fn check_level(config: &Config, expected: u32, root: &Path, facts: &Facts) -> Result<()> {
    let name = root.display();
    if facts.level == expected || (facts.level == 0 && config.allow_unpatched) {
        return Ok(());
    }
    let part = config.series.name();
    Err(Error::from(if facts.level == 0 {
        format!(
            "the SPDK in {name} is not patched.\nApply the patches in {}/patches in the order of the file series \
             and build it again, or do not set SPDK_SYS_DIR.\nSPDK_SYS_ALLOW_UNPATCHED=1 takes it as it is: \
             deletes of logical volumes then report what happened, but cannot keep a busy one whole.",
            config.manifest_dir.display()
        )
    } else {
        format!(
            "the SPDK in {name} has patch level {}, but the {part} series of this crate makes level {expected}.\n\
             Apply this crate's patches to an unchanged SPDK and build it again{}.",
            facts.level,
            if facts.level % 2 == 1 && expected % 2 == 0 {
                "; for the enabling patches only, set SPDK_SYS_SERIES=enabling"
            } else {
                ""
            }
        )
    }))
}

/// Asks and checks.
pub fn enter(config: &Config, pinned: &Pinned, expected_level: u32, dir: &Path) -> Result<(PathBuf, Facts)> {
    let root = open(dir, pinned)?;
    let facts = probe::ask(&root, &config.manifest_dir.join("shim/probe.c"))?;
    check(config, pinned, expected_level, &root, &facts)?;
    Ok((root, facts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;
    use std::fs;

    fn facts(root: &Path) -> Facts {
        let mut facts = Facts {
            version: (20, 7, 0),
            level: 2,
            ..Facts::default()
        };
        for (entry, value, _) in REQUIRED {
            facts.config.insert((*entry).into(), (*value).into());
        }
        facts.config.insert("URING".into(), "y".into());
        facts
            .config
            .insert("ENV".into(), root.join("lib/env_dpdk").display().to_string());
        facts
            .config
            .insert("DPDK_DIR".into(), root.join("dpdk/build").display().to_string());
        facts
    }

    fn pinned() -> Pinned {
        Pinned::parse(include_str!("../pinned")).unwrap()
    }

    fn tree_with_archives() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for archive in link::plan(dir.path(), &crate::config::Features::ALL).archives() {
            fs::create_dir_all(archive.parent().unwrap()).unwrap();
            fs::write(archive, "").unwrap();
        }
        dir
    }

    fn refusal(change: impl FnOnce(&mut Facts)) -> String {
        let dir = tree_with_archives();
        let mut facts = facts(dir.path());
        change(&mut facts);
        check(&config(), &pinned(), 2, dir.path(), &facts)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_good_one_is_taken() {
        let dir = tree_with_archives();
        check(&config(), &pinned(), 2, dir.path(), &facts(dir.path())).unwrap();
    }

    #[test]
    fn the_sanitizer_is_on_both_sides() {
        let dir = tree_with_archives();
        for (sanitizer, entry, flag) in [
            (Sanitizer::Address, "ASAN", "--enable-asan"),
            (Sanitizer::Undefined, "UBSAN", "--enable-ubsan"),
        ] {
            let sanitize = Config {
                sanitize: Some(sanitizer),
                ..config()
            };
            let mut facts = facts(dir.path());
            let error = check(&sanitize, &pinned(), 2, dir.path(), &facts)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("CONFIG_{entry}=n, needed is y")) && error.contains(flag),
                "{error}"
            );
            facts.config.insert(entry.into(), "y".into());
            check(&sanitize, &pinned(), 2, dir.path(), &facts).unwrap();
        }
    }

    #[test]
    fn another_version() {
        let error = refusal(|f| f.version = (26, 5, 0));
        assert!(
            error.contains("is v26.05, but this crate is for v20.07"),
            "{error}"
        );
    }

    #[test]
    fn unpatched() {
        let error = refusal(|f| f.level = 0);
        assert!(
            error.contains("is not patched") && error.contains("SPDK_SYS_ALLOW_UNPATCHED=1"),
            "{error}"
        );
        let dir = tree_with_archives();
        let facts = Facts {
            level: 0,
            ..facts(dir.path())
        };
        let allowed = Config {
            allow_unpatched: true,
            ..config()
        };
        check(&allowed, &pinned(), 2, dir.path(), &facts).unwrap();
    }

    #[test]
    fn another_patch_level() {
        let error = refusal(|f| f.level = 1);
        assert!(
            error.contains("patch level 1") && error.contains("SPDK_SYS_SERIES=enabling"),
            "{error}"
        );
        let error = refusal(|f| f.level = 4);
        assert!(
            error.contains("patch level 4") && !error.contains("SPDK_SYS_SERIES"),
            "{error}"
        );
    }

    #[test]
    fn another_configuration_names_every_entry() {
        for (entry, value, why) in REQUIRED {
            let other = if *value == "y" { "n" } else { "y" };
            let error = refusal(|f| drop(f.config.insert((*entry).into(), other.into())));
            assert!(
                error.contains(&format!("CONFIG_{entry}={other}")) && error.contains(why),
                "{error}"
            );
        }
        let error = refusal(|f| drop(f.config.insert("URING".into(), "n".into())));
        assert!(error.contains("cargo feature `uring`"), "{error}");
        for entry in ["ASAN", "UBSAN"] {
            let error = refusal(|f| drop(f.config.insert(entry.into(), "y".into())));
            assert!(
                error.contains(&format!("CONFIG_{entry}=y, needed is n")),
                "{error}"
            );
        }
        let error = refusal(|f| drop(f.config.insert("DPDK_DIR".into(), "/opt/dpdk".into())));
        assert!(error.contains("CONFIG_DPDK_DIR=/opt/dpdk"), "{error}");
    }

    #[test]
    fn without_archives() {
        let dir = tree_with_archives();
        fs::remove_file(dir.path().join("build/lib/libspdk_bdev_lvol.a")).unwrap();
        let error = check(&config(), &pinned(), 2, dir.path(), &facts(dir.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("libspdk_bdev_lvol.a") && error.contains("./configure"),
            "{error}"
        );
    }

    #[test]
    fn from_outside() {
        let dir = tempfile::tempdir().unwrap();
        let error = || open(dir.path(), &pinned()).unwrap_err().to_string();
        assert!(error().contains("is not an SPDK tree"));
        let touch = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        touch("include/spdk/bdev.h");
        assert!(error().contains("is an installed prefix") && error().contains("spdk_internal"));
        touch("mk/spdk.common.mk");
        touch("module/bdev/Makefile");
        assert!(error().contains("is not built") && error().contains("./configure"));
        touch("mk/config.mk");
        touch("include/spdk/config.h");
        open(dir.path(), &pinned()).unwrap();
        let error = open(&dir.path().join("none"), &pinned()).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
