//! The main job, on real parts: a delete of a busy backup over a live target and a live host.
//!
//! One program is all of it:
//!
//! * as a test (`cargo test --test scenario`) it runs the job and fails if any promise is broken;
//! * `scenario demo` runs it for a person to read, `scenario demo --control TARGET` runs it with a target that was
//!   built without the mend, and succeeds only if the checks catch what that one does;
//! * `scenario host …` is the host, in a process of its own, started by the two others.

#[path = "../common/mod.rs"]
mod common;

mod checks;
mod control;
mod delete;
mod host;
mod layout;
mod scenario;
mod seen;
mod set_up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::checks::Checks;
use crate::common::{Place, TargetOptions};
use crate::scenario::Scenario;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["host", options] => host::main(options),
        ["demo"] => demo(),
        ["demo", "--control", target] => control::show(Path::new(target)),
        _ => {
            let trials = vec![Trial::test("the_main_job", || {
                demo().map_err(|e| Failed::from(format!("{e:#}")))
            })];
            return libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nscenario: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all steps; any broken promise is an error.
fn demo() -> Result<()> {
    let mut checks = Checks::new(true);
    let mut place = Place::new()?;
    run(&mut checks, &place, None)?;
    place.discard();
    println!(
        "\nAll {} promises of 12 steps were kept, in {:.0} s.",
        checks.count(),
        checks.seconds()
    );
    Ok(())
}

/// Runs the steps with the target of this build, or with another.
fn run(checks: &mut Checks, place: &Place, target: Option<PathBuf>) -> Result<()> {
    let mut options = TargetOptions::in_place(place);
    if let Some(target) = target {
        options.binary = target;
    }
    let version = std::process::Command::new(&options.binary)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", options.binary.display()))?;
    if !version.status.success() {
        bail!("{} --version: {}", options.binary.display(), version.status);
    }
    println!("{}", String::from_utf8_lossy(&version.stdout).trim());
    Scenario::new(checks, place, options)?.run()
}
