//! What logical volumes cost. The program of `ci/bench --lvol`, which runs it, and not part of
//! `cargo bench` alone:
//!
//! ```sh
//! cargo bench -p spdk-rs --bench lvol -- local [--quick] [--no-huge]
//! ```
//!
//! `local` measures in one process (`local`), and prints a JSON line for each result; `scale N` is a part
//! of it alone (`scale`); `host` is an
//! NVMe/TCP host that verifies what it reads and times each I/O (`host`), told by lines on its
//! standard input.

mod host;
mod local;
mod scale;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use spdk_rs::Runtime;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    #[arg(long, global = true)]
    no_huge: bool,
    /// In MiB.
    #[arg(short = 's', default_value_t = 1024, global = true)]
    memory: u32,
    #[arg(short = 'm', default_value = "0x1", global = true)]
    core_mask: String,
    /// What cargo adds.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    Local {
        /// Less, and fewer volumes.
        #[arg(long)]
        quick: bool,
    },
    /// Only what a volume costs where there are so many.
    Scale {
        /// Volumes.
        volumes: usize,
    },
    Host {
        address: SocketAddr,
        nqn: String,
        /// I/Os in flight.
        depth: usize,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = Runtime::builder()
        .name("bench-lvol")
        .core_mask(&options.core_mask)
        .memory_mb(options.memory)
        .no_huge(options.no_huge)
        .no_pci(true)
        .build();
    let ran = runtime.and_then(|runtime| match options.what {
        What::Local { quick } => runtime.run(local::run(quick)),
        What::Scale { volumes } => runtime.run(scale::run(volumes)),
        What::Host { address, nqn, depth } => runtime.run(host::run(address, nqn, depth)),
    });
    let result = ran.map_err(anyhow::Error::from).and_then(|result| result);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lvol: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// For nanoseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are possible")
}

/// Percentiles in microseconds.
fn percentiles(histogram: &Histogram<u64>) -> Value {
    let micros = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({
        "count": histogram.len(), "p50_us": micros(0.5), "p99_us": micros(0.99), "p999_us": micros(0.999),
        "max_us": histogram.max() as f64 / 1e3,
    })
}
