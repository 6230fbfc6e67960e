//! A store built by hand, and then broken in every way.

use std::cell::RefCell;

use super::disk::{Disk, at_once};
use super::format::{self, PAGE};
use super::{AtRest, Finding, Report, Unit};
use crate::Result;

struct Memory(RefCell<Vec<u8>>);

impl Disk for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        Ok(self.0.borrow()[offset as usize..][..len].to_vec())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.borrow_mut()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Clusters, each of two pages; the first eight hold metadata: 12 pages from page 4 on.
const CLUSTERS: u32 = 24;
const METADATA: u32 = 12;
const FIRST: usize = 4;

fn descriptor(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    [&[kind], &length[..], content].concat()
}

fn xattr(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
    let lengths = [name.len() as u16, value.len() as u16];
    let lengths: Vec<u8> = lengths.into_iter().flat_map(u16::to_le_bytes).collect();
    descriptor(kind, &[&lengths, name.as_bytes(), value].concat())
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn names(name: &str, digit: u8) -> Vec<u8> {
    let uuid = format!("0e415a1a-cc4d-4625-8e03-3290cdb8b20{}\0", digit as char);
    [
        xattr(2, "name", format!("{name}\0").as_bytes()),
        xattr(2, "uuid", uuid.as_bytes()),
    ]
    .concat()
}

fn flags(invalid: u64) -> Vec<u8> {
    descriptor(3, &[invalid.to_le_bytes(), [0; 8], [0; 8]].concat())
}

/// A table of extent pages for so many clusters.
fn table(clusters: u64, pages: &[u32]) -> Vec<u8> {
    descriptor(5, &[&clusters.to_le_bytes()[..], &numbers(pages)].concat())
}

fn put(image: &mut [u8], page: u32, blob: u32, (sequence, next): (u32, u32), descriptors: &[u8]) {
    let page = &mut image[(FIRST + page as usize) * PAGE..][..PAGE];
    page.fill(0);
    page[..8].copy_from_slice(&format::blob_id(blob).to_le_bytes());
    page[8..12].copy_from_slice(&sequence.to_le_bytes());
    page[16..16 + descriptors.len()].copy_from_slice(descriptors);
    page[PAGE - 8..PAGE - 4].copy_from_slice(&next.to_le_bytes());
    format::seal(page);
}

fn mask(image: &mut [u8], page: usize, kind: u8, len: u32, used: &[u32]) {
    let page = &mut image[page * PAGE..][..PAGE];
    page.fill(0);
    page[0] = kind;
    page[1..5].copy_from_slice(&len.to_le_bytes());
    for bit in used {
        page[5 + *bit as usize / 8] |= 1 << (bit % 8);
    }
}

const ONLY: (u32, u32) = (0, u32::MAX);

/// A store with the volumes `thin` (by extent pages, its chain of two pages, on `snap`), `snap`, and
/// `thick` (by runs).
fn image() -> Vec<u8> {
    let mut image = vec![0; CLUSTERS as usize * 2 * PAGE];
    let at = |image: &mut Vec<u8>, at: usize, number: u32| {
        image[at..at + 4].copy_from_slice(&number.to_le_bytes());
    };
    image[..8].copy_from_slice(b"SPDKBLOB");
    image[56..65].copy_from_slice(b"LVOLSTORE");
    // Version, length, clean; the blob that says what the store is (page 0); cluster size; masks and
    // metadata; blocks of 512 bytes.
    let fields = [
        3,
        4096,
        1,
        0,
        1,
        2 * PAGE as u32,
        1,
        1,
        2,
        1,
        FIRST as u32,
        METADATA,
    ];
    for (number, field) in fields.into_iter().enumerate() {
        at(&mut image, 8 + number * 4, field);
    }
    at(&mut image, 72, 3);
    at(&mut image, 76, 1);
    at(&mut image, 80, CLUSTERS * 2 * PAGE as u32);
    at(&mut image, 88, 512);
    format::seal(&mut image[..PAGE]);
    mask(&mut image, 1, 0, METADATA, &[0, 1, 2, 3, 4, 5, 6]);
    mask(
        &mut image,
        2,
        1,
        CLUSTERS,
        &[0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 15, 20],
    );
    mask(&mut image, 3, 2, METADATA, &[0, 1, 4, 6]);
    put(
        &mut image,
        0,
        0,
        ONLY,
        &[flags(4), names("lvs", b'0'), table(0, &[])].concat(),
    );
    let parent = xattr(4, "SNAP", &format::blob_id(4).to_le_bytes());
    put(
        &mut image,
        1,
        1,
        (0, 2),
        &[flags(7), names("thin", b'1'), parent].concat(),
    );
    put(&mut image, 2, 1, (1, u32::MAX), &table(515, &[0, 1, 3, 1]));
    put(&mut image, 3, 1, ONLY, &descriptor(6, &numbers(&[512, 0, 20, 0])));
    put(
        &mut image,
        4,
        4,
        ONLY,
        &[flags(5), names("snap", b'2'), table(2, &[5, 1])].concat(),
    );
    put(&mut image, 5, 4, ONLY, &descriptor(6, &numbers(&[0, 15, 0])));
    let runs = descriptor(1, &numbers(&[10, 3]));
    put(
        &mut image,
        6,
        6,
        ONLY,
        &[flags(0), names("thick", b'3'), runs].concat(),
    );
    image
}

fn check(image: Vec<u8>) -> Result<Report> {
    at_once(async { Ok(AtRest::read(&Memory(RefCell::new(image))).await?.report) })
}

/// What is found after a change.
fn after(change: impl FnOnce(&mut Vec<u8>)) -> Vec<Finding> {
    let mut image = image();
    change(&mut image);
    check(image).expect("a store").findings
}

#[test]
fn a_whole_store_is_read_and_is_clean() {
    let report = check(image()).expect("a store");
    assert_eq!(report.findings, []);
    assert_eq!(report.name.as_deref(), Some("lvs"));
    let sizes = |name: &str| {
        let mut volumes = report.volumes.iter();
        let volume = volumes.find(|volume| volume.blob.name.as_deref() == Some(name));
        volume.map(|volume| (volume.clusters, volume.own_clusters, volume.thin, volume.parent))
    };
    assert_eq!(sizes("thin"), Some((515, 1, true, Some(format::blob_id(4)))));
    assert_eq!(sizes("snap"), Some((2, 1, true, None)));
    assert_eq!(sizes("thick"), Some((3, 3, false, None)));
    assert_eq!(report.volumes.len(), 3);
}

/// A crash may come between the two writes; SPDK takes the size that the extent page says.
#[test]
fn a_resize_that_was_cut_off_is_no_damage() {
    for (clusters, says) in [(514, 515), (516, 515)] {
        let mut image = image();
        put(&mut image, 2, 1, (1, u32::MAX), &table(clusters, &[0, 1, 3, 1]));
        let report = check(image).expect("a store");
        assert_eq!(report.findings, []);
        let thin = report
            .volumes
            .iter()
            .find(|volume| volume.blob.blob == format::blob_id(1));
        assert_eq!(thin.map(|thin| thin.clusters), Some(says));
    }
}

#[test]
fn what_is_no_store_is_refused_with_the_reason() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut image = image();
        change(&mut image);
        let error = check(image).expect_err("no store");
        error.detail().unwrap_or_default().to_owned()
    };
    assert!(refused(|image| image[0] = 0).contains("no signature"));
    assert!(refused(|image| image[30] ^= 1).contains("checksum is wrong"));
    assert!(refused(|image| image.truncate(12 * PAGE)).contains("has shrunk"));
    assert!(refused(|image| image.truncate(100)).contains("100 bytes"));
    let resealed = |at: usize, value: u8| {
        let mut image = image();
        image[at] = value;
        format::seal(&mut image[..PAGE]);
        check(image).expect_err("no store").to_string()
    };
    assert!(resealed(8, 4).contains("version 4"));
    assert!(resealed(29, 0).contains("a cluster has 0 bytes"));
    assert!(resealed(53, 1).contains("impossible"));
    assert!(resealed(40, 9).contains("a mask of 24 bits"));
    assert!(resealed(56, b'X').contains("none of logical volumes"));
}

