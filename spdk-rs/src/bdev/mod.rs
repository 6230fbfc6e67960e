//! Block devices: find, create, open, read and write.
//!
//! # The model
//!
//! * A [`Bdev`] names a block device and tells its properties as they were when it was looked
//!   up. It is `Send`.
//! * A [`Descriptor`] is the right to use it. It belongs to the spdk_thread that opened it.
//! * A [`Channel`] is that thread's path to the device; I/O goes through it, at any depth.
//!
//! Descriptor and channel share their state: a channel keeps the device open. When the device is
//! removed, both let go of it as soon as the I/O in flight has ended, whether or not anybody
//! drops them; what is asked of them after that fails with
//! [`Removed`](crate::ErrorKind::Removed).
//!
//! ```no_run
//! # use spdk_rs::{Runtime, bdev::{self, Mode}, buf::DmaBuf};
//! # async fn example() -> spdk_rs::Result<()> {
//! let disk = bdev::malloc::create("ram0", 2048, 512)?;
//! let descriptor = disk.open(Mode::ReadWrite)?;
//! let channel = descriptor.channel()?;
//! let (result, buf) = channel.write(DmaBuf::copy_of(&[7; 4096])?, 0).await.into_parts();
//! result?;
//! let (result, buf) = channel.read(buf, 0).await.into_parts();
//! result?;
//! assert_eq!(buf.as_slice(), [7; 4096]);
//! descriptor.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Kinds
//!
//! Each has a module with `create` and `delete`: [`malloc`], [`null`], [`aio`] and `uring` stand by
//! themselves; [`delay`], [`error`], [`passthru`], [`split`] and `raid0` lie over others, which
//! they claim. (`uring` and `raid0` are cargo features, `uring` and `raid`.) Volumes are in
//! [`lvol`](crate::lvol), devices written in Rust in [`bdev_module`](crate::bdev_module).
//!
//! Block devices are looked up, created and deleted on the [app thread](crate::reactor::Thread::app)
//! (SPDK changes their list there, without a lock for readers; a patch sees to it that a removed
//! device leaves it there, too, whoever closes it for the last time). They may be opened on any
//! thread.

mod abort;
pub mod aio;
mod channel;
mod compare;
pub mod delay;
mod descriptor;
mod done;
pub mod error;
mod event_target;
mod events;
mod examine;
mod io;
pub(crate) mod kind;
pub mod malloc;
mod metadata;
pub mod null;
mod nvme_command;
mod one_buffer;
pub mod passthru;
mod properties;
#[cfg(feature = "raid")]
pub mod raid0;
pub mod split;
mod stats;
mod transfer;
#[cfg(feature = "uring")]
pub mod uring;
mod zcopy;

use std::ffi::{CStr, CString};

use spdk_sys::spdk_bdev;
pub use uuid::Uuid;

pub use channel::Channel;
pub use descriptor::{Descriptor, Mode, Removed};
pub use events::{Event, Events};
pub use examine::wait_for_examine;
pub use kind::IoType;
pub use nvme_command::NvmeCommand;
pub use properties::{Metadata, Protection};
pub use stats::{BdevStats, IoCount};
pub use transfer::{IoBuf, Read, Write};
pub use zcopy::Zcopy;

use self::properties::Properties;
use crate::op::{self, RcCallback, Submitted};
use crate::reactor::Thread;
use crate::{Error, ErrorKind, Result};

/// A block device: its names, and its properties as they were when it was looked up.
///
/// It holds nothing: the device may go away at any time, and using it is an error then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bdev {
    name: String,
    aliases: Vec<String>,
    uuid: Uuid,
    product: String,
    block_size: u32,
    num_blocks: u64,
    alignment: usize,
    claimed_by: Option<String>,
    properties: Properties,
}

static_assertions::assert_impl_all!(Bdev: Send, Sync);

impl Bdev {
    /// Finds a block device by name, alias or UUID, in this order.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::WrongThread`] if not called on the app thread.
    #[doc(alias = "spdk_bdev_get_by_name")]
    pub fn find(name: &str) -> Result<Self> {
        const WHAT: &str = "find bdev";
        let bdev = lookup(WHAT, name)?;
        // SAFETY: `lookup` found the bdev on the app thread, on which it cannot go away before
        // this returns.
        Ok(unsafe { Self::of(bdev) })
    }

