//! Random I/O at random depths, with futures dropped at every stage, over RAM, delay and error
//! bdevs, checked against a model (see `blocks`).
//!
//! `SPDK_RS_MODEL_OPS` says how many operations, `SPDK_RS_MODEL_SEED` which (see
//! `common::random`). A run that fails has said its seed.

#[path = "../common/mod.rs"]
mod common;

mod blocks;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use blocks::{BLOCK, Blocks};
use common::random::{Random, seed};
use common::{builder, isolated, run_with_small_pool};
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{Bdev, Channel, IoType, Mode, delay, error, malloc};
use spdk_rs::buf::{DmaBuf, DmaBufList, DmaPool};
use spdk_rs::reactor::yield_now;
use spdk_rs::{ErrorKind, op};

const BLOCKS: u64 = 512;
const CANARY: u8 = 0xa5;
/// Buffers have one size; an I/O has up to four.
const BUF: usize = 4 * BLOCK;
const BUFS: usize = 512;

type Done = (spdk_rs::Result<()>, Vec<DmaBuf>);

struct Disk {
    channel: Rc<Channel>,
    blocks: Blocks,
    /// The error bdev in it.
    faulty: Option<&'static str>,
    /// Failures that were asked for and not seen yet.
    faults: u64,
    /// I/O that began before this may have met a reset.
    reset: u64,
}

struct Flight {
    future: Pin<Box<dyn Future<Output = Done>>>,
    disk: usize,
    kind: IoType,
    range: Range<u64>,
    op: u64,
    /// Of its first buffer.
    place: Option<usize>,
}

struct Model {
    random: Random,
    disks: Vec<Disk>,
    flights: Vec<Flight>,
    pool: DmaPool,
    /// Idle buffers: nothing may write to them.
    shelf: Vec<DmaBuf>,
    /// Dropped writes, by their memory.
    dropped: HashMap<usize, (usize, Range<u64>, u64)>,
    clock: u64,
    done: u64,
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn take(&mut self) -> Option<DmaBuf> {
        if self.shelf.len() > 64 {
            let at = self.random.below(self.shelf.len() as u64) as usize;
            let mut buf = self.shelf.swap_remove(at);
            assert!(
                buf.as_slice().iter().all(|byte| *byte == CANARY),
                "written to after its return"
            );
            buf.fill(CANARY);
            return Some(buf);
        }
        let mut buf = self.pool.take()?;
        if let Some((disk, range, op)) = self.dropped.remove(&(buf.as_ptr() as usize)) {
            let now = self.tick();
            self.disks[disk].blocks.ended(&range, op, now);
        }
        buf.fill(CANARY);
        Some(buf)
    }

    fn give(&mut self, mut buf: DmaBuf) {
        buf.fill(CANARY);
        if self.random.below(4) > 0 {
            self.shelf.push(buf);
        }
    }

    /// Prepares an operation; `None` if memory is short.
    fn prepare(&mut self) -> Option<Flight> {
        let disk = self.random.below(self.disks.len() as u64) as usize;
        let faulty = self.disks[disk].faulty;
        let kind = match self.random.below(1000) {
            0..450 => IoType::Read,
            450..860 => IoType::Write,
            // (An error bdev fails them all.)
            860..910 if faulty.is_none() => IoType::WriteZeroes,
            860..965 => IoType::Unmap,
            965..998 => IoType::Flush,
            _ => IoType::Reset,
        };
        let op = self.tick();
        let channel = Rc::clone(&self.disks[disk].channel);
        let count = 1 + self.random.below(4);
        let bufs = match kind {
            IoType::Read | IoType::Write => (0..count).map(|_| self.take()).collect::<Option<Vec<_>>>()?,
            _ => Vec::new(),
        };
        let len = count * 4;
        let start = self.random.below(BLOCKS - len + 1);
        let range = start..start + len;
        let (offset, bytes) = (start * BLOCK as u64, len * BLOCK as u64);
        let place = bufs.first().map(|buf| buf.as_ptr() as usize);
        let future: Pin<Box<dyn Future<Output = Done>>> = match kind {
            IoType::Read if count == 1 => {
                let read = channel.read(bufs.into_iter().next()?, offset);
                Box::pin(async {
                    let (done, buf) = read.await.into_parts();
                    (done, vec![buf])
                })
            }
            IoType::Read => {
                let read = channel.readv(DmaBufList::new(bufs), offset);
                Box::pin(async {
                    let (done, list) = read.await.into_parts();
                    (done, list.into_bufs())
                })
            }
            IoType::Write => {
                let mut bufs = bufs;
                for (n, buf) in bufs.iter_mut().enumerate() {
                    blocks::fill(buf.as_mut_slice(), op, start + 4 * n as u64);
                }
                if count == 1 {
                    let write = channel.write(bufs.into_iter().next()?, offset);
                    Box::pin(async {
                        let (done, buf) = write.await.into_parts();
                        (done, vec![buf])
                    })
                } else {
                    let write = channel.writev(DmaBufList::new(bufs), offset);
                    Box::pin(async {
                        let (done, list) = write.await.into_parts();
                        (done, list.into_bufs())
                    })
                }
            }
            IoType::WriteZeroes => {
                Box::pin(async move { (channel.write_zeroes(offset, bytes).await, vec![]) })
            }
            IoType::Unmap => Box::pin(async move { (channel.unmap(offset, bytes).await, vec![]) }),
            IoType::Flush => Box::pin(async move { (channel.flush().await, vec![]) }),
            _ => Box::pin(async move { (channel.reset().await, vec![]) }),
        };
        Some(Flight {
            future,
            disk,
            kind,
            range,
            op,
            place,
        })
    }

