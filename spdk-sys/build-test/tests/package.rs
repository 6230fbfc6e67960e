//! The packaged crate has all that building it needs.

use std::path::Path;
use std::process::Command;

#[test]
fn the_package_holds_the_patches_and_everything_else() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(crate_dir);
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let list = String::from_utf8(output.stdout).unwrap();
    let has = |name: &str| list.lines().any(|l| l == name);
    let series = std::fs::read_to_string(crate_dir.join("patches/series")).unwrap();
    for patch in series.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        assert!(
            has(&format!("patches/{patch}")),
            "{patch} is not packaged: is patches still a symbolic link?"
        );
    }
    for file in [
        "patches/series",
        "pinned",
        "fetch",
        "build/main.rs",
        "shim/wrapper.h",
        "shim/probe.c",
        "src/lib.rs",
    ] {
        assert!(has(file), "{file} is not packaged");
    }
}
