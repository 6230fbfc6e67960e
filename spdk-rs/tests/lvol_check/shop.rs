//! A store with something of everything, and what there is in it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use spdk_rs::bdev::{Bdev, Mode, aio};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::check::{BlobName, Report};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};

use crate::common::bdev::pattern;
use crate::common::lvol::MIB;

const BLOCK: usize = 4096;
/// In the volume `large`, whose clusters two extent pages describe.
const FAR: u64 = 550;

/// What the volumes hold, by their names: the beginnings of some clusters.
pub type Contents = BTreeMap<String, Vec<(u64, Vec<u8>)>>;

/// Makes the store, and unloads it.
pub async fn furnish(disk: &Path) -> Result<Contents> {
    std::fs::File::create(disk)?.set_len(32 * MIB)?;
    aio::create("aio0", disk, 4096)?;
    let options = StoreOptions::default().cluster_size(MIB as u32);
    let store = LvolStore::create("aio0", "lvs", options).await?;
    let thick = store.create_lvol("thick", 2 * MIB, Provisioning::Thick).await?;
    write(&thick, 0, 1).await?;
    let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thin).await?;
    write(&vol, 0, 2).await?;
    let snapshot = vol.snapshot("snap").await?;
    write(&vol, 1, 3).await?;
    let twin = snapshot.clone_to("twin").await?;
    write(&twin, 2, 4).await?;
    let large = store.create_lvol("large", 600 * MIB, Provisioning::Thin).await?;
    write(&large, FAR, 5).await?;
    let contents = contents(&store).await?;
    put_away(&store).await?;
    Ok(contents)
}

pub async fn put_away(store: &LvolStore) -> Result<()> {
    store.unload().await?;
    Ok(aio::delete("aio0").await?)
}

/// What can be loaded from the file, if anything.
pub async fn load(disk: &Path) -> Result<LvolStore> {
    aio::create("aio0", disk, 4096)?;
    match LvolStore::load("aio0").await {
        Ok(store) => Ok(store),
        Err(error) => {
            aio::delete("aio0").await?;
            Err(error.into())
        }
    }
}

pub async fn write(lvol: &Lvol, cluster: u64, seed: u8) -> Result<()> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let buf = DmaBuf::copy_of(&pattern(BLOCK, seed))?;
    channel.write(buf, cluster * MIB).await.into_result()?;
    drop(channel);
    Ok(descriptor.close().await?)
}

pub async fn contents(store: &LvolStore) -> Result<Contents> {
    let mut contents = Contents::new();
    for lvol in store.lvols().await? {
        let info = lvol.info().await?;
        let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        let mut blocks = Vec::new();
        for cluster in (0..8).chain([FAR]).filter(|cluster| cluster * MIB < info.size) {
            let read = channel.read(DmaBuf::new(BLOCK)?, cluster * MIB);
            let ((), buf) = read.await.ok()?;
            blocks.push((cluster, buf.as_slice().to_vec()));
        }
        drop(channel);
        descriptor.close().await?;
        ensure!(
            contents.insert(info.name, blocks).is_none(),
            "a name is there twice"
        );
    }
    Ok(contents)
}

/// The volumes of a report, by their names.
pub struct Blobs(BTreeMap<String, BlobName>);

impl Blobs {
    pub fn of(report: &Report) -> Self {
        let names = report.volumes.iter().map(|volume| volume.blob.clone());
        Self(
            names
                .filter_map(|blob| Some((blob.name.clone()?, blob)))
                .collect(),
        )
    }

    /// The id of the blob.
    pub fn id(&self, name: &str) -> Result<u64> {
        Ok(self
            .0
            .get(name)
            .with_context(|| format!("no volume {name}"))?
            .blob)
    }

    pub fn uuid(&self, name: &str) -> Result<String> {
        let blob = self.0.get(name).with_context(|| format!("no volume {name}"))?;
        Ok(blob.uuid.context("it has a UUID")?.to_string())
    }
}
