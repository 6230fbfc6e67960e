//! What has never been written to a thin volume reads as zeroes, on devices that cannot unmap.

mod common;

use std::path::Path;

use anyhow::{Result, ensure};
use common::bdev::{open, read, register, write};
use common::disk::TestDisk;
use common::lvol::{MIB, load_anew, scenario, store};
use spdk_rs::bdev::aio;
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev_module::{Kind, Properties};
use spdk_rs::lvol::{ClearMethod, LvolStore, Provisioning, StoreOptions};

const LEN: usize = 4096;

/// A new thin volume, in which one block is written: it is all that there is.
async fn ensure_zeroes(store: &LvolStore, name: &str) -> Result<()> {
    let volume = store.create_lvol(name, 2 * MIB, Provisioning::Thin).await?;
    let (descriptor, channel) = open(&format!("lvs/{name}"))?;
    write(&channel, &[1; LEN], MIB + 2 * LEN as u64).await?;
    let mut expected = vec![0; MIB as usize];
    ensure!(
        read(&channel, MIB as usize, 0).await? == expected,
        "not allocated"
    );
    expected[2 * LEN..3 * LEN].fill(1);
    let found = read(&channel, MIB as usize, MIB).await?;
    let differs = (0..found.len()).find(|&at| found[at] != expected[at]);
    ensure!(differs.is_none(), "{name} has old data at {differs:?}");
    drop(channel);
    descriptor.close().await?;
    ensure!(volume.allocated_clusters().await? == [1]);
    Ok(())
}

/// A volume that is full of a secret, and is deleted: all clusters of the store have been its.
async fn leave_a_secret(store: &LvolStore) -> Result<()> {
    let clusters = store.stats().await?.free_clusters;
    let volume = store
        .create_lvol("secret", clusters * MIB, Provisioning::Thick)
        .await?;
    let (descriptor, channel) = open("lvs/secret")?;
    for cluster in 0..clusters {
        write(&channel, &[0x5e; MIB as usize], cluster * MIB).await?;
    }
    drop(channel);
    descriptor.close().await?;
    Ok(volume.destroy().await?)
}

/// Full of old data, as a used disk is.
fn used_file(path: &Path) -> Result<()> {
    Ok(std::fs::write(path, vec![0xee; 24 * MIB as usize])?)
}

#[test]
fn a_deleted_volume_is_not_seen_on_a_file() {
    scenario("a_deleted_volume_is_not_seen_on_a_file", |disk| async move {
        used_file(&disk)?;
        aio::create("aio0", &disk, 4096)?;
        delay::create("slow0", "aio0", Latency::NONE)?;
        let store = store("slow0").await?;
        ensure_zeroes(&store, "first").await?;
        leave_a_secret(&store).await?;
        ensure_zeroes(&store, "second").await?;
        // What a load knows is what is in the metadata.
        let store = load_anew(&disk).await?;
        ensure_zeroes(&store, "third").await
    });
}

/// A device in Rust that can read and write, and nothing else.
#[test]
fn a_deleted_volume_is_not_seen_on_a_plain_device() {
    scenario("a_deleted_volume_is_not_seen_on_a_plain_device", |_| async {
        let bytes = 24 * MIB as usize;
        let disk = TestDisk::with(Properties::new(512, bytes as u64 / 512), bytes);
        let _registered = register(&disk, "ram").await?;
        let store = store("ram").await?;
        leave_a_secret(&store).await?;
        ensure_zeroes(&store, "volume").await
    });
}

/// A cluster is zeroed once, and not at all where the store began with zeroes.
#[test]
fn a_cluster_is_zeroed_once() {
    scenario("a_cluster_is_zeroed_once", |_| async {
        let disk = TestDisk::new(24 * MIB as usize);
        let _registered = register(&disk, "ram").await?;
        for (method, expected) in [(ClearMethod::Unmap, 1), (ClearMethod::WriteZeroes, 0)] {
            let options = StoreOptions::default()
                .cluster_size(MIB as u32)
                .clear_method(method);
            let store = LvolStore::create("ram", "lvs", options).await?;
            disk.forget_seen();
            store.create_lvol("volume", 2 * MIB, Provisioning::Thin).await?;
            let (descriptor, channel) = open("lvs/volume")?;
            for block in 0..8 {
                write(&channel, &[1; LEN], block * LEN as u64).await?;
            }
            let zeroed = disk.seen(Kind::WriteZeroes);
            ensure!(zeroed == expected, "{zeroed} times, with {method:?}");
            drop(channel);
            descriptor.close().await?;
            store.destroy().await?;
        }
        Ok(())
    });
}
