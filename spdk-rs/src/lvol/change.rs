//! Changing volumes: name, size, and whether they can be written.

use std::ffi::c_void;

use spdk_sys::spdk_lvol;

use super::store::c_name;
use super::volume::{explain_busy, open_lvol};
use super::{Lvol, on_metadata_thread};
use crate::op::{self, RcCallback, Submitted};
use crate::{Error, ErrorKind, Result};

impl Lvol {
    /// Gives the volume, and the alias of its bdev, another name. Answers with the identity under
    /// the new name; its UUID and what is in it stay.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists): the name is taken, or is being given to another
    /// volume;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument): it is empty or 64 bytes and longer;
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied): the volume is read-only (a snapshot
    /// that has clones can be renamed all the same); [`NotFound`](crate::ErrorKind::NotFound): it is gone.
    #[doc(alias = "vbdev_lvol_rename")]
    pub async fn rename(&self, name: &str) -> Result<Self> {
        const WHAT: &str = "rename lvol";
        let c_name = c_name(WHAT, name)?;
        // C would find the alias of its own bdev in the way.
        if self.info().await?.name != name {
            // SAFETY: see `change`; the name is copied.
            self.change(WHAT, c_name, |lvol, name, cb_fn, cb_arg| unsafe {
                spdk_sys::vbdev_lvol_rename(lvol, name.as_ptr(), Some(cb_fn), cb_arg);
            })
            .await?;
        }
        Ok(Self::identity(self.store().clone(), self.uuid(), name.to_owned()))
    }

    /// Makes the volume `size` bytes large, rounded up to whole clusters. What is cut off is lost;
    /// what is added reads as zeroes in a thin volume, and is undefined in a thick one.
    ///
    /// # Errors
    /// [`Busy`](crate::ErrorKind::Busy): another operation on the volume is running, or it is to
    /// shrink and is open; nothing has changed then;
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied): it is read-only;
    /// [`NoSpace`](crate::ErrorKind::NoSpace): a thick one does not fit;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument): a clone would be smaller than the
    /// snapshot beneath it.
    #[doc(alias = "vbdev_lvol_resize")]
    pub async fn resize(&self, size: u64) -> Result<()> {
        // SAFETY: see `change`.
        self.change("resize lvol", size, |lvol, size, cb_fn, cb_arg| unsafe {
            spdk_sys::vbdev_lvol_resize(lvol, *size, Some(cb_fn), cb_arg);
        })
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidArgument => {
                error.with_detail("a clone can not be made smaller than the snapshot beneath it")
            }
            _ => error,
        })
    }

    /// Makes the volume read-only, for ever: it can be cloned then.
    ///
    /// # Errors
    /// [`Busy`](crate::ErrorKind::Busy): another operation on the volume is running;
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone;
    /// [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "vbdev_lvol_set_read_only")]
    pub async fn set_read_only(&self) -> Result<()> {
        // SAFETY: see `change`.
        self.change("set lvol read-only", (), |lvol, (), cb_fn, cb_arg| unsafe {
            spdk_sys::vbdev_lvol_set_read_only(lvol, Some(cb_fn), cb_arg);
        })
        .await
    }

    /// Calls `start` with C's lvol, which is open, on the metadata thread. It must call the
    /// callback back exactly once, whatever happens; `keep` lives until then.
    async fn change<K, S>(&self, what: &'static str, keep: K, start: S) -> Result<()>
    where
        K: Send + 'static,
        S: FnOnce(*mut spdk_lvol, &mut K, RcCallback, *mut c_void) + Send + 'static,
    {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            let raw = open_lvol(what, &lvol)?;
            let (rc, _keep) = op::unary(keep, |keep, cb_fn, cb_arg| {
                start(raw.as_ptr(), keep, cb_fn, cb_arg);
                Submitted::Pending
            })
            .await;
            Error::check(what, lvol.to_string(), rc).map_err(|error| explain_busy(error, &lvol))
        })
        .await
    }
}
