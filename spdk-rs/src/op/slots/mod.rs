//! Operations that stay on one thread, in slots that are used again: for I/O.
//!
//! The life cycle is that of the [parent module](super). What differs is the cost: no lock, no
//! atomic read-modify-write, no allocation once as many slots were made as operations are in
//! flight at a time, and the keep is made, used and emptied in its slot, never moved. In return,
//! C must call back on the thread that started the operation.
//!
//! A slot is *free*, or it belongs to an operation:
//!
//! | state | future | C | failure | keep |
//! |---|---|---|---|---|
//! | prepared | there | knows nothing of it | no | yes |
//! | waiting | there | has it in a queue, no more | no | yes |
//! | pending, awaited, watched | there | works | no | yes |
//! | orphaned | gone | works | no | yes |
//! | succeeded | there | done | no | yes |
//! | failed | there | done | yes | yes |
//!
//! Slots share a *context*: what all operations of a pool need. It and the memory of all slots stay
//! until the last operation has ended, also when [`Slots`] is gone.

mod future;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

pub(crate) use future::{At, SlotOp};

use crate::executor::{TaskRef, Turn, Waiter};
use crate::sanitize;

/// Slots made at a time.
const CHUNK: usize = 32;

/// By their addresses: there may be tens of thousands, and each goes at some time.
type Counters = BTreeMap<usize, Arc<AtomicUsize>>;

fn address(counter: &Arc<AtomicUsize>) -> usize {
    Arc::as_ptr(counter).addr()
}

/// How many operations C has, for each pool that there is. Only a pool's own thread writes its
/// counter.
static COUNTERS: Mutex<Counters> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Those of the pools that belong to this OS thread.
    static HERE: RefCell<Counters> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether C has operations that this OS thread has begun.
pub(crate) fn pending_here() -> bool {
    HERE.with_borrow(|counters| counters.values().any(|count| count.load(Ordering::Relaxed) > 0))
}

/// Operations of all pools that C has not finished yet.
pub(super) fn outstanding() -> usize {
    let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    counters.values().map(|count| count.load(Ordering::Acquire)).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Prepared,
    /// Whoever waits for the operation is in `waker`.
    Waiting,
    /// Nobody waits for it.
    Pending,
    /// Pending, and the task that `link` points to waits for it.
    Awaited,
    /// Pending, and whoever is in `waker` waits for it.
    Watched,
    Orphaned,
    Succeeded,
    Failed,
}

/// An operation that goes well and is awaited by a task touches the first cache line alone, if what
/// it needs of the keep comes first there.
#[repr(C, align(64))]
struct Slot<C, T, K> {
    state: Cell<State>,
    pool: NonNull<Pool<C, T, K>>,
    /// If it is free, the next free slot, or null. Else the task that waits, if one does.
    link: Cell<*const ()>,
    keep: UnsafeCell<MaybeUninit<K>>,
    failure: UnsafeCell<MaybeUninit<T>>,
    waker: UnsafeCell<Option<Waker>>,
}

type Chunk<C, T, K> = Box<[Slot<C, T, K>]>;

struct Pool<C, T, K> {
    /// A free slot, or null.
    free: Cell<*const Slot<C, T, K>>,
    at_c: Arc<AtomicUsize>,
    /// The executor of its thread, see [`Turn::of`].
    home: usize,
    context: C,
    /// Once the [`Slots`] is gone, the slots that are not free: the last operation frees the pool.
    left: Cell<Option<usize>>,
    /// Chunks never move or shrink: C holds addresses of slots.
    chunks: RefCell<Vec<Chunk<C, T, K>>>,
}

impl<C, T, K> Pool<C, T, K> {
    /// One writer: no read-modify-write is needed.
    #[inline(always)]
    fn count(&self, change: isize) {
        let count = self.at_c.load(Ordering::Relaxed);
        self.at_c
            .store(count.wrapping_add_signed(change), Ordering::Release);
    }

    /// See [`Slots::prepare`].
    ///
    /// # Safety
    /// The pool is alive.
    #[inline(always)]
    unsafe fn prepare(this: NonNull<Self>, make: impl FnOnce() -> K) -> NonNull<Slot<C, T, K>> {
        // SAFETY: by contract.
        let pool = unsafe { this.as_ref() };
        if pool.free.get().is_null() {
            pool.grow(this);
        }
        // SAFETY: not null: the pool has grown if it was.
        let at = unsafe { NonNull::new_unchecked(pool.free.get().cast_mut()) };
        // SAFETY: slots live as long as the pool.
        let slot = unsafe { at.as_ref() };
        slot.allow();
        // SAFETY: the slot is free, so nobody else knows it. (If `make` panics it stays so.)
        unsafe { (*slot.keep.get()).write(make()) };
        pool.free.set(slot.link.get().cast());
        slot.state.set(State::Prepared);
        at
    }

