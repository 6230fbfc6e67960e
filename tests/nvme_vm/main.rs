//! A QEMU machine with an emulated NVMe controller, and what must hold there: `ci/nvme-vm` runs it.
//!
//! One program is all of it:
//!
//! * `nvme_vm --machine DIR PART...` starts the machines and prints what was seen, part by part;
//! * as process 1 of a machine it is its `init`: it sets the guest up, runs the part's other half there, and tells what
//!   it saw over a serial line.
//! * `nvme_vm program NAME PARAMETERS` is what runs SPDK in the guest, in processes of its own.
//!
//! It is no test for `cargo test` without more: QEMU and a kernel have to be there.

#[path = "../common/mod.rs"]
mod common;

mod guest;
mod parts;
mod run;
mod vm;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::parts::Part;
use crate::run::Run;

const USAGE: &str = "nvme_vm --machine DIR [--full] [PART...]";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::init();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["program", name, params] => parts::program(name).and_then(|half| guest::program(half, params)),
        ["--list"] => {
            parts::list();
            Ok(())
        }
        ["--machine", dir, "--full", names @ ..] => run(dir, names, true),
        ["--machine", dir, names @ ..] => run(dir, names, false),
        _ => Err(anyhow::anyhow!("usage: {USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvme_vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs parts, all of them even if one fails.
fn run(dir: &str, names: &[&str], full: bool) -> Result<()> {
    let chosen: Vec<&Part> = parts::choose(names)?;
    let mut run = Run::new(Path::new(dir), full)?;
    for part in chosen {
        run.part(part);
    }
    let (kept, failed) = run.end();
    if !failed.is_empty() {
        bail!("FAILED: {}", failed.join(", "));
    }
    println!("\nAll {kept} checks were passed.");
    Ok(())
}
