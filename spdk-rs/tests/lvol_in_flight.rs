//! I/O from another core that is with the device while its volume becomes another one.

mod common;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, open, read, write};
use common::disk::TestDisk;
use common::lvol::{MIB, store_in_memory};
use common::on_two_cores;
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::Io;
use spdk_rs::lvol::Provisioning;
use spdk_rs::reactor::{Thread, ThreadHandle, sleep, timeout};
use spdk_rs::{JoinHandle, spawn};

const LEN: usize = 4096;
/// So long an operation is looked at that is to wait for I/O. It would take a few milliseconds.
const A_WHILE: Duration = Duration::from_millis(300);

/// Begins an I/O to a volume on the other core, a write of `data` or a read, and has the device keep it.
/// The task yields what was read.
async fn begin(
    core: &ThreadHandle,
    disk: &Arc<TestDisk>,
    volume: Bdev,
    data: Option<Vec<u8>>,
) -> Result<(JoinHandle<Result<Vec<u8>>>, Io)> {
    disk.hold();
    let task = core.spawn_on(move || async move {
        let descriptor = volume.open(Mode::ReadWrite)?;
        let channel = descriptor.channel()?;
        let found = match data {
            Some(data) => write(&channel, &data, 0).await.map(|()| data)?,
            None => read(&channel, LEN, 0).await?,
        };
        drop(channel);
        descriptor.close().await?;
        Ok(found)
    })?;
    let io = loop {
        match disk.take_held().pop() {
            Some(io) => break io,
            None => sleep(Duration::from_millis(1)).await,
        }
    };
    disk.release();
    Ok((task, io))
}

/// A write that is under way when a snapshot is taken is in the snapshot, or not: but it does not come
/// into it later.
#[test]
fn a_snapshot_that_is_taken_does_not_change() {
    on_two_cores("a_snapshot_that_is_taken_does_not_change", || async {
        let (disk, _registered, store) = store_in_memory(64 * MIB).await?;
        let volume = store.create_lvol("volume", 4 * MIB, Provisioning::Thin).await?;
        let (descriptor, channel) = open("lvs/volume")?;
        write(&channel, &[1; LEN], 0).await?;

        let core = Thread::create("writer", 1)?;
        let (written, io) = begin(&core, &disk, volume.bdev().await?, Some(vec![2; LEN])).await?;
        let snapshot = spawn(async move { volume.snapshot("snapshot").await });
        sleep(A_WHILE).await;
        let early = match Bdev::find("lvs/snapshot") {
            Ok(_) => {
                let (descriptor, channel) = open("lvs/snapshot")?;
                let found = read(&channel, LEN, 0).await?;
                drop(channel);
                descriptor.close().await?;
                Some(found)
            }
            Err(_) => None, // it is not there yet
        };
        disk.serve(io);
        timeout(LIMIT, written).await???;
        timeout(LIMIT, snapshot).await???;
        core.exit().await;

        let (of_snapshot, snapshot) = open("lvs/snapshot")?;
        let late = read(&snapshot, LEN, 0).await?;
        ensure!(early.is_none_or(|early| early == late), "the snapshot changed");
        ensure!(read(&channel, LEN, 0).await? == [2; LEN], "the write is lost");
        drop((channel, snapshot));
        descriptor.close().await?;
        Ok(of_snapshot.close().await?)
    });
}

/// A read of a snapshot that is being deleted does not see what its clone writes afterwards to the
/// clusters that it has got.
#[test]
fn a_read_of_a_deleted_snapshot_sees_the_snapshot() {
    on_two_cores("a_read_of_a_deleted_snapshot_sees_the_snapshot", || async {
        let (disk, _registered, store) = store_in_memory(64 * MIB).await?;
        let volume = store.create_lvol("volume", 4 * MIB, Provisioning::Thin).await?;
        let (descriptor, channel) = open("lvs/volume")?;
        write(&channel, &[1; LEN], 0).await?;
        let snapshot = volume.snapshot("snapshot").await?;

        let core = Thread::create("reader", 1)?;
        let (seen, io) = begin(&core, &disk, snapshot.bdev().await?, None).await?;
        let deleted = spawn(async move { snapshot.destroy().await });
        sleep(A_WHILE).await;
        let written = spawn(async move {
            write(&channel, &[2; LEN], 0).await?;
            read(&channel, LEN, 0).await
        });
        sleep(A_WHILE).await;
        disk.serve(io);
        ensure!(
            timeout(LIMIT, seen).await??? == [1; LEN],
            "it saw its clone's data"
        );
        timeout(LIMIT, deleted).await???;
        ensure!(timeout(LIMIT, written).await??? == [2; LEN]);
        core.exit().await;
        Ok(descriptor.close().await?)
    });
}
