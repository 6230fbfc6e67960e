//! Tells the target what it is made of, and refuses an SPDK that it is not made for.
//!
//! Links nothing: `spdk-sys` does, and says through Cargo what it linked.

use std::env;

/// The patch level of the whole series, which the target needs.
const PATCHLEVEL: u32 = 2;
/// The patch level of the enabling patches alone, which is what a control build is for.
const CONTROL_PATCHLEVEL: u32 = 1;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SPDK_SYS_ALLOW_UNPATCHED");
    println!("cargo::rustc-check-cfg=cfg(spdk_debug)");

    let version = linked("VERSION");
    let patchlevel = linked("PATCHLEVEL");
    if let Err(why) = check(patchlevel.parse().ok()) {
        println!("cargo::error={why}");
        return;
    }
    println!("cargo::rustc-env=SPDK_TGT_SPDK_VERSION={version}");
    println!("cargo::rustc-env=SPDK_TGT_PATCHLEVEL={patchlevel}");
    // Where SPDK's scripts are, for the tests that use them.
    println!("cargo::rustc-env=SPDK_TGT_SPDK_ROOT={}", linked("ROOT"));
    if linked("CONFIG")
        .split_whitespace()
        .any(|setting| setting == "DEBUG=y")
    {
        println!("cargo::rustc-cfg=spdk_debug");
    }
}

/// What `spdk-sys` says of the SPDK that it linked.
fn linked(what: &str) -> String {
    env::var(format!("DEP_SPDK_{what}")).unwrap_or_default()
}

/// Whether a target may be made of an SPDK of that patch level.
fn check(patchlevel: Option<u32>) -> Result<(), String> {
    if env::var_os("SPDK_SYS_ALLOW_UNPATCHED").is_some_and(|value| value == "1") {
        return Ok(());
    }
    let wanted = if linked("SERIES") == "enabling" {
        CONTROL_PATCHLEVEL
    } else {
        PATCHLEVEL
    };
    match patchlevel {
        Some(level) if level == wanted => Ok(()),
        Some(level) => Err(format!(
            "the linked SPDK has patch level {level}, spdk_tgt needs {wanted}: \
             build SPDK from this repository's patches (unset SPDK_SYS_DIR), or patch yours with them"
        )),
        None => Err("spdk-sys does not say which patch level the linked SPDK has".to_owned()),
    }
}
