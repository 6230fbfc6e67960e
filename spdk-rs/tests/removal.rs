//! Devices of SPDK's own that are removed while two threads have I/O in flight on them: every
//! future ends, and every buffer comes back.

mod common;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, poll_once, until};
use common::{builder, isolated, run};
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{self, Bdev, Mode, aio, delay, error, malloc};
use spdk_rs::buf::DmaPool;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{Thread, sleep, timeout};
use spdk_rs::{ErrorKind, op};

const DEPTH: usize = 48;
const BLOCK: usize = 4096;

/// What a thread saw: I/O that ended well, and I/O that ended as removed.
struct Seen {
    well: usize,
    removed: usize,
}

/// Keeps I/O in flight until the device is gone, and tries once more; a third of the futures is
/// dropped.
async fn use_up(descriptor: bdev::Descriptor, pool: DmaPool, gone: Arc<AtomicBool>) -> Result<Seen> {
    let channels = [descriptor.channel()?, descriptor.channel()?];
    let mut seen = Seen { well: 0, removed: 0 };
    let mut was_removed = false;
    for round in 0_u64.. {
        let mut flights = Vec::new();
        while let Some(mut buf) = pool.take() {
            let n = flights.len();
            let offset = (n * BLOCK) as u64;
            let channel = &channels[n % 2];
            buf.fill(round as u8);
            if n % 2 == 0 {
                let mut write = Box::pin(channel.write(buf, offset));
                let early = poll_once(write.as_mut());
                flights.push((n, Some(write), None, early));
            } else {
                let mut read = Box::pin(channel.read(buf, offset));
                let early = poll_once(read.as_mut());
                flights.push((n, None, Some(read), early));
            }
        }
        for (n, write, read, early) in flights {
            if n % 3 == 2 {
                continue; // dropped
            }
            let ended = match (early, write, read) {
                (std::task::Poll::Ready(ended), _, _) => ended,
                (_, Some(write), _) => timeout(LIMIT, write).await?,
                (_, _, Some(read)) => timeout(LIMIT, read).await?,
                _ => anyhow::bail!("neither"),
            };
            match ended.into_result() {
                Ok(()) => seen.well += 1,
                Err(error) if error.kind() == ErrorKind::Removed => seen.removed += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if was_removed {
            break;
        }
        was_removed = descriptor.is_removed();
        sleep(Duration::ZERO).await;
    }
    // The handles are still there: it is not they that the removal waits for.
    until("the device is gone", || gone.load(Ordering::Acquire)).await?;
    Ok(seen)
}

/// Two threads use the device; it is removed with `remove`.
async fn removed_under_load<F>(name: &str, remove: F) -> Result<()>
where
    F: Future<Output = spdk_rs::Result<()>>,
{
    let pools = [DmaPool::new(DEPTH, BLOCK)?, DmaPool::new(DEPTH, BLOCK)?];
    let worker = Thread::create("worker", 0)?;
    let disk = Bdev::find(name)?;
    let gone = Arc::new(AtomicBool::new(false));
    let (gone_here, gone_there) = (Arc::clone(&gone), Arc::clone(&gone));
    let (opened, pool) = (disk.open(Mode::ReadWrite)?, pools[1].clone());
    let there = worker
        .spawn_on(move || async move { use_up(disk.open(Mode::ReadWrite)?, pool, gone_there).await })?;
    let here = spdk_rs::spawn(use_up(opened, pools[0].clone(), gone_here));
    sleep(Duration::from_millis(20)).await;
    ensure!(op::outstanding() > 0, "nothing is in flight");
    timeout(LIMIT, remove).await??;
    gone.store(true, Ordering::Release);
    for seen in [timeout(LIMIT, here).await???, timeout(LIMIT, there).await???] {
        ensure!(seen.well > 0, "no I/O before the removal");
        ensure!(seen.removed > 0, "I/O went on after the removal");
    }
    ensure!(Bdev::find(name).is_err());
    timeout(LIMIT, worker.exit()).await?;
    ensure!(op::outstanding() == 0, "{} never ended", op::outstanding());
    ensure!(
        pools.iter().all(|pool| pool.available() == DEPTH),
        "buffers are missing"
    );
    Ok(())
}

fn scenario(name: &str, main: impl Future<Output = Result<()>> + 'static) {
    isolated(name, move || run(main).expect("the scenario"));
}

#[test]
fn a_slow_device() {
    scenario("a_slow_device", async {
        malloc::create("ram", 8192, 512)?;
        delay::create("slow", "ram", Latency::all(Duration::from_millis(2)))?;
        removed_under_load("slow", delay::delete("slow")).await?;
        // And with its base.
        delay::create("slow", "ram", Latency::all(Duration::from_millis(2)))?;
        removed_under_load("slow", malloc::delete("ram")).await
    });
}

#[test]
fn an_error_device() {
    scenario("an_error_device", async {
        malloc::create("ram", 8192, 512)?;
        error::create("ram")?;
        removed_under_load("EE_ram", error::delete("EE_ram")).await?;
        error::create("ram")?;
        removed_under_load("EE_ram", malloc::delete("ram")).await
    });
}

#[test]
fn a_file() {
    scenario("a_file", async {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(4 << 20)?;
        aio::create("file", file.path(), 512)?;
        removed_under_load("file", aio::delete("file")).await
    });
}

#[test]
fn a_volume_whose_store_loses_its_device() {
    scenario("a_volume_whose_store_loses_its_device", async {
        malloc::create("ram", 131_072, 512)?;
        let store = LvolStore::create("ram", "lvs", StoreOptions::default()).await?;
        let volume = store.create_lvol("vol", 8 << 20, Provisioning::Thin).await?;
        drop((volume, store));
        removed_under_load("lvs/vol", malloc::delete("ram")).await
    });
}

/// Whoever closes a removed device for the last time, and wherever: while the app thread runs, which
/// may be looking devices up, it stays in the list.
#[test]
fn the_list_stands_still_for_the_app_thread() {
    isolated("the_list_stands_still_for_the_app_thread", || {
        let runtime = builder().core_mask("0x3").build().expect("options");
        let ended = runtime.run(async {
            let ram = malloc::create("ram", 8192, 512)?;
            let worker = Thread::create("worker", 1)?;
            let (opened, closed) = [(); 2].map(|()| Arc::new(AtomicBool::new(false))).into();
            let (open_there, closed_there) = (Arc::clone(&opened), Arc::clone(&closed));
            let task = worker.spawn_on(move || async move {
                let descriptor = ram.open(Mode::ReadOnly)?;
                open_there.store(true, Ordering::Release);
                descriptor.removed().await;
                closed_there.store(true, Ordering::Release);
                anyhow::Ok(())
            })?;
            until("the device is open", || opened.load(Ordering::Acquire)).await?;

            let mut delete = Box::pin(malloc::delete("ram"));
            ensure!(poll_once(delete.as_mut()).is_pending(), "somebody has it open");
            let limit = Instant::now() + LIMIT;
            while !closed.load(Ordering::Acquire) {
                ensure!(Instant::now() < limit, "the removal is not announced");
                std::hint::spin_loop();
            }
            let listed = Bdev::all()?.iter().any(|bdev| bdev.name() == "ram");
            ensure!(listed, "it left the list under the feet of the app thread");

            timeout(LIMIT, delete).await??;
            ensure!(Bdev::find("ram").is_err());
            timeout(LIMIT, task).await??
        });
        ended.expect("run").expect("the scenario");
    });
}
