//! The future's half of an operation in a slot.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::task::Context;

use super::{Pool, Slot, Stage, State};
use crate::executor::Turn;
use crate::op::Submitted;

/// The future's half of an operation in a slot. Dropping it orphans the operation.
#[must_use = "dropping it orphans the operation"]
pub(crate) struct SlotOp<C, T, K>(pub(super) Option<NonNull<Slot<C, T, K>>>);

static_assertions::assert_not_impl_any!(SlotOp<(), i32, ()>: Send, Sync);

// A pointer to the slot, nothing that is pinned.
impl<C, T, K> Unpin for SlotOp<C, T, K> {}

impl<C, T, K> SlotOp<C, T, K> {
    /// The operation, for a turn of its future.
    ///
    /// # Panics
    /// If it has yielded.
    #[inline(always)]
    pub(crate) fn live(&mut self) -> Live<'_, C, T, K> {
        let slot = self.0.expect("an operation is not polled after it has yielded");
        let at = At {
            slot,
            op: PhantomData,
        };
        Live { op: self, at }
    }

    /// Where it stands.
    pub(crate) fn stage(&self) -> Stage {
        let Some(at) = self.0 else { return Stage::Ended };
        // SAFETY: the slot is not free while its future holds it.
        match unsafe { at.as_ref() }.state.get() {
            State::Prepared => Stage::Prepared,
            State::Waiting => Stage::Waiting,
            State::Pending | State::Awaited | State::Watched => Stage::Pending,
            State::Succeeded | State::Failed => Stage::Ended,
            State::Free | State::Orphaned => unreachable!("the future is still here"),
        }
    }

    /// What C knows it by, if it has not yielded: no other operation's until this one has.
    pub(crate) fn cb_arg(&self) -> Option<*mut c_void> {
        self.0.map(|at| at.as_ptr().cast())
    }

    /// What the operations share, if it has not yielded.
    pub(crate) fn context(&self) -> Option<&C> {
        // SAFETY: the slot is not free while its future holds it, and so keeps its pool alive.
        self.0.map(|at| unsafe { &at.as_ref().pool.as_ref().context })
    }

    /// Prepares another one beside it, as [`Slots::prepare`]; none if it has yielded.
    #[cold]
    pub(crate) fn beside(&self, make: impl FnOnce() -> K) -> Option<Self> {
        // SAFETY: the slot is not free while its future holds it, and so keeps its pool alive.
        unsafe {
            let pool = self.0?.as_ref().pool;
            let at = Pool::prepare(pool, make);
            let left = &pool.as_ref().left;
            left.set(left.get().map(|left| left + 1));
            Some(Self(Some(at)))
        }
    }

    /// Lets go of a waiting operation, which C will find orphaned when its turn comes, and goes on
    /// as one that has failed, with a keep that `make` makes of the old one.
    pub(crate) fn leave(&mut self, failure: T, make: impl FnOnce(&mut K) -> K) {
        assert!(self.stage() == Stage::Waiting, "C has not begun");
        let Some(left) = self.0 else { return };
        // SAFETY: the slot is not free while its future holds it; the keep is there, and C uses
        // nothing of it but the place in the queue, which stays.
        let (slot, keep) = unsafe { (left.as_ref(), (*left.as_ref().keep.get()).assume_init_mut()) };
        let Some(other) = self.beside(|| make(keep)) else {
            return;
        };
        if let Some(at) = other.0 {
            // SAFETY: prepared just now, so it is there.
            unsafe { at.as_ref() }.end(Err(failure));
        }
        // The waiter goes along: whoever polls this future from afar has to hear of it.
        let waiter = slot.take_waiter();
        drop(std::mem::replace(self, other));
        if let Some(waiter) = waiter {
            waiter.wake_later();
        }
    }
}

/// An operation that has not yielded yet. (With the slot's address at hand: the compiler cannot
/// know that C does not change it in the future, and would look there again and again.)
pub(crate) struct Live<'a, C, T, K> {
    op: &'a mut SlotOp<C, T, K>,
    at: At<'a, C, T, K>,
}

impl<'a, C, T, K> Live<'a, C, T, K> {
    /// What can be done with it before it has ended.
    #[inline(always)]
    pub(crate) fn at(&self) -> At<'a, C, T, K> {
        self.at
    }

    /// An operation that has ended.
    ///
    /// # Panics
    /// If it has not.
    #[inline(always)]
    pub(crate) fn done(self) -> Done<'a, C, T, K> {
        let failed = match self.at.slot().state.get() {
            State::Succeeded => false,
            State::Failed => true,
            _ => panic!("the operation has not ended"),
        };
        Done { op: self, failed }
    }
}

/// Where an operation is that has not yielded yet.
pub(crate) struct At<'a, C, T, K> {
    slot: NonNull<Slot<C, T, K>>,
    op: PhantomData<&'a SlotOp<C, T, K>>,
}

