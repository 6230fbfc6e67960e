//! Logical volumes in tests.

use std::future::Future;
use std::path::PathBuf;

use anyhow::Result;
use spdk_rs::lvol::{LvolInfo, LvolStore};

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

/// All volumes, in the store's order.
pub async fn infos(store: &LvolStore) -> Result<Vec<LvolInfo>> {
    let mut infos = Vec::new();
    for lvol in store.lvols().await? {
        infos.push(lvol.info().await?);
    }
    Ok(infos)
}
