//! Whether the RPC socket can be had, asked before anything starts.
//!
//! SPDK holds a lock on `<socket>.lock` while it serves a socket. When it finds the lock taken it only logs that, and
//! runs on without RPC: of no use to anyone. And it removes whatever stands at the socket's path.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a socket cannot be had.
#[derive(Debug)]
pub struct SocketError {
    path: PathBuf,
    reason: String,
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RPC socket {}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for SocketError {}

/// Checks that nobody serves the socket and that it can be made. What a target that crashed has left there is fine.
///
/// # Errors
///
/// Somebody serves it, something else than a socket has that path, or the folder cannot be written.
pub fn check(path: &Path) -> Result<(), SocketError> {
    let failed = |reason: String| SocketError {
        path: path.to_owned(),
        reason,
    };
    let in_use = || failed("another target serves it; give another one with -r".into());
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(failed("something else than a socket stands there".into()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(in_use()),
        _ => {}
    }
    match lock_is_free(&lock_path(path)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(in_use()),
        Err(e) => Err(failed(format!("cannot be made: {e}"))),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// Whether the lock could be taken. It is let go at once: SPDK takes it itself, on a descriptor of its own. Nothing is
/// created: a target that does not start leaves nothing behind.
fn lock_is_free(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return may_create(path).map(|()| true),
        Err(e) => return Err(e),
    };
    // SAFETY: flock takes an open descriptor and a number.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if rc == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

/// Whether this process may create a file of that path.
fn may_create(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let access = libc::W_OK | libc::X_OK;
    // SAFETY: a path that ends with a NUL, and numbers. The effective user is who will create it.
    match unsafe { libc::faccessat(libc::AT_FDCWD, dir.as_ptr(), access, libc::AT_EACCESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("spdk-tgt-socket-{}-{name}", std::process::id()));
        clean(&path);
        path
    }

    fn clean(path: &Path) {
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_file(lock_path(path));
    }

    #[test]
    fn a_new_path_and_a_stale_socket_are_free() {
        let path = path("free");
        check(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        check(&path).unwrap();
        assert!(!lock_path(&path).exists(), "a check leaves nothing behind");
        clean(&path);
    }

    #[test]
    fn a_name_alone_is_in_the_working_directory() {
        check(Path::new("spdk-tgt-socket-test.sock")).unwrap();
    }

    #[test]
    fn a_served_socket_is_refused_with_its_path() {
        let path = path("served");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(
            error.contains("another target") && error.contains(path.to_str().unwrap()),
            "{error}"
        );
        clean(&path);
    }

    #[test]
    fn a_held_lock_is_refused_even_without_a_socket() {
        let path = path("locked");
        let lock = File::create(lock_path(&path)).unwrap();
        // SAFETY: an open descriptor and a number.
        assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
        assert!(check(&path).unwrap_err().to_string().contains("another target"));
        clean(&path);
    }

    #[test]
    fn a_file_is_not_overwritten() {
        let path = path("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("something else"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        clean(&path);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let error = check(Path::new("/nonexistent/spdk.sock"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/spdk.sock") && error.contains("No such file"),
            "{error}"
        );
    }
}
