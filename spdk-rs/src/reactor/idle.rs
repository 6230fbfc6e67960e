//! Reactors that sleep when there is nothing to do.
//!
//! # The model
//!
//! A reactor of SPDK's never waits, but what its pollers do may take time. So on each core there is
//! an spdk_thread whose only poller sleeps, when nothing on that core had work to do for a while.
//! (SPDK counts that; the thread is one of its own, so that it does not count the sleep as work.)
//!
//! Each core has a [`Bell`], which the [`Inbox`] rings for all that this crate sends there. What
//! SPDK sends from another core rings no bell.
//!
//! [`Inbox`]: crate::executor::Inbox

use std::future::pending;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Poller, Thread, context, cores};
use crate::executor::Bell;
use crate::op::slots;
use crate::sync::Arc;
use crate::{Result, runtime::Idle};

/// The cores' bells, if they sleep. SPDK runs once in a process.
static BELLS: OnceLock<Vec<(u32, Arc<Bell>)>> = OnceLock::new();

/// Hangs the bells, before the first inbox is made.
pub(crate) fn hang_bells(idle: Idle) {
    if let Idle::Sleep { .. } = idle {
        BELLS.get_or_init(|| {
            let with_bell = |core| (core, Arc::new(Bell::new()));
            cores::used().map(with_bell).collect()
        });
    }
}

/// The bell of a core, if it sleeps.
pub(crate) fn bell_of(core: u32) -> Option<Arc<Bell>> {
    let mut bells = BELLS.get()?.iter();
    bells
        .find(|(of, _)| *of == core)
        .map(|(_, bell)| Arc::clone(bell))
}

/// The bell of the core that this runs on.
pub(crate) fn bell() -> Option<Arc<Bell>> {
    // SAFETY: takes nothing; outside of a reactor it gives a number that no core has.
    bell_of(unsafe { spdk_sys::spdk_env_get_current_core() })
}

/// Lets the reactors sleep, from now until their threads are closed. On the app thread.
pub(crate) fn begin(idle: Idle) -> Result<()> {
    let Idle::Sleep { after, at_most } = idle else {
        return Ok(());
    };
    for (core, bell) in BELLS.get().into_iter().flatten() {
        let (core, bell) = (*core, Arc::clone(bell));
        let thread = Thread::create(&format!("idle-{core}"), core)?;
        let task = thread.spawn_on(move || async move {
            let mut watch = Watch::new(core, bell, after, at_most);
            let turn = move || {
                watch.turn();
                false
            };
            match Poller::register("idle", Duration::ZERO, turn) {
                Ok(_poller) => pending().await,
                Err(error) => eprintln!("spdk-rs: core {core} does not sleep: {error}"),
            }
        });
        drop(task?);
    }
    Ok(())
}

/// Watches a reactor, from one of its pollers. Times are in ticks.
struct Watch {
    core: u32,
    bell: Arc<Bell>,
    hz: u64,
    after: u64,
    at_most: u64,
    /// What SPDK has counted as work so far, and when that was last seen to grow.
    busy: u64,
    since: u64,
    /// It has slept until a timer was due. What timers do within one turn (SPDK looks for RPC
    /// clients each 4 ms) is not taken for work, which more would come after.
    timer: bool,
}

impl Watch {
    fn new(core: u32, bell: Arc<Bell>, after: Duration, at_most: Duration) -> Self {
        // SAFETY: SPDK runs, so it knows its clock.
        let hz = unsafe { spdk_sys::spdk_get_ticks_hz() };
        let ticks = |time: Duration| u64::try_from(time.as_nanos() * u128::from(hz) / 1_000_000_000);
        Self {
            core,
            bell,
            hz,
            after: ticks(after).unwrap_or(u64::MAX),
            at_most: ticks(at_most).unwrap_or(u64::MAX),
            busy: 0,
            since: now(),
            timer: false,
        }
    }

    fn turn(&mut self) {
        let now = now();
        // SAFETY: this is a poller of that core.
        let busy = unsafe { spdk_sys::shim_reactor_busy(self.core) };
        if busy != self.busy {
            self.busy = busy;
            if !std::mem::take(&mut self.timer) {
                self.since = now;
            }
            return;
        }
        let idle = now - self.since;
        if idle < self.after || slots::pending_here() {
            return;
        }
        let bell = Arc::clone(&self.bell);
        let mut next = u64::MAX;
        bell.sleep(|| {
            if !context::all_idle() {
                return None;
            }
            // SAFETY: this is a poller of that core.
            next = unsafe { spdk_sys::shim_reactor_next_work(self.core) };
            let free = next.saturating_sub(now);
            // What is due so soon is waited for.
            (free >= self.after).then(|| self.duration(idle.min(self.at_most).min(free)))
        });
        self.timer = next > now && self::now() >= next;
    }

    fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(self.hz);
        Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX))
    }
}

fn now() -> u64 {
    // SAFETY: reads the processor's counter.
    unsafe { spdk_sys::spdk_get_ticks() }
}
