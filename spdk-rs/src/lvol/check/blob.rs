//! Reads one blob: its chain of pages, and its extent pages.

use uuid::Uuid;

use super::claims::Claims;
use super::disk::Disk;
use super::format::{self, CLUSTERS_PER_EXTENT_PAGE, Descriptor, PAGE, Page, THIN};
use super::survey::{METADATA, Survey};
use crate::{Error, Result};

/// What SPDK knows; a blob with other flags is not opened.
const KNOWN_FLAGS: u64 = 7;

/// What a blob's metadata say.
#[derive(Clone, Debug, Default)]
pub(super) struct Blob {
    pub(super) id: u64,
    pub(super) name: Option<String>,
    pub(super) uuid: Option<Uuid>,
    pub(super) thin: bool,
    /// Its size in clusters, and how many of them it has itself.
    pub(super) clusters: u64,
    pub(super) own_clusters: u64,
    /// The snapshot beneath.
    pub(super) parent: Option<u64>,
    /// It was being deleted; the clone that was to take over.
    pub(super) removal: Option<u64>,
    /// It was being made as a snapshot, of this blob.
    pub(super) in_the_making: Option<u64>,
    /// The store does not have it.
    pub(super) hidden: bool,
    /// It cannot be opened.
    pub(super) damage: Option<Damage>,
    /// Its chain of pages, as far as it can be followed.
    pub(super) pages: Vec<u32>,
    layout: Layout,
}

/// What is wrong with a blob's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The page of metadata.
    pub(super) page: u32,
    pub(super) why: String,
}

#[derive(Clone, Debug, Default)]
enum Layout {
    #[default]
    Nothing,
    Runs,
    Table {
        clusters: u64,
        entries: Vec<(u32, u32)>,
    },
}

/// Why reading a blob ends early.
enum Stop {
    Damage(Damage),
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn damage(page: u32, why: impl Into<String>) -> Stop {
    let why = why.into();
    Stop::Damage(Damage { page, why })
}

/// Reads the blob that begins at page `root`, and claims what it has for it.
pub(super) async fn read<D: Disk>(disk: &D, survey: &mut Survey, root: u32) -> Result<Blob> {
    let mut reader = Reader {
        disk,
        me: survey.blobs.len() as u32,
        survey,
        blob: Blob {
            id: format::blob_id(root),
            ..Blob::default()
        },
    };
    let chain = reader.chain(root).await;
    reader.note(chain)?;
    // What is known of a broken chain is claimed, too.
    let extents = reader.extents(root).await;
    reader.note(extents)?;
    Ok(reader.blob)
}

struct Reader<'a, D> {
    disk: &'a D,
    survey: &'a mut Survey,
    me: u32,
    blob: Blob,
}

