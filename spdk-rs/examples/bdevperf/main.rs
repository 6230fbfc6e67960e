//! Measures block devices: SPDK's own `bdevperf`, as a program of this crate. It takes the same
//! options, prints the same totals, and percentiles too.
//!
//! ```sh
//! cargo run --release -p spdk-rs --example bdevperf -- --no-huge -q 32 -o 4096 -w randread -t 3
//! ```
//!
//! Without `-c` it makes a null device of its own. A second of warming up comes first, which SPDK's
//! does not have. Not there: jobs from a file (`-j`) or by RPC (`-z`), time limits of an I/O and
//! their aborts (`-k`, `-A`), zero-copy. `verify` is over when it has verified, whatever `-t` says.

mod job;
mod null;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use job::{Kind, Outcome, Plan, line};
use spdk_rs::Runtime;
use spdk_rs::bdev::{self, Bdev};
use spdk_rs::reactor::{Thread, cores};

const NULL_BLOCKS: u64 = (64 << 20) / 512;

#[derive(Parser)]
struct Options {
    /// I/Os in flight on each device.
    #[arg(short = 'q')]
    depth: usize,
    /// Bytes of an I/O.
    #[arg(short = 'o')]
    size: usize,
    #[arg(short = 'w')]
    workload: Workload,
    /// Seconds to measure; a second of warming up comes first.
    #[arg(short = 't')]
    seconds: u64,
    /// For `rw` and `randrw`: how many of 100 I/Os are reads.
    #[arg(short = 'M', default_value_t = 50)]
    reads: u64,
    /// Only this device. Default: all.
    #[arg(short = 'T')]
    device: Option<String>,
    /// The devices, as a JSON configuration. Default: a null device.
    #[arg(short = 'c', long = "json")]
    config: Option<PathBuf>,
    /// Make the null device one that is written in Rust.
    #[arg(long, conflicts_with = "config")]
    rust_null: bool,
    /// The cores. Each device is one core's, in turn.
    #[arg(short = 'm', default_value = "0x1")]
    core_mask: String,
    /// Every core sends I/O to each device, to a part of its own.
    #[arg(short = 'C')]
    every_core: bool,
    /// Go on when an I/O has failed.
    #[arg(short = 'f')]
    go_on: bool,
    /// Show the rate in real time, each so many seconds.
    #[arg(short = 'S')]
    show: Option<u64>,
    /// With `-S`: the mean of about so many periods. Default: of all.
    #[arg(short = 'P', requires = "show", default_value_t = 0)]
    periods: u64,
    /// Memory in MiB.
    #[arg(short = 's')]
    memory: Option<u32>,
    /// Measure the latency of each I/O, and print percentiles.
    #[arg(short = 'l')]
    latency: bool,
    #[arg(long)]
    no_huge: bool,
    /// Serve SPDK's RPCs here, for its histograms for instance.
    #[arg(short = 'r')]
    rpc_socket: Option<String>,
    /// No zero-copy: accepted for SPDK's bdevperf, whose default it is not. This one never does.
    #[arg(short = 'x')]
    _no_zcopy: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    Read,
    Write,
    Rw,
    Randread,
    Randwrite,
    Randrw,
    Unmap,
    #[value(name = "write_zeroes")]
    WriteZeroes,
    /// Of the whole device.
    Flush,
    /// Reads and writes; the device is reset five times a second. What a reset aborts is counted
    /// as failed.
    Reset,
    /// Writes a pattern with place and generation, reads it back, and compares; twice.
    Verify,
}

impl Options {
    fn plan(&self, bdev: &Bdev, seed: u64, part: (u64, u64)) -> Plan {
        let (kind, reads, random) = match self.workload {
            Workload::Read => (Kind::ReadWrite, 100, false),
            Workload::Write => (Kind::ReadWrite, 0, false),
            Workload::Rw => (Kind::ReadWrite, self.reads, false),
            Workload::Randread => (Kind::ReadWrite, 100, true),
            Workload::Randwrite => (Kind::ReadWrite, 0, true),
            Workload::Randrw => (Kind::ReadWrite, self.reads, true),
            Workload::Unmap => (Kind::Unmap, 0, false),
            Workload::WriteZeroes => (Kind::WriteZeroes, 0, false),
            Workload::Flush => (Kind::Flush, 0, false),
            Workload::Reset | Workload::Verify => (Kind::Reset, 50, false),
        };
        Plan {
            bdev: bdev.clone(),
            kind,
            size: self.size as u64,
            depth: self.depth,
            reads,
            random,
            part,
            seconds: self.seconds,
            latency: self.latency,
            go_on: self.go_on || kind == Kind::Reset,
            show: self.show.map(|period| (period, self.periods)),
            seed,
        }
    }
}

