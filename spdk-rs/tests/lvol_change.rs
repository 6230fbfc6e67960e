//! Changing logical volumes: names, sizes, read-only; what is allocated and what lies beneath; and
//! destroying those that are held.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::{open, read, until};
use common::lvol::{MIB, kind, load_anew, scenario, store_in_memory, store_on};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, Provisioning};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, spawn};

const LIMIT: Duration = Duration::from_secs(60);

async fn fill(lvol: &Lvol, cluster: u64) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let buf = DmaBuf::copy_of(&[7; 4096])?;
    channel.write(buf, cluster * MIB).await.into_result()?;
    drop(channel);
    Ok(descriptor.close().await?)
}

#[test]
fn names() {
    scenario("names", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        store.create_lvol("other", MIB, Provisioning::Thin).await?;

        ensure!(kind(vol.rename("other").await) == ErrorKind::AlreadyExists);
        ensure!(kind(vol.rename("").await) == ErrorKind::InvalidArgument);
        ensure!(Bdev::find("lvs/vol").is_ok() && Bdev::find("lvs/other").is_ok());

        let new = vol.rename("new").await?;
        ensure!((new.name(), new.uuid()) == ("new", vol.uuid()));
        ensure!(new.rename("new").await.is_ok(), "its own name");
        ensure!(
            vol.info().await?.name == "new",
            "the old handle is the same volume"
        );
        ensure!(Bdev::find("lvs/vol").is_err());
        ensure!(Bdev::find("lvs/new")?.uuid() == vol.uuid());

        let stores = store.rename("stores").await?;
        ensure!((stores.name(), stores.uuid()) == ("stores", store.uuid()));
        ensure!(Bdev::find("lvs/new").is_err() && Bdev::find("stores/new").is_ok());

        let store = load_anew(&disk).await?;
        ensure!(store == stores);
        ensure!(store.lvol("new").await?.uuid() == vol.uuid());
        ensure!(Bdev::find("stores/other").is_ok());

        store.lvol("new").await?.destroy().await?;
        ensure!(kind(vol.rename("back").await) == ErrorKind::NotFound);
        Ok(())
    });
}

#[test]
fn sizes() {
    scenario("sizes", |disk| async move {
        let store = store_on(&disk).await?;
        let free = store.stats().await?.free_clusters;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thick).await?;
        vol.resize(6 * MIB - 1).await?;
        ensure!(vol.info().await?.size == 6 * MIB && Bdev::find("lvs/vol")?.size() == 6 * MIB);
        ensure!(store.stats().await?.free_clusters == free - 6);
        ensure!(vol.allocated_clusters().await? == [0, 1, 2, 3, 4, 5]);
        ensure!(kind(vol.resize(1 << 40).await) == ErrorKind::NoSpace);
        ensure!(vol.info().await?.size == 6 * MIB);
        vol.resize(2 * MIB).await?;
        ensure!(Bdev::find("lvs/vol")?.size() == 2 * MIB);
        ensure!(store.stats().await?.free_clusters == free - 2);

        let store = load_anew(&disk).await?;
        ensure!(store.lvol("vol").await?.info().await?.size == 2 * MIB);
        ensure!(store.stats().await?.free_clusters == free - 2);
        Ok(())
    });
}

/// What is open does not shrink, and then nothing of it has: neither in memory nor on disk.
#[test]
fn what_is_open_is_not_cut_off() {
    scenario("what_is_open_is_not_cut_off", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 6 * MIB, Provisioning::Thick).await?;
        let free = store.stats().await?.free_clusters;
        fill(&vol, 5).await?;
        let descriptor = Bdev::find("lvs/vol")?.open(Mode::ReadOnly)?;
        ensure!(kind(vol.resize(2 * MIB).await) == ErrorKind::Busy);
        ensure!(vol.info().await?.size == 6 * MIB && descriptor.size() == 6 * MIB);
        ensure!(store.stats().await?.free_clusters == free);
        vol.resize(6 * MIB - 1).await?; // as large as it is
        fill(&vol, 5).await?;
        descriptor.close().await?;

        let store = load_anew(&disk).await?;
        ensure!(store.lvol("vol").await?.info().await?.size == 6 * MIB);
        ensure!(store.stats().await?.free_clusters == free);
        ensure!(vol.allocated_clusters().await? == [0, 1, 2, 3, 4, 5]);
        // SPDK itself has it open, to examine it: that is waited for.
        vol.resize(2 * MIB).await?;
        ensure!(store.stats().await?.free_clusters == free + 4);
        for n in 0..20 {
            let new = format!("new{n}");
            let new = store.create_lvol(&new, 3 * MIB, Provisioning::Thin).await?;
            new.resize(MIB).await?;
            new.destroy().await?;
        }
        Ok(())
    });
}

