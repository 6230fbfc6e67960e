//! Configures and makes SPDK in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Inputs};
use crate::pinned::Pinned;
use crate::progress::Progress;
use crate::run;
use crate::sanitizer::Sanitizer;
use crate::series::Series;
use crate::source;
use crate::store::{self, Entry};
use crate::tools;
use crate::{link, patch};

/// Arguments of configure. Tests and examples are not built; vhost, virtio: no user here.
pub fn configure_flags(arch: &str, sanitize: Option<Sanitizer>) -> Vec<String> {
    let flags = [
        "--disable-tests",
        "--disable-unit-tests",
        "--disable-examples",
        "--without-vhost",
        "--without-virtio",
        "--with-uring",
    ];
    let mut all = vec![format!("--target-arch={arch}")];
    all.extend(flags.map(str::to_owned));
    all.extend(sanitize.map(Sanitizer::configure_flag));
    all
}

/// What is made, in this order: directories of SPDK, each with its own makefile. SPDK's top makefile
/// would make its programs as well, which link what is not needed here.
const STAGES: &[Stage] = &[
    Stage {
        directory: "isalbuild",
        what: "isa-l",
    },
    Stage {
        directory: DPDK,
        what: "DPDK",
    },
    Stage {
        directory: "lib",
        what: "SPDK's libraries",
    },
    Stage {
        directory: "module",
        what: "SPDK's modules",
    },
];

struct Stage {
    directory: &'static str,
    what: &'static str,
}

const DPDK: &str = "dpdkbuild";

/// Makes sure that the cache holds the SPDK that `config` asks for; gives its place.
pub fn ensure(config: &Config, pinned: &Pinned, series: &Series, progress: &Progress) -> Result<Entry> {
    let flags = configure_flags(&config.arch, config.sanitize);
    let compiler = fingerprint::compiler(&config.cc)?;
    let name = fingerprint::fingerprint(&Inputs {
        version: &pinned.version,
        part: config.series,
        source: &pinned.tree_sha256,
        series: &series.bytes(),
        flags: &flags,
        compiler: &compiler,
    })?;
    let about = format!(
        "SPDK v{} patch level {} ({})\nsource {}\nconfigure {}\ncompiler {compiler}\n",
        pinned.version,
        series.level,
        config.series.name(),
        pinned.tree_sha256,
        flags.join(" ")
    );
    let entry = Entry::new(&config.cache, &name);
    // A source that somebody names is looked at even when the build is there: a wrong one must not be
    // ignored in silence.
    if config.source.is_some() {
        source::verify(&source::find(config, pinned)?, pinned)?;
    }
    entry.ensure(progress, &about, |entry| {
        let source = source::find(config, pinned)?;
        tools::check(config, tools::Purpose::Build)?;
        store::check_space(&config.cache, pinned.build_mib)?;
        build(config, pinned, series, &source, entry, &flags, progress)
    })?;
    Ok(entry)
}

fn build(
    config: &Config,
    pinned: &Pinned,
    series: &Series,
    source: &source::Source,
    entry: &Entry,
    flags: &[String],
    progress: &Progress,
) -> Result<()> {
    let (tree, log) = (entry.tree(), entry.log());
    let part = config.series.name();
    progress.say(&format!(
        "building SPDK v{} ({part} series) in {}",
        pinned.version,
        tree.display()
    ));
    progress.say("1/4 copying the source and checking its hash");
    source::copy(source, &tree, pinned)?;
    progress.say(&format!("2/4 applying {} patches", series.patches.len()));
    patch::apply(&tree, series)?;
    progress.say("3/4 configuring");
    let mut configure = run::command("./configure");
    prepare(configure.current_dir(&tree).args(flags), config, &tree);
    run::logged(&mut configure, &log, "configure SPDK")?;
    progress.say(&format!(
        "4/4 compiling (about two minutes on two cores; log: {})",
        log.display()
    ));
    make(
        config,
        &tree,
        &log,
        "what all of it needs",
        &["build_dir", "include/spdk/config.h"],
    )?;
    for stage in STAGES {
        progress.say(&format!("    {}", stage.what));
        let work = || make(config, &tree, &log, stage.what, &["-C", stage.directory, "all"]);
        while_watching(&log, progress, work)?;
    }
    let missing = link::plan(&tree, &config.features).missing_archives();
    if !missing.is_empty() {
        return Err(Error::from(format!(
            "make ended well, but these archives are not there: {}. The log: {}",
            display_list(&missing),
            log.display()
        )));
    }
    progress.say("SPDK is built");
    Ok(())
}

