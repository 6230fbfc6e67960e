//! What the guest's kernel says.

use std::io;

use anyhow::{Result, ensure};

/// All of it, as `dmesg` shows it.
pub fn kernel_log() -> Result<String> {
    const READ_ALL: i32 = 3;
    let mut text = vec![0_u8; 1 << 20];
    // SAFETY: the buffer is valid for writes of its length.
    let read = unsafe { libc::klogctl(READ_ALL, text.as_mut_ptr().cast(), text.len() as i32) };
    ensure!(read >= 0, "the kernel's log: {}", io::Error::last_os_error());
    text.truncate(read as usize);
    Ok(String::from_utf8_lossy(&text).into_owned())
}
