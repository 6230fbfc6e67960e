//! Block devices that forget what is written and read as whatever the buffer held.

use super::{Bdev, new_name};
use crate::{Error, Result};

/// Makes a block device of `num_blocks` blocks of `block_size` bytes that does nothing, quickly.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken;
/// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for no blocks or a block size that is
/// no multiple of 512; [`WrongThread`](crate::ErrorKind::WrongThread) if not called on the app
/// thread.
#[doc(alias = "bdev_null_create")]
pub fn create(name: &str, num_blocks: u64, block_size: u32) -> Result<Bdev> {
    const WHAT: &str = "create null bdev";
    let named = new_name(WHAT, name)?;
    if num_blocks == 0 || block_size == 0 || block_size % 512 != 0 {
        return Err(Error::new(
            crate::ErrorKind::InvalidArgument,
            WHAT,
            name,
            format!("{num_blocks} blocks of {block_size}: there must be some, of a multiple of 512 bytes"),
        ));
    }
    let mut bdev = std::ptr::null_mut();
    // SAFETY: a plain C struct for which zero is valid: no metadata, no protection information,
    // a UUID of SPDK's choice. On the app thread (new_name); the name is copied.
    let rc = unsafe {
        let mut opts: spdk_sys::spdk_null_bdev_opts = std::mem::zeroed();
        opts.name = named.as_ptr();
        opts.num_blocks = num_blocks;
        opts.block_size = block_size;
        spdk_sys::bdev_null_create(&mut bdev, &opts)
    };
    Error::check(WHAT, name, rc)?;
    Bdev::find(name)
}

/// Deletes it. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "bdev_null_delete")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete null bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::bdev_null_delete(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
