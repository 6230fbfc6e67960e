//! Checksums over JSON-RPC: the methods that Longhorn's SPDK has, with the same answers.
//!
//! | method | answer |
//! |---|---|
//! | `bdev_lvol_register_snapshot_checksum {name}` | `true` when the sum is computed and stored |
//! | `bdev_lvol_get_snapshot_checksum {name}` | `{"checksum": u64}` |
//! | `bdev_lvol_stop_snapshot_checksum {name}` | `true` when the job has let the volume go |
//!
//! `name` is a volume's UUID or `lvstore/lvol`. The code of an error is the negative errno: -19 no
//! such volume, or no sum stored; -1 not a snapshot; -16 another operation on it is running; -3
//! nothing to stop; -4 it was stopped.

use std::future::Future;

use serde::{Deserialize, Serialize};

use super::{Lvol, stop_checksum};
use crate::rpc::{self, RpcError, When};
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    name: String,
}

#[derive(Serialize)]
struct Sum {
    checksum: u64,
}

/// Adds the three methods to SPDK's server. Call it once, before [`Runtime::run`](crate::Runtime::run).
///
/// # Errors
/// See [`rpc::register`].
pub fn register() -> Result<()> {
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
    })
}

fn method<H, F, R>(name: &str, handler: H) -> Result<()>
where
    H: Fn(Lvol) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<R>> + 'static,
    R: Serialize + 'static,
{
    rpc::register(name, When::Running, move |params: Params| async move {
        let answer = async { handler(Lvol::find(&params.name).await?).await };
        answer
            .await
            .map_err(|error| RpcError::with_errno_code(error.errno()))
    })
}
