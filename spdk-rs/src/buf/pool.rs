//! Buffers that are used again.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DEFAULT_ALIGNMENT, DmaBuf, Memory};
use crate::{Result, sanitize};

/// A fixed number of buffers of one size: taking one and giving it back allocates nothing.
///
/// A buffer that is dropped, on whatever thread, comes back by itself; so does one that an I/O
/// still held when its future was dropped, as soon as the device is done with it. The pool may be
/// dropped before its buffers.
///
/// ```no_run
/// # fn main() -> spdk_rs::Result<()> {
/// use spdk_rs::buf::DmaPool;
/// let pool = DmaPool::new(128, 4096)?;
/// let buf = pool.take().expect("one of 128");
/// assert_eq!(pool.available(), 127);
/// drop(buf);
/// assert_eq!(pool.available(), 128);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DmaPool(Arc<Shared>);

#[allow(clippy::vec_box)] // the boxes are what buffers consist of: they go in and out whole
pub(super) struct Shared {
    free: Mutex<Vec<Box<Memory>>>,
    count: usize,
    capacity: usize,
}

static_assertions::assert_impl_all!(DmaPool: Send, Sync);

impl DmaPool {
    /// `count` buffers of `capacity` bytes each, aligned to [`DEFAULT_ALIGNMENT`].
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`].
    pub fn new(count: usize, capacity: usize) -> Result<Self> {
        Self::aligned(count, capacity, DEFAULT_ALIGNMENT)
    }

    /// As [`DmaPool::new`], with an alignment of one's own.
    ///
    /// # Errors
    /// See [`DmaBuf::aligned`].
    pub fn aligned(count: usize, capacity: usize, alignment: usize) -> Result<Self> {
        let mut free = Vec::with_capacity(count);
        for _ in 0..count {
            let memory = DmaBuf::aligned(capacity, alignment)?.into_memory();
            sanitize::forbid(memory.ptr.as_ptr(), capacity);
            free.push(memory);
        }
        Ok(Self(Arc::new(Shared {
            free: Mutex::new(free),
            count,
            capacity,
        })))
    }

    /// A buffer, empty; `None` if all are in use.
    pub fn take(&self) -> Option<DmaBuf> {
        let mut memory = self.0.lock().pop()?;
        sanitize::allow(memory.ptr.as_ptr(), memory.capacity);
        memory.len = 0;
        memory.pool = Some(Arc::clone(&self.0));
        Some(DmaBuf::from_memory(memory))
    }

    /// How many can be taken now.
    pub fn available(&self) -> usize {
        self.0.lock().len()
    }
}

impl Shared {
    #[allow(clippy::vec_box)]
    fn lock(&self) -> MutexGuard<'_, Vec<Box<Memory>>> {
        // Only pushes and pops happen under this lock.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer comes back.
    pub(super) fn give(&self, memory: Box<Memory>) {
        sanitize::forbid(memory.ptr.as_ptr(), memory.capacity);
        // Never grows: there was a place for each.
        self.lock().push(memory);
    }
}

impl fmt::Debug for DmaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPool")
            .field("count", &self.0.count)
            .field("capacity", &self.0.capacity)
            .field("available", &self.available())
            .finish()
    }
}
