//! Mends a store that is not loaded.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::blob::Blob;
use super::disk::{BdevDisk, Disk, FileDisk, at_once};
use super::findings::{Finding, Remedy};
use super::format::{self, PAGE};
use super::report::Report;
use super::{AtRest, judge};
use crate::bdev::{self, Bdev, Mode};
use crate::lvol::{lookup, on_metadata_thread, store};
use crate::{Error, ErrorKind, Result};

const WHAT: &str = "repair lvstore";

/// What is to be mended.
///
/// By itself, what loses nothing: if the lists of what is used are wrong (something is
/// [leaked](Finding::Leaked), [used but free](Finding::UsedButFree), or a list is
/// [broken](Finding::BrokenMask)), it is noted that the store was not unloaded, and the next load makes
/// the lists anew. Interrupted deletes are completed, and interrupted snapshots settled, by any load.
///
/// Everything else is told blob by blob, with the ids that a [`Report`] gives. What would lose more than
/// was told is refused as a whole, before anything is written: as long as there are zombies or broken
/// blobs of which nothing was told, the lists are not made anew, since that would bring back the ones
/// and could lose the others.
///
/// Each write is one page, and they are ordered so that the store is no worse than before if only some
/// of them are done; the repair can be repeated then.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    adopt: Vec<u64>,
    forget: Vec<u64>,
    names: Vec<(u64, String)>,
    uuids: Vec<(u64, Uuid)>,
}

impl Repair {
    /// Mends what loses nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A [hidden](Finding::Hidden) blob is to become a volume again. Refused if others have what it had.
    #[must_use]
    pub fn adopt(mut self, blob: u64) -> Self {
        self.adopt.push(blob);
        self
    }

    /// A blob, whatever it is, is to be deleted: **its data are lost**. Refused if a volume lies on it.
    #[must_use]
    pub fn forget(mut self, blob: u64) -> Self {
        self.forget.push(blob);
        self
    }

    /// A blob gets this name, of 1 to 63 bytes, which no other may have.
    #[must_use]
    pub fn rename(mut self, blob: u64, name: &str) -> Self {
        self.names.push((blob, name.to_owned()));
        self
    }

    /// A blob gets this UUID, which no other may have.
    #[must_use]
    pub fn set_uuid(mut self, blob: u64, uuid: Uuid) -> Self {
        self.uuids.push((blob, uuid));
        self
    }

    fn blobs(&self) -> impl Iterator<Item = u64> {
        let names = self.names.iter().map(|(blob, _)| *blob);
        let uuids = self.uuids.iter().map(|(blob, _)| *blob);
        let told = self.adopt.iter().chain(&self.forget).copied();
        told.chain(names).chain(uuids)
    }
}

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// How it was.
    pub before: Report,
    /// What was done, in sentences. Empty: there was nothing to do.
    pub steps: Vec<String>,
    /// How it is. If a recovery is due, what is used is looked at by the next load.
    pub after: Report,
}

/// Mends the store in a file, or on a block device of the system, without SPDK. Nobody else may use it
/// meanwhile.
///
/// # Errors
/// As [`check_file`](super::check_file); [`ErrorKind::InvalidArgument`]: what was told is refused, and
/// why, and nothing was written; others if a write fails: the repair can be repeated then.
pub fn repair_file(path: impl AsRef<Path>, repair: &Repair) -> Result<Repaired> {
    let disk = FileDisk::open(WHAT, path.as_ref(), true)?;
    at_once(mend(&disk, repair))
}

/// Mends the store on a block device of SPDK. It is loaded when SPDK examines the device next: when it
/// is created anew.
///
/// # Errors
/// As [`check_bdev`](super::check_bdev) and [`repair_file`]; [`ErrorKind::Busy`]: the store is loaded.
pub async fn repair_bdev(bdev: &str, repair: Repair) -> Result<Repaired> {
    let bdev = bdev.to_owned();
    on_metadata_thread(move || async move {
        bdev::wait_for_examine().await?;
        let device = Bdev::find(&bdev)?;
        if let Ok(store) = lookup::find_store_on(WHAT, device.name()) {
            let why = format!(
                "lvstore {} is loaded from it: unload it first",
                lookup::store_identity(store)
            );
            return Err(Error::new(ErrorKind::Busy, WHAT, bdev, why));
        }
        let disk = BdevDisk::open(&device, Mode::ReadWrite)?;
        let repaired = mend(&disk, &repair).await;
        disk.close().await?;
        repaired
    })
    .await
}

