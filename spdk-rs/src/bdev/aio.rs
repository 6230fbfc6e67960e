//! Block devices on files (and on the kernel's own block devices), through Linux AIO.
//!
//! A flush makes the file's data lasting, as `fdatasync` does, while the reactor goes on (from
//! Linux 4.18 on; before, it fails).

use std::ffi::{CStr, CString};
use std::fs::{Metadata, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Bdev, c_name, new_name};
use crate::{Error, ErrorKind, Result};

/// Makes a block device of a file. Its size is rounded down to whole blocks.
///
/// `block_size` is a power of two of at least 512; 0 asks the file (which only device files can
/// answer).
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if the name is taken; [`ErrorKind::NotFound`] or
/// [`ErrorKind::PermissionDenied`] if the file cannot be opened for reading and writing;
/// [`ErrorKind::Busy`] if it is a block device already, here or in another process that uses the
/// patched SPDK;
/// [`ErrorKind::InvalidArgument`] for a bad block size or a file without a block;
/// [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "create_aio_bdev")]
pub fn create(name: &str, path: impl AsRef<Path>, block_size: u32) -> Result<Bdev> {
    const WHAT: &str = "create AIO bdev";
    let path = path.as_ref();
    let named = new_name(WHAT, name)?;
    let (c_path, _) = check_file(WHAT, name, path, block_size)?;
    // SAFETY: on the app thread (new_name); both texts are copied.
    let rc = unsafe { spdk_sys::create_aio_bdev(named.as_ptr(), c_path.as_ptr(), block_size) };
    Error::check(WHAT, name, rc).map_err(|error| why_not(error, &c_path, block_size))?;
    Bdev::find(name)
}

/// Why a file did not become a block device, for which C's error alone says too little.
pub(super) fn why_not(error: Error, path: &CStr, block_size: u32) -> Error {
    let mut why = vec![0_u8; libc::PATH_MAX as usize + 128];
    // SAFETY: the name ends with a zero, and C writes a text that ends with one into the memory, as
    // far as that goes.
    let locked =
        unsafe { spdk_sys::spdk_rs_file_is_locked(path.as_ptr(), why.as_mut_ptr().cast(), why.len()) };
    if locked {
        let why = CStr::from_bytes_until_nul(&why)
            .unwrap_or_default()
            .to_string_lossy();
        return Error::from_errno(error.operation().to_owned(), error.device(), libc::EBUSY).with_detail(why);
    }
    error.with_detail(format!("{}, blocks of {block_size}", path.to_string_lossy()))
}

/// The path of a file that is to become a block device, for C, and what it is. SPDK's own errno is
/// that of whatever it logged with in between, if it has one at all: ask first.
pub(super) fn check_file(
    what: &'static str,
    name: &str,
    path: &Path,
    block_size: u32,
) -> Result<(CString, Metadata)> {
    let shown = path.display();
    let file = OpenOptions::new().read(true).write(true).open(path);
    let metadata = file.and_then(|file| file.metadata()).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Error::from_errno(what, name, errno).with_detail(format!("cannot open {shown}"))
    })?;
    if metadata.is_file() && metadata.len() < u64::from(block_size.max(512)) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            what,
            name,
            format!("{shown} is smaller than a block"),
        ));
    }
    if block_size != 0 && (block_size < 512 || !block_size.is_power_of_two()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            what,
            name,
            format!("block size {block_size} is not a power of two of at least 512"),
        ));
    }
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::InvalidArgument, what, name, "the path contains a NUL"))?;
    Ok((c_path, metadata))
}

/// Deletes an AIO block device; the file stays. Waits until everybody who has it open has closed
/// it.
///
/// # Errors
/// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] if it is of another kind;
/// [`ErrorKind::Busy`] if it is being deleted; [`ErrorKind::WrongThread`] if not called on the
/// app thread.
#[doc(alias = "bdev_aio_delete")]
pub async fn delete(name: &str) -> Result<()> {
    const WHAT: &str = "delete AIO bdev";
    c_name(WHAT, name)?;
    super::delete(WHAT, name, |bdev, cb_fn, cb_arg| {
        // SAFETY: `delete` looked the bdev up on this thread; it checks the kind.
        unsafe { spdk_sys::bdev_aio_delete(bdev, Some(cb_fn), cb_arg) }
    })
    .await
}
