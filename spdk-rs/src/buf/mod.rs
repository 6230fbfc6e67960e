//! Memory that devices can read and write.
//!
//! A [`DmaBuf`] comes from SPDK's (DPDK's) memory, is aligned, and knows how much of it is
//! initialised: only that part can be seen as `&[u8]`. I/O takes a buffer by value and gives it
//! back in a [`BufResult`], so that nothing can touch or free it while the device uses it.
//!
//! What may not be done here: hand out a reference into memory that a device may be using.

mod heap;
mod list;
mod pool;
mod result;

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;
use std::sync::Arc;

pub use list::DmaBufList;
pub use pool::DmaPool;
pub use result::BufResult;

use crate::{Error, ErrorKind, Result, env};

/// The alignment of buffers for which none is asked: a page, which suits every device here.
pub const DEFAULT_ALIGNMENT: usize = 4096;

/// An owned, aligned piece of DMA memory.
///
/// Its first [`len`](Self::len) bytes are initialised, of [`capacity`](Self::capacity) in all.
/// A write sends the initialised part; a read fills the whole capacity.
///
/// It can be dropped at any time and on any thread, also after the environment has stopped (the
/// memory then went with it).
#[doc(alias = "spdk_dma_malloc")]
pub struct DmaBuf(
    // One word, since a buffer is moved some ten times on its way through an I/O and back. Taken
    // out when the buffer is dropped.
    ManuallyDrop<Box<Memory>>,
);

#[repr(align(64))] // one cache line for each I/O
struct Memory {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// Where it goes when it is dropped.
    pool: Option<Arc<pool::Shared>>,
}

// SAFETY: it is plain memory with one owner; spdk_dma_malloc and spdk_dma_free may be called on
// any thread (DPDK's heap takes a lock).
unsafe impl Send for Memory {}
// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for Memory {}

static_assertions::assert_impl_all!(DmaBuf: Send, Sync);