    #[cold]
    fn grow(&self, this: NonNull<Self>) {
        let chunk: Chunk<C, T, K> = (0..CHUNK)
            .map(|_| Slot {
                state: Cell::new(State::Free),
                pool: this,
                link: Cell::new(ptr::null()),
                keep: UnsafeCell::new(MaybeUninit::uninit()),
                failure: UnsafeCell::new(MaybeUninit::uninit()),
                waker: UnsafeCell::new(None),
            })
            .collect();
        for slot in &chunk {
            slot.forbid();
            slot.link.set(self.free.replace(slot).cast());
        }
        self.chunks.borrow_mut().push(chunk);
    }

    /// # Safety
    /// No handle and no operation is left.
    #[cold]
    unsafe fn free(at: NonNull<Self>) {
        // SAFETY: by contract nobody else has a reference; it came from Box::leak.
        let pool = unsafe { Box::from_raw(at.as_ptr()) };
        let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
        counters.remove(&address(&pool.at_c));
        drop(counters);
        // At the end of the OS thread the list may have gone already.
        let _ = HERE.try_with(|here| here.borrow_mut().remove(&address(&pool.at_c)));
    }
}

/// Where an operation stands, as its future sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// C does not know it yet.
    Prepared,
    /// C has its place in a queue, and has not begun.
    Waiting,
    /// C works.
    Pending,
    /// C is done with it, and its future may have yielded.
    Ended,
}

/// A thread's slots for operations with results `T` that keep a `K`.
pub(crate) struct Slots<C, T, K>(NonNull<Pool<C, T, K>>);

impl<C, T, K> Slots<C, T, K> {
    /// For the thread of the executor `home`. `at_c` counts the operations that C has not finished
    /// yet; nobody else changes it.
    pub(crate) fn new(home: usize, at_c: Arc<AtomicUsize>, context: C) -> Self {
        let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
        counters.insert(address(&at_c), Arc::clone(&at_c));
        drop(counters);
        HERE.with_borrow_mut(|counters| counters.insert(address(&at_c), Arc::clone(&at_c)));
        Self(NonNull::from(Box::leak(Box::new(Pool {
            free: Cell::new(ptr::null()),
            at_c,
            home,
            context,
            left: Cell::new(None),
            chunks: RefCell::default(),
        }))))
    }

    /// What the operations share.
    #[inline]
    pub(crate) fn context(&self) -> &C {
        // SAFETY: the pool lives at least as long as this handle.
        &unsafe { self.0.as_ref() }.context
    }

    /// Prepares an operation with the keep that `make` makes, in its place.
    #[inline(always)]
    pub(crate) fn prepare(&self, make: impl FnOnce() -> K) -> SlotOp<C, T, K> {
        // SAFETY: the pool lives at least as long as this handle.
        SlotOp(Some(unsafe { Pool::prepare(self.0, make) }))
    }
}

impl<C, T, K> Drop for Slots<C, T, K> {
    fn drop(&mut self) {
        // SAFETY: the pool lives at least as long as this handle.
        let pool = unsafe { self.0.as_ref() };
        let mut left = pool.chunks.borrow().len() * CHUNK;
        let mut free = pool.free.get();
        // SAFETY: slots live as long as the pool.
        while let Some(slot) = unsafe { free.as_ref() } {
            left -= 1;
            free = slot.link.get().cast();
        }
        pool.left.set(Some(left));
        if left == 0 {
            // SAFETY: there is no handle any more, and no operation.
            unsafe { Pool::free(self.0) };
        }
    }
}

impl<C, T, K> Slot<C, T, K> {
    /// Nobody may touch failure and keep while the slot is free: the sanitizer is told.
    #[inline(always)]
    fn forbid(&self) {
        sanitize::forbid(self.failure.get(), size_of::<T>());
        sanitize::forbid(self.keep.get(), size_of::<K>());
    }

