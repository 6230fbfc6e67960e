//! The cache of finished builds: `<cache>/<fingerprint>/`.
//!
//! SPDK writes the absolute path of its tree into `mk/config.mk`, into meson's files and into debug
//! information when it is configured, so a tree that was built under a temporary name and renamed
//! could not build anything more (bdevperf, unit tests) and debuggers would look in the wrong place.
//! It is therefore built where it stays, and is *there* only when the file `complete` is: written
//! last, after everything else has reached the disk, under a temporary name that is then renamed.
//! A directory without it is what an interrupted build left, and is removed before the next one.
//! All of this happens under the lock `<cache>/<fingerprint>.lock`.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::lock;
use crate::progress::Progress;

/// One place in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    cache: PathBuf,
    fingerprint: String,
}

impl Entry {
    /// The place of a fingerprint; nothing is made yet.
    pub fn new(cache: &Path, fingerprint: &str) -> Self {
        Self {
            cache: cache.to_owned(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> PathBuf {
        self.cache.join(&self.fingerprint)
    }

    /// SPDK's tree in it.
    pub fn tree(&self) -> PathBuf {
        self.directory().join("spdk")
    }

    /// The log of configure and make.
    pub fn log(&self) -> PathBuf {
        self.directory().join("build.log")
    }

    /// The file that says that the build is whole.
    pub fn marker(&self) -> PathBuf {
        self.directory().join("complete")
    }

    /// Whether a finished build is there.
    pub fn is_complete(&self) -> bool {
        self.marker().is_file()
    }

    /// Makes sure that a finished build is there: `build` is called under the lock if none is, with an
    /// empty directory. `about` is written into the marker.
    pub fn ensure(
        &self,
        progress: &Progress,
        about: &str,
        build: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        fs::create_dir_all(&self.cache).context(|| format!("make {}", self.cache.display()))?;
        let _lock = lock::take(&self.cache.join(format!("{}.lock", self.fingerprint)), progress)?;
        if self.is_complete() {
            progress.say("the other process has built it");
            return Ok(());
        }
        let directory = self.directory();
        if directory.exists() {
            progress.say("removing what an interrupted build left");
            fs::remove_dir_all(&directory).context(|| format!("remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).context(|| format!("make {}", directory.display()))?;
        build(self)?;
        self.commit(about)
            .context(|| format!("finish {}", directory.display()))
    }

    /// Everything to disk, then the marker.
    fn commit(&self, about: &str) -> std::io::Result<()> {
        let directory = File::open(self.directory())?;
        // SAFETY: syncfs only takes a descriptor, which `directory` keeps open.
        if unsafe { libc::syncfs(directory.as_raw_fd()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let unfinished = self.directory().join("complete.new");
        let mut file = File::create(&unfinished)?;
        file.write_all(about.as_bytes())?;
        file.sync_all()?;
        fs::rename(unfinished, self.marker())?;
        directory.sync_all()
    }
}

/// Refuses to start what the disk has no room for.
pub fn check_space(cache: &Path, needed_mib: u64) -> Result<()> {
    let free = free_mib(cache).context(|| format!("ask for the free space of {}", cache.display()))?;
    if free < needed_mib {
        return Err(Error::from(format!(
            "no disk space: a build of SPDK needs {needed_mib} MiB in {}, and {free} MiB are free.\n\
             Free some space, or choose another place with SPDK_SYS_CACHE.",
            cache.display()
        )));
    }
    Ok(())
}

fn free_mib(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeroes is a valid value of this plain C structure.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `stat` is valid for writes.
    if unsafe { libc::statvfs(path.as_ptr(), &mut stat) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path) -> (Entry, Progress) {
        (Entry::new(dir, "f"), Progress::new(dir))
    }

    #[test]
    fn built_once() {
        let dir = tempfile::tempdir().unwrap();
        let (entry, progress) = make(dir.path());
        let mut times = 0;
        for _ in 0..2 {
            entry
                .ensure(&progress, "about", |e| {
                    times += 1;
                    fs::create_dir(e.tree()).context(String::new)
                })
                .unwrap();
        }
        assert_eq!(times, 1);
        assert_eq!(fs::read_to_string(entry.marker()).unwrap(), "about");
    }

    #[test]
    fn a_failed_build_is_not_there_and_the_next_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (entry, progress) = make(dir.path());
        let failed = entry.ensure(&progress, "", |e| {
            fs::create_dir(e.tree()).context(String::new)?;
            Err(Error::from("no"))
        });
        assert!(failed.is_err() && !entry.is_complete());
        entry
            .ensure(&progress, "", |e| {
                assert!(!e.tree().exists(), "the tree of the failed build is still there");
                Ok(())
            })
            .unwrap();
        assert!(entry.is_complete());
    }

    #[test]
    fn space() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 1).unwrap();
        let error = check_space(dir.path(), u64::MAX >> 20).unwrap_err().to_string();
        assert!(
            error.contains("no disk space") && error.contains("SPDK_SYS_CACHE"),
            "{error}"
        );
    }
}
