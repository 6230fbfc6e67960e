//! Tells the address sanitizer what it cannot see by itself: memory that is there, and that nobody
//! may touch now. The heap of DMA memory is DPDK's, and slots of operations are used again.
//!
//! Without the sanitizer (`ci/sanitize` builds with `--cfg spdk_asan`) all of this is nothing.
//!
//! C is built with it, too: memory that C works on cannot be forbidden to Rust alone. For that,
//! there are the rules of ownership.

/// Nobody may touch these bytes until [`allow`]. The first of them is aligned to 8.
#[inline(always)]
pub(crate) fn forbid<T>(at: *const T, bytes: usize) {
    #[cfg(spdk_asan)]
    // SAFETY: this changes the sanitizer's notes about our memory, and not the memory.
    unsafe {
        __asan_poison_memory_region(at.cast(), bytes);
    }
    let _ = (at, bytes);
}

/// They may be touched again.
#[inline(always)]
pub(crate) fn allow<T>(at: *const T, bytes: usize) {
    #[cfg(spdk_asan)]
    // SAFETY: as in `forbid`.
    unsafe {
        __asan_unpoison_memory_region(at.cast(), bytes);
    }
    let _ = (at, bytes);
}

#[cfg(spdk_asan)]
unsafe extern "C" {
    fn __asan_poison_memory_region(at: *const std::ffi::c_void, bytes: usize);
    fn __asan_unpoison_memory_region(at: *const std::ffi::c_void, bytes: usize);
}
