//! Checks and repairs over JSON-RPC.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Repair, Repaired, Report, check_bdev, repair_bdev};
use crate::lvol::LvolStore;
use crate::rpc::{self, RpcError, When};
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    lvs_name: Option<String>,
    uuid: Option<String>,
    bdev_name: Option<String>,
    #[serde(default)]
    repair: bool,
    #[serde(default)]
    adopt: Vec<u64>,
    #[serde(default)]
    forget: Vec<u64>,
    #[serde(default)]
    rename: Vec<Name>,
    #[serde(default)]
    set_uuid: Vec<NewUuid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    blob: u64,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUuid {
    blob: u64,
    uuid: Uuid,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Report(Report),
    Repaired(Repaired),
}

/// Adds the method to SPDK's server.
pub(in crate::lvol) fn register() -> Result<()> {
    rpc::register("bdev_lvol_check_lvstore", When::Running, |params: Params| async {
        let answer = match params.target()? {
            Target::Store(_) if params.repair => {
                let why = "a store is repaired while it is not loaded: give bdev_name";
                return Err(RpcError::invalid_params(why));
            }
            _ if !params.repair && params.tells_something() => {
                return Err(RpcError::invalid_params("without repair, nothing is changed"));
            }
            Target::Store(store) => check_store(&store).await.map(Answer::Report),
            Target::Bdev(bdev) if !params.repair => check_bdev(&bdev).await.map(Answer::Report),
            Target::Bdev(bdev) => repair_bdev(&bdev, params.told()).await.map(Answer::Repaired),
        };
        answer.map_err(|error| refused(&error))
    })
}

enum Target {
    /// By name or UUID.
    Store(String),
    Bdev(String),
}

impl Params {
    fn target(&self) -> Result<Target, RpcError> {
        match (&self.lvs_name, &self.uuid, &self.bdev_name) {
            (Some(store), None, None) | (None, Some(store), None) => Ok(Target::Store(store.clone())),
            (None, None, Some(bdev)) => Ok(Target::Bdev(bdev.clone())),
            _ => Err(RpcError::invalid_params(
                "one of lvs_name, uuid and bdev_name is needed",
            )),
        }
    }

    fn tells_something(&self) -> bool {
        let blobs = self.adopt.len() + self.forget.len();
        blobs + self.rename.len() + self.set_uuid.len() > 0
    }

    fn told(self) -> Repair {
        let mut repair = Repair::new();
        for blob in self.adopt {
            repair = repair.adopt(blob);
        }
        for blob in self.forget {
            repair = repair.forget(blob);
        }
        for Name { blob, name } in self.rename {
            repair = repair.rename(blob, &name);
        }
        for NewUuid { blob, uuid } in self.set_uuid {
            repair = repair.set_uuid(blob, uuid);
        }
        repair
    }
}

async fn check_store(name_or_uuid: &str) -> Result<Report> {
    LvolStore::find(name_or_uuid).await?.check().await
}

fn refused(error: &Error) -> RpcError {
    RpcError::with_errno_code(error.errno()).with_data(serde_json::json!({ "reason": error.to_string() }))
}
