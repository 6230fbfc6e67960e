//! What sleeping saves, and what it costs: the reactors' CPU time while nothing happens, and how
//! long a round trip to another core and a read of a file take, one after the other and after
//! pauses in which the reactors fall asleep.
//!
//! ```sh
//! cargo run --release -p spdk-rs --example idle            # they sleep
//! cargo run --release -p spdk-rs --example idle -- --spin  # they spin
//! ```
//!
//! Needs two cores, and neither root nor huge pages.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use spdk_rs::Runtime;
use spdk_rs::bdev::{self, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{Thread, cores, sleep};
use spdk_rs::runtime::Idle;

/// In ns: what takes longer counts as that.
const LONGEST: u64 = 60_000_000_000;

#[derive(Parser)]
struct Options {
    /// The reactors spin.
    #[arg(long)]
    spin: bool,
    /// Microseconds after which they sleep.
    #[arg(long)]
    after: Option<u64>,
    /// Microseconds that they sleep at most.
    #[arg(long)]
    at_most: Option<u64>,
    #[arg(short = 'm', default_value = "0x3")]
    core_mask: String,
    /// Serve SPDK's RPCs here: SPDK looks for a client each 4 ms then.
    #[arg(short = 'r')]
    rpc_socket: Option<String>,
    /// The file to read from; 16 MiB are written to it.
    #[arg(long, default_value = "idle.img")]
    file: PathBuf,
}

impl Options {
    fn idle(&self) -> Idle {
        let mut idle = Idle::sleep();
        if let Idle::Sleep { after, at_most, .. } = &mut idle {
            *after = self.after.map_or(*after, Duration::from_micros);
            *at_most = self.at_most.map_or(*at_most, Duration::from_micros);
        }
        if self.spin { Idle::Spin } else { idle }
    }
}

/// CPU time of the current OS thread.
fn cpu_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("a number")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

/// The part of its core that each reactor takes in two seconds.
async fn shares(homes: &[spdk_rs::reactor::ThreadHandle]) -> Result<()> {
    let mut tasks = Vec::new();
    for home in homes {
        tasks.push(home.spawn_on(|| async {
            let (begun, used) = (Instant::now(), cpu_time()?);
            sleep(Duration::from_secs(2)).await;
            anyhow::Ok((cpu_time()? - used).as_secs_f64() / begun.elapsed().as_secs_f64())
        })?);
    }
    for (task, home) in tasks.into_iter().zip(homes) {
        println!(
            "{:<26} {:5.1} % of its core, doing nothing",
            home.name(),
            task.await?? * 100.0
        );
    }
    Ok(())
}

/// By how much timers are late.
async fn timers() -> Result<()> {
    for asked in [100, 1000, 10_000].map(Duration::from_micros) {
        let mut late = Histogram::<u64>::new_with_max(LONGEST, 3)?;
        for _ in 0..200 {
            let begun = Instant::now();
            sleep(asked).await;
            late.saturating_record((begun.elapsed() - asked).as_nanos() as u64);
        }
        print(
            "lateness of a timer",
            &late,
            format_args!("of {} µs", asked.as_micros()),
        );
    }
    Ok(())
}

fn print(what: &str, times: &Histogram<u64>, when: std::fmt::Arguments) {
    let [p50, p99] = [0.5, 0.99].map(|part| times.value_at_quantile(part) as f64 / 1e3);
    println!("{what:<26} p50 {p50:8.1} µs  p99 {p99:8.1} µs  {when}");
}

/// Measures what `each` does, after pauses.
async fn measure<F: Future<Output = Result<()>>>(what: &str, mut each: impl FnMut() -> F) -> Result<()> {
    for (pause, rounds) in [(0, 20_000), (100, 2000), (1000, 1000), (10_000, 200)] {
        let mut times = Histogram::<u64>::new_with_max(LONGEST, 3)?;
        for _ in 0..rounds {
            sleep(Duration::from_micros(pause)).await;
            let begun = Instant::now();
            each().await?;
            times.saturating_record(begun.elapsed().as_nanos() as u64);
        }
        print(what, &times, format_args!("after pauses of {pause} µs"));
    }
    Ok(())
}

async fn run(file: PathBuf) -> Result<()> {
    let homes: Vec<_> = cores()?
        .into_iter()
        .map(Thread::on_core)
        .collect::<Result<_, _>>()?;
    shares(&homes).await?;
    timers().await?;

    let there = homes.last().context("a core")?.clone();
    measure("round trip to a core", || {
        let task = there.spawn_on(|| async {});
        async move { Ok(task?.await?) }
    })
    .await?;

    std::fs::write(&file, vec![1; 16 << 20])?;
    let disk = bdev::aio::create("aio0", &file, 4096)?;
    let descriptor = disk.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    let buf = std::cell::Cell::new(Some(DmaBuf::new(4096)?));
    let place = std::cell::Cell::new(0);
    measure("read of 4 KiB from a file", async || {
        let offset = place.replace((place.get() + 4096 * 61) % (16 << 20));
        let taken = buf.take().context("a buffer")?;
        buf.set(Some(channel.read(taken, offset).await.ok()?.1));
        Ok(())
    })
    .await?;
    drop(channel);
    descriptor.close().await?;
    bdev::aio::delete("aio0").await?;
    std::fs::remove_file(&file)?;
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut builder = Runtime::builder()
        .name("idle")
        .core_mask(options.core_mask.clone())
        .idle(options.idle())
        .no_huge(true)
        .memory_mb(512);
    if let Some(socket) = &options.rpc_socket {
        builder = builder.rpc_socket(socket.clone());
    }
    builder.build()?.run(run(options.file))?
}
