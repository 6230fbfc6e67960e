//! How an I/O ends: the callbacks, and what they make of it.

use std::ffi::{c_int, c_void};
use std::rc::Rc;

use spdk_sys::spdk_bdev_io;

use super::channel::{ChannelInner, Spare};
use super::io::{Failure, Keep};
use super::kind::IoType;
use crate::executor::Waiter;
use crate::op::slots;
use crate::{NvmeStatus, guard};

/// SPDK calls this when an I/O has ended, on the thread that submitted it.
pub(super) unsafe extern "C" fn on_done(bdev_io: *mut spdk_bdev_io, success: bool, cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: the I/O is ours from the callback until free_io, which is called once. cb_arg is
        // that of `io::poll`'s operation, and SPDK calls back once.
        unsafe {
            if success {
                let kept = |channel: &_| Spare::keep(channel, bdev_io);
                end(cb_arg, Ok(()), kept, Waiter::wake);
            } else {
                let status = nvme_status(bdev_io);
                spdk_sys::spdk_bdev_free_io(bdev_io);
                end_within_c(cb_arg, Err(Failure::Failed(status)));
            }
        }
    });
}

/// As [`on_done`], for what SPDK may end while it goes through a queue, well or not: resets, and
/// aborts.
pub(super) unsafe extern "C" fn on_done_within_c(
    bdev_io: *mut spdk_bdev_io,
    success: bool,
    cb_arg: *mut c_void,
) {
    guard::ffi((), || {
        // SAFETY: as in `on_done`.
        unsafe {
            let result = match success {
                true => Ok(()),
                false => Err(Failure::Failed(nvme_status(bdev_io))),
            };
            spdk_sys::spdk_bdev_free_io(bdev_io);
            end_within_c(cb_arg, result);
        }
    });
}

/// # Safety
/// The I/O has ended, and was not freed yet.
#[cold]
pub(super) unsafe fn nvme_status(bdev_io: *mut spdk_bdev_io) -> NvmeStatus {
    let (mut cdw0, mut code_type, mut code) = (0, 0, 0);
    let (mut second_type, mut second_code) = (0, 0);
    let status = |code_type: c_int, code: c_int, cdw0| NvmeStatus {
        code_type: u8::try_from(code_type).unwrap_or(u8::MAX),
        code: u8::try_from(code).unwrap_or(u8::MAX),
        cdw0,
    };
    // SAFETY: by contract; these read only. What SPDK v20.07 itself has found to differ it tells
    // in the words of two fused commands alone.
    unsafe {
        let io_type = u32::from((*bdev_io).type_);
        if io_type == IoType::Compare as u32 || io_type == IoType::CompareAndWrite as u32 {
            spdk_sys::spdk_bdev_io_get_nvme_fused_status(
                bdev_io,
                &mut cdw0,
                &mut code_type,
                &mut code,
                &mut second_type,
                &mut second_code,
            );
            let first = status(code_type, code, cdw0);
            if first.is_miscompare() {
                return first;
            }
        }
        spdk_sys::spdk_bdev_io_get_nvme_status(bdev_io, &mut cdw0, &mut code_type, &mut code);
    }
    status(code_type, code, cdw0)
}

/// As [`end`], for what may come while SPDK goes through a queue: a reset aborts all that waits,
/// and ends all resets that were asked for meanwhile. A task that ran in between, and called SPDK,
/// would change the queue under its feet.
///
/// # Safety
/// As [`slots::complete`], for an operation of `io::poll`.
#[cold]
pub(super) unsafe fn end_within_c(cb_arg: *mut c_void, result: Result<(), Failure>) {
    // SAFETY: as the contract says.
    unsafe { end(cb_arg, result, |_| {}, Waiter::wake_later) }
}

/// Completes the operation, and lets a descriptor that waits for its I/O go. What `meanwhile` makes
/// for the channel is dropped in the end.
///
/// # Safety
/// As [`slots::complete`], for an operation of `io::poll`.
#[inline(always)] // for a success, which is a constant then
unsafe fn end<R>(
    cb_arg: *mut c_void,
    result: Result<(), Failure>,
    meanwhile: impl FnOnce(&Rc<ChannelInner>) -> R,
    wake: impl FnOnce(Waiter),
) {
    let ended = |channel: &Rc<ChannelInner>| {
        let kept = meanwhile(channel);
        channel.io_ended();
        kept
    };
    // SAFETY: as the contract says.
    unsafe { slots::complete::<_, _, Keep, _>(cb_arg, result, ended, wake) }
}
