//! One I/O: submit, wait for memory, complete.
//!
//! The keep of the operation holds all that SPDK uses meanwhile: the buffer, the channel (and
//! through it the descriptor), and the entry in SPDK's queue of those that wait for memory.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::rc::Rc;

use spdk_sys::{
    spdk_bdev, spdk_bdev_io, spdk_bdev_io_completion_cb, spdk_bdev_io_type, spdk_bdev_io_wait_entry,
};

use super::channel::ChannelInner;
use crate::buf::{DmaBuf, DmaBufList};
use crate::op::Submitted;
use crate::op::slots::{self, SlotOp, Slots};
use crate::{Error, ErrorKind, NvmeStatus, Result, guard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    WriteZeroes,
    Unmap,
    Flush,
    Reset,
}

impl Kind {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
            Self::Reset => "reset",
        }
    }

    /// Whether it needs a descriptor for writing. (SPDK counts flush among those.)
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Reset)
    }

    fn io_type(self) -> spdk_bdev_io_type {
        match self {
            Self::Read => spdk_sys::SPDK_BDEV_IO_TYPE_READ,
            Self::Write => spdk_sys::SPDK_BDEV_IO_TYPE_WRITE,
            Self::WriteZeroes => spdk_sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES,
            Self::Unmap => spdk_sys::SPDK_BDEV_IO_TYPE_UNMAP,
            Self::Flush => spdk_sys::SPDK_BDEV_IO_TYPE_FLUSH,
            Self::Reset => spdk_sys::SPDK_BDEV_IO_TYPE_RESET,
        }
    }

    pub(super) const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Unmap,
        Self::Flush,
        Self::Reset,
    ];

    /// Its bit in a set of kinds.
    pub(super) fn bit(self) -> u32 {
        1 << self as u32
    }

    /// # Safety
    /// The bdev exists.
    pub(super) unsafe fn supported_by(self, bdev: *mut spdk_bdev) -> bool {
        // SAFETY: the bdev exists (contract); this reads only. For zeroes the answer includes
        // that SPDK can write them from a buffer.
        unsafe { spdk_sys::spdk_bdev_io_type_supported(bdev, self.io_type()) }
    }
}

/// What is to be done.
pub(super) struct Request {
    pub(super) kind: Kind,
    /// In bytes, checked.
    pub(super) offset: u64,
    /// In bytes, checked.
    pub(super) len: u64,
    pub(super) payload: Payload,
}

/// The memory of a request.
pub enum Payload {
    None,
    Buf(DmaBuf),
    List(DmaBufList),
}

/// The slots of a channel's I/O.
pub(super) type IoSlots = Slots<Outcome, Keep>;

/// An I/O that was submitted.
pub(super) type Submission = SlotOp<Outcome, Keep>;

/// What SPDK uses while it works.
pub(super) struct Keep {
    request: Request,
    channel: Rc<ChannelInner>,
    /// In SPDK's queue while the I/O waits for memory; filled then.
    wait: MaybeUninit<spdk_bdev_io_wait_entry>,
}

/// What became of it.
pub(super) enum Outcome {
    Success,
    /// The device answered, and not well.
    Failed(NvmeStatus),
    /// SPDK did not take it: a negative errno.
    Refused(i32),
    /// The descriptor was closed, or the device removed, before it could be submitted.
    Gone,
    /// The future was dropped while it waited for memory.
    Orphaned,
}

/// Submits a request, whose range was checked, on a channel that is open.
#[inline]
pub(super) fn start(channel: &Rc<ChannelInner>, request: Request) -> Submission {
    let keep = Keep {
        request,
        channel: Rc::clone(channel),
        wait: MaybeUninit::uninit(),
    };
    channel.slots().start(keep, |keep: &mut Keep, cb_arg| {
        keep.channel.descriptor().io_begins();
        let submitted = submit(keep, cb_arg);
        if matches!(submitted, Submitted::Failed(_)) {
            keep.channel.descriptor().io_ended();
        }
        submitted
    })
}

/// What the user gets.
#[inline]
pub(super) fn finish((outcome, keep): (Outcome, Keep)) -> (Result<()>, Payload) {
    let result = match outcome {
        Outcome::Success => Ok(()),
        outcome => Err(explain(outcome, &keep)),
    };
    (result, keep.request.payload)
}

#[cold]
fn explain(outcome: Outcome, keep: &Keep) -> Error {
    let what = keep.request.kind.what();
    let descriptor = keep.channel.descriptor();
    match outcome {
        Outcome::Refused(rc) => Error::from_errno(what, descriptor.name(), rc),
        Outcome::Success | Outcome::Gone | Outcome::Orphaned => descriptor.gone(what),
        Outcome::Failed(status) => {
            let error = Error::of_io(what, descriptor.name(), status);
            if descriptor.is_removed() {
                return error
                    .with_kind(ErrorKind::Removed)
                    .with_detail("the device was removed meanwhile");
            }
            error
        }
    }
}

/// Hands the I/O to SPDK, or queues it for memory: the one place that knows of `ENOMEM`.
fn submit(keep: &mut Keep, cb_arg: *mut c_void) -> Submitted<Outcome> {
    if !keep.channel.descriptor().is_open() {
        return Submitted::Failed(Outcome::Gone);
    }
    // An I/O object may come free between the refusal and the attempt to queue, which SPDK
    // refuses in turn (-EINVAL): then the next attempt gets that object. It cannot go on for
    // ever, since nothing else runs on this thread meanwhile.
    for _ in 0..3 {
        let rc = submit_now(keep, cb_arg);
        match rc {
            0 => return Submitted::Pending,
            rc if rc != -libc::ENOMEM => return Submitted::Failed(Outcome::Refused(rc)),
            _ => {}
        }
        // SAFETY: descriptor and channel are open, and kept so by the keep, which also holds the
        // entry in place until its callback has run (there is no way to take it back).
        let rc = unsafe {
            let bdev = spdk_sys::spdk_bdev_desc_get_bdev(keep.channel.descriptor().raw());
            let entry = keep.wait.write(spdk_bdev_io_wait_entry {
                bdev,
                cb_fn: Some(on_memory),
                cb_arg,
                ..std::mem::zeroed()
            });
            spdk_sys::spdk_bdev_queue_io_wait(bdev, keep.channel.raw(), entry)
        };
        if rc == 0 {
            return Submitted::Pending;
        }
    }
    Submitted::Failed(Outcome::Refused(-libc::ENOMEM))
}

