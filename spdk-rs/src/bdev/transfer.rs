//! Reads and writes, as futures.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::channel::Channel;
use super::io::{self, Kind, Payload, Request, Submission};
use crate::buf::{BufResult, DmaBuf, DmaBufList};

/// Memory that an I/O can be given: one [`DmaBuf`], or a [`DmaBufList`].
pub trait IoBuf: sealed::Sealed + Sized {}

impl IoBuf for DmaBuf {}
impl IoBuf for DmaBufList {}

mod sealed {
    use super::{DmaBuf, DmaBufList, Payload};

    pub trait Sealed: Unpin {
        /// What a transfer in this direction moves.
        fn bytes(&self, read: bool) -> usize;
        fn into_payload(self) -> Payload;
        fn from_payload(payload: Payload) -> Option<Self>
        where
            Self: Sized;
        /// # Safety
        /// Every byte of the capacity is initialised.
        unsafe fn filled(&mut self);
    }

    impl Sealed for DmaBuf {
        #[inline]
        fn bytes(&self, read: bool) -> usize {
            if read { self.capacity() } else { self.len() }
        }
        #[inline]
        fn into_payload(self) -> Payload {
            Payload::Buf(self)
        }
        #[inline]
        fn from_payload(payload: Payload) -> Option<Self> {
            match payload {
                Payload::Buf(buf) => Some(buf),
                _ => None,
            }
        }
        #[inline]
        unsafe fn filled(&mut self) {
            // SAFETY: by contract.
            unsafe { self.set_len(self.capacity()) }
        }
    }

    impl Sealed for DmaBufList {
        fn bytes(&self, read: bool) -> usize {
            if read { self.capacity() } else { self.len() }
        }
        fn into_payload(self) -> Payload {
            Payload::List(self)
        }
        fn from_payload(payload: Payload) -> Option<Self> {
            match payload {
                Payload::List(list) => Some(list),
                _ => None,
            }
        }
        unsafe fn filled(&mut self) {
            // SAFETY: by contract.
            unsafe { self.set_full() }
        }
    }
}

/// The future of a read or write; it yields a [`BufResult`]. Nothing is submitted before the
/// first poll.
#[must_use = "nothing is read or written before it is awaited"]
pub struct Transfer<'c, B: IoBuf> {
    channel: &'c Channel,
    kind: Kind,
    step: Step<B>,
}

enum Step<B> {
    Start { buf: B, offset: u64 },
    Submitted(Submission),
    Yielded,
}

impl<'c, B: IoBuf> Transfer<'c, B> {
    #[inline]
    pub(super) fn new(channel: &'c Channel, kind: Kind, buf: B, offset: u64) -> Self {
        Self {
            channel,
            kind,
            step: Step::Start { buf, offset },
        }
    }
}

impl<B: IoBuf> Future for Transfer<'_, B> {
    type Output = BufResult<(), B>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Step::Start { .. } = this.step {
            let Step::Start { buf, offset } = std::mem::replace(&mut this.step, Step::Yielded) else {
                unreachable!("looked at above")
            };
            let len = buf.bytes(this.kind == Kind::Read) as u64;
            if !this.channel.is_fine(this.kind, offset, len)
                && let Err(error) = this.channel.check(this.kind, offset, len)
            {
                return Poll::Ready(BufResult(Err(error), buf));
            }
            let request = Request {
                kind: this.kind,
                offset,
                len,
                payload: buf.into_payload(),
            };
            this.step = Step::Submitted(this.channel.start(request));
        }
        let Step::Submitted(submission) = &mut this.step else {
            panic!("a transfer is not polled after it has yielded")
        };
        let Poll::Ready(ended) = Pin::new(submission).poll(cx) else {
            return Poll::Pending;
        };
        this.step = Step::Yielded;
        let (result, payload) = io::finish(ended);
        let Some(mut buf) = B::from_payload(payload) else {
            unreachable!("the buffer that was given comes back")
        };
        if result.is_ok() && this.kind == Kind::Read {
            // SAFETY: the device has filled the whole capacity.
            unsafe { buf.filled() };
        }
        Poll::Ready(BufResult(result, buf))
    }
}
