//! Block devices that fail the I/O of another one as they are told: for tests.
//!
//! Reads, writes, unmaps and flushes are passed on to the base, or struck. What else there is:
//! a write of zeroes always fails (SPDK's error bdev does not know it, though it says that it does
//! what its base does), and a reset ends what is [held](hold), and does not reach the base.

use super::kind::IoType;
use super::{Bdev, lookup, new_base, new_name};
use crate::{Error, ErrorKind, Result};

/// Makes a block device that passes I/O on to `base`, which it claims, until it is told otherwise.
/// SPDK names it: `EE_` and the base's name.
///
/// It goes when its base goes.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no `base`; [`ErrorKind::PermissionDenied`] if it is claimed;
/// [`ErrorKind::Busy`] if it is being removed; [`ErrorKind::AlreadyExists`] if the name is taken;
/// [`ErrorKind::NoMemory`]; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "vbdev_error_create")]
pub fn create(base: &str) -> Result<Bdev> {
    const WHAT: &str = "create error bdev";
    let (base, c_base) = new_base(WHAT, &format!("EE_{base}"), base)?;
    let name = format!("EE_{}", base.name());
    new_name(WHAT, &name)?;
    // SAFETY: on the app thread (new_base); the text is copied.
    let rc = unsafe { spdk_sys::vbdev_error_create(c_base.as_ptr()) };
    Error::check(WHAT, &name, rc)?;
    Bdev::find(&name)
}

/// The next `count` I/Os of this kind fail, with [`ErrorKind::Io`], and do not reach the base. 0
/// ends it.
///
/// It takes the place of what was told for the kind before. The count is exact only if the device
/// is used on one thread.
///
/// # Errors
/// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] if it is a block device of another
/// kind; [`ErrorKind::Unsupported`] for write zeroes and resets; [`ErrorKind::WrongThread`] if not
/// called on the app thread.
#[doc(alias = "vbdev_error_inject_error")]
pub fn fail(name: &str, kind: IoType, count: u32) -> Result<()> {
    inject("fail I/O", name, kind, spdk_sys::VBDEV_IO_FAILURE, count)
}

/// The next `count` I/Os of this kind are held: they get stuck, and do not reach the base. The next
/// reset of the device fails them. 0 ends it, for I/O to come.
///
/// It takes the place of what was told for the kind before. Removing the device waits for held I/O,
/// and cannot be helped then, since a device that is being removed is not reset any more: reset it
/// before.
///
/// # Errors
/// As [`fail`].
///
/// # Safety
/// From now until nothing is held and nothing will be, I/O to the device and resets of it are
/// submitted on one spdk_thread only: SPDK keeps what it holds in a list without a lock, and ends
/// all of it on the thread of the reset.
#[doc(alias = "vbdev_error_inject_error")]
pub unsafe fn hold(name: &str, kind: IoType, count: u32) -> Result<()> {
    inject("hold I/O", name, kind, spdk_sys::VBDEV_IO_PENDING, count)
}

fn inject(what: &'static str, name: &str, kind: IoType, error: u32, count: u32) -> Result<()> {
    if !matches!(kind, IoType::Read | IoType::Write | IoType::Unmap | IoType::Flush) {
        let why = format!("of the kind {kind:?}: an error bdev has no faults for it");
        return Err(Error::new(ErrorKind::Unsupported, what, name, why));
    }
    let bdev = lookup(what, name)?;
    // SAFETY: `lookup` found the bdev on the app thread just now. Its name is only read, const or
    // not. The kind is one that SPDK's table of faults has a place for (checked).
    let rc = unsafe { spdk_sys::vbdev_error_inject_error((*bdev).name, kind as u32, error, count) };
    Error::check(what, name, rc).map_err(|error| {
        // The bdev is there; what is not found is an error bdev.
        error
            .with_kind(ErrorKind::InvalidArgument)
            .with_detail("is a block device of another kind")
    })
}

/// Deletes it; its base stays. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "vbdev_error_delete")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete error bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::vbdev_error_delete(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
