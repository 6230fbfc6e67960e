//! The linked SPDK starts: a reactor without hugepages, without root, without PCI.
//!
//! It fails when a constructor is left out of the link (DPDK's mempool operations, the posix sockets)
//! or when the patches that allow `--no-huge` are missing.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

static STARTED: AtomicBool = AtomicBool::new(false);

extern "C" fn started(_: *mut c_void) {
    STARTED.store(true, Ordering::Relaxed);
    // SAFETY: called on the app thread by spdk_app_start, as spdk_app_stop requires.
    unsafe { spdk_sys::spdk_app_stop(0) };
}

/// Whether the RPC method is registered.
fn has_method(name: &CStr) -> bool {
    // SAFETY: only compares the string with the registered names.
    unsafe { spdk_sys::spdk_rpc_is_method_allowed(name.as_ptr(), spdk_sys::SPDK_RPC_RUNTIME) == 0 }
}

#[test]
fn a_reactor_starts_without_hugepages() {
    // SAFETY: all zeroes is a valid value of this plain C structure; spdk_app_opts_init then fills it.
    let mut opts: spdk_sys::spdk_app_opts = unsafe { std::mem::zeroed() };
    // SAFETY: `opts` is valid for writes.
    unsafe { spdk_sys::spdk_app_opts_init(&mut opts) };
    let directory = std::env::temp_dir();
    let socket = std::ffi::CString::new(format!(
        "{}/spdk-sys-{}.sock",
        directory.display(),
        std::process::id()
    ))
    .unwrap();
    opts.name = c"spdk_sys_reactor".as_ptr();
    opts.reactor_mask = c"0x1".as_ptr();
    opts.mem_size = 512;
    opts.no_pci = true;
    opts.num_entries = 0;
    opts.rpc_addr = socket.as_ptr();
    opts.iova_mode = c"va".as_ptr();
    opts.env_context = c"--no-huge".as_ptr().cast_mut().cast::<c_void>();
    // SAFETY: `opts` and the strings in it outlive the call; the callback has the right type.
    let rc: c_int = unsafe { spdk_sys::spdk_app_start(&mut opts, Some(started), std::ptr::null_mut()) };
    assert_eq!(rc, 0);
    assert!(STARTED.load(Ordering::Relaxed));
    for method in [
        c"spdk_get_version",
        c"bdev_aio_create",
        c"bdev_delay_create",
        c"bdev_lvol_delete",
        c"bdev_wait_for_examine",
        #[cfg(feature = "nvme")]
        c"bdev_nvme_attach_controller",
        #[cfg(feature = "nvmf")]
        c"nvmf_create_transport",
        #[cfg(feature = "uring")]
        c"bdev_uring_create",
        #[cfg(feature = "raid")]
        c"bdev_raid_create",
        #[cfg(feature = "nbd")]
        c"nbd_start_disk",
    ] {
        assert!(has_method(method), "the RPC method {method:?} is not linked");
    }
    // SAFETY: the application has stopped; nothing uses the environment any more.
    unsafe { spdk_sys::spdk_app_fini() };
}
