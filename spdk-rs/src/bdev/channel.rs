//! A thread's path to an open block device.

use std::cell::Cell;
use std::fmt;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spdk_sys::{spdk_bdev_io, spdk_io_channel};

use super::descriptor::{Inner as DescriptorInner, Mode};
use super::io::{self, IoSlots, Payload};
use super::kind::{IoType, Kinds};
use super::transfer::{Read, Write};
use crate::buf::{DmaBuf, DmaBufList};
use crate::{Error, ErrorKind, Result};

/// What a [`Channel`] and its I/O share.
pub(super) struct ChannelInner {
    /// Null after the descriptor has let go.
    raw: Cell<*mut spdk_io_channel>,
    /// What may be submitted: nothing any more once the descriptor is closing.
    allowed: Cell<Kinds>,
    descriptor: Rc<DescriptorInner>,
    /// Its I/O that SPDK has not finished yet; the slots count it.
    in_flight: Arc<AtomicUsize>,
    /// The object of an I/O that has just ended, as long as its callback runs; null otherwise. See
    /// [`Spare`].
    spare: Cell<*mut spdk_bdev_io>,
}

impl ChannelInner {
    pub(super) fn new(raw: *mut spdk_io_channel, descriptor: Rc<DescriptorInner>) -> Rc<Self> {
        Rc::new(Self {
            raw: Cell::new(raw),
            allowed: Cell::new(descriptor.supported()),
            descriptor,
            in_flight: Arc::default(),
            spare: Cell::new(ptr::null_mut()),
        })
    }

    pub(super) fn descriptor(&self) -> &Rc<DescriptorInner> {
        &self.descriptor
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// No I/O is submitted from now on.
    pub(super) fn refuse(&self) {
        self.allowed.set(Kinds::NONE);
    }

    /// To be called when an I/O has ended.
    #[inline(always)]
    pub(super) fn io_ended(&self) {
        if self.allowed.get() == Kinds::NONE {
            self.descriptor.let_go_if_idle();
        }
    }

    /// An object to be used for an I/O, and the caller's. Null if there is none.
    #[inline(always)]
    pub(super) fn take_spare(&self) -> *mut spdk_bdev_io {
        let spare = self.spare.get();
        if !spare.is_null() {
            self.spare.set(ptr::null_mut());
        }
        spare
    }

    #[inline(always)]
    fn free_spare(&self) {
        #[cold]
        fn free(io: *mut spdk_bdev_io) {
            // SAFETY: by the contract of `Spare::keep`; and it was taken out.
            unsafe { spdk_sys::spdk_bdev_free_io(io) };
        }
        let spare = self.take_spare();
        if !spare.is_null() {
            free(spare);
        }
    }

    /// The C channel. Not null while I/O is in flight.
    pub(super) fn raw(&self) -> *mut spdk_io_channel {
        self.raw.get()
    }

    /// Whether SPDK can be asked, on the channel's thread: what it cannot find out itself. (What it
    /// refuses is explained by [`Self::check`].)
    #[inline(always)]
    pub(super) fn is_fine(&self, kind: IoType, offset: u64, len: u64) -> bool {
        let descriptor = &self.descriptor;
        len != 0 && descriptor.is_aligned(offset | len) && self.allowed.get().contains(kind as u32)
    }

    /// Everything that can be known to fail without asking the device.
    #[cold]
    pub(super) fn check(&self, kind: IoType, offset: u64, len: u64) -> Result<()> {
        let descriptor = &self.descriptor;
        let what = kind.what();
        let name = descriptor.name();
        match kind {
            IoType::Abort => descriptor.owner().check(what, name)?, // of use to the last
            _ => drop(descriptor.check(what)?),
        }
        if kind.changes() && descriptor.mode() == Mode::ReadOnly {
            let why = "the device was opened for reading only";
            return Err(Error::new(ErrorKind::ReadOnly, what, name, why));
        }
        if !descriptor.supports(kind) {
            let why = "the device cannot do that";
            return Err(Error::new(ErrorKind::Unsupported, what, name, why));
        }
        if !kind.has_range() {
            return Ok(());
        }
        let range = || format!("{len} bytes at {offset}");
        if len == 0 {
            let why = format!("{}: there is nothing to do", range());
            return Err(Error::new(ErrorKind::InvalidArgument, what, name, why));
        }
        let block = descriptor.block_size();
        if offset % block != 0 || len % block != 0 {
            let why = format!("{} are not whole blocks of {block} bytes", range());
            return Err(Error::new(ErrorKind::Misaligned, what, name, why));
        }
        let size = descriptor.size();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let why = format!("{} reach beyond the device's {size} bytes", range());
            return Err(Error::new(ErrorKind::OutOfRange, what, name, why));
        }
        Ok(())
    }

    /// Gives the C channel back, on its thread.
    pub(super) fn put(&self) {
        self.free_spare();
        let raw = self.raw.replace(ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: a reference that this object holds, given back once, on the channel's
            // thread (the descriptor lets go there); no I/O is in flight on it.
            unsafe { spdk_sys::spdk_put_io_channel(raw) };
        }
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        let raw = self.raw.replace(ptr::null_mut());
        if raw.is_null() {
            return;
        }
        self.descriptor.owner().run(move || {
            // SAFETY: as in `put`; I/O in flight would hold a reference to this object.
            unsafe { spdk_sys::spdk_put_io_channel(raw) };
        });
    }
}

