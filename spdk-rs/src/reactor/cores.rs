//! The reactors: their cores, and an spdk_thread on each for work that has none of its own.

use std::sync::{Mutex, PoisonError};

use super::{Thread, ThreadHandle};
use crate::{Result, env};

/// The threads of [`Thread::on_core`].
static HOMES: Mutex<Vec<(u32, ThreadHandle)>> = Mutex::new(Vec::new());

/// The cores that have a reactor, in ascending order.
///
/// # Errors
/// [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning).
#[doc(alias = "spdk_app_get_core_mask")]
pub fn cores() -> Result<Vec<u32>> {
    env::check_running("list the reactors' cores")?;
    Ok(used().collect())
}

/// The same, while SPDK is up.
pub(super) fn used() -> impl Iterator<Item = u32> {
    let all = 0..spdk_sys::SPDK_CPUSET_SIZE;
    // SAFETY: the mask is set up before the first thread runs, and is not changed; the numbers are
    // those of its bits.
    all.filter(|core| unsafe { spdk_sys::spdk_cpuset_get_cpu(spdk_sys::spdk_app_get_core_mask(), *core) })
}

/// The NUMA node of a reactor's core, for memory [near it](crate::buf::DmaBuf::on_node). `None` if
/// the core has no reactor.
///
/// # Errors
/// [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning).
#[doc(alias = "spdk_env_get_socket_id")]
pub fn numa_node(core: u32) -> Result<Option<u32>> {
    if !cores()?.contains(&core) {
        return Ok(None);
    }
    // SAFETY: reads a table that is set up while SPDK runs (checked), for a core in use.
    Ok(Some(unsafe { spdk_sys::spdk_env_get_socket_id(core) }))
}

impl Thread {
    /// The spdk_thread that this crate keeps on core `core` for all who want to run something
    /// there. It is made when it is first asked for; the app thread's core has the app thread.
    ///
    /// # Errors
    /// As [`Thread::create`].
    pub fn on_core(core: u32) -> Result<ThreadHandle> {
        let mut homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
        homes.retain(|(_, thread)| !thread.inbox().is_closed());
        if let Some((_, thread)) = homes.iter().find(|(of, _)| *of == core) {
            return Ok(thread.clone());
        }
        let thread = Self::create(&format!("core-{core}"), core)?;
        homes.push((core, thread.clone()));
        Ok(thread)
    }
}

/// The app thread is what there is on its core.
pub(super) fn enter(app: &ThreadHandle) {
    // SAFETY: takes nothing; on a reactor it says that one's core.
    let core = unsafe { spdk_sys::spdk_env_get_current_core() };
    let mut homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
    homes.push((core, app.clone()));
}

/// Forgets them all, once the runtime has stopped.
pub(super) fn leave() {
    HOMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