    /// All block devices, in the order in which they were registered.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`] if not called on the app thread.
    #[doc(alias = "spdk_bdev_first")]
    pub fn all() -> Result<Vec<Self>> {
        check_app_thread("list bdevs", "")?;
        // SAFETY: on the app thread no bdev comes or goes while this runs.
        Ok(unsafe { walk().map(|bdev| Self::of(bdev)).collect() })
    }

    /// # Safety
    /// The bdev exists, and cannot go away while this runs.
    unsafe fn of(bdev: *mut spdk_bdev) -> Self {
        // SAFETY: the bdev exists (contract); all getters read only, and what they return is
        // copied at once.
        unsafe {
            Self {
                name: text(spdk_sys::spdk_bdev_get_name(bdev)),
                aliases: aliases(bdev),
                uuid: uuid(bdev),
                product: text(spdk_sys::spdk_bdev_get_product_name(bdev)),
                block_size: spdk_sys::spdk_bdev_get_block_size(bdev),
                num_blocks: spdk_sys::spdk_bdev_get_num_blocks(bdev),
                alignment: spdk_sys::spdk_bdev_get_buf_align(bdev),
                claimed_by: claimed_by(bdev),
                properties: Properties::of(bdev),
            }
        }
    }

    /// The name that it was registered with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its other names.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// Its UUID; SPDK makes one up where the device has none.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What sort of device it is, for example `AIO disk`.
    pub fn product(&self) -> &str {
        &self.product
    }

    /// Bytes in a block: what offsets and lengths of I/O are multiples of. With them goes metadata
    /// that is [interleaved](Metadata::interleaved).
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many blocks it has.
    pub fn num_blocks(&self) -> u64 {
        self.num_blocks
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.num_blocks * u64::from(self.block_size)
    }

    /// The alignment of buffers that the device can use without a copy, in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The name of the module that has claimed the device for itself, so that it cannot be
    /// opened for writing.
    pub fn claimed_by(&self) -> Option<&str> {
        self.claimed_by.as_deref()
    }

    /// Opens the device for the current spdk_thread.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it has gone or is going; [`ErrorKind::PermissionDenied`] if
    /// it is to be written to and is claimed; [`ErrorKind::WrongThread`] outside of SPDK's
    /// threads; [`ErrorKind::NoMemory`].
    #[doc(alias = "spdk_bdev_open_ext")]
    pub fn open(&self, mode: Mode) -> Result<Descriptor> {
        Descriptor::open(&self.name, mode)
    }
}

/// Refuses `what` on any other thread than the app thread.
pub(crate) fn check_app_thread(what: &'static str, device: &str) -> Result<()> {
    if Thread::app()?.is_current() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::WrongThread,
        what,
        device,
        "must be called on the app thread: use Thread::app()?.spawn_on(…)",
    ))
}

/// Finds a bdev by name, alias or UUID. The pointer is good until the app thread, on which this
/// must run, gets to do something else.
pub(crate) fn lookup(what: &'static str, name: &str) -> Result<*mut spdk_bdev> {
    check_app_thread(what, name)?;
    let c_name = c_name(what, name)?;
    // SAFETY: on the app thread the list of bdevs does not change while this runs.
    let mut bdev = unsafe { spdk_sys::spdk_bdev_get_by_name(c_name.as_ptr()) };
    if bdev.is_null() {
        if let Ok(wanted) = Uuid::try_parse(name) {
            // SAFETY: as above.
            let found = unsafe { walk().find(|bdev| uuid(*bdev) == wanted) };
            bdev = found.unwrap_or(bdev);
        }
    }
    if bdev.is_null() {
        let why = "there is no block device of this name, alias or UUID";
        return Err(Error::new(ErrorKind::NotFound, what, name, why));
    }
    Ok(bdev)
}

/// A name for C.
pub(crate) fn c_name(what: &'static str, name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| {
        let name = name.replace('\0', "\\0");
        Error::new(ErrorKind::InvalidArgument, what, name, "contains a NUL")
    })
}

/// A name for C that is to be given to a new device.
pub(crate) fn new_name(what: &'static str, name: &str) -> Result<CString> {
    check_app_thread(what, name)?;
    if name.is_empty() {
        let why = "a block device needs a name";
        return Err(Error::new(ErrorKind::InvalidArgument, what, "", why));
    }
    let c_name = c_name(what, name)?;
    // SAFETY: as in `lookup`.
    if unsafe { !spdk_sys::spdk_bdev_get_by_name(c_name.as_ptr()).is_null() } {
        let why = "there is a block device of this name";
        return Err(Error::new(ErrorKind::AlreadyExists, what, name, why));
    }
    Ok(c_name)
}

