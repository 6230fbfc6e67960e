//! Block devices written in Rust.
//!
//! # The model
//!
//! A type that implements [`BlockDevice`] is registered under a name with [`register`]. From then
//! on it is a block device like any other: [`Bdev::find`](crate::bdev::Bdev::find) finds it, and
//! volume stores, NVMe-oF namespaces and SPDK's virtual devices are built upon it.
//!
//! * The *device* is one for all threads, so it is `Send` and `Sync`.
//! * Each thread that opens it gets a *channel*: [`BlockDevice::channel`] makes it there, and it
//!   never leaves. It need not be `Send`. I/O comes to the device with the channel of its thread,
//!   `&mut`, so that most devices need no lock at all.
//! * An [`Io`] is what somebody asks for. The device owns it until it completes it: at once, or
//!   later, from a poller, a task, or another thread. An `Io` that is dropped fails; none is lost.
//!
//! ```no_run
//! use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
//! # use spdk_rs::{Result, bdev::{Bdev, Mode}, buf::DmaBuf};
//!
//! /// Reads as ones, and takes no writes.
//! struct Ones;
//!
//! impl BlockDevice for Ones {
//!     type Channel = ();
//!
//!     fn properties(&self) -> Properties {
//!         Properties::new(512, 2048).read_only()
//!     }
//!
//!     fn channel(&self) -> Result<()> {
//!         Ok(())
//!     }
//!
//!     fn submit(&self, _channel: &mut (), mut io: Io) {
//!         io.fill(1); // no other kind is asked for
//!         io.complete(Status::Success);
//!     }
//! }
//!
//! # async fn example() -> Result<()> {
//! let ones = bdev_module::register("ones", Ones)?;
//! let descriptor = Bdev::find("ones")?.open(Mode::ReadOnly)?;
//! let channel = descriptor.channel()?;
//! let ((), buf) = channel.read(DmaBuf::new(512)?, 0).await.ok()?;
//! assert_eq!(buf.as_slice(), [1; 512]);
//! ones.unregister().await
//! # }
//! ```
//!
//! A device that waits for other things (another device, say) can be written with futures:
//! [`AsyncBlockDevice`].
//!
//! # What a device can rely on
//!
//! * Its code is not entered twice at a time on a channel: what comes while it runs waits.
//! * The range of an I/O lies within the device; its kind is one that the device
//!   [supports](Properties::supports); its memory is there and [aligned](Properties::alignment).
//! * A channel is dropped when no I/O of it is left, and the device after its last channel, on
//!   the app thread.
//! * Threads that SPDK itself has made (those of the NVMe-oF target) can run tasks, timers and
//!   descriptors of this crate as long as they have a channel.
//!
//! # Panics
//!
//! A panic in the device's code fails the I/O that it had in hand, and all that come to that
//! channel later; then it ends the runtime, see [`Runtime::run`](crate::Runtime::run). (In the
//! future of an [`AsyncBlockDevice`] it fails that I/O, and nothing else.)
//!
//! What may not be done here: allocate or lock in the path of an I/O (but for its future).

mod async_device;
mod channel;
mod disk;
mod io;
mod later;
mod metadata;
mod properties;
mod registered;

use std::sync::Arc;

pub use async_device::{Async, AsyncBlockDevice, AsyncChannel};
pub use io::{Io, SegmentsMut, Status};
pub use properties::Properties;
pub use registered::Registered;
pub(crate) use registered::drain_all;

use crate::Result;
pub use crate::bdev::kind::Kind;

/// A block device. See the [module's documentation](self).
///
/// All of its functions run on reactors, and must not block.
pub trait BlockDevice: Send + Sync + 'static {
    /// What each thread that has the device open has of its own.
    type Channel: 'static;

    /// Geometry and abilities; asked for once.
    fn properties(&self) -> Properties;

    /// Makes the current thread's channel.
    ///
    /// # Errors
    /// What it is that stops the thread from using the device. It is printed; whoever opens the
    /// channel learns that there is none ([`NoMemory`](crate::ErrorKind::NoMemory)).
    fn channel(&self) -> Result<Self::Channel>;

    /// Takes an I/O. This runs inside of the code of whoever submits it, so it should be quick.
    fn submit(&self, channel: &mut Self::Channel, io: Io);

    /// The device is being unregistered: I/O that it holds back must be completed (or dropped)
    /// now, and none may be held back on this channel from now on. Called for each channel that
    /// there is, also when the runtime stops, and after a panic. Nothing is to be done where all
    /// I/O ends by itself.
    fn drain(&self, channel: &mut Self::Channel) {
        let _ = channel;
    }
}

/// So that whoever registers a device can go on using it.
impl<D: BlockDevice> BlockDevice for Arc<D> {
    type Channel = D::Channel;

    fn properties(&self) -> Properties {
        (**self).properties()
    }

    fn channel(&self) -> Result<Self::Channel> {
        (**self).channel()
    }

    fn submit(&self, channel: &mut Self::Channel, io: Io) {
        (**self).submit(channel, io);
    }

    fn drain(&self, channel: &mut Self::Channel) {
        (**self).drain(channel);
    }
}

/// Registers a device under a name. SPDK examines it at once: it may be opened, and asked for I/O,
/// before this returns.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken;
/// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the name is empty or contains a NUL, or
/// if the properties are such that SPDK cannot work with the device;
/// [`WrongThread`](crate::ErrorKind::WrongThread) if not called on the app thread;
/// [`NoMemory`](crate::ErrorKind::NoMemory). The device is dropped then.
#[doc(alias = "spdk_bdev_register")]
pub fn register<D: BlockDevice>(name: &str, device: D) -> Result<Registered> {
    disk::register(name, device)
}
