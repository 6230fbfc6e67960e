//! Where a run happens: a folder of its own, two cores, a free port.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A new folder for one run's files and sockets. It goes when the run went well, and stays for reading when not.
pub struct Place {
    dir: PathBuf,
    keep: bool,
}

impl Place {
    /// Makes the folder below the system's folder for temporary files (`TMPDIR`).
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!(
            "spdk-rs-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        Ok(Self { dir, keep: true })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Says that nothing in the folder is worth keeping.
    pub fn discard(&mut self) {
        self.keep = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("The run's files and logs are in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes what DPDK keeps for a shared memory id, which it leaves behind. (For an ordinary user that is below
/// `XDG_RUNTIME_DIR`.)
pub fn forget_shm_id(id: &str) {
    let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/spdk{id}"));
}

/// A TCP port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("127.0.0.1 has no free port")?;
    Ok(listener.local_addr()?.port())
}

/// The cores for the target and for the host: two if the process may use two, else one for both.
pub fn two_cores() -> (usize, usize) {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writes of its own size; 0 is the calling thread.
    let rc = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    let mut cores = (0..128_usize).filter(|core| {
        // SAFETY: `core` is below CPU_SETSIZE, and `set` was filled above.
        rc == 0 && unsafe { libc::CPU_ISSET(*core, &set) }
    });
    let first = cores.next().unwrap_or(0);
    (first, cores.next().unwrap_or(first))
}