impl<D: Disk> Reader<'_, D> {
    /// Keeps the first damage.
    fn note(&mut self, result: Result<(), Stop>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Damage(damage)) => {
                self.blob.damage.get_or_insert(damage);
                Ok(())
            }
        }
    }

    async fn page(&self, number: u32) -> Result<Vec<u8>> {
        let offset = self.survey.superblock.page_offset(number);
        self.disk.read(offset, PAGE).await
    }

    fn claim_page(&mut self, number: u32, from: u32) -> Result<(), Stop> {
        if u64::from(number) >= self.survey.pages.len() {
            return Err(damage(
                from,
                format!("it points to page {number}, which does not exist"),
            ));
        }
        if self.survey.pages.claim(u64::from(number), self.me) == Some(self.me) {
            return Err(damage(from, format!("it comes to page {number} twice")));
        }
        Ok(())
    }

    async fn chain(&mut self, root: u32) -> Result<(), Stop> {
        let (mut at, mut from) = (root, root);
        for sequence in 0.. {
            self.claim_page(at, from)?;
            self.blob.pages.push(at);
            let bytes = self.page(at).await?;
            let page = Page::new(&bytes).filter(Page::crc_is_right);
            let page = page.ok_or_else(|| damage(at, "its checksum is wrong"))?;
            if page.id() != self.blob.id || page.sequence() != sequence {
                return Err(damage(
                    at,
                    format!(
                        "it says that it is page {} of blob {:#x}, and should be page {sequence}",
                        page.sequence(),
                        page.id()
                    ),
                ));
            }
            for descriptor in page.descriptors() {
                let descriptor = descriptor.map_err(|why| damage(at, why))?;
                self.apply(at, descriptor)?;
            }
            let Some(next) = page.next() else { break };
            (from, at) = (at, next);
        }
        Ok(())
    }

    fn apply(&mut self, page: u32, descriptor: Descriptor<'_>) -> Result<(), Stop> {
        let blob = &mut self.blob;
        match descriptor {
            Descriptor::Flags { invalid, .. } => {
                if invalid & !KNOWN_FLAGS != 0 {
                    let why = format!("it has flags ({invalid:#x}) that SPDK v20.07 does not know");
                    return Err(damage(page, why));
                }
                blob.thin = invalid & THIN != 0;
            }
            Descriptor::Xattr {
                internal: false,
                name,
                value,
            } => match name {
                b"name" => blob.name = text(value),
                b"uuid" => blob.uuid = text(value).and_then(|text| Uuid::parse_str(&text).ok()),
                _ => {}
            },
            Descriptor::Xattr {
                internal: true,
                name,
                value,
            } => {
                let of = match name {
                    b"SNAP" => &mut blob.parent,
                    b"SNAPRM" => &mut blob.removal,
                    b"SNAPTMP" => &mut blob.in_the_making,
                    _ => return Ok(()),
                };
                let id = value.try_into().map(u64::from_le_bytes);
                *of = Some(id.map_err(|_| damage(page, "an xattr that should name a blob does not"))?);
            }
            Descriptor::Runs(runs) => {
                if matches!(blob.layout, Layout::Table { .. }) {
                    return Err(damage(page, "it has both kinds of maps of clusters"));
                }
                blob.layout = Layout::Runs;
                for (cluster, len) in runs.iter() {
                    self.run(page, cluster, u64::from(len))?;
                }
            }
            Descriptor::Table { clusters, entries } => {
                if matches!(blob.layout, Layout::Nothing) {
                    let entries = Vec::new();
                    blob.layout = Layout::Table { clusters, entries };
                }
                match &mut blob.layout {
                    Layout::Table {
                        clusters: total,
                        entries: all,
                    } if *total == clusters => {
                        all.extend(entries.iter());
                    }
                    Layout::Table { .. } => {
                        return Err(damage(page, "parts of its extent table contradict each other"));
                    }
                    _ => return Err(damage(page, "it has both kinds of maps of clusters")),
                }
            }
            Descriptor::Clusters { .. } => {
                return Err(damage(page, "there is an extent page in the chain"));
            }
            Descriptor::Unknown => {
                return Err(damage(page, "it has a descriptor that SPDK v20.07 does not know"));
            }
        }
        Ok(())
    }

    async fn extents(&mut self, root: u32) -> Result<(), Stop> {
        let Layout::Table { clusters, entries } = std::mem::take(&mut self.blob.layout) else {
            return Ok(());
        };
        let mut left = clusters;
        for (number, count) in entries {
            if number == 0 {
                let none = left.min(CLUSTERS_PER_EXTENT_PAGE * u64::from(count));
                self.run(root, 0, none)?;
                left -= none;
                continue;
            }
            if count != 1 {
                return Err(damage(root, format!("it has extent page {number} {count} times")));
            }
            self.claim_page(number, root)?;
            // It may describe more than are left, or fewer: a resize writes it before the root page. SPDK
            // believes the extent page.
            left = left.saturating_sub(self.extent_page(number).await?);
        }
        Ok(())
    }

    async fn extent_page(&mut self, number: u32) -> Result<u64, Stop> {
        let bytes = self.page(number).await?;
        let page = Page::new(&bytes).filter(|page| page.crc_is_right() && page.sequence() == 0);
        let page = page.ok_or_else(|| damage(number, "its checksum is wrong"))?;
        let mut descriptors = page.descriptors();
        let first = descriptors.next().transpose();
        let first = first.map_err(|why| damage(number, why))?;
        let (Some(Descriptor::Clusters { start, clusters }), None, None) =
            (first, descriptors.next(), page.next())
        else {
            return Err(damage(number, "it is no extent page"));
        };
        let len = clusters.iter().count() as u64;
        if u64::from(start) != self.blob.clusters {
            return Err(damage(
                number,
                format!(
                    "it describes clusters from {start} on, and should from {} on",
                    self.blob.clusters
                ),
            ));
        }
        for cluster in clusters.iter() {
            self.run(number, cluster, 1)?;
        }
        Ok(len)
    }

    /// The next clusters of the blob: a run, or, with 0, none.
    fn run(&mut self, page: u32, cluster: u32, len: u64) -> Result<(), Stop> {
        let blob = &mut self.blob;
        blob.clusters = blob.clusters.saturating_add(len);
        if cluster == 0 {
            if len > 0 && !blob.thin {
                return Err(damage(page, "it has holes, and is not thin"));
            }
            return Ok(());
        }
        let (first, total) = (u64::from(cluster), self.survey.superblock.clusters);
        blob.own_clusters = blob.own_clusters.saturating_add(len);
        if first + len > total || blob.own_clusters > total {
            let why = format!("it has {len} clusters from {first} on; the store has {total}");
            return Err(damage(page, why));
        }
        for cluster in first..first + len {
            claim_cluster(&mut self.survey.clusters, cluster, self.me)
                .map_err(|why| damage(page, format!("it has cluster {cluster} {why}")))?;
        }
        Ok(())
    }
}

fn claim_cluster(clusters: &mut Claims, cluster: u64, me: u32) -> Result<(), &'static str> {
    match clusters.claim(cluster, me) {
        Some(METADATA) => Err("of the metadata"),
        Some(before) if before == me => Err("twice"),
        _ => Ok(()),
    }
}

/// A C string in an array as long as a name may be.
fn text(value: &[u8]) -> Option<String> {
    if value.len() > spdk_sys::SPDK_LVOL_NAME_MAX as usize {
        return None;
    }
    let text = value.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}