/// Keeps the object of an I/O that has ended well as long as its callback runs, and a task in it.
/// Most often that begins another I/O, which [takes](ChannelInner::take_spare) the object: to give
/// it back and to get one again takes SPDK a tenth of an I/O of a null device. One that is
/// left goes back when this is dropped.
pub(super) struct Spare(Rc<ChannelInner>);

impl Spare {
    /// # Safety
    /// The I/O was the channel's, has just succeeded, and is the caller's to be freed: not any more
    /// after this. This is dropped before the callback returns.
    #[inline(always)]
    pub(super) unsafe fn keep(channel: &Rc<ChannelInner>, io: *mut spdk_bdev_io) -> Self {
        // That of a callback around this one, in whose turn this I/O was ended.
        channel.free_spare();
        channel.spare.set(io);
        Self(Rc::clone(channel))
    }
}

impl Drop for Spare {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.free_spare();
    }
}

/// A path to an open block device, for I/O of any depth. It belongs to the thread that opened
/// the device.
///
/// Offsets and lengths are in bytes and multiples of the device's block size. A future that is
/// dropped leaves its I/O running: the buffer stays out of reach until the device is done with
/// it, and is freed then; [`Read::abort`] asks the device to end it sooner. Where SPDK is short of I/O objects (`ENOMEM`), I/O waits its turn; a
/// dropped future gives its turn up.
///
/// # Errors
/// Each operation may fail with [`ErrorKind::WrongThread`], [`ErrorKind::Closed`],
/// [`ErrorKind::Removed`], [`ErrorKind::Unsupported`] (the device cannot do it),
/// [`ErrorKind::OutOfRange`], [`ErrorKind::Misaligned`], [`ErrorKind::ReadOnly`], all before
/// anything is done; and with what the device reported, [`ErrorKind::Io`] in general, with the
/// NVMe status in [`Error::nvme_status`].
///
/// # Panics
/// None of them.
#[doc(alias = "spdk_io_channel")]
pub struct Channel(IoSlots);

static_assertions::assert_not_impl_any!(Channel: Send, Sync);

impl Channel {
    pub(super) fn new(inner: Rc<ChannelInner>) -> Self {
        let home = inner.descriptor.owner().home();
        Self(IoSlots::new(home, Arc::clone(&inner.in_flight), inner))
    }

    pub(super) fn slots(&self) -> &IoSlots {
        &self.0
    }

    fn descriptor(&self) -> &DescriptorInner {
        &self.0.context().descriptor
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.descriptor().name()
    }

    /// Reads at `offset`, as much as the buffer's capacity; all of it is initialised then.
    ///
    /// # Errors
    /// See [`Channel`]. The buffer's initialised part is as it was then, its content undefined.
    #[doc(alias = "spdk_bdev_read")]
    #[inline]
    pub fn read(&self, buf: DmaBuf, offset: u64) -> Read<DmaBuf> {
        Read::new(&self.0, buf, offset)
    }

    /// Writes the buffer's initialised part at `offset`.
    ///
    /// # Errors
    /// See [`Channel`]; [`ErrorKind::InvalidArgument`] if nothing in the buffer is initialised.
    #[doc(alias = "spdk_bdev_write")]
    #[inline]
    pub fn write(&self, buf: DmaBuf, offset: u64) -> Write<DmaBuf> {
        Write::new(&self.0, buf, offset)
    }

    /// As [`read`](Self::read), into several buffers.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[doc(alias = "spdk_bdev_readv")]
    pub fn readv(&self, bufs: DmaBufList, offset: u64) -> Read<DmaBufList> {
        Read::new(&self.0, bufs, offset)
    }

    /// As [`write`](Self::write), from several buffers.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[doc(alias = "spdk_bdev_writev")]
    pub fn writev(&self, bufs: DmaBufList, offset: u64) -> Write<DmaBufList> {
        Write::new(&self.0, bufs, offset)
    }

    /// Writes `len` zero bytes at `offset`.
    ///
    /// # Errors
    /// See [`Channel`].
    #[doc(alias = "spdk_bdev_write_zeroes")]
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.range(IoType::WriteZeroes, offset, len).await
    }

    /// Gives the blocks of a range back to the device; what they read as after that is the
    /// device's choice.
    ///
    /// # Errors
    /// See [`Channel`].
    #[doc(alias = "spdk_bdev_unmap")]
    pub async fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        self.range(IoType::Unmap, offset, len).await
    }

    /// Makes what was written lasting, for the whole device. Returns at once where the device
    /// has no write cache that could be flushed.
    ///
    /// # Errors
    /// See [`Channel`].
    #[doc(alias = "spdk_bdev_flush")]
    pub async fn flush(&self) -> Result<()> {
        let size = self.descriptor().size();
        match self.range(IoType::Flush, 0, size).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Resets the device: I/O in flight, of everybody, is aborted.
    ///
    /// # Errors
    /// See [`Channel`].
    #[doc(alias = "spdk_bdev_reset")]
    pub async fn reset(&self) -> Result<()> {
        self.range(IoType::Reset, 0, 0).await
    }

    async fn range(&self, kind: IoType, offset: u64, len: u64) -> Result<()> {
        let mut op = io::prepare(&self.0, offset, len, || Payload::None);
        std::future::poll_fn(move |cx| io::poll(&mut op, cx, kind, io::submit_now, |result, _| result)).await
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("name", &self.name()).finish()
    }
}
