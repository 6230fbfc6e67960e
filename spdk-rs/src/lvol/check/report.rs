//! What a check has found.

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::findings::{BlobName, Finding, Remedy};
use super::judge::name_of;
use super::survey::Survey;

/// What a check of a store has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The file or block device that was read.
    pub device: String,
    /// The store's name.
    pub name: Option<String>,
    /// The store's UUID.
    pub uuid: Option<Uuid>,
    /// It was loaded: what it has in memory was compared with the disk.
    pub loaded: bool,
    /// It was not unloaded: the next load recovers it, and makes the lists of what is used anew. They
    /// were not looked at.
    pub recovery_due: bool,
    /// Operations on the loaded store were under way whenever it was read: what was found may be theirs.
    pub unsettled: bool,
    /// In bytes.
    pub cluster_size: u64,
    /// Clusters in all.
    pub clusters: u64,
    /// Clusters that hold metadata.
    pub metadata_clusters: u64,
    /// Pages of metadata in all, each of 4 KiB.
    pub metadata_pages: u64,
    /// The volumes that the store has.
    pub volumes: Vec<VolumeReport>,
    /// What is wrong with it.
    #[serde(serialize_with = "told")]
    pub findings: Vec<Finding>,
}

/// Each finding with its remedy, and as a sentence.
fn told<S: Serializer>(findings: &[Finding], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Told<'a> {
        #[serde(flatten)]
        finding: &'a Finding,
        remedy: Remedy,
        text: String,
    }
    serializer.collect_seq(findings.iter().map(|finding| Told {
        finding,
        remedy: finding.remedy(),
        text: finding.to_string(),
    }))
}

/// A volume, as its metadata say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VolumeReport {
    /// Which one.
    #[serde(flatten)]
    pub blob: BlobName,
    /// Its size, in clusters.
    pub clusters: u64,
    /// Of these, the ones that are its own.
    pub own_clusters: u64,
    /// It may have holes.
    pub thin: bool,
    /// The blob of the snapshot on which it lies.
    pub parent: Option<u64>,
}

impl Report {
    pub(super) fn new(device: &str, survey: &Survey, findings: Vec<Finding>) -> Self {
        let superblock = &survey.superblock;
        let is_super = |id: u64| superblock.super_blob == Some(id);
        let store = survey.blobs.iter().find(|blob| is_super(blob.id));
        let known = survey
            .blobs
            .iter()
            .filter(|blob| !blob.hidden && !is_super(blob.id));
        let volumes = known.map(|blob| VolumeReport {
            blob: name_of(blob),
            clusters: blob.clusters,
            own_clusters: blob.own_clusters,
            thin: blob.thin,
            parent: blob.parent,
        });
        Self {
            device: device.to_owned(),
            name: store.and_then(|blob| blob.name.clone()),
            uuid: store.and_then(|blob| blob.uuid),
            loaded: false,
            unsettled: false,
            recovery_due: !superblock.clean,
            cluster_size: superblock.cluster_size,
            clusters: superblock.clusters,
            metadata_clusters: superblock.metadata_clusters,
            metadata_pages: superblock.metadata.len,
            volumes: volumes.collect(),
            findings,
        }
    }

    /// Whether nothing is wrong. (That a recovery is due is nothing wrong.)
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// For people: one line on the store, one for each volume, one for each finding, and a verdict.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("(without a name)");
        let own: u64 = self.volumes.iter().map(|volume| volume.own_clusters).sum();
        writeln!(
            f,
            "store {name} on {}: {} clusters of {} bytes, {} for metadata, {own} in volumes",
            self.device, self.clusters, self.cluster_size, self.metadata_clusters
        )?;
        for volume in &self.volumes {
            let thin = if volume.thin { ", thin" } else { "" };
            write!(
                f,
                "  {}: {} clusters{thin}, {} its own",
                volume.blob, volume.clusters, volume.own_clusters
            )?;
            match volume.parent {
                Some(parent) => writeln!(f, ", on blob {parent:#x}")?,
                None => writeln!(f)?,
            }
        }
        if self.recovery_due && !self.loaded {
            writeln!(f, "  it was not unloaded: the next load recovers it")?;
        }
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        if self.unsettled {
            writeln!(
                f,
                "  operations are under way, and this may be theirs: check again"
            )?;
        }
        match self.findings.len() {
            0 => f.write_str("clean"),
            1 => f.write_str("1 finding"),
            many => write!(f, "{many} findings"),
        }
    }
}
