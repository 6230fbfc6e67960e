//! Reads all metadata of a store: its super block, its masks, and every blob that lies on the disk.
//!
//! Memory that it takes: four bytes for each cluster and each page of metadata, and what the blobs'
//! metadata say, without the maps of their clusters. The metadata themselves are streamed.

use super::bits::Bits;
use super::blob::{self, Blob};
use super::claims::Claims;
use super::disk::Disk;
use super::format::{self, Extent, MaskKind, PAGE, Page, SuperBlock};
use crate::{Error, ErrorKind, Result};

const WHAT: &str = "check lvstore";

/// Pages read at a time.
const BATCH: u64 = 256;

/// The owner of the clusters that hold metadata, among the owners of clusters.
pub(super) const METADATA: u32 = u32::MAX - 1;

/// What is used, as the disk or the loaded blobstore says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Masks {
    pub(super) pages: Bits,
    pub(super) clusters: Bits,
    pub(super) blobs: Bits,
}

impl Masks {
    /// Of pages, clusters, blobs; if all are there.
    pub(super) fn of([pages, clusters, blobs]: [Option<Bits>; 3]) -> Option<Self> {
        Some(Self {
            pages: pages?,
            clusters: clusters?,
            blobs: blobs?,
        })
    }

    /// What is used in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            pages: self.pages.and(&other.pages),
            clusters: self.clusters.and(&other.clusters),
            blobs: self.blobs.and(&other.blobs),
        }
    }

    /// What is used in one or both.
    pub(super) fn or(&self, other: &Self) -> Self {
        Self {
            pages: self.pages.or(&other.pages),
            clusters: self.clusters.or(&other.clusters),
            blobs: self.blobs.or(&other.blobs),
        }
    }
}

pub(super) struct Survey {
    pub(super) superblock: SuperBlock,
    pub(super) blobs: Vec<Blob>,
    pub(super) clusters: Claims,
    pub(super) pages: Claims,
}

/// The super block.
///
/// # Errors
/// [`ErrorKind::NotFound`]: there is none that could be loaded, and why; or it cannot be read.
pub(super) async fn read_super<D: Disk>(disk: &D) -> Result<SuperBlock> {
    let refused = |why: String| Error::new(ErrorKind::NotFound, WHAT, disk.name(), why);
    if disk.size() < PAGE as u64 {
        return Err(refused(format!(
            "there is no blobstore on it: it has {} bytes",
            disk.size()
        )));
    }
    let page = disk.read(0, PAGE).await?;
    let superblock = SuperBlock::parse(&page, disk.size()).map_err(refused)?;
    if !superblock.is_lvstore {
        return Err(refused("the blobstore on it is none of logical volumes".into()));
    }
    Ok(superblock)
}

/// The masks on disk, which are right if the store was unloaded. `Err`: names of those that are none.
pub(super) async fn read_masks<D: Disk>(
    disk: &D,
    superblock: &SuperBlock,
) -> Result<Result<Masks, Vec<&'static str>>> {
    let metadata = superblock.metadata.len;
    let blobs = superblock.used_blobs.unwrap_or(Extent { start: 0, len: 0 });
    let pages = read_mask(disk, superblock.used_pages, MaskKind::Pages, metadata).await?;
    let kind = MaskKind::Clusters;
    let clusters = read_mask(disk, superblock.used_clusters, kind, superblock.clusters).await?;
    let blobs = read_mask(disk, blobs, MaskKind::Blobs, metadata).await?;
    let names = ["used pages", "used clusters", "used blobs"];
    let read = [pages, clusters, blobs];
    let broken = names.into_iter().zip(&read).filter(|(_, mask)| mask.is_none());
    let broken = broken.map(|(name, _)| name).collect();
    Ok(Masks::of(read).ok_or(broken))
}

async fn read_mask<D: Disk>(disk: &D, at: Extent, kind: MaskKind, bits: u64) -> Result<Option<Bits>> {
    let pages = format::mask_pages(bits);
    if at.len < pages {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(pages as usize * PAGE);
    let mut done = 0;
    while done < pages {
        let batch = BATCH.min(pages - done);
        let offset = (at.start + done) * PAGE as u64;
        bytes.extend(disk.read(offset, batch as usize * PAGE).await?);
        done += batch;
    }
    Ok(format::parse_mask(&bytes, kind, bits))
}

/// Reads the blobs. `known`: those that the store has, if that is told; all others are hidden.
pub(super) async fn survey<D: Disk>(
    disk: &D,
    superblock: SuperBlock,
    known: Option<&Bits>,
) -> Result<Survey> {
    let found = find_roots(disk, &superblock).await?;
    let mut clusters = Claims::new(superblock.clusters);
    for cluster in 0..superblock.metadata_clusters {
        clusters.claim(cluster, METADATA);
    }
    let mut survey = Survey {
        pages: Claims::new(superblock.metadata.len),
        superblock,
        blobs: Vec::new(),
        clusters,
    };
    // The known ones first: what they have is theirs, whatever hidden ones say.
    let is_known = |root: &u64| known.is_none_or(|known| known.get(*root));
    let listed: Vec<u64> = match known {
        Some(known) => known.ones().collect(),
        None => found.ones().collect(),
    };
    let hidden: Vec<u64> = found.ones().filter(|root| !is_known(root)).collect();
    for (roots, hidden) in [(listed, false), (hidden, true)] {
        for root in roots {
            let mut blob = blob::read(disk, &mut survey, root as u32).await?;
            blob.hidden = hidden;
            survey.blobs.push(blob);
        }
    }
    Ok(survey)
}

/// The pages at which a blob begins.
async fn find_roots<D: Disk>(disk: &D, superblock: &SuperBlock) -> Result<Bits> {
    let len = superblock.metadata.len;
    let mut roots = Bits::new(len);
    let mut first = 0;
    while first < len {
        let batch = BATCH.min(len - first);
        let offset = superblock.page_offset(first as u32);
        let pages = disk.read(offset, batch as usize * PAGE).await?;
        for (at, page) in pages.chunks_exact(PAGE).enumerate() {
            let number = first + at as u64;
            if Page::new(page).is_some_and(|page| page.is_root(number as u32)) {
                roots.set(number);
            }
        }
        first += batch;
    }
    Ok(roots)
}
