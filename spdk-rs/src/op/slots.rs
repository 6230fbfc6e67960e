//! Operations that stay on one thread, in slots that are used again: for I/O.
//!
//! The life cycle is that of the [parent module](super). What differs is the cost: no lock, no
//! atomic read-modify-write, no allocation once as many slots were made as operations are in
//! flight at a time, and the keep is made, used and emptied in its slot, never moved. In return,
//! C must call back on the thread that started the operation.
//!
//! A slot is *free*, or it belongs to an operation:
//!
//! | state | future | C | value | keep |
//! |---|---|---|---|---|
//! | prepared | there | knows nothing of it | no | yes |
//! | pending | there | works | no | yes |
//! | orphaned | gone | works | no | yes |
//! | completed | there | done | yes | yes |
//!
//! The memory of all slots stays until the last operation has ended, also when [`Slots`] is gone.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use super::{Submit, Submitted};
use crate::executor::Waiter;
use crate::sanitize;

/// Slots made at a time.
const CHUNK: usize = 32;

/// How many operations C has, for each pool that there is. Only a pool's own thread writes its
/// counter.
static COUNTERS: Mutex<Vec<Arc<AtomicUsize>>> = Mutex::new(Vec::new());

/// Operations of all pools that C has not finished yet.
pub(super) fn outstanding() -> usize {
    let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    counters.iter().map(|count| count.load(Ordering::Acquire)).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Prepared,
    Pending,
    Orphaned,
    Completed,
}

struct Slot<T, K> {
    state: Cell<State>,
    next_free: Cell<Option<NonNull<Slot<T, K>>>>,
    pool: NonNull<Pool<T, K>>,
    waiter: UnsafeCell<Option<Waiter>>,
    value: UnsafeCell<MaybeUninit<T>>,
    keep: UnsafeCell<MaybeUninit<K>>,
}

type Chunk<T, K> = Box<[Slot<T, K>]>;

struct Pool<T, K> {
    /// Chunks never move or shrink: C holds addresses of slots.
    chunks: RefCell<Vec<Chunk<T, K>>>,
    free: Cell<Option<NonNull<Slot<T, K>>>>,
    /// Slots that are not free.
    used: Cell<usize>,
    /// The [`Slots`] is gone: the last operation frees the pool.
    abandoned: Cell<bool>,
    at_c: Arc<AtomicUsize>,
    /// The executor of its thread, see [`Waiter::of`].
    home: usize,
}

impl<T, K> Pool<T, K> {
    /// One writer: no read-modify-write is needed.
    fn count(&self, change: isize) {
        let count = self.at_c.load(Ordering::Relaxed);
        self.at_c
            .store(count.wrapping_add_signed(change), Ordering::Release);
    }

    #[cold]
    fn grow(&self, this: NonNull<Self>) {
        let chunk: Chunk<T, K> = (0..CHUNK)
            .map(|_| Slot {
                state: Cell::new(State::Free),
                next_free: Cell::new(None),
                pool: this,
                waiter: UnsafeCell::new(None),
                value: UnsafeCell::new(MaybeUninit::uninit()),
                keep: UnsafeCell::new(MaybeUninit::uninit()),
            })
            .collect();
        for slot in &chunk {
            slot.forbid();
            slot.next_free.set(self.free.get());
            self.free.set(Some(NonNull::from(slot)));
        }
        self.chunks.borrow_mut().push(chunk);
    }
}

/// A thread's slots for operations with results `T` that keep a `K`.
pub(crate) struct Slots<T, K>(NonNull<Pool<T, K>>);

impl<T, K> Slots<T, K> {
    /// For the thread of the executor `home`.
    pub(crate) fn new(home: usize) -> Self {
        let at_c = Arc::new(AtomicUsize::new(0));
        let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
        counters.push(Arc::clone(&at_c));
        Self(NonNull::from(Box::leak(Box::new(Pool {
            chunks: RefCell::default(),
            free: Cell::new(None),
            used: Cell::new(0),
            abandoned: Cell::new(false),
            at_c,
            home,
        }))))
    }

    /// Operations that C has not finished yet.
    pub(crate) fn at_c(&self) -> usize {
        // SAFETY: the pool lives at least as long as this handle.
        unsafe { self.0.as_ref() }.at_c.load(Ordering::Relaxed)
    }

    /// Prepares an operation with the keep that `make` makes, in its place.
    #[inline(always)]
    pub(crate) fn prepare(&self, make: impl FnOnce() -> K) -> SlotOp<T, K> {
        // SAFETY: the pool lives at least as long as this handle.
        let pool = unsafe { self.0.as_ref() };
        if pool.free.get().is_none() {
            pool.grow(self.0);
        }
        let Some(at) = pool.free.get() else {
            unreachable!("the pool has just grown")
        };
        // SAFETY: slots live as long as the pool.
        let slot = unsafe { at.as_ref() };
        slot.allow();
        // SAFETY: the slot is free, so nobody else knows it. (If `make` panics it stays so.)
        unsafe { (*slot.keep.get()).write(make()) };
        pool.free.set(slot.next_free.get());
        pool.used.set(pool.used.get() + 1);
        slot.state.set(State::Prepared);
        SlotOp(Some(at))
    }
}

