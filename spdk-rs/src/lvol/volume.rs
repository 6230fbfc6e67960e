//! Logical volumes.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use spdk_sys::spdk_lvol;
use uuid::Uuid;

use super::store::c_name;
use super::{LvolStore, checksum, lookup, on_metadata_thread};
use crate::bdev::{Bdev, Descriptor, Mode};
use crate::op::{self, Submitted};
use crate::{Error, Result};

/// When a volume gets its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// Each when it is first written; reads as zeroes before.
    Thin,
    /// All at once, when the volume is made.
    Thick,
}

/// What a volume is, at the moment of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LvolInfo {
    /// Its name in the store.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Name of its bdev. `None` if it has none: it could not be made, or is being removed.
    pub bdev: Option<String>,
    /// In bytes. 0 if there is no bdev.
    pub size: u64,
    /// Thin provisioned.
    pub thin: bool,
    /// Was taken as a snapshot; or has clones, or has had some since the store was loaded: SPDK v20.07 itself
    /// knows a snapshot by them alone, so that one of its own is none after a load without.
    pub snapshot: bool,
    /// Lies on a snapshot.
    pub clone: bool,
    /// Can not be written.
    pub read_only: bool,
    /// Name of the snapshot beneath.
    pub parent: Option<String>,
    /// Names of the clones.
    pub clones: Vec<String>,
}

/// The identity of a logical volume; see the [module's documentation](super).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lvol {
    store: LvolStore,
    uuid: Uuid,
    name: String,
}

static_assertions::assert_impl_all!(Lvol: Send, Sync);

impl Lvol {
    pub(super) fn identity(store: LvolStore, uuid: Uuid, name: String) -> Self {
        Self { store, uuid, name }
    }

    /// Finds a volume by `lvstore/lvol` or by UUID.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound).
    pub async fn find(key: &str) -> Result<Self> {
        let key = key.to_owned();
        on_metadata_thread(move || async move { lookup::find_lvol_by_key("find lvol", &key) }).await
    }

    /// Its store.
    pub fn store(&self) -> &LvolStore {
        &self.store
    }

    /// Its UUID, which is also the name of its bdev.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The name that it had when it was looked up.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is now.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): it is gone.
    pub async fn info(&self) -> Result<LvolInfo> {
        let lvol = self.clone();
        on_metadata_thread(
            move || async move { Ok(lookup::lvol_info(lookup::find_lvol("read lvol", &lvol)?)) },
        )
        .await
    }

