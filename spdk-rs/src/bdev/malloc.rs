//! Block devices in memory.

use super::{Bdev, new_name};
use crate::{Error, Result};

/// Makes a block device of `num_blocks` zeroed blocks of `block_size` bytes, in SPDK's memory.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken;
/// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for no blocks, or a block size that is
/// no multiple of 512; [`NoMemory`](crate::ErrorKind::NoMemory);
/// [`WrongThread`](crate::ErrorKind::WrongThread) if not called on the app thread.
#[doc(alias = "create_malloc_disk")]
pub fn create(name: &str, num_blocks: u64, block_size: u32) -> Result<Bdev> {
    const WHAT: &str = "create malloc bdev";
    let named = new_name(WHAT, name)?;
    if num_blocks == 0 || block_size == 0 || block_size % 512 != 0 {
        return Err(Error::new(
            crate::ErrorKind::InvalidArgument,
            WHAT,
            name,
            format!("{num_blocks} blocks of {block_size}: there must be some, of a multiple of 512 bytes"),
        ));
    }
    if num_blocks.checked_mul(u64::from(block_size)).is_none() {
        let rc = -libc::ENOMEM; // SPDK multiplies without a look
        return Error::check(WHAT, name, rc).and_then(|()| Bdev::find(name));
    }
    let mut bdev = std::ptr::null_mut();
    // SAFETY: on the app thread (new_name); the name is copied; null lets SPDK choose a UUID.
    let rc = unsafe {
        spdk_sys::create_malloc_disk(
            &mut bdev,
            named.as_ptr(),
            std::ptr::null(),
            num_blocks,
            block_size,
        )
    };
    Error::check(WHAT, name, rc)?;
    Bdev::find(name)
}

/// Deletes it, with what it holds. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "delete_malloc_disk")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete malloc bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::delete_malloc_disk(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
