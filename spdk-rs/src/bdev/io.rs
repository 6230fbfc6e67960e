//! One I/O: submit, wait for memory, complete.
//!
//! The operation's slot holds all that SPDK uses meanwhile: in its keep the buffer, and the entry
//! in SPDK's queue of those that wait for memory; and, as what all I/O of a channel shares, the
//! channel, and through it the descriptor.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll};

use spdk_sys::{spdk_bdev_desc, spdk_bdev_io, spdk_bdev_io_completion_cb, spdk_bdev_io_wait_entry};

use super::channel::ChannelInner;
use super::done::{end_within_c, on_done, on_done_within_c};
use super::kind::IoType;
use super::nvme_command::{self, NvmeIo};
use super::zcopy;
use crate::buf::{DmaBuf, DmaBufList};
use crate::op::Submitted;
use crate::op::slots::{self, At, SlotOp, Slots};
use crate::{Error, ErrorKind, NvmeStatus, Result, guard};

/// The memory of an I/O.
#[derive(Default)]
pub enum Payload {
    #[default]
    None,
    Buf(DmaBuf),
    List(DmaBufList),
    /// Data, and metadata in memory of its own.
    WithMetadata(DmaBuf, DmaBuf),
    /// What to compare with, and what to write then: of the same length.
    Lists(DmaBufList, DmaBufList),
    /// What SPDK knows the I/O by that is to be aborted.
    Target(*mut c_void),
    /// An NVMe command. It is large, and rare.
    Nvme(Box<NvmeIo>),
    /// Memory that is lent: SPDK's I/O, from the start's end to the end's start.
    Zcopy {
        populate: bool,
        lent: Option<NonNull<spdk_bdev_io>>,
    },
}

impl Payload {
    /// The buffer.
    ///
    /// # Safety
    /// It is one buffer.
    #[inline(always)]
    pub(super) unsafe fn buf(&mut self) -> &mut DmaBuf {
        match self {
            Self::Buf(buf) => buf,
            // SAFETY: by contract.
            _ => unsafe { std::hint::unreachable_unchecked() },
        }
    }
}

// Each slot has room for it, and each I/O goes through it.
const _: () = assert!(size_of::<Payload>() <= 3 * size_of::<usize>());

/// The slots of a channel's I/O.
pub(super) type IoSlots = Slots<Rc<ChannelInner>, Failure, Keep>;

/// An I/O, from its preparation to its end.
pub(super) type IoOp = SlotOp<Rc<ChannelInner>, Failure, Keep>;

/// By value, so that it stays in a register.
type IoAt<'a> = At<'a, Rc<ChannelInner>, Failure, Keep>;

/// What is to be done, and all that SPDK uses while it works.
#[repr(C)] // what waits comes last
pub(super) struct Keep {
    pub(super) payload: Payload,
    /// In bytes; checked before it is submitted, as the length.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Filled when the I/O waits for memory.
    wait: MaybeUninit<Wait>,
}

/// An I/O that waits for memory.
struct Wait {
    /// In SPDK's queue.
    entry: spdk_bdev_io_wait_entry,
    kind: IoType,
}

impl Keep {
    /// What is left when the future takes the memory along and leaves the rest to SPDK's queue.
    pub(super) fn without_wait(&mut self) -> Self {
        Self {
            payload: std::mem::take(&mut self.payload),
            wait: MaybeUninit::uninit(),
            ..*self
        }
    }

