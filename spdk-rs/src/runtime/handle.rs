//! SPDK beside another runtime: on threads of its own, and how to reach it.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::Shared;

use super::Runtime;
use super::signal::Signals;
use crate::reactor::Thread;
use crate::{Error, ErrorKind, JoinHandle, Result};

const WHAT: &str = "run SPDK on its own thread";

/// As much as the first thread of a process has: what SPDK is used to.
const STACK: usize = 8 << 20;

/// Reaches SPDK from anywhere, while it runs on threads of its own: see [`Runtime::spawn`].
///
/// When the last clone is dropped, SPDK is asked to stop; nobody then waits until it has. (A
/// process that ends meanwhile ends it in the middle.)
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// SPDK runs as long as it is there.
    running: Mutex<Option<oneshot::Sender<()>>>,
    ended: Shared<oneshot::Receiver<Result<()>>>,
}

static_assertions::assert_impl_all!(Handle: Send, Sync);

impl Runtime {
    /// Starts SPDK on a thread of its own (and on one for each further core), beside whatever
    /// else the process does: a Tokio runtime, plain threads. Returns when it is up.
    ///
    /// SPDK's threads are bound to their cores, and so are threads that are started by what runs
    /// on them. SIGINT and SIGTERM stay the program's own; while SPDK starts, they end the start.
    ///
    /// This blocks: with hugepages half a second, with a configuration as long as that takes.
    /// Call it before an asynchronous runtime, or where that allows to block.
    ///
    /// ```no_run
    /// # use spdk_rs::{Runtime, bdev};
    /// # async fn example() -> spdk_rs::Result<()> {
    /// let spdk = Runtime::builder().core_mask("0x2").build()?.spawn()?;
    /// let task = spdk.spawn(|| async {
    ///     let disk = bdev::malloc::create("ram0", 2048, 512)?;
    ///     Ok::<_, spdk_rs::Error>(disk.size())
    /// })?;
    /// let size = task.await??; // under any runtime
    /// assert_eq!(size, 1 << 20);
    /// spdk.stop().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Runtime::run`] that a start has; [`ErrorKind::NoMemory`] if the system makes no
    /// thread.
    pub fn spawn(self) -> Result<Handle> {
        let (up, is_up) = mpsc::channel();
        let (running, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let body = move || {
            let main = async move {
                let _ = up.send(());
                let _ = stopped.await;
            };
            let ran = catch_unwind(AssertUnwindSafe(|| self.run_as(main, Signals::Hosts)));
            let result = ran.unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
            let _ = end.send(result.clone());
            result
        };
        let thread = thread::Builder::new()
            .name("spdk".to_owned())
            .stack_size(STACK)
            .spawn(body)
            .map_err(|error| Error::new(ErrorKind::NoMemory, WHAT, "", error.to_string()))?;
        if is_up.recv().is_err() {
            let result = thread
                .join()
                .unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
            return Err(result.err().unwrap_or_else(gone));
        }
        Ok(Handle(Arc::new(Inner {
            running: Mutex::new(Some(running)),
            ended: ended.shared(),
        })))
    }
}

impl Handle {
    /// Runs a future on core `core`, on the spdk_thread of [`Thread::on_core`]. `make` is sent
    /// there and makes the future, which therefore need not be `Send`. The result can be awaited
    /// anywhere; dropping the [`JoinHandle`] lets the task run on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the runtime does not use that core;
    /// [`ErrorKind::NotRunning`]; [`ErrorKind::NoMemory`].
    pub fn spawn_on<M, F>(&self, core: u32, make: M) -> Result<JoinHandle<F::Output>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        Thread::on_core(core)?.spawn_on(make)
    }

    /// As [`Handle::spawn_on`], on the [app thread](Thread::app), where devices are created,
    /// looked up and deleted.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`].
    pub fn spawn<M, F>(&self, make: M) -> Result<JoinHandle<F::Output>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        Thread::app()?.spawn_on(make)
    }

    /// Asks SPDK to stop, as [`Runtime::run`] does when its future has ended, and waits until it
    /// has. May be called repeatedly and by several; dropping the future does not take it back.
    ///
    /// # Errors
    /// How SPDK ended, if that was not in order: a message, poller or callback has panicked, or
    /// it had stopped by itself.
    pub async fn stop(&self) -> Result<()> {
        self.0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.ended().await
    }

    /// Waits until SPDK has stopped, whoever asked for it.
    ///
    /// # Errors
    /// As [`Handle::stop`].
    pub async fn ended(&self) -> Result<()> {
        self.0.ended.clone().await.unwrap_or_else(|_| Err(gone()))
    }
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    let why = text.map_or_else(|| "it panicked".to_owned(), |text| format!("it panicked: {text}"));
    Error::new(ErrorKind::Other, WHAT, "", why)
}

fn gone() -> Error {
    Error::new(ErrorKind::NotRunning, WHAT, "", "its thread has ended")
}
