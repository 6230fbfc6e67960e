//! How SPDK's blobstore lies on disk: the super block, the masks, and pages of metadata with their
//! descriptors. Pure functions over bytes. They take nothing for granted: whatever the bytes are,
//! they neither panic nor allocate more than there are bytes.
//!
//! All numbers are little-endian, nothing is aligned. A blob's metadata are a chain of pages that
//! begins at its *root page*, whose number is the lower half of the blob's id; a page that a chain
//! points to may also be an *extent page*, which says where 512 of the blob's clusters are.

use crc_fast::{CrcAlgorithm, checksum};

use super::bits::Bits;

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;

/// Clusters that an extent page describes.
pub(super) const CLUSTERS_PER_EXTENT_PAGE: u64 = 512;

/// What SPDK writes for "no blob".
const NO_BLOB: u64 = u64::MAX;

const SIGNATURE: &[u8] = b"SPDKBLOB";
const LAST_PAGE: u32 = u32::MAX;
/// Where a page's checksum lies.
const CRC: usize = PAGE - 4;
/// Where a page's descriptors begin and end.
const DESCRIPTORS: std::ops::Range<usize> = 16..PAGE - 8;
/// Type and length.
const DESCRIPTOR_HEADER: usize = 5;

const PADDING: u8 = 0;
const EXTENT_RLE: u8 = 1;
const XATTR: u8 = 2;
const FLAGS: u8 = 3;
const XATTR_INTERNAL: u8 = 4;
const EXTENT_TABLE: u8 = 5;
const EXTENT_PAGE: u8 = 6;

/// A flag among [`Descriptor::Flags`]: clusters may be unallocated.
pub(super) const THIN: u64 = 1;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The id of the blob whose root page this is.
pub(super) fn blob_id(root: u32) -> u64 {
    1 << 32 | u64::from(root)
}

/// The root page of a blob.
pub(super) fn root_of(id: u64) -> u32 {
    id as u32
}

/// The checksum of a page: CRC-32C of all that lies before it.
fn crc_of(page: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, &page[..CRC]) as u32
}

fn crc_is_right(page: &[u8]) -> bool {
    page.len() == PAGE && crc_of(page) == u32_at(page, CRC)
}

/// Writes a page's checksum into it.
pub(super) fn seal(page: &mut [u8]) {
    let crc = crc_of(page);
    page[CRC..].copy_from_slice(&crc.to_le_bytes());
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// The first page of a blobstore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SuperBlock {
    /// It was unloaded, and nothing has changed since: the masks are right.
    pub(super) clean: bool,
    /// The blob that says what the store is.
    pub(super) super_blob: Option<u64>,
    /// In bytes.
    pub(super) cluster_size: u64,
    pub(super) clusters: u64,
    /// Clusters at the beginning that hold metadata.
    pub(super) metadata_clusters: u64,
    /// Where the pages of metadata are.
    pub(super) metadata: Extent,
    pub(super) used_pages: Extent,
    pub(super) used_clusters: Extent,
    /// `None` in the formats before version 3.
    pub(super) used_blobs: Option<Extent>,
    /// It says that it is a store of logical volumes.
    pub(super) is_lvstore: bool,
}

