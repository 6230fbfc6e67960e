//! Wrong or missing sources and patches: each is refused with what to do.

mod common;

use common::{Place, bad, good, says, write};
use std::fs;

#[test]
fn no_source_at_all() {
    let place = Place::new();
    let message = bad(place.command().env_remove("SPDK_SYS_SOURCE"));
    let fetch = place.manifest().join("fetch");
    says(
        &message,
        &[
            "there is no SPDK source",
            fetch.to_str().unwrap(),
            "SPDK_SYS_SOURCE=",
            "SPDK_SYS_DIR=",
        ],
    );
}

#[test]
fn a_source_that_is_not_there() {
    let place = Place::new();
    let message = bad(place
        .command()
        .env("SPDK_SYS_SOURCE", place.path().join("nowhere")));
    says(
        &message,
        &[
            "SPDK_SYS_SOURCE=",
            "nowhere",
            "No such file",
            "unchanged SPDK v20.07 tree",
        ],
    );
}

#[test]
fn a_tree_with_another_hash_is_refused_also_when_a_build_is_there() {
    let place = Place::new();
    good(&mut place.command());
    write(&place.source().join("lib/extra.c"), "int x;\n");
    let message = bad(&mut place.command());
    says(
        &message,
        &[
            "is not the pinned SPDK v20.07",
            "its tree hash is",
            "spdk-sys/fetch",
            "SPDK_SYS_DIR",
        ],
    );
}

#[test]
fn a_directory_that_is_no_spdk() {
    let place = Place::new();
    let message = bad(place.command().env("SPDK_SYS_SOURCE", place.path()));
    says(
        &message,
        &["is not an SPDK source tree", "include/spdk/version.h"],
    );
}

#[test]
fn the_tarball_is_taken_and_another_one_is_not() {
    let place = Place::new();
    let tarball = place.tarball();
    good(place.command().env("SPDK_SYS_SOURCE", &tarball));
    fs::write(&tarball, "not this one").unwrap();
    let message = bad(place.command().env("SPDK_SYS_SOURCE", &tarball));
    says(
        &message,
        &[
            "is not the pinned tarball",
            "its SHA-256 is",
            "ceph.tar.xz",
            "spdk-sys/fetch",
        ],
    );
}

#[test]
fn what_fetch_left_in_the_cache_is_taken_and_checked() {
    let place = Place::new();
    let pinned = fs::read_to_string(place.manifest().join("pinned")).unwrap();
    let hash = pinned
        .lines()
        .find_map(|l| l.strip_prefix("tree_sha256="))
        .unwrap();
    let cached = place.cache().join(format!("source-{}", &hash[..16]));
    fs::create_dir_all(place.cache()).unwrap();
    fs::create_dir(&cached).unwrap();
    fs::rename(place.source(), cached.join("spdk")).unwrap();
    write(&cached.join("spdk/lib/extra.c"), "int x;\n");
    let message = bad(place.command().env_remove("SPDK_SYS_SOURCE"));
    says(
        &message,
        &["is not the pinned SPDK v20.07", "remove the directory"],
    );
    fs::remove_file(cached.join("spdk/lib/extra.c")).unwrap();
    good(place.command().env_remove("SPDK_SYS_SOURCE"));
    // A finished build needs no source any more.
    fs::remove_dir_all(&cached).unwrap();
    good(place.command().env_remove("SPDK_SYS_SOURCE"));
}

#[test]
fn a_patch_that_does_not_apply() {
    let place = Place::new();
    let patch = place.manifest().join("patches/0001-stamp.patch");
    let good_patch = fs::read_to_string(&patch).unwrap();
    let wrong = "diff --git a/configure b/configure\n--- a/configure\n+++ b/configure\n@@ -1 +1 @@\n-#!/bin/nothing\n+#!/bin/sh\n";
    write(&patch, &format!("{good_patch}{wrong}"));
    let message = bad(&mut place.command());
    says(
        &message,
        &[
            "0001-stamp.patch does not apply",
            "patch failed: configure:1",
            "refresh it",
        ],
    );
    // Mended: the same command works, whatever the failed one left.
    write(&patch, &good_patch);
    good(&mut place.command());
}

#[test]
fn an_edited_patch_makes_another_build() {
    let place = Place::new();
    let first = place.built();
    let patch = place.manifest().join("patches/0001-stamp.patch");
    let text = fs::read_to_string(&patch).unwrap();
    write(&patch, &format!("Subject: [PATCH] words\n\n{text}"));
    assert_ne!(place.built(), first);
}

#[test]
fn a_series_that_names_a_patch_that_is_not_there() {
    let place = Place::new();
    write(
        &place.manifest().join("patches/series"),
        "# part: enabling\n0002-none.patch\n",
    );
    says(&bad(&mut place.command()), &["0002-none.patch", "No such file"]);
}

#[test]
fn patches_apply_in_a_cache_inside_another_work_tree() {
    let place = Place::new();
    good(
        std::process::Command::new("git")
            .args(["init", "-q"])
            .arg(place.path()),
    );
    let tree = place.built();
    assert!(tree.join("include/spdk/spdk_rs.h").is_file());
}
