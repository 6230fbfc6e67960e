//! One life cycle for every call that answers through a C callback.
//!
//! # The model
//!
//! An operation has an owner on each side: the future ([`Op`]) on the Rust side, and C, which
//! holds the context pointer until it has called back. Both share one heap cell that carries the
//! *keep* (whatever must stay alive and in place while C works: buffers, names, channels), and,
//! in the end, the result.
//!
//! ```text
//!            start()
//!               │ submit
//!     ┌─────────┼──────────────────────────┐
//!     │ Failed  │ Pending                  │ callback ran inside submit
//!     ▼         ▼                          ▼
//!  reclaimed  pending ───callback──────▶ completed ──poll──▶ (result, keep) to the future
//!   now         │                          │
//!               │ future dropped           │ future dropped
//!               ▼                          ▼
//!            orphaned ──callback──▶ late(result, keep)
//! ```
//!
//! * **Submit failed**: C refused and will never call back. The cell is reclaimed at once, the
//!   future yields the value that submit gave.
//! * **Pending**: C owns its half. Nothing in the keep moves or is freed before the callback.
//! * **Completed**: exactly once, also when C calls back *before* submit returns. The cell is
//!   freed when both halves have let go.
//!
//! Dropping the future *orphans* the operation: C goes on undisturbed, and the result goes to the
//! `late` function with the keep, so that, say, a thing that is opened after its opener has gone
//! is closed again. `late` also gets a result that came but was never taken.
//!
//! What may not be done here: name any type of SPDK. This module knows of C only
//! `*mut c_void`, so that plain unit tests reach all of it.

mod calls;
#[cfg(all(test, spdk_loom))]
mod loom_tests;
#[cfg(all(test, not(spdk_loom)))]
mod slot_tests;
pub(crate) mod slots;
#[cfg(all(test, not(spdk_loom)))]
mod tests;

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

pub use calls::{HandleCallback, NotifyCallback, RcCallback, discard, notify, unary, with_handle};

use crate::sync::{Arc, Mutex, MutexGuard};

/// Operations that C has not finished yet, orphans included. The runtime waits for zero before
/// it lets SPDK stop.
static OUTSTANDING: AtomicUsize = AtomicUsize::new(0);

/// The number of operations that were handed to C and have not been called back.
pub fn outstanding() -> usize {
    OUTSTANDING.load(Ordering::Acquire) + slots::outstanding()
}

/// What became of the attempt to hand an operation to C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted<T> {
    /// C has it: the callback has run, or will run, exactly once.
    Pending,
    /// C refused it: the callback has not run and never will. The future yields this value.
    Failed(T),
}

impl Submitted<i32> {
    /// For functions that return 0 when they took the operation, and otherwise a negative errno
    /// *without* calling back. (Functions that do both need [`Submitted::Pending`] always: see
    /// the table in the documentation of the function's wrapper.)
    pub fn from_rc(rc: i32) -> Self {
        match rc {
            0 => Self::Pending,
            rc => Self::Failed(rc),
        }
    }
}

/// Hands an operation to C; implemented by closures.
pub trait Submit<T, K> {
    /// Calls C with `cb_arg`, which C must give back to the callback unchanged.
    ///
    /// `keep` stays at its address until the operation has completed, so pointers into it may be
    /// given to C. After this returns, nothing but the callback may use it.
    fn submit(self, keep: &mut K, cb_arg: *mut c_void) -> Submitted<T>;
}

impl<T, K, F> Submit<T, K> for F
where
    F: FnOnce(&mut K, *mut c_void) -> Submitted<T>,
{
    fn submit(self, keep: &mut K, cb_arg: *mut c_void) -> Submitted<T> {
        self(keep, cb_arg)
    }
}

enum State<T> {
    Pending(Option<Waker>),
    Orphaned,
    Completed(T),
    Finished,
}

struct Shared<T, K> {
    state: Mutex<State<T>>,
    /// Emptied once, by whoever brings the state to `Finished`.
    keep: UnsafeCell<Option<K>>,
    late: fn(T, K),
}

impl<T, K> Shared<T, K> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of others runs under this lock, so a poisoned one is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the keep out.
    ///
    /// # Safety
    /// The caller has just changed the state to `Finished`.
    unsafe fn take_keep(&self) -> K {
        // SAFETY: the state is `Finished`: C has called back (or never will), so it holds no
        // pointer into the keep any more, and only one party ever makes that change.
        let keep = unsafe { (*self.keep.get()).take() };
        keep.expect("the keep is taken once")
    }

    /// Records the result and tells whoever is left.
    fn complete(&self, value: T) {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Finished) {
            State::Pending(waker) => {
                *state = State::Completed(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Orphaned => {
                drop(state);
                // SAFETY: the state was changed to `Finished` above.
                let keep = unsafe { self.take_keep() };
                (self.late)(value, keep);
            }
            State::Completed(_) | State::Finished => {
                unreachable!("an operation completes once: the callback consumes C's half")
            }
        }
    }
}

