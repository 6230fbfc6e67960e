//! `spdk_tgt`: SPDK's storage target, with deletes of logical volumes that tell the truth.
//!
//! It takes the options, the JSON configuration and the RPCs of SPDK's own target. This package only reads them and
//! wires them to `spdk-rs`; what it adds to them is in the README.

mod config;
mod load;
mod options;
mod run;
mod socket;
mod values;
mod version;

use std::process::ExitCode;

use options::Request;

fn main() -> ExitCode {
    match options::parse(std::env::args_os()) {
        Ok(Request::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Request::Run(options)) => match run::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("spdk_tgt: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("spdk_tgt: {error}");
            ExitCode::from(options::USAGE_EXIT_CODE)
        }
    }
}