    /// The clusters that are its own, by their index in the volume, ascending. What is not among
    /// them lies in a snapshot beneath, or reads as zeroes.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): it is gone, or has no bdev.
    pub async fn allocated_clusters(&self) -> Result<Vec<u64>> {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            let raw = open_lvol("read lvol", &lvol)?;
            // SAFETY: the lvol was found in this very step, on the metadata thread, and its blob
            // is open.
            unsafe {
                let blob = spdk_sys::shim_lvol_blob(raw.as_ptr());
                let clusters = 0..spdk_sys::spdk_blob_get_num_clusters(blob);
                let own = |cluster: &u64| spdk_sys::shim_blob_cluster_is_allocated(blob, *cluster);
                Ok(clusters.filter(own).collect())
            }
        })
        .await
    }

    /// The volume's block device, as it is now: to open it on the app thread, and for its
    /// [statistics](Bdev::stats).
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone, or has no bdev.
    pub async fn bdev(&self) -> Result<Bdev> {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            open_lvol("find bdev of lvol", &lvol)?;
            Bdev::find(&lvol.uuid.to_string())
        })
        .await
    }

    /// Opens the volume's block device for the current spdk_thread.
    ///
    /// # Errors
    /// As [`Bdev::open`]; [`NotFound`](crate::ErrorKind::NotFound): the volume is gone, or has no
    /// bdev.
    #[doc(alias = "spdk_bdev_open_ext")]
    pub fn open(&self, mode: Mode) -> Result<Descriptor> {
        Descriptor::open(&self.uuid.to_string(), mode)
    }

    /// Takes a snapshot: it gets the data that the volume has now, the volume becomes its clone.
    ///
    /// # Errors
    /// [`Busy`](crate::ErrorKind::Busy): another operation on the volume is running;
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists): the name is taken;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument): the volume is read-only.
    #[doc(alias = "vbdev_lvol_create_snapshot")]
    pub async fn snapshot(&self, name: &str) -> Result<Self> {
        self.derive("create snapshot", name, spdk_sys::vbdev_lvol_create_snapshot)
            .await
    }

    /// Makes a clone of this volume, which must be read-only (a snapshot is).
    ///
    /// # Errors
    /// As [`Lvol::snapshot`]; [`InvalidArgument`](crate::ErrorKind::InvalidArgument): it is not
    /// read-only.
    #[doc(alias = "vbdev_lvol_create_clone")]
    pub async fn clone_to(&self, name: &str) -> Result<Self> {
        self.derive("create clone", name, spdk_sys::vbdev_lvol_create_clone)
            .await
    }

    async fn derive(&self, what: &'static str, name: &str, make: DeriveFn) -> Result<Self> {
        let (from, name) = (self.clone(), name.to_owned());
        on_metadata_thread(move || async move {
            let c_name = c_name(what, &name)?;
            let device = format!("{}/{name} of {from}", from.store.name());
            let origin = open_lvol(what, &from)?;
            let ((_made, rc), _name) = op::with_handle(c_name, op::discard, |c_name, cb_fn, cb_arg| {
                // SAFETY: the lvol was found in this very step, on the metadata thread, and
                // is open. The function calls back exactly once, and copies the name.
                unsafe { make(origin.as_ptr(), c_name.as_ptr(), Some(cb_fn), cb_arg) };
                Submitted::Pending
            })
            .await;
            Error::check(what, device, rc).map_err(|error| explain_busy(error, &from))?;
            from.store.lvol(&name).await
        })
        .await
    }

    /// Allocates all clusters and copies into them what lies in snapshots beneath: the volume
    /// depends on none afterwards.
    ///
    /// # Errors
    /// [`Busy`](crate::ErrorKind::Busy): another operation on the volume is running;
    /// [`NoSpace`](crate::ErrorKind::NoSpace).
    #[doc(alias = "spdk_lvol_inflate")]
    pub async fn inflate(&self) -> Result<()> {
        self.copy_up("inflate", spdk_sys::spdk_lvol_inflate).await
    }

    /// Copies what lies in the snapshot directly beneath, and depends on it no more. The volume
    /// stays thin.
    ///
    /// # Errors
    /// As [`Lvol::inflate`]; [`InvalidArgument`](crate::ErrorKind::InvalidArgument): there is no
    /// snapshot beneath.
    #[doc(alias = "spdk_lvol_decouple_parent")]
    pub async fn decouple_parent(&self) -> Result<()> {
        self.copy_up("decouple", spdk_sys::spdk_lvol_decouple_parent)
            .await
    }

    async fn copy_up(&self, what: &'static str, copy: CopyUpFn) -> Result<()> {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            let raw = open_lvol(what, &lvol)?;
            let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
                // SAFETY: the lvol was found in this very step, on the metadata thread, and is
                // open. The function calls back exactly once.
                unsafe { copy(raw.as_ptr(), Some(cb_fn), cb_arg) };
                Submitted::Pending
            })
            .await;
            Error::check(what, lvol.to_string(), rc).map_err(|error| explain_busy(error, &lvol))
        })
        .await
    }

    /// Computes the checksum of a snapshot and stores it with it.
    ///
    /// It is the CRC-64/GO-ISO over the clusters that are allocated in this volume itself,
    /// ascending, each whole: the sum that Longhorn stores, so that sums compare. Meanwhile the
    /// volume is locked: snapshot, clone, inflate, resize and destroy are refused as busy; I/O
    /// goes on. Dropping the future stops the job.
    ///
    /// # Errors
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied): not a snapshot;
    /// [`Busy`](crate::ErrorKind::Busy): another operation on it is running;
    /// [`Canceled`](crate::ErrorKind::Canceled), errno `EINTR`: it was stopped by
    /// [`stop_checksum`](super::stop_checksum); [`Io`](crate::ErrorKind::Io).
    pub async fn checksum(&self) -> Result<u64> {
        let lvol = self.clone();
        on_metadata_thread(move || async move { checksum::run(lvol, None).await }).await
    }

    /// Computes the checksum of some of a snapshot's clusters: as [`checksum`](Self::checksum), over
    /// those that are allocated in this volume itself and whose index in it is in `clusters`. It is
    /// not stored. Of no cluster at all it is 0.
    ///
    /// # Errors
    /// As [`checksum`](Self::checksum), and [`OutOfRange`](crate::ErrorKind::OutOfRange): `clusters`
    /// ends beyond the volume.
    pub async fn checksum_range(&self, clusters: Range<u64>) -> Result<u64> {
        let lvol = self.clone();
        on_metadata_thread(move || async move { checksum::run(lvol, Some(clusters)).await }).await
    }

    /// The checksum stored with the volume; `None` if there is none.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone.
    pub async fn stored_checksum(&self) -> Result<Option<u64>> {
        let lvol = self.clone();
        on_metadata_thread(move || async move { checksum::stored(&lvol) }).await
    }
}

