//! The callback signatures that C APIs share, each as one `async` function.

use std::ffi::{c_int, c_void};

use super::{Submitted, complete, start};
use crate::guard;

/// `void (*)(void *cb_arg, int rc)`: most of SPDK.
pub type RcCallback = unsafe extern "C" fn(cb_arg: *mut c_void, rc: c_int);

/// `void (*)(void *cb_arg)`: nothing to say but "done".
pub type NotifyCallback = unsafe extern "C" fn(cb_arg: *mut c_void);

/// `void (*)(void *cb_arg, struct handle *, int rc)`: opens and creates.
pub type HandleCallback<H> = unsafe extern "C" fn(cb_arg: *mut c_void, handle: *mut H, rc: c_int);

/// The `late` function for results that need no care: drops result and keep.
pub fn discard<T, K>(_result: T, _keep: K) {}

/// A call that answers with an errno: yields what C said (0 or a negative errno), and the keep.
///
/// ```no_run
/// # use std::ffi::{c_int, c_void};
/// # use spdk_rs::{Error, Result, op::{self, Submitted}};
/// # struct Thing;
/// # unsafe extern "C" { fn thing_start(thing: *mut Thing, cb_fn: Option<op::RcCallback>, cb_arg: *mut c_void) -> c_int; }
/// async fn start(thing: *mut Thing, name: &str) -> Result<()> {
///     let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
///         // SAFETY: thing_start calls back once with cb_arg if it returns 0, and else never.
///         Submitted::from_rc(unsafe { thing_start(thing, Some(cb_fn), cb_arg) })
///     })
///     .await;
///     Error::check("start", name, rc)
/// }
/// ```
pub async fn unary<K, S>(keep: K, submit: S) -> (i32, K)
where
    K: 'static,
    S: FnOnce(&mut K, RcCallback, *mut c_void) -> Submitted<i32>,
{
    unsafe extern "C" fn done<K>(cb_arg: *mut c_void, rc: c_int) {
        // SAFETY: C passes on the cb_arg of the `start` below, once; types as there.
        guard::ffi((), || unsafe { complete::<i32, K>(cb_arg, rc) });
    }
    start(keep, discard, |keep: &mut K, cb_arg| {
        submit(keep, done::<K>, cb_arg)
    })
    .await
}

/// A call that only says when it is done. [`Submitted::Failed`] carries the errno of a refused
/// submit, so this yields 0 or that.
pub async fn notify<K, S>(keep: K, submit: S) -> (i32, K)
where
    K: 'static,
    S: FnOnce(&mut K, NotifyCallback, *mut c_void) -> Submitted<i32>,
{
    unsafe extern "C" fn done<K>(cb_arg: *mut c_void) {
        // SAFETY: C passes on the cb_arg of the `start` below, once; types as there.
        guard::ffi((), || unsafe { complete::<i32, K>(cb_arg, 0) });
    }
    start(keep, discard, |keep: &mut K, cb_arg| {
        submit(keep, done::<K>, cb_arg)
    })
    .await
}

/// A call that answers with a handle and an errno. If the future is dropped first, `late` gets
/// what C brings, and gives a handle that was opened in vain back to C.
///
/// The handle means nothing (and may be null or dangling) when the errno is not 0.
pub async fn with_handle<H, K, S>(keep: K, late: fn((*mut H, i32), K), submit: S) -> ((*mut H, i32), K)
where
    H: 'static,
    K: 'static,
    S: FnOnce(&mut K, HandleCallback<H>, *mut c_void) -> Submitted<i32>,
{
    unsafe extern "C" fn done<H, K>(cb_arg: *mut c_void, handle: *mut H, rc: c_int) {
        // SAFETY: C passes on the cb_arg of the `start` below, once; types as there.
        guard::ffi((), || unsafe {
            complete::<(*mut H, i32), K>(cb_arg, (handle, rc));
        });
    }
    start(keep, late, |keep: &mut K, cb_arg| {
        match submit(keep, done::<H, K>, cb_arg) {
            Submitted::Pending => Submitted::Pending,
            Submitted::Failed(rc) => Submitted::Failed((std::ptr::null_mut(), rc)),
        }
    })
    .await
}
