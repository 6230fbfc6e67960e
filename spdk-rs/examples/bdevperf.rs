//! Measures block devices: SPDK's own `bdevperf`, as a program of this crate. It takes the same
//! options (those that matter for a comparison), prints the same totals, and percentiles too.
//!
//! ```sh
//! cargo run --release -p spdk-rs --example bdevperf -- --no-huge -q 32 -o 4096 -w randread -t 3
//! ```
//!
//! Without `-c` it makes a null device of its own.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use spdk_rs::bdev::{self, Bdev, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::sleep;
use spdk_rs::{Runtime, spawn};

/// The longest latency that is told from longer ones, in ns.
const LONGEST: u64 = 60_000_000_000;

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
    /// The devices, as a JSON configuration.
    #[arg(short = 'c', long = "json")]
    config: Option<PathBuf>,
    #[arg(short = 'm', default_value = "0x1")]
    core_mask: String,
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
    /// Writes a pattern with place and generation, reads it back, and compares; twice.
    Verify,
}

/// What one device's tasks share.
struct Job {
    channel: Channel,
    size: u64,
    places: u64,
    /// Of 100 I/Os, this many are reads.
    reads: u64,
    random: bool,
    state: Cell<u64>,
    done: Cell<u64>,
    stop: Cell<bool>,
    latency: RefCell<Histogram<u64>>,
}

impl Job {
    /// Where the next I/O goes, and whether it reads.
    fn next(&self) -> (u64, bool) {
        let mut x = self.state.get();
        if !self.random {
            self.state.set(x.wrapping_add(1));
            return (x % self.places * self.size, x * 61 % 100 < self.reads);
        }
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.set(x);
        let read = self.reads == 100 || (self.reads > 0 && x % 100 < self.reads);
        // A division would take as long as the rest of this.
        ((((x >> 32) * self.places) >> 32) * self.size, read)
    }

    /// One I/O after the other.
    async fn run(self: Rc<Self>, mut buf: DmaBuf) -> spdk_rs::Result<()> {
        while !self.stop.get() {
            let (offset, read) = self.next();
            let (result, back) = match read {
                true => self.channel.read(buf, offset).await.into_parts(),
                false => self.channel.write(buf, offset).await.into_parts(),
            };
            result?;
            buf = back;
            self.done.set(self.done.get() + 1);
        }
        Ok(())
    }

    /// As [`run`](Self::run), and measures each. (On its own, since the clock takes as long as an
    /// I/O of a null device.)
    async fn run_measured(self: Rc<Self>, mut buf: DmaBuf) -> spdk_rs::Result<()> {
        while !self.stop.get() {
            let (offset, read) = self.next();
            let begun = Instant::now();
            let (result, back) = match read {
                true => self.channel.read(buf, offset).await.into_parts(),
                false => self.channel.write(buf, offset).await.into_parts(),
            };
            result?;
            buf = back;
            self.done.set(self.done.get() + 1);
            let nanos = begun.elapsed().as_nanos() as u64;
            self.latency.borrow_mut().saturating_record(nanos);
        }
        Ok(())
    }
}

