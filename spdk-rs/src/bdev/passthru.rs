//! Block devices that pass I/O on to another one: the least that a device over another can be.

use super::{Bdev, new_base, new_name};
use crate::{Error, Result};

/// Makes a block device that passes I/O on to `base`, which it claims.
///
/// It goes when its base goes; SPDK remembers it then, and makes it again when a base of that name
/// appears.
///
/// # Errors
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no `base`;
/// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) if it is claimed;
/// [`Busy`](crate::ErrorKind::Busy) if it is being removed;
/// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken, or remembered;
/// [`NoMemory`](crate::ErrorKind::NoMemory); [`WrongThread`](crate::ErrorKind::WrongThread) if not
/// called on the app thread.
#[doc(alias = "bdev_passthru_create_disk")]
pub fn create(name: &str, base: &str) -> Result<Bdev> {
    const WHAT: &str = "create passthru bdev";
    let named = new_name(WHAT, name)?;
    // SPDK would wait for the base to appear, which is not asked for here.
    let (_, c_base) = new_base(WHAT, name, base)?;
    // SAFETY: on the app thread (new_name); both texts are copied.
    let rc = unsafe { spdk_sys::bdev_passthru_create_disk(c_base.as_ptr(), named.as_ptr()) };
    Error::check(WHAT, name, rc)?;
    Bdev::find(name)
}

/// Deletes it; its base stays. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "bdev_passthru_delete_disk")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete passthru bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::bdev_passthru_delete_disk(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
