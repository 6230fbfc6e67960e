//! A RAM disk written in Rust, that fails, stalls and counts as it is told.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Registered, Status};
use spdk_rs::{Error, ErrorKind, Result};

/// What becomes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends with this status, and nothing is done.
    End(Status),
    /// It is done, and yet ends with this status.
    DoneButEnd(Status),
    /// It is dropped.
    Dropped,
    /// The device panics.
    Panics,
}

struct Fault {
    kind: Kind,
    /// How many of its kind go before it.
    after: usize,
    /// How many it strikes.
    times: usize,
    fate: Fate,
}

/// The device. Whoever registers it keeps an [`Arc`] of it, to give it orders.
pub struct TestDisk {
    properties: Properties,
    data: Mutex<Vec<u8>>,
    faults: Mutex<Vec<Fault>>,
    /// I/O that is held back, if any is to be.
    held: Mutex<Option<Vec<Io>>>,
    seen: Mutex<HashMap<Kind, usize>>,
    channels: AtomicUsize,
    refuses_channels: Mutex<Option<ErrorKind>>,
}

/// Devices that were dropped, in this process.
pub static DROPPED: AtomicUsize = AtomicUsize::new(0);

impl TestDisk {
    /// Zeroed blocks of 512 bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        let properties = Properties::new(512, bytes as u64 / 512).product("Test disk");
        let able = [Kind::WriteZeroes, Kind::Unmap, Kind::Flush, Kind::Reset];
        Self::with(able.into_iter().fold(properties, Properties::supports), bytes)
    }

    pub fn with(properties: Properties, bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            properties,
            data: Mutex::new(vec![0; bytes]),
            faults: Mutex::default(),
            held: Mutex::new(None),
            seen: Mutex::default(),
            channels: AtomicUsize::new(0),
            refuses_channels: Mutex::new(None),
        })
    }

    pub fn register(self: &Arc<Self>, name: &str) -> Result<Registered> {
        bdev_module::register(name, Arc::clone(self))
    }

    /// The `nth` I/O of this kind from now on (the next one is number 1) meets this fate.
    pub fn fail(&self, kind: Kind, nth: usize, fate: Fate) {
        self.fail_times(kind, nth, 1, fate);
    }

    /// So do those after it, `times` in all.
    pub fn fail_times(&self, kind: Kind, nth: usize, times: usize, fate: Fate) {
        lock(&self.faults).push(Fault {
            kind,
            after: nth - 1,
            times,
            fate,
        });
    }

    /// Nothing that was planned meets an I/O any more; whether there was something left.
    pub fn mend(&self) -> bool {
        !std::mem::take(&mut *lock(&self.faults)).is_empty()
    }

    /// Holds I/O back from now on.
    pub fn hold(&self) {
        lock(&self.held).get_or_insert_default();
    }

    /// Does what was held back, and holds no more back. On any thread.
    pub fn release(&self) {
        let held = lock(&self.held).take();
        for io in held.into_iter().flatten() {
            self.serve(io);
        }
    }

    pub fn take_held(&self) -> Vec<Io> {
        lock(&self.held).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// How many I/O of this kind the device was given.
    pub fn seen(&self, kind: Kind) -> usize {
        lock(&self.seen).get(&kind).copied().unwrap_or(0)
    }

    pub fn forget_seen(&self) {
        lock(&self.seen).clear();
    }

    /// How many channels there are now.
    pub fn channels(&self) -> usize {
        self.channels.load(Ordering::Acquire)
    }

    pub fn refuse_channels(&self, kind: Option<ErrorKind>) {
        *lock(&self.refuses_channels) = kind;
    }

    pub fn content(&self) -> Vec<u8> {
        lock(&self.data).clone()
    }

    fn fate(&self, kind: Kind) -> Option<Fate> {
        let mut faults = lock(&self.faults);
        let mut struck = None;
        for fault in faults.iter_mut().filter(|fault| fault.kind == kind) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if struck.is_none() && fault.times > 0 {
                fault.times -= 1;
                struck = Some(fault.fate);
            }
        }
        faults.retain(|fault| fault.times > 0);
        struck
    }

    /// Does what was held back, or taken.
    pub fn serve(&self, mut io: Io) {
        let mut data = lock(&self.data);
        let range = io.offset() as usize..(io.offset() + io.num_bytes()) as usize;
        match io.kind() {
            Kind::Read => assert_eq!(io.fill_from(&data[range.clone()]), range.len()),
            Kind::Write => assert_eq!(io.copy_to(&mut data[range.clone()]), range.len()),
            Kind::WriteZeroes | Kind::Unmap => data[range].fill(0),
            _ => {}
        }
        drop(data);
        io.complete(Status::Success);
    }
}

/// A test that has failed elsewhere should not fail here, too.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The device's code runs on a channel.
struct Inside<'a>(&'a Cell<bool>);

impl<'a> Inside<'a> {
    fn enter(inside: &'a Cell<bool>) -> Self {
        assert!(!inside.replace(true), "entered twice");
        Self(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Counts itself, and sees to it that the device is not entered twice.
pub struct TestChannel {
    disk: *const TestDisk,
    inside: Cell<bool>,
}

impl Drop for TestChannel {
    fn drop(&mut self) {
        // SAFETY: a device outlives its channels: that is what the tests count on, too.
        unsafe { (*self.disk).channels.fetch_sub(1, Ordering::AcqRel) };
    }
}

impl BlockDevice for TestDisk {
    type Channel = TestChannel;

    fn properties(&self) -> Properties {
        self.properties.clone()
    }

    fn channel(&self) -> Result<TestChannel> {
        if let Some(kind) = *lock(&self.refuses_channels) {
            return Err(Error::new(kind, "open channel", "test disk", "told to refuse"));
        }
        self.channels.fetch_add(1, Ordering::AcqRel);
        Ok(TestChannel {
            disk: self,
            inside: Cell::new(false),
        })
    }

    fn submit(&self, channel: &mut TestChannel, io: Io) {
        let _inside = Inside::enter(&channel.inside);
        *lock(&self.seen).entry(io.kind()).or_default() += 1;
        match self.fate(io.kind()) {
            Some(Fate::End(status)) => io.complete(status),
            Some(Fate::DoneButEnd(status)) => {
                if io.kind() == Kind::Write {
                    let start = io.offset() as usize;
                    io.copy_to(&mut lock(&self.data)[start..]);
                }
                io.complete(status);
            }
            Some(Fate::Dropped) => drop(io),
            Some(Fate::Panics) => panic!("told to panic"),
            None => match &mut *lock(&self.held) {
                Some(held) => held.push(io),
                None => self.serve(io),
            },
        }
    }

    fn drain(&self, channel: &mut TestChannel) {
        let _inside = Inside::enter(&channel.inside);
        self.release();
    }
}

impl Drop for TestDisk {
    fn drop(&mut self) {
        assert_eq!(self.channels(), 0, "a device outlives its channels");
        DROPPED.fetch_add(1, Ordering::AcqRel);
    }
}
