//! `spdk-sys/fetch`, with an apt-get that downloads from a directory: what it asks apt for, and what it says
//! when that goes wrong. (The real archive is asked by `ci/setup` on a fresh machine.)

mod common;

use common::{Place, bad, good, says, standard_error, write};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Keeps what it was asked, "downloads" `$PLACE/archive/*` on `source`.
const APT_GET: &str = r#"#!/bin/sh
echo "$@" >>"$PLACE/apt-asked"
for a in "$@"; do case $a in Dir::Etc::SourceList=*) cp "${a#*=}" "$PLACE/apt-sources" ;; esac; done
case " $* " in
*" update "*) [ ! -e "$PLACE/no-network" ] || { echo "E: Failed to fetch http://archive/debian: no route"; exit 100; } ;;
*" source "*) cp "$PLACE"/archive/* . ;;
esac
"#;

struct Fetch {
    place: Place,
}

impl Fetch {
    fn new() -> Self {
        let place = Place::new();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fetch");
        let script = place.manifest().join("fetch");
        fs::copy(here, script).unwrap();
        fs::create_dir(place.path().join("archive")).unwrap();
        fs::copy(place.tarball(), place.path().join("archive/ceph.tar.xz")).unwrap();
        let fetch = Self { place };
        fetch.program("apt-get", APT_GET);
        fetch.apt_config("sources.list", "deb http://archive/debian bookworm main\n");
        fetch
    }

    fn bin(&self) -> PathBuf {
        self.place.path().join("bin")
    }

    fn program(&self, name: &str, text: &str) {
        write(&self.bin().join(name), text);
        fs::set_permissions(self.bin().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn apt_config(&self, file: &str, text: &str) {
        let root = self.place.path().join("etc-apt");
        let _ = fs::remove_dir_all(&root);
        write(&root.join(file), text);
    }

    fn command(&self) -> Command {
        let mut command = self.place.command();
        let mut fetch = Command::new(self.place.manifest().join("fetch"));
        for (name, value) in command.env_remove("SPDK_SYS_SOURCE").get_envs() {
            match value {
                Some(value) => fetch.env(name, value),
                None => fetch.env_remove(name),
            };
        }
        let path = std::env::var("PATH").unwrap();
        fetch.env("PATH", format!("{}:{path}", self.bin().display()));
        fetch
            .env("PLACE", self.place.path())
            .env("SPDK_SYS_APT_CONFIG", self.place.path().join("etc-apt"));
        fetch
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.place.path().join(name)).unwrap_or_default()
    }

    /// Nothing of a failed run stays but its lock.
    fn is_clean(&self) -> bool {
        fs::read_dir(self.place.cache())
            .unwrap()
            .all(|e| e.unwrap().file_name() == "fetch.lock")
    }
}

#[test]
fn what_it_gets_is_what_the_build_takes() {
    let fetch = Fetch::new();
    good(&mut fetch.command());
    good(fetch.place.command().env_remove("SPDK_SYS_SOURCE"));
    let path = good(fetch.command().arg("--path"));
    assert!(Path::new(path.trim()).join("include/spdk/version.h").is_file());
    // Once more: apt is not asked again.
    let asked = fetch.read("apt-asked");
    good(&mut fetch.command());
    assert_eq!(fetch.read("apt-asked"), asked);
    says(
        &asked,
        &[
            "source --download-only --tar-only ceph",
            "Dir::Etc::SourceParts=",
            "Dir::State::Lists=",
        ],
    );
}

#[test]
fn address_and_keyring_come_from_the_machine() {
    let fetch = Fetch::new();
    let keyring = fetch.place.path().join("key.gpg");
    write(&keyring, "");
    let key = keyring.display();
    let source = |uri: &str, file: &str, text: &str| {
        fetch.apt_config(file, text);
        let _ = fs::remove_dir_all(fetch.place.cache());
        good(&mut fetch.command());
        let said = fetch.read("apt-sources");
        assert_eq!(
            said.trim(),
            format!("deb-src [signed-by={key}] {uri} trixie main"),
            "{file}"
        );
    };
    let uri = "http://mirror/debian";
    let one_line = format!(
        "# deb http://no/debian x main\ndeb http://other/ubuntu x main\ndeb [arch=amd64 signed-by={key}] {uri} x main\n"
    );
    source(uri, "sources.list", &one_line);
    source(uri, "sources.list.d/debian.list", &one_line);
    let deb822 = format!(
        "Enabled: no\nURIs: http://off/debian\n\nTypes: deb\n# a comment\nURIs: http://other/x {uri}\nSuites: x\nSigned-By: {key}\n"
    );
    source(uri, "sources.list.d/debian.sources", &deb822);
    source(
        "http://slash/debian/",
        "sources.list.d/d.sources",
        &format!("URIs: http://slash/debian/\nSigned-By: {key}\n"),
    );
}

#[test]
fn no_debian_archive_in_the_configuration() {
    let fetch = Fetch::new();
    fetch.apt_config("sources.list", "deb http://other/ubuntu x main\n");
    says(
        &bad(&mut fetch.command()),
        &["not configured with a Debian archive", "SPDK_SYS_APT_URI"],
    );
    good(fetch.command().env("SPDK_SYS_APT_URI", "http://mirror/debian"));
    says(&fetch.read("apt-sources"), &["http://mirror/debian trixie main"]);
}

#[test]
fn no_apt() {
    let fetch = Fetch::new();
    fs::remove_file(fetch.bin().join("apt-get")).unwrap();
    for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() != "apt-get" {
                let _ = symlink(entry.path(), fetch.bin().join(entry.file_name()));
            }
        }
    }
    let message = bad(fetch.command().env("PATH", fetch.bin()));
    says(
        &message,
        &["apt-get is not there", "ceph.tar.xz", "SPDK_SYS_SOURCE"],
    );
}

#[test]
fn no_network() {
    let fetch = Fetch::new();
    write(&fetch.place.path().join("no-network"), "");
    says(
        &bad(&mut fetch.command()),
        &["cannot read the Debian archive", "no route", "SPDK_SYS_SOURCE"],
    );
    assert!(fetch.is_clean());
}

#[test]
fn the_archive_has_another_version() {
    let fetch = Fetch::new();
    fs::rename(
        fetch.place.path().join("archive/ceph.tar.xz"),
        fetch.place.path().join("archive/newer.tar.xz"),
    )
    .unwrap();
    says(
        &bad(&mut fetch.command()),
        &["cannot download ceph.tar.xz", "moved on", "SPDK_SYS_SOURCE"],
    );
    assert!(fetch.is_clean());
}

#[test]
fn a_wrong_hash() {
    let fetch = Fetch::new();
    write(&fetch.place.path().join("archive/ceph.tar.xz"), "something else");
    let message = bad(&mut fetch.command());
    says(
        &message,
        &["is not the pinned one", "its SHA-256 is", "has not been used"],
    );
    assert!(fetch.is_clean());
    // The tarball is right, the tree in it is not.
    let pinned = fetch.place.manifest().join("pinned");
    let text = fs::read_to_string(&pinned).unwrap();
    let hash = text.lines().find_map(|l| l.strip_prefix("tree_sha256=")).unwrap();
    fs::write(&pinned, text.replace(hash, &"0".repeat(64))).unwrap();
    fs::copy(
        fetch.place.tarball(),
        fetch.place.path().join("archive/ceph.tar.xz"),
    )
    .unwrap();
    says(
        &bad(&mut fetch.command()),
        &["the tree in ceph.tar.xz is not the pinned one", hash],
    );
    assert!(fetch.is_clean());
}

#[test]
fn no_disk_space() {
    let fetch = Fetch::new();
    let pinned = fetch.place.manifest().join("pinned");
    let text = fs::read_to_string(&pinned).unwrap();
    fs::write(
        &pinned,
        text.replace("fetch_mib=1\n", "fetch_mib=1099511627776\n"),
    )
    .unwrap();
    says(
        &bad(&mut fetch.command()),
        &["no disk space", "MiB are free", "SPDK_SYS_CACHE"],
    );
}

#[test]
fn what_a_killed_run_left_is_removed() {
    let fetch = Fetch::new();
    write(&fetch.place.cache().join("fetch.tmp.1/half.tar.xz"), "");
    good(&mut fetch.command());
    assert!(!fetch.place.cache().join("fetch.tmp.1").exists());
}

#[test]
fn two_at_once() {
    let fetch = Fetch::new();
    let children = [(); 2].map(|()| {
        let mut command = fetch.command();
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", standard_error(&output));
    }
    assert_eq!(fetch.read("apt-asked").matches(" update").count(), 1);
}
