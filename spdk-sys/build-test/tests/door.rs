//! `SPDK_SYS_DIR`: a wrong SPDK is refused for what is wrong with it.

mod common;

use common::{Place, bad, good, says, write};
use std::fs;
use std::path::Path;
use std::process::Command;

fn with(place: &Place, dir: &Path) -> Command {
    let mut command = place.command();
    command.env_remove("SPDK_SYS_SOURCE").env("SPDK_SYS_DIR", dir);
    command
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_good_one_goes_before_source_and_cache() {
    let place = Place::new();
    let tree = place.built();
    let mut command = with(&place, &tree);
    command
        .env("SPDK_SYS_SOURCE", "/nowhere")
        .env("SPDK_SYS_CACHE", place.path().join("other"));
    assert_eq!(good(&mut command).trim(), tree.to_str().unwrap());
    assert!(!place.path().join("other").exists());
}

#[test]
fn not_an_spdk_and_not_there() {
    let place = Place::new();
    says(&bad(&mut with(&place, place.path())), &["is not an SPDK tree"]);
    says(
        &bad(&mut with(&place, Path::new("/nowhere"))),
        &["SPDK_SYS_DIR=/nowhere", "No such file"],
    );
}

#[test]
fn an_installed_prefix() {
    let place = Place::new();
    let prefix = place.path().join("usr");
    write(&prefix.join("include/spdk/bdev.h"), "");
    write(&prefix.join("lib/libspdk_bdev.a"), "");
    let message = bad(&mut with(&place, &prefix));
    says(
        &message,
        &[
            "is an installed prefix",
            "internal headers",
            "directory that SPDK was built in",
        ],
    );
}

#[test]
fn not_configured_and_not_built() {
    let place = Place::new();
    says(
        &bad(&mut with(&place, &place.source())),
        &["is not built", "./configure --target-arch"],
    );
    let tree = place.built();
    fs::remove_file(tree.join("build/lib/libspdk_bdev_aio.a")).unwrap();
    let message = bad(&mut with(&place, &tree));
    says(
        &message,
        &["not wholly", "libspdk_bdev_aio.a", "./configure --target-arch"],
    );
}

#[test]
fn unpatched() {
    let place = Place::new();
    let tree = place.built();
    fs::remove_file(tree.join("include/spdk/spdk_rs.h")).unwrap();
    let message = bad(&mut with(&place, &tree));
    says(
        &message,
        &["is not patched", "spdk-sys/patches", "SPDK_SYS_ALLOW_UNPATCHED=1"],
    );
    good(with(&place, &tree).env("SPDK_SYS_ALLOW_UNPATCHED", "1"));
}

#[test]
fn another_patch_level() {
    let place = Place::new();
    let tree = place.built();
    edit(
        &tree.join("include/spdk/spdk_rs.h"),
        "PATCHLEVEL 2",
        "PATCHLEVEL 1",
    );
    let message = bad(&mut with(&place, &tree));
    says(
        &message,
        &["has patch level 1", "makes level 2", "SPDK_SYS_SERIES=enabling"],
    );
}

#[test]
fn another_version() {
    let place = Place::new();
    let tree = place.built();
    edit(&tree.join("include/spdk/version.h"), "MAJOR 20", "MAJOR 26");
    says(
        &bad(&mut with(&place, &tree)),
        &["is v26.07, but this crate is for v20.07"],
    );
}

#[test]
fn another_configuration() {
    let place = Place::new();
    let tree = place.built();
    let header = tree.join("include/spdk/config.h");
    edit(
        &header,
        "#define SPDK_CONFIG_ISAL 1",
        "#define SPDK_CONFIG_RDMA 1",
    );
    let message = bad(&mut with(&place, &tree));
    says(
        &message,
        &[
            "another configuration",
            "CONFIG_ISAL=n, needed is y",
            "CONFIG_RDMA=y, needed is n",
        ],
    );
    says(&message, &["libibverbs", "./configure --target-arch"]);
}

#[test]
fn moved_after_configure() {
    let place = Place::new();
    let moved = place.path().join("moved");
    fs::rename(place.built(), &moved).unwrap();
    let message = bad(&mut with(&place, &moved));
    says(&message, &["CONFIG_ENV=", "may not be moved"]);
}
