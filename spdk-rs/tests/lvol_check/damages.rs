//! What is done to a store, what a check has to say of it, and what is told to mend it.

use anyhow::Result;
use spdk_rs::lvol::Uuid;
use spdk_rs::lvol::check::{Finding, Repair, Unit};

use crate::image::{Image, List};
use crate::shop::{Blobs, Contents};

pub enum Loads {
    /// Everything.
    All,
    /// The store, without this volume.
    AllBut(&'static str),
    Nothing,
}

pub struct Damage {
    pub name: &'static str,
    pub make: fn(&Image, &Blobs) -> Result<()>,
    /// Each of these, and no other, is found.
    pub finds: &'static [fn(&Finding) -> bool],
    /// What SPDK loads by itself.
    pub loads: Loads,
    pub repair: fn(&Blobs) -> Result<Repair>,
    /// What there is afterwards.
    pub after: fn(&mut Contents),
}

fn named(blob: &spdk_rs::lvol::check::BlobName, name: &str) -> bool {
    blob.name.as_deref() == Some(name)
}

const NEW_UUID: &str = "11111111-2222-4333-8444-555555555555";

fn nothing_told(_: &Blobs) -> Result<Repair> {
    Ok(Repair::new())
}

fn forget_thick(blobs: &Blobs) -> Result<Repair> {
    Ok(Repair::new().forget(blobs.id("thick")?))
}

fn all(_: &mut Contents) {}

fn without_thick(contents: &mut Contents) {
    contents.remove("thick");
}

fn clear_name(image: &Image, blobs: &Blobs) -> Result<()> {
    image.replace(blobs.id("thick")?, b"name", b"nama")
}

fn rename(contents: &mut Contents, from: &str, to: &str) {
    let blocks = contents.remove(from).expect("it was there");
    contents.insert(to.into(), blocks);
}

fn is_leak(finding: &Finding, what: Unit, count: u64) -> bool {
    matches!(finding, Finding::Leaked { unit, units } if *unit == what && units.count() == count)
}

pub fn damages() -> Vec<Damage> {
    vec![
        Damage {
            name: "a leaked cluster",
            make: |image, _| image.set_used(List::Clusters, image.free_cluster()?, true),
            finds: &[|finding| is_leak(finding, Unit::Clusters, 1)],
            loads: Loads::All,
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "leaked pages",
            make: |image, _| {
                image.set_used(List::Pages, 20, true)?;
                image.set_used(List::Pages, 21, true)
            },
            finds: &[|finding| is_leak(finding, Unit::Pages, 2)],
            loads: Loads::All,
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "a cluster that is free and not",
            make: |image, blobs| {
                let clusters = image.clusters(image.extent_page(blobs.id("vol")?)?)?;
                image.set_used(List::Clusters, clusters[1].into(), false)
            },
            finds: &[|finding| match finding {
                Finding::UsedButFree {
                    unit: Unit::Clusters,
                    units,
                    blob: Some(blob),
                } => units.count() == 1 && named(blob, "vol"),
                _ => false,
            }],
            loads: Loads::AllBut("vol"),
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "pages that are free and not",
            make: |image, blobs| image.set_used(List::Pages, blobs.id("thick")? & 0xffff, false),
            finds: &[|finding| match finding {
                Finding::UsedButFree {
                    unit: Unit::Pages,
                    blob: Some(blob),
                    ..
                } => named(blob, "thick"),
                _ => false,
            }],
            loads: Loads::All,
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "a broken list",
            make: |image, _| image.break_list(List::Clusters),
            finds: &[|finding| *finding == Finding::BrokenMask { of: "used clusters" }],
            loads: Loads::All,
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "a zombie, adopted",
            make: |image, blobs| image.set_used(List::Blobs, blobs.id("thick")? & 0xffff, false),
            finds: &[|finding| match finding {
                Finding::Hidden {
                    blob,
                    clusters: 2,
                    conflicts: 0,
                } => named(blob, "thick"),
                _ => false,
            }],
            loads: Loads::AllBut("thick"),
            repair: |blobs| Ok(Repair::new().adopt(blobs.id("thick")?)),
            after: all,
        },
        Damage {
            name: "a zombie, forgotten",
            make: |image, blobs| image.set_used(List::Blobs, blobs.id("thick")? & 0xffff, false),
            finds: &[|finding| matches!(finding, Finding::Hidden { .. })],
            loads: Loads::AllBut("thick"),
            repair: forget_thick,
            after: without_thick,
        },
        Damage {
            name: "a volume without a name, renamed",
            make: clear_name,
            finds: &[|finding| matches!(finding, Finding::Nameless { lacks: "name", .. })],
            loads: Loads::Nothing,
            repair: |blobs| Ok(Repair::new().rename(blobs.id("thick")?, "found")),
            after: |contents| rename(contents, "thick", "found"),
        },
        Damage {
            name: "a volume without a name, forgotten",
            make: clear_name,
            finds: &[|finding| matches!(finding, Finding::Nameless { lacks: "name", .. })],
            loads: Loads::Nothing,
            repair: forget_thick,
            after: without_thick,
        },
        Damage {
            name: "a name that is there twice",
            make: |image, blobs| image.replace(blobs.id("twin")?, b"twin\0", b"vol\0\0"),
            finds: &[|finding| match finding {
                Finding::DuplicateName { name, blobs } => name == "vol" && blobs.len() == 2,
                _ => false,
            }],
            loads: Loads::All,
            repair: |blobs| Ok(Repair::new().rename(blobs.id("twin")?, "vol-2")),
            after: |contents| rename(contents, "twin", "vol-2"),
        },
        Damage {
            name: "a UUID that is there twice",
            make: |image, blobs| {
                let (old, new) = (blobs.uuid("twin")?, blobs.uuid("vol")?);
                image.replace(blobs.id("twin")?, old.as_bytes(), new.as_bytes())
            },
            finds: &[|finding| match finding {
                Finding::DuplicateUuid { blobs, .. } => blobs.len() == 2,
                _ => false,
            }],
            loads: Loads::All,
            repair: |blobs| Ok(Repair::new().set_uuid(blobs.id("twin")?, Uuid::parse_str(NEW_UUID)?)),
            after: all,
        },
        Damage {
            name: "a broken root page",
            make: |image, blobs| {
                let root = blobs.id("thick")? as u32;
                let mut page = image.page(root)?;
                page[200] ^= 1;
                image.put_raw(root, &page)
            },
            finds: &[
                |finding| matches!(finding, Finding::Broken { .. }),
                |finding| is_leak(finding, Unit::Clusters, 2),
                |finding| is_leak(finding, Unit::Pages, 1),
            ],
            loads: Loads::AllBut("thick"),
            repair: forget_thick,
            after: without_thick,
        },
        Damage {
            name: "a broken extent page",
            make: |image, blobs| {
                let extent_page = image.extent_page(blobs.id("thick")?)?;
                let mut page = image.page(extent_page)?;
                page[30] ^= 1;
                image.put_raw(extent_page, &page)
            },
            finds: &[
                |finding| match finding {
                    Finding::Broken { blob, .. } => named(blob, "thick"),
                    _ => false,
                },
                |finding| is_leak(finding, Unit::Clusters, 2),
            ],
            loads: Loads::AllBut("thick"),
            repair: forget_thick,
            after: without_thick,
        },
        Damage {
            name: "the deletion of a snapshot, interrupted before its clone took over",
            make: |image, blobs| {
                image.add_internal_xattr(blobs.id("snap")?, "SNAPRM", blobs.id("vol")?)?;
                image.set_unclean()
            },
            finds: &[|finding| match finding {
                Finding::InterruptedDelete {
                    blob,
                    taken_over: false,
                    ..
                } => named(blob, "snap"),
                _ => false,
            }],
            loads: Loads::All,
            repair: nothing_told,
            after: all,
        },
        Damage {
            name: "a snapshot in the making, on which the volume does not lie",
            make: |image, blobs| {
                image.add_internal_xattr(blobs.id("thick")?, "SNAPTMP", blobs.id("vol")?)?;
                image.set_unclean()
            },
            finds: &[|finding| match finding {
                Finding::InterruptedSnapshot {
                    blob, taken: false, ..
                } => named(blob, "thick"),
                _ => false,
            }],
            loads: Loads::AllBut("thick"),
            repair: nothing_told,
            after: without_thick,
        },
    ]
}