/// Completes an operation: the body of every callback. It consumes C's half of the operation.
///
/// # Safety
/// * `cb_arg` is the pointer that [`Submit::submit`] received from a [`start`] with the same `T`
///   and `K`, and this is the one and only call for it.
/// * It runs on the OS thread that started the operation, or `T` and `K` are `Send`.
pub unsafe fn complete<T, K>(cb_arg: *mut c_void, value: T) {
    // SAFETY: the pointer comes from Arc::into_raw in `start`, with these types, and C gives its
    // reference back exactly once (this function's contract).
    let shared = unsafe { Arc::from_raw(cb_arg.cast_const().cast::<Shared<T, K>>()) };
    shared.complete(value);
    drop(shared);
    OUTSTANDING.fetch_sub(1, Ordering::AcqRel);
}

/// Whether the future of a pending operation has been dropped. For callbacks that may submit
/// again (waiting for memory): an orphan need not be.
///
/// # Safety
/// As [`complete`], but before it, and any number of times.
pub unsafe fn is_orphaned<T, K>(cb_arg: *mut c_void) -> bool {
    // SAFETY: C still holds its reference (contract), so the cell is alive.
    let shared = unsafe { &*cb_arg.cast_const().cast::<Shared<T, K>>() };
    let orphaned = matches!(*shared.lock(), State::Orphaned);
    orphaned
}

/// The keep of a pending operation, for callbacks that need it.
///
/// # Safety
/// As [`complete`], but before it; the reference must be gone before the operation can complete
/// and before another one is made.
pub unsafe fn keep<'a, T, K>(cb_arg: *mut c_void) -> &'a mut K {
    // SAFETY: C still holds its reference (contract), so the cell is alive.
    let shared = unsafe { &*cb_arg.cast_const().cast::<Shared<T, K>>() };
    // SAFETY: while C has the operation nobody but its callback touches the keep.
    let keep = unsafe { &mut *shared.keep.get() };
    keep.as_mut().expect("the keep is there until completion")
}

/// Starts an operation: moves `keep` to its place, and hands the operation to C through `submit`.
///
/// `late` receives the result and the keep if the future is dropped before it took them. It runs
/// in the callback or in the future's destructor and so may neither block nor panic. See
/// [`discard`] for results that need no care.
pub fn start<T, K, S>(keep: K, late: fn(T, K), submit: S) -> Op<T, K>
where
    T: 'static,
    K: 'static,
    S: Submit<T, K>,
{
    // Not Send in general, and still counted atomically: a callback may come on another thread
    // where T and K are Send.
    #[allow(clippy::arc_with_non_send_sync)]
    let shared = Arc::new(Shared {
        state: Mutex::new(State::Pending(None)),
        keep: UnsafeCell::new(Some(keep)),
        late,
    });
    let half_of_c = Arc::into_raw(Arc::clone(&shared));
    OUTSTANDING.fetch_add(1, Ordering::AcqRel);
    // SAFETY: nobody else knows the cell yet, and a callback that runs inside submit finds the
    // state `Pending` and therefore leaves the keep alone.
    let keep = unsafe { (*shared.keep.get()).as_mut() }.expect("just put there");
    let cb_arg = half_of_c.cast_mut().cast::<c_void>();
    if let Submitted::Failed(value) = submit.submit(keep, cb_arg) {
        let mut state = shared.lock();
        // A function that calls back and then reports failure as well has consumed its half:
        // the callback's word stands. (This guards against freeing twice; a callback that comes
        // *after* a failure is what `Submitted::Failed` rules out.)
        if matches!(*state, State::Pending(_)) {
            *state = State::Completed(value);
            drop(state);
            // SAFETY: C will never call back, so the half made by into_raw above is ours again.
            drop(unsafe { Arc::from_raw(half_of_c) });
            OUTSTANDING.fetch_sub(1, Ordering::AcqRel);
        }
    }
    Op {
        shared: Some(shared),
        _not_send: PhantomData,
    }
}

/// The future of an operation. It yields the result and the keep.
///
/// It belongs to the thread that started it. Dropping it orphans the operation: see the
/// [module's documentation](self).
#[must_use = "dropping the future orphans the operation"]
pub struct Op<T, K> {
    shared: Option<Arc<Shared<T, K>>>,
    _not_send: PhantomData<*mut ()>,
}

static_assertions::assert_not_impl_any!(Op<i32, ()>: Send, Sync);

// The future holds a pointer to its cell, nothing that is pinned.
impl<T, K> Unpin for Op<T, K> {}

impl<T, K> Future for Op<T, K> {
    type Output = (T, K);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = self
            .shared
            .as_ref()
            .expect("an operation is not polled after it has yielded");
        let mut state = shared.lock();
        match &mut *state {
            State::Pending(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            State::Completed(_) => {}
            State::Orphaned | State::Finished => unreachable!("the future is still here"),
        }
        let State::Completed(value) = std::mem::replace(&mut *state, State::Finished) else {
            unreachable!("looked at above, under the same lock")
        };
        drop(state);
        // SAFETY: the state was changed to `Finished` above.
        let keep = unsafe { shared.take_keep() };
        self.shared = None;
        Poll::Ready((value, keep))
    }
}

impl<T, K> Drop for Op<T, K> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        let mut state = shared.lock();
        match std::mem::replace(&mut *state, State::Finished) {
            State::Pending(waker) => {
                *state = State::Orphaned;
                drop(state);
                drop(waker);
            }
            State::Completed(value) => {
                drop(state);
                // SAFETY: the state was changed to `Finished` above.
                let keep = unsafe { shared.take_keep() };
                (shared.late)(value, keep);
            }
            State::Orphaned | State::Finished => unreachable!("the future is still here"),
        }
    }
}
