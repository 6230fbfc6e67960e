//! Waiting for what SPDK makes of new block devices.

use crate::op::{self, Submitted};
use crate::{Error, Result, bdev};

/// Waits until every block device that exists now has been examined: until what its content
/// brings along (the volumes of a store, for example) has been registered.
///
/// # Errors
/// [`ErrorKind::WrongThread`](crate::ErrorKind::WrongThread) if not called on the app thread;
/// [`ErrorKind::NoMemory`](crate::ErrorKind::NoMemory).
#[doc(alias = "spdk_bdev_wait_for_examine")]
pub async fn wait_for_examine() -> Result<()> {
    const WHAT: &str = "wait for examine";
    bdev::check_app_thread(WHAT, "")?;
    let (rc, ()) = op::notify((), |(), cb_fn, cb_arg| {
        // SAFETY: on the app thread. It calls back once if it returns 0, and else never.
        Submitted::from_rc(unsafe { spdk_sys::spdk_bdev_wait_for_examine(Some(cb_fn), cb_arg) })
    })
    .await;
    Error::check(WHAT, "", rc)
}
