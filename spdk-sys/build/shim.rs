//! Compiles `shim/`: what bindgen cannot reach.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};

/// Where the headers of a build tree are.
pub fn include_dirs(root: &Path) -> Vec<PathBuf> {
    // `module` for the modules' own headers; `lib` and the top are on no path, as in SPDK itself.
    ["include", "module", "module/bdev/nvme", "dpdk/build/include"]
        .map(|p| root.join(p))
        .to_vec()
}

/// The C files, one for an area. (`probe.c` is only expanded.)
const SOURCES: &[&str] = &[
    "bdev_module.c",
    "bdev_stat.c",
    "env.c",
    "lvol.c",
    "reactor.c",
    "unpatched.c",
];

/// Compiles and links the shim.
pub fn compile(config: &Config, root: &Path) -> Result<()> {
    let mut build = cc::Build::new();
    build
        .files(
            SOURCES
                .iter()
                .map(|file| config.manifest_dir.join("shim").join(file)),
        )
        .include(config.manifest_dir.join("shim"))
        .includes(include_dirs(root))
        .flag("-std=gnu11")
        .flag(format!("-march={}", config.arch))
        // As SPDK's own flags: its headers cast freely.
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unused-parameter")
        .flag("-Wno-missing-field-initializers")
        .flag("-Werror=implicit-function-declaration")
        .define("_GNU_SOURCE", None)
        .define("NDEBUG", None)
        .cargo_metadata(true);
    if let Some(sanitizer) = config.sanitize {
        build.flag(sanitizer.compiler_flag());
    }
    build.try_compile("spdk_sys_shim").map_err(|e| {
        Error::from(format!(
            "the C shim (spdk-sys/shim) does not compile against {}:\n{e}",
            root.display()
        ))
    })
}
