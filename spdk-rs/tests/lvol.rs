//! Logical volumes: what is made is found, holds its data, is there again after a load, and gives
//! its space back; and checksums, also when what they sum up changes.

mod common;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use common::lvol::{MIB, scenario, store_on};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, LvolInfo, LvolStore, Provisioning, stop_checksum};
use spdk_rs::reactor::{Poller, sleep, timeout};
use spdk_rs::{ErrorKind, spawn};

const LIMIT: Duration = Duration::from_secs(60);

/// Takes the disk away under the store, and gives it back.
async fn reload(disk: &Path, store: &LvolStore) -> Result<()> {
    delay::delete("slow0").await?;
    bdev::aio::delete("aio0").await?;
    ensure!(LvolStore::find("lvs").await.unwrap_err().kind() == ErrorKind::NotFound);
    bdev::aio::create("aio0", disk, 4096)?;
    ensure!(LvolStore::load("aio0").await? == *store);
    Ok(())
}

fn slow(on: bool) -> Result<()> {
    let latency = Duration::from_millis(if on { 200 } else { 0 });
    Ok(delay::set_latency("slow0", Latency::all(latency))?)
}

fn pattern(seed: u8) -> Vec<u8> {
    common::bdev::pattern(MIB as usize, seed)
}

async fn write(lvol: &Lvol, cluster: u64, data: &[u8]) -> Result<()> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let buf = DmaBuf::copy_of(data)?;
    channel.write(buf, cluster * MIB).await.into_result()?;
    drop(channel);
    Ok(descriptor.close().await?)
}

async fn read(lvol: &Lvol, cluster: u64) -> Result<Vec<u8>> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    let ((), buf) = channel
        .read(DmaBuf::new(MIB as usize)?, cluster * MIB)
        .await
        .ok()?;
    drop(channel);
    descriptor.close().await?;
    Ok(buf.as_slice().to_vec())
}

/// All volumes, by name: a load may change their order.
async fn infos(store: &LvolStore) -> Result<Vec<LvolInfo>> {
    let mut infos = common::lvol::infos(store).await?;
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// CRC-64/GO-ISO, bit by bit: nothing that is tested takes part in it.
fn crc(parts: &[&[u8]]) -> u64 {
    let mut crc = u64::MAX;
    for byte in parts.iter().copied().flatten() {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xD800_0000_0000_0000 } else { 0 };
        }
    }
    !crc
}

