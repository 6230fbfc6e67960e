//! Obtains, patches, builds, probes, links and binds SPDK.
//!
//! The build script is a library too (`spdk-sys/build-test`), so that its unit tests and clippy run.
//! One module does one step; `run` below is their order. Nothing here uses the network.

#![warn(missing_docs)]

mod bindings;
mod config;
mod error;
mod link;
mod shim;

use config::{Config, Env};
use error::Result;

/// The build script.
pub fn main() {
    if let Err(error) = run() {
        eprintln!("\nspdk-sys: {error}\n");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=shim");
    let mut env = Env::process();
    let config = Config::from_env(&mut env)?;
    for line in env.rerun_lines() {
        println!("{line}");
    }
    let root = config.dir.clone().ok_or("no SPDK_SYS_DIR")?;
    shim::compile(&config, &root)?;
    bindings::generate(&config, &root)?;
    for line in link::plan(&root, &config.features).lines() {
        println!("{line}");
    }
    Ok(())
}
