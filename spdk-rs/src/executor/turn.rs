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
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::pin::Pin;
use std::ptr::{self, NonNull};
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
///
/// It counts its own references: in an `Rc` the counter would lie on another cache line.
#[repr(align(64))]
pub(crate) struct TaskCell {
    refs: Cell<usize>,
    body: UnsafeCell<Pin<Box<dyn Body>>>,
    /// Set at the first turn, which always comes by the queue.
    waker: OnceCell<Waker>,
    /// The address of its executor, to tell executors apart.
    home: usize,
    life: Cell<Life>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It had no turn yet, so nobody can wait for an I/O.
    New,
    /// It has a waker.
    Runs,
    Ended,
}

const _: () = assert!(size_of::<TaskCell>() == 64);

/// A reference to a task, which stays on its thread.
pub(crate) struct TaskRef(NonNull<TaskCell>);

static_assertions::assert_not_impl_any!(TaskRef: Send, Sync);

impl TaskRef {
    /// The only reference to a new task of the executor `home`.
    pub(super) fn new(body: impl Body + 'static, home: usize) -> Self {
        let task = Box::new(TaskCell {
            refs: Cell::new(1),
            body: UnsafeCell::new(Box::pin(body)),
            waker: OnceCell::new(),
            home,
            life: Cell::new(Life::New),
        });
        Self(NonNull::from(Box::leak(task)))
    }

    /// One word for the reference, which [`from_raw`](Self::from_raw) makes one again.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> *const () {
        ManuallyDrop::new(self).0.as_ptr().cast()
    }

    /// # Safety
    /// `raw` is from [`into_raw`](Self::into_raw), and used once.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: *const ()) -> Self {
        // SAFETY: by contract it was that of a reference.
        Self(unsafe { NonNull::new_unchecked(raw.cast_mut().cast()) })
    }
}

impl Deref for TaskRef {
    type Target = TaskCell;

    #[inline(always)]
    fn deref(&self) -> &TaskCell {
        // SAFETY: the task is there as long as a reference is.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for TaskRef {
    #[inline(always)]
    fn clone(&self) -> Self {
        // It does not overflow: each of them takes up memory, or is one that was forgotten.
        self.refs.set(self.refs.get() + 1);
        Self(self.0)
    }
}

impl Drop for TaskRef {
    #[inline(always)]
    fn drop(&mut self) {
        let left = self.refs.get() - 1;
        self.refs.set(left);
        if left == 0 {
            free(self.0);
        }
    }
}

/// The last reference has gone.
#[cold]
fn free(task: NonNull<TaskCell>) {
    // SAFETY: it came from a box, and nobody refers to it any more.
    drop(unsafe { Box::from_raw(task.as_ptr()) });
}

/// What runs on a thread now.
struct Now {
    /// Code of users is on the stack.
    busy: Cell<bool>,
    /// There are tasks in [`DUE`], a look at which costs more, since it has a destructor.
    has_due: Cell<bool>,
    /// The waker of the task whose turn it is, or null.
    waker: Cell<*const Waker>,
    /// That task; the one before it, if there is no waker.
    task: Cell<*const TaskCell>,
}

thread_local! {
    static NOW: Now = const {
        Now {
            busy: Cell::new(false),
            has_due: Cell::new(false),
            waker: Cell::new(ptr::null()),
            task: Cell::new(ptr::null()),
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
    /// A turn that came by the run queue.
    pub(super) fn queued_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.life.get() {
            Life::Ended => return Poll::Ready(()),
            Life::Runs => {}
            Life::New => {
                self.waker.get_or_init(|| cx.waker().clone());
                self.life.set(Life::Runs);
            }
        }
        user_code(|| self.turn(true))
    }

    /// Drops the future. The task has no more turns.
    pub(super) fn close(&self) {
        if self.life.replace(Life::Ended) != Life::Ended {
            // SAFETY: the task does not have its turn: it would hold its future, whose drop
            // leads here.
            unsafe { &mut *self.body.get() }.as_mut().close();
        }
    }

    /// One turn of a task that runs. [`user_code`] has been entered, and whoever calls this holds
    /// the task.
    #[inline]
    fn turn(&self, queued: bool) -> Poll<()> {
        /// Also on a panic.
        struct Over<'a>(&'a Now);
        impl Drop for Over<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.waker.set(ptr::null());
            }
        }
        debug_assert!(self.life.get() == Life::Runs);
        // SAFETY: a task that runs has a waker.
        let waker = unsafe { self.waker.get().unwrap_unchecked() };
        let poll = NOW.with(|now| {
            now.task.set(self);
            now.waker.set(waker);
            let _over = Over(now);
            // SAFETY: turns do not nest (user_code), so this is the only reference to the body.
            let body = unsafe { &mut *self.body.get() };
            body.as_mut().poll(&mut Context::from_waker(waker), queued)
        });
        if poll.is_ready() {
            self.life.set(Life::Ended);
        }
        poll
    }

    /// A turn that an I/O brought. [`user_code`] has been entered.
    #[inline]
    fn turn_by_io(&self) {
        if self.life.get() == Life::Runs && self.turn(false).is_ready() {
            self.wake(); // the queue has to let go of it
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// A task that has its turn. It has it, and is there, as long as whoever asked is a part of it.
#[derive(Clone, Copy)]
pub(crate) struct Turn(NonNull<TaskCell>);

impl Turn {
    /// That of the task that polls with `cx`: the task itself, not something in it with a waker of
    /// its own; and one of the executor `home`.
    #[inline(always)]
    pub(crate) fn of(cx: &Context<'_>, home: usize) -> Option<Self> {
        NOW.with(|now| {
            if !ptr::eq(now.waker.get(), cx.waker()) {
                return None;
            }
            // SAFETY: there is a waker, so the task has its turn: it is there, and whoever gave it
            // the turn holds it.
            let task = unsafe { NonNull::new_unchecked(now.task.get().cast_mut()) };
            // SAFETY: as above.
            if unsafe { task.as_ref() }.home != home {
                return None;
            }
            Some(Self(task))
        })
    }

    /// The task.
    #[inline(always)]
    pub(crate) fn task(self) -> TaskRef {
        // The caller is a part of the task: it is there, and whoever gave it the turn refers to it.
        let given = ManuallyDrop::new(TaskRef(self.0));
        TaskRef::clone(&given)
    }

    /// Whether any task of the executor `home` has its turn: then this is the executor's thread.
    #[inline]
    pub(crate) fn is_at(home: usize) -> bool {
        // SAFETY: as in `of`.
        NOW.with(|now| !now.waker.get().is_null() && unsafe { (*now.task.get()).home } == home)
    }
}

/// Who waits for an I/O.
pub(crate) enum Waiter {
    Task(TaskRef),
    Waker(Waker),
}

impl Waiter {
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
