//! Zero-copy: a device lends the memory of some blocks, and takes it back.
//!
//! In C these are two I/Os with one object. Here they are one operation, pending from the start's
//! submission to the end's completion: so the device cannot close in between, and everybody who
//! waits for I/O waits for the loan. Whoever drops it ends it, without a commit.

use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll};

use spdk_sys::{spdk_bdev, spdk_bdev_desc, spdk_bdev_io};

use super::Channel;
use super::channel::ChannelInner;
use super::done::{end_within_c, nvme_status, on_done_within_c};
use super::io::{self, Failure, IoOp, Keep, Payload};
use super::kind::IoType;
use crate::op::slots::{self, Stage};
use crate::{Error, ErrorKind, Result, guard};

const WHAT: IoType = IoType::Zcopy;

/// The operation. Dropping it gives back what is lent.
struct Loan(IoOp);

/// Memory that a device lends, for a range of blocks; see [`Channel::zcopy`].
///
/// Its first [`len`](Self::len) bytes are initialised, of [`capacity`](Self::capacity) in all: all
/// of them if it was populated, else none at first. [`commit`](Self::commit) stores it;
/// [`abandon`](Self::abandon), or dropping it, does not.
///
/// It counts as I/O in flight: closing the device and removing it wait until it has ended, and so
/// for ever if it is forgotten.
#[must_use = "dropped, it stores nothing"]
#[doc(alias = "spdk_bdev_zcopy_end")]
pub struct Zcopy {
    loan: Loan,
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

static_assertions::assert_not_impl_any!(Zcopy: Send, Sync);

impl Channel {
    /// Borrows the memory of `len` bytes at `offset` from the device: as it is if `populate`, else to
    /// be overwritten as a whole.
    ///
    /// malloc lends its own memory: what is written there is stored at once, and abandoning it undoes
    /// nothing. For other devices SPDK lends a buffer, which it reads and writes as it is told; it has
    /// room for 64 KiB, or a little less where blocks are large. Devices that pass zero-copy on to
    /// another one (passthru, split, error) cannot be asked: in v20.07 they lend what the other one
    /// has taken back already.
    ///
    /// A future that is dropped gives back what comes.
    ///
    /// # Errors
    /// See [`Channel`]; [`ErrorKind::ReadOnly`] also for reading;
    /// [`ErrorKind::InvalidArgument`] for more than fits into a buffer.
    ///
    /// # Safety
    /// * It may be the memory of the device itself. Until the loan has ended nobody else writes to
    ///   these blocks, and, if its memory is written to, nobody reads them: by this channel or any
    ///   other, in this process or on another host.
    /// * SPDK has 1023 buffers (and 8191 for 8 KiB and less) for everything, and while none is left
    ///   this waits. In v20.07 nobody may reset the device while it waits for that. So do not borrow
    ///   as many from devices other than malloc.
    #[doc(alias = "spdk_bdev_zcopy_start")]
    pub async unsafe fn zcopy(&self, offset: u64, len: u64, populate: bool) -> Result<Zcopy> {
        let payload = || Payload::Zcopy { populate, lent: None };
        let mut loan = Loan(io::prepare(self.slots(), offset, len, payload));
        let io = std::future::poll_fn(|cx| loan.poll_started(cx)).await?;
        // SAFETY: the I/O has started, and was not ended: the loan does that. malloc and SPDK's
        // emulation, the only ones that are asked, lend the whole range in one piece.
        let iov = unsafe {
            debug_assert_eq!(io.as_ref().u.bdev.iovcnt, 1);
            *io.as_ref().u.bdev.iovs
        };
        let Some(ptr) = NonNull::new(iov.iov_base.cast()) else {
            unreachable!("a start that succeeds lends memory")
        };
        Ok(Zcopy {
            loan,
            ptr,
            len: if populate { iov.iov_len } else { 0 },
            capacity: iov.iov_len,
        })
    }
}

impl Zcopy {
    /// How many bytes are initialised.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is initialised.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes there are: those of the range.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The initialised part.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised, lent to us until this ends, and changed by
        // nobody else (the contract of `Channel::zcopy`).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The initialised part, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The part that is not initialised yet.
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let spare = self.capacity - self.len;
        // SAFETY: the bytes from `len` to `capacity` are lent to us; MaybeUninit asks no more.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(self.len).cast(), spare) }
    }

