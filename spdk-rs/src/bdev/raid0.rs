//! Block devices that are striped over several others.

use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use spdk_sys::raid_bdev_config;

use super::{Bdev, c_name, check_app_thread, new_base, new_name};
use crate::op::{self, Submitted};
use crate::reactor::sleep;
use crate::{Error, ErrorKind, Result};

/// Makes a block device of `bases`, which it claims: strips of `strip_kib` KiB go to one after the
/// other. Each gives as much as the smallest has in whole strips.
///
/// When one of its bases goes, it goes, too. The others stay claimed then, until it is
/// [deleted](delete).
///
/// # Errors
/// [`ErrorKind::NotFound`] if one of the bases is not there; [`ErrorKind::PermissionDenied`] if it
/// is claimed; [`ErrorKind::Busy`] if it is being removed; [`ErrorKind::AlreadyExists`] if the name
/// is taken, or a base is named twice; [`ErrorKind::InvalidArgument`] for no bases or more than
/// 255, a strip that is no power of two, or blocks of different sizes, or of one that is no power
/// of two; [`ErrorKind::OutOfRange`] if a strip is smaller than a block or larger than a base;
/// [`ErrorKind::NoMemory`]; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "raid_bdev_create")]
pub fn create(name: &str, bases: &[&str], strip_kib: u32) -> Result<Bdev> {
    const WHAT: &str = "create RAID 0 bdev";
    let named = new_name(WHAT, name)?;
    let found = bases.iter().map(|base| new_base(WHAT, name, base));
    let (found, c_bases): (Vec<_>, Vec<_>) = found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    check_sizes(WHAT, name, &found, strip_kib)?;
    let count = u8::try_from(found.len()).map_err(|_| {
        let why = format!("{} bases: there can be 255", found.len());
        Error::new(ErrorKind::InvalidArgument, WHAT, name, why)
    })?;
    let mut config = null_mut();
    // SAFETY: on the app thread (new_name); the text is copied.
    let rc = unsafe {
        spdk_sys::raid_bdev_config_add(named.as_ptr(), strip_kib, count, spdk_sys::RAID0, &mut config)
    };
    Error::check(WHAT, name, rc)?;
    for (slot, base) in (0..count).zip(&c_bases) {
        // SAFETY: the configuration was made above; there is a slot for each base, and the text
        // is copied.
        let rc = unsafe { spdk_sys::raid_bdev_config_add_base_bdev(config, base.as_ptr(), slot) };
        if rc != 0 {
            // SAFETY: as above; nothing was made of it yet, and it is not used after this.
            unsafe { spdk_sys::raid_bdev_config_cleanup(config) };
            let error = Error::check(WHAT, name, rc);
            let why = format!(
                "its base {} is one of a RAID already",
                found[usize::from(slot)].name()
            );
            return Err(error.map_err(|error| error.with_detail(why)).unwrap_err());
        }
    }
    // SAFETY: the configuration is whole.
    let rc = unsafe { spdk_sys::raid_bdev_create(config) };
    if rc != 0 {
        // SAFETY: nothing was made of it.
        unsafe { spdk_sys::raid_bdev_config_cleanup(config) };
    }
    Error::check(WHAT, name, rc)?;
    // SAFETY: as above.
    let rc = unsafe { spdk_sys::raid_bdev_add_base_devices(config) };
    if rc != 0 {
        // SAFETY: what was made is not registered, so that this lets go of the bases at once; with
        // the last one the RAID goes, and its configuration is not used any more.
        unsafe {
            spdk_sys::raid_bdev_remove_base_devices(config, None, null_mut());
            if (*config).raid_bdev.is_null() {
                spdk_sys::raid_bdev_config_cleanup(config);
            }
        }
    }
    Error::check(WHAT, name, rc)?;
    Bdev::find(name)
}

