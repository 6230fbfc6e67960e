//! Finding C's lvstores and lvols, and reading what they are.
//!
//! The pointers are good until the caller returns to the reactor: nothing else runs on the
//! metadata thread before that.

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use spdk_sys::{shim_lvol_info, shim_lvs_info, spdk_lvol, spdk_lvol_store, spdk_uuid};
use uuid::Uuid;

use super::{Lvol, LvolInfo, LvolStore};
use crate::{Error, ErrorKind, Result};

/// C's UUIDs are the same 16 bytes, in network order.
pub(super) fn uuid_of(uuid: &spdk_uuid) -> Uuid {
    // SAFETY: spdk_uuid is a union of one member, an array of 16 bytes.
    Uuid::from_bytes(unsafe { uuid.u.raw })
}

/// A C string that C keeps alive for the moment; `None` for null.
///
/// # Safety
/// `text` is null, or a C string.
pub(super) unsafe fn text_of(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: it is a C string (contract).
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// All lvstores that are not being removed. On the metadata thread only.
pub(super) fn stores() -> impl Iterator<Item = NonNull<spdk_lvol_store>> {
    let mut at = ptr::null_mut();
    std::iter::from_fn(move || {
        // SAFETY: `at` is null or an element of the list, which only this thread changes.
        at = unsafe { spdk_sys::shim_lvs_next(at) };
        NonNull::new(at)
    })
}

/// All lvols of a store. On the metadata thread only.
fn lvols_of(store: NonNull<spdk_lvol_store>) -> impl Iterator<Item = NonNull<spdk_lvol>> {
    let mut at = ptr::null_mut();
    std::iter::from_fn(move || {
        // SAFETY: the store is listed; `at` is null or an element of its list.
        at = unsafe { spdk_sys::shim_lvol_next(store.as_ptr(), at) };
        NonNull::new(at)
    })
}

pub(super) fn store_info(store: NonNull<spdk_lvol_store>) -> shim_lvs_info {
    let mut info = MaybeUninit::uninit();
    // SAFETY: the store is listed; the function fills all of `info`.
    unsafe {
        spdk_sys::shim_lvs_info(store.as_ptr(), info.as_mut_ptr());
        info.assume_init()
    }
}

fn lvol_raw_info(lvol: NonNull<spdk_lvol>) -> shim_lvol_info {
    let mut info = MaybeUninit::uninit();
    // SAFETY: the lvol is listed; the function fills all of `info`.
    unsafe {
        spdk_sys::shim_lvol_info(lvol.as_ptr(), info.as_mut_ptr());
        info.assume_init()
    }
}

pub(super) fn store_identity(store: NonNull<spdk_lvol_store>) -> LvolStore {
    let info = store_info(store);
    // SAFETY: the name is a C string inside of the store.
    let name = unsafe { text_of(info.name) }.unwrap_or_default();
    LvolStore::identity(uuid_of(&info.uuid), name)
}

pub(super) fn lvol_identity(store: NonNull<spdk_lvol_store>, lvol: NonNull<spdk_lvol>) -> Lvol {
    let info = lvol_raw_info(lvol);
    // SAFETY: the name is a C string inside of the lvol.
    let name = unsafe { text_of(info.name) }.unwrap_or_default();
    Lvol::identity(store_identity(store), uuid_of(&info.uuid), name)
}

/// The store whose name or UUID is `key`.
pub(super) fn find_store(what: &'static str, key: &str) -> Result<NonNull<spdk_lvol_store>> {
    let uuid = Uuid::parse_str(key).ok();
    let is_it = |store: &NonNull<spdk_lvol_store>| {
        let identity = store_identity(*store);
        identity.name() == key || Some(identity.uuid()) == uuid
    };
    stores().find(is_it).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            what,
            key,
            "no lvstore of that name or UUID is loaded",
        )
    })
}

/// The store that lies on the bdev `bdev`.
pub(super) fn find_store_on(what: &'static str, bdev: &str) -> Result<NonNull<spdk_lvol_store>> {
    let is_it = |store: &NonNull<spdk_lvol_store>| {
        // SAFETY: the base bdev's name is a C string that lives as long as it.
        unsafe { text_of(store_info(*store).base_bdev) }.as_deref() == Some(bdev)
    };
    stores().find(is_it).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            what,
            bdev,
            "there is no lvstore on this bdev",
        )
    })
}

