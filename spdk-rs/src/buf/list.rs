//! Several buffers for one I/O.

use std::ffi::c_int;
use std::fmt;

use spdk_sys::iovec;

use super::DmaBuf;

/// Buffers that one I/O reads into or writes from, one after the other.
///
/// As with one [`DmaBuf`], a write sends the initialised part of each, and a read fills the whole
/// capacity of each. It can be used again and again without allocating.
#[derive(Default)]
pub struct DmaBufList(Box<Inner>);

#[derive(Default)]
struct Inner {
    bufs: Vec<DmaBuf>,
    iovs: Vec<Iovec>,
}

#[repr(transparent)]
struct Iovec(iovec);

// SAFETY: the entries point into the buffers of the same list, which may go to any thread; they
// are filled anew for each I/O.
unsafe impl Send for Iovec {}
// SAFETY: as above; and through a shared reference nobody follows them.
unsafe impl Sync for Iovec {}

static_assertions::assert_impl_all!(DmaBufList: Send, Sync);

impl DmaBufList {
    /// A list of these buffers.
    pub fn new(bufs: Vec<DmaBuf>) -> Self {
        Self(Box::new(Inner {
            iovs: Vec::with_capacity(bufs.len()),
            bufs,
        }))
    }

    /// The buffers.
    pub fn bufs(&self) -> &[DmaBuf] {
        &self.0.bufs
    }

    /// The buffers, to change.
    pub fn bufs_mut(&mut self) -> &mut Vec<DmaBuf> {
        &mut self.0.bufs
    }

    /// The buffers.
    pub fn into_bufs(self) -> Vec<DmaBuf> {
        self.0.bufs
    }

    /// Initialised bytes of all buffers.
    pub fn len(&self) -> usize {
        self.0.bufs.iter().map(DmaBuf::len).sum()
    }

    /// Whether no byte of any buffer is initialised.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all buffers.
    pub fn capacity(&self) -> usize {
        self.0.bufs.iter().map(DmaBuf::capacity).sum()
    }

    /// For C: the whole capacities, or the initialised parts. Valid until the list is touched.
    pub(crate) fn iovecs(&mut self, capacity: bool) -> (*mut iovec, c_int) {
        let Inner { bufs, iovs } = &mut *self.0;
        iovs.clear();
        iovs.extend(bufs.iter_mut().map(|buf| {
            let len = if capacity { buf.capacity() } else { buf.len() };
            Iovec(iovec {
                iov_base: buf.as_mut_ptr().cast(),
                iov_len: len,
            })
        }));
        let count = c_int::try_from(iovs.len()).unwrap_or(c_int::MAX);
        (iovs.as_mut_ptr().cast(), count)
    }

    /// Declares every byte initialised.
    ///
    /// # Safety
    /// They are.
    pub(crate) unsafe fn set_full(&mut self) {
        for buf in &mut self.0.bufs {
            // SAFETY: by contract.
            unsafe { buf.set_len(buf.capacity()) };
        }
    }
}

impl From<Vec<DmaBuf>> for DmaBufList {
    fn from(bufs: Vec<DmaBuf>) -> Self {
        Self::new(bufs)
    }
}

impl fmt::Debug for DmaBufList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0.bufs).finish()
    }
}
