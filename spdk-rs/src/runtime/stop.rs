//! The orderly end.
//!
//! It is driven by a poller on the app thread rather than by a task, since it outlives all tasks.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::reactor::{self, Thread};
use crate::{bdev_module, guard, op};

/// How long a stop waits for operations that C has not finished. They are given up then: what
/// they hold is leaked.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// The future given to `run` was started (else there is nothing but SPDK to stop).
static ENTERED: AtomicBool = AtomicBool::new(false);
/// `spdk_app_stop` may be called once.
static REQUESTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The stop in progress; used by the poller on the app thread alone.
    static STOPPER: RefCell<Option<Stopper>> = const { RefCell::new(None) };
}

struct Stopper {
    step: Step,
    since: Instant,
    poller: *mut spdk_sys::spdk_poller,
}

enum Step {
    /// The other threads drop their tasks.
    Tasks(Arc<AtomicUsize>),
    /// Operations come home.
    Operations,
}

/// Notes that the app thread has a context: a stop must begin with its tasks.
pub(super) fn entered() {
    ENTERED.store(true, Ordering::Release);
}

/// Whether the end has begun. (SPDK's own, if the runtime was not asked, is not seen here.)
pub(crate) fn is_stopping() -> bool {
    REQUESTED.load(Ordering::Acquire)
}

/// Stops the runtime. May be called on any thread, inside or outside of a task, and repeatedly.
pub(super) fn request() {
    if !ENTERED.load(Ordering::Acquire) {
        // Asked while SPDK still waits for its first RPC: this runs on the app thread.
        if !REQUESTED.swap(true, Ordering::AcqRel) {
            stop_spdk();
        }
        return;
    }
    // As a message, so that it begins outside of any task.
    if let Ok(app) = Thread::app() {
        let _ = app.send(|| {
            if !REQUESTED.swap(true, Ordering::AcqRel) {
                begin();
            }
        });
    }
}

fn begin() {
    // SAFETY: this runs on the app thread, an spdk_thread. The poller takes no argument; it
    // unregisters itself.
    let poller = unsafe {
        spdk_sys::spdk_poller_register_named(Some(step), std::ptr::null_mut(), 0, c"rust-stop".as_ptr())
    };
    if poller.is_null() {
        // No memory for an orderly end. The tasks at least must not outlive their threads.
        reactor::close_current();
        stop_spdk();
        return;
    }
    let left = reactor::close_all(|| ());
    STOPPER.set(Some(Stopper {
        step: Step::Tasks(left),
        since: Instant::now(),
        poller,
    }));
}

unsafe extern "C" fn step(_: *mut c_void) -> c_int {
    guard::ffi(0, || {
        let over = STOPPER.with_borrow_mut(|stopper| {
            let Some(Stopper { step, since, .. }) = stopper else {
                return None; // called between its registration and `begin`'s end
            };
            let late = since.elapsed() > DRAIN_LIMIT;
            match step {
                Step::Tasks(left) if left.load(Ordering::Acquire) == 0 || late => {
                    // The app thread's tasks go last. They may hold things of other threads,
                    // whose remains are handed to executors that are closed: those are leaked.
                    reactor::close_current();
                    bdev_module::drain_all();
                    *step = Step::Operations;
                    None
                }
                Step::Tasks(_) => None,
                Step::Operations if op::outstanding() == 0 => stopper.take(),
                Step::Operations if late => {
                    let lost = op::outstanding();
                    eprintln!(
                        "spdk-rs: {lost} operation(s) not finished {DRAIN_LIMIT:?} after the \
                         stop was asked for: they are given up"
                    );
                    stopper.take()
                }
                Step::Operations => None,
            }
        });
        if let Some(mut stopper) = over {
            // SAFETY: the poller was registered on this thread; it unregisters itself.
            unsafe { spdk_sys::spdk_poller_unregister(&mut stopper.poller) };
            stop_spdk();
        }
        1
    })
}

fn stop_spdk() {
    // SAFETY: the app thread exists: reactors run until this has taken effect. REQUESTED (or the
    // stopper, of which there is one) sees to it that this is the only call.
    unsafe { spdk_sys::spdk_app_stop(0) };
}
