//! Makes a logical volume, writes to it, reads it back, and destroys it.
//!
//! On the file given, whose contents are lost, or on a temporary one of 64 MiB. Needs neither root
//! nor huge pages:
//!
//! ```text
//! cargo run --example hello_lvol [FILE]
//! ```

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use spdk_rs::Runtime;
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};

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
        .name("hello_lvol")
        .no_huge(true)
        .memory_mb(512)
        .build()?;
    runtime.run(hello(file))?
}

/// What it shows.
pub async fn hello(file: PathBuf) -> Result<()> {
    bdev::aio::create("disk", &file, 4096).context("no block device")?;
    let options = StoreOptions::default().cluster_size(1 << 20);
    let store = LvolStore::create("disk", "lvs", options).await?;
    let stats = store.stats().await?;
    println!(
        "store {store}: {} clusters of {} bytes on {}",
        stats.free_clusters,
        stats.cluster_size,
        file.display()
    );

    let volume = store.create_lvol("hello", 16 << 20, Provisioning::Thin).await?;
    println!("volume {volume}: {}", volume.uuid());
    let greeting = b"Hello from a logical volume!";
    let mut block = greeting.to_vec();
    block.resize(4096, 0);
    let descriptor = Bdev::find("lvs/hello")?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    channel
        .write(DmaBuf::copy_of(&block)?, 8192)
        .await
        .into_result()?;
    let ((), read) = channel.read(DmaBuf::new(4096)?, 8192).await.ok()?;
    ensure!(read.as_slice() == block, "what was read is not what was written");
    println!(
        "read: {}",
        String::from_utf8_lossy(&read.as_slice()[..greeting.len()])
    );
    drop(channel);
    descriptor.close().await?;

    // Gone, or whole: if somebody held it, the error would say who, and give the handle back.
    volume.destroy().await?;
    println!(
        "the volume is gone; free clusters: {}",
        store.stats().await?.free_clusters
    );
    store.destroy().await?;
    bdev::aio::delete("disk").await?;
    Ok(())
}
