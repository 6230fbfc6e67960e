//! What attaching a controller is, whatever it is attached by.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use spdk_sys::{spdk_nvme_host_id, spdk_nvme_transport_id};

use crate::bdev::text;
use crate::op::{self, Submitted};
use crate::{Error, Result, guard, reactor};

/// How many block devices one controller may bring.
const MAX_NAMES: usize = 1024;

/// Everything that SPDK uses until the controller is attached.
pub(super) struct Keep {
    id: spdk_nvme_transport_id,
    host: spdk_nvme_host_id,
    name: CString,
    hostnqn: Option<CString>,
    /// SPDK writes pointers to names here; good in the callback only.
    names: Box<[*const c_char; MAX_NAMES]>,
}

/// The names of the block devices, or a negative errno.
type Attached = std::result::Result<Vec<String>, i32>;

impl Keep {
    pub(super) fn new(id: spdk_nvme_transport_id, name: CString, hostnqn: Option<CString>) -> Self {
        Self {
            id,
            // SAFETY: a plain C struct of texts; zero means none.
            host: unsafe { std::mem::zeroed() },
            name,
            hostnqn,
            names: Box::new([std::ptr::null(); MAX_NAMES]),
        }
    }
}

/// Attaches a controller: the names of its block devices. On the app thread.
///
/// If the future is dropped and the controller arrives later, it is detached again.
pub(super) async fn create(
    what: &'static str,
    device: String,
    keep: Keep,
    limit: Duration,
) -> Result<Vec<String>> {
    let attached = async {
        op::start(keep, late, |keep: &mut Keep, cb_arg| {
            let hostnqn = keep.hostnqn.as_ref().map_or(std::ptr::null(), |nqn| nqn.as_ptr());
            // SAFETY: on the app thread. All pointers lead into the keep, which stays until the
            // callback; that comes once if this returns 0, and else never.
            let rc = unsafe {
                spdk_sys::bdev_nvme_create(
                    &mut keep.id,
                    &mut keep.host,
                    keep.name.as_ptr(),
                    keep.names.as_mut_ptr(),
                    MAX_NAMES as u32,
                    hostnqn,
                    0,
                    Some(on_attached),
                    cb_arg,
                )
            };
            match rc {
                0 => Submitted::Pending,
                rc => Submitted::Failed(Err(rc)),
            }
        })
        .await
    };
    let (attached, _) = reactor::timeout(limit, attached)
        .await
        .map_err(|error| annotate(error, what, &device))?;
    attached.map_err(|rc| Error::from_errno(what, device, rc))
}

/// Says where a general error happened.
pub(super) fn annotate(error: Error, what: &'static str, device: &str) -> Error {
    let detail = error.detail().unwrap_or_default().to_owned();
    Error::new(error.kind(), what, device, detail)
}

unsafe extern "C" fn on_attached(cb_arg: *mut c_void, count: usize, rc: c_int) {
    guard::ffi((), || {
        // SAFETY: cb_arg is that of `attach`'s operation, called back once, on its thread. SPDK
        // has filled `count` entries with names that live until the app thread does something
        // else; they are copied here. The reference to the keep ends before `complete`.
        unsafe {
            let attached = if rc == 0 {
                let keep = op::keep::<Attached, Keep>(cb_arg);
                Ok(keep.names.iter().take(count).map(|name| text(*name)).collect())
            } else {
                Err(rc)
            };
            op::complete::<Attached, Keep>(cb_arg, attached);
        }
    });
}

/// A controller that nobody waits for any more.
fn late(attached: Attached, keep: Keep) {
    if attached.is_ok() {
        // SAFETY: on the app thread (SPDK calls back there, and the future is dropped there).
        unsafe { spdk_sys::bdev_nvme_delete(keep.name.as_ptr()) };
    }
}