#[test]
fn volumes_come_stay_and_go() {
    scenario("volumes_come_stay_and_go", |disk| async move {
        let store = store_on(&disk).await?;
        let empty = store.stats().await?;
        assert_eq!((empty.base_bdev.as_str(), empty.cluster_size), ("slow0", MIB));
        assert_eq!(empty.volumes, 0);
        assert_eq!(LvolStore::all().await?, std::slice::from_ref(&store));
        let free = async |store: &LvolStore| anyhow::Ok(store.stats().await?.free_clusters);

        let thin = store.create_lvol("thin", 8 * MIB, Provisioning::Thin).await?;
        assert_eq!(free(&store).await?, empty.free_clusters);
        let thick = store.create_lvol("thick", 4 * MIB, Provisioning::Thick).await?;
        assert_eq!(free(&store).await?, empty.free_clusters - 4);
        let info = thin.info().await?;
        assert_eq!(
            (info.name.as_str(), info.size, info.thin),
            ("thin", 8 * MIB, true)
        );
        assert_eq!(info.bdev, Some(thin.uuid().to_string()));
        assert!(!info.snapshot && !info.clone && !info.read_only);
        assert!(!thick.info().await?.thin);
        let taken = store
            .create_lvol("thin", MIB, Provisioning::Thin)
            .await
            .unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
        for key in ["lvs/thin", &thin.uuid().to_string()] {
            assert_eq!(Lvol::find(key).await?, thin);
        }
        assert_eq!(store.lvol("thick").await?, thick);
        assert_eq!(store.lvols().await?, [thin.clone(), thick.clone()]);
        assert_eq!(store.stats().await?.volumes, 2);
        assert_eq!(
            Lvol::find("lvs/none").await.unwrap_err().kind(),
            ErrorKind::NotFound
        );

        let (a, b, zero) = (pattern(1), pattern(2), vec![0; MIB as usize]);
        write(&thin, 3, &a).await?;
        assert_eq!(free(&store).await?, empty.free_clusters - 5);
        let snap = thin.snapshot("snap").await?;
        let refused = thick.clone_to("no").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        let copy = snap.clone_to("copy").await?;
        write(&copy, 3, &b).await?;
        let info = snap.info().await?;
        assert!(info.snapshot && info.read_only);
        assert_eq!(info.clones, ["thin", "copy"]);
        assert_eq!(copy.info().await?.parent.as_deref(), Some("snap"));

        let (before, stats) = (infos(&store).await?, store.stats().await?);
        reload(&disk, &store).await?;
        assert_eq!(infos(&store).await?, before);
        assert_eq!(store.stats().await?.free_clusters, stats.free_clusters);
        for (lvol, data) in [(&thin, &a), (&snap, &a), (&copy, &b)] {
            assert_eq!(&read(lvol, 3).await?, data, "{lvol}");
            assert_eq!(read(lvol, 2).await?, zero, "{lvol}");
        }

        copy.inflate().await?;
        assert!(!copy.info().await?.clone);
        assert_eq!(copy.info().await?.parent, None);
        assert_eq!(read(&copy, 3).await?, b);
        snap.destroy().await?; // into its clone
        assert_eq!(read(&thin, 3).await?, a);
        for lvol in [thin, thick, copy] {
            lvol.clone().destroy().await?;
            assert_eq!(lvol.info().await.unwrap_err().kind(), ErrorKind::NotFound);
            assert!(Bdev::find(&lvol.uuid().to_string()).is_err());
            let again = lvol.destroy().await.unwrap_err();
            assert!(matches!(again, DestroyError::NotFound { .. }), "{again}");
        }
        assert_eq!(store.stats().await?.free_clusters, empty.free_clusters);
        store.destroy().await?;
        assert!(LvolStore::find("lvs").await.is_err());
        assert!(LvolStore::all().await?.is_empty());
        Ok(bdev::aio::delete("aio0").await?)
    });
}

/// What was read and written is counted for each volume, on all threads, and also when it is closed.
#[test]
fn io_is_counted() {
    scenario("io_is_counted", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thin).await?;
        let other = store.create_lvol("other", 8 * MIB, Provisioning::Thin).await?;
        let before = vol.bdev().await?.stats().await?;
        assert_eq!((before.write.ops, before.unmap.ops), (0, 0));

        let delay = Duration::from_millis(20);
        delay::set_latency("slow0", Latency::all(delay))?;
        let descriptor = vol.open(Mode::ReadWrite)?;
        let channel = descriptor.channel()?;
        for at in [0, 8192] {
            let buf = DmaBuf::copy_of(&[7; 8192])?;
            channel.write(buf, at).await.into_result()?;
        }
        channel.read(DmaBuf::new(4096)?, 8192).await.ok()?;
        channel.unmap(0, MIB).await?;
        slow(false)?;
        let (open, took) = (vol.bdev().await?.stats().await?, delay * 2);
        drop(channel);
        descriptor.close().await?;
        for stats in [open, vol.bdev().await?.stats().await?] {
            assert_eq!((stats.write.ops, stats.write.bytes), (2, 16384));
            assert_eq!(
                (stats.read.ops, stats.read.bytes),
                (before.read.ops + 1, before.read.bytes + 4096)
            );
            assert_eq!((stats.unmap.ops, stats.unmap.bytes), (1, MIB));
            assert!(stats.write.time >= took && stats.write.time < LIMIT, "{stats:?}");
            assert!(stats.write.mean() >= Some(delay), "{stats:?}");
        }
        assert_eq!(other.bdev().await?.stats().await?.write.ops, 0);

        let gone = vol.bdev().await?;
        vol.clone().destroy().await?;
        for error in [
            gone.stats().await.err(),
            vol.bdev().await.err(),
            vol.open(Mode::ReadOnly).err(),
        ] {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::NotFound));
        }
        Ok(())
    });
}