    /// Everything that can be known to be wrong with it without asking the device.
    #[cold]
    fn problem(&self, channel: &ChannelInner, kind: IoType) -> Result<()> {
        channel.check(kind, self.offset, self.len)?;
        let descriptor = channel.descriptor();
        let (_, blocks) = descriptor.blocks(self.offset, self.len);
        // SAFETY: the descriptor is open (checked just now, or kept so by the I/O that is to be
        // aborted), which keeps the bdev.
        let (metadata, atomic, lent) = unsafe {
            let bdev = spdk_sys::spdk_bdev_desc_get_bdev(descriptor.raw());
            let atomic = u64::from(spdk_sys::spdk_bdev_get_acwu(bdev));
            let lent = zcopy::limit(descriptor.raw()).unwrap_or(u64::MAX);
            (separate_metadata(descriptor.raw(), blocks), atomic, lent)
        };
        let (problem, why) = match &self.payload {
            Payload::Lists(..) if blocks > atomic => (
                ErrorKind::InvalidArgument,
                format!("{blocks} blocks: the device does no more than {atomic} at once"),
            ),
            Payload::Zcopy { .. } if blocks > lent => (
                ErrorKind::InvalidArgument,
                format!("{blocks} blocks: SPDK's buffers have room for {lent}"),
            ),
            Payload::WithMetadata(_, buf) => {
                let given = match kind {
                    IoType::Read => buf.capacity(),
                    _ => buf.len(),
                };
                match metadata {
                    None => (
                        ErrorKind::Unsupported,
                        "the device has no metadata in memory of its own".to_owned(),
                    ),
                    Some(bytes) if bytes != given as u64 => (
                        ErrorKind::InvalidArgument,
                        format!("{blocks} blocks have {bytes} bytes of metadata, not {given}"),
                    ),
                    Some(_) => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        Err(Error::new(problem, kind.what(), descriptor.name(), why))
    }
}

/// Why it did not go well.
pub(super) enum Failure {
    /// Refused before SPDK was asked.
    Invalid(Error),
    /// The device answered, and not well.
    Failed(NvmeStatus),
    /// SPDK did not take it: a negative errno.
    Refused(i32),
    /// The descriptor was closed, or the device removed, before it could be submitted.
    Gone,
    /// The future was dropped while it waited for memory.
    Orphaned,
    /// It was aborted while it waited for memory.
    Aborted,
}

/// Prepares an I/O. The length of a transfer is that of its memory.
#[inline]
pub(super) fn prepare(slots: &IoSlots, offset: u64, len: u64, payload: impl FnOnce() -> Payload) -> IoOp {
    slots.prepare(|| Keep {
        payload: payload(),
        offset,
        len,
        wait: MaybeUninit::uninit(),
    })
}

/// Prepares what is to abort an I/O that has not yielded yet.
pub(super) fn prepare_abort(target: &IoOp) -> Option<IoOp> {
    let cb_arg = target.cb_arg()?;
    target.beside(|| Keep {
        payload: Payload::Target(cb_arg),
        offset: 0,
        len: 0,
        wait: MaybeUninit::uninit(),
    })
}

/// One turn of the future of an I/O of a kind: checks it and hands it to SPDK with `submit` at the first, and
/// yields `finish` of what comes at the last, which takes the memory out.
///
/// # Errors
/// The I/O was refused before anything was done.
#[inline(always)]
pub(super) fn poll<R>(
    op: &mut IoOp,
    cx: &mut Context<'_>,
    kind: IoType,
    submit: impl FnOnce(&ChannelInner, IoType, &mut Keep, *mut c_void) -> i32,
    finish: impl FnOnce(Result<()>, &mut Payload) -> R,
) -> Poll<R> {
    let op = op.live();
    let at = op.at();
    if !at.has_succeeded() {
        // The short way: a task submits, and waits.
        if let Some((channel, keep)) = at.prepared() {
            if let Some(turn) = at.turn(cx) {
                if channel.is_fine(kind, keep.offset, keep.len) {
                    at.submit(|_, keep, cb_arg| match submit(channel, kind, keep, cb_arg) {
                        0 => Submitted::Pending,
                        rc => not_taken(channel, kind, keep, cb_arg, rc),
                    });
                    if at.is_awaited_by(turn) {
                        return Poll::Pending;
                    }
                }
            }
        }
        if !poll_otherwise(at, cx, kind) {
            return Poll::Pending;
        }
    }
    let mut done = op.done();
    let (channel, result, keep) = done.parts();
    let result = result.map_err(|failure| explain(channel, kind, failure));
    let finished = finish(result, &mut keep.payload);
    drop(done);
    Poll::Ready(finished)
}

/// The long way of [`poll`], for whoever polls. Answers whether the I/O has ended.
#[cold]
fn poll_otherwise(at: IoAt<'_>, cx: &Context<'_>, kind: IoType) -> bool {
    if at.prepared().is_some() {
        at.submit(|channel, keep, cb_arg| {
            // Most often only the waker is another one: nothing is wrong with it.
            let fine = channel.is_fine(kind, keep.offset, keep.len);
            if !fine || !channel.descriptor().owner().is_current() {
                return check(channel, kind, keep, cb_arg);
            }
            match submit_now(channel, kind, keep, cb_arg) {
                0 => Submitted::Pending,
                rc => not_taken(channel, kind, keep, cb_arg, rc),
            }
        });
    }
    if !at.has_ended() {
        at.wait(cx, at.turn(cx));
    }
    at.has_ended()
}

/// What is wrong with an I/O is found out before it is submitted, if anything is.
fn check(channel: &ChannelInner, kind: IoType, keep: &mut Keep, cb_arg: *mut c_void) -> Submitted<Failure> {
    match keep.problem(channel, kind) {
        Ok(()) => submit(channel, kind, keep, cb_arg),
        Err(error) => Submitted::Failed(Failure::Invalid(error)),
    }
}

/// SPDK did not take an I/O at the first attempt: it waits for memory, or something is wrong
/// with it.
#[cold]
fn not_taken(
    channel: &ChannelInner,
    kind: IoType,
    keep: &mut Keep,
    cb_arg: *mut c_void,
    rc: i32,
) -> Submitted<Failure> {
    if rc == -libc::ENOMEM {
        return submit(channel, kind, keep, cb_arg);
    }
    match keep.problem(channel, kind) {
        Ok(()) => Submitted::Failed(Failure::Refused(rc)),
        Err(error) => Submitted::Failed(Failure::Invalid(error)),
    }
}

#[cold]
fn explain(channel: &ChannelInner, kind: IoType, failure: &mut Failure) -> Error {
    let what = kind.what();
    let descriptor = channel.descriptor();
    match std::mem::replace(failure, Failure::Gone) {
        Failure::Invalid(error) => error,
        Failure::Refused(rc) => Error::from_errno(what, descriptor.name(), rc),
        Failure::Gone | Failure::Orphaned => descriptor.gone(what),
        Failure::Aborted => {
            let why = "aborted, before the device was given it";
            Error::new(ErrorKind::Canceled, what, descriptor.name(), why)
        }
        Failure::Failed(status) => {
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
fn submit(channel: &ChannelInner, kind: IoType, keep: &mut Keep, cb_arg: *mut c_void) -> Submitted<Failure> {
    let aborts = kind == IoType::Abort;
    // (What is in flight can be aborted as long as it is, and keeps channel and descriptor.)
    if !aborts && !channel.descriptor().is_open() {
        return Submitted::Failed(Failure::Gone);
    }
    // An I/O object may come free between the refusal and the attempt to queue, which SPDK
    // refuses in turn (-EINVAL): then the next attempt gets that object. It cannot go on for
    // ever, since nothing else runs on this thread meanwhile.
    for _ in 0..3 {
        let rc = submit_now(channel, kind, keep, cb_arg);
        match rc {
            0 => return Submitted::Pending,
            // Behind the I/O that it is to abort, an abort would come too late: it tries again.
            rc if rc != -libc::ENOMEM || aborts => return Submitted::Failed(Failure::Refused(rc)),
            _ => {}
        }
        // SAFETY: descriptor and channel are open, and kept so by the keep, which also holds the
        // entry in place until its callback has run (there is no way to take it back).
        let rc = unsafe {
            let bdev = spdk_sys::spdk_bdev_desc_get_bdev(channel.descriptor().raw());
            let entry = spdk_bdev_io_wait_entry {
                bdev,
                cb_fn: Some(on_memory),
                cb_arg,
                ..std::mem::zeroed()
            };
            let wait = keep.wait.write(Wait { entry, kind });
            spdk_sys::spdk_bdev_queue_io_wait(bdev, channel.raw(), &mut wait.entry)
        };
        if rc == 0 {
            // SAFETY: cb_arg is that of this operation, which has a future: orphans are not
            // submitted.
            unsafe { slots::set_waiting::<Rc<ChannelInner>, Failure, Keep>(cb_arg, true) };
            return Submitted::Pending;
        }
    }
    Submitted::Failed(Failure::Refused(-libc::ENOMEM))
}

/// Calls the function of the I/O's kind. Each of them calls back once if it returns 0 (it may do
/// so before it returns), and never otherwise.
pub(super) fn submit_now(path: &ChannelInner, kind: IoType, keep: &mut Keep, cb_arg: *mut c_void) -> i32 {
    let channel = path.raw();
    let descriptor = path.descriptor().raw();
    let done: spdk_bdev_io_completion_cb = Some(on_done);
    let (at, count) = path.descriptor().blocks(keep.offset, keep.len);
    // SAFETY: descriptor and channel are open, and stay so until the callback: the slots hold
    // them. The memory, too; it has `len` bytes: its capacity for a read, its initialised part
    // for what reads it only. This is the channel's thread: checked before the first attempt, and SPDK
    // calls back on it for the others.
    unsafe {
        match (kind, &mut keep.payload) {
            (IoType::Read, Payload::Buf(buf)) => {
                let buf = buf.as_mut_ptr().cast();
                spdk_sys::spdk_bdev_read_blocks(descriptor, channel, buf, at, count, done, cb_arg)
            }
            (IoType::Write, Payload::Buf(buf)) => {
                let buf = buf.as_mut_ptr().cast();
                spdk_sys::spdk_bdev_write_blocks(descriptor, channel, buf, at, count, done, cb_arg)
            }
            (IoType::Read, Payload::List(list)) => {
                let (iov, n) = list.iovecs(true);
                spdk_sys::spdk_bdev_readv_blocks(descriptor, channel, iov, n, at, count, done, cb_arg)
            }
            (IoType::Write, Payload::List(list)) => {
                let (iov, n) = list.iovecs(false);
                spdk_sys::spdk_bdev_writev_blocks(descriptor, channel, iov, n, at, count, done, cb_arg)
            }
            (IoType::WriteZeroes, _) => {
                spdk_sys::spdk_bdev_write_zeroes_blocks(descriptor, channel, at, count, done, cb_arg)
            }
            (IoType::Unmap, _) => {
                spdk_sys::spdk_bdev_unmap_blocks(descriptor, channel, at, count, done, cb_arg)
            }
            (IoType::Flush, _) => {
                spdk_sys::spdk_bdev_flush_blocks(descriptor, channel, at, count, done, cb_arg)
            }
            (IoType::Read, Payload::WithMetadata(buf, metadata)) => {
                if separate_metadata(descriptor, count) != Some(metadata.capacity() as u64) {
                    return -libc::EINVAL;
                }
                let (buf, metadata) = (buf.as_mut_ptr().cast(), metadata.as_mut_ptr().cast());
                let at = i64::try_from(at).unwrap_or(i64::MAX); // beyond any device: refused
                spdk_sys::spdk_bdev_read_blocks_with_md(
                    descriptor, channel, buf, metadata, at, count, done, cb_arg,
                )
            }
            (IoType::Write, Payload::WithMetadata(buf, metadata)) => {
                if separate_metadata(descriptor, count) != Some(metadata.len() as u64) {
                    return -libc::EINVAL;
                }
                let (buf, metadata) = (buf.as_mut_ptr().cast(), metadata.as_mut_ptr().cast());
                spdk_sys::spdk_bdev_write_blocks_with_md(
                    descriptor, channel, buf, metadata, at, count, done, cb_arg,
                )
            }
            (IoType::Compare, Payload::Buf(buf)) => {
                let buf = buf.as_mut_ptr().cast();
                spdk_sys::spdk_bdev_compare_blocks(descriptor, channel, buf, at, count, done, cb_arg)
            }
            (IoType::Compare, Payload::List(list)) => {
                let (iov, n) = list.iovecs(false);
                spdk_sys::spdk_bdev_comparev_blocks(descriptor, channel, iov, n, at, count, done, cb_arg)
            }
            (IoType::CompareAndWrite, Payload::Lists(expected, data)) => {
                let (old, n) = expected.iovecs(false);
                let (new, m) = data.iovecs(false);
                spdk_sys::spdk_bdev_comparev_and_writev_blocks(
                    descriptor, channel, old, n, new, m, at, count, done, cb_arg,
                )
            }
            (IoType::Reset, _) => {
                spdk_sys::spdk_bdev_reset(descriptor, channel, Some(on_done_within_c), cb_arg)
            }
            (IoType::Zcopy, Payload::Zcopy { populate, .. }) => {
                if zcopy::limit(descriptor).is_some_and(|most| count > most) {
                    return -libc::EINVAL;
                }
                let (populate, started) = (*populate, Some(zcopy::on_started as _));
                spdk_sys::spdk_bdev_zcopy_start(descriptor, channel, at, count, populate, started, cb_arg)
            }
            // It compares the target with what it knows, and does not follow it.
            (IoType::Abort, Payload::Target(target)) => {
                spdk_sys::spdk_bdev_abort(descriptor, channel, *target, Some(on_done_within_c), cb_arg)
            }
            (kind, Payload::Nvme(io)) => nvme_command::submit_now(kind, io, descriptor, channel, cb_arg),
            // No others are prepared.
            _ => -libc::EINVAL,
        }
    }
}

/// How much metadata so many blocks have in memory of its own; `None` if the device has none, or
/// interleaves it.
///
/// # Safety
/// The descriptor is open.
unsafe fn separate_metadata(descriptor: *mut spdk_bdev_desc, blocks: u64) -> Option<u64> {
    // SAFETY: an open descriptor keeps its bdev; these read only.
    unsafe {
        let bdev = spdk_sys::spdk_bdev_desc_get_bdev(descriptor);
        let size = u64::from(spdk_sys::spdk_bdev_get_md_size(bdev));
        spdk_sys::spdk_bdev_is_md_separate(bdev).then(|| blocks.saturating_mul(size))
    }
}

/// SPDK calls this, once, when there is memory for an I/O that waited: whoever frees an I/O object
/// calls it, also while SPDK goes through a queue of I/O. (It ends all resets that were asked for
/// during one in a loop until there is none: another one, begun in the midst of it, it would end
/// and still carry out.) So the next attempt is made outside of that.
unsafe extern "C" fn on_memory(cb_arg: *mut c_void) {
    // SAFETY: SPDK calls this on the thread that queued it, an spdk_thread. The message takes the
    // operation's pointer along, of which nobody else makes use meanwhile.
    unsafe {
        let thread = spdk_sys::spdk_get_thread();
        if spdk_sys::spdk_thread_send_msg(thread, Some(try_again), cb_arg) != 0 {
            try_again(cb_arg); // no memory for a message either: there it is as in C
        }
    }
}

/// The next attempt of an I/O that waited for memory.
unsafe extern "C" fn try_again(cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: cb_arg is that of `poll`'s operation, which has not ended; this runs on its
        // thread. The references end before `end_within_c`.
        unsafe {
            if slots::is_orphaned::<Rc<ChannelInner>, Failure, Keep>(cb_arg) {
                end_within_c(cb_arg, Err(Failure::Orphaned));
                return;
            }
            slots::set_waiting::<Rc<ChannelInner>, Failure, Keep>(cb_arg, false);
            let (channel, keep) = slots::keep::<Rc<ChannelInner>, Failure, Keep>(cb_arg);
            let kind = keep.wait.assume_init_ref().kind;
            if let Submitted::Failed(failure) = submit(channel, kind, keep, cb_arg) {
                end_within_c(cb_arg, Err(failure));
            }
        }
    });
}
