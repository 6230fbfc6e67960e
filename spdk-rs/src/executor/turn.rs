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
use std::mem::{ManuallyDrop, offset_of};
use std::ops::Deref;
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::task::{Context, Poll, Waker};

/// What a task does when it is its turn.
pub(crate) trait Body {
    /// Ends the task, if it is to be aborted. To be asked when the turn came by the run queue: an
    /// I/O does not abort.
    fn abort(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool;

    /// One turn.
    ///
    /// # Safety
    /// The task has not ended: this has not answered `Ready`, `abort` not `true`, and `close` was
    /// not called.
    unsafe fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>
    where
        Self: Sized; // called by `poll` below alone, and so in one with it

    /// Drops the future of a task that has not ended.
    fn close(self: Pin<&mut Self>);
}

/// The body's turn, behind a task whose body's type is not known.
type PollFn = unsafe fn(NonNull<TaskCell>, &mut Context<'_>) -> Poll<()>;

/// A task's place on its thread, at the beginning of its [`Place`].
///
/// It counts its own references: in an `Rc` the counter would lie on another cache line.
#[repr(C)]
pub(crate) struct TaskCell {
    /// Wakes nobody before the first turn, which always comes by the queue. For an I/O only its
    /// address counts. It comes first: then that is the task's.
    waker: UnsafeCell<Waker>,
    /// The whole of it.
    place: Cell<Option<NonNull<Place<dyn Body>>>>,
    life: Cell<Life>,
    /// What an I/O needs begins a cache line, of which most is the body's.
    _line: [usize; 3],
    refs: Cell<usize>,
    /// The address of its executor, to tell executors apart.
    home: usize,
    poll: Cell<PollFn>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It had no turn yet, so nobody can wait for an I/O.
    New,
    /// It has a waker.
    Runs,
    Ended,
}

const _: () = assert!(offset_of!(TaskCell, waker) == 0 && offset_of!(TaskCell, refs) == 64);

/// A task and its body, in one piece.
#[repr(C, align(64))]
struct Place<B: ?Sized> {
    cell: TaskCell,
    body: UnsafeCell<B>,
}

/// A reference to a task, which stays on its thread.
pub(crate) struct TaskRef(NonNull<TaskCell>);

static_assertions::assert_not_impl_any!(TaskRef: Send, Sync);

impl TaskRef {
    /// The only reference to a new task of the executor `home`.
    pub(super) fn new<B: Body + 'static>(body: B, home: usize) -> Self {
        let place = Box::leak(Box::new(Place {
            cell: TaskCell {
                waker: UnsafeCell::new(Waker::noop().clone()),
                place: Cell::new(None),
                life: Cell::new(Life::New),
                _line: [0; 3],
                refs: Cell::new(1),
                home,
                poll: Cell::new(poll::<B>),
            },
            body: UnsafeCell::new(body),
        }));
        let place = NonNull::from(place);
        // SAFETY: it is there, and nobody else knows it.
        unsafe { place.as_ref() }.cell.place.set(Some(place));
        Self(place.cast())
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

/// # Safety
/// The cell is that of a `Place<B>`, of a task that has not ended; and there is no other reference
/// to its body.
unsafe fn poll<B: Body>(cell: NonNull<TaskCell>, cx: &mut Context<'_>) -> Poll<()> {
    // SAFETY: by contract; and a body is pinned: it is never moved out of its place.
    unsafe {
        let body = cell.cast::<Place<B>>().as_ref().body.get();
        Pin::new_unchecked(&mut *body).poll(cx)
    }
}

/// That of a task that has ended.
///
/// # Safety
/// None is needed.
unsafe fn poll_ended(_: NonNull<TaskCell>, _: &mut Context<'_>) -> Poll<()> {
    Poll::Ready(())
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
    // SAFETY: nobody refers to it any more.
    if let Some(place) = unsafe { task.as_ref() }.place.get() {
        // SAFETY: it came from a box.
        drop(unsafe { Box::from_raw(place.as_ptr()) });
    }
}

/// What runs on a thread now.
struct Now {
    /// The task whose turn it is; [`NO_TASK`] if other code of users is on the stack; null if none
    /// is.
    task: Cell<*mut TaskCell>,
    /// There are tasks in [`DUE`], a look at which costs more, since it has a destructor.
    has_due: Cell<bool>,
}

/// No task's address.
const NO_TASK: *mut TaskCell = ptr::without_provenance_mut(1);

impl Now {
    #[inline(always)]
    fn is_busy(&self) -> bool {
        !self.task.get().is_null()
    }
}

thread_local! {
    static NOW: Now = const {
        Now {
            task: Cell::new(ptr::null_mut()),
            has_due: Cell::new(false),
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
            self.0.task.set(ptr::null_mut());
        }
    }
    NOW.with(|now| {
        if now.is_busy() {
            return body();
        }
        now.task.set(NO_TASK);
        let _leave = Leave::<AT_ONCE>(now);
        body()
    })
}

#[cold]
fn run_due(at_once: bool) {
    let none_is_due = || {
        NOW.with(|now| {
            now.task.set(NO_TASK);
            now.has_due.set(false);
        });
    };
    none_is_due();
    let mut due = DUE.take();
    for task in due.drain(..) {
        if at_once {
            task.turn_by_io();
            NOW.with(|now| now.task.set(NO_TASK));
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
    none_is_due();
}

impl TaskRef {
    /// A turn that came by the run queue.
    pub(super) fn queued_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        /// Also on a panic.
        struct Restore<'a>(&'a Now, *mut TaskCell);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.task.set(self.1);
            }
        }
        match self.life.get() {
            Life::Ended => return Poll::Ready(()),
            Life::Runs => {}
            Life::New => {
                // SAFETY: the first turn: nobody has borrowed it.
                unsafe { *self.waker.get() = cx.waker().clone() };
                self.life.set(Life::Runs);
            }
        }
        user_code(|| {
            NOW.with(|now| {
                let _restore = Restore(now, now.task.replace(self.0.as_ptr()));
                let cx = &mut Context::from_waker(self.waker());
                // SAFETY: turns do not nest (user_code), so this is the only reference to the body.
                if unsafe { self.with_body(|body| body.abort(cx)) } {
                    self.end();
                    return Poll::Ready(());
                }
                self.turn(now)
            })
        })
    }

    /// Drops the future. The task has no more turns.
    pub(super) fn close(&self) {
        if self.life.get() != Life::Ended {
            self.end();
            // SAFETY: the task does not have its turn: it would hold its future, whose drop
            // leads here.
            unsafe { self.with_body(|body| body.close()) };
        }
    }

    /// There are no more turns.
    fn end(&self) {
        self.life.set(Life::Ended);
        self.poll.set(poll_ended);
    }

    #[inline(always)]
    fn waker(&self) -> &Waker {
        // SAFETY: it is changed before the first turn only, when nobody has borrowed it.
        unsafe { &*self.waker.get() }
    }

    /// # Safety
    /// There is no other reference to the body.
    unsafe fn with_body<R>(&self, what: impl FnOnce(Pin<&mut dyn Body>) -> R) -> R {
        let place = self.place.get().expect("set when it was made");
        // SAFETY: by contract; and a body is pinned: it is never moved out of its place.
        what(unsafe { Pin::new_unchecked(&mut *place.as_ref().body.get()) })
    }

    /// One turn. [`user_code`] has been entered, and leaves the task.
    #[inline(always)]
    fn turn(&self, now: &Now) -> Poll<()> {
        now.task.set(self.0.as_ptr());
        // SAFETY: turns do not nest (user_code), so this is the only reference to the body; and the
        // function is that of the body's type, or of all that have ended.
        let poll = unsafe { self.poll.get()(self.0, &mut Context::from_waker(self.waker())) };
        if poll.is_ready() {
            self.end();
        }
        poll
    }

    /// A turn that an I/O brought. [`user_code`] has been entered, and leaves the task.
    #[inline(always)]
    fn turn_by_io(&self) {
        if NOW.with(|now| self.turn(now)).is_ready() {
            self.wake(); // the queue has to let go of it
        }
    }

    fn wake(&self) {
        self.waker().wake_by_ref();
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
            let task = now.task.get();
            if !ptr::eq(task.cast(), cx.waker()) {
                return None;
            }
            // SAFETY: a waker is not at address 0 or 1, so the task has its turn: it is there, and
            // whoever gave it the turn holds it.
            let task = unsafe { NonNull::new_unchecked(task) };
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
        NOW.with(|now| {
            let task = now.task.get();
            // SAFETY: as in `of`.
            now.is_busy() && task != NO_TASK && unsafe { (*task).home } == home
        })
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
            Self::Task(task) if NOW.with(Now::is_busy) => due(task),
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
