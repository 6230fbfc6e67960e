//! One namespace that the host has open, and the units on it.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use spdk_rs::bdev::{Bdev, Channel, Descriptor, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::sleep;
use spdk_rs::{Error, ErrorKind, Result};

use crate::layout::{self, Image, Ledger, Range, UNIT};

/// An open namespace.
pub struct Volume {
    image: Image,
    channel: Channel,
    descriptor: Descriptor,
    /// Units that somebody is at: a unit is not read while it is being written.
    taken: RefCell<HashSet<u64>>,
}

impl Volume {
    /// Opens the bdev of a namespace.
    pub fn open(name: &str, image: Image) -> Result<Self> {
        let mode = match image {
            Image::Volume => Mode::ReadWrite,
            Image::Backup => Mode::ReadOnly,
        };
        let descriptor = Bdev::find(name)?.open(mode)?;
        Ok(Self {
            image,
            channel: descriptor.channel()?,
            descriptor,
            taken: RefCell::default(),
        })
    }

    /// Closes it, when its I/O has come back.
    pub async fn close(self) -> Result<()> {
        drop(self.channel);
        self.descriptor.close().await
    }

    /// Whether the namespace has gone.
    pub fn is_removed(&self) -> bool {
        self.descriptor.is_removed()
    }

    /// Which image it is.
    pub fn image(&self) -> Image {
        self.image
    }

    /// Takes a unit, as soon as nobody else has it.
    pub async fn take(&self, unit: u64) -> Taken<'_> {
        while !self.taken.borrow_mut().insert(unit) {
            sleep(Duration::from_micros(100)).await;
        }
        Taken { volume: self, unit }
    }

    /// Reads a unit and compares it with the ledger; returns how many sectors differ.
    pub async fn verify(&self, ledger: &RefCell<Ledger>, unit: &Taken<'_>) -> Result<u64> {
        let buffer = DmaBuf::new(UNIT as usize)?;
        let ((), buffer) = self.channel.read(buffer, unit.unit * UNIT).await.ok()?;
        ledger
            .borrow_mut()
            .verify(self.image, unit.unit, buffer.as_slice())
            .map_err(ledger_failed)
    }

    /// Writes the next generation of a unit. The ledger knows of it before the device does.
    pub async fn write_next(&self, ledger: &RefCell<Ledger>, unit: &Taken<'_>) -> Result<()> {
        let unit = unit.unit;
        let Range { from, to } = ledger.borrow().get(self.image, unit);
        let next = to + 1;
        let mut buffer = DmaBuf::zeroed(UNIT as usize)?;
        layout::fill(buffer.as_mut_slice(), unit, next);
        let set = |range| {
            ledger
                .borrow_mut()
                .set(self.image, unit, range)
                .map_err(ledger_failed)
        };
        set(Range { from, to: next })?;
        self.channel.write(buffer, unit * UNIT).await.into_result()?;
        set(Range { from: next, to: next })
    }
}

/// A unit that one task is at.
pub struct Taken<'a> {
    volume: &'a Volume,
    unit: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.volume.taken.borrow_mut().remove(&self.unit);
    }
}

fn ledger_failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "write the ledger", "", error.to_string())
}
