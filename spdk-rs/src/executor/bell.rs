//! Wakes a reactor that sleeps.
//!
//! # The model
//!
//! Who wants to sleep says so, and then looks once more whether there is anything to do. Who
//! brings something puts it in its place, and then looks whether somebody sleeps. A fence stands
//! between the two steps of each: at least one of the two sees what the other has done. So nothing
//! lies there while its reactor sleeps on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::{AtomicBool, Condvar, Mutex, fence};

/// The bell of one OS thread.
pub(crate) struct Bell {
    asleep: AtomicBool,
    /// Was rung since the last sleep.
    rung: Mutex<bool>,
    ring: Condvar,
}

static_assertions::assert_impl_all!(Bell: Send, Sync);

impl Bell {
    pub(crate) fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
            rung: Mutex::new(false),
            ring: Condvar::new(),
        }
    }

    /// Sleeps until the bell is rung, for as long as `limit` says, if it says anything: it takes
    /// the last look for work; what comes after that is brought by somebody who rings. May return
    /// early.
    pub(crate) fn sleep(&self, limit: impl FnOnce() -> Option<Duration>) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if let Some(limit) = limit() {
            let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            if !*rung {
                let woken = self.ring.wait_timeout(rung, limit);
                (rung, _) = woken.unwrap_or_else(PoisonError::into_inner);
            }
            *rung = false;
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the thread, if it sleeps or is about to. To be called when something was brought.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.ring.notify_one();
        }
    }
}
