//! Notes that are kept with a volume: named values in the metadata of its blob.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};

use spdk_sys::spdk_lvol;

use super::blob::HeldBlob;
use super::volume::open_lvol;
use super::{Lvol, on_metadata_thread};
use crate::{Error, ErrorKind, Result};

/// Bytes that the name and the value of an xattr may have together: it lies in one metadata page.
pub const XATTR_MAX: usize = 4063;

/// What SPDK keeps in the same place (the last one: earlier SPDKs), and what has calls of its own.
const RESERVED: [&str; 4] = ["name", "uuid", "checksum", "clear_method"];

/// The name under which a write holds the volume.
const OPERATION: &CStr = c"xattr";

impl Lvol {
    /// The volume's xattrs: what was set with [`set_xattr`](Self::set_xattr), by name.
    ///
    /// A snapshot or clone begins with none: those of the volume that it is made of stay there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound): the volume is gone, or being removed;
    /// [`NoMemory`](ErrorKind::NoMemory).
    #[doc(alias = "spdk_blob_get_xattr_names")]
    pub async fn xattrs(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        const WHAT: &str = "list xattrs";
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            let raw = open_lvol(WHAT, &lvol)?;
            let names = names(raw).map_err(|rc| Error::from_errno(WHAT, lvol.to_string(), rc))?;
            let ours = names.into_iter().filter(|name| !is_reserved(name));
            let with_value = |name: CString| Some((name.to_string_lossy().into_owned(), read(raw, &name)?));
            Ok(ours.filter_map(with_value).collect())
        })
        .await
    }

    /// The xattr `name` of the volume; `None` if it has none of that name.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument): `name` is empty, contains a NUL, or is
    /// SPDK's own (`name`, `uuid`, `checksum`, `clear_method`);
    /// [`NotFound`](ErrorKind::NotFound): the volume is gone, or being removed.
    #[doc(alias = "spdk_blob_get_xattr_value")]
    pub async fn xattr(&self, name: &str) -> Result<Option<Vec<u8>>> {
        const WHAT: &str = "read xattr";
        let (lvol, name) = (self.clone(), checked_name(WHAT, self, name)?);
        on_metadata_thread(move || async move { Ok(read(open_lvol(WHAT, &lvol)?, &name)) }).await
    }

    /// Sets the xattr `name` of the volume, on disk too: it is there after a crash, once this has
    /// answered. After an error it is what it was before.
    ///
    /// Snapshots have xattrs as other volumes do. Each stays with its volume: a snapshot that is
    /// destroyed into its clone takes its own with it. Meanwhile the volume is held ("xattr"), for
    /// one write of metadata. Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument): as for [`xattr`](Self::xattr), or name and
    /// value are longer than [`XATTR_MAX`] bytes together;
    /// [`Busy`](ErrorKind::Busy): another operation on the volume is running, or it is being
    /// destroyed; [`PermissionDenied`](ErrorKind::PermissionDenied): the volume is read-only, and no
    /// [snapshot](super::LvolInfo::snapshot); [`NoMemory`](ErrorKind::NoMemory): the store has no metadata page left,
    /// or memory is short; [`Io`](ErrorKind::Io);
    /// [`NotFound`](ErrorKind::NotFound): the volume is gone, or being removed.
    #[doc(alias = "spdk_blob_set_xattr")]
    pub async fn set_xattr(&self, name: &str, value: &[u8]) -> Result<()> {
        const WHAT: &str = "set xattr";
        let len = name.len() + value.len();
        if len > XATTR_MAX {
            let detail = format!("name and value have {len} bytes together, and at most {XATTR_MAX} fit");
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                WHAT,
                self.to_string(),
                detail,
            ));
        }
        self.write_xattr(WHAT, name, Some(value.to_vec())).await
    }

    /// Removes the xattr `name` of the volume, on disk too. After an error it is still there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound): it has none of that name, or the volume is gone, or being
    /// removed; and as for [`set_xattr`](Self::set_xattr).
    #[doc(alias = "spdk_blob_remove_xattr")]
    pub async fn remove_xattr(&self, name: &str) -> Result<()> {
        self.write_xattr("remove xattr", name, None).await
    }

    async fn write_xattr(&self, what: &'static str, name: &str, value: Option<Vec<u8>>) -> Result<()> {
        let (lvol, name) = (self.clone(), checked_name(what, self, name)?);
        on_metadata_thread(move || async move {
            let blob = HeldBlob::open(what, &lvol, OPERATION).await?;
            let told = name.to_string_lossy().into_owned();
            let written = blob.write_xattr(what, name, value).await;
            written.map_err(|error| match error.errno() {
                libc::ENOENT => error.with_detail(format!("it has no xattr {told}")),
                libc::EPERM => error.with_detail("the volume is read-only, and no snapshot"),
                _ => error,
            })
        })
        .await
    }
}

fn is_reserved(name: &CStr) -> bool {
    RESERVED
        .iter()
        .any(|reserved| name.to_bytes() == reserved.as_bytes())
}

fn checked_name(what: &'static str, lvol: &Lvol, name: &str) -> Result<CString> {
    let wrong = |detail: String| Error::new(ErrorKind::InvalidArgument, what, lvol.to_string(), detail);
    if name.is_empty() {
        return Err(wrong("an xattr needs a name".into()));
    }
    let c_name = CString::new(name).map_err(|_| wrong(format!("the name {name:?} contains a NUL")))?;
    if is_reserved(&c_name) {
        return Err(wrong(format!(
            "the xattr {name} is SPDK's own; take another name"
        )));
    }
    Ok(c_name)
}

/// The value of an xattr. The lvol is open; on the metadata thread only.
pub(super) fn read(lvol: NonNull<spdk_lvol>, name: &CStr) -> Option<Vec<u8>> {
    let (mut value, mut len) = (ptr::null(), 0);
    // SAFETY: the lvol's blob is open (contract), this is its metadata thread. The value stays
    // where it is until we return to the reactor.
    unsafe {
        let blob = spdk_sys::shim_lvol_blob(lvol.as_ptr());
        match spdk_sys::spdk_blob_get_xattr_value(blob, name.as_ptr(), &mut value, &mut len) {
            0 => Some(std::slice::from_raw_parts(value.cast::<u8>(), len).to_vec()),
            _ => None,
        }
    }
}

/// The names of all xattrs, SPDK's own too; or the errno. The lvol is open; on the metadata thread
/// only.
fn names(lvol: NonNull<spdk_lvol>) -> std::result::Result<Vec<CString>, i32> {
    let mut names = ptr::null_mut();
    // SAFETY: the lvol's blob is open (contract), this is its metadata thread. The names live as
    // long as the xattrs; the list of them is ours.
    unsafe {
        let blob = spdk_sys::shim_lvol_blob(lvol.as_ptr());
        match spdk_sys::spdk_blob_get_xattr_names(blob, &mut names) {
            0 => {}
            rc => return Err(rc),
        }
        let found = (0..spdk_sys::spdk_xattr_names_get_count(names))
            .map(|at| CStr::from_ptr(spdk_sys::spdk_xattr_names_get_name(names, at)).to_owned())
            .collect();
        spdk_sys::spdk_xattr_names_free(names);
        Ok(found)
    }
}