pub(super) async fn mend<D: Disk>(disk: &D, repair: &Repair) -> Result<Repaired> {
    let found = AtRest::read(disk).await?;
    let plan = Plan::make(&found, repair).map_err(|why| {
        let why = format!("{why}; nothing was written");
        Error::new(ErrorKind::InvalidArgument, WHAT, disk.name(), why)
    })?;
    let steps = plan.carry_out(disk, &found).await?;
    let after = match steps.is_empty() {
        true => found.report.clone(),
        false => AtRest::read(disk).await?.report,
    };
    Ok(Repaired {
        before: found.report,
        steps,
        after,
    })
}

/// What is to be written, after everything was found to be all right.
struct Plan<'a> {
    forget_hidden: Vec<&'a Blob>,
    /// The lists are to be made anew.
    recover: bool,
    forget: Vec<&'a Blob>,
    /// Blobs, and an xattr with its new value.
    xattrs: Vec<(&'a Blob, &'static str, String)>,
}

impl<'a> Plan<'a> {
    fn make(found: &'a AtRest, repair: &'a Repair) -> Result<Self, String> {
        let survey = &found.survey;
        for id in repair.blobs() {
            if survey.superblock.super_blob == Some(id) {
                return Err(format!(
                    "blob {id:#x} is no volume: it says what the store is called"
                ));
            }
        }
        let find = |id: u64| {
            let blob = survey.blobs.iter().find(|blob| blob.id == id);
            blob.ok_or_else(|| format!("there is no blob {id:#x}"))
        };
        let find_all = |ids: &[u64]| ids.iter().map(|id| find(*id)).collect::<Result<Vec<_>, _>>();
        let (adopt, forget) = (find_all(&repair.adopt)?, find_all(&repair.forget)?);
        for blob in &adopt {
            check_adoption(found, blob)?;
        }
        for blob in &forget {
            check_forgetting(found, repair, blob)?;
        }
        let mut xattrs = Vec::new();
        for (id, name) in &repair.names {
            store::c_name(WHAT, name).map_err(|error| error.to_string())?;
            xattrs.push((find(*id)?, "name", name.clone()));
        }
        for (id, uuid) in &repair.uuids {
            xattrs.push((find(*id)?, "uuid", uuid.to_string()));
        }
        for (blob, _, _) in &xattrs {
            if blob.damage.is_some() || repair.forget.contains(&blob.id) {
                return Err(format!("{} is broken, or to be forgotten", judge::name_of(blob)));
            }
        }
        check_names(found, repair)?;

        let lists_are_wrong = found
            .report
            .findings
            .iter()
            .any(|finding| finding.remedy() == Remedy::Repair);
        let recover = lists_are_wrong || !adopt.is_empty() || !forget.is_empty();
        if recover {
            check_recovery(found, repair)?;
        }
        let (forget_hidden, forget) = forget.into_iter().partition(|blob| blob.hidden);
        Ok(Self {
            forget_hidden,
            recover,
            forget,
            xattrs,
        })
    }

    /// A zombie goes first: a recovery in between would bring it back. Another blob goes after it is
    /// noted that the lists are wrong: they name it.
    async fn carry_out<D: Disk>(&self, disk: &D, found: &AtRest) -> Result<Vec<String>> {
        let superblock = &found.survey.superblock;
        let pages = self.pages(disk, found).await?;
        let mut steps = Vec::new();
        let wipe = async |blob: &Blob, steps: &mut Vec<String>| {
            let offset = superblock.page_offset(format::root_of(blob.id));
            disk.write(offset, &[0; PAGE]).await?;
            steps.push(format!("{} is forgotten", judge::name_of(blob)));
            Ok::<(), Error>(())
        };
        for blob in &self.forget_hidden {
            wipe(blob, &mut steps).await?;
        }
        if self.recover && superblock.clean {
            let mut page = disk.read(0, PAGE).await?;
            format::set_unclean(&mut page);
            disk.write(0, &page).await?;
            steps.push("the next load makes the lists of what is used anew".into());
        }
        for blob in &self.forget {
            wipe(blob, &mut steps).await?;
        }
        for (offset, page) in pages {
            disk.write(offset, &page).await?;
        }
        let set = |(blob, xattr, value): &(&Blob, _, _)| {
            format!("{} gets the {xattr} {value}", judge::name_of(blob))
        };
        steps.extend(self.xattrs.iter().map(set));
        Ok(steps)
    }

