//! The Python package `spdk` of a later SPDK as a client: by `call()`, with this version's parameters and with those that
//! have another name there (`tests/pypi`).

mod common;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{Place, TargetOptions};

/// Gets the package into a folder.
fn install(requirements: &Path, into: &Path) -> Result<()> {
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(["--require-hashes", "--target"])
        .arg(into)
        .arg("-r")
        .arg(requirements)
        .output()
        .context("python3 is needed")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pip cannot get the package: {error}");
    Ok(())
}

#[test]
fn the_python_package_is_a_client() -> Result<()> {
    let mut place = Place::new()?;
    let pypi = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pypi");
    let packages = place.file("packages");
    if let Err(why) = install(&pypi.join("requirements.txt"), &packages) {
        eprintln!("the_python_package_is_a_client: SKIPPED, nothing was tested: {why:#}");
        place.discard();
        return Ok(());
    }
    let disk = place.file("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let options = TargetOptions::in_place(&place);
    let target = options.start(None)?;
    let output = Command::new("python3")
        .arg(pypi.join("client.py"))
        .args([&options.socket, &disk])
        .env("PYTHONPATH", &packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(target.into_process().stop()?.code(), Some(0));
    place.discard();
    Ok(())
}
