//! The target as its users see it: socket, signals, configuration, RPC methods, SPDK's own rpc.py.
//!
//! Without hugepages and in a folder of its own each, so that any user can run them.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{Place, TargetOptions};
use serde_json::{Value, json};

/// The source tree of the linked SPDK.
const SPDK: &str = env!("SPDK_TGT_SPDK_ROOT");

fn output_of(options: &TargetOptions, args: &[&str]) -> Result<Output> {
    Ok(options.command().args(args).output()?)
}

fn write_config(place: &Place, name: &str, config: &Value) -> Result<PathBuf> {
    let path = place.file(name);
    std::fs::write(&path, serde_json::to_vec_pretty(config)?)?;
    Ok(path)
}

/// A configuration with these calls for the bdev subsystem.
fn bdev_config(calls: Value) -> Value {
    json!({"subsystems": [{"subsystem": "bdev", "config": calls}]})
}

fn malloc_call(name: &str) -> Value {
    json!({"method": "bdev_malloc_create", "params": {"name": name, "num_blocks": 2048, "block_size": 512}})
}

#[test]
fn the_socket_is_its_owners_only_and_goes_at_the_end() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let pid_file = place.file("pid");
    let mut command = options.command();
    command.arg("-f").arg(&pid_file);
    let process = common::Process::start("spdk_tgt", command, &options.log, &options.socket)?;
    let meta = std::fs::metadata(&options.socket)?;
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    wait_for(&pid_file)?;
    assert_eq!(
        std::fs::read_to_string(&pid_file)?.trim(),
        process.pid().to_string()
    );
    let status = process.stop()?;
    assert_eq!(status.code(), Some(0), "SIGTERM: {status}");
    assert!(!options.socket.exists());
    place.discard();
    Ok(())
}

fn wait_for(path: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while std::fs::metadata(path).map_or(0, |meta| meta.size()) == 0 {
        ensure!(Instant::now() < end, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn sigint_stops_it_too_with_work_under_way() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let config = write_config(&place, "c.json", &bdev_config(json!([malloc_call("M0")])))?;
    let target = options.start(Some(&config))?;
    let mut process = target.into_process();
    process.signal(libc::SIGINT);
    let status = process.wait(Duration::from_secs(30))?;
    assert_eq!(status.code(), Some(0), "SIGINT: {status}\n{}", process.log());
    place.discard();
    Ok(())
}

#[test]
fn a_second_target_on_a_live_socket_is_refused() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut first = options.start(None)?;
    let started = Instant::now();
    let second = output_of(&options, &[])?;
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.lines().count() <= 3, "{error}");
    assert!(
        error.contains(options.socket.to_str().unwrap_or_default()) && error.contains("-r"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    // The first one is none the worse.
    first.call("spdk_get_version", json!({}))?;
    first.into_process().stop()?;
    place.discard();
    Ok(())
}

#[test]
fn the_socket_of_a_target_that_crashed_is_taken_over() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    drop(UnixListener::bind(&options.socket)?);
    let target = options.start(None)?;
    target.into_process().kill()?;
    assert!(options.socket.exists(), "a killed target leaves its socket");
    let target = options.start(None)?;
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

#[test]
fn a_configuration_that_was_saved_is_the_same_when_loaded() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let nqn = "nqn.2016-06.io.spdk:cnode1";
    let mut target = options.start(None)?;
    target.call(
        "bdev_aio_create",
        json!({"name": "aio0", "filename": disk, "block_size": 4096}),
    )?;
    target.call(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
    )?;
    target.call(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 8 << 20}),
    )?;
    target.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": nqn, "allow_any_host": true}),
    )?;
    target.call(
        "nvmf_subsystem_add_ns",
        json!({"nqn": nqn, "namespace": {"bdev_name": "lvs/vol"}}),
    )?;
    let saved = target.save_config()?;
    let volume = target.bdev("lvs/vol")?.context("lvs/vol is there")?;
    assert_eq!(target.into_process().stop()?.code(), Some(0));

    // The volume is found on its device only while the configuration is carried out, and is named there as a
    // namespace: the loader must wait for it.
    let config = write_config(&place, "saved.json", &saved)?;
    for _ in 0..3 {
        let mut target = options.start(Some(&config))?;
        assert_eq!(target.save_config()?, saved);
        assert_eq!(
            target.bdev("lvs/vol")?.context("lvs/vol is back")?["uuid"],
            volume["uuid"]
        );
        assert_eq!(target.namespaces(nqn)?.len(), 1);
        assert_eq!(target.into_process().stop()?.code(), Some(0));
    }
    place.discard();
    Ok(())
}

