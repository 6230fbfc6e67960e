//! The short way of a read or a write of one buffer, which is most of them: no choice of function
//! at run time, and the object of the I/O that ended just before, if there is one.

use std::ffi::{c_int, c_void};

use spdk_sys::{spdk_bdev_desc, spdk_bdev_io, spdk_bdev_io_completion_cb, spdk_io_channel};

use super::channel::ChannelInner;
use super::done::on_done;
use super::io::Keep;

/// [`submit_now`](super::io::submit_now) for a read into one buffer, where the short way has found nothing wrong.
///
/// # Safety
/// The payload is one buffer.
#[inline(always)]
pub(super) unsafe fn read(channel: &ChannelInner, keep: &mut Keep, cb_arg: *mut c_void) -> i32 {
    // SAFETY: by contract; it reads into the memory as far as it is long.
    unsafe {
        submit(
            channel,
            keep,
            cb_arg,
            spdk_sys::spdk_rs_bdev_read_again,
            spdk_sys::spdk_bdev_read_blocks,
        )
    }
}

/// [`submit_now`](super::io::submit_now) for a write from one buffer, as [`read`].
///
/// # Safety
/// The payload is one buffer.
#[inline(always)]
pub(super) unsafe fn write(channel: &ChannelInner, keep: &mut Keep, cb_arg: *mut c_void) -> i32 {
    // SAFETY: by contract; it only reads the memory, as far as it is initialised.
    unsafe {
        submit(
            channel,
            keep,
            cb_arg,
            spdk_sys::spdk_rs_bdev_write_again,
            spdk_sys::spdk_bdev_write_blocks,
        )
    }
}

type TransferFn = unsafe extern "C" fn(
    *mut spdk_bdev_desc,
    *mut spdk_io_channel,
    *mut c_void,
    u64,
    u64,
    spdk_bdev_io_completion_cb,
    *mut c_void,
) -> c_int;

type AgainFn = unsafe extern "C" fn(
    *mut spdk_bdev_io,
    *mut c_void,
    u64,
    u64,
    spdk_bdev_io_completion_cb,
    *mut c_void,
) -> c_int;

/// # Safety
/// `again` and `transfer` are those of the I/O's kind, and the payload one buffer.
#[inline(always)]
unsafe fn submit(
    channel: &ChannelInner,
    keep: &mut Keep,
    cb_arg: *mut c_void,
    again: AgainFn,
    transfer: TransferFn,
) -> i32 {
    // SAFETY: by contract.
    let buf = unsafe { keep.payload.buf() }.as_mut_ptr().cast();
    let descriptor = channel.descriptor();
    let (at, count) = descriptor.aligned_blocks(keep.offset, keep.len);
    let spare = channel.take_spare();
    // SAFETY: as in `submit_now`; and the spare one was the channel's, which is open.
    unsafe {
        if !spare.is_null() {
            return again(spare, buf, at, count, Some(on_done), cb_arg);
        }
        transfer(
            descriptor.raw(),
            channel.raw(),
            buf,
            at,
            count,
            Some(on_done),
            cb_arg,
        )
    }
}
