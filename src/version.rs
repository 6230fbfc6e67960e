//! What this binary is made of.
//!
//! The versions come from the build script, which read them from the SPDK that was linked.

/// The linked SPDK's version, such as `20.07`.
pub const SPDK: &str = env!("SPDK_TGT_SPDK_VERSION");

/// The patch level of the linked SPDK: odd for the enabling patches alone, even for the whole series.
pub const PATCHLEVEL: &str = env!("SPDK_TGT_PATCHLEVEL");

/// Whether the linked SPDK was configured with `--enable-debug`, which its debug log flags need.
pub const SPDK_DEBUG: bool = cfg!(spdk_debug);

/// One line that names the crate, SPDK and the patches.
pub fn long() -> String {
    format!(
        "spdk_tgt {} (SPDK v{SPDK}, patch level {PATCHLEVEL})",
        env!("CARGO_PKG_VERSION")
    )
}