    #[inline(always)]
    fn allow(&self) {
        sanitize::allow(self.failure.get(), size_of::<T>());
        sanitize::allow(self.keep.get(), size_of::<K>());
    }

    /// Whoever polls with `cx` waits from now on.
    #[cold]
    fn wait(&self, cx: &Context<'_>, turn: Option<Turn>) {
        let old = self.take_waiter();
        match turn {
            Some(turn) if self.state.get() == State::Pending => self.await_it(turn),
            _ => {
                // SAFETY: the reference ends here; nothing is dropped, since nobody waits.
                unsafe { *self.waker.get() = Some(cx.waker().clone()) };
                if self.state.get() == State::Pending {
                    self.state.set(State::Watched);
                }
            }
        }
        drop(old); // last, since its destructor may run anything
    }

    /// The task that has this turn waits from now on, for a pending operation for which nobody does.
    #[inline(always)]
    fn await_it(&self, turn: Turn) {
        self.link.set(turn.task().into_raw());
        self.state.set(State::Awaited);
    }

    /// Nobody waits for the operation any more.
    #[inline(always)]
    fn take_waiter(&self) -> Option<Waiter> {
        match self.state.get() {
            State::Awaited => {
                self.state.set(State::Pending);
                // SAFETY: `await_it` has put it there, and it is taken out once.
                Some(Waiter::Task(unsafe { TaskRef::from_raw(self.link.get()) }))
            }
            State::Watched => {
                self.state.set(State::Pending);
                self.take_waker()
            }
            State::Waiting => self.take_waker(),
            _ => None,
        }
    }

    fn take_waker(&self) -> Option<Waiter> {
        // SAFETY: the reference ends before any code but this can run.
        unsafe { &mut *self.waker.get() }.take().map(Waiter::Waker)
    }

    /// C did not take it. If C has called back all the same, its word stands.
    #[cold]
    fn refused(&self, failure: T) {
        if self.state.get() != State::Pending {
            return;
        }
        // SAFETY: a slot that is not free keeps its pool alive.
        unsafe { self.pool.as_ref() }.count(-1);
        self.end(Err(failure));
    }

    /// It has ended: C will not come any more.
    #[inline(always)]
    fn end(&self, result: Result<(), T>) {
        let state = match result {
            Ok(()) => State::Succeeded,
            Err(failure) => {
                // SAFETY: it has not ended before, so no failure is there.
                unsafe { (*self.failure.get()).write(failure) };
                State::Failed
            }
        };
        self.state.set(state);
    }

    /// Frees the slot. Returns the pool if that is to be freed, too: see [`Pool::free`].
    ///
    /// # Safety
    /// C is done with it, nobody waits for it, and failure and keep were dropped, or need not be.
    #[inline(always)]
    unsafe fn release(at: NonNull<Self>) -> Option<NonNull<Pool<C, T, K>>> {
        // SAFETY: a slot that is not free keeps its pool alive.
        let slot = unsafe { at.as_ref() };
        slot.state.set(State::Free);
        slot.forbid();
        let pool_at = slot.pool;
        // SAFETY: as above.
        let pool = unsafe { pool_at.as_ref() };
        slot.link.set(pool.free.replace(at.as_ptr()).cast());
        let left = pool.left.get()? - 1;
        pool.left.set(Some(left));
        (left == 0).then_some(pool_at)
    }

    /// Drops the keep, and the failure if it is there, and frees the slot.
    ///
    /// # Safety
    /// The slot is not free; no future and no callback holds it any more.
    #[inline]
    unsafe fn discard(at: NonNull<Self>) {
        // SAFETY: not free, so the slot is there, and the keep; the failure if it has failed.
        // What their destructors do cannot reach the slot: it is not free yet.
        unsafe {
            let slot = at.as_ref();
            if slot.state.get() == State::Failed {
                (*slot.failure.get()).assume_init_drop();
            }
            (*slot.keep.get()).assume_init_drop();
            if let Some(pool) = Self::release(at) {
                Pool::free(pool);
            }
        }
    }
}