/// Calls the function of the request's kind. Each of them calls back once if it returns 0 (it
/// may do so before it returns), and never otherwise.
#[inline]
fn submit_now(keep: &mut Keep, cb_arg: *mut c_void) -> i32 {
    let channel = keep.channel.raw();
    let descriptor = keep.channel.descriptor().raw();
    let done: spdk_bdev_io_completion_cb = Some(on_done);
    let Request {
        kind,
        offset,
        len,
        payload,
    } = &mut keep.request;
    let (offset, len) = (*offset, *len);
    // SAFETY: descriptor and channel are open, and stay so until the callback: the keep holds
    // them. The memory, too; it has `len` bytes: its capacity for a read, its initialised part
    // for a write. This is the channel's thread: checked before the first attempt, and SPDK
    // calls back on it for the others.
    unsafe {
        match (*kind, payload) {
            (Kind::Read, Payload::Buf(buf)) => {
                let buf = buf.as_mut_ptr().cast();
                spdk_sys::spdk_bdev_read(descriptor, channel, buf, offset, len, done, cb_arg)
            }
            (Kind::Write, Payload::Buf(buf)) => {
                let buf = buf.as_mut_ptr().cast();
                spdk_sys::spdk_bdev_write(descriptor, channel, buf, offset, len, done, cb_arg)
            }
            (Kind::Read, Payload::List(list)) => {
                let (iov, count) = list.iovecs(true);
                spdk_sys::spdk_bdev_readv(descriptor, channel, iov, count, offset, len, done, cb_arg)
            }
            (Kind::Write, Payload::List(list)) => {
                let (iov, count) = list.iovecs(false);
                spdk_sys::spdk_bdev_writev(descriptor, channel, iov, count, offset, len, done, cb_arg)
            }
            (Kind::WriteZeroes, _) => {
                spdk_sys::spdk_bdev_write_zeroes(descriptor, channel, offset, len, done, cb_arg)
            }
            (Kind::Unmap, _) => spdk_sys::spdk_bdev_unmap(descriptor, channel, offset, len, done, cb_arg),
            (Kind::Flush, _) => spdk_sys::spdk_bdev_flush(descriptor, channel, offset, len, done, cb_arg),
            (Kind::Reset, _) => spdk_sys::spdk_bdev_reset(descriptor, channel, done, cb_arg),
            (Kind::Read | Kind::Write, Payload::None) => -libc::EINVAL,
        }
    }
}

/// SPDK calls this when an I/O has ended, on the thread that submitted it.
unsafe extern "C" fn on_done(bdev_io: *mut spdk_bdev_io, success: bool, cb_arg: *mut c_void) {
    guard::ffi((), || {
        let outcome = if success {
            Outcome::Success
        } else {
            // SAFETY: the I/O is ours from the callback until free_io.
            Outcome::Failed(unsafe { nvme_status(bdev_io) })
        };
        // SAFETY: the I/O is freed once. cb_arg is that of `start`'s operation, and SPDK calls
        // back once.
        unsafe {
            spdk_sys::spdk_bdev_free_io(bdev_io);
            end(cb_arg, outcome);
        }
    });
}

/// # Safety
/// The I/O has ended, and was not freed yet.
#[cold]
unsafe fn nvme_status(bdev_io: *mut spdk_bdev_io) -> NvmeStatus {
    let (mut cdw0, mut code_type, mut code) = (0, 0, 0);
    // SAFETY: by contract; this reads only.
    unsafe { spdk_sys::spdk_bdev_io_get_nvme_status(bdev_io, &mut cdw0, &mut code_type, &mut code) };
    NvmeStatus {
        code_type: u8::try_from(code_type).unwrap_or(u8::MAX),
        code: u8::try_from(code).unwrap_or(u8::MAX),
        cdw0,
    }
}

/// SPDK calls this, once, when there is memory for an I/O that waited.
unsafe extern "C" fn on_memory(cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: cb_arg is that of `start`'s operation, which has not ended; this runs on its
        // thread. The reference to the keep ends before `end`.
        unsafe {
            if slots::is_orphaned::<Outcome, Keep>(cb_arg) {
                end(cb_arg, Outcome::Orphaned);
                return;
            }
            let keep = slots::keep::<Outcome, Keep>(cb_arg);
            if let Submitted::Failed(outcome) = submit(keep, cb_arg) {
                end(cb_arg, outcome);
            }
        }
    });
}

/// Completes the operation, and lets a descriptor that waits for its I/O go.
///
/// # Safety
/// As [`slots::complete`], for an operation of `start`.
#[inline]
unsafe fn end(cb_arg: *mut c_void, outcome: Outcome) {
    // SAFETY: as the contract says. C is done with the keep, which holds the descriptor; the
    // reference to it ends before the operation completes.
    unsafe {
        let keep = slots::keep::<Outcome, Keep>(cb_arg);
        keep.channel.descriptor().io_ended();
        slots::complete::<Outcome, Keep>(cb_arg, outcome);
    }
}