impl SuperBlock {
    /// Reads it from the first page of a device with so many bytes.
    ///
    /// # Errors
    /// What is wrong, as a sentence about "the super block".
    pub(super) fn parse(page: &[u8], device: u64) -> Result<Self, String> {
        if page.len() != PAGE || !page.starts_with(SIGNATURE) {
            return Err("there is no blobstore on it: the super block has no signature".into());
        }
        if !crc_is_right(page) {
            return Err("the super block is broken: its checksum is wrong".into());
        }
        let version = u32_at(page, 8);
        if !(1..=3).contains(&version) {
            return Err(format!("the super block has version {version}; known are 1 to 3"));
        }
        let size = match u64_at(page, 80) {
            0 => device,
            size if size > device => {
                return Err(format!(
                    "the super block says {size} bytes, and the device has {device}: it has shrunk"
                ));
            }
            size => size,
        };
        let cluster_size = u64::from(u32_at(page, 28));
        if cluster_size == 0 || cluster_size % PAGE as u64 != 0 || cluster_size > size {
            return Err(format!(
                "the super block says that a cluster has {cluster_size} bytes"
            ));
        }
        let extent = |at| Extent {
            start: u64::from(u32_at(page, at)),
            len: u64::from(u32_at(page, at + 4)),
        };
        let clusters = size / cluster_size;
        let metadata = extent(48);
        let pages = metadata.start + metadata.len;
        let metadata_clusters = pages.div_ceil(cluster_size / PAGE as u64);
        if metadata.start == 0 || metadata.len == 0 || metadata_clusters > clusters {
            return Err(format!(
                "the super block says that metadata are in {} pages from page {} on, which is impossible",
                metadata.len, metadata.start
            ));
        }
        let blobs = extent(72);
        let super_blob = u64_at(page, 20);
        let sb = Self {
            clean: u32_at(page, 16) == 1,
            super_blob: (super_blob != NO_BLOB).then_some(super_blob),
            cluster_size,
            clusters,
            metadata_clusters,
            metadata,
            used_pages: extent(32),
            used_clusters: extent(40),
            used_blobs: (blobs.len > 0).then_some(blobs),
            is_lvstore: page[56..72].starts_with(b"LVOLSTORE"),
        };
        let masks = [
            (Some(sb.used_pages), sb.metadata.len),
            (Some(sb.used_clusters), sb.clusters),
            (sb.used_blobs, sb.metadata.len),
        ];
        for (mask, bits) in masks.into_iter().filter_map(|(mask, bits)| Some((mask?, bits))) {
            if mask.start == 0 || mask.start + mask.len > metadata.start || mask.len < mask_pages(bits) {
                return Err(format!(
                    "the super block says that a mask of {bits} bits is in {} pages from page {} on",
                    mask.len, mask.start
                ));
            }
        }
        Ok(sb)
    }

    /// Where a page of metadata is, in bytes.
    pub(super) fn page_offset(&self, page: u32) -> u64 {
        (self.metadata.start + u64::from(page)) * PAGE as u64
    }
}

/// Notes in a super block that the masks are not right: the next load makes them anew from the
/// blobs' metadata.
pub(super) fn set_unclean(super_page: &mut [u8]) {
    super_page[16..20].fill(0);
    seal(super_page);
}

const MASK_HEADER: usize = 5;

/// Pages that a mask needs.
pub(super) fn mask_pages(bits: u64) -> u64 {
    (MASK_HEADER as u64 + bits.div_ceil(8)).div_ceil(PAGE as u64)
}

/// What a mask says is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaskKind {
    Pages = 0,
    Clusters = 1,
    Blobs = 2,
}

/// Reads a mask of so many bits. `None` if it is none.
pub(super) fn parse_mask(bytes: &[u8], kind: MaskKind, len: u64) -> Option<Bits> {
    let (header, bits) = bytes.split_at_checked(MASK_HEADER)?;
    if header[0] != kind as u8 || u64::from(u32_at(header, 1)) != len {
        return None;
    }
    Bits::from_bytes(bits, len)
}

/// A page of metadata.
#[derive(Clone, Copy)]
pub(super) struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    /// `None` if there are too few bytes.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.get(..PAGE).map(Self)
    }

    pub(super) fn crc_is_right(&self) -> bool {
        crc_is_right(self.0)
    }

    /// The blob that it belongs to.
    pub(super) fn id(&self) -> u64 {
        u64_at(self.0, 0)
    }

    /// Its place in the chain.
    pub(super) fn sequence(&self) -> u32 {
        u32_at(self.0, 8)
    }

    /// The page after it in the chain.
    pub(super) fn next(&self) -> Option<u32> {
        let next = u32_at(self.0, PAGE - 8);
        (next != LAST_PAGE).then_some(next)
    }

    /// A blob begins here, if this is page `page`.
    pub(super) fn is_root(&self, page: u32) -> bool {
        self.id() == blob_id(page) && self.sequence() == 0 && self.crc_is_right()
    }

    pub(super) fn descriptors(&self) -> Descriptors<'a> {
        Descriptors(&self.0[DESCRIPTORS])
    }
}

/// A part of a blob's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptor<'a> {
    Flags {
        /// Of these SPDK must know each, or it does not open the blob.
        invalid: u64,
        data_ro: u64,
    },
    Xattr {
        internal: bool,
        name: &'a [u8],
        value: &'a [u8],
    },
    /// Runs of clusters, in the order of the blob.
    Runs(Pairs<'a>),
    /// Extent pages, in the order of the blob, and clusters in all.
    Table { clusters: u64, entries: Pairs<'a> },
    /// What an extent page says: clusters from the one with this index on.
    Clusters { start: u32, clusters: Numbers<'a> },
    /// Of a later version.
    Unknown,
}

/// Numbers on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.chunks_exact(4).map(|four| u32_at(four, 0))
    }
}

/// Pairs of numbers on disk: a number (0: none), and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pairs<'a>(&'a [u8]);

