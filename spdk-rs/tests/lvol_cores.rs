//! Volumes that are used on two cores at once.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, open, read, write};
use common::on_two_cores;
use common::random::Random;
use spdk_rs::bdev::{Bdev, Mode, aio, malloc};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{Thread, sleep, timeout, yield_now};

/// A page, which is the unit of I/O here.
const PAGE: usize = 4096;
const CLUSTER: u64 = 4 * PAGE as u64;
/// Of the volume: four extent pages.
const CLUSTERS: u64 = 2048;

/// What a page holds, unlike all others.
fn content(page: u64) -> Vec<u8> {
    (page + 1).to_le_bytes().repeat(PAGE / 8)
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

/// Writes to every other page of the volume, here and there, until told to stop. Returns what they hold.
async fn scribble(volume: Bdev, first: u64, stop: Arc<AtomicBool>) -> Result<BTreeMap<u64, u64>> {
    let descriptor = volume.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let (mut random, mut written) = (Random(first), BTreeMap::new());
    for stamp in 1.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let page = 2 * random.below(CLUSTERS * 2) + first;
        write(&channel, &content(stamp), page * PAGE as u64).await?;
        written.insert(page, stamp);
    }
    drop(channel);
    descriptor.close().await?;
    Ok(written)
}

/// Two cores write to the two halves of each cluster, while snapshots come and go beneath. What was
/// written is there, after a load too.
#[test]
fn snapshots_come_and_go_while_two_cores_write() {
    on_two_cores("snapshots_come_and_go_while_two_cores_write", || async {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(4 * CLUSTERS * CLUSTER)?;
        aio::create("aio0", file.path(), 4096)?;
        let options = StoreOptions::default().cluster_size(CLUSTER as u32);
        let store = LvolStore::create("aio0", "lvs", options).await?;
        let size = CLUSTERS * CLUSTER;
        let lvol = store.create_lvol("thin", size, Provisioning::Thin).await?;

        let volume = Bdev::find(&lvol.uuid().to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let cores = [Thread::create("even", 0)?, Thread::create("odd", 1)?];
        let mut tasks = Vec::new();
        for (first, core) in (0..).zip(&cores) {
            let (volume, stop) = (volume.clone(), Arc::clone(&stop));
            tasks.push(core.spawn_on(move || scribble(volume, first, stop))?);
        }
        let mut snapshots = VecDeque::new();
        for n in 0..12 {
            sleep(Duration::from_millis(50)).await;
            snapshots.push_back(timeout(LIMIT, lvol.snapshot(&format!("snap{n}"))).await??);
            lvol.rename(&format!("thin{n}")).await?;
            if snapshots.len() > 2 {
                // The oldest one's clusters become the next one's.
                let oldest = snapshots.pop_front().expect("one");
                timeout(LIMIT, oldest.destroy()).await??;
            }
        }
        stop.store(true, Ordering::Release);
        let mut written = BTreeMap::new();
        for task in tasks {
            written.extend(timeout(LIMIT, task).await???);
        }
        for core in cores {
            core.exit().await;
        }

        let expected = |page| written.get(&page).map_or(vec![0; PAGE], |stamp| content(*stamp));
        ensure_content(&lvol, expected).await?;
        store.unload().await?;
        aio::delete("aio0").await?;
        aio::create("aio0", file.path(), 4096)?;
        LvolStore::load("aio0").await?;
        ensure_content(&lvol, expected).await
    });
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
                    // The device copies while it is read: part of it may be there.
                    let mut bytes = found.iter().zip(content(page));
                    ensure!(
                        bytes.all(|(found, written)| *found == 0 || *found == written),
                        "page {page} has something else in it"
                    );
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
