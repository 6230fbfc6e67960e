//! File systems on block devices, and who claims one.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};

/// Mounts a device.
pub fn mount(kind: &str, device: &str, place: &str, flags: u64, data: &str) -> Result<()> {
    fs::create_dir_all(place)?;
    let texts = [kind, device, place, data].map(CString::new);
    let [kind_c, device_c, place_c, data_c] = texts;
    let (kind_c, device_c, place_c, data_c) = (kind_c?, device_c?, place_c?, data_c?);
    // SAFETY: the texts end with zero.
    let rc = unsafe {
        libc::mount(
            device_c.as_ptr(),
            place_c.as_ptr(),
            kind_c.as_ptr(),
            flags,
            data_c.as_ptr().cast(),
        )
    };
    let error = io::Error::last_os_error();
    ensure!(rc == 0, "mount {device} on {place}: {error}");
    Ok(())
}

/// Unmounts what is mounted on `place`.
pub fn unmount(place: &str, flags: i32) -> Result<()> {
    let place_c = CString::new(place)?;
    // SAFETY: the text ends with zero.
    let rc = unsafe { libc::umount2(place_c.as_ptr(), flags) };
    let error = io::Error::last_os_error();
    ensure!(rc == 0, "umount {place}: {error}");
    Ok(())
}

/// Opens a device that nobody in the kernel uses; nobody can until it is closed.
pub fn claim(device: &str) -> Result<File> {
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_EXCL).open(device);
    opened.context(device.to_owned())
}

/// Holds all writes to a mounted file system back, what was written before on its device; or lets them go on.
pub fn freeze(place: &str, on: bool) -> Result<()> {
    // FIFREEZE and FITHAW of linux/fs.h, which take a number that they do not use.
    let what: libc::Ioctl = if on { 0xc004_5877_u32 } else { 0xc004_5878 } as libc::Ioctl;
    let dir = File::open(place)?;
    // SAFETY: the descriptor is open.
    let rc = unsafe { libc::ioctl(dir.as_raw_fd(), what, 0) };
    let error = io::Error::last_os_error();
    ensure!(rc == 0, "freeze {place}: {error}");
    Ok(())
}