/// What SPDK does not check, or only after it has claimed the bases.
fn check_sizes(what: &'static str, name: &str, bases: &[Bdev], strip_kib: u32) -> Result<()> {
    let refuse = |kind, why: String| Err(Error::new(kind, what, name, why));
    let Some(first) = bases.first() else {
        return refuse(ErrorKind::InvalidArgument, "it needs a base".to_owned());
    };
    if !strip_kib.is_power_of_two() {
        let why = format!("a strip of {strip_kib} KiB is no power of two");
        return refuse(ErrorKind::InvalidArgument, why);
    }
    let block = first.block_size();
    if !block.is_power_of_two() || bases.iter().any(|base| base.block_size() != block) {
        let why = "its bases must have blocks of one size, a power of two".to_owned();
        return refuse(ErrorKind::InvalidArgument, why);
    }
    // SPDK counts a strip's bytes in 32 bits.
    let strip = strip_kib.checked_mul(1024).map(u64::from);
    let fits = |strip: u64| strip >= u64::from(block) && bases.iter().all(|base| strip <= base.size());
    if !strip.is_some_and(fits) {
        let why = format!("a strip of {strip_kib} KiB is smaller than a block, or larger than a base");
        return refuse(ErrorKind::OutOfRange, why);
    }
    Ok(())
}

/// Deletes it; its bases stay. Waits until everybody who has it open has closed it. One that went
/// with one of its bases is deleted in this way, too.
///
/// # Errors
/// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] if it is of another kind;
/// [`ErrorKind::Busy`] if it is being deleted; [`ErrorKind::WrongThread`] if not called on the
/// app thread.
#[doc(alias = "raid_bdev_remove_base_devices")]
pub async fn delete(name: &str) -> Result<()> {
    const WHAT: &str = "delete RAID 0 bdev";
    check_app_thread(WHAT, name)?;
    let Some(config) = config(WHAT, name)? else {
        super::lookup(WHAT, name)?;
        let why = "is a block device of another kind";
        return Err(Error::new(ErrorKind::InvalidArgument, WHAT, name, why));
    };
    // SAFETY: found on the app thread just now.
    let proper = unsafe { super::text((*config.as_ptr()).name) };
    // A task: when nobody waits for it any more, its end is seen to all the same.
    let rc = crate::spawn(remove(WHAT, proper))
        .await
        .unwrap_or(Ok(-libc::ECANCELED))?;
    Error::check(WHAT, name, rc).map_err(|error| match -rc {
        libc::EALREADY => error
            .with_kind(ErrorKind::Busy)
            .with_detail("is being deleted already"),
        _ => error,
    })
}

async fn remove(what: &'static str, name: String) -> Result<i32> {
    let Some(found) = config(what, &name)? else {
        return Ok(-libc::EALREADY);
    };
    let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
        // SAFETY: found on the app thread just now. It calls back once, be it before it returns or
        // when the last descriptor is closed.
        unsafe { spdk_sys::raid_bdev_remove_base_devices(found.as_ptr(), Some(cb_fn), cb_arg) };
        Submitted::Pending
    })
    .await;
    if rc != 0 {
        return Ok(rc);
    }
    // One that is going already, with a base, is said to be gone before it is; and it still uses
    // its configuration.
    while let Some(config) = config(what, &name)? {
        // SAFETY: found on the app thread just now; not used after the clean-up.
        unsafe {
            if (*config.as_ptr()).raid_bdev.is_null() {
                spdk_sys::raid_bdev_config_cleanup(config.as_ptr());
                break;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(0)
}

/// SPDK's configuration of a RAID: there from its creation until it is deleted, whatever becomes
/// of the bdev. On the app thread; good until that does something else.
fn config(what: &'static str, name: &str) -> Result<Option<NonNull<raid_bdev_config>>> {
    let named = c_name(what, name)?;
    // SAFETY: on the app thread (contract) the list does not change while this runs.
    Ok(NonNull::new(unsafe {
        spdk_sys::raid_bdev_config_find_by_name(named.as_ptr())
    }))
}
