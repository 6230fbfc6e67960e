//! A crate outside the workspace that depends on `spdk-rs`, and has no build script and no link argument,
//! builds, links and runs.

use std::path::Path;
use std::process::Command;

const MAIN: &str = r#"
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args().nth(1).ok_or("say the path of the RPC socket")?;
    let runtime = spdk_rs::Runtime::builder()
        .name("consumer")
        .no_huge(true)
        .no_pci(true)
        .memory_mb(512)
        .rpc_socket(socket)
        .build()?;
    let found = runtime.run(async { spdk_rs::bdev::Bdev::find("nothing").is_ok() })?;
    println!("ran, found: {found}");
    Ok(())
}
"#;

#[test]
fn a_crate_that_only_depends_on_spdk_rs_links_and_runs() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // Kept between runs, so that only the first one is long.
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumer");
    std::fs::create_dir_all(place.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"consumer\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nspdk-rs = {{ path = \"{}\" }}\n\n[workspace]\n",
        workspace.join("spdk-rs").display()
    );
    std::fs::write(place.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(place.join("src/main.rs"), MAIN).unwrap();
    // The versions that the workspace has, so that nothing must be downloaded.
    std::fs::copy(workspace.join("Cargo.lock"), place.join("Cargo.lock")).unwrap();

    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--offline", "--quiet"]).current_dir(&place);
    build
        .env("CARGO_TARGET_DIR", place.join("target"))
        .env_remove("RUSTFLAGS");
    let output = build.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let socket = std::env::temp_dir().join(format!("spdk-consumer-{}.sock", std::process::id()));
    let output = Command::new(place.join("target/debug/consumer"))
        .arg(&socket)
        .output()
        .unwrap();
    let _ = std::fs::remove_file(&socket);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("ran, found: false"), "{out}\n{err}");
}
