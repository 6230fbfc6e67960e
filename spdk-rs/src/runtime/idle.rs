//! What a reactor does when there is nothing to do.

use std::time::Duration;

use super::builder::invalid;
use crate::Result;

/// What the reactors do when there is nothing to do: see [`Builder::idle`](super::Builder::idle).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Idle {
    /// They look for work again and again: each keeps its core busy all the time, and nothing
    /// waits. As SPDK does.
    #[default]
    Spin,
    /// They look for a while, and then sleep, for longer and longer.
    ///
    /// A reactor sleeps through none of these:
    ///
    /// * messages, tasks and wake-ups that this crate brings, from any thread: they wake it;
    /// * timers, its own and SPDK's: it wakes when the next is due;
    /// * I/O that this crate has begun on it: it stays awake until that has ended.
    ///
    /// What else comes (from a socket, from SPDK's code on another core, to a [`Poller`] without a
    /// period that found nothing to do) finds it asleep and wakes nobody. It is noticed after twice
    /// the pause before it, since no sleep takes longer than nothing has happened so far (a timer's
    /// turn does not count), and at the latest `at_most` after it has come. So do signals.
    ///
    /// # What it costs
    ///
    /// A reactor with nothing to do takes 1 to 2 % of a core with [`Idle::sleep`]. To be woken
    /// takes 30 to 50 µs for each core that slept: a round trip to another core takes that instead
    /// of 2 µs after a pause of 100 µs and more, and so late are timers. While there is work,
    /// nothing is slower. (The example `idle` measures all this; `DESIGN.md` has its figures.)
    ///
    /// [`Poller`]: crate::reactor::Poller
    Sleep {
        /// How long there must have been nothing to do.
        after: Duration,
        /// The longest sleep.
        at_most: Duration,
    },
}

impl Idle {
    /// [`Idle::Sleep`] after 50 µs, for 2 ms at most: short enough for what wakes nobody, and
    /// still under 3 % of a core.
    pub const fn sleep() -> Self {
        Self::Sleep {
            after: Duration::from_micros(50),
            at_most: Duration::from_millis(2),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Sleep { at_most, .. } if at_most.is_zero() => Err(invalid(
                "idle reactors that sleep for no time",
                "say Idle::Spin, or for how long they may",
            )),
            _ => Ok(()),
        }
    }
}