    async fn start(&mut self) {
        let Some(mut flight) = self.prepare() else { return };
        if self.random.below(32) == 0 {
            return; // dropped before its first poll
        }
        let disk = &mut self.disks[flight.disk];
        match flight.kind {
            IoType::Write => disk.blocks.begins(&flight.range, flight.op, false),
            IoType::WriteZeroes | IoType::Unmap => disk.blocks.begins(&flight.range, flight.op, true),
            IoType::Reset => disk.reset = u64::MAX,
            _ => {}
        }
        match poll_fn(|cx| Poll::Ready(flight.future.as_mut().poll(cx))).await {
            Poll::Ready(done) => self.finish(flight, done),
            Poll::Pending if self.random.below(16) == 0 => self.abandon(flight),
            Poll::Pending => self.flights.push(flight),
        }
    }

    fn abandon(&mut self, flight: Flight) {
        if let (IoType::Write, Some(place)) = (flight.kind, flight.place) {
            self.dropped
                .insert(place, (flight.disk, flight.range.clone(), flight.op));
        }
    }

    fn finish(&mut self, flight: Flight, (done, bufs): Done) {
        self.done += 1;
        let now = self.tick();
        let oldest = self
            .flights
            .iter()
            .map(|f| f.op)
            .min()
            .unwrap_or(now)
            .min(flight.op);
        let disk = &mut self.disks[flight.disk];
        let changes = matches!(flight.kind, IoType::Write | IoType::WriteZeroes | IoType::Unmap);
        match done {
            Ok(()) if changes => disk.blocks.succeeded(&flight.range, flight.op, now, oldest),
            Ok(()) if flight.kind == IoType::Read => {
                for (n, buf) in bufs.iter().enumerate() {
                    disk.blocks
                        .check(flight.range.start + 4 * n as u64, buf.as_slice(), flight.op);
                }
            }
            Ok(()) => {}
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Io | ErrorKind::Canceled),
                    "{error}"
                );
                if disk.reset < flight.op {
                    assert!(disk.faults > 0, "nobody asked for this: {error}");
                    disk.faults -= 1;
                }
                if changes {
                    disk.blocks.ended(&flight.range, flight.op, now);
                }
            }
        }
        if flight.kind == IoType::Write {
            for (n, block) in bufs
                .iter()
                .flat_map(|buf| buf.as_slice().chunks_exact(BLOCK))
                .enumerate()
            {
                let number = flight.range.start + n as u64;
                assert!(
                    blocks::holds(block, flight.op, false, number),
                    "a write changed its buffer"
                );
            }
        }
        bufs.into_iter().for_each(|buf| self.give(buf));
    }

    /// One turn of the reactor, and what has ended in it; now and then one is dropped.
    async fn turn(&mut self) {
        yield_now().await;
        if !self.flights.is_empty() && self.random.below(4) == 0 {
            let at = self.random.below(self.flights.len() as u64) as usize;
            let flight = self.flights.swap_remove(at);
            self.abandon(flight);
        }
        let mut at = 0;
        while at < self.flights.len() {
            let future = &mut self.flights[at].future;
            match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
                Poll::Ready(done) => {
                    let flight = self.flights.swap_remove(at);
                    self.finish(flight, done);
                }
                Poll::Pending => at += 1,
            }
        }
    }

    /// Everything ends; then what is there is read.
    async fn rest(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.flights.is_empty() || op::outstanding() > 0 {
            ensure!(
                Instant::now() < deadline,
                "{} operations never end",
                op::outstanding()
            );
            self.turn().await;
        }
        ensure!(
            self.pool.available() + self.shelf.len() == BUFS,
            "buffers are missing"
        );
        self.dropped.clear();
        let now = self.tick();
        for disk in &mut self.disks {
            disk.blocks.all_ended(now);
            disk.reset = now;
            if let Some(name) = disk.faulty {
                error::fail(name, IoType::Read, 0)?;
                error::fail(name, IoType::Write, 0)?;
            }
        }
        for disk in 0..self.disks.len() {
            let began = self.tick();
            let whole = DmaBuf::new(BLOCKS as usize * BLOCK)?;
            let ((), whole) = self.disks[disk].channel.read(whole, 0).await.ok()?;
            self.disks[disk].blocks.check(0, whole.as_slice(), began);
            if let Some(name) = self.disks[disk].faulty {
                let kind = [IoType::Read, IoType::Write][self.random.below(2) as usize];
                let count = self.random.below(20) as u32;
                error::fail(name, kind, count)?;
                self.disks[disk].faults += u64::from(count);
            }
        }
        Ok(())
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn run(short: bool) -> Result<()> {
    let seed = seed("SPDK_RS_MODEL_SEED").unwrap_or(1);
    let count = number("SPDK_RS_MODEL_OPS").unwrap_or(20_000);
    eprintln!("SPDK_RS_MODEL_SEED={seed} SPDK_RS_MODEL_OPS={count}");
    for name in ["ram", "below", "beneath", "lowest"] {
        malloc::create(name, BLOCKS, BLOCK as u32)?;
    }
    let mut names = vec![("ram", None)];
    if short {
        // (A delay bdev and its base may wait for each other for ever then, and an error bdev fails.)
        names.push(("below", None));
    } else {
        error::create("below")?;
        error::create("lowest")?;
        delay::create("slow", "beneath", Latency::all(Duration::from_micros(30)))?;
        delay::create("bad", "EE_lowest", Latency::all(Duration::from_micros(20)))?;
        names.extend([
            ("EE_below", Some("EE_below")),
            ("slow", None),
            ("bad", Some("EE_lowest")),
        ]);
    }
    let mut disks = Vec::new();
    for (name, faulty) in names {
        let channel = Rc::new(Bdev::find(name)?.open(Mode::ReadWrite)?.channel()?);
        let blocks = Blocks::new(BLOCKS as usize);
        disks.push(Disk {
            channel,
            blocks,
            faulty,
            faults: 0,
            reset: 0,
        });
    }
    let pool = DmaPool::new(BUFS, BUF)?;
    let mut model = Model {
        random: Random(seed),
        disks,
        flights: Vec::new(),
        pool,
        shelf: Vec::new(),
        dropped: HashMap::new(),
        clock: 0,
        done: 0,
    };
    ensure!(model.disks.iter().all(|disk| disk.blocks.len() == BLOCKS));
    let mut depth = 32;
    for n in 0..count {
        if n % 256 == 0 {
            depth = [1, 4, 32, 128][model.random.below(4) as usize];
        }
        if n % 2048 == 2047 {
            model.rest().await?;
        }
        while model.flights.len() >= depth {
            model.turn().await;
        }
        model.start().await;
    }
    model.rest().await?;
    ensure!(
        model.done > count / 2,
        "only {} of {count} have ended",
        model.done
    );
    Ok(())
}

#[test]
fn against_a_model() {
    isolated("against_a_model", || {
        let runtime = builder().build().expect("options");
        runtime
            .run(run(false))
            .expect("SPDK runs")
            .expect("as the model says");
    });
}

#[test]
fn against_a_model_short_of_io_objects() {
    isolated("against_a_model_short_of_io_objects", || {
        run_with_small_pool(run(true)).expect("as the model says");
    });
}
