//! The metadata of an I/O.

use std::mem::MaybeUninit;

use super::Kind;
use super::io::Io;

impl Io {
    /// The metadata of a write: [`Properties::metadata`](super::Properties::metadata) bytes for each
    /// block. `None` for other kinds, and for a write without any.
    #[doc(alias = "spdk_bdev_io_get_md_buf")]
    pub fn metadata(&self) -> Option<&[u8]> {
        let (ptr, len) = self.metadata_of(Kind::Write)?;
        // SAFETY: whoever submitted a write leaves its memory alone until it is completed, which
        // takes this object. SPDK asks for so many bytes.
        Some(unsafe { std::slice::from_raw_parts(ptr, len) })
    }

    /// Where the metadata of a read belong; as [`metadata`](Self::metadata) otherwise. All of it has
    /// to be filled before the read is a success.
    pub fn metadata_mut(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        let (ptr, len) = self.metadata_of(Kind::Read)?;
        // SAFETY: whoever submitted a read leaves its memory to the device until it is completed,
        // which takes this object. Whatever it holds is MaybeUninit.
        Some(unsafe { std::slice::from_raw_parts_mut(ptr.cast(), len) })
    }

    fn metadata_of(&self, kind: Kind) -> Option<(*mut u8, usize)> {
        if self.kind() != kind {
            return None;
        }
        // SAFETY: the I/O is ours until it is completed, keeps its bdev, and is of a kind with
        // memory.
        let (ptr, size) = unsafe {
            let raw = self.raw();
            let size = spdk_sys::spdk_bdev_get_md_size((*raw).bdev);
            (spdk_sys::spdk_bdev_io_get_md_buf(raw).cast::<u8>(), size)
        };
        let len = usize::try_from(self.num_blocks() * u64::from(size)).unwrap_or(0);
        (!ptr.is_null() && len > 0).then_some((ptr, len))
    }
}
