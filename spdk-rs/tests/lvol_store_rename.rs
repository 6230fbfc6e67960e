//! A store that is renamed on a device that fails.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::disk::Fate;
use common::lvol::{MIB, store_in_memory};
use common::{isolated, run};
use spdk_rs::ErrorKind;
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::lvol::{LvolStore, Provisioning};
use spdk_rs::reactor::timeout;

const LIMIT: Duration = Duration::from_secs(60);

/// What was answered as an error is not done later either: not when the metadata are written again,
/// not after a load. And nothing is held.
#[test]
fn a_rename_that_failed_is_forgotten() {
    const NAME: &str = "a_rename_that_failed_is_forgotten";
    isolated(NAME, || run(renames()).expect(NAME));
}

async fn renames() -> Result<()> {
    for kind in [Kind::Read, Kind::Write] {
        for failing in [1, 2, 100] {
            let mut nth = 1;
            while one_rename(kind, nth, failing)
                .await
                .with_context(|| format!("{failing} of {kind:?} from number {nth} on"))?
            {
                nth += 1;
            }
            ensure!(nth > 1, "no {kind:?} has failed");
        }
    }
    Ok(())
}

/// Whether the fault was met.
async fn one_rename(kind: Kind, nth: usize, failing: usize) -> Result<bool> {
    let (disk, registered, store) = store_in_memory(48 * MIB).await?;
    store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
    store.unload().await?;
    timeout(LIMIT, registered.unregister()).await??;
    let registered = disk.register("ram")?;
    let store = LvolStore::load("ram").await?;

    let seen = disk.seen(kind);
    disk.fail_times(kind, nth, failing, Fate::End(Status::Failed));
    let answer = timeout(LIMIT, store.rename("other")).await?;
    disk.mend();
    let met = disk.seen(kind) >= seen + nth;
    ensure!(answer.is_ok() || met, "nothing had failed: {answer:?}");
    let name = if answer.is_ok() { "other" } else { "lvs" };
    if let Err(error) = &answer {
        ensure!(error.kind() == ErrorKind::Io, "{error}");
    }
    ensure!(LvolStore::find(name).await?.lvol("vol").await.is_ok());

    timeout(LIMIT, store.unload()).await??;
    timeout(LIMIT, registered.unregister()).await??;
    let registered = disk.register("ram")?;
    let store = LvolStore::load("ram").await?;
    ensure!(
        store.name() == name,
        "after a load it is {store}, the answer was {answer:?}"
    );
    let again = store.rename("again").await?;
    ensure!(again.lvol("vol").await.is_ok());
    again.destroy().await?;
    timeout(LIMIT, registered.unregister()).await??;
    Ok(met)
}
