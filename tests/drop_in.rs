//! What a user of SPDK's own target brings along: its saved configuration, its options.

mod common;

use std::path::Path;

use anyhow::Result;
use common::{Place, Process, TargetOptions};
use serde_json::{Value, json};

/// A configuration in the form that SPDK's own target saves: all of its subsystems, two of which are left out here.
fn saved_by_c(iscsi: Value) -> Value {
    json!({"subsystems": [
        {"subsystem": "accel", "config": []},
        {"subsystem": "interface", "config": null},
        {"subsystem": "bdev", "config": [
            {"method": "bdev_null_create", "params": {"name": "N0", "num_blocks": 64, "block_size": 512}}]},
        {"subsystem": "scsi", "config": null},
        {"subsystem": "nvmf", "config": [{"method": "nvmf_set_max_subsystems", "params": {"max_subsystems": 7}}]},
        {"subsystem": "nbd", "config": []},
        {"subsystem": "iscsi", "config": iscsi}]})
}

fn start(options: &TargetOptions, args: &[&str]) -> Result<Process> {
    let mut command = options.command();
    command
        .args(args)
        .env("XDG_RUNTIME_DIR", options.log.with_file_name(""));
    Process::start("spdk_tgt", command, &options.log, &options.socket)
}

#[test]
fn a_configuration_that_spdks_own_target_saved_is_loaded() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let config = place.file("saved.json");
    let unused = json!({"method": "iscsi_set_options", "params": {"max_sessions": 128, "chap_group": 0}});
    std::fs::write(&config, saved_by_c(json!([unused])).to_string())?;
    let mut target = options.start(Some(&config))?;
    assert!(target.bdev("N0")?.is_some());
    let nvmf = target.call("framework_get_config", json!({"name": "nvmf"}))?;
    assert!(nvmf.to_string().contains(r#""max_subsystems":7"#), "{nvmf}");
    assert_eq!(target.into_process().stop()?.code(), Some(0));

    // But nobody is left to believe that a disk is exported which is not.
    let used = json!({"method": "iscsi_create_target_node", "params": {"name": "disk1"}});
    std::fs::write(&config, saved_by_c(json!([unused, used])).to_string())?;
    let output = options.command().arg("--json").arg(&config).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let told = "subsystem iscsi, entry 2: iscsi_create_target_node: Method not found";
    assert!(error.contains(told), "{error}");
    place.discard();
    Ok(())
}

#[test]
fn the_shared_memory_id_names_the_trace() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let id = std::process::id().to_string();
    let process = start(&options, &["-i", &id, "-e", "0xffff"])?;
    let named = format!("/dev/shm/spdk_tgt_trace.{id}");
    assert!(Path::new(&named).exists(), "{named}");
    assert!(process.log().contains(&format!("--file-prefix=spdk{id}")));
    assert_eq!(process.stop()?.code(), Some(0));
    assert!(!Path::new(&named).exists(), "{named} is left");
    common::place::forget_shm_id(&id);

    let process = start(&options, &[])?;
    let named = format!("/dev/shm/spdk_tgt_trace.pid{}", process.pid());
    assert!(Path::new(&named).exists(), "{named}");
    assert_eq!(process.stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

#[test]
fn devices_can_be_kept_away_even_where_there_are_none() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let process = start(&options, &["-B", "0000:01:00.0", "-B", "2:0"])?;
    assert_eq!(process.stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

#[test]
fn the_socket_may_be_named_as_seen_from_here() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let config = place.file("c.json");
    std::fs::write(&config, saved_by_c(json!([])).to_string())?;
    for args in [&[][..], &["--json", "c.json"]] {
        let mut command = options.command();
        command
            .args(["-r", "near.sock"])
            .args(args)
            .current_dir(place.dir());
        let mut process = Process::start("spdk_tgt", command, &options.log, &place.file("near.sock"))?;
        process.call("spdk_get_version", json!({}))?;
        assert_eq!(process.stop()?.code(), Some(0));
    }
    assert!(!place.file("near.sock").exists());
    place.discard();
    Ok(())
}

#[test]
fn why_a_controller_is_not_attached_is_said() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut process = start(&options, &["-B", "2:0"])?;
    for (address, why) in [
        ("0000:ff:1f.7", "there is no PCI device at this address"),
        (
            "0000:02:00.0",
            "was started with the order to leave that device alone",
        ),
        ("02:00.0", "was started with the order to leave that device alone"),
    ] {
        let params = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address});
        let answer = process.call("bdev_nvme_attach_controller", params);
        let said = answer.expect_err("there is none").to_string();
        assert!(said.contains(why), "{address}: {said}");
    }
    assert_eq!(process.stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