impl Lvol {
    /// The operation that keeps others away. On the metadata thread only.
    pub(super) fn operation(&self) -> Option<String> {
        let raw = lookup::find_lvol("read lvol", self).ok()?;
        // SAFETY: the lvol is listed; the operation's name is null or a static C string.
        unsafe { lookup::text_of(spdk_sys::shim_lvol_operation(raw.as_ptr())) }
    }
}

type DeriveFn = unsafe extern "C" fn(
    *mut spdk_lvol,
    *const std::ffi::c_char,
    spdk_sys::spdk_lvol_op_with_handle_complete,
    *mut c_void,
);

type CopyUpFn = unsafe extern "C" fn(*mut spdk_lvol, spdk_sys::spdk_lvol_op_complete, *mut c_void);

/// `lvstore/lvol`, which is also the alias of its bdev.
impl fmt::Display for Lvol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.name)
    }
}

/// An operation on a volume that was refused as busy says by which other one it is held. On the
/// metadata thread only.
pub(super) fn explain_busy(error: Error, lvol: &Lvol) -> Error {
    match lvol.operation() {
        Some(operation) if error.errno() == libc::EBUSY => {
            error.with_detail(format!("{operation} in progress on {}", lvol.name))
        }
        _ => error,
    }
}

/// C's lvol, with its blob open: what operations need. On the metadata thread only.
pub(super) fn open_lvol(what: &'static str, lvol: &Lvol) -> Result<NonNull<spdk_lvol>> {
    let raw = lookup::find_lvol(what, lvol)?;
    // SAFETY: the lvol is listed.
    let blob = unsafe { spdk_sys::shim_lvol_blob(raw.as_ptr()) };
    Error::check_ptr(what, lvol.to_string(), blob, libc::ENODEV)
        .map_err(|error| error.with_detail("the volume has no bdev: it is being removed"))?;
    Ok(raw)
}

pub(super) async fn create(
    store: &LvolStore,
    name: &str,
    size: u64,
    provisioning: Provisioning,
) -> Result<Lvol> {
    const WHAT: &str = "create lvol";
    let c_name = c_name(WHAT, name)?;
    let lvs = store.raw(WHAT)?;
    // The handle may be stale when this task runs again: the volume is looked up instead.
    let ((_made, rc), _name) = op::with_handle(
        c_name,
        op::discard::<(*mut spdk_lvol, c_int), _>,
        |c_name, cb_fn, cb_arg| {
            // SAFETY: the store was found in this very step, on the metadata thread; the name is
            // copied. The function calls back once if it returns 0, and otherwise never.
            Submitted::from_rc(unsafe {
                spdk_sys::vbdev_lvol_create(
                    lvs.as_ptr(),
                    c_name.as_ptr(),
                    size,
                    provisioning == Provisioning::Thin,
                    spdk_sys::LVOL_CLEAR_WITH_DEFAULT,
                    Some(cb_fn),
                    cb_arg,
                )
            })
        },
    )
    .await;
    Error::check(WHAT, format!("{store}/{name}"), rc)?;
    store.lvol(name).await
}