#[test]
fn a_sum_is_of_the_own_clusters_and_goes_with_them() {
    scenario(
        "a_sum_is_of_the_own_clusters_and_goes_with_them",
        |disk| async move {
            let store = store_on(&disk).await?;
            let vol = store.create_lvol("vol", 24 * MIB, Provisioning::Thin).await?;
            let (a, b) = (pattern(1), pattern(2));
            write(&vol, 5, &a).await?;
            let old = vol.snapshot("old").await?;
            for cluster in [9, 2] {
                write(&vol, cluster, &b).await?;
            }
            let new = vol.snapshot("new").await?;

            let (last, worst) = (
                Rc::new(Cell::new(Instant::now())),
                Rc::new(Cell::new(Duration::ZERO)),
            );
            let poller = Poller::register("gap", Duration::from_micros(100), {
                let worst = Rc::clone(&worst);
                move || {
                    let now = Instant::now();
                    worst.set(worst.get().max(now - last.replace(now)));
                    false
                }
            })?;
            assert_eq!(new.checksum().await?, crc(&[&b, &b]));
            println!("longest time between two turns of the poller: {:?}", worst.get());
            drop(poller);
            assert_eq!(old.checksum().await?, crc(&[&a]));

            // A destroy that is refused leaves the sum of the clone.
            slow(true)?;
            let job = spawn({
                let old = old.clone();
                async move { old.checksum().await }
            });
            sleep(Duration::from_millis(20)).await;
            let error = old.destroy().await.unwrap_err();
            let DestroyError::Busy { lvol: old, holders } = error else {
                bail!("another error: {error}");
            };
            assert_eq!(holders.operation.as_deref(), Some("checksum"));
            assert!(!job.is_finished());
            slow(false)?;
            job.await??;
            assert_eq!(new.stored_checksum().await?, Some(crc(&[&b, &b])));
            reload(&disk, &store).await?;
            assert_eq!(old.stored_checksum().await?, Some(crc(&[&a])));
            assert_eq!(new.stored_checksum().await?, Some(crc(&[&b, &b])));

            // A destroy that puts its clusters into the clone makes the clone's sum stale.
            timeout(LIMIT, old.destroy()).await??;
            assert_eq!(new.stored_checksum().await?, None);
            assert_eq!(new.checksum().await?, crc(&[&b, &a, &b]), "clusters 2, 5 and 9");
            store.destroy().await?;
            Ok(bdev::aio::delete("aio0").await?)
        },
    );
}

#[test]
fn a_store_with_a_busy_volume_is_destroyed_later() {
    scenario(
        "a_store_with_a_busy_volume_is_destroyed_later",
        |disk| async move {
            let store = store_on(&disk).await?;
            let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thin).await?;
            let a = pattern(1);
            for cluster in 0..8 {
                write(&vol, cluster, &a).await?;
            }
            let snap = vol.snapshot("snap").await?;
            let before = snap.info().await?;
            slow(true)?;
            let job = spawn({
                let snap = snap.clone();
                async move { snap.checksum().await }
            });
            sleep(Duration::from_millis(20)).await;
            let busy = store.destroy().await.unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
            assert_eq!(LvolStore::find("lvs").await?, store);
            assert!(!job.is_finished());
            // The clone, which nobody held, may have gone; the volume that was held is whole.
            assert_eq!(snap.info().await?.bdev, before.bdev);
            stop_checksum(&snap).await?;
            assert_eq!(job.await?.unwrap_err().errno(), libc::EINTR);
            slow(false)?;
            assert_eq!(read(&snap, 1).await?, a);
            let more = store.create_lvol("more", MIB, Provisioning::Thin).await?;
            write(&more, 0, &a).await?;
            assert_eq!(read(&more, 0).await?, a);
            timeout(LIMIT, store.destroy()).await??;
            assert!(LvolStore::find("lvs").await.is_err());
            assert!(Bdev::find("slow0")?.claimed_by().is_none());
            Ok(())
        },
    );
}
