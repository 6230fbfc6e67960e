//! Reading and writing data with metadata in memory of its own.

use super::Channel;
use super::transfer::{Read, Write};
use crate::buf::DmaBuf;

impl Channel {
    /// As [`read`](Self::read), and reads the metadata of these blocks into `metadata`, whose
    /// capacity is [`Metadata::size`](super::Metadata::size) for each block.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the
    /// device has no metadata, or [interleaves](super::Metadata::interleaved) it;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if `metadata` is of another length.
    #[doc(alias = "spdk_bdev_read_blocks_with_md")]
    pub fn read_with_metadata(&self, buf: DmaBuf, metadata: DmaBuf, offset: u64) -> Read<(DmaBuf, DmaBuf)> {
        Read::new(self.slots(), (buf, metadata), offset)
    }

    /// As [`write`](Self::write), and writes the initialised part of `metadata`, which is
    /// [`Metadata::size`](super::Metadata::size) bytes for each block.
    ///
    /// # Errors
    /// As [`read_with_metadata`](Self::read_with_metadata) and [`write`](Self::write).
    #[doc(alias = "spdk_bdev_write_blocks_with_md")]
    pub fn write_with_metadata(&self, buf: DmaBuf, metadata: DmaBuf, offset: u64) -> Write<(DmaBuf, DmaBuf)> {
        Write::new(self.slots(), (buf, metadata), offset)
    }
}
