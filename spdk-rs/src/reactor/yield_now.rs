//! Giving way to others on the same reactor.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Lets the reactor turn once: what else is due runs before the caller goes on. For work that
/// would hold the reactor for long otherwise, between its slices.
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future of [`yield_now`].
#[derive(Debug)]
#[must_use = "it gives way when it is awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