impl DmaBuf {
    /// A buffer of `capacity` bytes, none of them initialised, aligned to
    /// [`DEFAULT_ALIGNMENT`]. For reading into.
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`].
    pub fn new(capacity: usize) -> Result<Self> {
        Self::aligned(capacity, DEFAULT_ALIGNMENT)
    }

    /// As [`DmaBuf::new`], with an alignment of one's own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the capacity is 0 or the alignment is not a power of
    /// two; [`ErrorKind::NoMemory`]; [`ErrorKind::NotRunning`] before the environment is started
    /// and after it has stopped.
    pub fn aligned(capacity: usize, alignment: usize) -> Result<Self> {
        Self::allocate(capacity, alignment, None)
    }

    /// As [`DmaBuf::aligned`], on one NUMA node: where the device is
    /// ([`Bdev`](crate::bdev::Bdev)s do not tell; a controller's PCI address does), or the core
    /// that works on the data ([`numa_node`](crate::reactor::numa_node)).
    ///
    /// The other constructors take memory of the calling reactor's node while there is some, and
    /// of others then. Without hugepages memory is all of one kind, and the node is not looked at.
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`]; [`ErrorKind::NoMemory`] also if there is no such node.
    #[doc(alias = "spdk_dma_malloc_socket")]
    pub fn on_node(capacity: usize, alignment: usize, node: u32) -> Result<Self> {
        Self::allocate(capacity, alignment, Some(node))
    }

    fn allocate(capacity: usize, alignment: usize, node: Option<u32>) -> Result<Self> {
        const WHAT: &str = "allocate DMA memory";
        if capacity == 0 || !alignment.is_power_of_two() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                WHAT,
                "",
                format!(
                    "{capacity} bytes aligned to {alignment}: the capacity must not be 0, the alignment a power of two"
                ),
            ));
        }
        env::check_running(WHAT)?;
        // SAFETY: the environment is up, and the alignment a power of two (checked).
        let Some(ptr) = (unsafe { heap::allocate(capacity, alignment.max(64), node) }) else {
            let place = node.map_or(String::new(), |node| format!(" on NUMA node {node}"));
            return Err(Error::from_errno(WHAT, "", libc::ENOMEM)
                .with_detail(format!("no {capacity} bytes left{place}; start with more memory")));
        };
        Ok(Self::from_memory(Box::new(Memory {
            ptr,
            len: 0,
            capacity,
            pool: None,
        })))
    }

    /// A buffer of `len` zero bytes, all of them initialised.
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`].
    #[doc(alias = "spdk_dma_zmalloc")]
    pub fn zeroed(len: usize) -> Result<Self> {
        let mut buf = Self::new(len)?;
        buf.fill(0);
        Ok(buf)
    }

    /// A buffer that holds a copy of `data`.
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`].
    pub fn copy_of(data: &[u8]) -> Result<Self> {
        let mut buf = Self::new(data.len())?;
        buf.extend_from_slice(data)?;
        Ok(buf)
    }

    /// How many bytes are initialised.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether no byte is initialised.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// How many bytes there are.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The initialised part.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised, ours, and not lent to a device: an I/O
        // takes the buffer by value.
        unsafe { std::slice::from_raw_parts(self.0.ptr.as_ptr(), self.0.len) }
    }

    /// The initialised part, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.ptr.as_ptr(), self.0.len) }
    }

    /// The part that is not initialised yet.
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let spare = self.0.capacity - self.0.len;
        // SAFETY: the bytes from `len` to `capacity` are ours; MaybeUninit asks no more.
        unsafe { std::slice::from_raw_parts_mut(self.0.ptr.as_ptr().add(self.0.len).cast(), spare) }
    }

    /// Declares the first `len` bytes initialised.
    ///
    /// # Safety
    /// They are, and `len` is at most the capacity.
    pub unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.0.capacity);
        self.0.len = len;
    }

    /// Shortens the initialised part to `len` bytes; does nothing if it is not longer.
    pub fn truncate(&mut self, len: usize) {
        self.0.len = self.0.len.min(len);
    }

    /// Forgets all data.
    pub fn clear(&mut self) {
        self.0.len = 0;
    }

    /// Sets every byte of the capacity to `byte`; all are initialised then.
    pub fn fill(&mut self, byte: u8) {
        // SAFETY: `capacity` bytes from the start are ours.
        unsafe { self.0.ptr.as_ptr().write_bytes(byte, self.0.capacity) };
        self.0.len = self.0.capacity;
    }

    /// Appends `data` to the initialised part.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] if it does not fit; nothing is appended then.
    pub fn extend_from_slice(&mut self, data: &[u8]) -> Result<()> {
        let spare = self.0.capacity - self.0.len;
        if data.len() > spare {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "fill DMA buffer",
                "",
                format!("{} bytes do not fit into the {spare} left", data.len()),
            ));
        }
        // SAFETY: the target lies within the capacity (checked), and cannot overlap `data`,
        // which is borrowed while we are borrowed exclusively.
        unsafe {
            let end = self.0.ptr.as_ptr().add(self.0.len);
            end.copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
        self.0.len += data.len();
        Ok(())
    }

    /// The address, for C.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.ptr.as_ptr()
    }

    /// The address, for C to write to. What C writes past [`len`](Self::len) must be declared
    /// with [`set_len`](Self::set_len).
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.ptr.as_ptr()
    }
}

impl DmaBuf {
    fn from_memory(memory: Box<Memory>) -> Self {
        Self(ManuallyDrop::new(memory))
    }

    fn into_memory(self) -> Box<Memory> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used, nor dropped, after this.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl Drop for DmaBuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the buffer is not used after this.
        let mut memory = unsafe { ManuallyDrop::take(&mut self.0) };
        if let Some(pool) = memory.pool.take() {
            pool.give(memory);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // After the environment has stopped its heap is gone, and the memory with it.
        env::while_running(|| {
            // SAFETY: it was allocated with this capacity, is freed once, and the environment
            // cannot stop inside `while_running`.
            unsafe { heap::free(self.ptr, self.capacity) }
        });
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuf")
            .field("len", &self.0.len)
            .field("capacity", &self.0.capacity)
            .finish()
    }
}
