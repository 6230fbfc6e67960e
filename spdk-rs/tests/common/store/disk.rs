//! A disk in a file, written in Rust, that takes its time, and fails, ends the process or loses its power
//! as it is told. It may have a volatile write cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spdk_rs::bdev_module::{self, Async, AsyncBlockDevice, Io, Kind, Properties, Registered, Status};
use spdk_rs::reactor::yield_now;

use super::super::common::random::Random;
use super::cache::Cache;

pub const BLOCK: u32 = 4096;

/// What is to happen to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends, as by `kill -9`, before the n-th I/O that changes anything.
    Kill,
    /// The n-th I/O fails, and nothing is done.
    Fail,
    /// The power goes at the n-th I/O that changes or flushes anything: that one and all others fail from
    /// then on, and what is in the cache is lost, but for as many of 4 blocks as are `kept`.
    Cut { seed: u64, kept: u64 },
}

#[derive(Default)]
struct Plan {
    fault: Option<Fault>,
    /// I/O that go before it.
    before: u64,
}

pub struct FileDisk {
    file: File,
    cache: Option<Mutex<Cache>>,
    plan: Mutex<Plan>,
    flushes: AtomicU64,
    /// Numbers the I/O to each block, for how long each takes: what goes elsewhere changes nothing.
    counts: Vec<AtomicU32>,
}

impl FileDisk {
    pub fn open(path: &Path, write_cache: bool) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        let blocks = file.metadata()?.len() / u64::from(BLOCK);
        Ok(Arc::new(Self {
            file,
            cache: write_cache.then(Mutex::default),
            plan: Mutex::default(),
            flushes: AtomicU64::new(0),
            counts: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
        }))
    }

    pub fn register(self: &Arc<Self>, name: &str) -> spdk_rs::Result<Registered> {
        bdev_module::register(name, Async::new(Arc::clone(self)))
    }

    /// The `nth` I/O from now on (the next is number 1) meets this fault.
    pub fn arm(&self, fault: Fault, nth: u64) {
        let is_cut = matches!(fault, Fault::Cut { .. });
        *self.plan() = Plan {
            fault: Some(fault),
            before: if is_cut { nth } else { nth - 1 },
        };
    }

    /// No more faults; whether the one that was planned has not come.
    pub fn disarm(&self) -> bool {
        std::mem::take(&mut *self.plan()).fault.is_some()
    }

    /// Flushes until now.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Whether the power has gone.
    pub fn is_dark(&self) -> bool {
        let plan = self.plan();
        matches!(plan.fault, Some(Fault::Cut { .. })) && plan.before == 0
    }

    /// The power goes now, unless it has gone.
    pub fn cut(&self, seed: u64, kept: u64) {
        if !self.is_dark() {
            self.arm(Fault::Cut { seed, kept }, 1);
            self.go_dark(seed, kept);
        }
    }

    /// All that is in the cache goes to the file.
    pub fn sync(&self) -> io::Result<()> {
        self.cache()
            .map_or(Ok(()), |mut cache| cache.flush(&self.file, u64::MAX))
    }

    fn go_dark(&self, seed: u64, kept: u64) {
        let cut = self
            .cache()
            .map(|mut cache| cache.cut(&self.file, &mut Random(seed), kept));
        cut.unwrap_or(Ok(())).expect("the file can be written");
    }

    fn cache(&self) -> Option<MutexGuard<'_, Cache>> {
        let cache = self.cache.as_ref()?;
        Some(cache.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this I/O fails. (It does not come back where the process is to end.)
    fn strike(&self, io: &mut Io) -> bool {
        let kind = io.kind();
        let changes = matches!(kind, Kind::Write | Kind::WriteZeroes | Kind::Unmap);
        let mut plan = self.plan();
        match plan.fault {
            Some(Fault::Cut { .. }) if plan.before == 0 => true,
            Some(Fault::Cut { .. }) if !changes && kind != Kind::Flush => false,
            Some(Fault::Cut { seed, kept }) => {
                plan.before -= 1;
                let goes = plan.before == 0;
                drop(plan);
                if goes {
                    if changes {
                        self.carry_out(io, 0).expect("the file can be written");
                    }
                    self.go_dark(seed, kept);
                }
                goes
            }
            Some(Fault::Kill) if !changes => false,
            Some(_) if plan.before > 0 => {
                plan.before -= 1;
                false
            }
            // SAFETY: ends this process, whatever it does.
            Some(Fault::Kill) => unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
                true
            },
            Some(Fault::Fail) => {
                plan.fault = None;
                true
            }
            None => false,
        }
    }

    fn carry_out(&self, io: &mut Io, flushed: u64) -> io::Result<()> {
        let mut at = io.offset();
        let len = io.num_bytes() as usize;
        if let Some(mut cache) = self.cache() {
            match io.kind() {
                Kind::Read => {
                    let mut data = vec![0; len];
                    self.file.read_exact_at(&mut data, at)?;
                    cache.read(at, &mut data);
                    io.fill_from(&data);
                }
                Kind::Write => {
                    let mut data = vec![0; len];
                    io.copy_to(&mut data);
                    cache.write(at, &data);
                }
                Kind::WriteZeroes => cache.write(at, &vec![0; len]),
                // What was unmapped may read as anything: here as this.
                Kind::Unmap => cache.write(at, &vec![0xdb; len]),
                Kind::Flush => cache.flush(&self.file, flushed)?,
                _ => {}
            }
            return Ok(());
        }
        match io.kind() {
            Kind::Read => {
                let mut data = vec![0; io.num_bytes() as usize];
                self.file.read_exact_at(&mut data, at)?;
                io.fill_from(&data);
            }
            Kind::Write => {
                for segment in io.segments() {
                    self.file.write_all_at(segment, at)?;
                    at += segment.len() as u64;
                }
            }
            Kind::WriteZeroes => self.file.write_all_at(&vec![0; io.num_bytes() as usize], at)?,
            // What was unmapped may read as anything: here as before.
            _ => {}
        }
        Ok(())
    }
}

impl AsyncBlockDevice for FileDisk {
    type Channel = ();

    fn properties(&self) -> Properties {
        let bytes = self.file.metadata().map_or(0, |file| file.len());
        let properties = Properties::new(BLOCK, bytes / u64::from(BLOCK))
            .product("File in Rust")
            .write_cache(self.cache.is_some());
        let able = [Kind::WriteZeroes, Kind::Unmap, Kind::Flush, Kind::Reset];
        able.into_iter().fold(properties, Properties::supports)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    async fn serve(&self, (): &(), io: &mut Io) -> Status {
        let block = io.offset() / u64::from(BLOCK);
        let count = self.counts[block as usize].fetch_add(1, Ordering::Relaxed);
        let mixed = (block << 16 ^ u64::from(count)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let turns = mixed >> 40 & 3;
        if io.kind() == Kind::Flush {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        // What others write meanwhile is not flushed.
        let flushed = self.cache().map_or(0, |cache| cache.now());
        for _ in 0..turns {
            yield_now().await;
        }
        if self.strike(io) {
            return Status::Failed;
        }
        match self.carry_out(io, flushed) {
            Ok(()) => Status::Success,
            Err(_) => Status::Failed,
        }
    }
}
