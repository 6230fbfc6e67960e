//! Backs a logical volume up: a snapshot with a checksum and a note, which is destroyed when it has
//! served, though somebody holds it first.
//!
//! On the file given, whose contents are lost, or on a temporary one of 64 MiB. Needs neither root
//! nor huge pages:
//!
//! ```text
//! cargo run --example lvol_backup [FILE]
//! ```

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use spdk_rs::bdev::{self, Mode, delay};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::sleep;
use spdk_rs::{Runtime, spawn};

const CLUSTER: u64 = 1 << 20;

fn main() -> Result<()> {
    let temporary = tempfile::NamedTempFile::new()?;
    let file = match std::env::args_os().nth(1) {
        Some(file) => PathBuf::from(file),
        None => {
            temporary.as_file().set_len(64 << 20)?;
            temporary.path().to_owned()
        }
    };
    let runtime = Runtime::builder()
        .name("lvol_backup")
        .no_huge(true)
        .memory_mb(512)
        .build()?;
    runtime.run(example(file))?
}

/// What it shows.
pub async fn example(file: PathBuf) -> Result<()> {
    // The delay, which is none yet, will make the disk slow enough to see who holds what.
    bdev::aio::create("disk", &file, 4096).context("no block device")?;
    delay::create("slow", "disk", delay::Latency::NONE)?;
    let options = StoreOptions::default().cluster_size(CLUSTER as u32);
    let store = LvolStore::create("slow", "lvs", options).await?;
    let volume = store
        .create_lvol("volume", 16 * CLUSTER, Provisioning::Thin)
        .await?;
    write(&volume, &[0, 1, 2, 3], b"monday").await?;

    let backup = volume.snapshot("backup").await?;
    let sum = backup.checksum().await?;
    backup.set_xattr("backup", b"monday").await?;
    println!(
        "{backup}: clusters {:?}, sum {sum:#x}",
        backup.allocated_clusters().await?
    );

    // The volume goes on; its backup, and the sum that is stored with it, stay as they are.
    write(&volume, &[0, 7], b"tuesday").await?;
    for name in backup.xattrs().await?.keys() {
        let value = backup.xattr(name).await?.unwrap_or_default();
        println!("{backup}: {name}={}", String::from_utf8_lossy(&value));
    }
    ensure!(backup.stored_checksum().await? == Some(sum));
    ensure!(
        backup.checksum_range(0..16).await? == sum,
        "the backup is not what it was"
    );
    println!("{backup}: verified");

    // Somebody verifies it again while it is to be destroyed: it is kept whole, and one is told why.
    delay::set_latency("slow", delay::Latency::all(Duration::from_millis(50)))?;
    let verified = backup.clone();
    let job = spawn(async move { verified.checksum().await });
    sleep(Duration::from_millis(10)).await;
    let backup = match backup.destroy().await {
        Err(DestroyError::Busy { lvol, holders }) => {
            println!("{lvol} is kept: {holders}");
            lvol
        }
        other => bail!("it was not held: {other:?}"),
    };
    ensure!(backup.info().await?.clones == ["volume"]);
    // Or as soon as nobody holds it any more.
    backup.destroy_when_idle(Duration::from_secs(30)).await?;
    ensure!(job.await?? == sum);
    println!(
        "the backup is gone, and {volume} has its clusters: {:?}",
        volume.allocated_clusters().await?
    );

    delay::set_latency("slow", delay::Latency::NONE)?;
    let stats = volume.bdev().await?.stats().await?;
    println!(
        "{volume}: {} writes of {} bytes",
        stats.write.ops, stats.write.bytes
    );
    store.destroy().await?;
    delay::delete("slow").await?;
    Ok(bdev::aio::delete("disk").await?)
}

async fn write(volume: &Lvol, clusters: &[u64], text: &[u8]) -> Result<()> {
    let mut block = text.to_vec();
    block.resize(4096, b' ');
    let descriptor = volume.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    for cluster in clusters {
        channel
            .write(DmaBuf::copy_of(&block)?, cluster * CLUSTER)
            .await
            .into_result()?;
    }
    drop(channel);
    Ok(descriptor.close().await?)
}
