//! Stores of logical volumes.

use std::ffi::{CString, c_int, c_void};
use std::fmt;

use spdk_sys::spdk_lvol_store;
use uuid::Uuid;

use super::{Lvol, Provisioning, lookup, on_metadata_thread};
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, Result, bdev};

/// What to do with the bdev's old data when a store is made, and with a volume's clusters when
/// they are given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClearMethod {
    /// Deallocate (NVMe) or discard them. What is read then is up to the device.
    #[default]
    Unmap,
    /// Write zeroes over them.
    WriteZeroes,
    /// Leave them as they are.
    None,
}

impl ClearMethod {
    fn for_store(self) -> spdk_sys::lvs_clear_method {
        match self {
            Self::Unmap => spdk_sys::LVS_CLEAR_WITH_UNMAP,
            Self::WriteZeroes => spdk_sys::LVS_CLEAR_WITH_WRITE_ZEROES,
            Self::None => spdk_sys::LVS_CLEAR_WITH_NONE,
        }
    }
}

/// How to make a store.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// In bytes; a multiple of the page size, 4 KiB. SPDK's default is 4 MiB.
    pub cluster_size: Option<u32>,
    /// What to do with the bdev's old data.
    pub clear_method: ClearMethod,
}

impl StoreOptions {
    /// Sets the cluster size, in bytes.
    #[must_use]
    pub fn cluster_size(mut self, bytes: u32) -> Self {
        self.cluster_size = Some(bytes);
        self
    }

    /// Sets what to do with the bdev's old data.
    #[must_use]
    pub fn clear_method(mut self, method: ClearMethod) -> Self {
        self.clear_method = method;
        self
    }
}

/// How full a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Name of the bdev that the store lies on.
    pub base_bdev: String,
    /// In bytes.
    pub cluster_size: u64,
    /// Clusters for data.
    pub total_clusters: u64,
    /// Of these, the ones that no volume has.
    pub free_clusters: u64,
    /// Volumes, also those that have no bdev.
    pub volumes: usize,
}

/// The identity of an lvstore; see the [module's documentation](super).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LvolStore {
    uuid: Uuid,
    name: String,
}

static_assertions::assert_impl_all!(LvolStore: Send, Sync);

impl LvolStore {
    pub(super) fn identity(uuid: Uuid, name: String) -> Self {
        Self { uuid, name }
    }

    /// Makes a store on the bdev `bdev`, over whatever was there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: no such bdev; [`ErrorKind::PermissionDenied`]: somebody else has
    /// claimed it; [`ErrorKind::AlreadyExists`]: a store of that name is loaded;
    /// [`ErrorKind::InvalidArgument`]: the name is empty or 64 bytes and longer, or the cluster
    /// size does not fit the bdev.
    #[doc(alias = "vbdev_lvs_create")]
    pub async fn create(bdev: &str, name: &str, options: StoreOptions) -> Result<Self> {
        let (bdev, name) = (bdev.to_owned(), name.to_owned());
        on_metadata_thread(move || async move { create(&bdev, &name, options).await }).await
    }

    /// Finds a loaded store by name or UUID.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    #[doc(alias = "vbdev_get_lvol_store_by_name")]
    pub async fn find(name_or_uuid: &str) -> Result<Self> {
        let key = name_or_uuid.to_owned();
        on_metadata_thread(move || async move {
            Ok(lookup::store_identity(lookup::find_store("find lvstore", &key)?))
        })
        .await
    }

    /// All stores that are loaded, in the order in which they were. One that is being removed is left
    /// out.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`]: SPDK is not.
    #[doc(alias = "vbdev_lvol_store_first")]
    pub async fn all() -> Result<Vec<Self>> {
        on_metadata_thread(|| async { Ok(lookup::stores().map(lookup::store_identity).collect()) }).await
    }

    /// Waits until SPDK has examined the bdev `bdev`, which loads a store that lies on it with
    /// all its volumes, and gives that store.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such bdev, or no store on it that could be loaded.
    #[doc(alias = "spdk_lvs_load")]
    pub async fn load(bdev: &str) -> Result<Self> {
        let bdev = bdev.to_owned();
        on_metadata_thread(move || async move {
            bdev::wait_for_examine().await?;
            let store = lookup::find_store_on("load lvstore", &bdev)?;
            Ok(lookup::store_identity(store))
        })
        .await
    }

