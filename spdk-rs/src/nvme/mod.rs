//! Using NVMe controllers: those in this machine, and those of other hosts over TCP.
//!
//! [`attach_pcie`] takes a controller in a PCI slot, which a driver for user space must have; [`attach`]
//! connects to an NVMe-oF subsystem. Each namespace becomes a block device. [`detach`] lets them go.
//!
//! # Not to oneself
//!
//! SPDK v20.07 connects synchronously: the reactor does nothing else until the target has
//! answered. A target in the *same* process would never get to answer, so that [`attach`] refuses
//! an address that this process itself listens at.

mod attach;
mod pcie;
mod tcp;

use std::time::Duration;

pub use pcie::attach_pcie;
pub(crate) use pcie::say_why;
pub use tcp::{AttachOptions, attach};

use crate::bdev::{c_name, check_app_thread};
use crate::reactor::sleep;
use crate::{Error, Result};

/// Detaches a controller: its block devices go. Waits until everybody who has them open has
/// closed them.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound); [`WrongThread`](crate::ErrorKind::WrongThread) if not called
/// on the app thread.
#[doc(alias = "bdev_nvme_delete")]
pub async fn detach(name: &str) -> Result<()> {
    const WHAT: &str = "detach NVMe controller";
    check_app_thread(WHAT, name)?;
    let c_name = c_name(WHAT, name)?;
    // SAFETY: on the app thread; the name is read.
    let rc = unsafe { spdk_sys::bdev_nvme_delete(c_name.as_ptr()) };
    Error::check(WHAT, name, rc)?;
    // SPDK does not say when it is done.
    // SAFETY: on the app thread; the name is read, the pointer only compared with null.
    while unsafe { !spdk_sys::nvme_bdev_ctrlr_get_by_name(c_name.as_ptr()).is_null() } {
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
