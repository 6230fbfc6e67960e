//! The JSON configuration: from a file, or given as it is.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

use super::builder::{WHAT, show};
use crate::{Error, ErrorKind, Result};

/// A configuration for SPDK to load.
#[derive(Clone, Debug)]
pub(super) enum Config {
    File(PathBuf),
    Text(String),
}

impl Config {
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text(_) => None,
        }
    }

    /// For people: which one.
    pub(super) fn name(&self) -> String {
        self.file()
            .map_or_else(|| "the JSON configuration given".to_owned(), show)
    }

    /// Whether SPDK will find something to load there.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::File(path) => check_readable(path),
            Self::Text(text) => match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => Ok(()),
                Err(error) => {
                    let why = format!("is no JSON: {error}");
                    Err(Error::new(ErrorKind::InvalidArgument, WHAT, self.name(), why))
                }
            },
        }
    }

    /// A path where SPDK, which takes nothing else, can read it; as long as the file is there.
    pub(super) fn path(&self) -> Result<(PathBuf, Option<File>)> {
        let text = match self {
            Self::File(path) => return Ok((path.clone(), None)),
            Self::Text(text) => text,
        };
        let write = || {
            // SAFETY: a C string and a flag.
            let fd = unsafe { libc::memfd_create(c"spdk-json-config".as_ptr(), libc::MFD_CLOEXEC) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: the descriptor was made above, and is nobody else's.
            let mut file = unsafe { File::from_raw_fd(fd) };
            file.write_all(text.as_bytes())?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into(), Some(file))),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Err(Error::from_errno("keep a file in memory for", self.name(), errno))
            }
        }
    }
}

fn check_readable(path: &Path) -> Result<()> {
    let read = |path| {
        let mut first = [0_u8; 1];
        File::open(path)?.read(&mut first)
    };
    match read(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Err(Error::from_errno("read JSON configuration", show(path), errno))
        }
    }
}
