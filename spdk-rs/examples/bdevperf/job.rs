//! One device, on one core.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use spdk_rs::bdev::{Bdev, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{interval, sleep};
use spdk_rs::spawn;

/// The longest latency that is told from longer ones, in ns.
const LONGEST: u64 = 60_000_000_000;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads and writes.
    ReadWrite,
    Unmap,
    WriteZeroes,
    Flush,
    /// Reads and writes, and the device is reset now and then: those in flight fail.
    Reset,
}

/// What a job is to do.
#[derive(Clone)]
pub struct Plan {
    pub bdev: Bdev,
    pub kind: Kind,
    /// Bytes of an I/O.
    pub size: u64,
    pub depth: usize,
    /// Of 100 I/Os, this many are reads.
    pub reads: u64,
    pub random: bool,
    /// The part of the device: the n-th of so many.
    pub part: (u64, u64),
    pub seconds: u64,
    pub latency: bool,
    /// An I/O that fails is counted, and does not end the job.
    pub go_on: bool,
    /// Show the rate each so many seconds: its mean so far, or a moving one over so many periods.
    pub show: Option<(u64, u64)>,
    pub seed: u64,
}

/// What it did.
pub struct Outcome {
    pub done: u64,
    pub failed: u64,
    pub seconds: f64,
    pub latency: Option<Histogram<u64>>,
}

/// What the job's tasks share.
struct Job {
    channel: Channel,
    plan: Plan,
    /// The first place, and how many there are.
    first: u64,
    places: u64,
    state: Cell<u64>,
    done: Cell<u64>,
    failed: Cell<u64>,
    stop: Cell<bool>,
    latency: Option<RefCell<Histogram<u64>>>,
}

impl Job {
    /// Where the next I/O goes, and whether it reads.
    fn next(&self) -> (u64, bool) {
        let mut x = self.state.get();
        let reads = self.plan.reads;
        if !self.plan.random {
            self.state.set(x.wrapping_add(1));
            return (self.offset(x % self.places), x * 61 % 100 < reads);
        }
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.set(x);
        let read = reads == 100 || (reads > 0 && x % 100 < reads);
        // A division would take as long as the rest of this.
        (self.offset(((x >> 32) * self.places) >> 32), read)
    }

    fn offset(&self, place: u64) -> u64 {
        (self.first + place) * self.plan.size
    }

    /// One I/O after the other, until the end. `B` is an `Instant` or, where nobody asks for
    /// latencies, nothing: the clock takes as long as an I/O of a null device.
    async fn reads_and_writes<B: Begun>(self: Rc<Self>, mut buf: DmaBuf) -> spdk_rs::Result<()> {
        while !self.stop.get() {
            let (offset, read) = self.next();
            let begun = B::now();
            let (result, back) = match read {
                true => self.channel.read(buf, offset).await.into_parts(),
                false => self.channel.write(buf, offset).await.into_parts(),
            };
            buf = back;
            self.count(result.map(drop), begun)?;
        }
        Ok(())
    }

    /// The same, of I/Os that carry no data.
    async fn others(&self) -> spdk_rs::Result<()> {
        while !self.stop.get() {
            let (offset, _) = self.next();
            let begun = Instant::now();
            let result = match self.plan.kind {
                Kind::Unmap => self.channel.unmap(offset, self.plan.size).await,
                Kind::WriteZeroes => self.channel.write_zeroes(offset, self.plan.size).await,
                _ => self.channel.flush().await,
            };
            self.count(result, begun)?;
        }
        Ok(())
    }

    #[inline(always)] // in the path of each I/O
    fn count(&self, result: spdk_rs::Result<()>, begun: impl Begun) -> spdk_rs::Result<()> {
        if let Err(error) = result {
            if !self.plan.go_on {
                self.stop.set(true);
                return Err(error);
            }
            self.failed.set(self.failed.get() + 1);
            return Ok(());
        }
        self.done.set(self.done.get() + 1);
        begun.record(self.latency.as_ref());
        Ok(())
    }

    async fn resets(&self) -> spdk_rs::Result<()> {
        while !self.stop.get() {
            sleep(Duration::from_millis(200)).await;
            self.channel.reset().await?;
        }
        Ok(())
    }

