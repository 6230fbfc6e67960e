//! Block devices that are parts of another one.

use super::{Bdev, lookup, new_base, new_name};
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, JoinHandle, Result};

const MIB: u64 = 1 << 20;

/// Cuts `base` into `count` parts of `part_mib` MiB each, or of equal size if that is `None`, and
/// claims it. What is left at its end belongs to no part. SPDK names the parts: the base's name,
/// `p`, and a number from 0.
///
/// They go when their base goes.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no `base`; [`ErrorKind::PermissionDenied`] if it is claimed;
/// [`ErrorKind::Busy`] if it is being removed; [`ErrorKind::AlreadyExists`] if the name of a part
/// is taken; [`ErrorKind::InvalidArgument`] for no parts, parts of size 0, or of a size that is
/// not one of whole blocks; [`ErrorKind::OutOfRange`] if the base is too small for them;
/// [`ErrorKind::NoMemory`]; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "create_vbdev_split")]
pub fn create(base: &str, count: u32, part_mib: Option<u64>) -> Result<Vec<Bdev>> {
    const WHAT: &str = "split bdev";
    let (bdev, c_base) = new_base(WHAT, base, base)?;
    check_sizes(&bdev, count, part_mib)?;
    let names: Vec<String> = (0..count).map(|n| format!("{}p{n}", bdev.name())).collect();
    for name in &names {
        // SPDK does not look whether a part could be registered.
        new_name(WHAT, name)?;
    }
    // SAFETY: on the app thread (new_base); the text is copied. A part has at least one block and
    // all of them fit (checked): SPDK would divide by 0, or make fewer.
    let rc = unsafe { spdk_sys::create_vbdev_split(c_base.as_ptr(), count, part_mib.unwrap_or(0)) };
    Error::check(WHAT, base, rc)?;
    names.iter().map(|name| Bdev::find(name)).collect()
}

/// What SPDK does not check, or answers in another way.
fn check_sizes(base: &Bdev, count: u32, part_mib: Option<u64>) -> Result<()> {
    let refuse = |kind, why: String| Err(Error::new(kind, "split bdev", base.name(), why));
    if count == 0 || part_mib == Some(0) {
        let why = "there must be parts, and something in them".to_owned();
        return refuse(ErrorKind::InvalidArgument, why);
    }
    let block = u64::from(base.block_size());
    let Some(mib) = part_mib else {
        if base.num_blocks() < u64::from(count) {
            let why = format!("{} blocks are not enough for {count} parts", base.num_blocks());
            return refuse(ErrorKind::OutOfRange, why);
        }
        return Ok(());
    };
    let all = mib
        .checked_mul(MIB)
        .and_then(|part| part.checked_mul(u64::from(count)));
    if all.is_none_or(|all| all > base.size()) {
        let why = format!(
            "{count} parts of {mib} MiB are more than its {} bytes",
            base.size()
        );
        return refuse(ErrorKind::OutOfRange, why);
    }
    if mib * MIB % block != 0 {
        let why = format!("{mib} MiB are not whole blocks of {block} bytes");
        return refuse(ErrorKind::InvalidArgument, why);
    }
    Ok(())
}

/// Deletes all parts of `base`, which stays. Waits until everybody who has one of them open has
/// closed it.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no `base`; [`ErrorKind::InvalidArgument`] if it is not
/// split; [`ErrorKind::Busy`] if one of its parts is being deleted (the others are deleted all the
/// same); [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "vbdev_split_destruct")]
pub async fn delete(base: &str) -> Result<()> {
    const WHAT: &str = "delete parts of bdev";
    let mut result = Ok(());
    // One by one they would be refused to nobody while the first is still in use: all at once.
    for part in unregister_parts(WHAT, base)? {
        let rc = part.await.unwrap_or(-libc::ECANCELED);
        let ended = Error::check(WHAT, base, rc);
        result = result.and(ended.map_err(|error| match error.kind() {
            ErrorKind::Busy => error.with_detail("a part is being deleted already"),
            _ => error,
        }));
    }
    result
}

/// Begins to remove the parts: with SPDK's own function nobody would learn when they are gone.
/// With the last part the split goes, and its claim.
fn unregister_parts(what: &'static str, base: &str) -> Result<Vec<JoinHandle<i32>>> {
    let bdev = lookup(what, base)?;
    let mut parts = Vec::new();
    // SAFETY: on the app thread, where split and parts stay as they are while this runs; the list
    // is a TAILQ of parts.
    unsafe {
        let split = spdk_sys::vbdev_split_get_part_base(bdev);
        if split.is_null() {
            let why = "is not split";
            return Err(Error::new(ErrorKind::InvalidArgument, what, base, why));
        }
        let mut part = (*spdk_sys::spdk_bdev_part_base_get_tailq(split)).tqh_first;
        while !part.is_null() {
            parts.push(spdk_sys::spdk_bdev_part_get_bdev(part));
            part = (*part).tailq.tqe_next;
        }
    }
    let names: Vec<String> = parts
        .into_iter()
        // SAFETY: as above: the parts are registered bdevs, with names.
        .map(|part| unsafe { super::text((*part).name) })
        .collect();
    let unregister = |name: String| {
        crate::spawn(async move {
            let Ok(bdev) = lookup(what, &name) else { return 0 };
            let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
                // SAFETY: looked up on this thread just now. It calls back once, be it before it
                // returns (-EBUSY) or when the last descriptor is closed.
                unsafe { spdk_sys::spdk_bdev_unregister(bdev, Some(cb_fn), cb_arg) };
                Submitted::Pending
            })
            .await;
            rc
        })
    };
    Ok(names.into_iter().map(unregister).collect())
}
