//! Comparing what is stored, and writing if it was as expected.

use super::Channel;
use super::io::{self, Payload};
use super::kind::IoType;
use super::transfer::IoBuf;
use crate::buf::{BufResult, DmaBuf, DmaBufList};
use crate::{Error, ErrorKind};

impl Channel {
    /// Compares what is stored at `offset` with the buffer's initialised part.
    ///
    /// Where the device cannot compare, SPDK reads and compares. It reads into a buffer of its own
    /// then, which most devices need and which has room for 64 KiB: what is longer fails with
    /// [`ErrorKind::Io`].
    ///
    /// # Errors
    /// [`ErrorKind::Miscompare`] if anything differs; see [`Channel`] for others, and
    /// [`ErrorKind::InvalidArgument`] if nothing in the buffer is initialised.
    #[doc(alias = "spdk_bdev_compare_blocks")]
    pub async fn compare(&self, expected: DmaBuf, offset: u64) -> BufResult<()> {
        self.compare_any(expected, offset).await
    }

    /// As [`compare`](Self::compare), with several buffers one after the other.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    #[doc(alias = "spdk_bdev_comparev_blocks")]
    pub async fn comparev(&self, expected: DmaBufList, offset: u64) -> BufResult<(), DmaBufList> {
        self.compare_any(expected, offset).await
    }

    async fn compare_any<B: IoBuf>(&self, expected: B, offset: u64) -> BufResult<(), B> {
        let len = expected.bytes(false) as u64;
        let make = || expected.into_payload();
        let mut op = io::prepare(self.slots(), offset, len, make);
        std::future::poll_fn(move |cx| {
            io::poll(&mut op, cx, IoType::Compare, io::submit_now, |result, payload| {
                // SAFETY: made of a B above; an operation yields once.
                BufResult(result, unsafe { B::from_payload(payload) })
            })
        })
        .await
    }

    /// Compares what is stored at `offset` with `expected`, and writes `data` there if they are
    /// equal, as one: no other write to these blocks, through this SPDK, comes in between.
    ///
    /// Both initialised parts are equally long, and no longer than
    /// [`Bdev::max_compare_and_write`](super::Bdev::max_compare_and_write), which may be one block.
    ///
    /// # Errors
    /// [`ErrorKind::Miscompare`] if anything differs: nothing is written then. (Where the device
    /// cannot do it itself, SPDK v20.07 says the same when what is stored could not be read.) See
    /// [`Channel`] for others, and [`ErrorKind::InvalidArgument`] if the lengths are wrong.
    #[doc(alias = "spdk_bdev_comparev_and_writev_blocks")]
    pub async fn compare_and_write(
        &self,
        expected: DmaBuf,
        data: DmaBuf,
        offset: u64,
    ) -> BufResult<(), (DmaBuf, DmaBuf)> {
        let list = |buf| DmaBufList::new(vec![buf]); // C takes lists only
        let lists = self.comparev_and_writev(list(expected), list(data), offset).await;
        let buf = |list: DmaBufList| match list.into_bufs().pop() {
            Some(buf) => buf,
            None => unreachable!("a list made of one"),
        };
        let BufResult(result, (expected, data)) = lists;
        BufResult(result, (buf(expected), buf(data)))
    }

    /// As [`compare_and_write`](Self::compare_and_write), with several buffers for each.
    ///
    /// # Errors
    /// As [`compare_and_write`](Self::compare_and_write).
    #[doc(alias = "spdk_bdev_comparev_and_writev_blocks")]
    pub async fn comparev_and_writev(
        &self,
        expected: DmaBufList,
        data: DmaBufList,
        offset: u64,
    ) -> BufResult<(), (DmaBufList, DmaBufList)> {
        const TYPE: IoType = IoType::CompareAndWrite;
        let (len, other) = (expected.len(), data.len());
        if len != other {
            let why = format!("{len} bytes to compare, and {other} to write");
            let error = Error::new(ErrorKind::InvalidArgument, TYPE.what(), self.name(), why);
            return BufResult(Err(error), (expected, data));
        }
        let make = || Payload::Lists(expected, data);
        let mut op = io::prepare(self.slots(), offset, len as u64, make);
        std::future::poll_fn(move |cx| {
            io::poll(
                &mut op,
                cx,
                TYPE,
                io::submit_now,
                |result, payload| match std::mem::take(payload) {
                    Payload::Lists(expected, data) => BufResult(result, (expected, data)),
                    _ => unreachable!("the memory that was given comes back"),
                },
            )
        })
        .await
    }
}