#[test]
fn damage_is_told_with_its_page() {
    let why = |page: u32, change: fn(&mut [u8]), reseal: bool| {
        let findings = after(|image| {
            let page = &mut image[(FIRST + page as usize) * PAGE..][..PAGE];
            change(page);
            if reseal {
                format::seal(page);
            }
        });
        let broken = |finding: &Finding| match finding {
            Finding::Broken { page: at, why, .. } if *at == page => Some(why.clone()),
            _ => None,
        };
        let broken: Vec<_> = findings.iter().filter_map(broken).collect();
        assert_eq!(broken.len(), 1, "{findings:?}");
        broken.into_iter().next().unwrap_or_default()
    };
    assert!(why(6, |page| page[100] ^= 1, false).contains("checksum"));
    assert!(why(6, |page| page[0] ^= 2, true).contains("says that it is page 0 of blob"));
    assert!(why(2, |page| page[8] = 5, true).contains("and should be page 1"));
    assert!(why(2, |page| page[PAGE - 8..PAGE - 4].fill(0xaa), true).contains("does not exist"));
    assert!(
        why(
            2,
            |page| page[PAGE - 8..PAGE - 4].copy_from_slice(&[1, 0, 0, 0]),
            true
        )
        .contains("twice")
    );
    assert!(why(5, |page| page[16] = 2, true).contains("length that is impossible"));
    assert!(why(5, |page| page[16] = 9, true).contains("no extent page"));
    assert!(why(3, |page| page[21] = 7, true).contains("should from 512 on"));
    assert!(why(5, |page| page[29] = 200, true).contains("the store has 24"));
    assert!(why(5, |page| page[29] = 3, true).contains("cluster 3 of the metadata"));
    assert!(why(6, |page| page[21] = 0x10, true).contains("flags (0x10)"));
    assert!(why(6, |page| page[17..21].fill(0xff), true).contains("beyond its page"));
}