impl<T, K> Drop for Slots<T, K> {
    fn drop(&mut self) {
        // SAFETY: the pool lives at least as long as this handle.
        let pool = unsafe { self.0.as_ref() };
        pool.abandoned.set(true);
        free_if_unused(self.0);
    }
}

fn free_if_unused<T, K>(at: NonNull<Pool<T, K>>) {
    // SAFETY: called with a pool that is alive: by its handle, or by the release of a slot.
    let pool = unsafe { at.as_ref() };
    if !pool.abandoned.get() || pool.used.get() > 0 {
        return;
    }
    let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    counters.retain(|count| !Arc::ptr_eq(count, &pool.at_c));
    drop(counters);
    // SAFETY: no handle and no operation is left, so this is the last reference; the pool came
    // from Box::leak.
    drop(unsafe { Box::from_raw(at.as_ptr()) });
}

impl<T, K> Slot<T, K> {
    /// Nobody may touch value and keep while the slot is free: the sanitizer is told.
    #[inline(always)]
    fn forbid(&self) {
        sanitize::forbid(self.value.get(), size_of::<T>());
        sanitize::forbid(self.keep.get(), size_of::<K>());
    }

    #[inline(always)]
    fn allow(&self) {
        sanitize::allow(self.value.get(), size_of::<T>());
        sanitize::allow(self.keep.get(), size_of::<K>());
    }

    #[inline]
    fn wait(&self, waiter: Waiter) {
        // SAFETY: the reference ends before any code but this can run. (An old waiter's
        // destructor could: that is why it runs last.)
        let place = unsafe { &mut *self.waiter.get() };
        // Most often there is none, which need not be read whole.
        if place.is_some() {
            let old = place.replace(waiter);
            drop(old);
            return;
        }
        // SAFETY: a valid place, with nothing in it that needs dropping.
        unsafe { std::ptr::write(place, Some(waiter)) };
    }

    #[inline]
    fn take_waiter(&self) -> Option<Waiter> {
        // SAFETY: as in `wait`.
        unsafe { &mut *self.waiter.get() }.take()
    }

    /// C did not take it. If C has called back all the same, its word stands.
    #[cold]
    fn refused(&self, value: T) {
        if self.state.get() != State::Pending {
            return;
        }
        // SAFETY: a slot that is not free keeps its pool alive.
        unsafe { self.pool.as_ref() }.count(-1);
        // SAFETY: pending: the value is not there yet, and C will not come.
        unsafe { (*self.value.get()).write(value) };
        self.state.set(State::Completed);
    }

    /// Frees the slot. It may be gone after this.
    ///
    /// # Safety
    /// C is done with it, and value and keep were dropped.
    #[inline(always)]
    unsafe fn release(at: NonNull<Self>) {
        // SAFETY: a slot that is not free keeps its pool alive.
        let slot = unsafe { at.as_ref() };
        slot.state.set(State::Free);
        slot.forbid();
        let pool_at = slot.pool;
        // SAFETY: as above.
        let pool = unsafe { pool_at.as_ref() };
        slot.next_free.set(pool.free.replace(Some(at)));
        pool.used.set(pool.used.get() - 1);
        if pool.abandoned.get() {
            free_if_unused(pool_at);
        }
    }

    /// Drops the keep, and the value if it is there, and frees the slot.
    ///
    /// # Safety
    /// The slot is not free; no future and no callback holds it any more.
    #[inline(always)]
    unsafe fn discard(at: NonNull<Self>) {
        // SAFETY: not free, so the slot is there, and the keep; the value if it has completed.
        // What their destructors do cannot reach the slot: it is not free yet.
        unsafe {
            let slot = at.as_ref();
            if slot.state.get() == State::Completed {
                (*slot.value.get()).assume_init_drop();
            }
            (*slot.keep.get()).assume_init_drop();
            Self::release(at);
        }
    }
}

/// Completes an operation: see [`super::complete`]. Tells `ended` first, when C is not counted to
/// have it any more; then `wake` whoever waits for it: [`Waiter::wake`], which may run the task, or
/// [`Waiter::wake_later`].
///
/// # Safety
/// * `cb_arg` is the pointer that [`Submit::submit`] received from a [`SlotOp::submit`] with the
///   same `T` and `K`, and this is the one and only call for it.
/// * It runs on the thread that started the operation.
#[inline(always)]
pub(crate) unsafe fn complete<T, K>(
    cb_arg: *mut c_void,
    value: T,
    ended: impl FnOnce(&K),
    wake: impl FnOnce(Waiter),
) {
    // SAFETY: the slot of a pending operation, by contract; it is not null.
    let at = unsafe { NonNull::new_unchecked(cb_arg.cast::<Slot<T, K>>()) };
    // SAFETY: it is not free, so it is there.
    let slot = unsafe { at.as_ref() };
    // SAFETY: so is its pool, and the keep, which C is done with.
    unsafe {
        slot.pool.as_ref().count(-1);
        ended((*slot.keep.get()).assume_init_ref());
    }
    if slot.state.get() == State::Pending {
        // SAFETY: pending: the value is not there yet.
        unsafe { (*slot.value.get()).write(value) };
        slot.state.set(State::Completed);
        // The slot may be gone when this returns.
        if let Some(waiter) = slot.take_waiter() {
            wake(waiter);
        }
    } else {
        debug_assert!(slot.state.get() == State::Orphaned, "an operation completes once");
        drop(value);
        // SAFETY: orphaned: not free, no future; and C has just ended.
        unsafe { Slot::discard(at) };
    }
}