/// The lvol of this identity.
pub(super) fn find_lvol(what: &'static str, lvol: &Lvol) -> Result<NonNull<spdk_lvol>> {
    let gone = || {
        Error::new(
            ErrorKind::NotFound,
            what,
            lvol.to_string(),
            "the logical volume does not exist",
        )
    };
    let store = stores()
        .find(|store| uuid_of(&store_info(*store).uuid) == lvol.store().uuid())
        .ok_or_else(gone)?;
    by_uuid(store, lvol.uuid()).ok_or_else(gone)
}

/// Looked up, not looked for: there may be many.
fn by_uuid(store: NonNull<spdk_lvol_store>, uuid: Uuid) -> Option<NonNull<spdk_lvol>> {
    let uuid = spdk_uuid {
        u: spdk_sys::spdk_uuid__bindgen_ty_1 {
            raw: *uuid.as_bytes(),
        },
    };
    // SAFETY: the store is listed; the UUID is only read.
    NonNull::new(unsafe { spdk_sys::shim_lvol_by_uuid(store.as_ptr(), &raw const uuid) })
}

/// The lvol of that name.
pub(super) fn by_name(store: NonNull<spdk_lvol_store>, name: &str) -> Option<NonNull<spdk_lvol>> {
    let name = CString::new(name).ok()?;
    // SAFETY: the store is listed; the name is only read.
    NonNull::new(unsafe { spdk_sys::shim_lvol_by_name(store.as_ptr(), name.as_ptr()) })
}

/// The lvol that `key` names: `lvstore/lvol`, or a UUID.
pub(super) fn find_lvol_by_key(what: &'static str, key: &str) -> Result<Lvol> {
    let uuid = Uuid::parse_str(key).ok();
    for store in stores() {
        let in_store = || key.strip_prefix(store_identity(store).name())?.strip_prefix('/');
        let named = in_store().and_then(|name| by_name(store, name));
        if let Some(lvol) = named.or_else(|| by_uuid(store, uuid?)) {
            return Ok(lvol_identity(store, lvol));
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        what,
        key,
        "no logical volume of that name (lvstore/lvol) or UUID",
    ))
}

/// The lvols of a store, in the order in which SPDK lists them.
pub(super) fn list_lvols(store: NonNull<spdk_lvol_store>) -> Vec<Lvol> {
    lvols_of(store).map(|lvol| lvol_identity(store, lvol)).collect()
}

/// The lvols of a store, each with the id of its blob.
pub(super) fn list_blobs(store: NonNull<spdk_lvol_store>) -> Vec<(u64, Lvol)> {
    let blob = |lvol: NonNull<spdk_lvol>| {
        // SAFETY: the lvol is listed.
        let id = unsafe { spdk_sys::shim_lvol_blob_id(lvol.as_ptr()) };
        (id, lvol_identity(store, lvol))
    };
    lvols_of(store).map(blob).collect()
}

/// The names of an lvol's clones.
pub(super) fn clone_names(lvol: NonNull<spdk_lvol>) -> Vec<String> {
    // SAFETY: the lvol is listed; with room for none the function only counts.
    let count = unsafe { spdk_sys::shim_lvol_clones(lvol.as_ptr(), ptr::null_mut(), 0) };
    let mut names = vec![ptr::null(); count];
    // SAFETY: as above, with room for `count` names.
    let count = unsafe { spdk_sys::shim_lvol_clones(lvol.as_ptr(), names.as_mut_ptr(), names.len()) };
    names.truncate(count);
    // SAFETY: each is null (a clone that is just being made) or a C string inside of an lvol.
    names
        .into_iter()
        .filter_map(|name| unsafe { text_of(name) })
        .collect()
}

pub(super) fn lvol_info(lvol: NonNull<spdk_lvol>) -> LvolInfo {
    let info = lvol_raw_info(lvol);
    // SAFETY: the strings are null or C strings that live until we return to the reactor.
    let (name, bdev, parent) = unsafe { (text_of(info.name), text_of(info.bdev), text_of(info.parent)) };
    LvolInfo {
        name: name.unwrap_or_default(),
        uuid: uuid_of(&info.uuid),
        bdev,
        size: info.size,
        thin: info.thin,
        snapshot: info.snapshot,
        clone: info.clone,
        read_only: info.read_only,
        parent,
        clones: clone_names(lvol),
    }
}
