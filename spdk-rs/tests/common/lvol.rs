//! Logical volumes in tests.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use spdk_rs::ErrorKind;
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{aio, delay};
use spdk_rs::bdev_module::Registered;
use spdk_rs::lvol::check::check_file;
use spdk_rs::lvol::{LvolInfo, LvolStore, StoreOptions};

use super::bdev::register;
use super::disk::TestDisk;
use super::{isolated, run};

/// Runs `body` in a process of its own, with a place for a disk.
pub fn scenario<F>(name: &str, body: impl FnOnce(PathBuf) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    isolated(name, || {
        let place = tempfile::tempdir().expect("a place");
        run(body(place.path().join("disk"))).expect(name);
    });
}

/// How something failed that cannot work.
pub fn kind<T: std::fmt::Debug>(result: spdk_rs::Result<T>) -> ErrorKind {
    result.expect_err("it cannot work").kind()
}

/// A cluster of [`store_on`].
pub const MIB: u64 = 1 << 20;

/// A store with clusters of 1 MiB on the delay bdev `slow0` (no delay yet) on the AIO bdev `aio0`.
pub async fn store_on(disk: &Path) -> Result<LvolStore> {
    std::fs::File::create(disk)?.set_len(128 * MIB)?;
    aio::create("aio0", disk, 4096)?;
    delay::create("slow0", "aio0", Latency::NONE)?;
    store("slow0").await
}

/// A store with clusters of 1 MiB on a device.
pub async fn store(bdev: &str) -> Result<LvolStore> {
    let options = StoreOptions::default().cluster_size(MIB as u32);
    Ok(LvolStore::create(bdev, "lvs", options).await?)
}

/// The same on the test disk `ram`, of so many bytes.
pub async fn store_in_memory(bytes: u64) -> Result<(Arc<TestDisk>, Registered, LvolStore)> {
    let disk = TestDisk::new(bytes as usize);
    let registered = register(&disk, "ram").await?;
    Ok((disk, registered, store("ram").await?))
}

/// Loads the store of [`store_on`] anew, from the file alone. Nothing is wrong with it, unloaded or loaded.
pub async fn load_anew(disk: &Path) -> Result<LvolStore> {
    delay::delete("slow0").await?;
    aio::delete("aio0").await?;
    let report = check_file(disk)?;
    ensure!(report.is_clean() && !report.recovery_due, "unloaded: {report}");
    aio::create("aio0", disk, 4096)?;
    let store = LvolStore::load("aio0").await?;
    let report = store.check().await?;
    ensure!(report.is_clean(), "loaded anew: {report}");
    Ok(store)
}

/// The volumes are as they were `before` the store was loaded anew.
pub async fn ensure_unchanged(store: &LvolStore, before: &[LvolInfo]) -> Result<()> {
    ensure!(infos(store).await? == before, "the store changed by being loaded");
    Ok(())
}

/// All volumes, in the store's order.
pub async fn infos(store: &LvolStore) -> Result<Vec<LvolInfo>> {
    let mut infos = Vec::new();
    for lvol in store.lvols().await? {
        infos.push(lvol.info().await?);
    }
    Ok(infos)
}
