//! Checks the lvstore in a file, or on a block device of the system, and mends it as far as it is told.
//! SPDK is not started, and no target may use the file meanwhile:
//!
//! ```text
//! cargo run --example check_lvstore FILE
//! cargo run --example check_lvstore FILE --repair [--forget BLOB] [--adopt BLOB] [--rename BLOB=NAME]
//! ```
//!
//! Exit status 0 if the store is clean (then), 1 if not, 2 if it could not be checked or repaired.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use spdk_rs::lvol::check::{Repair, Report, check_file, repair_file};

/// Checks the lvstore in a file.
#[derive(Parser)]
struct Options {
    /// The file, or block device of the system.
    file: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Mend what loses nothing, and what the options below say.
    #[arg(long)]
    repair: bool,
    /// Delete this blob; its data are lost.
    #[arg(long, value_name = "BLOB", value_parser = blob, requires = "repair")]
    forget: Vec<u64>,
    /// Make a volume of this zombie again.
    #[arg(long, value_name = "BLOB", value_parser = blob, requires = "repair")]
    adopt: Vec<u64>,
    /// Give this blob a name.
    #[arg(long, value_name = "BLOB=NAME", value_parser = renaming, requires = "repair")]
    rename: Vec<(u64, String)>,
}

/// The id of a blob, as the report says it.
fn blob(text: &str) -> Result<u64> {
    let id = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    id.with_context(|| format!("{text} is no id of a blob, as 0x100000001"))
}

fn renaming(text: &str) -> Result<(u64, String)> {
    let (id, name) = text.split_once('=').context("BLOB=NAME")?;
    Ok((blob(id)?, name.to_owned()))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("check_lvstore: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if !options.repair {
        let report = check_file(&options.file)?;
        print(options, &report)?;
        return Ok(report.is_clean());
    }
    let mut repair = Repair::new();
    for blob in &options.forget {
        repair = repair.forget(*blob);
    }
    for blob in &options.adopt {
        repair = repair.adopt(*blob);
    }
    for (blob, name) in &options.rename {
        repair = repair.rename(*blob, name);
    }
    let repaired = repair_file(&options.file, &repair)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&repaired)?);
    } else {
        println!("{}", repaired.before);
        for step in &repaired.steps {
            println!("repair: {step}");
        }
        println!("{}", repaired.after);
    }
    Ok(repaired.after.is_clean())
}

fn print(options: &Options, report: &Report) -> Result<()> {
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(report)?),
        false => println!("{report}"),
    }
    Ok(())
}
