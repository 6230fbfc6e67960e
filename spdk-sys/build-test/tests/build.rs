//! Builds that fail, are interrupted, or meet: what is left never counts as a build.

mod common;

use common::{PROGRAM, Place, bad, good, says, standard_error, write};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How often `lib` was made, in this place.
fn times(place: &Place) -> usize {
    fs::read_to_string(place.path().join("count")).map_or(0, |text| text.lines().count())
}

/// Makes `lib` count itself, and wait while the file `hold` is there.
fn counting(place: &Place) {
    let (count, hold) = (place.path().join("count"), place.path().join("hold"));
    let recipe = format!(
        "all:\n\techo built >>{}\n\twhile [ -e {} ]; do sleep 0.05; done\n",
        count.display(),
        hold.display()
    );
    write(&place.source().join("lib/Makefile"), &recipe);
    place.pin(1);
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_build_for_all_and_no_trace_of_the_second_run() {
    let place = Place::new();
    counting(&place);
    assert_eq!(place.built(), place.built());
    assert_eq!(times(&place), 1);
}

#[test]
fn a_failed_make_shows_its_last_words_and_can_be_repeated() {
    let place = Place::new();
    let flag = place.path().join("mended");
    let recipe = format!(
        "all:\n\t@[ -e {} ] || {{ echo 'blob.c:1: no such thing'; exit 1; }}\n",
        flag.display()
    );
    write(&place.source().join("lib/Makefile"), &recipe);
    place.pin(1);
    let message = bad(&mut place.command());
    says(
        &message,
        &[
            "cannot build SPDK's libraries",
            "blob.c:1: no such thing",
            "build.log",
        ],
    );
    fs::write(flag, "").unwrap();
    good(&mut place.command());
}

#[test]
fn a_build_killed_halfway_is_repeated_from_the_start() {
    let place = Place::new();
    counting(&place);
    let hold = place.path().join("hold");
    fs::write(&hold, "").unwrap();
    let mut first = place.command().spawn().unwrap();
    wait_for("the first build to be halfway", || times(&place) == 1);
    first.kill().unwrap();
    first.wait().unwrap();
    // make lives on: it holds the lock, so that nobody removes the directory under its feet.
    let second = place.command().spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        times(&place),
        1,
        "the second build started while the first one's make was running"
    );
    fs::remove_file(&hold).unwrap();
    let output = second.wait_with_output().unwrap();
    let message = standard_error(&output);
    assert!(output.status.success(), "{message}");
    says(
        &message,
        &[
            "waiting for it to end",
            "removing what an interrupted build left",
            "SPDK is built",
        ],
    );
    assert_eq!(times(&place), 2);
}

#[test]
fn two_builds_at_once_build_once() {
    let place = Place::new();
    counting(&place);
    let hold = place.path().join("hold");
    fs::write(&hold, "").unwrap();
    let first = place.command().spawn().unwrap();
    wait_for("the first build to be halfway", || times(&place) == 1);
    let second = place.command().spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::remove_file(&hold).unwrap();
    let outputs = [first, second].map(|child| child.wait_with_output().unwrap());
    for output in &outputs {
        assert!(output.status.success(), "{}", standard_error(output));
    }
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    says(
        &standard_error(&outputs[1]),
        &["another process is building this SPDK", "has built it"],
    );
    assert_eq!(times(&place), 1);
}

#[test]
fn no_disk_space() {
    let place = Place::new();
    place.pin(1 << 40);
    says(
        &bad(&mut place.command()),
        &["no disk space", "MiB are free", "SPDK_SYS_CACHE"],
    );
}

#[test]
fn a_cache_that_can_not_be_made() {
    let place = Place::new();
    write(&place.path().join("file"), "");
    let message = bad(place
        .command()
        .env("SPDK_SYS_CACHE", place.path().join("file/cache")));
    says(&message, &["cannot make", "file/cache"]);
    let message = bad(place.command().env("SPDK_SYS_CACHE", place.path().join("a b")));
    says(&message, &["SPDK_SYS_CACHE", "Choose another place"]);
}

