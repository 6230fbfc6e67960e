//! Block devices in tests: open, read and write, poll, wait.

use std::ffi::{CStr, c_void};
use std::future::Future;
use std::pin::Pin;
use std::ptr::null_mut;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::Result;
use spdk_rs::bdev::{self, Bdev, Channel, Descriptor, Mode};
use spdk_rs::bdev_module::Registered;
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{sleep, timeout};
use spdk_sys::{spdk_bdev_desc, spdk_io_channel};

use super::disk::TestDisk;

pub const LIMIT: Duration = Duration::from_secs(20);
pub const MIB: usize = 1 << 20;

pub fn open(name: &str) -> Result<(Descriptor, Channel)> {
    let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    Ok((descriptor, channel))
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at / 512 + at) as u8) ^ seed).collect()
}

pub async fn write(channel: &Channel, data: &[u8], offset: u64) -> spdk_rs::Result<()> {
    let buf = DmaBuf::copy_of(data)?;
    timeout(LIMIT, channel.write(buf, offset)).await?.into_result()
}

pub async fn read(channel: &Channel, len: usize, offset: u64) -> spdk_rs::Result<Vec<u8>> {
    let buf = DmaBuf::new(len)?;
    let ((), buf) = timeout(LIMIT, channel.read(buf, offset)).await?.ok()?;
    Ok(buf.as_slice().to_vec())
}

pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits until something is so.
pub async fn until(what: &str, so: impl Fn() -> bool) -> Result<()> {
    for _ in 0..2000 {
        if so() {
            return Ok(());
        }
        sleep(Duration::from_millis(1)).await;
    }
    anyhow::bail!("never: {what}")
}

/// Registers it, and lets SPDK have its look at it, for which it opens and reads it.
pub async fn register(disk: &Arc<TestDisk>, name: &str) -> Result<Registered> {
    let registered = disk.register(name)?;
    bdev::wait_for_examine().await?;
    until("SPDK has looked", || disk.channels() == 0).await?;
    disk.forget_seen();
    Ok(registered)
}

/// An open device as C has it, with a callback of C's.
pub struct Raw {
    pub descriptor: *mut spdk_bdev_desc,
    pub channel: *mut spdk_io_channel,
}

impl Raw {
    pub fn open(name: &CStr) -> Self {
        unsafe extern "C" fn event(_: u32, _: *mut spdk_sys::spdk_bdev, _: *mut c_void) {}
        let mut descriptor = null_mut();
        // SAFETY: on an spdk_thread; the name is a C string, and the callback needs no argument.
        unsafe {
            let rc =
                spdk_sys::spdk_bdev_open_ext(name.as_ptr(), true, Some(event), null_mut(), &mut descriptor);
            assert_eq!(rc, 0);
            let channel = spdk_sys::spdk_bdev_get_io_channel(descriptor);
            assert!(!channel.is_null());
            Self { descriptor, channel }
        }
    }

    pub fn close(&self) {
        // SAFETY: opened on this thread; no I/O is in flight.
        unsafe {
            spdk_sys::spdk_put_io_channel(self.channel);
            spdk_sys::spdk_bdev_close(self.descriptor);
        }
    }
}
