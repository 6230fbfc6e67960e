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

use std::cell::{Cell, OnceCell, RefCell, UnsafeCell};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What a task does when it is its turn; behind [`TaskCell`], without its type.
pub(crate) trait Body {
    /// `queued`: the turn came by the run queue, so something else than an I/O may have woken
    /// the task, an abort too.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, queued: bool) -> Poll<()>;

    /// Drops the future, if it is still there.
    fn close(self: Pin<&mut Self>);
}

/// A task's place on its thread. (The body is in a box of its own so that a pointer to this is one
/// word, and what comes before the body is where the compiler knows it to be.)
pub(crate) struct TaskCell {
    body: UnsafeCell<Pin<Box<dyn Body>>>,
    /// Set at the first turn, which always comes by the queue.
    waker: OnceCell<Waker>,
    /// The address of its executor, to tell executors apart.
    home: usize,
    ended: Cell<bool>,
}

pub(crate) type TaskRef = Rc<TaskCell>;

/// What runs on a thread now.
struct Now {
    /// Code of users is on the stack.
    busy: Cell<bool>,
    /// There are tasks in [`DUE`], a look at which costs more, since it has a destructor.
    has_due: Cell<bool>,
    /// The task whose turn it is, or null.
    task: Cell<*const TaskCell>,
    /// The waker that its turn was given; of the turn before, if there is no task.
    waker: Cell<*const Waker>,
}

thread_local! {
    static NOW: Now = const {
        Now {
            busy: Cell::new(false),
            has_due: Cell::new(false),
            task: Cell::new(ptr::null()),
            waker: Cell::new(ptr::null()),
        }
    };
    /// The tasks that run when the outermost [`user_code`] has returned.
    static DUE: RefCell<Vec<TaskRef>> = const { RefCell::new(Vec::new()) };
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
    struct Leave<'a, const AT_ONCE: bool>(&'a Now);
    impl<const AT_ONCE: bool> Drop for Leave<'_, AT_ONCE> {
        #[inline]
        fn drop(&mut self) {
            if self.0.has_due.get() {
                run_due(AT_ONCE);
            }
            self.0.busy.set(false);
        }
    }
    NOW.with(|now| {
        if now.busy.replace(true) {
            return body();
        }
        let _leave = Leave::<AT_ONCE>(now);
        body()
    })
}

#[cold]
fn run_due(at_once: bool) {
    NOW.with(|now| now.has_due.set(false));
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
    NOW.with(|now| now.has_due.set(false));
}

impl TaskCell {
    pub(super) fn new(body: impl Body + 'static, home: usize) -> Rc<Self> {
        Rc::new(Self {
            body: UnsafeCell::new(Box::pin(body)),
            waker: OnceCell::new(),
            home,
            ended: Cell::new(false),
        })
    }

    /// A turn that came by the run queue.
    pub(super) fn queued_turn(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended.get() {
            return Poll::Ready(());
        }
        self.waker.get_or_init(|| cx.waker().clone());
        user_code(|| self.turn(true))
    }

    /// Drops the future. The task has no more turns.
    pub(super) fn close(&self) {
        if !self.ended.replace(true) {
            // SAFETY: the task does not have its turn: it would hold its future, whose drop
            // leads here.
            unsafe { &mut *self.body.get() }.as_mut().close();
        }
    }

    /// One turn. [`user_code`] has been entered, and whoever calls this holds the task.
    #[inline]
    fn turn(self: &Rc<Self>, queued: bool) -> Poll<()> {
        /// Also on a panic.
        struct Over<'a>(&'a Now);
        impl Drop for Over<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.task.set(ptr::null());
            }
        }
        let Some(waker) = self.waker.get() else {
            return Poll::Pending; // nobody can wait for an I/O before the first turn
        };
        let poll = NOW.with(|now| {
            now.task.set(Rc::as_ptr(self));
            now.waker.set(waker);
            let _over = Over(now);
            // SAFETY: turns do not nest (user_code), so this is the only reference to the body.
            let body = unsafe { &mut *self.body.get() };
            body.as_mut().poll(&mut Context::from_waker(waker), queued)
        });
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

/// The task that has its turn, if it is one of the executor `home`.
#[derive(Clone, Copy)]
pub(crate) struct Turn(*const TaskCell);

impl Turn {
    #[inline(always)]
    pub(crate) fn of(home: usize) -> Self {
        let task = NOW.with(|now| now.task.get());
        // SAFETY: the task has its turn, so it is there; whoever gave it the turn holds it.
        if !task.is_null() && unsafe { (*task).home } == home {
            return Self(task);
        }
        Self(ptr::null())
    }

    /// Whether there is one: this is a thread of the executor then.
    #[inline(always)]
    pub(crate) fn is_some(self) -> bool {
        !self.0.is_null()
    }
}

/// Who waits for an I/O.
pub(crate) enum Waiter {
    Task(TaskRef),
    Waker(Waker),
}

impl Waiter {
    /// Whoever polls now, for an I/O of an executor's that `turn` was asked for.
    #[inline(always)]
    pub(crate) fn of(cx: &Context<'_>, turn: Turn) -> Self {
        let task = turn.0;
        if !task.is_null() && NOW.with(|now| ptr::eq(now.waker.get(), cx.waker())) {
            // SAFETY: the task has its turn still: the caller is a part of it. So it is there;
            // whoever gave it the turn holds the Rc that the pointer comes from (Rc::as_ptr).
            return Self::Task(unsafe {
                Rc::increment_strong_count(task);
                Rc::from_raw(task)
            });
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
            Self::Task(task) if NOW.with(|now| now.busy.get()) => due(task),
            Self::Task(task) => user_code(|| task.turn_by_io()),
        }
    }
}

/// To be run when the outermost [`user_code`] has returned.
#[cold]
fn due(task: TaskRef) {
    DUE.with_borrow_mut(|due| due.push(task));
    NOW.with(|now| now.has_due.set(true));
}
