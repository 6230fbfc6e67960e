//! Raw bindings to SPDK v20.07 with this project's patches: obtained, patched, built, linked and bound by
//! the build script, so that a crate that depends on this one needs no link argument of its own.
//!
//! At the crate's root stand the names of C as they are (`spdk_bdev_open_ext`, …), and the helpers of
//! `shim/` (`shim_…`) for what Rust cannot reach: static inlines, lists, unions, bit fields.
//!
//! # Which SPDK
//!
//! The build script takes the first of these that is set or there:
//!
//! 1. `SPDK_SYS_DIR`: a build tree of an SPDK v20.07 that has the patches (`spdk-sys/patches`). It is only
//!    linked, and refused if it is another one than it should be.
//! 2. `SPDK_SYS_SOURCE`: the unchanged source, as a tree or as Debian's tarball.
//! 3. the cache, `${SPDK_SYS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/spdk-sys}`, where `spdk-sys/fetch` puts the
//!    source. The build itself never uses the network.
//!
//! A build is kept in the cache under a fingerprint of all that it depends on, and shared by all profiles.
//! Other variables: `SPDK_SYS_SERIES` (`full`, or `enabling` for the control build), `SPDK_SYS_ARCH` (the
//! oldest processor to run on, `x86-64-v2`), `SPDK_SYS_SANITIZE` (`address`: with the address sanitizer, whose
//! runtime must then be rustc's, `-Zsanitizer=address`; `undefined`: with gcc's sanitizer for undefined behaviour, whose
//! runtime is linked), `SPDK_SYS_ALLOW_UNPATCHED=1` (take a `SPDK_SYS_DIR` without patches), `CC`. Each may have the target appended: `SPDK_SYS_DIR_x86_64_unknown_linux_gnu`.
//!
//! # A wrong SPDK is noticed
//!
//! * when building, by a probe that SPDK's own compiler expands: version, patch level, configuration;
//! * when compiling this crate, by the named imports below;
//! * when linking, by a symbol that has the patch level in its name;
//! * when running, by [`check`].
//!
//! Build scripts of crates above read `DEP_SPDK_ROOT`, `_INCLUDE`, `_VERSION`, `_PATCHLEVEL`, `_CONFIG`
//! (`URING=y …`) and `_SERIES`.

mod bindings {
    // Made by a machine from C headers: C's names, no documentation, no SAFETY comments.
    #![allow(
        unknown_lints, // of compilers newer than this one
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        missing_docs,
        unnecessary_transmutes,
        clippy::all,
        clippy::missing_safety_doc,
        clippy::undocumented_unsafe_blocks
    )]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

mod check;

mod stamp {
    include!(concat!(env!("OUT_DIR"), "/stamp.rs"));
}

pub use bindings::*;
pub use check::{WrongSpdk, check};
pub use stamp::PATCHLEVEL;

// By name what only the patches bring: headers without them end here, with the name that is missing.
#[cfg(spdk_patched)]
pub use bindings::{
    spdk_bdev_wait_for_examine, spdk_rs_bdev_read_again, spdk_rs_bdev_write_again,
    spdk_rs_blob_cluster_is_allocated, spdk_rs_blob_lock, spdk_rs_blob_unlock,
    spdk_rs_jsonrpc_send_error_data, spdk_rs_patchlevel,
};
#[cfg(spdk_delete_patched)]
pub use bindings::{
    spdk_rs_blob_put, spdk_rs_blob_write_xattr, spdk_rs_bs_get_used, spdk_rs_lvol_busy,
    spdk_rs_lvol_destroy_cb, spdk_rs_lvol_operation, vbdev_lvol_destroy_report,
};