    /// Shows the rate in real time.
    async fn shows(&self, period: u64, periods: u64) -> spdk_rs::Result<()> {
        let mut clock = interval(Duration::from_secs(period))?;
        let (begun, mut before, mut rate) = (Instant::now(), 0, 0.0);
        while !self.stop.get() {
            clock.tick().await;
            let done = self.done.get();
            if periods == 0 {
                rate = done as f64 / begun.elapsed().as_secs_f64();
            } else {
                let now = (done - before) as f64 / period as f64;
                rate += (now - rate) * 2.0 / (periods + 1) as f64;
                before = done;
            }
            println!("{}", line(self.channel.name(), rate, self.plan.size));
        }
        Ok(())
    }
}

/// When an I/O began, if that is measured.
trait Begun {
    fn now() -> Self;
    fn record(self, latency: Option<&RefCell<Histogram<u64>>>);
}

impl Begun for () {
    fn now() -> Self {}
    fn record(self, _: Option<&RefCell<Histogram<u64>>>) {}
}

impl Begun for Instant {
    fn now() -> Self {
        Self::now()
    }
    fn record(self, latency: Option<&RefCell<Histogram<u64>>>) {
        if let Some(latency) = latency {
            let nanos = self.elapsed().as_nanos() as u64;
            latency.borrow_mut().saturating_record(nanos);
        }
    }
}

/// A line of the result.
pub fn line(name: &str, rate: f64, size: u64) -> String {
    let mib = rate * size as f64 / (1 << 20) as f64;
    format!(" {name:<20}: {rate:10.2} IOPS {mib:10.2} MiB/s")
}

/// Runs a job on the current core.
pub async fn run(plan: Plan) -> Result<Outcome> {
    let mode = match plan.kind {
        Kind::ReadWrite if plan.reads == 100 => Mode::ReadOnly,
        _ => Mode::ReadWrite,
    };
    let descriptor = plan.bdev.open(mode)?;
    let (at, parts) = plan.part;
    let places = descriptor.size() / plan.size / parts;
    let name = plan.bdev.name();
    ensure!(places > 0, "{name} is too small for I/O of {} bytes", plan.size);
    ensure!(places <= 1 << 32, "{name} has room for more than 2^32 I/Os");
    let job = Rc::new(Job {
        channel: descriptor.channel()?,
        first: places * at,
        places,
        state: Cell::new(match plan.random {
            true => 88_172_645_463_325_252 + plan.seed,
            false => 0,
        }),
        done: Cell::new(0),
        failed: Cell::new(0),
        stop: Cell::new(false),
        latency: match plan.latency {
            true => Some(RefCell::new(Histogram::new_with_max(LONGEST, 3)?)),
            false => None,
        },
        plan,
    });
    let mut tasks = Vec::new();
    for _ in 0..job.plan.depth {
        let own = Rc::clone(&job);
        tasks.push(match own.plan.kind {
            Kind::ReadWrite | Kind::Reset => {
                let buf = DmaBuf::zeroed(own.plan.size as usize)?;
                match own.plan.latency {
                    true => spawn(own.reads_and_writes::<Instant>(buf)),
                    false => spawn(own.reads_and_writes::<()>(buf)),
                }
            }
            _ => spawn(async move { own.others().await }),
        });
    }
    if job.plan.kind == Kind::Reset {
        let job = Rc::clone(&job);
        tasks.push(spawn(async move { job.resets().await }));
    }

    sleep(Duration::from_secs(1)).await;
    job.done.set(0);
    job.failed.set(0);
    if let Some(latency) = &job.latency {
        latency.borrow_mut().reset();
    }
    if let Some((period, periods)) = job.plan.show {
        let job = Rc::clone(&job);
        tasks.push(spawn(async move { job.shows(period, periods).await }));
    }
    let begun = Instant::now();
    sleep(Duration::from_secs(job.plan.seconds)).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (done, failed) = (job.done.get(), job.failed.get());
    job.stop.set(true);
    for task in tasks {
        task.await??;
    }
    let latency = job.latency.as_ref().map(|latency| latency.borrow().clone());
    drop(job);
    descriptor.close().await?;
    Ok(Outcome {
        done,
        failed,
        seconds,
        latency,
    })
}
