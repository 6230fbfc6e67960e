//! A small SPDK that is "built" in a moment: the build script runs whole on it, with the real shell, git,
//! make and compiler, and with a crate directory of its own (its own pinned hashes and patches).

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The build script as a program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_spdk-sys-build");

const CONFIGURE: &str = r#"#!/bin/sh
root=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$root/mk" "$root/include/spdk"
echo "CONFIG_ENV=$root/lib/env_dpdk" >"$root/mk/config.mk"
cat >"$root/include/spdk/config.h" <<EOF
#define SPDK_CONFIG_ENV $root/lib/env_dpdk
#define SPDK_CONFIG_DPDK_DIR $root/dpdk/build
#define SPDK_CONFIG_ISAL 1
#define SPDK_CONFIG_URING 1
EOF
echo "configured with $*"
"#;

const VERSION: &str =
    "#define SPDK_VERSION_MAJOR 20\n#define SPDK_VERSION_MINOR 7\n#define SPDK_VERSION_PATCH 0\n";

const COMMON_MK: &str = "CFLAGS += -I$(SPDK_ROOT_DIR)/include\n";

const PATCH: &str = "\
diff --git a/include/spdk/spdk_rs.h b/include/spdk/spdk_rs.h
new file mode 100644
--- /dev/null
+++ b/include/spdk/spdk_rs.h
@@ -0,0 +1 @@
+#define SPDK_RS_PATCHLEVEL 2
";

/// A place for one test: crate directory, source, cache.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// With a source that is pinned and not yet in the cache.
    pub fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let source = place.source();
        write(&source.join("configure"), CONFIGURE);
        fs::set_permissions(source.join("configure"), fs::Permissions::from_mode(0o755)).unwrap();
        write(&source.join("include/spdk/version.h"), VERSION);
        write(&source.join("mk/spdk.common.mk"), COMMON_MK);
        write(&source.join("module/bdev/Makefile"), "");
        write(
            &source.join("Makefile"),
            "build_dir include/spdk/config.h:\n\t@:\n.PHONY: build_dir include/spdk/config.h\n",
        );
        for stage in ["isalbuild", "dpdkbuild", "lib"] {
            write(&source.join(stage).join("Makefile"), "all:\n\t@:\n");
        }
        let archives = Command::new(PROGRAM).arg("archives").output().unwrap();
        let archives = String::from_utf8(archives.stdout).unwrap();
        let mut makefile = "all:\n".to_owned();
        for archive in archives.lines() {
            makefile.push_str(&format!(
                "\tmkdir -p ../{0} && rmdir ../{0} && touch ../{0}\n",
                archive
            ));
        }
        write(&source.join("module/Makefile"), &makefile);
        let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/probe.c");
        write(
            &place.manifest().join("shim/probe.c"),
            &fs::read_to_string(probe).unwrap(),
        );
        write(
            &place.manifest().join("patches/series"),
            "# part: enabling\n# part: delete\n0001-stamp.patch\n",
        );
        write(&place.manifest().join("patches/0001-stamp.patch"), PATCH);
        place.pin(1);
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn source(&self) -> PathBuf {
        self.path().join("source/spdk")
    }

    pub fn manifest(&self) -> PathBuf {
        self.path().join("spdk-sys")
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    /// The tarball that holds the source, as Debian's does.
    pub fn tarball(&self) -> PathBuf {
        let tarball = self.path().join("ceph.tar.xz");
        if !tarball.exists() {
            let mut tar = Command::new("tar");
            tar.arg("-cJf")
                .arg(&tarball)
                .arg("-C")
                .arg(self.path())
                .arg("source/spdk");
            assert!(tar.status().unwrap().success());
        }
        tarball
    }

    /// Writes `pinned` for the source as it is now.
    pub fn pin(&self, build_mib: u64) {
        let script = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";
        let tree = shell(script, &self.source());
        let _ = fs::remove_file(self.path().join("ceph.tar.xz"));
        let tarball = shell(&format!("sha256sum {}", self.tarball().display()), self.path());
        let pinned = format!(
            "version=20.07\npackage=ceph\nsuite=trixie\ncomponent=main\nfetch_mib=1\ntarball=ceph.tar.xz\ntarball_sha256={tarball}\ndirectory=source/spdk\n\
             tree_sha256={tree}\nbuild_mib={build_mib}\n"
        );
        write(&self.manifest().join("pinned"), &pinned);
    }

    /// The build script, told to build from the source tree.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("prepare").arg(self.manifest());
        for (name, _) in std::env::vars() {
            if name.starts_with("SPDK_SYS_") || name == "CARGO_MAKEFLAGS" || name == "CC" {
                command.env_remove(name);
            }
        }
        command
            .env("SPDK_SYS_CACHE", self.cache())
            .env("SPDK_SYS_SOURCE", self.source());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A tree that is patched and built, with the path it may be used from.
    pub fn built(&self) -> PathBuf {
        PathBuf::from(good(&mut self.command()).trim())
    }
}

pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The first word of what it prints.
fn shell(script: &str, dir: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

pub fn standard_error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it; it must succeed. Gives what it prints.
pub fn good(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        standard_error(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it; it must fail in an orderly way. Gives its message.
pub fn bad(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let message = standard_error(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// `message` must hold all of `parts`.
#[track_caller]
pub fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in:\n{message}");
    }
}
