//! Makes the Rust declarations from SPDK's headers.

use std::path::Path;

use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::shim;

/// Names that are bound: SPDK's own, and those of the bdev modules, which have no prefix in common.
const ALLOWED: &[&str] = &[
    "(spdk|SPDK|shim|SHIM)_.*",
    "vbdev_.*",
    "create_(aio|null|malloc)_.*",
    "(bdev_aio|bdev_null|bdev_nvme|bdev_passthru|bdev_uring|bdev_malloc)_.*",
    "(delete|create)_(malloc|uring|error|delay|passthru|null|aio)_.*",
    "create_vbdev_split",
    "delete_.*_disk",
    "raid_bdev_.*",
    "nvme_(ctrlr|bdev)_.*",
    "(g|_)_?spdk_.*",
    "rte_version",
];

/// Types that are packed and hold aligned ones, or whose bitfields bindgen cannot lay out (E0588).
/// Only their size and alignment are known to Rust; the shim reads and writes their fields.
const OPAQUE: &[&str] = &[
    "spdk_nvmf_discovery_log_page.*",
    "spdk_nvme_health_information_page",
];

/// Writes `bindings.rs` into `OUT_DIR`.
pub fn generate(config: &Config, root: &Path) -> Result<()> {
    let mut builder = bindgen::builder()
        .header(config.manifest_dir.join("shim/wrapper.h").to_string_lossy())
        .clang_args(
            shim::include_dirs(root)
                .iter()
                .map(|p| format!("-I{}", p.display())),
        )
        .clang_arg(format!("-I{}", config.manifest_dir.join("shim").display()))
        // As the library was compiled: fields may depend on them.
        .clang_args(["-D_GNU_SOURCE", "-DNDEBUG", "-std=gnu11"])
        .clang_arg(format!("-march={}", config.arch))
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .layout_tests(true)
        .derive_default(true)
        .derive_debug(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .wrap_unsafe_ops(true)
        .blocklist_type("FILE|_IO_FILE")
        .raw_line("pub use libc::FILE;")
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| Error::from(e.to_string()))?)
        .rust_edition(bindgen::RustEdition::Edition2024);
    for allowed in ALLOWED {
        builder = builder.allowlist_item(allowed);
    }
    for opaque in OPAQUE {
        builder = builder.opaque_type(opaque);
    }
    let bindings = builder.generate().map_err(|e| {
        Error::from(format!(
            "bindgen cannot read SPDK's headers in {}:\n{e}",
            root.display()
        ))
    })?;
    let file = config.out_dir.join("bindings.rs");
    bindings
        .write_to_file(&file)
        .context(|| format!("write {}", file.display()))
}

/// Writes `stamp.rs`: the level that everything above was compiled for, and a reference to the symbol
/// that only a library of that level has.
pub fn write_stamp(config: &Config, level: u32) -> Result<()> {
    let file = config.out_dir.join("stamp.rs");
    std::fs::write(&file, stamp(level)).context(|| format!("write {}", file.display()))
}

fn stamp(level: u32) -> String {
    let mut text = format!(
        "/// The patch level that this crate was compiled for.\npub const PATCHLEVEL: u32 = {level};\n"
    );
    if level > 0 {
        text.push_str(&format!(
            "unsafe extern \"C\" {{\n    /// Links with a library of this patch level and with no other.\n    \
             #[link_name = \"spdk_rs_patchlevel_{level}\"]\n    pub static LINKED_PATCHLEVEL: std::ffi::c_int;\n}}\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_names_the_symbol_of_its_level() {
        assert!(stamp(2).contains("PATCHLEVEL: u32 = 2;") && stamp(2).contains("\"spdk_rs_patchlevel_2\""));
        assert!(stamp(0).contains("PATCHLEVEL: u32 = 0;") && !stamp(0).contains("extern"));
    }
}