/// Fills a buffer with what belongs at a place.
fn pattern(buf: &mut DmaBuf, place: u64, generation: u64) {
    let words = (0_u64..).map(|word| (place << 20 | word) ^ generation.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    buf.fill(0);
    for (at, word) in buf.as_mut_slice().chunks_mut(8).zip(words) {
        at.copy_from_slice(&word.to_le_bytes()[..at.len()]);
    }
}

/// Verifies a part of a device, all `depth` I/Os in flight at a time.
async fn verify(channel: Rc<Channel>, size: usize, places: u64, depth: usize) -> Result<()> {
    let places = places.min(4096);
    for generation in [1, 2] {
        for write in [true, false] {
            let next = Rc::new(Cell::new(0));
            let mut tasks = Vec::new();
            for _ in 0..depth {
                let (channel, next) = (Rc::clone(&channel), Rc::clone(&next));
                let (mut buf, mut expected) = (DmaBuf::zeroed(size)?, DmaBuf::zeroed(size)?);
                tasks.push(spawn(async move {
                    loop {
                        let place = next.replace(next.get() + 1);
                        if place >= places {
                            return anyhow::Ok(());
                        }
                        pattern(&mut expected, place, generation);
                        let offset = place * size as u64;
                        if write {
                            pattern(&mut buf, place, generation);
                            (_, buf) = channel.write(buf, offset).await.ok()?;
                            continue;
                        }
                        buf.fill(0xA5);
                        (_, buf) = channel.read(buf, offset).await.ok()?;
                        ensure!(
                            buf.as_slice() == expected.as_slice(),
                            "wrong data at {offset} of {}",
                            channel.name()
                        );
                    }
                }));
            }
            for task in tasks {
                task.await??;
            }
        }
    }
    println!(" {:<20}: {places} I/Os verified, twice", channel.name());
    Ok(())
}

async fn measure(options: Options) -> Result<()> {
    if options.config.is_none() {
        bdev::null::create("Null0", (64 << 20) / 512, 512)?;
    }
    let names = match &options.device {
        Some(name) => vec![name.clone()],
        None => Bdev::all()?
            .into_iter()
            .map(|bdev| bdev.name().to_owned())
            .collect(),
    };
    ensure!(!names.is_empty(), "there is no device to measure");
    let (reads, random) = match options.workload {
        Workload::Read => (100, false),
        Workload::Write => (0, false),
        Workload::Rw => (options.reads, false),
        Workload::Randread => (100, true),
        Workload::Randwrite => (0, true),
        Workload::Randrw => (options.reads, true),
        Workload::Verify => {
            for name in &names {
                let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
                let channel = Rc::new(descriptor.channel()?);
                let places = descriptor.size() / options.size as u64;
                verify(channel, options.size, places, options.depth).await?;
                descriptor.close().await?;
            }
            return Ok(());
        }
    };
    let mut jobs = Vec::new();
    let mut tasks = Vec::new();
    let mut descriptors = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let mode = if reads == 100 {
            Mode::ReadOnly
        } else {
            Mode::ReadWrite
        };
        let descriptor = Bdev::find(name)?.open(mode)?;
        let size = options.size as u64;
        ensure!(descriptor.size() >= size, "{name} is smaller than one I/O");
        ensure!(
            descriptor.size() / size <= 1 << 32,
            "{name} has room for more than 2^32 I/Os"
        );
        let job = Rc::new(Job {
            channel: descriptor.channel()?,
            size,
            places: descriptor.size() / size,
            reads,
            random,
            state: Cell::new(if random {
                88_172_645_463_325_252 + seed as u64
            } else {
                0
            }),
            done: Cell::new(0),
            stop: Cell::new(false),
            latency: RefCell::new(Histogram::new_with_max(LONGEST, 3)?),
        });
        descriptors.push(descriptor);
        for _ in 0..options.depth {
            let (job, buf) = (Rc::clone(&job), DmaBuf::zeroed(options.size)?);
            tasks.push(match options.latency {
                true => spawn(job.run_measured(buf)),
                false => spawn(job.run(buf)),
            });
        }
        jobs.push(job);
    }

    sleep(Duration::from_secs(1)).await;
    for job in &jobs {
        job.done.set(0);
        job.latency.borrow_mut().reset();
    }
    let begun = Instant::now();
    sleep(Duration::from_secs(options.seconds)).await;
    let seconds = begun.elapsed().as_secs_f64();
    let done: Vec<u64> = jobs.iter().map(|job| job.done.get()).collect();
    for job in &jobs {
        job.stop.set(true);
    }
    for task in tasks {
        task.await??;
    }

    let rate = |done: u64| done as f64 / seconds;
    let mib = |done: u64| rate(done) * options.size as f64 / (1 << 20) as f64;
    for (name, done) in names.iter().zip(&done) {
        println!(" {name:<20}: {:10.2} IOPS {:10.2} MiB/s", rate(*done), mib(*done));
    }
    println!(" =====================================================");
    let total = done.iter().sum();
    println!(
        " {:<20}: {:10.2} IOPS {:10.2} MiB/s",
        "Total",
        rate(total),
        mib(total)
    );
    if options.latency {
        for (name, job) in names.iter().zip(&jobs) {
            let latency = job.latency.borrow();
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| latency.value_at_quantile(part));
            println!(" {name:<20}: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns");
        }
    }
    drop(jobs);
    for descriptor in descriptors {
        descriptor.close().await?;
    }
    Ok(())
}

fn run() -> Result<()> {
    let options = Options::parse();
    ensure!(options.depth > 0 && options.size > 0, "-q and -o must not be 0");
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
