//! Checksums of ranges; and that a stored sum goes exactly when what it sums up is other than it was.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::disk::Fate;
use common::lvol::{MIB, load_anew, scenario, store_in_memory, store_on};
use common::{isolated, run};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning, stop_checksum};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, spawn};

const LIMIT: Duration = Duration::from_secs(60);
const CLUSTERS: u64 = 12;

async fn write(lvol: &Lvol, clusters: &[u64], seed: u8) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    for cluster in clusters {
        let data = common::bdev::pattern(MIB as usize, seed + *cluster as u8);
        let buf = DmaBuf::copy_of(&data)?;
        channel.write(buf, cluster * MIB).await.into_result()?;
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

/// Three snapshots, `old` beneath `mid` beneath `new`, each with clusters of its own; `vol` is on top.
async fn chain(store: &LvolStore) -> Result<[Lvol; 4]> {
    let vol = store
        .create_lvol("vol", CLUSTERS * MIB, Provisioning::Thin)
        .await?;
    write(&vol, &[2, 5, 9], 1).await?;
    let old = vol.snapshot("old").await?;
    write(&vol, &[5, 6], 50).await?;
    let mid = vol.snapshot("mid").await?;
    write(&vol, &[0, 9], 100).await?;
    let new = vol.snapshot("new").await?;
    Ok([old, mid, new, vol])
}

/// What `checksum` would answer now.
async fn sum(lvol: &Lvol) -> Result<u64> {
    Ok(lvol.checksum_range(0..CLUSTERS).await?)
}

#[test]
fn ranges() {
    scenario("ranges", |disk| async move {
        let store = store_on(&disk).await?;
        let [old, mid, _, vol] = chain(&store).await?;
        let whole = sum(&old).await?;
        ensure!(old.checksum_range(2..10).await? == whole);
        // What is not allocated in the volume itself does not count, nor does where it lies.
        let [two, five, nine] = [2, 5, 9].map(|cluster| old.checksum_range(cluster..cluster + 1));
        let (two, five, nine) = (two.await?, five.await?, nine.await?);
        ensure!(old.checksum_range(0..5).await? == two);
        ensure!(old.checksum_range(3..9).await? == five);
        ensure!(old.checksum_range(6..CLUSTERS).await? == nine);
        ensure!(two != five && five != nine && five != mid.checksum_range(5..6).await?);
        ensure!(old.checksum_range(3..5).await? == 0 && old.checksum_range(5..5).await? == 0);
        ensure!(mid.checksum_range(2..3).await? == 0);
        ensure!(old.stored_checksum().await?.is_none());
        ensure!(old.checksum().await? == whole);

        let beyond = old.checksum_range(3..CLUSTERS + 1).await.unwrap_err();
        ensure!(beyond.kind() == ErrorKind::OutOfRange);
        ensure!(
            beyond
                .to_string()
                .contains("clusters 3 to 13 were asked for, and it has 12"),
            "{beyond}"
        );
        let refused = vol.checksum_range(0..1).await.unwrap_err();
        ensure!(refused.kind() == ErrorKind::PermissionDenied, "{refused}");

        // It holds the volume, and is stopped, as any checksum.
        delay::set_latency("slow0", Latency::all(Duration::from_millis(100)))?;
        let summed = old.clone();
        let job = spawn(async move { summed.checksum_range(0..6).await });
        sleep(Duration::from_millis(20)).await;
        let second = old.checksum().await.unwrap_err();
        ensure!(second.kind() == ErrorKind::Busy && !job.is_finished());
        stop_checksum(&old).await?;
        ensure!(job.await?.unwrap_err().errno() == libc::EINTR);
        delay::set_latency("slow0", Latency::NONE)?;
        ensure!(
            old.stored_checksum().await? == Some(whole),
            "a refused one changes nothing"
        );
        Ok(())
    });
}

#[test]
fn a_sum_stays_while_its_clusters_do() {
    scenario("a_sum_stays_while_its_clusters_do", |disk| async move {
        let store = store_on(&disk).await?;
        let [old, mid, new, vol] = chain(&store).await?;
        let stored = mid.checksum().await?;
        let still = async |after: &str| {
            ensure!(mid.stored_checksum().await? == Some(stored), "after {after}");
            ensure!(sum(&mid).await? == stored, "after {after}");
            Ok(())
        };
        mid.set_xattr("note", b"x").await?;
        mid.remove_xattr("note").await?;
        still("a note").await?;
        let clone = mid.clone_to("clone").await?;
        still("a clone of it").await?;
        write(&clone, &[5, 7], 150).await?;
        write(&vol, &[1, 5], 150).await?;
        still("writes above it").await?;
        clone.snapshot("of-clone").await?;
        still("a snapshot of its clone").await?;
        clone.resize(CLUSTERS * 2 * MIB).await?;
        still("another's size").await?;
        clone.rename("renamed").await?;
        still("another's name").await?;
        clone.inflate().await?;
        still("the inflation of a clone").await?;
        store.lvol("of-clone").await?.destroy().await?;
        still("the destruction of a clone").await?;
        vol.decouple_parent().await?;
        still("a decoupling above it").await?;
        old.checksum().await?;
        still("the sum of its parent").await?;
        for refused in [
            mid.resize(MIB).await,
            mid.inflate().await,
            mid.decouple_parent().await,
        ] {
            ensure!(refused.unwrap_err().kind() == ErrorKind::PermissionDenied);
        }
        still("what a snapshot refuses").await?;
        new.destroy().await?;
        still("the destruction of its clone").await?;
        store.rename("stores").await?;
        load_anew(&disk).await?;
        ensure!(mid.stored_checksum().await? == Some(stored), "after a load");
        Ok(())
    });
}

/// A snapshot that goes gives its clusters to its clone: their sum goes with that change, which an I/O
/// that fails may keep from happening.
#[test]
fn a_sum_goes_with_the_change() {
    const NAME: &str = "a_sum_goes_with_the_change";
    isolated(NAME, || run(changes()).expect(NAME));
}

async fn changes() -> Result<()> {
    for kind in [Kind::Read, Kind::Write, Kind::WriteZeroes, Kind::Unmap] {
        let mut nth = 1;
        while one_change(kind, nth)
            .await
            .with_context(|| format!("{kind:?} number {nth}"))?
        {
            nth += 1;
            ensure!(nth < 100, "it never came through");
        }
        ensure!(nth > 1 || kind == Kind::Read, "no {kind:?} has failed");
    }
    Ok(())
}

/// Whether the fault was met.
async fn one_change(kind: Kind, nth: usize) -> Result<bool> {
    let (disk, registered, store) = store_in_memory(48 * MIB).await?;
    let [old, mid, ..] = chain(&store).await?;
    let stored = mid.checksum().await?;
    let clusters = mid.allocated_clusters().await?;

    disk.fail(kind, nth, Fate::End(Status::Failed));
    let answer = timeout(LIMIT, old.destroy()).await?;
    let met = !disk.mend();
    ensure!(answer.is_ok() || met, "nothing had failed: {answer:?}");
    let changed = mid.allocated_clusters().await? != clusters;
    ensure!(changed == answer.is_ok(), "the answer is {answer:?}");
    ensure!((sum(&mid).await? != stored) == changed, "the test shows nothing");
    let known = mid.stored_checksum().await?;
    ensure!(
        known == (!changed).then_some(stored),
        "{known:?}, answer {answer:?}"
    );

    store.unload().await?;
    timeout(LIMIT, registered.unregister()).await??;
    let registered = disk.register("ram")?;
    let store = LvolStore::load("ram").await?;
    let mid = store.lvol("mid").await?;
    ensure!(mid.stored_checksum().await? == known, "after a load");
    ensure!(
        (mid.allocated_clusters().await? != clusters) == changed,
        "after a load"
    );
    store.destroy().await?;
    timeout(LIMIT, registered.unregister()).await??;
    Ok(met)
}

#[test]
fn a_sum_that_could_not_be_stored_holds_nothing() {
    const NAME: &str = "a_sum_that_could_not_be_stored_holds_nothing";
    isolated(NAME, || run(not_stored()).expect(NAME));
}

async fn not_stored() -> Result<()> {
    let (disk, registered, store) = store_in_memory(48 * MIB).await?;
    let [old, ..] = chain(&store).await?;
    disk.fail_times(Kind::Write, 1, 100, Fate::End(Status::Failed));
    let error = old.checksum().await.unwrap_err();
    ensure!(error.kind() == ErrorKind::Io, "{error}");
    disk.mend();
    ensure!(old.stored_checksum().await?.is_none());
    timeout(LIMIT, old.destroy()).await??;
    store.destroy().await?;
    Ok(timeout(LIMIT, registered.unregister()).await??)
}
