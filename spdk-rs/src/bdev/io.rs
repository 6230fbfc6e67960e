//! One I/O: submit, wait for memory, complete.
//!
//! The keep of the operation holds all that SPDK uses meanwhile: the buffer, the channel (and
//! through it the descriptor), and the entry in SPDK's queue of those that wait for memory.

use std::ffi::c_void;
use std::rc::Rc;

use spdk_sys::{
    spdk_bdev, spdk_bdev_io, spdk_bdev_io_completion_cb, spdk_bdev_io_type, spdk_bdev_io_wait_entry,
};

use super::channel::ChannelInner;
use crate::buf::DmaBuf;
use crate::op::{self, Submitted};
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
    pub(super) buf: Option<DmaBuf>,
}

struct Keep {
    request: Request,
    channel: Rc<ChannelInner>,
    /// Its address is in SPDK's queue while the I/O waits for memory.
    wait: spdk_bdev_io_wait_entry,
}

/// What became of it.
enum Outcome {
    /// The device answered.
    Ended { success: bool, status: NvmeStatus },
    /// SPDK did not take it: a negative errno.
    Refused(i32),
    /// The descriptor was closed, or the device removed, before it could be submitted.
    Gone,
    /// The future was dropped while it waited for memory.
    Orphaned,
}

/// Runs a request, whose range was checked, on a channel that is open.
pub(super) async fn run(channel: Rc<ChannelInner>, request: Request) -> (Result<()>, Option<DmaBuf>) {
    let what = request.kind.what();
    let keep = Keep {
        request,
        channel,
        // SAFETY: a plain C struct of pointers, for which zero is valid.
        wait: unsafe { std::mem::zeroed() },
    };
    let (outcome, keep) = op::start(keep, op::discard, |keep: &mut Keep, cb_arg| {
        let descriptor = Rc::clone(keep.channel.descriptor());
        descriptor.io_begins();
        let submitted = submit(keep, cb_arg);
        if matches!(submitted, Submitted::Failed(_)) {
            descriptor.io_ended();
        }
        submitted
    })
    .await;
    let descriptor = keep.channel.descriptor();
    let result = match outcome {
        Outcome::Ended { success, status } => Error::check_io(what, descriptor.name(), success, status)
            .map_err(|error| {
                if descriptor.is_removed() {
                    return error
                        .with_kind(ErrorKind::Removed)
                        .with_detail("the device was removed meanwhile");
                }
                error
            }),
        Outcome::Refused(rc) => Error::check(what, descriptor.name(), rc),
        Outcome::Gone | Outcome::Orphaned => Err(descriptor.gone(what)),
    };
    (result, keep.request.buf)
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
            keep.wait.bdev = bdev;
            keep.wait.cb_fn = Some(on_memory);
            keep.wait.cb_arg = cb_arg;
            spdk_sys::spdk_bdev_queue_io_wait(bdev, keep.channel.raw(), &mut keep.wait)
        };
        if rc == 0 {
            return Submitted::Pending;
        }
    }
    Submitted::Failed(Outcome::Refused(-libc::ENOMEM))
}

/// Calls the function of the request's kind. Each of them calls back once if it returns 0 (it
/// may do so before it returns), and never otherwise.
fn submit_now(keep: &mut Keep, cb_arg: *mut c_void) -> i32 {
    let channel = keep.channel.raw();
    let descriptor = keep.channel.descriptor().raw();
    let Request {
        kind, offset, len, ..
    } = keep.request;
    let buf = match &mut keep.request.buf {
        Some(buf) => buf.as_mut_ptr().cast::<c_void>(),
        None => std::ptr::null_mut(),
    };
    let done: spdk_bdev_io_completion_cb = Some(on_done);
    // SAFETY: descriptor and channel are open, and stay so until the callback: the keep holds
    // them. The buffer, too; it has `len` bytes: its capacity for a read, its initialised part
    // for a write. This is the channel's thread: checked before the first attempt, and SPDK
    // calls back on it for the others.
    unsafe {
        match kind {
            Kind::Read => spdk_sys::spdk_bdev_read(descriptor, channel, buf, offset, len, done, cb_arg),
            Kind::Write => spdk_sys::spdk_bdev_write(descriptor, channel, buf, offset, len, done, cb_arg),
            Kind::WriteZeroes => {
                spdk_sys::spdk_bdev_write_zeroes(descriptor, channel, offset, len, done, cb_arg)
            }
            Kind::Unmap => spdk_sys::spdk_bdev_unmap(descriptor, channel, offset, len, done, cb_arg),
            Kind::Flush => spdk_sys::spdk_bdev_flush(descriptor, channel, offset, len, done, cb_arg),
            Kind::Reset => spdk_sys::spdk_bdev_reset(descriptor, channel, done, cb_arg),
        }
    }
}

/// SPDK calls this when an I/O has ended, on the thread that submitted it.
unsafe extern "C" fn on_done(bdev_io: *mut spdk_bdev_io, success: bool, cb_arg: *mut c_void) {
    guard::ffi((), || {
        let (mut cdw0, mut code_type, mut code) = (0, 0, 0);
        // SAFETY: the I/O is ours from the callback until free_io; it is read, then freed, once.
        unsafe {
            if !success {
                spdk_sys::spdk_bdev_io_get_nvme_status(bdev_io, &mut cdw0, &mut code_type, &mut code);
            }
            spdk_sys::spdk_bdev_free_io(bdev_io);
        }
        let status = NvmeStatus {
            code_type: u8::try_from(code_type).unwrap_or(u8::MAX),
            code: u8::try_from(code).unwrap_or(u8::MAX),
            cdw0,
        };
        // SAFETY: cb_arg is that of `run`'s operation, and SPDK calls back once.
        unsafe { finish(cb_arg, Outcome::Ended { success, status }) };
    });
}

/// SPDK calls this, once, when there is memory for an I/O that waited.
unsafe extern "C" fn on_memory(cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: cb_arg is that of `run`'s operation, which has not ended; this runs on its
        // thread. The reference to the keep ends before `finish`.
        unsafe {
            if op::is_orphaned::<Outcome, Keep>(cb_arg) {
                finish(cb_arg, Outcome::Orphaned);
                return;
            }
            let keep = op::keep::<Outcome, Keep>(cb_arg);
            if let Submitted::Failed(outcome) = submit(keep, cb_arg) {
                finish(cb_arg, outcome);
            }
        }
    });
}

/// Completes the operation, then lets a descriptor that waits for its I/O go.
///
/// # Safety
/// As [`op::complete`], on the channel's thread, for an operation of `run`.
unsafe fn finish(cb_arg: *mut c_void, outcome: Outcome) {
    // SAFETY: as the contract says.
    unsafe {
        let keep = op::keep::<Outcome, Keep>(cb_arg);
        let channel = Rc::clone(&keep.channel);
        op::complete::<Outcome, Keep>(cb_arg, outcome);
        channel.descriptor().io_ended();
    }
}
