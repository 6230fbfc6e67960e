//! One build of a fingerprint at a time, between processes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::{Context, Result};
use crate::progress::Progress;

/// Held until it is dropped *and* every program that was started meanwhile has ended: the descriptor
/// is inherited on purpose. When cargo is killed, make may live on for a while, and nobody may remove
/// or use the directory under its feet.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock; waits for another holder and says so.
pub fn take(path: &Path, progress: &Progress) -> Result<Lock> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.context(|| format!("open {}", path.display()))?;
    if let Err(error) = flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error).context(|| format!("lock {}", path.display()));
        }
        progress.say("another process is building this SPDK; waiting for it to end");
        loop {
            match flock(&file, libc::LOCK_EX) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context(|| format!("lock {}", path.display())),
            }
        }
    }
    inherit(&file).context(|| format!("pass the lock {} on", path.display()))?;
    Ok(Lock { _file: file })
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: flock only takes a descriptor, which `file` keeps open.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn inherit(file: &File) -> io::Result<()> {
    // SAFETY: fcntl(F_SETFD) only takes a descriptor, which `file` keeps open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn is_locked(path: &Path) -> bool {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        flock(&file, libc::LOCK_EX | libc::LOCK_NB).is_err()
    }

    #[test]
    fn excludes_others_and_ends_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let progress = Progress::new(dir.path());
        let lock = take(&path, &progress).unwrap();
        assert!(is_locked(&path));
        let mut orphan = Command::new("sleep").arg("0.5").spawn().unwrap();
        drop(lock);
        assert!(
            is_locked(&path),
            "the child that was started under the lock still holds it"
        );
        orphan.wait().unwrap();
        let start = Instant::now();
        // Tests of this process that start programs meanwhile hold it a little longer.
        while is_locked(&path) && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_locked(&path));
    }
}
