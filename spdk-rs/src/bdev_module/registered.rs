//! The right to unregister a device.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use spdk_sys::{spdk_bdev, spdk_io_channel_iter};

use crate::op::{self, Op, Submitted};
use crate::reactor::Thread;
use crate::{Error, Result, bdev, guard, runtime};

type Drain = unsafe extern "C" fn(iter: *mut spdk_io_channel_iter);

/// A device that is registered: SPDK's users find it by its name.
///
/// Dropping this has the device unregistered, on the app thread, soon; [`Registered::keep`] leaves
/// it to SPDK. When the runtime stops, SPDK takes down what is still registered, devices that lie
/// upon others first.
#[must_use = "dropping it unregisters the device"]
pub struct Registered(Option<Name>);

static_assertions::assert_impl_all!(Registered: Send, Sync);

/// What there is to know of the device.
struct Name {
    name: String,
    /// Null when the device is gone; to be looked at on the app thread alone, on which it goes.
    place: Arc<AtomicPtr<spdk_bdev>>,
    drain: Drain,
}

impl Registered {
    pub(super) fn new(name: &str, place: Arc<AtomicPtr<spdk_bdev>>, drain: Drain) -> Self {
        let name = name.to_owned();
        Self(Some(Name { name, place, drain }))
    }

    /// The name that the device was registered with.
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or("", |name| &name.name)
    }

    /// Unregisters the device. Those who have it open are told, and the device is
    /// [drained](super::BlockDevice::drain); when all have closed it, it is dropped. Resolves
    /// after that. It goes on if the future is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`](crate::ErrorKind::WrongThread) if not called on the app thread
    /// (the device is unregistered all the same, soon);
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) if SPDK is taking it down already.
    #[doc(alias = "spdk_bdev_unregister")]
    pub async fn unregister(mut self) -> Result<()> {
        const WHAT: &str = "unregister bdev";
        bdev::check_app_thread(WHAT, self.name())?;
        let Some(name) = self.0.take() else { return Ok(()) };
        match name.take_down() {
            Some(going) => Error::check(WHAT, name.name, going.await.0),
            None => Ok(()),
        }
    }

    /// Leaves the device registered until the runtime stops.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(name) = self.0.take() else { return };
        // Without an app thread SPDK is not running any more, and the device is gone.
        let Ok(app) = Thread::app() else { return };
        if app.is_current() {
            drop(name.take_down());
        } else {
            // If the app thread takes no more messages, SPDK takes the device down with the rest.
            let _ = app.send(move || drop(name.take_down()));
        }
    }
}

impl Name {
    /// Begins the end of the device, if it is still there. On the app thread. The operation runs
    /// on if it is dropped; the runtime waits for it before it stops.
    fn take_down(&self) -> Option<Op<i32, ()>> {
        let bdev = self.place.load(Ordering::Acquire);
        if bdev.is_null() {
            return None;
        }
        // At the runtime's end SPDK does the rest, from the top of what lies on each other.
        let then = if runtime::is_stopping() {
            nothing_more
        } else {
            unregister
        };
        Some(op::start((), op::discard, |(): &mut (), cb_arg| {
            // SAFETY: the bdev is also the io_device; it is there, and cannot go while channels
            // are iterated over (SPDK counts that). It calls back once, on this thread, when
            // each channel's thread was told.
            unsafe {
                spdk_sys::spdk_for_each_channel(bdev.cast(), Some(self.drain), cb_arg, Some(then));
            }
            Submitted::Pending
        }))
    }
}

/// Each channel was told.
unsafe extern "C" fn unregister(iter: *mut spdk_io_channel_iter, _status: c_int) {
    // SAFETY: the iteration of `take_down`, over; its io_device is the bdev, which is there: it
    // was registered when the iteration began, and an end that began meanwhile waits for it. SPDK
    // calls back once, be it before it returns (-EBUSY) or at the end of `destruct`.
    unsafe {
        let bdev = spdk_sys::spdk_io_channel_iter_get_io_device(iter).cast();
        let cb_arg = spdk_sys::spdk_io_channel_iter_get_ctx(iter);
        spdk_sys::spdk_bdev_unregister(bdev, Some(done), cb_arg);
    }
}

/// Each channel was told, which is all.
unsafe extern "C" fn nothing_more(iter: *mut spdk_io_channel_iter, _status: c_int) {
    // SAFETY: the iteration of `take_down`, over.
    unsafe { done(spdk_sys::spdk_io_channel_iter_get_ctx(iter), 0) };
}

unsafe extern "C" fn done(cb_arg: *mut c_void, rc: c_int) {
    // SAFETY: the cb_arg of the operation of `take_down`, given back once; types as there, which
    // are Send.
    guard::ffi((), || unsafe { op::complete::<i32, ()>(cb_arg, rc) });
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered").field("name", &self.name()).finish()
    }
}
