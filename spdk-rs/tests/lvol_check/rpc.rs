//! Checks and repairs over JSON-RPC.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::aio;
use spdk_rs::lvol::check::check_file;
use spdk_rs::reactor::sleep;
use spdk_rs::rpc::{CallError, Client, RpcError};

use crate::LIMIT;
use crate::common::{builder, isolated};
use crate::image::Image;
use crate::shop::{Blobs, furnish, load};

const METHOD: &str = "bdev_lvol_check_lvstore";

/// Calls the method while SPDK runs.
async fn call(socket: &Path, params: Value) -> Result<Result<Value, CallError>> {
    let mut client = Client::connect_within(socket, LIMIT)?;
    let call = std::thread::spawn(move || client.call(METHOD, params));
    while !call.is_finished() {
        sleep(std::time::Duration::from_millis(1)).await;
    }
    call.join().ok().context("the client panicked")
}

async fn refused(socket: &Path, params: Value) -> Result<RpcError> {
    let error = call(socket, params).await?.err().context("not refused")?;
    Ok(error.rpc().context("not by the server")?.clone())
}

#[test]
fn checks_and_repairs_by_rpc() {
    isolated("rpc::checks_and_repairs_by_rpc", || {
        spdk_rs::lvol::rpc::register().expect("no method of that name");
        let place = tempfile::tempdir().expect("a place");
        let (disk, socket) = (place.path().join("disk"), place.path().join("rpc.sock"));
        let runtime = builder().rpc_socket(socket.to_str().expect("UTF-8")).build();
        let scenario = async move { scenario(&disk, &socket).await };
        runtime
            .expect("options that are fine")
            .run(scenario)
            .expect("SPDK starts and stops")
            .expect("the scenario");
    });
}

async fn scenario(disk: &Path, socket: &Path) -> Result<()> {
    furnish(disk).await?;
    let thick = Blobs::of(&check_file(disk)?).id("thick")?;
    let store = load(disk).await?;
    for by in [
        json!({"lvs_name": "lvs"}),
        json!({"uuid": store.uuid()}),
        json!({"bdev_name": "aio0"}),
    ] {
        let report = call(socket, by).await??;
        ensure!(report["findings"] == json!([]), "{report}");
        ensure!(report["name"] == "lvs" && report["loaded"] == true, "{report}");
        ensure!(report["volumes"].as_array().map(Vec::len) == Some(5), "{report}");
    }
    let error = refused(socket, json!({"lvs_name": "none"})).await?;
    ensure!(error.code == -libc::ENODEV, "{error}");
    let error = refused(socket, json!({"bdev_name": "aio0", "repair": true})).await?;
    ensure!(
        error.code == -libc::EBUSY && error.to_string().contains("unload it first"),
        "{error}"
    );
    for (params, why) in [
        (json!({}), "one of lvs_name"),
        (json!({"lvs_name": "lvs", "bdev_name": "aio0"}), "one of lvs_name"),
        (json!({"lvs_name": "lvs", "repair": true}), "give bdev_name"),
        (json!({"bdev_name": "aio0", "forget": [thick]}), "without repair"),
        (json!({"bdev_name": "aio0", "fix": true}), "unknown field"),
    ] {
        let error = refused(socket, params).await?;
        ensure!(
            error.code == RpcError::INVALID_PARAMS && error.message.contains(why),
            "{error}"
        );
    }
    store.unload().await?;
    aio::delete("aio0").await?;

    // SPDK refuses a store with a blob that has no name, and leaves its bdev alone.
    Image::open(disk)?.replace(thick, b"name", b"nama")?;
    aio::create("aio0", disk, 4096)?;
    let report = call(socket, json!({"bdev_name": "aio0"})).await??;
    let finding = &report["findings"][0];
    ensure!(
        report["loaded"] == false && finding["finding"] == "nameless",
        "{report}"
    );
    ensure!(
        finding["blob"]["blob"] == thick && finding["remedy"] == "decide",
        "{report}"
    );
    ensure!(
        finding["text"]
            .as_str()
            .is_some_and(|text| text.contains("has no name")),
        "{report}"
    );
    let taken = json!({"bdev_name": "aio0", "repair": true, "rename": [{"blob": thick, "name": "vol"}]});
    let error = refused(socket, taken).await?;
    ensure!(
        error.code == -libc::EINVAL && error.to_string().contains("the name vol is taken"),
        "{error}"
    );
    let told = json!({"bdev_name": "aio0", "repair": true, "rename": [{"blob": thick, "name": "found"}]});
    let repaired = call(socket, told).await??;
    ensure!(
        repaired["before"]["findings"].as_array().map(Vec::len) == Some(1),
        "{repaired}"
    );
    ensure!(repaired["after"]["findings"] == json!([]), "{repaired}");
    ensure!(
        repaired["steps"].as_array().map(Vec::len) == Some(1),
        "{repaired}"
    );
    aio::delete("aio0").await?;
    ensure!(load(disk).await?.lvol("found").await.is_ok());
    Ok(())
}
