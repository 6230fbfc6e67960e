//! Panics never cross C.
//!
//! Every `extern "C"` body of this crate runs inside [`ffi`]. A panic that arises there has no
//! Rust caller to unwind into: it is kept, the runtime is asked to stop, and
//! [`Runtime::run`](crate::Runtime::run) raises it again on the thread that called it. (A panic
//! inside a *task* is none of these: it is carried by the task's
//! [`JoinHandle`](crate::JoinHandle).)

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What a panic carried.
pub(crate) type Payload = Box<dyn Any + Send + 'static>;

static FIRST: Mutex<Option<Payload>> = Mutex::new(None);
static ON_PANIC: OnceLock<fn()> = OnceLock::new();

/// Runs the body of an `extern "C"` function. On a panic the payload is kept for [`take`], the
/// hook runs, and C receives `on_panic`.
pub(crate) fn ffi<R>(on_panic: R, body: impl FnOnce() -> R) -> R {
    // AssertUnwindSafe: the process stops its runtime after a panic here, and re-raises it; no
    // state that the panic may have left half-made is used for anything but being dropped.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            keep(payload);
            on_panic
        }
    }
}

/// Keeps a panic for [`take`] and tells the runtime. Later ones are dropped: the panic hook has
/// printed them, and one is enough to end the run.
pub(crate) fn keep(payload: Payload) {
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_none() {
        *first = Some(payload);
    } else {
        // A payload's own destructor may panic in turn: that must not reach C either.
        std::mem::forget(payload);
    }
    drop(first);
    if let Some(hook) = ON_PANIC.get() {
        hook();
    }
}

/// The first panic that was caught, if any.
pub(crate) fn take() -> Option<Payload> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Sets what to do when a panic was caught; it must not panic and may run on any thread.
pub(crate) fn set_hook(hook: fn()) {
    let _ = ON_PANIC.set(hook);
}

/// The kept panic is one for the whole process: tests that look at it take turns.
#[cfg(test)]
pub(crate) fn test_turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_kept_and_c_gets_the_fallback() {
        let _turn = test_turn();
        assert_eq!(ffi(-1, || 7), 7);
        assert!(take().is_none());
        let rc = ffi(-1, || -> i32 { panic!("first") });
        assert_eq!(rc, -1);
        ffi((), || panic!("second"));
        let payload = take().expect("kept");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"first"));
        assert!(take().is_none());
    }
}
