//! Block devices on files (and on the kernel's own block devices), through io_uring.
//!
//! They read and write, and poll for the end of it, so that the kernel must be able to poll the
//! disk that the file is on (an NVMe disk, as a rule, with a file system like ext4 or XFS): where it
//! cannot, reads fail with [`ErrorKind::Io`].
//!
//! SPDK v20.07 has room for 512 I/Os of a thread between two turns of its poller, for all of these
//! devices together, and crashes beyond that: keep the depth below it.

use std::fs::Metadata;
use std::path::Path;

use super::aio::{check_file, why_not};
use super::{Bdev, new_name};
use crate::{Error, ErrorKind, Result};

/// Makes a block device of a file, whose size must be one of whole blocks.
///
/// `block_size` is a power of two of at least 512; 0 asks the file (which only device files can
/// answer).
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if the name is taken; [`ErrorKind::NotFound`] or
/// [`ErrorKind::PermissionDenied`] if the file cannot be opened for reading and writing;
/// [`ErrorKind::Busy`] if it is a block device already, here or in another process that uses the
/// patched SPDK;
/// [`ErrorKind::InvalidArgument`] for a bad block size or a file that is not of whole blocks;
/// [`ErrorKind::Unsupported`] where the kernel has no io_uring, or does not let this process use
/// it; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "create_uring_bdev")]
pub fn create(name: &str, path: impl AsRef<Path>, block_size: u32) -> Result<Bdev> {
    const WHAT: &str = "create io_uring bdev";
    let path = path.as_ref();
    let named = new_name(WHAT, name)?;
    let (c_path, metadata) = check_file(WHAT, name, path, block_size)?;
    check_whole(WHAT, name, &metadata, block_size)?;
    check_kernel(WHAT, name)?;
    // SAFETY: on the app thread (new_name); both texts are copied.
    let bdev = unsafe { spdk_sys::create_uring_bdev(named.as_ptr(), c_path.as_ptr(), block_size) };
    // What is left is said in the log alone, mostly a block size that the device cannot have.
    Error::check_ptr(WHAT, name, bdev, libc::EINVAL).map_err(|error| why_not(error, &c_path, block_size))?;
    Bdev::find(name)
}

fn check_whole(what: &'static str, name: &str, file: &Metadata, block_size: u32) -> Result<()> {
    if !file.is_file() || (block_size != 0 && file.len() % u64::from(block_size) == 0) {
        return Ok(());
    }
    let why = match block_size {
        0 => "only device files tell their block size".to_owned(),
        _ => format!("{} bytes are not whole blocks of {block_size}", file.len()),
    };
    Err(Error::new(ErrorKind::InvalidArgument, what, name, why))
}

/// SPDK sets its ring up when a thread opens the device, and follows a NULL where that fails.
fn check_kernel(what: &'static str, name: &str) -> Result<()> {
    const SETUP_IOPOLL: u32 = 1;
    let mut params = [0_u32; 30]; // struct io_uring_params, 120 bytes
    params[2] = SETUP_IOPOLL;
    // SAFETY: the kernel reads and writes the parameters, as long as it wants them, and nothing
    // else.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 512, params.as_mut_ptr()) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    Error::check_libc(what, name, fd).map_err(|error| {
        error
            .with_kind(ErrorKind::Unsupported)
            .with_detail("the kernel does not let this process use io_uring")
    })?;
    // SAFETY: the ring was opened above, and nothing else knows of it.
    unsafe { libc::close(fd) };
    Ok(())
}

/// Deletes it; the file stays. Waits until everybody who has it open has closed it.
///
/// # Errors
/// As [`aio::delete`](super::aio::delete).
#[doc(alias = "delete_uring_bdev")]
pub async fn delete(name: &str) -> Result<()> {
    super::delete("delete io_uring bdev", name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; the function checks the kind.
        unsafe { spdk_sys::delete_uring_bdev(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
