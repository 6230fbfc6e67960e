//! The two ends of a task: the wrapper that runs it, and the handle that waits for it.

use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use super::turn::Body;
use crate::guard::{self, Payload};
use crate::sync::{Arc, Mutex, MutexGuard};

struct Shared<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    result: Option<Result<T, JoinError>>,
    /// Who waits for the result.
    waiter: Option<Waker>,
    /// Wakes the task, once it was polled and until it has ended.
    task: Option<Waker>,
    abort: bool,
    ended: bool,
    /// The handle is gone: nobody takes the result.
    detached: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a task: a future that yields its result, on any thread and under any runtime.
///
/// Dropping the handle lets the task run on. [`JoinHandle::abort`] ends it.
///
/// The handle is `Send` if the result is.
///
/// # Errors
/// It yields a [`JoinError`] if the task panicked or was aborted, or if its thread stopped first.
pub struct JoinHandle<T> {
    shared: Arc<Shared<T>>,
}

/// The task's end of the channel; says "canceled" if it is dropped without a result.
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

static_assertions::assert_impl_all!(JoinHandle<i32>: Send, Sync, Unpin);
static_assertions::assert_not_impl_any!(JoinHandle<std::rc::Rc<()>>: Send, Sync);

pub(crate) fn channel<T>() -> (Sender<T>, JoinHandle<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            result: None,
            waiter: None,
            task: None,
            abort: false,
            ended: false,
            detached: false,
        }),
    });
    let sender = Sender {
        shared: Arc::clone(&shared),
    };
    (sender, JoinHandle { shared })
}

impl<T> JoinHandle<T> {
    /// Ends the task: it is dropped on its own thread, soon, at the point where it waits. I/O
    /// that it has started is finished by SPDK all the same. The handle then yields an error
    /// that says canceled, or the result if the task was quicker.
    pub fn abort(&self) {
        let mut state = self.shared.lock();
        state.abort = true;
        let task = state.task.clone();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Whether the task has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.shared.lock().ended
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.shared.lock();
        if let Some(result) = state.result.take() {
            return Poll::Ready(result);
        }
        assert!(!state.ended, "a JoinHandle is not polled after it has yielded");
        match &mut state.waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            None => state.waiter = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.detached = true;
        let left = (state.result.take(), state.waiter.take());
        drop(state);
        drop(left);
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, result: Result<T, JoinError>) {
        let mut state = self.shared.lock();
        if state.ended {
            return;
        }
        state.ended = true;
        let waiter = state.waiter.take();
        let task = state.task.take();
        let unwanted = if state.detached {
            Some(result)
        } else {
            state.result = Some(result);
            None
        };
        drop(state);
        drop(task);
        // Its destructor may panic. The panic would be the task's, of which nobody wants to know.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(unwanted))) {
            std::mem::forget(payload); // whose own destructor may panic in turn
        }
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.send(Err(JoinError(Repr::Canceled)));
    }
}

/// Why a task gave no result.
pub struct JoinError(Repr);

enum Repr {
    Canceled,
    /// In a mutex so that the error is `Sync`, which a payload need not be.
    Panicked(Mutex<Payload>),
}

static_assertions::assert_impl_all!(JoinError: Send, Sync);

impl JoinError {
    fn panicked(payload: Payload) -> Self {
        Self(Repr::Panicked(Mutex::new(payload)))
    }

    /// The task was aborted, or its thread stopped.
    pub fn is_canceled(&self) -> bool {
        matches!(self.0, Repr::Canceled)
    }

    /// The task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.0, Repr::Panicked(_))
    }

    /// What the panic carried, to be given to [`std::panic::resume_unwind`]; or the error itself
    /// if it was none.
    ///
    /// # Errors
    /// The task did not panic.
    pub fn try_into_panic(self) -> Result<Box<dyn std::any::Any + Send + 'static>, Self> {
        match self.0 {
            Repr::Panicked(payload) => Ok(payload.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Repr::Canceled => Err(self),
        }
    }

    fn message(&self) -> Option<String> {
        let Repr::Panicked(payload) = &self.0 else {
            return None;
        };
        let payload = payload.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = payload.downcast_ref::<&str>() {
            return Some((*text).to_owned());
        }
        payload.downcast_ref::<String>().cloned()
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Canceled => f.write_str("the task was aborted"),
            Repr::Panicked(_) => match self.message() {
                Some(message) => write!(f, "the task panicked: {message}"),
                None => f.write_str("the task panicked"),
            },
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}