/// The job has the volume open and locked; it lets go before SPDK closes the lvstore.
#[test]
fn a_checksum_that_runs_does_not_keep_it_from_stopping() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    let mut target = options.start(None)?;
    target.create_slow_store(&disk, 64 << 20, 4096, 200_000)?;
    target.call(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "vol", "size": 32 << 20}),
    )?;
    target.call(
        "bdev_lvol_snapshot",
        json!({"lvol_name": "lvs/vol", "snapshot_name": "backup"}),
    )?;
    let mut job = target.connect()?;
    let name = json!({"name": "lvs/backup"});
    let caller = std::thread::spawn({
        let name = name.clone();
        move || job.call("bdev_lvol_register_snapshot_checksum", name).is_err()
    });
    // More than six seconds of reads: it runs, and a delete is refused for it.
    std::thread::sleep(Duration::from_secs(1));
    let refused = target.call("bdev_lvol_delete", name).unwrap_err().to_string();
    assert!(refused.contains("checksum"), "{refused}");
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    assert!(
        caller.join().expect("the caller"),
        "the call ended with an answer that is none"
    );
    place.discard();
    Ok(())
}

/// Without the patch the saved configuration is no JSON: an object is not ended.
#[test]
fn a_delay_bdev_is_saved_too() -> Result<()> {
    let mut place = Place::new()?;
    let mut target = TargetOptions::in_place(&place).start(None)?;
    target.call(
        "bdev_malloc_create",
        json!({"name": "ram0", "num_blocks": 64, "block_size": 4096}),
    )?;
    target.create_delay("ram0", 10, 10)?;
    let saved = target.save_config()?.to_string();
    assert!(
        saved.contains("bdev_delay_create") && saved.contains("slow0"),
        "{saved}"
    );
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

#[test]
fn a_call_of_the_configuration_that_fails_is_told_by_name() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    for (name, calls, told) in [
        (
            "twice.json",
            json!([malloc_call("M0"), malloc_call("M0")]),
            "entry 2: bdev_malloc_create",
        ),
        (
            "unknown.json",
            json!([{"method": "bdev_frobnicate"}]),
            "entry 1: bdev_frobnicate: Method not found",
        ),
    ] {
        let config = write_config(&place, name, &bdev_config(calls))?;
        let output = output_of(
            &options,
            &["--silence-noticelog", "-c", config.to_str().unwrap_or_default()],
        )?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        let last = error.lines().last().unwrap_or_default();
        assert!(
            last.contains(name) && last.contains("subsystem bdev") && last.contains(told),
            "{error}"
        );
        assert!(
            !options.socket.exists(),
            "a target that was not configured never serves"
        );
    }
    place.discard();
    Ok(())
}

#[test]
fn failing_calls_can_be_passed_over() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let calls =
        json!([malloc_call("M0"), {"method": "bdev_frobnicate"}, malloc_call("M0"), malloc_call("M1")]);
    let config = write_config(&place, "c.json", &bdev_config(calls))?;
    let mut command = options.command();
    command
        .arg("--json")
        .arg(&config)
        .arg("--json-ignore-init-errors");
    let mut process = common::Process::start("spdk_tgt", command, &options.log, &options.socket)?;
    let bdevs = process.call("bdev_get_bdevs", json!({}))?;
    assert_eq!(bdevs.as_array().map(Vec::len), Some(2));
    assert_eq!(
        process.log().matches("passed over").count(),
        2,
        "{}",
        process.log()
    );
    process.stop()?;
    place.discard();
    Ok(())
}

#[test]
fn it_can_wait_for_rpcs_before_it_initialises() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut command = options.command();
    command.arg("--wait-for-rpc");
    let mut process = common::Process::start("spdk_tgt", command, &options.log, &options.socket)?;
    let early = process.call("bdev_get_bdevs", json!({})).unwrap_err();
    assert_eq!(early.rpc().map(|error| error.code), Some(-1), "{early}");
    process.call("bdev_set_options", json!({"bdev_io_pool_size": 4096}))?;
    process.call("framework_start_init", json!({}))?;
    process.call("bdev_get_bdevs", json!({}))?;
    assert_eq!(process.stop()?.code(), Some(0));

    // And it can be stopped while it still waits.
    let mut command = options.command();
    command.arg("--wait-for-rpc");
    let process = common::Process::start("spdk_tgt", command, &options.log, &options.socket)?;
    assert_eq!(process.stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

/// What is kept for the application's own thread is kept on its core: it is not moved, others are.
#[test]
fn the_app_thread_is_not_moved() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let mut target = options.start(None)?;
    let stats = target.call("thread_get_stats", json!({}))?;
    let threads = stats["threads"].as_array().context("threads")?;
    let id = |app: bool| {
        let is = |thread: &&Value| (thread["name"] == "app_thread") == app;
        threads.iter().find(is).map(|thread| thread["id"].clone())
    };
    let mask = format!("{:#x}", 1 << options.core);
    let app = id(true).context("the app thread")?;
    let refused = target
        .call("thread_set_cpumask", json!({"id": app, "cpumask": mask}))
        .unwrap_err();
    let error = refused.rpc().context("an answer")?;
    ensure!(error.code == -32602, "{error:?}");
    ensure!(
        error.message.contains("(app_thread) stays on its core"),
        "{error:?}"
    );
    let other = id(false).context("another thread")?;
    target.call("thread_set_cpumask", json!({"id": other, "cpumask": mask}))?;
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}

