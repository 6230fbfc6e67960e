//! Block devices that delay the I/O of another one.

use std::time::Duration;

use super::{Bdev, c_name, lookup, new_base, new_name};
use crate::{Error, ErrorKind, Result};

/// How long I/O takes at least. Latencies are counted in whole microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Reads, on average.
    pub read: Duration,
    /// One read in a hundred; at least `read`.
    pub read_p99: Duration,
    /// Writes (and all else), on average.
    pub write: Duration,
    /// One write in a hundred; at least `write`.
    pub write_p99: Duration,
}

impl Latency {
    /// No delay.
    pub const NONE: Self = Self::all(Duration::ZERO);

    /// The same for all I/O.
    pub const fn all(latency: Duration) -> Self {
        Self {
            read: latency,
            read_p99: latency,
            write: latency,
            write_p99: latency,
        }
    }
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}

/// Makes a block device that passes I/O on to `base`, which it claims, with a delay.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no `base`; [`ErrorKind::PermissionDenied`] if it is claimed;
/// [`ErrorKind::Busy`] if it is being removed; [`ErrorKind::AlreadyExists`] if the name is taken; [`ErrorKind::InvalidArgument`] if a p99
/// latency is less than its average; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "create_delay_disk")]
pub fn create(name: &str, base: &str, latency: Latency) -> Result<Bdev> {
    const WHAT: &str = "create delay bdev";
    let named = new_name(WHAT, name)?;
    // SPDK would wait for the base to appear, which is not asked for here.
    let (_, c_base) = new_base(WHAT, name, base)?;
    if latency.read_p99 < latency.read || latency.write_p99 < latency.write {
        let why = "a p99 latency is less than the average";
        return Err(Error::new(ErrorKind::InvalidArgument, WHAT, name, why));
    }
    // SAFETY: on the app thread (new_name); both texts are copied.
    let rc = unsafe {
        spdk_sys::create_delay_disk(
            c_base.as_ptr(),
            named.as_ptr(),
            micros(latency.read),
            micros(latency.read_p99),
            micros(latency.write),
            micros(latency.write_p99),
        )
    };
    Error::check(WHAT, name, rc)?;
    Bdev::find(name)
}

/// Changes the delay for I/O that begins from now on.
///
/// # Errors
/// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] if it is of another kind;
/// [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "vbdev_delay_update_latency_value")]
pub fn set_latency(name: &str, latency: Latency) -> Result<()> {
    const WHAT: &str = "set delay";
    lookup(WHAT, name)?;
    let named = c_name(WHAT, name)?;
    for (value, which) in [
        (latency.read, spdk_sys::DELAY_AVG_READ),
        (latency.read_p99, spdk_sys::DELAY_P99_READ),
        (latency.write, spdk_sys::DELAY_AVG_WRITE),
        (latency.write_p99, spdk_sys::DELAY_P99_WRITE),
    ] {
        // SAFETY: on the app thread (lookup); the name is only read, const or not.
        let rc = unsafe {
            spdk_sys::vbdev_delay_update_latency_value(named.as_ptr().cast_mut(), micros(value), which)
        };
        Error::check(WHAT, name, rc)?;
    }
    Ok(())
}

/// Deletes it; its base stays. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "delete_delay_disk")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete delay bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::delete_delay_disk(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
