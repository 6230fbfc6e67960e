//! Volumes over JSON-RPC: the methods for checksums that Longhorn's SPDK has, and a list of later
//! SPDK's, with the same answers; and checks of stores.
//!
//! | method | answer |
//! |---|---|
//! | `bdev_lvol_get_lvols {lvs_uuid, lvs_name}` | all volumes, or those of one store, also volumes that have no bdev |
//! | `bdev_lvol_register_snapshot_checksum {name}` | `true` when the sum is computed and stored |
//! | `bdev_lvol_get_snapshot_checksum {name}` | `{"checksum": u64}` |
//! | `bdev_lvol_stop_snapshot_checksum {name}` | `true` when the job has let the volume go |
//!
//! `name` is a volume's UUID or `lvstore/lvol`. The code of an error is the negative errno: -19 no
//! such volume or store, or no sum stored; -1 not a snapshot; -16 another operation on it is running;
//! -3 nothing to stop; -4 it was stopped; -22 a store's UUID *and* name.
//!
//! Each volume in the list is
//! `{"alias", "uuid", "name", "is_thin_provisioned", "is_snapshot", "is_clone", "is_esnap_clone",
//! "is_degraded", "lvs": {"name", "uuid"}}`. It is degraded if it has no bdev: it could not be opened
//! or shown, or is being removed, and what else it is is not known then. (There are no clones of
//! external snapshots in SPDK v20.07.)
//!
//! `bdev_lvol_check_lvstore` with one of `lvs_name`, `uuid` (both: of a loaded store) and `bdev_name`
//! answers with a [`Report`](super::check::Report): what was found is in `findings`, each with its
//! `remedy`, and a `text` for people. With `bdev_name` and `"repair": true` it repairs a store that is
//! not loaded ([`Repair`](super::check::Repair)), and answers with what was done, and a report before and
//! after it. What is to be decided blob by blob is in the lists `adopt` and `forget` (ids of blobs),
//! `rename` (`{blob, name}`) and `set_uuid` (`{blob, uuid}`). The code of an error is the negative errno
//! here, too; the member `data.reason` of the error says why.

use std::future::Future;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Lvol, LvolStore, Uuid, check, stop_checksum};
use crate::rpc::{self, RpcError, When};
use crate::{Error, ErrorKind, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    name: String,
}

#[derive(Serialize)]
struct Sum {
    checksum: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WhichStore {
    lvs_uuid: Option<String>,
    lvs_name: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    alias: String,
    uuid: String,
    name: String,
    is_thin_provisioned: bool,
    is_snapshot: bool,
    is_clone: bool,
    is_esnap_clone: bool,
    is_degraded: bool,
    lvs: ListedStore,
}

#[derive(Serialize)]
struct ListedStore {
    name: String,
    uuid: String,
}

/// Adds the methods to SPDK's server. Call it once, before [`Runtime::run`](crate::Runtime::run).
///
/// # Errors
/// See [`rpc::register`].
pub fn register() -> Result<()> {
    rpc::register("bdev_lvol_get_lvols", When::Running, |which| async move {
        list(which).await.map_err(|error| coded(&error))
    })?;
    method("bdev_lvol_register_snapshot_checksum", |lvol| async move {
        lvol.checksum().await?;
        Ok(true)
    })?;
    method("bdev_lvol_get_snapshot_checksum", |lvol| async move {
        let none = || Error::from_errno("read checksum", lvol.to_string(), libc::ENODEV);
        let checksum = lvol.stored_checksum().await?.ok_or_else(none)?;
        Ok(Sum { checksum })
    })?;
    method("bdev_lvol_stop_snapshot_checksum", |lvol| async move {
        stop_checksum(&lvol).await?;
        Ok(true)
    })?;
    check::rpc::register()
}

fn method<H, F, R>(name: &str, handler: H) -> Result<()>
where
    H: Fn(Lvol) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<R>> + 'static,
    R: Serialize + 'static,
{
    rpc::register(name, When::Running, move |params: Params| async move {
        let lvol = Lvol::find(&params.name).await.map_err(|error| coded(&error))?;
        let answer = handler(lvol.clone()).await;
        answer.map_err(|error| match lvol.operation() {
            Some(operation) if error.kind() == ErrorKind::Busy => coded(&error).with_data(json!({
                "lvol": lvol.to_string(),
                "reason": "locked",
                "operation": operation,
                "holder": lvol.name(),
            })),
            _ => coded(&error),
        })
    })
}

fn coded(error: &Error) -> RpcError {
    RpcError::with_errno_code(error.errno())
}

async fn list(which: WhichStore) -> Result<Vec<Listed>> {
    const WHAT: &str = "list lvols";
    let WhichStore { lvs_uuid, lvs_name } = which;
    let stores = LvolStore::all().await?;
    let wanted: Vec<_> = match (&lvs_uuid, &lvs_name) {
        (None, None) => stores,
        (Some(uuid), Some(name)) => {
            let both = format!("{name} and {uuid}");
            return Err(Error::from_errno(WHAT, both, libc::EINVAL)
                .with_detail("a store is named by lvs_uuid or by lvs_name, not by both"));
        }
        (Some(key), None) | (None, Some(key)) => {
            let uuid = lvs_uuid.as_ref().and_then(|uuid| Uuid::parse_str(uuid).ok());
            let is_it =
                |store: &LvolStore| Some(store.uuid()) == uuid || Some(store.name()) == lvs_name.as_deref();
            let found = stores.into_iter().find(is_it);
            vec![found.ok_or_else(|| Error::from_errno(WHAT, key.as_str(), libc::ENODEV))?]
        }
    };
    let mut lvols = Vec::new();
    for store in wanted {
        for lvol in store.lvols().await? {
            let info = lvol.info().await?;
            lvols.push(Listed {
                alias: lvol.to_string(),
                uuid: info.uuid.to_string(),
                name: info.name,
                is_thin_provisioned: info.thin,
                is_snapshot: info.snapshot,
                is_clone: info.clone,
                is_esnap_clone: false,
                is_degraded: info.bdev.is_none(),
                lvs: ListedStore {
                    name: store.name().to_owned(),
                    uuid: store.uuid().to_string(),
                },
            });
        }
    }
    Ok(lvols)
}
