//! More volumes in a store than the blobstore has operations for.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::register;
use common::disk::TestDisk;
use common::{isolated, run};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::timeout;

const LIMIT: Duration = Duration::from_secs(60);
/// It has 512.
const VOLUMES: usize = 700;
const CLUSTER: usize = 64 << 10;

/// Each of them has its bdev after a load, and is found.
#[test]
fn many_volumes_are_loaded() {
    const NAME: &str = "many_volumes_are_loaded";
    isolated(NAME, || run(many()).expect(NAME));
}

async fn many() -> Result<()> {
    // There are as many pages of metadata as clusters.
    let disk = TestDisk::new(2 * VOLUMES * CLUSTER);
    let registered = register(&disk, "ram").await?;
    let options = StoreOptions::default().cluster_size(CLUSTER as u32);
    let store = LvolStore::create("ram", "lvs", options).await?;
    let mut made = Vec::new();
    for n in 0..VOLUMES {
        made.push(
            store
                .create_lvol(&format!("vol{n}"), CLUSTER as u64, Provisioning::Thin)
                .await?,
        );
    }
    // The last one has a snapshot, and one has another name.
    let snapshot = made[VOLUMES - 1].snapshot("snapshot").await?;
    made[0].rename("first").await?;
    timeout(LIMIT, store.unload()).await??;
    timeout(LIMIT, registered.unregister()).await??;
    let registered = disk.register("ram")?;
    let store = timeout(LIMIT, LvolStore::load("ram")).await??;

    let listed = store.lvols().await?;
    ensure!(listed.len() == VOLUMES + 1, "{} volumes are listed", listed.len());
    for lvol in &listed {
        ensure!(lvol.info().await?.bdev.is_some(), "{lvol} has no bdev");
        ensure!(store.lvol(lvol.name()).await? == *lvol);
        ensure!(Lvol::find(&lvol.to_string()).await? == *lvol);
        ensure!(Lvol::find(&lvol.uuid().to_string()).await? == *lvol);
    }
    ensure!(store.lvol("first").await?.uuid() == made[0].uuid());
    ensure!(store.lvol("vol0").await.is_err());
    let info = snapshot.info().await?;
    ensure!(
        info.snapshot && info.clones == [made[VOLUMES - 1].name()],
        "{info:?}"
    );
    let info = made[VOLUMES - 1].info().await?;
    ensure!(info.parent.as_deref() == Some("snapshot"), "{info:?}");

    for lvol in listed {
        lvol.destroy().await?;
    }
    ensure!(store.lvols().await?.is_empty());
    timeout(LIMIT, store.destroy()).await??;
    Ok(timeout(LIMIT, registered.unregister()).await??)
}
