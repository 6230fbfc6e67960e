//! The environment: whether SPDK is up, and what the machine has to offer it.
//!
//! DPDK, and SPDK on it, can be started once in a process; this module keeps the book on that.
//! Memory and handles that outlive the environment meet an error or a silent "it is gone
//! already", never a crash.
//!
//! What may not be done here: start or stop anything. That is the [runtime](crate::runtime)'s.

pub(crate) mod cores;
pub(crate) mod hugepages;
pub(crate) mod memory;

use std::sync::{PoisonError, RwLock};

use crate::{Error, ErrorKind, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing was started in this process.
    Unused,
    /// Between the first call into DPDK and the first task.
    Starting,
    /// Up.
    Running,
    /// Was up, or failed to come up. Neither can be undone in this process.
    Over,
}

static PHASE: RwLock<Phase> = RwLock::new(Phase::Unused);

/// Enters `Starting`, which is possible once.
pub(crate) fn begin_start() -> Result<()> {
    let mut phase = PHASE.write().unwrap_or_else(PoisonError::into_inner);
    let why = match *phase {
        Phase::Unused => {
            *phase = Phase::Starting;
            return Ok(());
        }
        Phase::Starting | Phase::Running => "SPDK is running in this process already",
        Phase::Over => "SPDK was started in this process before, and cannot be started again",
    };
    Err(Error::new(ErrorKind::AlreadyStarted, "start SPDK", "", why))
}

pub(crate) fn set_phase(next: Phase) {
    *PHASE.write().unwrap_or_else(PoisonError::into_inner) = next;
}

/// Whether the environment is up.
pub fn is_running() -> bool {
    *PHASE.read().unwrap_or_else(PoisonError::into_inner) == Phase::Running
}

/// Refuses `operation` unless the environment is up.
pub(crate) fn check_running(operation: &'static str) -> Result<()> {
    if is_running() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NotRunning,
        operation,
        "",
        "SPDK is not running; this works inside Runtime::run only",
    ))
}

/// Runs `body` if the environment is up, and keeps it up meanwhile.
pub(crate) fn while_running<R>(body: impl FnOnce() -> R) -> Option<R> {
    let phase = PHASE.read().unwrap_or_else(PoisonError::into_inner);
    (*phase == Phase::Running).then(body)
}