#[test]
fn lists_that_are_wrong_are_told() {
    let used = |kind: u8, page: usize, len: u32, bits: &'static [u32]| {
        after(move |image| mask(image, page, kind, len, bits))
    };
    let findings = used(1, 2, CLUSTERS, &[0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 15, 20, 23]);
    let told: Vec<_> = findings.iter().map(Finding::to_string).collect();
    assert_eq!(findings.len(), 3, "{told:?}");
    assert!(told[0].starts_with("2 clusters are said to be used, and nobody has them (8, 23)"));
    assert!(told[1].starts_with("volume thick (blob 0x100000006) has 1 clusters that are said to be free"));
    assert!(told[2].starts_with("the metadata have 1 clusters that are said to be free"));
    let findings = used(0, 1, METADATA, &[0, 1, 2, 3, 4, 6, 9]);
    let told: Vec<_> = findings.iter().map(Finding::to_string).collect();
    assert_eq!(findings.len(), 2, "{told:?}");
    assert!(told[0].starts_with("1 metadata pages are said to be used, and nobody has them (9)"));
    assert!(told[1].starts_with("volume snap (blob 0x100000004) has 1 metadata pages"));
    let findings = used(2, 3, METADATA, &[0, 1, 4]);
    let [
        Finding::Hidden {
            blob,
            clusters: 3,
            conflicts: 0,
        },
    ] = &findings[..]
    else {
        panic!("{findings:?}");
    };
    assert_eq!(blob.name.as_deref(), Some("thick"));
    let findings = used(1, 3, METADATA, &[]);
    assert_eq!(findings, [Finding::BrokenMask { of: "used blobs" }]);
}