    /// Declares the first `len` bytes initialised.
    ///
    /// # Safety
    /// They are, and `len` is at most the capacity.
    pub unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity);
        self.len = len;
    }

    /// Overwrites all of it; all is initialised then.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] if `data` is not as long as the capacity; nothing is done then.
    pub fn copy_from(&mut self, data: &[u8]) -> Result<()> {
        if data.len() != self.capacity {
            let why = format!("{} bytes for a range of {}", data.len(), self.capacity);
            return Err(self.error(ErrorKind::OutOfRange, why));
        }
        // SAFETY: `capacity` bytes are lent to us, and cannot overlap `data`, which is borrowed while
        // this is borrowed exclusively (and else a loan of the same blocks, against the contract).
        unsafe {
            self.ptr
                .as_ptr()
                .copy_from_nonoverlapping(data.as_ptr(), data.len())
        };
        self.len = self.capacity;
        Ok(())
    }

    /// Stores what the memory holds, and gives it back. Possible also while the descriptor is
    /// closing, or its device being removed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if not all of it is initialised: it is abandoned then.
    /// [`ErrorKind::Io`] and others that the device reports: what is stored then is undefined.
    /// [`ErrorKind::WrongThread`].
    pub async fn commit(self) -> Result<()> {
        if self.len < self.capacity {
            let why = format!("only {} of {} bytes are initialised", self.len, self.capacity);
            return Err(self.error(ErrorKind::InvalidArgument, why));
        }
        self.loan.end(true).await
    }

    /// Gives the memory back, and stores nothing (but see [`Channel::zcopy`] for malloc).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn abandon(self) -> Result<()> {
        self.loan.end(false).await
    }

    fn error(&self, kind: ErrorKind, why: String) -> Error {
        let name = self.loan.0.context().map(|channel| channel.descriptor().name());
        Error::new(kind, WHAT.what(), name.unwrap_or_default(), why)
    }
}

impl Loan {
    /// The payload's I/O, while it is lent: then C has nothing to do.
    fn lent(&mut self) -> Option<&mut Option<NonNull<spdk_bdev_io>>> {
        if self.0.stage() != Stage::Pending {
            return None;
        }
        // SAFETY: the operation is pending, and the reference ends with that to this loan: before
        // anything is called that could end it. Only callbacks use the keep besides.
        let (_, keep) = unsafe { slots::keep::<Rc<ChannelInner>, Failure, Keep>(self.0.cb_arg()?) };
        match &mut keep.payload {
            Payload::Zcopy { lent, .. } => Some(lent),
            _ => None,
        }
    }

    fn poll_started(&mut self, cx: &mut Context<'_>) -> Poll<Result<NonNull<spdk_bdev_io>>> {
        if let Some(Some(io)) = self.lent() {
            return Poll::Ready(Ok(*io));
        }
        // It ends now only if it fails.
        if let Poll::Ready(Err(error)) = io::poll(&mut self.0, cx, WHAT, io::submit_now, |result, _| result) {
            return Poll::Ready(Err(error));
        }
        // It may have arrived at once, without a message.
        match self.lent() {
            Some(Some(io)) => Poll::Ready(Ok(*io)),
            _ => Poll::Pending,
        }
    }

    /// Takes the I/O out, which must be ended then.
    fn take(&mut self) -> Option<(NonNull<spdk_bdev_io>, *mut c_void, Rc<ChannelInner>)> {
        let channel = Rc::clone(self.0.context()?);
        let io = self.lent()?.take()?;
        Some((io, self.0.cb_arg()?, channel))
    }

    async fn end(mut self, commit: bool) -> Result<()> {
        if let Some(channel) = self.0.context() {
            let descriptor = channel.descriptor();
            descriptor.owner().check(WHAT.what(), descriptor.name())?;
        }
        if let Some((io, cb_arg, _)) = self.take() {
            // SAFETY: it was taken out just now, on its thread.
            unsafe { end_now(io, commit, cb_arg) };
        }
        let submit = |_: &ChannelInner, _, _: &mut Keep, _| unreachable!("it was submitted before");
        std::future::poll_fn(|cx| io::poll(&mut self.0, cx, WHAT, submit, |result, _| result)).await
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some((io, cb_arg, channel)) = self.take() {
            let owner = channel.descriptor().owner();
            // SAFETY: it was taken out just now; this runs on its thread.
            owner.run(move || unsafe { end_now(io, false, cb_arg) });
        }
    }
}