impl<'a> Pairs<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.0
            .chunks_exact(8)
            .map(|eight| (u32_at(eight, 0), u32_at(eight, 4)))
    }
}

/// What can be wrong with a descriptor.
const BEYOND: &str = "a descriptor reaches beyond its page";
const WRONG_LENGTH: &str = "a descriptor has a length that is impossible";

/// The descriptors of a page. After an error it ends.
pub(super) struct Descriptors<'a>(&'a [u8]);

impl<'a> Iterator for Descriptors<'a> {
    type Item = Result<Descriptor<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, length, rest) = loop {
            let (header, rest) = self.0.split_at_checked(DESCRIPTOR_HEADER)?;
            let (kind, length) = (header[0], u32_at(header, 1) as usize);
            if kind != PADDING {
                break (kind, length, rest);
            }
            match rest.get(length..) {
                Some(after) if length > 0 => self.0 = after,
                _ => return None,
            }
        };
        let Some((content, after)) = rest.split_at_checked(length) else {
            self.0 = &[];
            return Some(Err(BEYOND));
        };
        self.0 = after;
        let descriptor = parse_descriptor(kind, content).ok_or(WRONG_LENGTH);
        if descriptor.is_err() {
            self.0 = &[];
        }
        Some(descriptor)
    }
}

fn parse_descriptor(kind: u8, content: &[u8]) -> Option<Descriptor<'_>> {
    Some(match kind {
        FLAGS if content.len() == 24 => Descriptor::Flags {
            invalid: u64_at(content, 0),
            data_ro: u64_at(content, 8),
        },
        XATTR | XATTR_INTERNAL => {
            let (lengths, rest) = content.split_at_checked(4)?;
            let (name, value) = (u32_at(lengths, 0) & 0xffff, u32_at(lengths, 0) >> 16);
            let (name, rest) = rest.split_at_checked(name as usize)?;
            if rest.len() != value as usize {
                return None;
            }
            Descriptor::Xattr {
                internal: kind == XATTR_INTERNAL,
                name,
                value: rest,
            }
        }
        EXTENT_RLE if !content.is_empty() && content.len() % 8 == 0 => Descriptor::Runs(Pairs(content)),
        EXTENT_TABLE if content.len() >= 8 && content.len() % 8 == 0 => Descriptor::Table {
            clusters: u64_at(content, 0),
            entries: Pairs(&content[8..]),
        },
        EXTENT_PAGE if content.len() > 4 && content.len() % 4 == 0 => Descriptor::Clusters {
            start: u32_at(content, 0),
            clusters: Numbers(&content[4..]),
        },
        FLAGS | EXTENT_RLE | EXTENT_TABLE | EXTENT_PAGE => return None,
        _ => Descriptor::Unknown,
    })
}

/// Whether an xattr (of the user's) is in this page.
pub(super) fn has_xattr(page: &[u8], name: &[u8]) -> bool {
    let mut descriptors = Page::new(page).into_iter().flat_map(|page| page.descriptors());
    descriptors.any(|descriptor| {
        matches!(descriptor, Ok(Descriptor::Xattr { internal: false, name: found, .. }) if found == name)
    })
}

/// A page with an xattr set to another value, or added if it has none of that name. `None` if there
/// is no room for it.
pub(super) fn with_xattr(page: &[u8], name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::with_capacity(DESCRIPTORS.len());
    let mut rest = page.get(DESCRIPTORS)?;
    while let Some((header, after)) = rest.split_at_checked(DESCRIPTOR_HEADER) {
        let length = u32_at(header, 1) as usize;
        if header[0] == PADDING && length == 0 {
            break;
        }
        let content = after.get(..length)?;
        let is_it = matches!(
            parse_descriptor(header[0], content),
            Some(Descriptor::Xattr { internal: false, name: found, .. }) if found == name
        );
        if !is_it && header[0] != PADDING {
            kept.extend_from_slice(&rest[..DESCRIPTOR_HEADER + length]);
        }
        rest = &after[length..];
    }
    let length = u32::try_from(4 + name.len() + value.len()).ok()?;
    kept.push(XATTR);
    kept.extend_from_slice(&length.to_le_bytes());
    kept.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
    kept.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
    kept.extend_from_slice(name);
    kept.extend_from_slice(value);
    if kept.len() > DESCRIPTORS.len() {
        return None;
    }
    kept.resize(DESCRIPTORS.len(), 0);
    let mut page = page.to_vec();
    page[DESCRIPTORS].copy_from_slice(&kept);
    seal(&mut page);
    Some(page)
}
