//! A volume's blob, held: with a reference of our own, and locked.
//!
//! Who holds it keeps snapshot, clone, inflate, resize, destroy, and whoever else would hold it,
//! away; they are told by which operation it is held. I/O goes on.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;

use spdk_sys::{spdk_blob, spdk_blob_store};

use super::Lvol;
use super::volume::{explain_busy, open_lvol};
use crate::op::{self, Submitted};
use crate::{Error, Result, guard};

/// Given back when this is dropped, also with the task, when the runtime stops: reads that are in
/// flight then have the volume's own reference beneath them until they have ended.
pub(super) struct HeldBlob {
    locked: bool,
    bs: *mut spdk_blob_store,
    blob: NonNull<spdk_blob>,
    device: String,
}

impl HeldBlob {
    /// Opens and locks the blob, for `operation`. On the metadata thread only.
    ///
    /// # Errors
    /// `EBUSY`: somebody holds it.
    pub(super) async fn open(what: &'static str, lvol: &Lvol, operation: &'static CStr) -> Result<Self> {
        let device = lvol.to_string();
        let raw = open_lvol(what, lvol)?;
        // SAFETY: the lvol was found in this very step.
        let (bs, id) = unsafe {
            (
                spdk_sys::shim_lvol_blobstore(raw.as_ptr()),
                spdk_sys::shim_lvol_blob_id(raw.as_ptr()),
            )
        };
        let ((blob, rc), ()) = op::with_handle((), put_late, |(), cb_fn, cb_arg| {
            // SAFETY: the store is loaded (its lvol was found), on its metadata thread. The
            // function calls back exactly once.
            unsafe { spdk_sys::spdk_bs_open_blob(bs, id, Some(cb_fn), cb_arg) };
            Submitted::Pending
        })
        .await;
        Error::check(what, &device, rc).map_err(|error| explain_busy(error, lvol))?;
        let blob = Error::check_ptr(what, &device, blob, libc::ENODEV)?;
        let mut held = Self {
            locked: false,
            bs,
            blob,
            device,
        };
        held.lock(what, lvol, operation)?;
        Ok(held)
    }

    fn lock(&mut self, what: &'static str, lvol: &Lvol, operation: &'static CStr) -> Result<()> {
        // SAFETY: the blob is open, this is its metadata thread; the name is static.
        let rc = unsafe { spdk_sys::shim_blob_lock(self.blob.as_ptr(), operation.as_ptr()) };
        self.locked = rc == 0;
        match -rc {
            libc::ENOTSUP => Err(Error::from_errno(what, &self.device, rc)
                .with_detail("needs an SPDK with this project's patches")),
            _ => Error::check(what, &self.device, rc).map_err(|error| explain_busy(error, lvol)),
        }
    }

    pub(super) fn raw(&self) -> NonNull<spdk_blob> {
        self.blob
    }

    /// C's blobstore.
    pub(super) fn store(&self) -> *mut spdk_blob_store {
        self.bs
    }

    pub(super) fn num_clusters(&self) -> u64 {
        // SAFETY: the blob is open.
        unsafe { spdk_sys::spdk_blob_get_num_clusters(self.blob.as_ptr()) }
    }

    /// In bytes.
    pub(super) fn cluster_size(&self) -> u64 {
        // SAFETY: the open blob keeps its store loaded.
        unsafe { spdk_sys::spdk_bs_get_cluster_size(self.bs) }
    }

    /// In bytes: what offsets and lengths of I/O to the blob count.
    pub(super) fn io_unit(&self) -> u64 {
        // SAFETY: the open blob keeps its store loaded.
        unsafe { spdk_sys::spdk_bs_get_io_unit_size(self.bs) }
    }

    /// Sets an xattr of the blob (`None` removes it), on disk too, and lets the blob go. It is held
    /// until C is done, also if the future is dropped.
    pub(super) async fn write_xattr(
        self,
        what: &'static str,
        name: CString,
        value: Option<Vec<u8>>,
    ) -> Result<()> {
        let device = self.device.clone();
        let (rc, _held) = op::unary((self, name, value), |(held, name, value), cb_fn, cb_arg| {
            let (bytes, len) = match value {
                Some(value) => (value.as_ptr().cast(), value.len() as u16),
                None => (std::ptr::null(), 0),
            };
            // SAFETY: the blob is open and locked by us, this is its metadata thread; name and
            // value are copied. Exactly one callback.
            unsafe {
                spdk_sys::shim_blob_write_xattr(
                    held.blob.as_ptr(),
                    name.as_ptr(),
                    bytes,
                    len,
                    Some(cb_fn),
                    cb_arg,
                );
            }
            Submitted::Pending
        })
        .await;
        Error::check(what, device, rc)
    }
}

impl Drop for HeldBlob {
    fn drop(&mut self) {
        if self.locked {
            // SAFETY: the blob is open, and locked by us.
            unsafe { spdk_sys::shim_blob_unlock(self.blob.as_ptr()) }
        }
        put(self.blob.as_ptr());
    }
}

/// Gives a reference back; nobody waits for it, but the runtime does before it stops SPDK.
fn put(blob: *mut spdk_blob) {
    unsafe extern "C" fn done(cb_arg: *mut c_void, rc: c_int) {
        // SAFETY: C passes on the cb_arg of `start` below, once; the types are those.
        guard::ffi((), || unsafe { op::complete::<c_int, ()>(cb_arg, rc) });
    }
    drop(op::start((), op::discard::<c_int, ()>, |_: &mut (), cb_arg| {
        // SAFETY: the blob is open by us, this is its metadata thread. Exactly one callback.
        unsafe { spdk_sys::shim_blob_put(blob, Some(done), cb_arg) };
        Submitted::Pending
    }));
}

/// Gives back what was opened for somebody who has gone.
fn put_late((blob, rc): (*mut spdk_blob, c_int), (): ()) {
    if rc == 0 && !blob.is_null() {
        put(blob);
    }
}