/// Ends the I/O, and, when that has completed, the operation.
///
/// # Safety
/// The I/O was started by the operation `cb_arg`, on this thread, and is ended once.
unsafe fn end_now(io: NonNull<spdk_bdev_io>, commit: bool, cb_arg: *mut c_void) {
    // SAFETY: a zcopy I/O between its start and its end (contract), which calls back once if this
    // returns 0, perhaps before that. The keep holds descriptor and channel until then.
    unsafe {
        let rc = spdk_sys::spdk_bdev_zcopy_end(io.as_ptr(), commit, Some(on_done_within_c), cb_arg);
        if rc != 0 {
            spdk_sys::spdk_bdev_free_io(io.as_ptr());
            end_within_c(cb_arg, Err(Failure::Refused(rc)));
        }
    }
}

/// SPDK calls this when a start has ended, on the thread that submitted it; perhaps within the
/// submission, and perhaps to write to the I/O once more after this. So what is lent arrives by a
/// message.
pub(super) unsafe extern "C" fn on_started(bdev_io: *mut spdk_bdev_io, success: bool, cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: the I/O is ours from the callback until it is freed or ended. cb_arg is that of
        // the loan's operation, which is pending until then.
        unsafe {
            if !success {
                let status = nvme_status(bdev_io);
                spdk_sys::spdk_bdev_free_io(bdev_io);
                end_within_c(cb_arg, Err(Failure::Failed(status)));
                return;
            }
            let thread = spdk_sys::spdk_get_thread();
            if spdk_sys::spdk_thread_send_msg(thread, Some(on_lent), bdev_io.cast()) != 0 {
                on_lent(bdev_io.cast()); // no memory for a message either: there it is as in C
            }
        }
    });
}

/// What is lent has arrived; if nobody waits for it any more, it goes back.
unsafe extern "C" fn on_lent(bdev_io: *mut c_void) {
    guard::ffi((), || {
        let Some(io) = NonNull::new(bdev_io.cast::<spdk_bdev_io>()) else {
            return;
        };
        // SAFETY: sent by `on_started`, once, to its own thread. The I/O is ours, and holds the
        // argument of its callback; that operation is pending, and its keep used here alone: the
        // reference to it ends before anything else is called.
        unsafe {
            let cb_arg = io.as_ref().internal.caller_ctx;
            if slots::is_orphaned::<Rc<ChannelInner>, Failure, Keep>(cb_arg) {
                end_now(io, false, cb_arg);
                return;
            }
            if let Payload::Zcopy { lent, .. } =
                &mut slots::keep::<Rc<ChannelInner>, Failure, Keep>(cb_arg).1.payload
            {
                *lent = Some(io);
            }
            slots::wake::<Rc<ChannelInner>, Failure, Keep>(cb_arg);
        }
    });
}

/// Whether the device lends memory of its own.
///
/// # Safety
/// The bdev exists.
unsafe fn lends_itself(bdev: *mut spdk_bdev) -> bool {
    // SAFETY: the bdev exists (contract), and with it its table of functions, of which this one
    // only says what the device can do.
    unsafe {
        let can = (*(*bdev).fn_table).io_type_supported;
        can.is_some_and(|can| can((*bdev).ctxt, WHAT as u32))
    }
}

/// Whether what is lent can be used: it is memory of malloc's, or a buffer of SPDK's. What other
/// modules lend is what another device has lent them, and has taken back.
///
/// # Safety
/// The bdev exists.
pub(super) unsafe fn is_sound(bdev: *mut spdk_bdev) -> bool {
    // SAFETY: the bdev exists (contract); its module is static.
    unsafe { !lends_itself(bdev) || super::text((*(*bdev).module).name) == "malloc" }
}

/// How many blocks can be lent at once, if there is a limit.
///
/// # Safety
/// The descriptor is open.
pub(super) unsafe fn limit(descriptor: *mut spdk_bdev_desc) -> Option<u64> {
    /// SPDK's large buffers, with their room for metadata.
    const BUFFER: u64 = spdk_sys::SPDK_BDEV_LARGE_BUF_MAX_SIZE as u64 / 512 * (512 + 16) + 512;
    // SAFETY: an open descriptor keeps its bdev; these read only.
    unsafe {
        let bdev = spdk_sys::spdk_bdev_desc_get_bdev(descriptor);
        if lends_itself(bdev) {
            return None;
        }
        let block = u64::from(spdk_sys::spdk_bdev_get_block_size(bdev));
        let metadata = match spdk_sys::spdk_bdev_is_md_separate(bdev) {
            true => u64::from(spdk_sys::spdk_bdev_get_md_size(bdev)),
            false => 0,
        };
        let alignment = spdk_sys::spdk_bdev_get_buf_align(bdev) as u64;
        Some(BUFFER.saturating_sub(alignment) / (block + metadata))
    }
}

impl fmt::Debug for Zcopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zcopy")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}
