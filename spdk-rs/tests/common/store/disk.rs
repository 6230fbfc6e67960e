//! A disk in a file, written in Rust, that takes its time, and fails or ends the process as it is
//! told.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spdk_rs::bdev_module::{self, Async, AsyncBlockDevice, Io, Kind, Properties, Registered, Status};
use spdk_rs::reactor::yield_now;

const BLOCK: u32 = 4096;

/// What is to happen to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends, as by `kill -9`, before the n-th I/O that changes anything.
    Kill,
    /// The n-th I/O fails, and nothing is done.
    Fail,
}

#[derive(Default)]
struct Plan {
    fault: Option<Fault>,
    /// I/O that go before it.
    before: u64,
}

pub struct FileDisk {
    file: File,
    plan: Mutex<Plan>,
    /// Numbers the I/O to each block, for how long each takes: what goes elsewhere changes nothing.
    counts: Vec<AtomicU32>,
}

impl FileDisk {
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        let blocks = file.metadata()?.len() / u64::from(BLOCK);
        Ok(Arc::new(Self {
            file,
            plan: Mutex::default(),
            counts: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
        }))
    }

    pub fn register(self: &Arc<Self>, name: &str) -> spdk_rs::Result<Registered> {
        bdev_module::register(name, Async::new(Arc::clone(self)))
    }

    /// The `nth` I/O from now on (the next is number 1) meets this fault.
    pub fn arm(&self, fault: Fault, nth: u64) {
        *self.plan() = Plan {
            fault: Some(fault),
            before: nth - 1,
        };
    }

    /// No more faults; whether the one that was planned has not come.
    pub fn disarm(&self) -> bool {
        std::mem::take(&mut *self.plan()).fault.is_some()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this I/O fails. (It does not come back where the process is to end.)
    fn strike(&self, kind: Kind) -> bool {
        let changes = matches!(kind, Kind::Write | Kind::WriteZeroes | Kind::Unmap);
        let mut plan = self.plan();
        match plan.fault {
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

    fn carry_out(&self, io: &mut Io) -> io::Result<()> {
        let mut at = io.offset();
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
        let properties = Properties::new(BLOCK, bytes / u64::from(BLOCK)).product("File in Rust");
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
        for _ in 0..turns {
            yield_now().await;
        }
        if self.strike(io.kind()) {
            return Status::Failed;
        }
        match self.carry_out(io) {
            Ok(()) => Status::Success,
            Err(_) => Status::Failed,
        }
    }
}