impl<C, T, K> Clone for At<'_, C, T, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C, T, K> Copy for At<'_, C, T, K> {}

impl<C, T, K> At<'_, C, T, K> {
    #[inline(always)]
    fn slot(&self) -> &Slot<C, T, K> {
        // SAFETY: the slot is not free while its future holds it.
        unsafe { self.slot.as_ref() }
    }

    #[inline(always)]
    fn pool(&self) -> &Pool<C, T, K> {
        // SAFETY: a slot that is not free keeps its pool alive.
        unsafe { self.slot().pool.as_ref() }
    }

    /// The turn of the task that polls with `cx`: see [`Turn::of`].
    #[inline(always)]
    pub(crate) fn turn(&self, cx: &Context<'_>) -> Option<Turn> {
        Turn::of(cx, self.pool().home)
    }

    /// Context and keep, if the operation was not submitted yet.
    #[inline(always)]
    pub(crate) fn prepared(&self) -> Option<(&C, &K)> {
        if self.slot().state.get() != State::Prepared {
            return None;
        }
        // SAFETY: prepared: the keep is there, and nobody but this future knows it.
        let keep = unsafe { (*self.slot().keep.get()).assume_init_ref() };
        Some((&self.pool().context, keep))
    }

    /// Hands a prepared operation to C; see [`super::start`].
    #[inline(always)]
    pub(crate) fn submit(self, submit: impl FnOnce(&C, &mut K, *mut c_void) -> Submitted<T>) {
        let slot = self.slot();
        debug_assert!(slot.state.get() == State::Prepared, "submitted once");
        self.pool().count(1);
        slot.state.set(State::Pending);
        // SAFETY: the keep is there, and C does not know it yet.
        let keep = unsafe { (*slot.keep.get()).assume_init_mut() };
        if let Submitted::Failed(failure) = submit(&self.pool().context, keep, self.slot.as_ptr().cast()) {
            slot.refused(failure);
        }
    }

    /// The task that has this turn waits for an operation that was just submitted. Not if that has
    /// ended already, or is in a queue: answers `false` then.
    #[inline(always)]
    pub(crate) fn is_awaited_by(self, turn: Turn) -> bool {
        if self.slot().state.get() != State::Pending {
            return false;
        }
        self.slot().await_it(turn);
        true
    }

    /// Whoever polls with `cx`, and has this turn, is woken when the operation ends.
    pub(crate) fn wait(self, cx: &Context<'_>, turn: Option<Turn>) {
        self.slot().wait(cx, turn);
    }

    /// Whether it has ended well.
    #[inline(always)]
    pub(crate) fn has_succeeded(&self) -> bool {
        self.slot().state.get() == State::Succeeded
    }

    /// Whether it has ended.
    #[inline(always)]
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.slot().state.get(), State::Succeeded | State::Failed)
    }
}

/// An operation that has ended. Dropping this frees its slot.
pub(crate) struct Done<'a, C, T, K> {
    op: Live<'a, C, T, K>,
    failed: bool,
}

impl<C, T, K> Done<'_, C, T, K> {
    /// Context, result and keep. Whatever of the two needs to be dropped is to be taken out: they
    /// are not dropped with this.
    #[inline(always)]
    pub(crate) fn parts(&mut self) -> (&C, Result<(), &mut T>, &mut K) {
        let slot = self.op.at.slot();
        // SAFETY: it has ended: the keep is there, and the failure if it has failed; only this
        // future knows them.
        unsafe {
            let result = match self.failed {
                false => Ok(()),
                true => Err((*slot.failure.get()).assume_init_mut()),
            };
            let keep = (*slot.keep.get()).assume_init_mut();
            (&self.op.at.pool().context, result, keep)
        }
    }
}

impl<C, T, K> Drop for Done<'_, C, T, K> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: C is done with it, and has woken whoever waited; the future lets go in the next
        // line, and nothing comes in between.
        let pool = unsafe { Slot::release(self.op.at.slot) };
        self.op.op.0 = None;
        if let Some(pool) = pool {
            // SAFETY: as `release` says.
            unsafe { Pool::free(pool) };
        }
    }
}

impl<C, T, K> Drop for SlotOp<C, T, K> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            let_go(at);
        }
    }
}

/// The future is dropped before it has yielded.
#[cold]
fn let_go<C, T, K>(at: NonNull<Slot<C, T, K>>) {
    // SAFETY: the slot is not free while its future holds it.
    let slot = unsafe { at.as_ref() };
    match slot.state.get() {
        State::Waiting | State::Pending | State::Awaited | State::Watched => {
            let waiter = slot.take_waiter();
            slot.state.set(State::Orphaned);
            drop(waiter);
        }
        // SAFETY: not free, and C does not know it, or is done with it.
        _ => unsafe { Slot::discard(at) },
    }
}