/// There is nothing in a snapshot of what a volume has gained since.
#[test]
fn a_volume_grows_beyond_its_snapshot() {
    scenario("a_volume_grows_beyond_its_snapshot", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 2 * MIB, Provisioning::Thin).await?;
        fill(&vol, 1).await?;
        vol.snapshot("snap").await?;
        vol.resize(6 * MIB).await?;
        fill(&vol, 3).await?;
        let contents = async || {
            let (descriptor, channel) = open("lvs/vol")?;
            let data = read(&channel, 6 << 20, 0).await?;
            drop(channel);
            descriptor.close().await?;
            let clusters = data.chunks(MIB as usize).enumerate();
            Ok::<_, anyhow::Error>(
                clusters
                    .filter(|(_, data)| data.iter().any(|byte| *byte != 0))
                    .map(|(cluster, data)| (cluster, data.iter().filter(|byte| **byte == 7).count()))
                    .collect::<Vec<_>>(),
            )
        };
        let expected = [(1, 4096), (3, 4096)];
        ensure!(contents().await? == expected, "{:?}", contents().await?);
        vol.decouple_parent().await?;
        ensure!(vol.allocated_clusters().await? == [1, 3]);
        ensure!(contents().await? == expected);
        vol.inflate().await?;
        ensure!(vol.allocated_clusters().await? == [0, 1, 2, 3, 4, 5]);
        load_anew(&disk).await?;
        ensure!(contents().await? == expected);
        Ok(())
    });
}

/// It is opened while it shrinks, and has its new size already; and if it keeps its old one after all,
/// that is told.
#[test]
fn opened_while_it_shrinks() {
    scenario("opened_while_it_shrinks", |_| async {
        let (disk, registered, store) = store_in_memory(64 * MIB).await?;
        let vol = store.create_lvol("vol", 6 * MIB, Provisioning::Thick).await?;
        bdev::wait_for_examine().await?; // which opens it
        for fails in [true, false] {
            disk.forget_seen();
            disk.hold();
            let shrinks = spawn({
                let vol = vol.clone();
                async move { vol.resize(2 * MIB).await }
            });
            until("its metadata is written", || disk.seen(Kind::Write) > 0).await?;
            ensure!(Bdev::find("lvs/vol")?.size() == 2 * MIB);
            let descriptor = Bdev::find("lvs/vol")?.open(Mode::ReadWrite)?;
            // Another one is refused, and leaves the first one alone.
            ensure!(kind(vol.resize(MIB).await) == ErrorKind::Busy);
            if fails {
                for io in disk.take_held() {
                    io.complete(Status::Failed);
                }
            }
            disk.release();
            let rc = timeout(LIMIT, shrinks).await??;
            let size = if fails { 6 * MIB } else { 2 * MIB };
            ensure!(rc.is_err() == fails && descriptor.size() == size);
            ensure!(vol.info().await?.size == size);
            let channel = descriptor.channel()?;
            let block = DmaBuf::copy_of(&[7; 4096])?;
            channel.write(block, size - 4096).await.into_result()?;
            drop(channel);
            descriptor.close().await?;
        }
        store.destroy().await?;
        Ok(registered.unregister().await?)
    });
}

