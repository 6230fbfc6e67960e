//! Devices that serve each I/O with a future.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::{BlockDevice, Io, Properties, Status};
use crate::{Result, reactor};

/// A block device whose I/O are served by futures, one for each, on the thread of its channel. To
/// be registered as [`Async`].
///
/// It costs some allocations for each I/O; where that matters, see [`BlockDevice`].
pub trait AsyncBlockDevice: Send + Sync + 'static {
    /// What each thread that has the device open has of its own, shared by the I/O in flight.
    type Channel: 'static;

    /// As [`BlockDevice::properties`].
    fn properties(&self) -> Properties;

    /// As [`BlockDevice::channel`].
    ///
    /// # Errors
    /// What it is that stops the thread from using the device.
    fn channel(&self) -> Result<Self::Channel>;

    /// Serves an I/O, which ends with the status returned. It fails if this panics (but nothing
    /// else does), or is dropped with the thread's tasks when the runtime stops.
    fn serve(&self, channel: &Self::Channel, io: &mut Io) -> impl Future<Output = Status>;

    /// As [`BlockDevice::drain`].
    fn drain(&self, channel: &Self::Channel) {
        let _ = channel;
    }
}

/// So that whoever registers a device can go on using it.
impl<D: AsyncBlockDevice> AsyncBlockDevice for Arc<D> {
    type Channel = D::Channel;

    fn properties(&self) -> Properties {
        (**self).properties()
    }

    fn channel(&self) -> Result<Self::Channel> {
        (**self).channel()
    }

    fn serve(&self, channel: &Self::Channel, io: &mut Io) -> impl Future<Output = Status> {
        (**self).serve(channel, io)
    }

    fn drain(&self, channel: &Self::Channel) {
        (**self).drain(channel);
    }
}

/// An [`AsyncBlockDevice`] as a [`BlockDevice`].
#[derive(Debug)]
pub struct Async<D>(Arc<D>);

impl<D: AsyncBlockDevice> Async<D> {
    /// Wraps it.
    pub fn new(device: D) -> Self {
        Self(Arc::new(device))
    }
}

/// What the futures of a channel share.
#[derive(Debug)]
pub struct AsyncChannel<D: AsyncBlockDevice> {
    channel: D::Channel,
    device: Arc<D>,
}

impl<D: AsyncBlockDevice> BlockDevice for Async<D> {
    type Channel = Rc<AsyncChannel<D>>;

    fn properties(&self) -> Properties {
        self.0.properties()
    }

    fn channel(&self) -> Result<Self::Channel> {
        Ok(Rc::new(AsyncChannel {
            channel: self.0.channel()?,
            device: Arc::clone(&self.0),
        }))
    }

    fn submit(&self, channel: &mut Self::Channel, mut io: Io) {
        let channel = Rc::clone(channel);
        // Where no task can run any more (the runtime stops), the I/O fails with its future.
        drop(reactor::try_spawn(async move {
            let status = channel.device.serve(&channel.channel, &mut io).await;
            // When the I/O has ended, nothing of the device is held here any more.
            drop(channel);
            io.complete(status);
        }));
    }

    fn drain(&self, channel: &mut Self::Channel) {
        self.0.drain(&channel.channel);
    }
}
