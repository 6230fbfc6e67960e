//! SIGINT and SIGTERM.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::stop;
use crate::guard;

struct State {
    requested: bool,
    /// Somebody awaits the request, or did: they decide what becomes of it.
    listened: bool,
    wakers: Vec<Waker>,
}

static STATE: Mutex<State> = Mutex::new(State {
    requested: false,
    listened: false,
    wakers: Vec::new(),
});

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the process is asked to end: by SIGINT, by SIGTERM, or by SPDK's RPC
/// `spdk_kill_instance`. May be awaited on any thread and any number of times; once asked, it is
/// ready at once.
///
/// A program that has polled this future decides by itself when to end. One that never did is
/// ended by the first signal. A second signal does what it did before SPDK was started; where
/// nothing else was set up, it ends the process.
///
/// ```no_run
/// # use spdk_rs::{Runtime, runtime::shutdown_requested};
/// # fn main() -> spdk_rs::Result<()> {
/// Runtime::builder().build()?.run(shutdown_requested())
/// # }
/// ```
pub fn shutdown_requested() -> ShutdownRequested {
    ShutdownRequested(())
}

/// The future of [`shutdown_requested`].
#[derive(Debug)]
#[must_use = "it waits when it is awaited"]
pub struct ShutdownRequested(());

impl Future for ShutdownRequested {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock();
        if state.requested {
            return Poll::Ready(());
        }
        state.listened = true;
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// SPDK calls this on the app thread after the first signal.
pub(super) unsafe extern "C" fn shutdown_cb() {
    guard::ffi((), || {
        put_back(|signal| signal != libc::SIGPIPE);
        let mut state = lock();
        state.requested = true;
        let listened = state.listened;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        for waker in wakers {
            waker.wake();
        }
        if !listened {
            stop::request();
        }
    });
}

/// Whether a signal came.
pub(super) fn was_requested() -> bool {
    lock().requested
}

/// Whose SIGINT and SIGTERM are once SPDK is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    Spdks,
    /// Those of the program that SPDK runs beside.
    Hosts,
}

type Saved = (libc::c_int, libc::sigaction);

/// The handlers as they were before SPDK set its own.
static SAVED: Mutex<Vec<Saved>> = Mutex::new(Vec::new());

/// Puts back the saved handlers of those signals.
pub(super) fn put_back(which: impl Fn(libc::c_int) -> bool) {
    let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    saved.retain(|(signal, old)| {
        let back = which(*signal);
        if back {
            // SAFETY: restores an action that was in place before.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
        !back
    });
}

/// Has the handlers put back in the end: SPDK's own must not run once its app thread is gone. (Those that ask to stop
/// go earlier: SPDK passes over all requests but the first.)
pub(super) struct Handlers(());

impl Handlers {
    pub(super) fn save() -> Self {
        let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGPIPE];
        let saved = signals.into_iter().filter_map(|signal| {
            // SAFETY: a null action asks for the current one, which is written to `old`, a plain
            // C struct for which zero is valid.
            unsafe {
                let mut old: libc::sigaction = std::mem::zeroed();
                let rc = libc::sigaction(signal, std::ptr::null(), &mut old);
                (rc == 0).then_some((signal, old))
            }
        });
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = saved.collect();
        Self(())
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        put_back(|_| true);
    }
}