/// Ends an operation: see [`super::complete`]. Tells `ended` first, when C is not counted to
/// have it any more; then `wake` whoever waits for it: [`Waiter::wake`], which may run the task, or
/// [`Waiter::wake_later`]. What `ended` yields is dropped after that.
///
/// # Safety
/// * `cb_arg` is the pointer that [`Submit::submit`] received from a [`SlotOp::submit`] with the
///   same `T` and `K`, and this is the one and only call for it.
/// * It runs on the thread that started the operation.
#[inline(always)]
pub(crate) unsafe fn complete<C, T, K, R>(
    cb_arg: *mut c_void,
    result: Result<(), T>,
    ended: impl FnOnce(&C) -> R,
    wake: impl FnOnce(Waiter),
) {
    // SAFETY: the slot of a pending operation, by contract; it is not null.
    let at = unsafe { NonNull::new_unchecked(cb_arg.cast::<Slot<C, T, K>>()) };
    // SAFETY: it is not free, so it is there.
    let slot = unsafe { at.as_ref() };
    // SAFETY: a slot that is not free keeps its pool alive.
    let pool = unsafe { slot.pool.as_ref() };
    pool.count(-1);
    let _dropped_last = ended(&pool.context);
    if slot.state.get() == State::Awaited {
        // SAFETY: a task waits, whose reference is there; it is taken out, since the state changes.
        let task = unsafe { TaskRef::from_raw(slot.link.get()) };
        slot.end(result);
        wake(Waiter::Task(task)); // the slot may be gone when this returns
    } else {
        // SAFETY: as the contract says.
        unsafe { complete_otherwise(at, result) };
    }
}

/// The end of an operation for which no task waits.
///
/// # Safety
/// It is pending, and not any more.
#[cold]
unsafe fn complete_otherwise<C, T, K>(at: NonNull<Slot<C, T, K>>, result: Result<(), T>) {
    // SAFETY: it is not free, so it is there.
    let slot = unsafe { at.as_ref() };
    if slot.state.get() == State::Orphaned {
        drop(result);
        // SAFETY: orphaned: not free, no future; and C has just ended.
        unsafe { Slot::discard(at) };
        return;
    }
    let waiter = slot.take_waiter();
    debug_assert!(
        matches!(slot.state.get(), State::Pending | State::Waiting),
        "an operation completes once"
    );
    slot.end(result);
    if let Some(waiter) = waiter {
        waiter.wake_later(); // the slot may be gone when this returns
    }
}

/// Whether the future of a pending operation has been dropped.
///
/// # Safety
/// As [`complete`], but before it, and any number of times.
pub(crate) unsafe fn is_orphaned<C, T, K>(cb_arg: *mut c_void) -> bool {
    // SAFETY: the slot of a pending operation, by contract.
    unsafe { &*cb_arg.cast::<Slot<C, T, K>>() }.state.get() == State::Orphaned
}

/// Says that C has not begun with a pending operation, but only queued it; or (`false`) that it
/// begins now.
///
/// # Safety
/// As [`complete`], but before it, and for an operation that is not orphaned.
pub(crate) unsafe fn set_waiting<C, T, K>(cb_arg: *mut c_void, waiting: bool) {
    // SAFETY: the slot of a pending operation, by contract.
    let slot = unsafe { &*cb_arg.cast::<Slot<C, T, K>>() };
    debug_assert!(matches!(
        slot.state.get(),
        State::Waiting | State::Pending | State::Watched
    ));
    // SAFETY: the reference ends at once.
    let watched = unsafe { &*slot.waker.get() }.is_some();
    slot.state.set(match (waiting, watched) {
        (true, _) => State::Waiting,
        (false, true) => State::Watched,
        (false, false) => State::Pending,
    });
}

/// Has the future of a pending operation polled, though the operation has not ended.
///
/// # Safety
/// As [`complete`], but before it.
pub(crate) unsafe fn wake<C, T, K>(cb_arg: *mut c_void) {
    // SAFETY: the slot of a pending operation, by contract.
    if let Some(waiter) = unsafe { &*cb_arg.cast::<Slot<C, T, K>>() }.take_waiter() {
        waiter.wake_later();
    }
}

/// Context and keep of a pending operation.
///
/// # Safety
/// As [`complete`], but before it; the references must be gone before the operation can complete
/// and before others are made.
#[inline]
pub(crate) unsafe fn keep<'a, C, T: 'a, K>(cb_arg: *mut c_void) -> (&'a C, &'a mut K) {
    // SAFETY: the slot of a pending operation, by contract: its pool is there, and the keep, which
    // nobody but its callback touches.
    unsafe {
        let slot = &*cb_arg.cast::<Slot<C, T, K>>();
        (&slot.pool.as_ref().context, (*slot.keep.get()).assume_init_mut())
    }
}
