//! Reads and writes, as futures.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::io::{self, IoOp, IoSlots, Payload};
use super::kind::IoType;
use super::one_buffer;
use crate::buf::{BufResult, DmaBuf, DmaBufList};

/// Memory that an I/O can be given: one [`DmaBuf`], a [`DmaBufList`], or one for data and one for
/// metadata.
pub trait IoBuf: sealed::Sealed + Sized {}

impl IoBuf for DmaBuf {}
impl IoBuf for DmaBufList {}
impl IoBuf for (DmaBuf, DmaBuf) {}

mod sealed {
    use std::mem::take;

    use super::{DmaBuf, DmaBufList, Payload};

    pub trait Sealed: Unpin {
        /// What a transfer in this direction moves.
        fn bytes(&self, read: bool) -> usize;
        fn into_payload(self) -> Payload;
        /// What [`into_payload`](Self::into_payload) was given; nothing to drop is left there.
        ///
        /// # Safety
        /// The payload is what that has returned for this type, and this is called once.
        unsafe fn from_payload(payload: &mut Payload) -> Self
        where
            Self: Sized;
        /// Whether it is one buffer: its transfers take a shorter way.
        const ONE_BUFFER: bool = false;
        /// # Safety
        /// Every byte of the capacity is initialised.
        unsafe fn filled(&mut self);
    }

    impl Sealed for DmaBuf {
        const ONE_BUFFER: bool = true;
        #[inline]
        fn bytes(&self, read: bool) -> usize {
            if read { self.capacity() } else { self.len() }
        }
        #[inline]
        fn into_payload(self) -> Payload {
            Payload::Buf(self)
        }
        #[inline(always)]
        unsafe fn from_payload(payload: &mut Payload) -> Self {
            // SAFETY: by contract it is one buffer, and nobody else moves it out.
            unsafe { std::ptr::read(payload.buf()) }
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
        unsafe fn from_payload(payload: &mut Payload) -> Self {
            match take(payload) {
                Payload::List(list) => list,
                _ => unreachable!("the memory that was given comes back"),
            }
        }
        unsafe fn filled(&mut self) {
            // SAFETY: by contract.
            unsafe { self.set_full() }
        }
    }

    impl Sealed for (DmaBuf, DmaBuf) {
        fn bytes(&self, read: bool) -> usize {
            self.0.bytes(read)
        }
        fn into_payload(self) -> Payload {
            Payload::WithMetadata(self.0, self.1)
        }
        unsafe fn from_payload(payload: &mut Payload) -> Self {
            match take(payload) {
                Payload::WithMetadata(buf, metadata) => (buf, metadata),
                _ => unreachable!("the memory that was given comes back"),
            }
        }
        unsafe fn filled(&mut self) {
            // SAFETY: by contract.
            unsafe {
                self.0.filled();
                self.1.filled();
            }
        }
    }
}

/// The future of a read; it yields a [`BufResult`]. Nothing is submitted before the first poll.
/// It holds on to the channel.
#[must_use = "nothing is read before it is awaited"]
pub struct Read<B: IoBuf = DmaBuf> {
    op: IoOp,
    buf: PhantomData<B>,
}

/// The future of a write; otherwise as [`Read`].
#[must_use = "nothing is written before it is awaited"]
pub struct Write<B: IoBuf = DmaBuf> {
    op: IoOp,
    buf: PhantomData<B>,
}

impl<B: IoBuf> Read<B> {
    pub(super) fn op(&mut self) -> &mut IoOp {
        &mut self.op
    }

    #[inline(always)]
    pub(super) fn new(slots: &IoSlots, buf: B, offset: u64) -> Self {
        let len = buf.bytes(true) as u64;
        Self {
            op: io::prepare(slots, offset, len, || buf.into_payload()),
            buf: PhantomData,
        }
    }
}

impl<B: IoBuf> Write<B> {
    pub(super) fn op(&mut self) -> &mut IoOp {
        &mut self.op
    }

    #[inline(always)]
    pub(super) fn new(slots: &IoSlots, buf: B, offset: u64) -> Self {
        let len = buf.bytes(false) as u64;
        Self {
            op: io::prepare(slots, offset, len, || buf.into_payload()),
            buf: PhantomData,
        }
    }
}

impl<B: IoBuf> Future for Read<B> {
    type Output = BufResult<(), B>;

    #[inline(always)] // in one with the code of the task, as a callback's in C
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let submit = |channel: &_, kind, keep: &mut _, cb_arg| match B::ONE_BUFFER {
            // SAFETY: `new` made the payload of a B.
            true => unsafe { one_buffer::read(channel, keep, cb_arg) },
            false => io::submit_now(channel, kind, keep, cb_arg),
        };
        io::poll(&mut self.op, cx, IoType::Read, submit, |result, payload| {
            // SAFETY: `new` made the payload of a B; an operation yields once.
            let mut buf = unsafe { B::from_payload(payload) };
            if result.is_ok() {
                // SAFETY: the device has filled the whole capacity.
                unsafe { buf.filled() };
            }
            BufResult(result, buf)
        })
    }
}

impl<B: IoBuf> Future for Write<B> {
    type Output = BufResult<(), B>;

    #[inline(always)] // in one with the code of the task, as a callback's in C
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let submit = |channel: &_, kind, keep: &mut _, cb_arg| match B::ONE_BUFFER {
            // SAFETY: `new` made the payload of a B.
            true => unsafe { one_buffer::write(channel, keep, cb_arg) },
            false => io::submit_now(channel, kind, keep, cb_arg),
        };
        io::poll(&mut self.op, cx, IoType::Write, submit, |result, payload| {
            // SAFETY: `new` made the payload of a B; an operation yields once.
            BufResult(result, unsafe { B::from_payload(payload) })
        })
    }
}