#[test]
fn what_two_have_is_told_unless_one_of_them_goes() {
    let share = |image: &mut Vec<u8>, more: &[u8]| {
        let names = [flags(0), names("thick", b'3'), more.to_vec()].concat();
        put(
            image,
            6,
            6,
            ONLY,
            &[names, descriptor(1, &numbers(&[20, 1]))].concat(),
        );
    };
    let shared = |findings: &[Finding]| {
        let mut findings = findings.iter();
        findings.any(|finding| {
            matches!(
                finding,
                Finding::Shared {
                    unit: Unit::Clusters,
                    ..
                }
            )
        })
    };
    assert!(shared(&after(|image| share(image, &[]))));
    // It was being deleted, and the clone that took over has clusters of its.
    let removal = xattr(4, "SNAPRM", &format::blob_id(1).to_le_bytes());
    let findings = after(|image| share(image, &removal));
    assert!(!shared(&findings), "{findings:?}");
    let interrupted =
        |finding: &Finding| matches!(finding, Finding::InterruptedDelete { taken_over: true, .. });
    assert!(findings.iter().any(interrupted), "{findings:?}");
}

#[test]
fn parents_names_and_uuids_are_looked_at() {
    let thin = |parent: u32, name: &'static str, digit: u8| {
        after(move |image| {
            let parent = xattr(4, "SNAP", &format::blob_id(parent).to_le_bytes());
            put(
                image,
                1,
                1,
                (0, 2),
                &[flags(7), names(name, digit), parent].concat(),
            );
        })
    };
    let is = |findings: &[Finding], what: &str| {
        let told: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert!(findings.len() == 1 && told[0].contains(what), "{told:?}");
    };
    is(&thin(9, "thin", b'1'), "which is not there");
    is(&thin(1, "thin", b'1'), "which lies on it again");
    is(&thin(4, "snap", b'1'), "2 volumes are called snap");
    is(&thin(4, "thin", b'2'), "2 volumes have the UUID");
    let nameless = after(|image| {
        let runs = descriptor(1, &numbers(&[10, 3]));
        put(image, 6, 6, ONLY, &[flags(0), runs].concat());
    });
    let told: Vec<_> = nameless.iter().map(Finding::to_string).collect();
    assert!(told.len() == 2 && told[0].contains("has no name") && told[1].contains("has no uuid"));
}

#[test]
fn an_xattr_is_set_where_there_is_room() {
    let mut page = vec![0; PAGE];
    let old = [names("old", b'0'), xattr(4, "name", b"internal"), flags(1)].concat();
    page[16..16 + old.len()].copy_from_slice(&old);
    let changed = format::with_xattr(&page, b"name", b"new\0").expect("room");
    let xattrs = |page: &[u8]| {
        let page = format::Page::new(page).expect("a page");
        assert!(page.crc_is_right());
        let descriptors = page
            .descriptors()
            .map(|descriptor| format!("{:?}", descriptor.expect("right")));
        descriptors.collect::<Vec<_>>()
    };
    let left = xattrs(&changed);
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(
        left.iter().any(|left| left.contains(&format!("{:?}", b"new\0"))),
        "{left:?}"
    );
    assert!(
        !left.iter().any(|left| left.contains(&format!("{:?}", b"old\0"))),
        "{left:?}"
    );
    assert_eq!(format::with_xattr(&page, b"long", &[1; 4050]), None);
}

/// Whatever lies there, a check ends, and does not panic; nor does a repair.
#[test]
fn garbage_does_no_harm() {
    let whole = image();
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let (mut refused, mut wrong) = (0, 0);
    for _ in 0..6_000 {
        let mut image = whole.clone();
        for _ in 0..1 + random(3) {
            // The first bytes of a page are where everything is.
            let page = random(FIRST + METADATA as usize) * PAGE;
            let at = page
                + if random(5) == 0 {
                    PAGE - 8 + random(4)
                } else {
                    random(250)
                };
            image[at] = match random(3) {
                0 => 0xff,
                1 => image[at].wrapping_add(1),
                _ => random(256) as u8,
            };
            if !(PAGE..FIRST * PAGE).contains(&page) {
                format::seal(&mut image[page..page + PAGE]);
            }
        }
        let disk = Memory(RefCell::new(image));
        match at_once(super::repair::mend(&disk, &super::Repair::new())) {
            Ok(repaired) => wrong += usize::from(!repaired.before.is_clean()),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 300 && wrong > 300, "{refused} {wrong}");
}
