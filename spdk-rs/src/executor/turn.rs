//! Running a task at once, from the callback that it waits for.
//!
//! # The model
//!
//! A wake-up through a [`Waker`] costs a queue, and some atomic operations on the way. An I/O
//! completes on the thread of the task that waits for it, in a callback of C with nothing of the
//! task on the stack: there the task can simply be run on. A [`Waiter`] remembers the task for
//! that, if it is the task itself that polls (and not, say, a `select` inside of it with a waker
//! of its own).
//!
//! What may not happen is that a task runs inside of another one's code, or inside of a poller's
//! or a message's: those may hold a `RefCell` that the task needs. So whatever calls such code
//! enters [`user_code`], and a task that is due meanwhile runs when the outermost has returned.
//!
//! Nor may a task run where SPDK goes on after the callback and does not expect to be called
//! before: while it aborts all that is in a queue ([`Waiter::wake_later`]), or submits that to a
//! device written in Rust ([`user_code_within_c`]).

use std::cell::{Cell, RefCell, UnsafeCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

/// What a task does when it is its turn; behind [`TaskCell`], without its type.
pub(crate) trait Body {
    /// `queued`: the turn came by the run queue, so something else than an I/O may have woken
    /// the task, an abort too.
    fn poll(&mut self, cx: &mut Context<'_>, queued: bool) -> Poll<()>;

    /// Drops the future, if it is still there.
    fn close(&mut self);
}

/// A task's place on its thread.
pub(crate) struct TaskCell<B: ?Sized> {
    /// Set at the first turn, which always comes by the queue.
    waker: OnceLock<Waker>,
    /// The address of its executor, to tell executors apart.
    home: usize,
    ended: Cell<bool>,
    body: UnsafeCell<B>,
}

pub(crate) type TaskRef = Rc<TaskCell<dyn Body>>;

thread_local! {
    /// Code of users is on the stack.
    static BUSY: Cell<bool> = const { Cell::new(false) };
    /// The task whose turn it is.
    static CURRENT: Cell<Option<*const TaskCell<dyn Body>>> = const { Cell::new(None) };
    /// The tasks that run when the outermost [`user_code`] has returned.
    static DUE: RefCell<Vec<TaskRef>> = const { RefCell::new(Vec::new()) };
    /// Whether there are any: a look at the list itself costs more, since it has a destructor.
    static HAS_DUE: Cell<bool> = const { Cell::new(false) };
}

/// Runs code that is not this crate's; then the tasks whose I/O has completed meanwhile.
#[inline]
pub(crate) fn user_code<R>(body: impl FnOnce() -> R) -> R {
    enter::<R, true>(body)
}

/// As [`user_code`], where SPDK goes on after this returns (through a queue, say) and so must not
/// be called by tasks before that: they run by the queue.
#[inline]
pub(crate) fn user_code_within_c<R>(body: impl FnOnce() -> R) -> R {
    enter::<R, false>(body)
}

#[inline]
fn enter<R, const AT_ONCE: bool>(body: impl FnOnce() -> R) -> R {
    /// Also on a panic.
    struct Leave<const AT_ONCE: bool>;
    impl<const AT_ONCE: bool> Drop for Leave<AT_ONCE> {
        #[inline]
        fn drop(&mut self) {
            if HAS_DUE.replace(false) {
                run_due(AT_ONCE);
            }
            BUSY.set(false);
        }
    }
    if BUSY.replace(true) {
        return body();
    }
    let _leave = Leave::<AT_ONCE>;
    body()
}

#[cold]
fn run_due(at_once: bool) {
    let mut due = DUE.take();
    for task in due.drain(..) {
        if at_once {
            task.turn_by_io();
        } else {
            task.wake();
        }
    }
    // Those that came due while these ran take the longer way, so that this ends.
    DUE.with_borrow_mut(|late| {
        for task in late.drain(..) {
            task.wake();
        }
        *late = due; // for its memory
    });
    HAS_DUE.set(false);
}

impl<B: Body + 'static> TaskCell<B> {
    pub(super) fn new(body: B, home: usize) -> Rc<Self> {
        Rc::new(Self {
            waker: OnceLock::new(),
            home,
            ended: Cell::new(false),
            body: UnsafeCell::new(body),
        })
    }

    /// A turn that came by the run queue.
    pub(super) fn queued_turn(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended.get() {
            return Poll::Ready(());
        }
        self.waker.get_or_init(|| cx.waker().clone());
        let this: TaskRef = Rc::clone(self) as TaskRef;
        user_code(|| this.turn(true))
    }

    /// Drops the future. The task has no more turns.
    pub(super) fn close(&self) {
        if !self.ended.replace(true) {
            // SAFETY: the task does not have its turn: it would hold its future, whose drop
            // leads here.
            unsafe { (*self.body.get()).close() };
        }
    }
}

impl TaskCell<dyn Body> {
    /// One turn. [`user_code`] has been entered.
    #[inline]
    fn turn(self: &Rc<Self>, queued: bool) -> Poll<()> {
        /// Also on a panic.
        struct Over;
        impl Drop for Over {
            #[inline]
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        let Some(waker) = self.waker.get() else {
            return Poll::Pending; // nobody can wait for an I/O before the first turn
        };
        CURRENT.set(Some(Rc::as_ptr(self)));
        let _over = Over;
        // SAFETY: turns do not nest (user_code), so this is the only reference to the body.
        let poll = unsafe { (*self.body.get()).poll(&mut Context::from_waker(waker), queued) };
        if poll.is_ready() {
            self.ended.set(true);
        }
        poll
    }

    /// A turn that an I/O brought. [`user_code`] has been entered.
    #[inline]
    fn turn_by_io(self: &Rc<Self>) {
        if !self.ended.get() && self.turn(false).is_ready() {
            self.wake(); // the queue has to let go of it
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// Whether a task of the executor `home` has its turn.
#[inline]
pub(crate) fn is_turn_of(home: usize) -> bool {
    // SAFETY: the task has its turn, so it is there; whoever gave it the turn holds it.
    CURRENT.get().is_some_and(|task| unsafe { (*task).home } == home)
}

/// Who waits for an I/O.
pub(crate) enum Waiter {
    Task(TaskRef),
    Waker(Waker),
}

impl Waiter {
    /// Whoever polls now, for an I/O of the executor `home`.
    #[inline]
    pub(crate) fn of(cx: &Context<'_>, home: usize) -> Self {
        if let Some(task) = CURRENT.get() {
            // SAFETY: the task has its turn, so it is there; whoever gave it the turn holds it.
            // The waker that a turn gives is the one that is kept, in its place.
            let is_task = unsafe {
                (*task).home == home && (*task).waker.get().is_some_and(|w| std::ptr::eq(w, cx.waker()))
            };
            if is_task {
                // SAFETY: the pointer comes from Rc::as_ptr, of an Rc that is held (see above).
                return Self::Task(unsafe {
                    Rc::increment_strong_count(task);
                    Rc::from_raw(task)
                });
            }
        }
        Self::Waker(cx.waker().clone())
    }

    /// Wakes whoever it is; a task runs by the queue.
    #[cold]
    pub(crate) fn wake_later(self) {
        match self {
            Self::Waker(waker) => waker.wake(),
            Self::Task(task) => task.wake(),
        }
    }

    /// Runs the task, or wakes whoever it is. To be called on the executor's thread, from a
    /// callback of C, and as the last thing there.
    #[inline]
    pub(crate) fn wake(self) {
        match self {
            Self::Waker(waker) => waker.wake(),
            Self::Task(task) if BUSY.get() => {
                DUE.with_borrow_mut(|due| due.push(task));
                HAS_DUE.set(true);
            }
            Self::Task(task) => user_code(|| task.turn_by_io()),
        }
    }
}
