//! What stops a build: a message that says what happened and what to do.

use std::fmt;

/// A message for the person who ran cargo. Several lines are allowed; the last ones say what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of every step.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

/// Says what was being done when an I/O error came.
pub trait Context<T> {
    /// `what` completes "cannot …".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::ENOSPC) | Some(libc::EDQUOT) => {
                    "\nFree some space (a build needs about 1 GiB), or choose another place with SPDK_SYS_CACHE."
                }
                Some(libc::EACCES) | Some(libc::EPERM) | Some(libc::EROFS) => {
                    "\nChoose a place that you may write to with SPDK_SYS_CACHE."
                }
                _ => "",
            };
            Error(format!("cannot {}: {error}{hint}", what()))
        })
    }
}
