//! What threads share in `executor` and `op`: the standard library's; or loom's, when `ci/loom`
//! tries every order in which threads can come to it (`--cfg spdk_loom`; the name `loom` would
//! change dependencies too).

#[cfg(not(spdk_loom))]
mod chosen {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, fence};
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;
}

#[cfg(spdk_loom)]
mod chosen {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, fence};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
}

pub(crate) use chosen::*;

/// What the models share.
#[cfg(all(test, spdk_loom))]
pub(crate) mod model {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    use loom::thread::{self, Thread};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Waits for a future on a thread of the model. A wake-up that is lost is a deadlock, which
    /// loom reports.
    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }
}