    /// The store's UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The name that the store had when it was looked up.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How full the store is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it is not loaded any more.
    pub async fn stats(&self) -> Result<StoreStats> {
        let store = self.clone();
        on_metadata_thread(move || async move {
            let raw = store.raw("read lvstore")?;
            let info = lookup::store_info(raw);
            Ok(StoreStats {
                // SAFETY: the base bdev's name is a C string that lives as long as it.
                base_bdev: unsafe { lookup::text_of(info.base_bdev) }.unwrap_or_default(),
                cluster_size: info.cluster_size,
                total_clusters: info.total_clusters,
                free_clusters: info.free_clusters,
                volumes: lookup::list_lvols(raw).len(),
            })
        })
        .await
    }

    /// Makes a volume of at least `size` bytes: it is rounded up to whole clusters.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]: the store has a volume of that name; [`ErrorKind::NoSpace`]
    /// for a thick one that does not fit; [`ErrorKind::InvalidArgument`]: the name is empty or
    /// 64 bytes and longer.
    #[doc(alias = "vbdev_lvol_create")]
    pub async fn create_lvol(&self, name: &str, size: u64, provisioning: Provisioning) -> Result<Lvol> {
        let (store, name) = (self.clone(), name.to_owned());
        on_metadata_thread(
            move || async move { super::volume::create(&store, &name, size, provisioning).await },
        )
        .await
    }

    /// Finds a volume of this store by name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn lvol(&self, name: &str) -> Result<Lvol> {
        const WHAT: &str = "find lvol";
        let (store, name) = (self.clone(), name.to_owned());
        on_metadata_thread(move || async move {
            let raw = store.raw(WHAT)?;
            let lvol = lookup::by_name(raw, &name).ok_or_else(|| {
                let wanted = format!("{store}/{name}");
                Error::new(
                    ErrorKind::NotFound,
                    WHAT,
                    wanted,
                    "the lvstore has no such volume",
                )
            })?;
            Ok(lookup::lvol_identity(raw, lvol))
        })
        .await
    }

    /// All volumes of this store, also those that have no bdev.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the store is not loaded any more.
    pub async fn lvols(&self) -> Result<Vec<Lvol>> {
        let store = self.clone();
        on_metadata_thread(move || async move { Ok(lookup::list_lvols(store.raw("list lvols")?)) }).await
    }

    /// Gives the store, and the aliases of its volumes' bdevs, another name. Answers with the
    /// identity under the new name.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]: a loaded store has that name; [`ErrorKind::InvalidArgument`]:
    /// it is empty or 64 bytes and longer; [`ErrorKind::Busy`]: the store is being renamed already.
    #[doc(alias = "vbdev_lvs_rename")]
    pub async fn rename(&self, name: &str) -> Result<Self> {
        const WHAT: &str = "rename lvstore";
        let (store, c_name) = (self.clone(), c_name(WHAT, name)?);
        let renamed = Self::identity(self.uuid, name.to_owned());
        on_metadata_thread(move || async move {
            let lvs = store.raw(WHAT)?;
            let (rc, _name) = op::unary(c_name, |name, cb_fn, cb_arg| {
                // SAFETY: the store was found in this very step, on the metadata thread; the name
                // is copied. The function has no result: it calls back exactly once.
                unsafe { spdk_sys::vbdev_lvs_rename(lvs.as_ptr(), name.as_ptr(), Some(cb_fn), cb_arg) };
                Submitted::Pending
            })
            .await;
            Error::check(WHAT, store.name, rc)?;
            Ok(renamed)
        })
        .await
    }

    /// Closes the store and its volumes, and lets go of the bdev; nothing on disk is lost.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: somebody holds a volume, or one is being made; nothing has changed then.
    /// (A volume that is being destroyed is waited for, and so is whoever has a bdev open.)
    #[doc(alias = "vbdev_lvs_unload")]
    pub async fn unload(&self) -> Result<()> {
        self.remove("unload lvstore", spdk_sys::vbdev_lvs_unload).await
    }

    /// Destroys the store with all its volumes.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: somebody holds a volume, or one is being made; nothing has changed then.
    /// (A volume that is being destroyed is waited for, and so is whoever has a bdev open.) Any other
    /// error is the one of the first volume that could not be destroyed; the store and what is left
    /// of it stay usable.
    #[doc(alias = "vbdev_lvs_destruct")]
    pub async fn destroy(&self) -> Result<()> {
        self.remove("destroy lvstore", spdk_sys::vbdev_lvs_destruct).await
    }

    async fn remove(&self, what: &'static str, remove: RemoveFn) -> Result<()> {
        let store = self.clone();
        on_metadata_thread(move || async move {
            let lvs = store.raw(what)?;
            let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
                // SAFETY: the store was found in this very step, on the metadata thread. The
                // function has no result: it calls back exactly once, whatever happens.
                unsafe { remove(lvs.as_ptr(), Some(cb_fn), cb_arg) };
                Submitted::Pending
            })
            .await;
            Error::check(what, store.name, rc)
        })
        .await
    }

    /// C's store. On the metadata thread only.
    pub(super) fn raw(&self, what: &'static str) -> Result<std::ptr::NonNull<spdk_lvol_store>> {
        lookup::find_store(what, &self.uuid.to_string())
            .map_err(|_| Error::new(ErrorKind::NotFound, what, &self.name, "the lvstore is not loaded"))
    }
}

