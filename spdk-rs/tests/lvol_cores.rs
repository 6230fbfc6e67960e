//! Volumes that are used on two cores at once.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, open, read, write};
use common::{builder, isolated};
use spdk_rs::bdev::{Bdev, Mode, malloc};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{Thread, timeout, yield_now};

/// A page, which is the unit of I/O here.
const PAGE: usize = 4096;
const CLUSTER: u64 = 4 * PAGE as u64;
/// Of the volume: four extent pages.
const CLUSTERS: u64 = 2048;

/// What a page holds, unlike all others.
fn content(page: u64) -> Vec<u8> {
    (page + 1).to_le_bytes().repeat(PAGE / 8)
}

/// Runs `body` with SPDK on two cores.
fn on_two_cores<F>(name: &str, body: impl FnOnce() -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    isolated(name, || {
        let runtime = builder().core_mask("0x3").build().expect("options");
        runtime.run(body()).expect("started").expect(name);
    });
}

async fn store() -> Result<LvolStore> {
    malloc::create("ram0", 3 * CLUSTERS * CLUSTER / 512, 512)?;
    let options = StoreOptions::default().cluster_size(CLUSTER as u32);
    Ok(LvolStore::create("ram0", "lvs", options).await?)
}

/// All that is in the volume, page by page.
async fn ensure_content(lvol: &Lvol, expected: impl Fn(u64) -> Vec<u8>) -> Result<()> {
    let (descriptor, channel) = open(&lvol.uuid().to_string())?;
    for page in 0..CLUSTERS * 4 {
        let found = read(&channel, PAGE, page * PAGE as u64).await?;
        ensure!(found == expected(page), "page {page} of {lvol}");
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

/// The writer's write allocates a cluster, while the reader sees nothing or what is written, and
/// writes to the same cluster itself.
#[test]
fn a_cluster_is_allocated_while_it_is_read_and_written() {
    on_two_cores("a_cluster_is_allocated_while_it_is_read_and_written", || async {
        let lvol = store()
            .await?
            .create_lvol("thin", CLUSTERS * CLUSTER, Provisioning::Thin)
            .await?;
        let found = Bdev::find(&lvol.uuid().to_string())?;
        let cores = [Thread::create("writer", 0)?, Thread::create("reader", 1)?];
        let read_up_to = Arc::new(AtomicU64::new(0));

        let (volume, progress) = (found.clone(), Arc::clone(&read_up_to));
        let writer = cores[0].spawn_on(move || async move {
            let descriptor = volume.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            for page in (0..CLUSTERS * 4).step_by(4) {
                write(&channel, &content(page), page * PAGE as u64).await?;
                while progress.load(Ordering::Acquire) < page {
                    yield_now().await;
                }
            }
            drop(channel);
            anyhow::Ok(descriptor.close().await?)
        })?;
        let reader = cores[1].spawn_on(move || async move {
            let descriptor = found.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            for page in (0..CLUSTERS * 4).step_by(4) {
                loop {
                    let found = read(&channel, PAGE, page * PAGE as u64).await?;
                    if found == content(page) {
                        break;
                    }
                    ensure!(found == [0; PAGE], "page {page} is {:?}…", &found[..8]);
                }
                for other in page + 1..page + 4 {
                    write(&channel, &content(other), other * PAGE as u64).await?;
                }
                read_up_to.store(page + 4, Ordering::Release);
            }
            drop(channel);
            anyhow::Ok(descriptor.close().await?)
        })?;
        timeout(3 * LIMIT, reader).await???;
        timeout(3 * LIMIT, writer).await???;
        ensure_content(&lvol, content).await?;
        for core in cores {
            core.exit().await;
        }
        Ok(())
    });
}