/// The names that a file of SPDK's sources registers as RPC methods.
fn registered_in(file: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    for part in text.split("SPDK_RPC_REGISTER(\"").skip(1) {
        if let Some((name, _)) = part.split_once('"') {
            names.insert(name.to_owned());
        }
    }
    Ok(())
}

fn c_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            c_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "c") {
            files.push(path);
        }
    }
    Ok(())
}

/// Libraries and modules that SPDK's own target links and this one does not, or that neither does in the pinned
/// configuration.
const NOT_LINKED: &[&str] = &[
    // Left out on purpose.
    "lib/iscsi",
    // Only iscsi and vhost use it.
    "lib/scsi",
    "lib/vhost",
    "lib/ftl",
    "module/bdev/ftl",
    "module/bdev/pmem",
    "module/bdev/virtio",
    // Need libraries that the pinned configuration does not have.
    "module/bdev/compress",
    "module/bdev/crypto",
    "module/bdev/iscsi",
    "module/bdev/ocf",
    "module/bdev/rbd",
    "module/blobfs",
    "module/accel/idxd",
    "module/bdev/nvme/bdev_nvme_cuse_rpc.c",
];

#[test]
fn it_has_the_methods_of_spdks_own_target() -> Result<()> {
    let mut place = Place::new()?;
    let mut files = Vec::new();
    for folder in ["lib", "module"] {
        c_files(&Path::new(SPDK).join(folder), &mut files)?;
    }
    let mut promised = BTreeSet::new();
    for file in files {
        let inside = file.strip_prefix(SPDK)?;
        if !NOT_LINKED.iter().any(|folder| inside.starts_with(folder)) {
            registered_in(&file, &mut promised)?;
        }
    }
    assert!(
        promised.len() > 100,
        "SPDK's sources at {SPDK} register {} methods",
        promised.len()
    );

    let mut target = TargetOptions::in_place(&place).start(None)?;
    let methods = target.call("rpc_get_methods", json!({}))?;
    let methods: BTreeSet<String> = serde_json::from_value(methods)?;
    let missing: Vec<_> = promised.difference(&methods).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    for added in [
        "bdev_lvol_get_lvols",
        "bdev_lvol_register_snapshot_checksum",
        "bdev_lvol_get_snapshot_checksum",
        "bdev_lvol_stop_snapshot_checksum",
        "bdev_lvol_check_lvstore",
        "bdev_wait_for_examine",
    ] {
        assert!(methods.contains(added), "{added} is missing");
    }
    target.into_process().stop()?;
    place.discard();
    Ok(())
}

#[test]
fn spdks_own_rpc_py_talks_to_it() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let target = options.start(None)?;
    let rpc = |args: &[&str]| -> Result<String> {
        let output = Command::new("python3")
            .arg(Path::new(SPDK).join("scripts/rpc.py"))
            .arg("-s")
            .arg(&options.socket)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("python3 is needed")?;
        let answer = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rpc.py {args:?}: {answer}{error}");
        Ok(answer.trim().to_owned())
    };
    assert!(rpc(&["spdk_get_version"])?.contains("20.07"));
    assert_eq!(rpc(&["bdev_malloc_create", "16", "4096", "-b", "M0"])?, "M0");
    rpc(&["bdev_lvol_create_lvstore", "M0", "lvs", "-c", "1048576"])?;
    rpc(&["bdev_lvol_create", "-l", "lvs", "vol", "4", "-t"])?;
    rpc(&["bdev_lvol_snapshot", "lvs/vol", "snap"])?;
    let bdev: Value = serde_json::from_str(&rpc(&["bdev_get_bdevs", "-b", "lvs/snap"])?)?;
    assert_eq!(bdev[0]["driver_specific"]["lvol"]["snapshot"], true);
    let config: Value = serde_json::from_str(&rpc(&["save_config"])?)?;
    assert!(config["subsystems"].as_array().is_some_and(|list| list.len() > 3));
    let error = rpc(&["bdev_get_bdevs", "-b", "nope"]).unwrap_err().to_string();
    assert!(error.contains("No such device"), "{error}");
    target.into_process().stop()?;
    place.discard();
    Ok(())
}
