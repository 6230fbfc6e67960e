//! A run queue for futures that never leave their spdk_thread.
//!
//! # The model
//!
//! Each spdk_thread that runs Rust has one [`Executor`]. Futures need not be `Send`: they are
//! polled and dropped on that thread only. What crosses threads is the *inbox*: a waker that is
//! called anywhere (another reactor, a Tokio worker, a plain thread) puts its task there, and so
//! do messages. The owner drains the inbox from an SPDK poller.
//!
//! A poller, and not an SPDK message for each wake-up, because a message can fail to be sent (its
//! pool is finite), which would lose the wake-up; and because sending one needs a pointer to a
//! thread that may have exited meanwhile. A waker here touches nothing but the inbox, which lives
//! as long as the last waker.
//!
//! # Closing
//!
//! [`Executor::close`] drops every task that is left, on the thread that owns it. A waker that
//! runs at the same moment elsewhere is waited for, since it holds the task. After that a wake
//! finds a finished task and does nothing.
//!
//! What may not be done here: name any type of SPDK. The tests run the queue on plain threads.

mod bell;
mod join;
#[cfg(all(test, spdk_loom))]
mod loom_tests;
#[cfg(all(test, not(spdk_loom)))]
mod tests;
mod turn;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use async_task::Runnable;

use crate::guard;
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, yield_now};
pub(crate) use bell::Bell;
pub use join::{JoinError, JoinHandle};
pub(crate) use join::{Sender, channel};
pub(crate) use turn::{TaskRef, Turn, Waiter, user_code, user_code_within_c};

/// A message to a thread: runs there once, unless the executor is closed first (then it is
/// dropped there).
pub(crate) type Call = Box<dyn FnOnce() + Send>;

enum Work {
    Task(Runnable),
    Call(Call),
}

/// The part of an executor that other threads reach.
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    /// Length of the queue, so that an idle poll costs one load and no lock.
    len: AtomicUsize,
    /// Wakes the owner, where it may sleep.
    bell: Option<Arc<Bell>>,
}

struct Queue {
    work: VecDeque<Work>,
    closed: bool,
}