    /// The pages with the new xattrs, by their offsets: each xattr in the page of its blob that has it, or
    /// else in the first one with room.
    async fn pages<D: Disk>(&self, disk: &D, found: &AtRest) -> Result<BTreeMap<u64, Vec<u8>>> {
        let mut pages = BTreeMap::new();
        for (blob, xattr, value) in &self.xattrs {
            let (xattr, value) = (xattr.as_bytes(), [value.as_bytes(), &[0]].concat());
            let mut chosen = None;
            for number in &blob.pages {
                let offset = found.survey.superblock.page_offset(*number);
                let page = match pages.get(&offset) {
                    Some(page) => Vec::clone(page),
                    None => disk.read(offset, PAGE).await?,
                };
                let has_it = format::has_xattr(&page, xattr);
                if has_it || chosen.is_none() {
                    chosen = format::with_xattr(&page, xattr, &value).map(|page| (offset, page));
                }
                if has_it {
                    break;
                }
            }
            let (offset, page) = chosen.ok_or_else(|| {
                let why = format!("the metadata of {} have no room for it", judge::name_of(blob));
                Error::new(ErrorKind::NoSpace, WHAT, disk.name(), why)
            })?;
            pages.insert(offset, page);
        }
        Ok(pages)
    }
}

fn check_adoption(found: &AtRest, blob: &Blob) -> Result<(), String> {
    let name = judge::name_of(blob);
    let conflicts = found.report.findings.iter().find_map(|finding| match finding {
        Finding::Hidden { blob, conflicts, .. } if *blob == name => Some(*conflicts),
        _ => None,
    });
    match (conflicts, &blob.damage) {
        (None, _) => Err(format!("{name} is no zombie, and cannot be adopted")),
        (_, Some(damage)) => Err(format!("{name} cannot be adopted: {}", damage.why)),
        (Some(0), None) => Ok(()),
        (Some(conflicts), None) => Err(format!(
            "{name} cannot be adopted: others have {conflicts} of its clusters and pages by now"
        )),
    }
}

fn check_forgetting(found: &AtRest, repair: &Repair, blob: &Blob) -> Result<(), String> {
    let name = judge::name_of(blob);
    if repair.adopt.contains(&blob.id) {
        return Err(format!("{name} is both to be adopted and to be forgotten"));
    }
    let stays = |other: &&Blob| !repair.forget.contains(&other.id);
    let mut clones = found.survey.blobs.iter().filter(stays);
    match clones.find(|other| other.thin && other.parent == Some(blob.id)) {
        Some(clone) => Err(format!(
            "{} lies on {name}, which must stay",
            judge::name_of(clone)
        )),
        None => Ok(()),
    }
}

/// A new name or UUID is nobody's, when all is done.
fn check_names(found: &AtRest, repair: &Repair) -> Result<(), String> {
    let stay = || {
        let blobs = found.survey.blobs.iter();
        blobs.filter(|blob| {
            !repair.forget.contains(&blob.id) && (!blob.hidden || repair.adopt.contains(&blob.id))
        })
    };
    let new_name = |blob: &Blob| {
        let told = repair.names.iter().rfind(|(id, _)| *id == blob.id);
        told.map(|(_, name)| name.clone()).or_else(|| blob.name.clone())
    };
    let new_uuid = |blob: &Blob| {
        let told = repair.uuids.iter().rfind(|(id, _)| *id == blob.id);
        told.map(|(_, uuid)| *uuid).or(blob.uuid)
    };
    let volumes = || stay().filter(|blob| found.survey.superblock.super_blob != Some(blob.id));
    for (_, name) in &repair.names {
        if volumes()
            .filter(|blob| new_name(blob).as_ref() == Some(name))
            .count()
            > 1
        {
            return Err(format!("the name {name} is taken"));
        }
    }
    for (_, uuid) in &repair.uuids {
        if volumes().filter(|blob| new_uuid(blob) == Some(*uuid)).count() > 1 {
            return Err(format!("the UUID {uuid} is taken"));
        }
    }
    Ok(())
}

/// A recovery takes in every blob that lies on the disk, and fails at one that is broken.
fn check_recovery(found: &AtRest, repair: &Repair) -> Result<(), String> {
    for blob in &found.survey.blobs {
        let told = repair.adopt.contains(&blob.id) || repair.forget.contains(&blob.id);
        let name = judge::name_of(blob);
        if blob.hidden && !told {
            return Err(format!(
                "making the lists of what is used anew would bring back {name}, a zombie: say whether it is to be adopted or forgotten"
            ));
        }
        if blob.damage.is_some() && !told {
            return Err(format!(
                "making the lists of what is used anew may lose {name}, which is broken: say whether it is to be forgotten"
            ));
        }
    }
    Ok(())
}
