//! What must be installed, asked for before anything is built, all at once, by Debian's package names.

use std::path::Path;

use crate::config::{Config, Features};
use crate::error::{Error, Result};
use crate::run;

/// Something that may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What people call it.
    pub what: String,
    /// The Debian package that has it.
    pub package: String,
}

/// Programs that building SPDK, DPDK and isa-l starts, and their packages.
const BUILD_TOOLS: &[(&str, &str)] = &[
    ("git", "git"),
    ("g++", "g++"),
    ("nasm", "nasm"),
    ("meson", "meson"),
    ("ninja", "ninja-build"),
    ("autoconf", "autoconf"),
    ("automake", "automake"),
    ("libtoolize", "libtool"),
    ("pkg-config", "pkg-config"),
    ("python3", "python3"),
    ("ps", "procps"),
    ("xz", "xz-utils"),
];

/// Programs that are needed even when SPDK is built already.
const LINK_TOOLS: &[(&str, &str)] = &[("make", "make"), ("ar", "binutils")];

/// A library: what to include, what to link, the package.
struct Library {
    header: &'static str,
    link: &'static [&'static str],
    package: &'static str,
}

const LIBRARIES: &[Library] = &[
    Library {
        header: "libaio.h",
        link: &["aio"],
        package: "libaio-dev",
    },
    Library {
        header: "uuid/uuid.h",
        link: &["uuid"],
        package: "uuid-dev",
    },
    Library {
        header: "numa.h",
        link: &["numa"],
        package: "libnuma-dev",
    },
    Library {
        header: "openssl/ssl.h",
        link: &["ssl", "crypto"],
        package: "libssl-dev",
    },
];

const URING: Library = Library {
    header: "liburing.h",
    link: &["uring"],
    package: "liburing-dev",
};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Building SPDK, which always includes io_uring.
    Build,
    /// Linking a finished one.
    Link,
}

/// Stops with a list of everything that is missing.
pub fn check(config: &Config, purpose: Purpose) -> Result<()> {
    let mut missing = Vec::new();
    let programs = match purpose {
        Purpose::Build => [LINK_TOOLS, BUILD_TOOLS].concat(),
        Purpose::Link => LINK_TOOLS.to_vec(),
    };
    for (program, package) in programs {
        if !is_program(program) {
            missing.push(Missing {
                what: program.to_owned(),
                package: package.to_owned(),
            });
        }
    }
    if is_program(&config.cc) {
        let features = match purpose {
            Purpose::Build => Features::ALL,
            Purpose::Link => config.features,
        };
        missing.extend(missing_libraries(config, &features));
    } else {
        missing.push(Missing {
            what: format!("the C compiler {}", config.cc),
            package: "gcc".to_owned(),
        });
    }
    report(&missing)
}

/// Stops if libclang, which bindgen loads, cannot be loaded.
pub fn check_libclang() -> Result<()> {
    if clang_sys::is_loaded() {
        return Ok(());
    }
    match clang_sys::load() {
        Ok(()) => Ok(()),
        Err(_) => report(&[Missing {
            what: "libclang".to_owned(),
            package: "libclang-dev".to_owned(),
        }]),
    }
}

fn report(missing: &[Missing]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing
        .iter()
        .map(|m| format!("  {} (package {})", m.what, m.package))
        .collect();
    let mut packages: Vec<&str> = missing.iter().map(|m| m.package.as_str()).collect();
    packages.sort_unstable();
    packages.dedup();
    Err(Error::from(format!(
        "missing on this machine:\n{}\nOn Debian: apt-get install {}",
        list.join("\n"),
        packages.join(" ")
    )))
}

/// Whether PATH leads to it (or it is a path itself).
fn is_program(name: &str) -> bool {
    if name.contains('/') {
        return is_executable(Path::new(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_executable(&dir.join(name)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Tries all at once, and one by one only if that fails.
fn missing_libraries(config: &Config, features: &Features) -> Vec<Missing> {
    let mut wanted: Vec<&Library> = LIBRARIES.iter().collect();
    if features.uring {
        wanted.push(&URING);
    }
    if links(config, &wanted) {
        return Vec::new();
    }
    let bad = wanted.iter().filter(|l| !links(config, &[l]));
    let bad: Vec<Missing> = bad
        .map(|l| Missing {
            what: format!("lib{} with {}", l.link[0], l.header),
            package: l.package.to_owned(),
        })
        .collect();
    if bad.is_empty() {
        let what = format!("a C compiler that works ({} cannot link a program)", config.cc);
        return vec![Missing {
            what,
            package: "gcc libc6-dev".to_owned(),
        }];
    }
    bad
}

fn links(config: &Config, libraries: &[&Library]) -> bool {
    let mut program: String = libraries
        .iter()
        .map(|l| format!("#include <{}>\n", l.header))
        .collect();
    program.push_str("int main(void) { return 0; }\n");
    let mut cc = run::command(&config.cc);
    cc.args(["-x", "c", "-", "-o", "/dev/null", "-Wl,--no-as-needed"]);
    cc.args(libraries.iter().flat_map(|l| l.link).map(|l| format!("-l{l}")));
    run::output_with_input(&mut cc, program.as_bytes(), "look for libraries").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs() {
        assert!(is_program("sh") && is_program("/bin/sh"));
        assert!(!is_program("no-such-program") && !is_program("/bin/no-such-program") && !is_program("/bin"));
    }

    #[test]
    fn everything_missing_is_in_one_message() {
        let missing = |what: &str, package: &str| Missing {
            what: what.into(),
            package: package.into(),
        };
        let error = report(&[
            missing("nasm", "nasm"),
            missing("ninja", "ninja-build"),
            missing("x", "nasm"),
        ]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("ninja (package ninja-build)"), "{error}");
        assert!(error.ends_with("apt-get install nasm ninja-build"), "{error}");
        report(&[]).unwrap();
    }
}