impl Inbox {
    pub(crate) fn new(bell: Option<Arc<Bell>>) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(Queue {
                work: VecDeque::new(),
                closed: false,
            }),
            len: AtomicUsize::new(0),
            bell,
        })
    }

    /// What tells its executor from others, see [`Turn::of`].
    pub(crate) fn home(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Only pushes and pops happen under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is sent is refused, now and for ever.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Queues a message, or gives it back if the executor was closed.
    pub(crate) fn call(&self, call: Call) -> Result<(), Call> {
        let queue = self.lock();
        if queue.closed {
            return Err(call);
        }
        self.push(queue, Work::Call(call));
        Ok(())
    }

    /// Queues a task that was woken.
    fn task(&self, task: Runnable) {
        let queue = self.lock();
        if queue.closed {
            drop(queue);
            // Closing ends only when no task is left, so none can be woken now. Were one here
            // all the same, its future would belong to another thread: it must not drop here.
            std::mem::forget(task);
            return;
        }
        self.push(queue, Work::Task(task));
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, work: Work) {
        queue.work.push_back(work);
        self.len.store(queue.work.len(), Ordering::Release);
        drop(queue);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    fn pop(&self) -> Option<Work> {
        let mut queue = self.lock();
        let work = queue.work.pop_front();
        self.len.store(queue.work.len(), Ordering::Release);
        work
    }
}

/// Wakers of the tasks that are alive, by task number.
type Active = Rc<RefCell<HashMap<u64, Waker>>>;

/// The run queue of one thread; see the [module's documentation](self).
pub(crate) struct Executor {
    inbox: Arc<Inbox>,
    active: Active,
    next_id: Cell<u64>,
    closing: Cell<bool>,
    _not_send: PhantomData<*mut ()>,
}

static_assertions::assert_not_impl_any!(Executor: Send, Sync);
static_assertions::assert_impl_all!(Inbox: Send, Sync);

impl Executor {
    /// An executor for the current thread, fed by `inbox`, which may hold messages already.
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            inbox,
            active: Active::default(),
            next_id: Cell::new(0),
            closing: Cell::new(false),
            _not_send: PhantomData,
        }
    }

    /// Runs `future` on this thread. If the executor is closing, the future is dropped and the
    /// handle says canceled.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (sender, handle) = channel();
        self.spawn_with(future, sender);
        handle
    }

    /// As [`Executor::spawn`], reporting to a handle that was made before.
    pub(crate) fn spawn_with<F>(&self, future: F, sender: Sender<F::Output>)
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = join::Task::new(future, sender);
        if self.closing.get() {
            drop(task);
            return;
        }
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let tracked = Tracked {
            task: TaskRef::new(task, self.inbox.home()),
            _entry: Entry {
                id,
                active: Rc::clone(&self.active),
            },
        };
        let inbox = Arc::clone(&self.inbox);
        let schedule = move |runnable| inbox.task(runnable);
        let builder = async_task::Builder::new().propagate_panic(true);
        // SAFETY: async-task asks of a future that is not Send that its Runnable is used and
        // dropped on the thread that spawned it: it comes out of the inbox only in `run` and
        // `close`, and Executor is not Send. The future is 'static; the schedule function is
        // Send, Sync and 'static. Wakers may go anywhere: they hold no part of the future.
        let (runnable, task) = unsafe { builder.spawn_unchecked(|()| tracked, schedule) };
        self.active.borrow_mut().insert(id, runnable.waker());
        runnable.schedule();
        task.detach();
    }

    /// Whether there is nothing to run.
    pub(crate) fn is_idle(&self) -> bool {
        self.inbox.len.load(Ordering::Acquire) == 0
    }

    /// Runs what is in the queue now, but not what arrives meanwhile, so that a task that wakes
    /// itself does not starve the reactor. Returns how much was run.
    pub(crate) fn run(&self) -> usize {
        let batch = self.inbox.len.load(Ordering::Acquire);
        let mut done = 0;
        while done < batch {
            let Some(work) = self.inbox.pop() else { break };
            done += 1;
            match work {
                // Tasks catch their own panics; what async-task adds cannot panic.
                Work::Task(task) => {
                    task.run();
                }
                Work::Call(call) => guard::ffi((), || user_code(call)),
            }
        }
        done
    }

    /// Drops every task and message that is left; later ones are refused. Not to be called
    /// inside a task, which cannot be dropped under its own feet.
    pub(crate) fn close(&self) {
        if self.closing.replace(true) {
            return;
        }
        loop {
            let wakers: Vec<Waker> = self.active.borrow().values().cloned().collect();
            for waker in wakers {
                // Puts the task into the queue, unless it is there or about to be put there.
                waker.wake();
            }
            while let Some(work) = self.inbox.pop() {
                // A destructor of the user's may panic: the others must still be dropped. It is
                // users' code, in the midst of which no task may run, not even a task to be dropped.
                let drop_it = || user_code_within_c(|| drop(work));
                let dropped = catch_unwind(AssertUnwindSafe(drop_it));
                if let Err(payload) = dropped {
                    guard::keep(payload);
                }
            }
            if self.active.borrow().is_empty() {
                let mut queue = self.inbox.lock();
                if queue.work.is_empty() {
                    queue.closed = true;
                    return;
                }
                continue;
            }
            // A task was being woken on another thread, which holds it until it is in the queue.
            yield_now();
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.close();
    }
}

/// A task's entry in the list of those alive.
struct Entry {
    id: u64,
    active: Active,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let waker = self.active.borrow_mut().remove(&self.id);
        drop(waker);
    }
}

/// A task together with its entry; the task drops first.
struct Tracked {
    task: TaskRef,
    _entry: Entry,
}

impl Future for Tracked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.task.queued_turn(cx)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // An I/O may still hold the task's place; the future goes now.
        self.task.close();
    }
}
