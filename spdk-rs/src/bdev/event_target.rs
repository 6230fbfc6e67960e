//! Where SPDK sends the events of an open device, and the way from there to its owner.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spdk_sys::{spdk_bdev, spdk_bdev_event_type};

use super::descriptor::Inner;
use crate::guard;
use crate::reactor::{Owner, ThreadHandle};

/// The argument of the event callback, in a place of its own: it can stay with a C descriptor that
/// nobody can close any more.
pub(super) struct EventTarget {
    /// For the owner alone.
    inner: RefCell<Weak<Inner>>,
    owner: ThreadHandle,
    /// A message to the owner is under way: data are to be moved.
    media_management: AtomicBool,
}

impl EventTarget {
    // Other threads touch what is theirs only.
    #[allow(clippy::arc_with_non_send_sync)]
    pub(super) fn new(owner: &Owner) -> Arc<Self> {
        Arc::new(Self {
            inner: RefCell::default(),
            owner: owner.handle().clone(),
            media_management: AtomicBool::new(false),
        })
    }

    pub(super) fn set(&self, inner: &Rc<Inner>) {
        self.inner.replace(Rc::downgrade(inner));
    }
}

/// SPDK calls this on the thread that opened the device, but for media management.
pub(super) unsafe extern "C" fn on_event(
    kind: spdk_bdev_event_type,
    _bdev: *mut spdk_bdev,
    ctx: *mut c_void,
) {
    guard::ffi((), || {
        let target = ctx.cast_const().cast::<EventTarget>();
        if kind == spdk_sys::SPDK_BDEV_EVENT_MEDIA_MANAGEMENT {
            // SAFETY: SPDK delivers events while the descriptor is open (this one under the lock
            // that closing takes), and its event target stays until it was closed.
            unsafe { on_media_management(target) };
            return;
        }
        // SAFETY: as above; this is the owner.
        let target = unsafe { &*target };
        // A waker may drop the last handle: hold it until this is done.
        let inner = target.inner.borrow().upgrade();
        let Some(inner) = inner else { return };
        match kind {
            // May come more than once: each close of another descriptor announces it again.
            spdk_sys::SPDK_BDEV_EVENT_REMOVE => inner.removed(),
            spdk_sys::SPDK_BDEV_EVENT_RESIZE => inner.resized(),
            _ => {}
        }
    });
}

/// On any thread, which holds the lock of the bdev: nothing of the owner's may be touched, and
/// nobody be woken who may want that lock.
///
/// # Safety
/// The target is there.
unsafe fn on_media_management(target: *const EventTarget) {
    /// Holds the target for a message. Only the owner may free it.
    struct Home(ManuallyDrop<Arc<EventTarget>>);
    // SAFETY: it is used and dropped on the owner alone, where the message runs.
    unsafe impl Send for Home {}
    impl Home {
        fn tell(self) {
            let target = ManuallyDrop::into_inner(self.0);
            target.media_management.store(false, Ordering::Release);
            let inner = target.inner.borrow().upgrade();
            if let Some(inner) = inner {
                inner.listeners().media_management();
            }
        }
    }
    // SAFETY: by contract; these members may be used on any thread.
    let (owner, flag) = unsafe { (&(*target).owner, &(*target).media_management) };
    // One message at a time is enough.
    if flag.swap(true, Ordering::AcqRel) {
        return;
    }
    // SAFETY: the target is in an Arc, whose owner holds it now.
    let home = unsafe {
        Arc::increment_strong_count(target);
        Home(ManuallyDrop::new(Arc::from_raw(target)))
    };
    // If the owner has exited, the target is leaked: what is in it belongs to that thread.
    let _ = owner.send(move || home.tell());
}
