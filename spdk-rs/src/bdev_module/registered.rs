//! The right to unregister a device, and what becomes of devices at the runtime's end.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spdk_sys::{spdk_bdev, spdk_io_channel_iter};

use crate::op::{self, Op, Submitted};
use crate::reactor::Thread;
use crate::{Error, Result, bdev, guard, runtime};

/// All devices that there are, for the runtime's end.
static DEVICES: Mutex<Vec<Device>> = Mutex::new(Vec::new());

type Drain = unsafe extern "C" fn(iter: *mut spdk_io_channel_iter);
type Then = unsafe extern "C" fn(iter: *mut spdk_io_channel_iter, status: c_int);

/// A device that is registered: SPDK's users find it by its name.
///
/// Dropping this has the device unregistered, on the app thread, soon; [`Registered::keep`] leaves
/// it to SPDK. When the runtime stops, SPDK takes down what is still registered, devices that lie
/// upon others first.
#[must_use = "dropping it unregisters the device"]
pub struct Registered(Option<Device>);

static_assertions::assert_impl_all!(Registered: Send, Sync);

/// Where a device is. For the app thread, on which it goes.
pub(super) struct Place {
    /// Null when the device is gone.
    bdev: AtomicPtr<spdk_bdev>,
    /// Its channels are being told something: it stays until they have been.
    tellings: AtomicUsize,
}

impl Place {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            bdev: AtomicPtr::new(std::ptr::null_mut()),
            tellings: AtomicUsize::new(0),
        })
    }

    pub(super) fn set(&self, bdev: *mut spdk_bdev) {
        self.bdev.store(bdev, Ordering::Release);
    }

    fn get(&self) -> *mut spdk_bdev {
        self.bdev.load(Ordering::Acquire)
    }

    /// Whether the device has to stay yet.
    pub(super) fn is_needed(&self) -> bool {
        self.tellings.load(Ordering::Acquire) > 0
    }
}

/// Names a device.
#[derive(Clone)]
struct Device {
    name: String,
    place: Arc<Place>,
    drain: Drain,
}

impl Registered {
    pub(super) fn new(name: &str, place: Arc<Place>, drain: Drain) -> Self {
        let name = name.to_owned();
        let device = Device { name, place, drain };
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|device| !device.place.get().is_null());
        devices.push(device.clone());
        Self(Some(device))
    }

    /// The name that the device was registered with.
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or("", |device| &device.name)
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
        let Some(device) = self.0.take() else {
            return Ok(());
        };
        match device.tell(unregister) {
            Some(going) => Error::check(WHAT, device.name, going.await.0),
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
        let Some(device) = self.0.take() else { return };
        // Without an app thread SPDK is not running any more, and the device is gone.
        let Ok(app) = Thread::app() else { return };
        if runtime::is_stopping() {
            // SPDK will take it down, after what lies upon it.
        } else if app.is_current() {
            drop(device.tell(unregister));
        } else {
            let _ = app.send(move || drop(device.tell(unregister)));
        }
    }
}

/// Has all devices let go of I/O that they hold back: the runtime stops, and waits for it. On the
/// app thread.
pub(crate) fn drain_all() {
    let devices = std::mem::take(&mut *DEVICES.lock().unwrap_or_else(PoisonError::into_inner));
    for device in devices {
        drop(device.tell(nothing_more));
    }
}

impl Device {
    /// Tells each channel of the device, if it is still there, that it is to be drained; `then`
    /// comes after that, and completes the operation. On the app thread. The operation goes on if
    /// it is dropped; the runtime waits for it before it stops.
    fn tell(&self, then: Then) -> Option<Op<i32, Arc<Place>>> {
        let bdev = self.place.get();
        if bdev.is_null() {
            return None;
        }
        self.place.tellings.fetch_add(1, Ordering::AcqRel);
        let place = Arc::clone(&self.place);
        Some(op::start(place, op::discard, |_: &mut Arc<Place>, cb_arg| {
            // SAFETY: the bdev is also the io_device. It is there until `then` has been called:
            // once, on this thread, when each channel's thread was told.
            unsafe {
                spdk_sys::spdk_for_each_channel(bdev.cast(), Some(self.drain), cb_arg, Some(then));
            }
            Submitted::Pending
        }))
    }
}

/// Each channel was told.
unsafe extern "C" fn unregister(iter: *mut spdk_io_channel_iter, _status: c_int) {
    // SAFETY: the iteration of `tell`, over; its io_device is the bdev, which is there until it is
    // told that nobody needs it. SPDK calls back once, be it before it returns (-EBUSY) or at the
    // end of `destruct`.
    unsafe {
        let bdev = spdk_sys::spdk_io_channel_iter_get_io_device(iter).cast();
        let cb_arg = told(iter);
        spdk_sys::spdk_bdev_unregister(bdev, Some(done), cb_arg);
    }
}

/// Each channel was told, which is all.
unsafe extern "C" fn nothing_more(iter: *mut spdk_io_channel_iter, _status: c_int) {
    // SAFETY: the iteration of `tell`, over.
    unsafe { done(told(iter), 0) };
}

/// # Safety
/// The iteration of `tell`, over; on the app thread, once.
unsafe fn told(iter: *mut spdk_io_channel_iter) -> *mut c_void {
    // SAFETY: the operation of `tell`, which has not completed; types as there.
    unsafe {
        let cb_arg = spdk_sys::spdk_io_channel_iter_get_ctx(iter);
        let place = op::keep::<i32, Arc<Place>>(cb_arg);
        place.tellings.fetch_sub(1, Ordering::AcqRel);
        cb_arg
    }
}

unsafe extern "C" fn done(cb_arg: *mut c_void, rc: c_int) {
    // SAFETY: the cb_arg of the operation of `tell`, given back once; types as there, which
    // are Send.
    guard::ffi((), || unsafe { op::complete::<i32, Arc<Place>>(cb_arg, rc) });
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered").field("name", &self.name()).finish()
    }
}
