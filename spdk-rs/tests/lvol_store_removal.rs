//! Removing a store while a volume of it is held: refused whole, and done when the holder has gone. Nothing keeps the
//! process from ending then.

mod common;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::lvol::{MIB, ensure_unchanged, infos, load_anew, scenario, store_on};
use spdk_rs::bdev::{self, Bdev, Mode, delay};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, JoinHandle, spawn};

const LIMIT: Duration = Duration::from_secs(60);

/// A store on a delay bdev, with `vol` on `snap`, which has all its clusters.
async fn volume_on(disk: &Path) -> Result<(LvolStore, Lvol, Lvol)> {
    let store = store_on(disk).await?;
    let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thick).await?;
    let snap = vol.snapshot("snap").await?;
    Ok((store, vol, snap))
}

/// While the job runs, neither unloading nor destroying the store changes anything; afterwards it is unloaded, with
/// nothing lost.
async fn refused<T: 'static>(
    disk: &Path,
    store: LvolStore,
    job: JoinHandle<Result<T, spdk_rs::Error>>,
) -> Result<()> {
    sleep(Duration::from_millis(20)).await;
    let before = infos(&store).await?;
    for _ in 0..2 {
        for error in [store.unload().await, store.destroy().await] {
            ensure!(error.unwrap_err().kind() == ErrorKind::Busy);
        }
        ensure!(infos(&store).await? == before, "a refusal changed something");
        for lvol in store.lvols().await? {
            ensure!(Bdev::find(&lvol.to_string()).is_ok(), "{lvol} has lost its bdev");
        }
    }
    ensure!(!job.is_finished(), "it was to be running all the time");
    delay::set_latency("slow0", delay::Latency::default())?;
    job.await??;

    let before = infos(&store).await?;
    timeout(LIMIT, store.unload()).await??;
    ensure!(store.lvols().await.unwrap_err().kind() == ErrorKind::NotFound);
    let store = timeout(LIMIT, load_anew(disk)).await??;
    ensure_unchanged(&store, &before).await
}

#[test]
fn while_a_volume_inflates() {
    scenario("while_a_volume_inflates", |disk| async move {
        let (store, vol, _snap) = volume_on(&disk).await?;
        delay::set_latency("slow0", delay::Latency::all(Duration::from_millis(60)))?;
        let job = spawn(async move { vol.inflate().await });
        refused(&disk, store, job).await
    });
}

#[test]
fn while_a_snapshot_is_summed_up() {
    scenario("while_a_snapshot_is_summed_up", |disk| async move {
        let (store, _vol, snap) = volume_on(&disk).await?;
        delay::set_latency("slow0", delay::Latency::all(Duration::from_millis(60)))?;
        let job = spawn(async move { snap.checksum().await });
        refused(&disk, store, job).await
    });
}

/// The process ends although a job runs, and the store was refused to be unloaded.
#[test]
fn refused_and_left() {
    scenario("refused_and_left", |disk| async move {
        let (store, vol, _snap) = volume_on(&disk).await?;
        delay::set_latency("slow0", delay::Latency::all(Duration::from_millis(60)))?;
        let _job = spawn(async move { vol.inflate().await });
        sleep(Duration::from_millis(20)).await;
        ensure!(store.unload().await.unwrap_err().kind() == ErrorKind::Busy);
        Ok(())
    });
}

/// A volume that is to be destroyed waits for whoever has it open, here until a read has ended. Everything else waits
/// for the volume: a second destroy is refused, the store and its device go afterwards.
#[test]
fn while_a_volume_waits_for_a_read() {
    scenario("while_a_volume_waits_for_a_read", |disk| async move {
        for base_too in [false, true] {
            let (store, vol, _snap) = volume_on(&disk).await?;
            delay::set_latency("slow0", delay::Latency::all(Duration::from_millis(300)))?;
            let held = Bdev::find(&vol.to_string())?.open(Mode::ReadOnly)?;
            let channel = held.channel()?;
            let read = spawn(async move {
                let read = channel.read(DmaBuf::new(4096)?, 0).await.ok().map(drop);
                drop(channel);
                held.close().await?;
                read
            });
            sleep(Duration::from_millis(20)).await;
            let first = spawn(vol.clone().destroy());
            sleep(Duration::from_millis(20)).await;
            let second = vol.clone().destroy().await.unwrap_err();
            ensure!(second.kind() == ErrorKind::Busy, "{second}");
            let removal = spawn({
                let store = store.clone();
                async move { store.destroy().await }
            });
            sleep(Duration::from_millis(20)).await;
            ensure!(store.unload().await.is_err());
            let base = base_too.then(|| spawn(delay::delete("slow0")));
            sleep(Duration::from_millis(20)).await;
            ensure!(!first.is_finished() && !removal.is_finished());

            timeout(LIMIT, read).await???;
            timeout(LIMIT, first).await???;
            timeout(LIMIT, removal).await???;
            match base {
                Some(base) => timeout(LIMIT, base).await???,
                None => delay::delete("slow0").await?,
            }
            bdev::aio::delete("aio0").await?;
        }
        Ok(())
    });
}