/// Finds the bdev that a new one, `name`, is to be made over, and claim. Its name proper comes
/// along, for C: the lists that SPDK's modules keep of their bases do not know aliases.
pub(crate) fn new_base(what: &'static str, name: &str, base: &str) -> Result<(Bdev, CString)> {
    let bdev = lookup(what, base)?;
    // SAFETY: `lookup` found the bdev on the app thread, on which it cannot go away before this
    // returns; the state is read only.
    let (base, removing) = unsafe {
        let removing = (*bdev).internal.status == spdk_sys::SPDK_BDEV_STATUS_REMOVING;
        (Bdev::of(bdev), removing)
    };
    // SPDK answers these two with an error of its own kind for each module, or leaves something
    // half-made behind.
    if removing {
        let why = format!("its base {} is being removed", base.name);
        return Err(Error::new(ErrorKind::Busy, what, name, why));
    }
    if let Some(module) = base.claimed_by() {
        let why = format!("its base {} is claimed by {module}", base.name);
        return Err(Error::new(ErrorKind::PermissionDenied, what, name, why));
    }
    let c_base = c_name(what, &base.name)?;
    Ok((base, c_base))
}

/// Deletes a bdev with its module's own function, which always calls back.
async fn delete(
    what: &'static str,
    name: &str,
    delete: unsafe fn(*mut spdk_bdev, RcCallback, *mut std::ffi::c_void),
) -> Result<()> {
    let bdev = lookup(what, name)?;
    let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
        // SAFETY: the bdev was looked up on this thread just now. The function calls back once,
        // be it before it returns (-EBUSY, -ENODEV) or when the last descriptor is closed.
        unsafe { delete(bdev, cb_fn, cb_arg) };
        Submitted::Pending
    })
    .await;
    Error::check(what, name, rc).map_err(|error| match error.kind() {
        // The only bdevs that a module's delete function answers ENODEV for are others'.
        ErrorKind::NotFound => error
            .with_kind(ErrorKind::InvalidArgument)
            .with_detail("is a block device of another kind"),
        ErrorKind::Busy => error.with_detail("is being deleted already"),
        _ => error,
    })
}

/// All bdevs.
///
/// # Safety
/// On the app thread, without letting it do anything else before the iterator is dropped.
unsafe fn walk() -> impl Iterator<Item = *mut spdk_bdev> {
    // SAFETY: the list does not change meanwhile (contract).
    let first = unsafe { spdk_sys::spdk_bdev_first() };
    let next = |bdev: &*mut spdk_bdev| {
        // SAFETY: as above; `bdev` is an element of the list.
        let next = unsafe { spdk_sys::spdk_bdev_next(*bdev) };
        (!next.is_null()).then_some(next)
    };
    std::iter::successors((!first.is_null()).then_some(first), next)
}

/// # Safety
/// Null, or a C string.
pub(crate) unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a C string (contract), copied here.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// The bdev exists.
unsafe fn uuid(bdev: *mut spdk_bdev) -> Uuid {
    // SAFETY: the bdev exists (contract) and its UUID, 16 bytes of no alignment, lies inside it.
    unsafe {
        let raw = spdk_sys::spdk_bdev_get_uuid(bdev).cast::<[u8; 16]>();
        Uuid::from_bytes(*raw)
    }
}

/// # Safety
/// The bdev exists and its aliases do not change meanwhile.
unsafe fn aliases(bdev: *mut spdk_bdev) -> Vec<String> {
    let mut aliases = Vec::new();
    // SAFETY: the list is a TAILQ of aliases, which does not change meanwhile (contract); each
    // holds a C string.
    unsafe {
        let mut alias = (*spdk_sys::spdk_bdev_get_aliases(bdev)).tqh_first;
        while !alias.is_null() {
            aliases.push(text((*alias).alias));
            alias = (*alias).tailq.tqe_next;
        }
    }
    aliases
}

/// # Safety
/// The bdev exists.
unsafe fn claimed_by(bdev: *mut spdk_bdev) -> Option<String> {
    // SAFETY: the bdev exists (contract); a claim names a module, which is static.
    unsafe {
        let module = (*bdev).internal.claim_module;
        (!module.is_null()).then(|| text((*module).name))
    }
}