type RemoveFn = unsafe extern "C" fn(*mut spdk_lvol_store, spdk_sys::spdk_lvs_op_complete, *mut c_void);

/// The name, as `lvstore` in `lvstore/lvol`.
impl fmt::Display for LvolStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A name that C can take: its own limit is that of SPDK's names, NUL included.
pub(super) fn c_name(what: &'static str, name: &str) -> Result<CString> {
    let limit = spdk_sys::SPDK_LVOL_NAME_MAX as usize - 1;
    if name.is_empty() || name.len() > limit {
        let detail = format!("a name has 1 to {limit} bytes, this one {}", name.len());
        return Err(Error::new(ErrorKind::InvalidArgument, what, name, detail));
    }
    CString::new(name).map_err(|_| Error::new(ErrorKind::InvalidArgument, what, name, "contains a NUL"))
}

async fn create(bdev_name: &str, name: &str, options: StoreOptions) -> Result<LvolStore> {
    const WHAT: &str = "create lvstore";
    let bdev = c_name_of_bdev(WHAT, bdev_name)?;
    let c_name = c_name(WHAT, name)?;
    // What is being examined may turn out to be a store, or be claimed.
    bdev::wait_for_examine().await?;
    // SAFETY: a C string; the function only looks it up.
    let base = unsafe { spdk_sys::spdk_bdev_get_by_name(bdev.as_ptr()) };
    let base = Error::check_ptr(WHAT, bdev_name, base, libc::ENODEV)?;

    let ((_lvs, rc), _names) = op::with_handle(
        (bdev, c_name),
        // Made although nobody waits any more: it is there, as after a call without an answer.
        op::discard::<(*mut spdk_lvol_store, c_int), _>,
        |(_, c_name), cb_fn, cb_arg| {
            // SAFETY: the bdev was found in this very step; the name lives until the callback.
            // The function calls back once if it returns 0, and otherwise never.
            Submitted::from_rc(unsafe {
                spdk_sys::vbdev_lvs_create(
                    base.as_ptr(),
                    c_name.as_ptr(),
                    options.cluster_size.unwrap_or(0),
                    options.clear_method.for_store(),
                    Some(cb_fn),
                    cb_arg,
                )
            })
        },
    )
    .await;
    Error::check(WHAT, format!("{name} on {bdev_name}"), rc)?;
    Ok(lookup::store_identity(lookup::find_store(WHAT, name)?))
}

fn c_name_of_bdev(what: &'static str, name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(ErrorKind::InvalidArgument, what, name, "contains a NUL"))
}