/// What configure and make have in common.
fn prepare(command: &mut Command, config: &Config, tree: &Path) {
    command.env("CC", &config.cc);
    // SPDK's makefiles ask git for a commit; the answer of a repository around the cache is not SPDK's.
    command.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree));
    if config.sanitize == Some(Sanitizer::Address) {
        // SPDK's own flags do not reach DPDK. (It also links shared libraries, which are not used.)
        let flag = Sanitizer::Address.compiler_flag();
        command.env("EXTRA_DPDK_CFLAGS", &flag);
        command.env("DPDK_LDFLAGS", &flag);
    }
}

fn make(config: &Config, tree: &Path, log: &Path, what: &str, arguments: &[&str]) -> Result<()> {
    let mut make = run::command("make");
    prepare(make.current_dir(tree).args(arguments), config, tree);
    // Cargo's job server if there is one: then SPDK and rustc share the processors. DPDK's ninja does not
    // know job servers; SPDK's makefile gives it the number that stands on make's command line.
    match std::env::var_os("CARGO_MAKEFLAGS") {
        Some(flags) if !arguments.contains(&DPDK) => make.env("MAKEFLAGS", flags),
        _ => make.arg(format!("-j{}", config.jobs)),
    };
    run::logged(&mut make, log, &format!("build {what}"))
}

/// Says every few seconds how far the log is.
fn while_watching<T>(log: &Path, progress: &Progress, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ticks = 0;
            let mut said = String::new();
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(100));
                ticks += 1;
                if ticks % 100 == 0 {
                    let text = std::fs::read(log).unwrap_or_default();
                    let line = summary(&String::from_utf8_lossy(&text));
                    if line != said {
                        progress.say(&line);
                        said = line;
                    }
                }
            }
        });
        let result = work();
        done.store(true, Ordering::Release);
        result
    })
}

/// How far a log of make is: DPDK's own count while it is built, else what has been compiled.
fn summary(log: &str) -> String {
    let compiled = log.lines().filter(|l| l.trim_start().starts_with("CC ")).count();
    let libraries = log.lines().filter(|l| l.trim_start().starts_with("LIB ")).count();
    let ninja = log.lines().rev().find(|l| l.starts_with('[') && l.contains('/'));
    match ninja.and_then(|l| l.split(']').next()) {
        _ if libraries > 0 => format!("    {compiled} files compiled, {libraries} libraries made"),
        Some(count) => format!("    step {}", count.trim_start_matches('[')),
        None => format!("    {} lines of log", log.lines().count()),
    }
}

/// A list of paths for a message, not longer than a few lines.
pub fn display_list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().take(5).map(|p| p.display().to_string()).collect();
    let more = paths.len().saturating_sub(names.len());
    if more > 0 {
        format!("{} and {more} more", names.join(", "))
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        assert_eq!(summary("libtool: x\n  CC isa.o\n"), "    2 lines of log");
        assert_eq!(
            summary("[3/231] Compiling x\n[4/231] Linking y\n"),
            "    step 4/231"
        );
        let text = "[4/231] y\n  CC lib/a.o\n  CC lib/b.o\n  LIB libspdk_a.a\n";
        assert_eq!(summary(text), "    2 files compiled, 1 libraries made");
    }

    #[test]
    fn the_architecture_is_a_flag() {
        assert_eq!(configure_flags("x86-64-v3", None)[0], "--target-arch=x86-64-v3");
    }

    #[test]
    fn the_sanitizer_is_a_flag() {
        let has =
            |sanitize, flag: &str| configure_flags("native", sanitize).contains(&format!("--enable-{flag}"));
        let (address, undefined) = (Some(Sanitizer::Address), Some(Sanitizer::Undefined));
        assert!(has(address, "asan") && !has(address, "ubsan"));
        assert!(has(undefined, "ubsan") && !has(undefined, "asan"));
        assert!(!has(None, "asan") && !has(None, "ubsan"));
    }

    #[test]
    fn long_lists_are_cut() {
        let paths: Vec<PathBuf> = (0..8).map(|i| PathBuf::from(format!("p{i}"))).collect();
        assert_eq!(display_list(&paths), "p0, p1, p2, p3, p4 and 3 more");
        assert_eq!(display_list(&paths[..1]), "p0");
    }
}
