//! A clock that ticks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::Poller;
use crate::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
struct Shared {
    /// Since the last [`Interval::tick`].
    ticks: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// Ticks every `period` (of whole microseconds) on the current spdk_thread, for the first time
/// when one has passed.
///
/// ```no_run
/// # async fn example() -> spdk_rs::Result<()> {
/// let mut second = spdk_rs::reactor::interval(std::time::Duration::from_secs(1))?;
/// for n in 1..=3 {
///     second.tick().await;
///     println!("{n} s");
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if the period is shorter than a microsecond;
/// [`ErrorKind::WrongThread`] outside of SPDK's threads; [`ErrorKind::NoMemory`].
pub fn interval(period: Duration) -> Result<Interval> {
    if period < Duration::from_micros(1) {
        let why = "a reactor's clock ticks in microseconds; yield_now() waits for one turn";
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "begin interval",
            format!("{period:?}"),
            why,
        ));
    }
    let shared = Rc::<Shared>::default();
    let at_poller = Rc::clone(&shared);
    let poller = Poller::register("interval", period, move || {
        at_poller.ticks.set(at_poller.ticks.get() + 1);
        let waker = at_poller.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    })?;
    Ok(Interval {
        shared,
        _poller: poller,
    })
}

/// A clock that ticks until it is dropped: see [`interval`].
#[derive(Debug)]
#[must_use = "it ticks until it is dropped"]
pub struct Interval {
    shared: Rc<Shared>,
    _poller: Poller,
}

impl Interval {
    /// Waits for the next tick. Returns how many there were since the last time: more than one for
    /// who comes late. (Those that pass while the reactor is held up SPDK makes up for by one.)
    ///
    /// Dropping the future loses no tick.
    pub async fn tick(&mut self) -> u64 {
        poll_fn(|cx| match self.shared.ticks.take() {
            0 => {
                *self.shared.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            ticks => Poll::Ready(ticks),
        })
        .await
    }
}
