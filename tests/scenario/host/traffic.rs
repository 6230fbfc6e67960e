//! The host's I/O: once over everything, and without end in the background.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spdk_rs::reactor::sleep;
use spdk_rs::{Error, JoinHandle, Result, spawn};

use super::volume::Volume;
use crate::layout::{self, HOT_CLUSTERS, HOT_UNITS, Image, Ledger, UNITS, UNITS_PER_CLUSTER};

/// How many errors are kept in words.
const ERRORS_KEPT: usize = 5;
/// How long a task rests after an error.
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// I/Os under way at once when everything is written or read.
const DEPTH: u64 = 8;

/// What was done on one namespace in the background.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Units read, each compared with the ledger.
    pub reads: u64,
    /// Units written, each read back.
    pub writes: u64,
    /// The longest I/O, in microseconds.
    pub longest_us: u64,
    /// What went wrong: I/O errors and data that differ.
    pub errors: Vec<String>,
}

impl Counters {
    /// Units read and written.
    pub fn done(&self) -> u64 {
        self.reads + self.writes
    }
}

/// The answer of `host_status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    /// Namespace 1.
    pub volume: Counters,
    /// Namespace 2.
    pub backup: Counters,
}

/// The background work on one namespace.
pub struct Traffic {
    volume: Rc<Volume>,
    ledger: Rc<RefCell<Ledger>>,
    counters: RefCell<Counters>,
    stop: Cell<bool>,
    /// Errors are expected from now on, since the namespace is about to be removed.
    ending: Cell<bool>,
}

impl Traffic {
    /// Work on that namespace, none yet.
    pub fn new(volume: Rc<Volume>, ledger: Rc<RefCell<Ledger>>) -> Rc<Self> {
        Rc::new(Self {
            volume,
            ledger,
            counters: RefCell::default(),
            stop: Cell::new(false),
            ending: Cell::new(false),
        })
    }

    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        self.counters.borrow().clone()
    }

    /// Lets every task end after its present I/O.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// Says that the namespace will go: the first error ends a task and is none.
    pub fn expect_end(&self) {
        self.ending.set(true);
    }

    /// Starts a task that reads and, on the volume, writes.
    pub fn start(self: &Rc<Self>, seed: u64) -> JoinHandle<()> {
        let this = Rc::clone(self);
        spawn(async move {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while !this.stop.get() {
                // xorshift64: plain, and the same in every run.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let started = Instant::now();
                if let Err(error) = this.one(random).await {
                    if this.ending.get() {
                        return;
                    }
                    this.failed(error);
                    // An error may come at once, every time: the reactor has others to serve.
                    sleep(AFTER_ERROR).await;
                }
                let mut counters = this.counters.borrow_mut();
                let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                counters.longest_us = counters.longest_us.max(took);
            }
        })
    }

    fn failed(&self, error: String) {
        eprintln!("host: {:?}: {error}", self.volume.image());
        let mut counters = self.counters.borrow_mut();
        if counters.errors.len() < ERRORS_KEPT {
            counters.errors.push(error);
        }
    }

    /// One read, or one write and its reading back.
    async fn one(&self, random: u64) -> Result<(), String> {
        let writes = self.volume.image() == Image::Volume && random >> 40 & 1 == 0;
        let unit = if writes {
            layout::hot_unit(random % HOT_UNITS)
        } else {
            random % UNITS
        };
        let taken = self.volume.take(unit).await;
        if writes {
            self.volume
                .write_next(&self.ledger, &taken)
                .await
                .map_err(|e| e.to_string())?;
        }
        let wrong = self
            .volume
            .verify(&self.ledger, &taken)
            .await
            .map_err(|e| e.to_string())?;
        if wrong > 0 {
            return Err(format!(
                "unit {unit}: {wrong} sectors differ from what was written"
            ));
        }
        let mut counters = self.counters.borrow_mut();
        counters.reads += 1;
        counters.writes += u64::from(writes);
        Ok(())
    }
}

/// Writes a unit in each hot cluster, so that all of them are allocated in the volume itself.
pub async fn touch_hot(volume: &Volume, ledger: &RefCell<Ledger>) -> Result<()> {
    for cluster in 0..HOT_CLUSTERS {
        let taken = volume.take(layout::hot_unit(cluster * UNITS_PER_CLUSTER)).await;
        volume.write_next(ledger, &taken).await?;
    }
    Ok(())
}

/// Writes the next generation of the given units, several at a time; returns how many there were.
pub async fn write_all(
    volume: &Rc<Volume>,
    ledger: &Rc<RefCell<Ledger>>,
    has: fn(u64) -> bool,
) -> Result<u64> {
    let counts = each(volume, ledger, move |volume, ledger, unit| async move {
        if has(unit) {
            let taken = volume.take(unit).await;
            volume.write_next(&ledger, &taken).await?;
        }
        Ok(u64::from(has(unit)))
    });
    counts.await
}

/// Reads every unit and returns how many sectors differ.
pub async fn verify_all(volume: &Rc<Volume>, ledger: &Rc<RefCell<Ledger>>) -> Result<u64> {
    let counts = each(volume, ledger, |volume, ledger, unit| async move {
        let taken = volume.take(unit).await;
        volume.verify(&ledger, &taken).await
    });
    counts.await
}

/// Does something for each unit, several at a time, and adds up what that gives.
async fn each<F, G>(volume: &Rc<Volume>, ledger: &Rc<RefCell<Ledger>>, work: F) -> Result<u64>
where
    F: Fn(Rc<Volume>, Rc<RefCell<Ledger>>, u64) -> G + Copy + 'static,
    G: Future<Output = Result<u64>> + 'static,
{
    let tasks: Vec<_> = (0..DEPTH)
        .map(|first| {
            let (volume, ledger) = (Rc::clone(volume), Rc::clone(ledger));
            spawn(async move {
                let mut sum = 0;
                for unit in (first..UNITS).step_by(DEPTH as usize) {
                    sum += work(Rc::clone(&volume), Rc::clone(&ledger), unit).await?;
                }
                Ok::<u64, Error>(sum)
            })
        })
        .collect();
    let mut sum = 0;
    for task in tasks {
        sum += task.await.map_err(Error::from)??;
    }
    Ok(sum)
}