async fn measure(options: Options) -> Result<()> {
    let own = match (&options.config, options.rust_null) {
        (Some(_), _) => None,
        (None, true) => Some(null::register("Null0", NULL_BLOCKS)?),
        (None, false) => {
            bdev::null::create("Null0", NULL_BLOCKS, 512)?;
            None
        }
    };
    measure_all(&options).await?;
    if let Some(own) = own {
        own.unregister().await?;
    }
    Ok(())
}

async fn measure_all(options: &Options) -> Result<()> {
    let bdevs = match &options.device {
        Some(name) => vec![Bdev::find(name)?],
        None => Bdev::all()?,
    };
    ensure!(!bdevs.is_empty(), "there is no device to measure");
    if options.workload == Workload::Verify {
        for bdev in &bdevs {
            verify::verify(bdev, options.size, options.depth).await?;
        }
        return Ok(());
    }
    println!("Running I/O for {} seconds...", options.seconds);
    let cores = cores()?;
    let mut jobs = Vec::new();
    for (at, bdev) in bdevs.iter().enumerate() {
        let every = cores.len() as u64;
        let on = match options.every_core {
            true => cores
                .iter()
                .copied()
                .zip((0..).map(|part| (part, every)))
                .collect(),
            false => vec![(cores[at % cores.len()], (0, 1))],
        };
        for (core, part) in on {
            let plan = options.plan(bdev, jobs.len() as u64, part);
            let thread = Thread::on_core(core)?;
            let task = thread.spawn_on(move || job::run(plan))?;
            jobs.push((bdev.name(), core, thread, task));
        }
    }
    let mut outcomes = Vec::new();
    for (name, core, thread, task) in jobs {
        outcomes.push((name, core, thread, task.await??));
    }

    let size = options.size as u64;
    let per_second = |count: u64, outcome: &Outcome| count as f64 / outcome.seconds;
    let (mut all_done, mut all_failed) = (0.0, 0.0);
    for (name, core, thread, outcome) in &outcomes {
        println!(
            " Thread name: {}\n Core Mask: 0x{:x}",
            thread.name(),
            1_u128 << core
        );
        let (done, failed) = (
            per_second(outcome.done, outcome),
            per_second(outcome.failed, outcome),
        );
        (all_done, all_failed) = (all_done + done, all_failed + failed);
        report(name, done, failed, size);
    }
    println!(" =====================================================");
    report("Total", all_done, all_failed, size);
    for (name, _, _, outcome) in &outcomes {
        if let Some(latency) = &outcome.latency {
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| latency.value_at_quantile(part));
            println!(" {name:<20}: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns");
        }
    }
    Ok(())
}

fn report(name: &str, done: f64, failed: f64, size: u64) {
    println!("{}", line(name, done, size));
    if failed > 0.0 {
        println!(" {:<20}: {failed:10.2} Fail/s", "");
    }
}

fn run() -> Result<()> {
    let options = Options::parse();
    ensure!(options.depth > 0 && options.size > 0, "-q and -o must not be 0");
    ensure!(options.reads <= 100, "-M is of 100");
    ensure!(options.show != Some(0), "-S must not be 0");
    let mut builder = Runtime::builder()
        .name("bdevperf")
        .core_mask(options.core_mask.clone())
        .no_huge(options.no_huge)
        .no_pci(true);
    if let Some(memory) = options.memory {
        builder = builder.memory_mb(memory);
    }
    if let Some(socket) = &options.rpc_socket {
        builder = builder.rpc_socket(socket.clone());
    }
    if let Some(config) = &options.config {
        builder = builder.json_config(config);
    }
    builder.build()?.run(measure(options))?
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bdevperf: {error:#}");
            ExitCode::FAILURE
        }
    }
}
