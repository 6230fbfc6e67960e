//! Allocations of SPDK that fail. `ci/fault` links archives whose calls of the allocators have been
//! renamed: they come here, whoever else's do not.

use std::backtrace::Backtrace;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spdk_sys::{spdk_io_channel, spdk_malloc, spdk_realloc, spdk_zmalloc};

/// Whether any has come here.
static SEEN: AtomicBool = AtomicBool::new(false);
/// How many allocations there are to the one that fails, itself included; 0: none fails.
static LEFT: AtomicU64 = AtomicU64::new(0);

pub fn are_seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// The `nth` allocation from now on (the next is number 1) fails.
pub fn arm(nth: u64) {
    LEFT.store(nth, Ordering::Relaxed);
}

/// No more fail; whether the one that was to has not come.
pub fn disarm() -> bool {
    LEFT.swap(0, Ordering::Relaxed) > 0
}

/// Whether this one fails.
fn fails() -> bool {
    SEEN.store(true, Ordering::Relaxed);
    let count = |left: u64| left.checked_sub(1);
    let fails = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) == Ok(1);
    if fails && std::env::var_os("SPDK_RS_FAULT_TRACE").is_some() {
        eprintln!("This one fails:\n{}", Backtrace::force_capture());
    }
    fails
}

/// One that fails, in place of each of these; with the same signature.
macro_rules! failing {
    ($($name:ident as $real:path, $($argument:ident: $type:ty),+ => $result:ty;)+) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),+) -> *mut $result {
            if fails() {
                return null_mut();
            }
            // SAFETY: the caller has called that one.
            unsafe { $real($($argument),+) }
        }
    )+};
}

failing! {
    spdk_rs_fault_malloc as libc::malloc, size: usize => c_void;
    spdk_rs_fault_calloc as libc::calloc, count: usize, size: usize => c_void;
    spdk_rs_fault_realloc as libc::realloc, at: *mut c_void, size: usize => c_void;
    spdk_rs_fault_strdup as libc::strdup, text: *const c_char => c_char;
    spdk_rs_fault_spdk_malloc as spdk_malloc,
        size: usize, align: usize, phys: *mut u64, socket: c_int, flags: u32 => c_void;
    spdk_rs_fault_spdk_zmalloc as spdk_zmalloc,
        size: usize, align: usize, phys: *mut u64, socket: c_int, flags: u32 => c_void;
    spdk_rs_fault_spdk_realloc as spdk_realloc, at: *mut c_void, size: usize, align: usize => c_void;
    spdk_rs_fault_spdk_get_io_channel as spdk_sys::spdk_get_io_channel, device: *mut c_void => spdk_io_channel;
}