/// Whether the future of a pending operation has been dropped.
///
/// # Safety
/// As [`complete`], but before it, and any number of times.
pub(crate) unsafe fn is_orphaned<T, K>(cb_arg: *mut c_void) -> bool {
    // SAFETY: the slot of a pending operation, by contract.
    unsafe { &*cb_arg.cast::<Slot<T, K>>() }.state.get() == State::Orphaned
}

/// The keep of a pending operation.
///
/// # Safety
/// As [`complete`], but before it; the reference must be gone before the operation can complete
/// and before another one is made.
#[inline]
pub(crate) unsafe fn keep<'a, T, K>(cb_arg: *mut c_void) -> &'a mut K {
    // SAFETY: the slot of a pending operation, by contract: the keep is there, and nobody but
    // its callback touches it.
    unsafe { (*(*cb_arg.cast::<Slot<T, K>>()).keep.get()).assume_init_mut() }
}

/// The future's half of an operation in a slot. Dropping it orphans the operation.
#[must_use = "dropping it orphans the operation"]
pub(crate) struct SlotOp<T, K>(Option<NonNull<Slot<T, K>>>);

static_assertions::assert_not_impl_any!(SlotOp<i32, ()>: Send, Sync);

// A pointer to the slot, nothing that is pinned.
impl<T, K> Unpin for SlotOp<T, K> {}

impl<T, K> SlotOp<T, K> {
    fn at(&self) -> NonNull<Slot<T, K>> {
        self.0.expect("an operation is not polled after it has yielded")
    }

    /// The keep, if the operation was not submitted yet.
    #[inline]
    pub(crate) fn prepared(&mut self) -> Option<&mut K> {
        // SAFETY: the slot is not free while its future holds it.
        let slot = unsafe { self.at().as_ref() };
        // SAFETY: prepared: the keep is there, and nobody but this future knows it.
        (slot.state.get() == State::Prepared).then(|| unsafe { (*slot.keep.get()).assume_init_mut() })
    }

    /// Hands a prepared operation to C; see [`super::start`].
    #[inline(always)]
    pub(crate) fn submit<S: Submit<T, K>>(&mut self, submit: S) {
        let at = self.at();
        // SAFETY: the slot is not free while its future holds it, so its pool is there, too.
        let (slot, pool) = unsafe { (at.as_ref(), at.as_ref().pool.as_ref()) };
        debug_assert!(slot.state.get() == State::Prepared, "submitted once");
        pool.count(1);
        slot.state.set(State::Pending);
        // SAFETY: the keep is there, and C does not know it yet.
        let keep = unsafe { (*slot.keep.get()).assume_init_mut() };
        if let Submitted::Failed(value) = submit.submit(keep, at.as_ptr().cast()) {
            slot.refused(value);
        }
    }

    /// Once the operation has completed, yields what `finish` makes of its value and its keep.
    #[inline(always)]
    pub(crate) fn poll_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        finish: impl FnOnce(&mut T, &mut K) -> R,
    ) -> Poll<R> {
        let at = self.at();
        // SAFETY: the slot is not free while its future holds it, so its pool is there, too.
        let (slot, pool) = unsafe { (at.as_ref(), at.as_ref().pool.as_ref()) };
        if slot.state.get() != State::Completed {
            slot.wait(Waiter::of(cx, pool.home));
            return Poll::Pending;
        }
        // SAFETY: completed: value and keep are there, and only this future knows them.
        let result = unsafe {
            finish(
                (*slot.value.get()).assume_init_mut(),
                (*slot.keep.get()).assume_init_mut(),
            )
        };
        self.0 = None;
        // SAFETY: not free, C is done, and the future has just let go.
        unsafe { Slot::discard(at) };
        Poll::Ready(result)
    }
}

impl<T, K> Drop for SlotOp<T, K> {
    #[inline]
    fn drop(&mut self) {
        let Some(at) = self.0.take() else { return };
        // SAFETY: the slot is not free while its future holds it.
        let slot = unsafe { at.as_ref() };
        match slot.state.get() {
            State::Pending => {
                slot.state.set(State::Orphaned);
                drop(slot.take_waiter());
            }
            // SAFETY: not free, and C does not know it, or is done with it.
            _ => unsafe { Slot::discard(at) },
        }
    }
}
