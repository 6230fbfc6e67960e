//! How much I/O a device has done.

use std::time::Duration;

use spdk_sys::spdk_bdev_io_stat;

use super::descriptor::explain_open;
use super::{Bdev, c_name};
use crate::op::{self, Submitted};
use crate::reactor::Owner;
use crate::{Error, Result};

/// I/O of one kind that has succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoCount {
    /// How many.
    pub ops: u64,
    /// How many bytes they were of.
    pub bytes: u64,
    /// How long they took, all of them added up.
    pub time: Duration,
}

impl IoCount {
    /// How long one took on average; `None` if there was none.
    pub fn mean(&self) -> Option<Duration> {
        let nanos = self.time.as_nanos().checked_div(u128::from(self.ops))?;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }
}

/// What a device has done since it was made, for all who have had it open.
///
/// SPDK v20.07 counts no other kinds of I/O, and none that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BdevStats {
    /// Reads.
    pub read: IoCount,
    /// Writes of data. (Zeroes that are written as such do not count.)
    pub write: IoCount,
    /// Unmaps.
    pub unmap: IoCount,
}

impl Bdev {
    /// How much I/O the device has done. It stays open for the moment that it takes to ask all
    /// threads that use it. What a channel has done that another thread closes in that moment may be
    /// missing, until one asks again. On any spdk_thread.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if it has gone or is going;
    /// [`ErrorKind::WrongThread`](crate::ErrorKind::WrongThread) outside of SPDK's threads;
    /// [`ErrorKind::NoMemory`](crate::ErrorKind::NoMemory).
    #[doc(alias = "spdk_bdev_get_device_stat")]
    pub async fn stats(&self) -> Result<BdevStats> {
        const WHAT: &str = "read I/O statistics";
        let owner = Owner::current(WHAT, self.name())?;
        let keep = (c_name(WHAT, self.name())?, spdk_bdev_io_stat::default());
        let (rc, (_name, stat)) = op::unary(keep, |(name, stat), cb_fn, cb_arg| {
            // SAFETY: this runs on an spdk_thread (Owner); name and numbers live until the callback.
            // It comes once if the function returns 0, and else never.
            Submitted::from_rc(unsafe { spdk_sys::shim_bdev_stat(name.as_ptr(), stat, Some(cb_fn), cb_arg) })
        })
        .await;
        drop(owner);
        Error::check(WHAT, self.name(), rc).map_err(|error| explain_open(error, rc))?;
        // SAFETY: SPDK runs, so it knows its clock.
        let hz = unsafe { spdk_sys::spdk_get_ticks_hz() };
        let count = |ops, bytes, ticks| IoCount {
            ops,
            bytes,
            time: duration(ticks, hz),
        };
        Ok(BdevStats {
            read: count(stat.num_read_ops, stat.bytes_read, stat.read_latency_ticks),
            write: count(stat.num_write_ops, stat.bytes_written, stat.write_latency_ticks),
            unmap: count(stat.num_unmap_ops, stat.bytes_unmapped, stat.unmap_latency_ticks),
        })
    }
}

fn duration(ticks: u64, hz: u64) -> Duration {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(hz.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_any_clock_are_a_time() {
        assert_eq!(duration(3, 2), Duration::from_millis(1500));
        assert_eq!(
            duration(u64::MAX / 1000, 2_400_000_000),
            Duration::new(7_686_143, 364_045_646)
        );
        let count = IoCount {
            ops: 4,
            bytes: 0,
            time: Duration::from_micros(10),
        };
        assert_eq!(count.mean(), Some(Duration::from_nanos(2500)));
        assert_eq!(IoCount::default().mean(), None);
    }
}
