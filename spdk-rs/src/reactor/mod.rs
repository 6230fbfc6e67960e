//! spdk_threads, and what runs on them: tasks, messages, pollers, timers.
//!
//! # The model
//!
//! SPDK runs one *reactor* per core, an endless loop on a pinned OS thread. Reactors run
//! *spdk_threads*: light-weight threads that own whatever SPDK ties to a thread (descriptors,
//! channels, pollers). The runtime's first task runs on the *app thread*; more can be made with
//! [`Thread::create`], each on a core of its choice.
//!
//! A [`ThreadHandle`] names such a thread and may go anywhere. It sends work there:
//! [`spawn_on`](ThreadHandle::spawn_on) takes a closure that is `Send` and makes a future that
//! need not be. The [`JoinHandle`] comes back and can be awaited on any
//! thread, under any runtime.
//!
//! ```no_run
//! # use spdk_rs::{Runtime, reactor::Thread};
//! # fn main() -> spdk_rs::Result<()> {
//! Runtime::builder().core_mask("0x3").build()?.run(async {
//!     let worker = Thread::create("worker", 1)?;
//!     let sum = worker.spawn_on(|| async { 1 + 1 })?.await?;
//!     worker.exit().await;
//!     assert_eq!(sum, 2);
//!     Ok(())
//! })?
//! # }
//! ```

mod context;
mod cores;
mod idle;
mod interval;
mod poller;
mod thread;
mod time;
mod yield_now;

use std::future::Future;

/// Channels between tasks on any cores, and to threads that are not SPDK's: those of
/// [`futures-channel`](futures_channel). A waker of this crate may be called anywhere, so others
/// that know of no runtime work as well, Tokio's among them.
pub mod sync {
    #[doc(no_inline)]
    pub use futures_channel::{mpsc, oneshot};
}

pub(crate) use context::{Adoption, close_all, close_current};
pub use cores::{cores, numa_node};
pub(crate) use idle::{begin as begin_idle, bell, hang_bells};
pub use interval::{Interval, interval};
pub use poller::Poller;
pub(crate) use thread::{Owner, adopt_current, enter_app_thread, leave_app_thread};
pub use thread::{Thread, ThreadHandle};
pub use time::{Sleep, sleep, timeout};
pub use yield_now::{YieldNow, yield_now};

use crate::JoinHandle;

/// Runs `future` on the current spdk_thread, beside the caller.
///
/// The future need not be `Send`: it never leaves the thread. Dropping the handle lets it run on.
///
/// If the runtime is stopping, the future is dropped and the handle says canceled.
///
/// # Panics
/// If the caller does not run on an spdk_thread of this crate (see [`Thread::current`]).
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    match try_spawn(future) {
        Some(handle) => handle,
        None => panic!("spawn() was called outside of SPDK's threads; see ThreadHandle::spawn_on"),
    }
}

/// As [`spawn`]; where nothing can run, the future is dropped.
pub(crate) fn try_spawn<F>(future: F) -> Option<JoinHandle<F::Output>>
where
    F: Future + 'static,
    F::Output: 'static,
{
    Some(context::current()?.executor().spawn(future))
}
