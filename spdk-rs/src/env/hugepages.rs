//! Huge pages that DPDK can have, asked before it is.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Free huge pages of all sizes, in bytes; those that ended programs have left behind are free, too: DPDK takes them
/// back first. None if that can not be told.
///
/// `huge_dir`: the only mount that DPDK will look at.
pub(crate) fn free_bytes(huge_dir: Option<&Path>) -> Option<u64> {
    let mut free = 0;
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let kib = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let kib: u64 = kib.parse().ok()?;
        let pages = fs::read_to_string(entry.path().join("free_hugepages")).ok()?;
        let pages: u64 = pages.trim().parse().ok()?;
        free += pages * kib * 1024;
    }
    let mounts = match huge_dir {
        Some(dir) => vec![dir.to_owned()],
        None => mounts(&fs::read_to_string("/proc/mounts").ok()?),
    };
    Some(free + mounts.iter().map(|dir| left_behind(dir)).sum::<u64>())
}

/// The places where hugetlbfs is mounted.
fn mounts(text: &str) -> Vec<PathBuf> {
    let fields = text.lines().map(|line| line.split(' '));
    let places = fields.filter_map(|mut fields| match (fields.nth(1), fields.next()) {
        (Some(place), Some("hugetlbfs")) => Some(place.into()),
        _ => None,
    });
    places.collect()
}

/// Bytes in the files there that DPDK would remove when it starts: those of its naming that nobody has locked.
fn left_behind(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let names = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let dpdks = entry.file_name().to_string_lossy().contains("map_");
        dpdks.then(|| entry.path())
    });
    let sizes = names.filter_map(|path| {
        let file = File::open(path).ok()?;
        // SAFETY: an open descriptor and a number. The lock goes with the descriptor.
        let unused = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
        let blocks = file.metadata().ok()?.blocks();
        unused.then_some(blocks * 512)
    });
    sizes.sum()
}

/// Whether huge pages can be had from there.
pub(crate) fn is_hugetlbfs(dir: &Path) -> io::Result<bool> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: a plain C struct, for which zero is valid; the path ends with a NUL.
    let (rc, fs) = unsafe {
        let mut fs: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &mut fs), fs)
    };
    match rc {
        0 => Ok(fs.f_type == libc::HUGETLBFS_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a process that runs has the memory which those with that id share: then this one needs none of its own.
pub(crate) fn has_primary(shm_id: u32) -> bool {
    // SAFETY: takes nothing, cannot fail.
    let runtime_dir = match unsafe { libc::getuid() } {
        0 => "/var/run".into(),
        _ => std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| "/tmp".into()),
    };
    let config = Path::new(&runtime_dir).join(format!("dpdk/spdk{shm_id}/config"));
    is_write_locked(&config).unwrap_or(false)
}

fn is_write_locked(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    // SAFETY: a plain C struct, for which zero is valid (the whole file); the descriptor is open.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_RDLCK as libc::c_short;
        match libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) {
            0 => Ok(lock.l_type == libc::F_WRLCK as libc::c_short),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_from_others() {
        let text = "proc /proc proc rw 0 0\nnodev /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\nx\n";
        assert_eq!(mounts(text), [PathBuf::from("/dev/hugepages")]);
    }

    #[test]
    fn only_unlocked_files_of_dpdk_are_left_behind() {
        let dir = std::env::temp_dir().join(format!("spdk-rs-left-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str| {
            fs::write(dir.join(name), vec![1; 8192]).unwrap();
            File::open(dir.join(name)).unwrap()
        };
        let (dead, live, other) = (file("spdk_pid1map_0"), file("spdk_pid2map_0"), file("other"));
        // SAFETY: an open descriptor and a number.
        assert_eq!(unsafe { libc::flock(live.as_raw_fd(), libc::LOCK_SH) }, 0);
        assert_eq!(left_behind(&dir), dead.metadata().unwrap().blocks() * 512);
        drop((dead, live, other));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left_behind(&dir), 0);
    }

    #[test]
    fn a_lock_of_this_process_is_not_another_ones() {
        assert!(!has_primary(u32::MAX));
    }
}