impl std::error::Error for JoinError {}

impl From<JoinError> for crate::Error {
    fn from(error: JoinError) -> Self {
        let kind = match error.0 {
            Repr::Canceled => crate::ErrorKind::Canceled,
            Repr::Panicked(_) => crate::ErrorKind::Other,
        };
        Self::new(kind, "join task", "", error.to_string())
    }
}

/// A future as the executor runs it: panics and aborts become results.
#[repr(C)] // the future next to what its turns need besides
pub(crate) struct Task<F: Future> {
    /// Pinned as the task is.
    future: ManuallyDrop<F>,
    /// The future was not dropped yet.
    is_there: bool,
    sender: Sender<F::Output>,
}

impl<F: Future> Task<F> {
    pub(crate) fn new(future: F, sender: Sender<F::Output>) -> Self {
        Self {
            future: ManuallyDrop::new(future),
            is_there: true,
            sender,
        }
    }

    /// Whether it was aborted; tells the handle how to wake the task for that.
    fn is_aborted(&self, cx: &Context<'_>) -> bool {
        let mut state = self.sender.shared.lock();
        if state.task.is_none() {
            // One and the same waker for the task's whole life.
            state.task = Some(cx.waker().clone());
        }
        state.abort
    }

    #[inline(always)]
    fn future(self: Pin<&mut Self>) -> Pin<&mut ManuallyDrop<F>> {
        // SAFETY: the future is moved nowhere: it is reached by this only, and dropped in place.
        unsafe { self.map_unchecked_mut(|task| &mut task.future) }
    }

    /// Drops the future, if it is there; a panic of its destructor is returned. (It is gone then, too.)
    fn drop_future(mut self: Pin<&mut Self>) -> Result<(), Payload> {
        // SAFETY: nothing is moved.
        let is_there = unsafe { &mut self.as_mut().get_unchecked_mut().is_there };
        if !std::mem::replace(is_there, false) {
            return Ok(());
        }
        // SAFETY: it is dropped where it is, once.
        let drop_it = || unsafe { ManuallyDrop::drop(self.future().get_unchecked_mut()) };
        catch_unwind(AssertUnwindSafe(drop_it))
    }

    /// What it has come to. The future is dropped.
    #[cold]
    fn end(mut self: Pin<&mut Self>, result: Result<F::Output, JoinError>) {
        // Whoever joins sees everything that the task held released.
        match self.as_mut().drop_future() {
            Ok(()) => self.sender.send(result),
            Err(payload) => self.sender.send(result.and(Err(JoinError::panicked(payload)))),
        }
    }
}

impl<F: Future> Body for Task<F> {
    fn abort(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        if !self.is_aborted(cx) {
            return false;
        }
        let result = match self.as_mut().drop_future() {
            Ok(()) => JoinError(Repr::Canceled),
            Err(payload) => JoinError::panicked(payload),
        };
        self.sender.send(Err(result));
        true
    }

    #[inline(always)]
    unsafe fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is there: by contract the task has not ended. As pinned as it is.
        let future = unsafe { self.as_mut().future().map_unchecked_mut(|future| &mut **future) };
        // AssertUnwindSafe: after a panic the future is only dropped.
        let result = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => Err(JoinError::panicked(payload)),
        };
        self.end(result);
        Poll::Ready(())
    }

    fn close(mut self: Pin<&mut Self>) {
        if let Err(payload) = self.as_mut().drop_future() {
            guard::keep(payload);
        }
        self.sender.send(Err(JoinError(Repr::Canceled)));
    }
}

impl<F: Future> Drop for Task<F> {
    fn drop(&mut self) {
        // SAFETY: it was pinned, if at all, and is not moved any more.
        if let Err(payload) = unsafe { Pin::new_unchecked(self) }.drop_future() {
            guard::keep(payload);
        }
    }
}
