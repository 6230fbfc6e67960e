//! What the target says to a command line, a configuration or a machine that it cannot work with: at most three lines
//! on standard error, a non-zero exit status, nothing on standard output, and no word of DPDK's usage text.

mod common;

use std::process::{Command, Output};

use common::Place;

fn target(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spdk_tgt"))
        .args(args)
        .output()
        .expect("the target can be started")
}

/// The message of a refusal, after the checks that hold for all of them.
#[track_caller]
fn refusal(args: &[&str], status: i32) -> String {
    let output = target(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    assert!((1..=3).contains(&error.lines().count()), "{args:?}: {error}");
    assert!(error.starts_with("spdk_tgt: "), "{args:?}: {error}");
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    for word in ["EAL", "panicked", "Usage:", "RUST_BACKTRACE"] {
        assert!(!error.contains(word), "{args:?}: {error}");
    }
    error
}

/// A refusal with `--no-huge` and a socket of its own before `args`.
#[track_caller]
fn refusal_to_start(place: &Place, args: &[&str]) -> String {
    let socket = place.file("spdk.sock");
    let mut all = vec!["--no-huge", "-r", socket.to_str().unwrap()];
    all.extend(args);
    refusal(&all, 1)
}

fn write(place: &Place, name: &str, text: &str) -> String {
    let path = place.file(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn unknown_options_and_bad_values_are_usage_errors() {
    for (args, named) in [
        (&["--frobnicate"][..], "--frobnicate"),
        (&["-Z"], "-Z"),
        (&["stray"], "stray"),
        (&["-m", "0xzz"], "--cpumask"),
        (&["-m", "0"], "--cpumask"),
        (&["-m", "[1-0]"], "--cpumask"),
        (&["-s", "lots"], "--mem-size"),
        (&["-s", "0"], "--mem-size"),
        (&["-i", "-2"], "--shm-id"),
        (&["-B", "0000:01:00.0", "-W", "0000:02:00.0"], "--pci-whitelist"),
        (&["--json", "a", "--wait-for-rpc"], "--wait-for-rpc"),
        (&["--num-trace-entries", "1000"], "--num-trace-entries"),
        (&["-B", "zz"], "--pci-blacklist"),
        (&["-W", "0000:01:20.0"], "--pci-whitelist"),
        (&["--no-huge", "-R"], "--huge-unlink"),
        (&["--no-huge", "-g"], "--single-file-segments"),
        (&["--no-huge", "--huge-dir", "/"], "--huge-dir"),
        (&["--iova-mode", "xx"], "--iova-mode"),
    ] {
        let error = refusal(args, 2);
        assert!(error.contains(named), "{args:?}: {error}");
        assert!(error.contains("--help"), "{args:?}: {error}");
    }
}

#[test]
fn cores_that_the_machine_does_not_have_are_refused() {
    let mut place = Place::new().unwrap();
    let error = refusal_to_start(&place, &["-m", "[127]"]);
    assert!(error.contains("127"), "{error}");
    place.discard();
}

#[test]
fn a_debug_flag_needs_a_debug_build() {
    // The pinned configuration has no debugging; a user's own build may.
    let output = target(&["-L", "nvmf", "--help"]);
    assert!(output.status.success());
    let output = target(&["-L", "no_such_flag", "--no-huge"]);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.lines().count() <= 3, "{error}");
}

#[test]
fn configurations_that_cannot_be_read_are_named() {
    let mut place = Place::new().unwrap();
    let error = refusal_to_start(&place, &["--json", "/nonexistent/target.json"]);
    assert!(
        error.contains("/nonexistent/target.json") && error.contains("No such file"),
        "{error}"
    );

    let broken = write(&place, "broken.json", "{\n  \"subsystems\": [\n}\n");
    let error = refusal_to_start(&place, &["-c", &broken]);
    assert!(
        error.contains("broken.json") && error.contains("line 3"),
        "{error}"
    );

    let ini = write(&place, "old.conf", "[Global]\n  ReactorMask 0x1\n");
    let error = refusal_to_start(&place, &["-c", &ini]);
    assert!(
        error.contains("INI") && error.contains("config_converter.py"),
        "{error}"
    );
    place.discard();
}

#[test]
fn a_socket_that_cannot_be_made_is_named() {
    let error = refusal(&["--no-huge", "-r", "/nonexistent/spdk.sock"], 1);
    assert!(error.contains("/nonexistent/spdk.sock"), "{error}");

    let mut place = Place::new().unwrap();
    let file = write(&place, "precious", "data");
    let error = refusal(&["--no-huge", "-r", &file], 1);
    assert!(error.contains("something else than a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    place.discard();
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    let mut place = Place::new().unwrap();
    refusal_to_start(&place, &["--json", "/nonexistent/target.json"]);
    refusal_to_start(&place, &["-m", "[127]"]);
    let left: Vec<_> = std::fs::read_dir(place.dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    place.discard();
}

#[test]
fn devices_need_hugepages() {
    let mut place = Place::new().unwrap();
    let error = refusal_to_start(&place, &["-W", "0000:01:00.0"]);
    assert!(error.contains("PCI") && error.contains("huge pages"), "{error}");
    place.discard();
}

#[test]
fn a_folder_that_has_no_hugepages_is_named() {
    let mut place = Place::new().unwrap();
    let socket = place.file("spdk.sock");
    for dir in ["/nonexistent", place.dir().to_str().unwrap()] {
        let error = refusal(&["-u", "-r", socket.to_str().unwrap(), "--huge-dir", dir], 1);
        assert!(error.contains(dir) && error.contains("hugetlbfs"), "{error}");
    }
    place.discard();
}

#[test]
fn too_little_memory_is_told() {
    let mut place = Place::new().unwrap();
    for size in ["1", "8", "16"] {
        refusal_to_start(&place, &["-s", size]);
    }
    let error = refusal_to_start(&place, &["-s", "2000G"]);
    assert!(error.contains("memory"), "{error}");
    place.discard();
}

#[test]
fn more_hugepages_than_there_are_are_told() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let all = meminfo.lines().find_map(|line| line.strip_prefix("Hugetlb:"));
    let all_kib: u64 = all.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    let mut place = Place::new().unwrap();
    let socket = place.file("spdk.sock");
    // More than all that there are, used or not.
    let size = format!("{}M", all_kib / 1024 + 1024);
    let error = refusal(&["-u", "-s", &size, "-r", socket.to_str().unwrap()], 1);
    assert!(error.contains("huge"), "{error}");
    place.discard();
}

#[test]
fn help_and_version_are_for_standard_output() {
    let help = target(&["-h"]);
    assert!(help.status.success() && help.stderr.is_empty());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for option in [
        "--config",
        "--json",
        "--json-ignore-init-errors",
        "--limit-coredump",
        "--tpoint-group-mask",
        "--single-file-segments",
        "--shm-id",
        "--cpumask",
        "--mem-channels",
        "--master-core",
        "--rpc-socket",
        "--mem-size",
        "--no-pci",
        "--version",
        "--pci-blacklist",
        "--logflag",
        "--huge-unlink",
        "--pci-whitelist",
        "--silence-noticelog",
        "--wait-for-rpc",
        "--huge-dir",
        "--num-trace-entries",
        "--max-delay",
        "--iova-mode",
        "--base-virtaddr",
        "--no-huge",
        "--help",
        "-f <file>",
    ] {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }

    for flag in ["-v", "--version"] {
        let version = target(&[flag]);
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        assert!(version.status.success() && version.stderr.is_empty());
        let expected = format!("spdk_tgt {} (SPDK v20.07", env!("CARGO_PKG_VERSION"));
        assert!(
            text.starts_with(&expected) && text.contains("patch level"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}
