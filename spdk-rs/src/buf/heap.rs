//! Where DMA memory comes from and goes to.
//!
//! Under the address sanitizer it has what that gives to other memory: a strip behind each piece
//! that nobody may touch, and a time after it was freed when nobody may touch it, before it is
//! given out again.

use std::ptr::NonNull;

/// The strip behind a piece of memory: none without the sanitizer.
const STRIP: usize = if cfg!(spdk_asan) { 64 } else { 0 };

/// On the NUMA node `node`; if none is given, on that of the calling reactor's core if there is
/// room, else on any.
///
/// # Safety
/// The environment is running. The alignment is a power of two, and at least 64.
pub(super) unsafe fn allocate(bytes: usize, alignment: usize, node: Option<u32>) -> Option<NonNull<u8>> {
    let node = match node {
        None => spdk_sys::SPDK_ENV_SOCKET_ID_ANY,
        Some(node) => i32::try_from(node).ok()?,
    };
    // SAFETY: spdk_dma_malloc_socket may be called on any thread while the environment is up; it
    // takes a power of two as alignment, a null pointer for "no physical address wanted", and any
    // number for a node.
    let memory = unsafe {
        let bytes = bytes.saturating_add(STRIP);
        spdk_sys::spdk_dma_malloc_socket(bytes, alignment, std::ptr::null_mut(), node)
    };
    let memory = NonNull::new(memory.cast::<u8>())?;
    crate::sanitize::forbid(memory.as_ptr().wrapping_add(bytes), STRIP);
    Some(memory)
}

/// # Safety
/// The environment is running. The memory came from [`allocate`] with as many bytes, and is not
/// used any more.
#[cfg(not(spdk_asan))]
pub(super) unsafe fn free(memory: NonNull<u8>, _bytes: usize) {
    // SAFETY: the pointer comes from spdk_dma_malloc (contract), and is freed once.
    unsafe { spdk_sys::spdk_dma_free(memory.as_ptr().cast()) }
}

#[cfg(spdk_asan)]
pub(super) use quarantine::free;

#[cfg(spdk_asan)]
mod quarantine {
    use std::collections::VecDeque;
    use std::ptr::NonNull;
    use std::sync::{Mutex, PoisonError};

    use super::STRIP;
    use crate::sanitize;

    /// Bytes that wait, at most. Little, since programs without hugepages have little.
    const LIMIT: usize = 16 << 20;

    static FREED: Mutex<Freed> = Mutex::new(Freed {
        memory: VecDeque::new(),
        bytes: 0,
    });

    struct Freed {
        /// Addresses and lengths, oldest first.
        memory: VecDeque<(usize, usize)>,
        bytes: usize,
    }

    /// # Safety
    /// The environment is running. The memory came from [`allocate`](super::allocate) with as many
    /// bytes, and is not used any more.
    pub(in crate::buf) unsafe fn free(memory: NonNull<u8>, bytes: usize) {
        sanitize::forbid(memory.as_ptr(), bytes);
        let mut freed = FREED.lock().unwrap_or_else(PoisonError::into_inner);
        freed
            .memory
            .push_back((memory.as_ptr().expose_provenance(), bytes));
        freed.bytes += bytes;
        while freed.bytes > LIMIT {
            let Some((address, bytes)) = freed.memory.pop_front() else {
                break;
            };
            freed.bytes -= bytes;
            let memory = std::ptr::with_exposed_provenance_mut::<u8>(address);
            // DPDK writes into it, and keeps its own notes there.
            sanitize::allow(memory, bytes + STRIP);
            // SAFETY: the pointer comes from spdk_dma_malloc (contract), and is freed once: it
            // has just left the queue.
            unsafe { spdk_sys::spdk_dma_free(memory.cast()) };
        }
    }
}
