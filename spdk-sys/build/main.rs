//! Obtains, patches, builds, probes, links and binds SPDK.
//!
//! One module does one step; [`obtain`] and [`emit`] are their order. Nothing here uses the network.
//!
//! The same program is the package `spdk-sys-build-test` (`spdk-sys/build-test`), so that its unit tests
//! and clippy run, so that its tests can run it whole, and so that `ci/setup` can build SPDK with its
//! progress on the terminal:
//!
//! * `spdk-sys-build prepare <directory of spdk-sys>` builds SPDK if need be and prints the path of its tree,
//! * `spdk-sys-build archives` lists the archives that a build tree must have.

#![warn(missing_docs)]

mod bindings;
mod compile;
mod config;
mod door;
mod error;
mod fingerprint;
mod link;
mod lock;
mod patch;
mod pinned;
mod probe;
mod progress;
mod rerun;
mod run;
mod sanitizer;
mod series;
mod shim;
mod source;
mod store;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use config::{Config, Env};
use error::{Context, Error, Result};
use pinned::Pinned;
use probe::Facts;
use progress::Progress;
use sanitizer::Sanitizer;
use series::Series;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        None => script(),
        Some("prepare") => prepare(arguments.next().as_deref()),
        Some("archives") => archives(),
        Some(other) => Err(Error::from(format!(
            "{other} is not known: say \"prepare\" or \"archives\"."
        ))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nspdk-sys: {error}\n");
            ExitCode::FAILURE
        }
    }
}

/// The build script.
fn script() -> Result<()> {
    let mut env = Env::process();
    let config = Config::from_env(&mut env);
    // First of all, so that a failed run is repeated when what failed it changes.
    print(&env.rerun_lines());
    let config = config?;
    print(&rerun::own_files(&config));
    let spdk = obtain(&config)?;
    emit(&config, &spdk)
}

/// As a program: what cargo would say is filled in where it is missing.
fn prepare(directory: Option<&str>) -> Result<()> {
    let Some(directory) = directory else {
        return Err(Error::from(
            "say the directory of spdk-sys: spdk-sys-build prepare spdk-sys",
        ));
    };
    let directory = std::fs::canonicalize(directory).context(|| format!("open {directory}"))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut env = Env::with(move |name| match name {
        "CARGO_MANIFEST_DIR" => Some(directory.clone().into()),
        "TARGET" => Some("x86_64-unknown-linux-gnu".into()),
        "NUM_JOBS" => Some(jobs.to_string().into()),
        "OUT_DIR" => Some(std::env::temp_dir().into()),
        _ => std::env::var_os(name),
    });
    let config = Config {
        features: config::Features::ALL,
        ..Config::from_env(&mut env)?
    };
    println!("{}", obtain(&config)?.root.display());
    Ok(())
}

/// Prints what a build tree must have.
fn archives() -> Result<()> {
    let root = std::path::Path::new("");
    for archive in link::plan(root, &config::Features::ALL).archives() {
        println!("{}", archive.display());
    }
    Ok(())
}

/// An SPDK that is built and has been checked.
struct Spdk {
    root: PathBuf,
    facts: Facts,
    rerun: Vec<String>,
}

/// Chooses the door, builds if need be, and checks what is there.
fn obtain(config: &Config) -> Result<Spdk> {
    let pinned = Pinned::read(&config.manifest_dir)?;
    let series = Series::read(&config.manifest_dir.join("patches"), config.series)?;
    if let Some(dir) = &config.dir {
        let (root, facts) = door::enter(config, &pinned, series.level, dir)?;
        let rerun = rerun::tree(&root, &link::plan(&root, &config.features));
        return Ok(Spdk { root, facts, rerun });
    }
    std::fs::create_dir_all(&config.cache).context(|| format!("make {}", config.cache.display()))?;
    let progress = Progress::new(&config.cache);
    let entry = compile::ensure(config, &pinned, &series, &progress)?;
    let root = entry.tree();
    let facts = probe::ask(&root, &config.manifest_dir.join("shim/probe.c"))?;
    door::check(config, &pinned, series.level, &root, &facts)?;
    Ok(Spdk {
        root,
        facts,
        rerun: rerun::cached(config, &entry),
    })
}

/// Shim, bindings, and everything that cargo and the crates above must know.
fn emit(config: &Config, spdk: &Spdk) -> Result<()> {
    print(&spdk.rerun);
    tools::check(config, tools::Purpose::Link)?;
    tools::check_libclang()?;
    shim::compile(config, &spdk.root)?;
    bindings::generate(config, &spdk.root)?;
    bindings::write_stamp(config, spdk.facts.level)?;
    print(&link::plan(&spdk.root, &config.features).lines());
    if let Some(library) = config.sanitize.and_then(Sanitizer::library) {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    print(&[
        "cargo::rustc-check-cfg=cfg(spdk_patched)".to_owned(),
        "cargo::rustc-check-cfg=cfg(spdk_delete_patched)".to_owned(),
        format!("cargo::metadata=ROOT={}", spdk.root.display()),
        format!("cargo::metadata=INCLUDE={}", spdk.root.join("include").display()),
        format!("cargo::metadata=VERSION={}", spdk.facts.version_string()),
        format!("cargo::metadata=PATCHLEVEL={}", spdk.facts.level),
        format!("cargo::metadata=CONFIG={}", spdk.facts.config_string()),
        format!("cargo::metadata=SERIES={}", config.series.name()),
    ]);
    if spdk.facts.level > 0 {
        println!("cargo::rustc-cfg=spdk_patched");
    }
    if spdk.facts.level > 0 && spdk.facts.level % 2 == 0 {
        println!("cargo::rustc-cfg=spdk_delete_patched");
    }
    if spdk.facts.level == 0 {
        println!("cargo::warning=linking an SPDK without the patches (SPDK_SYS_ALLOW_UNPATCHED=1)");
    }
    Ok(())
}

fn print(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}
