//! Aborting one I/O.

use std::rc::Rc;

use super::io::{self, Failure, IoOp, Keep};
use super::kind::IoType;
use super::transfer::{IoBuf, Read, Write};
use crate::op::slots::Stage;
use crate::reactor::yield_now;
use crate::{Error, ErrorKind, Result};

const WHAT: IoType = IoType::Abort;

impl<B: IoBuf> Read<B> {
    /// Asks the device to end this read, which was begun (polled) and has not ended. Await the read
    /// itself after that: it gives its memory back, and says what became of it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use spdk_rs::{bdev::Channel, buf::DmaBuf, reactor::timeout, Result};
    /// # async fn example(channel: Channel, buf: DmaBuf) -> Result<()> {
    /// let mut read = channel.read(buf, 0);
    /// if timeout(Duration::from_secs(1), &mut read).await.is_err() {
    ///     let _ = read.abort().await; // if that fails, the read goes on
    ///     let (result, buf) = read.await.into_parts();
    /// #   let _ = (result, buf);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// After `Ok` it has ended, or does so soon: with [`ErrorKind::Canceled`], or well if the device
    /// was faster. (A device upon others may say [`ErrorKind::Io`] instead, and `delay` says it in
    /// its own time, if one beneath it did the abort.) If it still waits for SPDK's memory, it ends
    /// here and now, and no device is asked.
    ///
    /// An abort needs memory of SPDK's too, and does not queue for it: it tries again, each time the
    /// reactor comes round. It works also while the descriptor is closing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is nothing to abort: the read was not begun, or has ended;
    /// [`ErrorKind::Unsupported`] if the device cannot abort I/O; [`ErrorKind::Io`] if it does not
    /// abort this one, which goes on then (malloc says so always);
    /// [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_bdev_abort")]
    pub async fn abort(&mut self) -> Result<()> {
        abort(self.op()).await
    }
}

impl<B: IoBuf> Write<B> {
    /// Asks the device to end this write, as [`Read::abort`] does. What is stored then is the old
    /// data, the new, or some of each.
    ///
    /// # Errors
    /// As [`Read::abort`].
    #[doc(alias = "spdk_bdev_abort")]
    pub async fn abort(&mut self) -> Result<()> {
        abort(self.op()).await
    }
}

/// Aborts `target`. Its future is borrowed meanwhile, so that its slot, by which SPDK finds it, is
/// given to no other I/O.
async fn abort(target: &mut IoOp) -> Result<()> {
    let nothing = |device: &str, why: &str| {
        let why = format!("there is nothing to abort: {why}");
        Err(Error::new(ErrorKind::NotFound, WHAT.what(), device, why))
    };
    let Some(channel) = target.context().map(Rc::clone) else {
        return nothing("", "it has ended, and yielded");
    };
    let descriptor = channel.descriptor();
    descriptor.owner().check(WHAT.what(), descriptor.name())?;
    let mut asked = false;
    loop {
        match target.stage() {
            Stage::Prepared => return nothing(descriptor.name(), "it was not begun"),
            Stage::Ended if asked => return Ok(()),
            Stage::Ended => return nothing(descriptor.name(), "it has ended"),
            Stage::Waiting => {
                target.leave(Failure::Aborted, Keep::without_wait);
                return Ok(());
            }
            Stage::Pending => {}
        }
        asked = true;
        let Some(mut op) = io::prepare_abort(target) else {
            return Ok(());
        };
        let answer =
            std::future::poll_fn(move |cx| io::poll(&mut op, cx, WHAT, io::submit_now, |result, _| result));
        match answer.await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NoMemory => yield_now().await,
            Err(_) if target.stage() == Stage::Ended => return Ok(()),
            Err(error) if error.nvme_status().is_some() => {
                return Err(error.with_detail("the device does not abort it: it goes on"));
            }
            Err(error) => return Err(error),
        }
    }
}
