//! The target for a user who is not root.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use anyhow::Result;
use common::{Place, Process, TargetOptions};
use serde_json::json;

#[test]
fn an_ordinary_user_can_run_it() -> Result<()> {
    // SAFETY: geteuid has no conditions.
    if unsafe { libc::geteuid() } != 0 {
        println!(
            "an_ordinary_user_can_run_it: the tests run as an ordinary user already, so every other one shows it"
        );
        return Ok(());
    }
    let mut place = Place::new()?;
    // What a crash of root's target leaves in folders that all share is not in the way.
    let crashed = TargetOptions::in_place(&place).start(None)?;
    crashed.into_process().kill()?;
    for left in ["spdk.sock", "spdk.sock.lock", "spdk_tgt.log"] {
        std::fs::remove_file(place.file(left))?;
    }
    let nobody = 65534;
    std::os::unix::fs::chown(place.dir(), Some(nobody), Some(nobody))?;
    // The binary may lie where only root can go.
    let mut options = TargetOptions::in_place(&place);
    let binary = place.file("spdk_tgt");
    std::fs::copy(&options.binary, &binary)?;
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755))?;
    options.binary = binary;
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--no-new-privs",
            "env",
        ])
        .arg(format!("HOME={}", place.dir().display()));
    let target = options.command();
    command.arg(target.get_program()).args(target.get_args());
    let mut process = Process::start("spdk_tgt", command, &options.log, &options.socket)?;
    assert_eq!(std::fs::metadata(&options.socket)?.uid(), nobody);
    let disk = place.file("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    std::os::unix::fs::chown(&disk, Some(nobody), Some(nobody))?;
    process.call(
        "bdev_aio_create",
        json!({"name": "aio0", "filename": disk, "block_size": 4096}),
    )?;
    process.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "aio0", "lvs_name": "lvs"}),
    )?;
    process.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    assert_eq!(process.stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