/// A directory for PATH with every program that the build uses, but one.
fn path_without(place: &Place, missing: &str) -> PathBuf {
    let bin = place.path().join("bin");
    let _ = fs::remove_dir_all(&bin);
    fs::create_dir_all(&bin).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    for dir in std::env::split_paths(&path).filter(|d| d.starts_with("/usr") || d.starts_with("/bin")) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str() != Some(missing) {
                let _ = symlink(entry.path(), bin.join(name));
            }
        }
    }
    bin
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let place = Place::new();
    for (tool, package) in [
        ("nasm", "nasm"),
        ("meson", "meson"),
        ("ninja", "ninja-build"),
        ("autoconf", "autoconf"),
        ("automake", "automake"),
        ("libtoolize", "libtool"),
        ("python3", "python3"),
        ("git", "git"),
        ("g++", "g++"),
        ("pkg-config", "pkg-config"),
        ("make", "make"),
    ] {
        let message = bad(place.command().env("PATH", path_without(&place, tool)));
        says(
            &message,
            &[
                "missing on this machine",
                &format!("{tool} (package {package})"),
                "apt-get install",
            ],
        );
    }
    let message = bad(place.command().env("CC", "no-such-cc"));
    says(&message, &["no-such-cc"]);
    // Nothing of this has been built, and nothing stands in the way.
    good(&mut place.command());
}

/// A compiler that does not know one library.
fn compiler_without(place: &Place, library: &str) -> PathBuf {
    let cc = place.path().join("cc-without");
    let script =
        format!("#!/bin/sh\nfor a in \"$@\"; do [ \"$a\" = -l{library} ] && exit 1; done\nexec cc \"$@\"\n");
    write(&cc, &script);
    fs::set_permissions(&cc, fs::Permissions::from_mode(0o755)).unwrap();
    cc
}

#[test]
fn a_missing_library_is_named_with_its_package() {
    let place = Place::new();
    for (library, package) in [
        ("aio", "libaio-dev"),
        ("uuid", "uuid-dev"),
        ("numa", "libnuma-dev"),
        ("ssl", "libssl-dev"),
        ("uring", "liburing-dev"),
    ] {
        let message = bad(place.command().env("CC", compiler_without(&place, library)));
        says(
            &message,
            &[&format!("lib{library} "), &format!("apt-get install {package}")],
        );
    }
}

/// As cargo runs it, for what `prepare` does not do.
fn script(place: &Place) -> Command {
    let out = place.path().join("out");
    fs::create_dir_all(&out).unwrap();
    let mut command = Command::new(PROGRAM);
    for (name, value) in place.command().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .env("CARGO_MANIFEST_DIR", place.manifest())
        .env("OUT_DIR", out)
        .env("NUM_JOBS", "1");
    command
        .env("TARGET", "x86_64-unknown-linux-gnu")
        .env("HOST", "x86_64-unknown-linux-gnu")
        .env("OPT_LEVEL", "0");
    command
}

#[test]
fn a_missing_libclang_is_named_with_its_package() {
    let place = Place::new();
    // clang-sys takes a file that is named so at its word.
    let library = place.path().join("libclang.so");
    write(&library, "not a library");
    let message = bad(script(&place).env("LIBCLANG_PATH", library));
    says(
        &message,
        &["libclang (package libclang-dev)", "apt-get install libclang-dev"],
    );
}

#[test]
fn rerun_lines_come_before_anything_can_fail() {
    let place = Place::new();
    let output = script(&place).env("SPDK_SYS_SERIES", "half").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8(output.stdout).unwrap();
    says(&lines, &["cargo::rerun-if-env-changed=SPDK_SYS_SERIES"]);
    let output = script(&place)
        .env("SPDK_SYS_SOURCE", Path::new("/nowhere"))
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    says(&lines, &["cargo::rerun-if-changed=shim", "0001-stamp.patch"]);
}
