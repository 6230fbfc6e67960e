//! Functions that a reactor calls again and again.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int, c_void};
use std::rc::Rc;
use std::time::Duration;

use spdk_sys::spdk_poller;

use super::Owner;
use crate::executor::user_code;
use crate::{Error, ErrorKind, Result, guard};

struct Inner {
    body: RefCell<Box<dyn FnMut() -> bool>>,
    name: String,
    owner: Owner,
    raw: Cell<*mut spdk_poller>,
    panicked: Cell<bool>,
}

/// A function that the current spdk_thread calls in every turn of its reactor, or at intervals,
/// until this is dropped.
///
/// It may be dropped inside its own function. A panic in the function ends the runtime: see
/// [`Runtime::run`](crate::Runtime::run).
#[doc(alias = "spdk_poller_register")]
#[must_use = "the poller stops when this is dropped"]
pub struct Poller(Rc<Inner>);

static_assertions::assert_not_impl_any!(Poller: Send, Sync);

impl Poller {
    /// Calls `body` in every turn (`period` zero) or every `period` (of whole microseconds, at
    /// least one). `body` returns whether it found anything to do, which SPDK counts.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`] outside of SPDK's threads; [`ErrorKind::InvalidArgument`] if
    /// the name contains a NUL; [`ErrorKind::NoMemory`].
    pub fn register(name: &str, period: Duration, body: impl FnMut() -> bool + 'static) -> Result<Self> {
        const WHAT: &str = "register poller";
        let owner = Owner::current(WHAT, name)?;
        let c_name = CString::new(name)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, WHAT, name, "contains a NUL"))?;
        let micros = match u64::try_from(period.as_micros()) {
            Ok(0) if !period.is_zero() => 1,
            Ok(micros) => micros,
            Err(_) => u64::MAX / 1_000_000, // some 500,000 years, for which SPDK has ticks
        };
        let inner = Rc::new(Inner {
            body: RefCell::new(Box::new(body)),
            name: name.to_owned(),
            owner,
            raw: Cell::new(std::ptr::null_mut()),
            panicked: Cell::new(false),
        });
        let arg = Rc::as_ptr(&inner).cast_mut().cast::<c_void>();
        // SAFETY: this runs on an spdk_thread (checked by Owner). The argument lives until the
        // poller is unregistered, in Drop. The name is copied.
        let raw = unsafe { spdk_sys::spdk_poller_register_named(Some(call), arg, micros, c_name.as_ptr()) };
        let raw = Error::check_ptr(WHAT, name, raw, libc::ENOMEM)?;
        inner.raw.set(raw.as_ptr());
        Ok(Self(inner))
    }

    /// Stops the calls until [`Poller::resume`].
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_poller_pause")]
    pub fn pause(&self) -> Result<()> {
        self.0.owner.check("pause poller", &self.0.name)?;
        // SAFETY: the poller is registered until Drop, and this is its thread.
        unsafe { spdk_sys::spdk_poller_pause(self.0.raw.get()) };
        Ok(())
    }

    /// Resumes the calls.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_poller_resume")]
    pub fn resume(&self) -> Result<()> {
        self.0.owner.check("resume poller", &self.0.name)?;
        // SAFETY: the poller is registered until Drop, and this is its thread.
        unsafe { spdk_sys::spdk_poller_resume(self.0.raw.get()) };
        Ok(())
    }
}

unsafe extern "C" fn call(arg: *mut c_void) -> c_int {
    guard::ffi(0, || {
        let arg = arg.cast_const().cast::<Inner>();
        // SAFETY: the pointer comes from Rc::as_ptr and the poller holds the Rc while it is
        // registered. The function may drop the poller: hold the Rc until it has returned.
        let inner = unsafe {
            Rc::increment_strong_count(arg);
            Rc::from_raw(arg)
        };
        if inner.panicked.replace(true) {
            return 0; // it panicked before; the runtime is on its way down
        }
        let busy = user_code(|| (inner.body.borrow_mut())());
        inner.panicked.set(false);
        c_int::from(busy)
    })
}

impl Drop for Poller {
    fn drop(&mut self) {
        let inner = Rc::clone(&self.0);
        self.0.owner.run(move || {
            let mut raw = inner.raw.replace(std::ptr::null_mut());
            // A poller that has paused itself and is then unregistered, still inside of its function,
            // SPDK would take off a list that it is not on: it has to be back on its own before.
            // SAFETY: this is the thread that registered the poller; SPDK allows a poller to resume
            // and unregister itself, and calls it never again. `inner` lives until here.
            unsafe {
                spdk_sys::spdk_poller_resume(raw);
                spdk_sys::spdk_poller_unregister(&mut raw);
            }
        });
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").field("name", &self.0.name).finish()
    }
}
