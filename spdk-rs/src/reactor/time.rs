//! Time, on SPDK's ticks.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Poller;
use crate::{Error, ErrorKind, Result};

/// Waits for at least `duration`, which begins with the first poll.
///
/// # Panics
/// The future panics when it is polled outside of SPDK's threads, or if there is no memory for
/// the timer.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep {
        duration,
        timer: None,
    }
}

/// The future of [`sleep`].
#[derive(Debug)]
#[must_use = "it sleeps when it is awaited"]
pub struct Sleep {
    duration: Duration,
    timer: Option<Timer>,
}

#[derive(Debug)]
struct Timer {
    shared: Rc<Shared>,
    _poller: Poller,
}

#[derive(Debug, Default)]
struct Shared {
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = &self.timer {
            if timer.shared.over.get() {
                return Poll::Ready(());
            }
            *timer.shared.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.duration.is_zero() {
            return Poll::Ready(());
        }
        let shared = Rc::<Shared>::default();
        *shared.waker.borrow_mut() = Some(cx.waker().clone());
        let at_poller = Rc::clone(&shared);
        let poller = Poller::register("sleep", self.duration, move || {
            at_poller.over.set(true);
            let waker = at_poller.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
            true
        });
        match poller {
            Ok(poller) => {
                self.timer = Some(Timer {
                    shared,
                    _poller: poller,
                });
                Poll::Pending
            }
            Err(error) => panic!("sleep: {error}"),
        }
    }
}

/// Waits for `future`, but no longer than `limit`; it is dropped then.
///
/// # Errors
/// [`ErrorKind::TimedOut`].
///
/// # Panics
/// As [`sleep`].
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output> {
    let mut future = pin!(future);
    let mut sleep = sleep(limit);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        if Pin::new(&mut sleep).poll(cx).is_ready() {
            return Poll::Ready(Err(Error::new(
                ErrorKind::TimedOut,
                "wait",
                "",
                format!("not done after {limit:?}"),
            )));
        }
        Poll::Pending
    })
    .await
}
