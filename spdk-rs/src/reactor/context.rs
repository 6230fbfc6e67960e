//! What this crate keeps for each spdk_thread: an executor, and the poller that drives it.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spdk_sys::{spdk_poller, spdk_thread};

use super::thread::ThreadHandle;
use crate::executor::Executor;
use crate::{Error, Result, guard};

/// The Rust side of one spdk_thread; lives on the OS thread of its reactor.
pub(crate) struct Context {
    thread: *mut spdk_thread,
    handle: ThreadHandle,
    executor: Executor,
    poller: Cell<*mut spdk_poller>,
    /// How many [`Adoption`]s keep it; 0 for a thread of this crate's own.
    adoptions: Cell<usize>,
}

static_assertions::assert_not_impl_any!(Context: Send, Sync);

thread_local! {
    /// The contexts of the spdk_threads that this OS thread runs. SPDK moves an spdk_thread to
    /// another OS thread only if its CPU mask is changed, which nothing here does.
    static CONTEXTS: RefCell<Vec<Rc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// Every thread that has a context, for stopping them.
static THREADS: Mutex<Vec<ThreadHandle>> = Mutex::new(Vec::new());

impl Context {
    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(crate) fn handle(&self) -> &ThreadHandle {
        &self.handle
    }
}

/// The context of the current spdk_thread, if it has one.
pub(crate) fn current() -> Option<Rc<Context>> {
    // SAFETY: spdk_get_thread reads a thread-local variable; it may be called anywhere.
    let thread = unsafe { spdk_sys::spdk_get_thread() };
    if thread.is_null() {
        return None;
    }
    CONTEXTS.with_borrow(|contexts| {
        contexts
            .iter()
            .find(|context| context.thread == thread)
            .map(Rc::clone)
    })
}

/// Gives the current spdk_thread a context: the one that `handle` names and feeds.
///
/// # Errors
/// No memory for the poller. The handle's inbox is closed then.
pub(crate) fn install(handle: ThreadHandle) -> Result<Rc<Context>> {
    const WHAT: &str = "set up spdk_thread";
    // SAFETY: spdk_get_thread reads a thread-local variable; it may be called anywhere.
    let thread = unsafe { spdk_sys::spdk_get_thread() };
    let executor = Executor::new(handle.inbox().clone());
    let context = Rc::new(Context {
        thread,
        handle,
        executor,
        poller: Cell::new(std::ptr::null_mut()),
        adoptions: Cell::new(0),
    });
    let arg = Rc::as_ptr(&context).cast_mut().cast::<c_void>();
    // SAFETY: this runs on an spdk_thread. The poller's argument lives until the poller is
    // unregistered, both in `close_current`. The name is copied.
    let poller = unsafe { spdk_sys::spdk_poller_register_named(Some(run), arg, 0, c"rust".as_ptr()) };
    let poller = Error::check_ptr(WHAT, context.handle.name(), poller, libc::ENOMEM)?;
    context.poller.set(poller.as_ptr());
    CONTEXTS.with_borrow_mut(|contexts| contexts.push(Rc::clone(&context)));
    Ok(context)
}

/// Keeps a context on an spdk_thread that SPDK has made, such as a poll group's. Must be dropped on
/// that thread, and not inside of a task: the last one closes the context.
#[must_use = "the context goes with it"]
pub(crate) struct Adoption(Option<Rc<Context>>);

static_assertions::assert_not_impl_any!(Adoption: Send, Sync);

impl Adoption {
    /// Of the current spdk_thread, if that has no context but by adoption.
    pub(super) fn join() -> Option<Self> {
        let context = current()?;
        let adopted = context.adoptions.get() > 0;
        Some(Self(adopted.then(|| Self::count(context))))
    }

    pub(super) fn first(context: Rc<Context>) -> Self {
        Self(Some(Self::count(context)))
    }

    fn count(context: Rc<Context>) -> Rc<Context> {
        context.adoptions.set(context.adoptions.get() + 1);
        context
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let Some(context) = self.0.take() else { return };
        context.adoptions.set(context.adoptions.get() - 1);
        // The end of the runtime may have closed it before.
        if context.adoptions.get() == 0 && current().is_some_and(|now| Rc::ptr_eq(&now, &context)) {
            close_current();
        }
    }
}

/// Whether the current spdk_thread has a context by adoption.
pub(super) fn is_adopted() -> bool {
    current().is_some_and(|context| context.adoptions.get() > 0)
}

/// Whether no thread of this OS thread has anything to run.
pub(super) fn all_idle() -> bool {
    CONTEXTS.with_borrow(|contexts| contexts.iter().all(|context| context.executor.is_idle()))
}

/// Puts a thread on the list of those to be closed at the end.
pub(crate) fn list(handle: &ThreadHandle) {
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    threads.push(handle.clone());
}

const IDLE: c_int = 0;
const BUSY: c_int = 1;

/// The poller that drives the executor.
unsafe extern "C" fn run(arg: *mut c_void) -> c_int {
    let arg = arg.cast_const().cast::<Context>();
    // SAFETY: the context lives while its poller is registered (see `install`).
    match unsafe { &*arg }.executor.is_idle() {
        true => IDLE,
        // SAFETY: as above; the pointer comes from Rc::as_ptr, and CONTEXTS holds the Rc.
        false => unsafe { run_what_is_there(arg) },
    }
}

/// (Apart, since it needs more registers than the look that comes before it, each time that the
/// reactor comes round.)
///
/// # Safety
/// `arg` is a context of this thread.
#[inline(never)]
unsafe fn run_what_is_there(arg: *const Context) -> c_int {
    guard::ffi(BUSY, || {
        // A task may close the context: hold it until the queue has let go of it.
        // SAFETY: by contract it is there, in an Rc.
        let context = unsafe {
            Rc::increment_strong_count(arg);
            Rc::from_raw(arg)
        };
        if context.executor.run() > 0 { BUSY } else { IDLE }
    })
}

/// Closes the context of the current spdk_thread: drops its tasks, stops its poller. Must not be
/// called inside of a task.
pub(crate) fn close_current() {
    let Some(context) = current() else { return };
    context.executor.close();
    let mut poller = context.poller.replace(std::ptr::null_mut());
    // SAFETY: this is the thread that registered the poller; SPDK allows a poller to unregister
    // itself, and calls it never again.
    unsafe { spdk_sys::spdk_poller_unregister(&mut poller) };
    CONTEXTS.with_borrow_mut(|contexts| contexts.retain(|other| !Rc::ptr_eq(other, &context)));
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    threads.retain(|handle| handle.id() != context.handle.id());
}

/// Closes the contexts of all threads but the current one. The counter returned falls to 0 when
/// they have done so. `then` runs on each of the threads, after its last task was dropped.
pub(crate) fn close_all(then: fn()) -> Arc<AtomicUsize> {
    /// Counts down when it is dropped, so also when the message is.
    struct Left(Arc<AtomicUsize>);
    impl Drop for Left {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
    let current = current().map(|context| context.handle.id());
    let threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let left = Arc::new(AtomicUsize::new(0));
    for handle in threads {
        if Some(handle.id()) == current {
            continue;
        }
        left.fetch_add(1, Ordering::AcqRel);
        let one = Left(Arc::clone(&left));
        // A thread that has closed by itself meanwhile drops the message.
        let _ = handle.inbox().call(Box::new(move || {
            close_current();
            then();
            drop(one);
        }));
    }
    left
}