#[test]
fn nothing_and_something_again() {
    scenario("nothing_and_something_again", |disk| async move {
        let store = store_on(&disk).await?;
        let free = store.stats().await?.free_clusters;
        let other = store.create_lvol("other", 2 * MIB, Provisioning::Thick).await?;
        let thick = store.create_lvol("thick", 4 * MIB, Provisioning::Thick).await?;
        let thin = store.create_lvol("thin", 4 * MIB, Provisioning::Thin).await?;
        for vol in [&thick, &thin] {
            fill(vol, 3).await?;
            vol.resize(0).await?;
            ensure!(vol.info().await?.size == 0 && vol.allocated_clusters().await?.is_empty());
        }
        ensure!(store.stats().await?.free_clusters == free - 2);
        for vol in [&thick, &thin] {
            vol.resize(3 * MIB).await?;
            fill(vol, 1).await?;
        }

        let store = load_anew(&disk).await?;
        ensure!(thick.allocated_clusters().await? == [0, 1, 2]);
        ensure!(thin.allocated_clusters().await? == [1]);
        ensure!(other.allocated_clusters().await? == [0, 1]);
        ensure!(store.stats().await?.free_clusters == free - 6);
        for vol in [thick, thin] {
            vol.resize(0).await?;
            vol.destroy().await?;
        }
        ensure!(store.stats().await?.free_clusters == free - 2);
        Ok(())
    });
}

#[test]
fn read_only_volumes_and_relations() {
    scenario("read_only_volumes_and_relations", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        ensure!(vol.allocated_clusters().await?.is_empty());
        fill(&vol, 2).await?;
        ensure!(vol.allocated_clusters().await? == [2]);

        let older = vol.snapshot("older").await?;
        fill(&vol, 0).await?;
        let newer = vol.snapshot("newer").await?;
        fill(&vol, 3).await?;
        ensure!(vol.allocated_clusters().await? == [3]);
        ensure!(newer.allocated_clusters().await? == [0]);
        ensure!(older.allocated_clusters().await? == [2]);
        ensure!(vol.ancestors().await? == [newer.clone(), older.clone()]);
        ensure!(older.ancestors().await?.is_empty() && older.parent().await?.is_none());
        ensure!(vol.parent().await? == Some(newer.clone()));
        ensure!(older.clones().await? == [newer.clone()] && newer.clones().await? == [vol.clone()]);
        ensure!(vol.clones().await?.is_empty());

        ensure!(kind(vol.clone_to("clone").await) == ErrorKind::InvalidArgument);
        vol.set_read_only().await?;
        ensure!(vol.info().await?.read_only);
        ensure!(Bdev::find("lvs/vol")?.open(Mode::ReadOnly).is_ok());
        let clone = vol.clone_to("clone").await?;
        ensure!(clone.ancestors().await? == [vol.clone(), newer, older]);

        load_anew(&disk).await?;
        ensure!(vol.info().await?.read_only && clone.ancestors().await?.len() == 3);
        Ok(())
    });
}

#[test]
fn destroyed_when_nobody_holds_it() {
    scenario("destroyed_when_nobody_holds_it", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thin).await?;
        for cluster in 0..4 {
            fill(&vol, cluster).await?;
        }
        let [one, two] = [vol.snapshot("one").await?, vol.snapshot("two").await?];
        drop(two);

        // Held for longer than the limit; then not.
        delay::set_latency("slow0", Latency::all(Duration::from_millis(100)))?;
        let summed = one.clone();
        let sum = spawn(async move { summed.checksum().await });
        sleep(Duration::from_millis(20)).await;
        let held = one.clone().destroy_when_idle(Duration::from_millis(50)).await;
        let Err(DestroyError::Busy { lvol, holders }) = held else {
            anyhow::bail!("not as busy: {held:?}");
        };
        ensure!(holders.operation.as_deref() == Some("checksum"), "{holders}");
        ensure!(Bdev::find("lvs/one").is_ok());
        let destroy = spawn(lvol.destroy_when_idle(LIMIT));
        timeout(LIMIT, sum).await???;
        timeout(LIMIT, destroy).await???;
        ensure!(Bdev::find("lvs/one").is_err());

        // A job of one's own need not be waited for.
        let two = store.lvol("two").await?;
        let summed = two.clone();
        let sum = spawn(async move { summed.checksum().await });
        sleep(Duration::from_millis(20)).await;
        two.clone().destroy_stopping_jobs(LIMIT).await?;
        let stopped = timeout(LIMIT, sum).await??.expect_err("it was stopped");
        ensure!(stopped.errno() == libc::EINTR);
        let gone = two.destroy_stopping_jobs(LIMIT).await;
        ensure!(matches!(gone, Err(DestroyError::NotFound { .. })), "{gone:?}");
        Ok(())
    });
}
