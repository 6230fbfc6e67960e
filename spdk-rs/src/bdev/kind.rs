//! What block devices are asked for: by those who ask ([`IoType`]), and as far as devices written in
//! Rust know it ([`Kind`]).

use spdk_sys::{spdk_bdev, spdk_bdev_io_type};

use super::zcopy;

/// What an I/O asks a device written in Rust for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)] // with SPDK's numbers, so that nothing has to be looked up
pub enum Kind {
    /// Fill the memory from the device.
    Read = spdk_sys::SPDK_BDEV_IO_TYPE_READ,
    /// Store the memory's content.
    Write = spdk_sys::SPDK_BDEV_IO_TYPE_WRITE,
    /// Make a range read as zeroes. Where a device cannot, SPDK writes zeroes.
    WriteZeroes = spdk_sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES,
    /// Forget a range.
    Unmap = spdk_sys::SPDK_BDEV_IO_TYPE_UNMAP,
    /// Make what was written to a range lasting.
    Flush = spdk_sys::SPDK_BDEV_IO_TYPE_FLUSH,
    /// End everything that is in flight, on every channel; then complete the reset.
    Reset = spdk_sys::SPDK_BDEV_IO_TYPE_RESET,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Unmap,
        Self::Flush,
        Self::Reset,
    ];

    /// SPDK has more, which are not used here.
    #[inline]
    pub(crate) fn of(io_type: spdk_bdev_io_type) -> Option<Self> {
        match io_type {
            spdk_sys::SPDK_BDEV_IO_TYPE_READ => Some(Self::Read),
            spdk_sys::SPDK_BDEV_IO_TYPE_WRITE => Some(Self::Write),
            spdk_sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES => Some(Self::WriteZeroes),
            spdk_sys::SPDK_BDEV_IO_TYPE_UNMAP => Some(Self::Unmap),
            spdk_sys::SPDK_BDEV_IO_TYPE_FLUSH => Some(Self::Flush),
            spdk_sys::SPDK_BDEV_IO_TYPE_RESET => Some(Self::Reset),
            _ => None,
        }
    }
}

/// What a block device may be asked for: [`Bdev::supports`](super::Bdev::supports).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)] // as `Kind`
#[doc(alias = "spdk_bdev_io_type")]
pub enum IoType {
    /// Read.
    Read = spdk_sys::SPDK_BDEV_IO_TYPE_READ,
    /// Write.
    Write = spdk_sys::SPDK_BDEV_IO_TYPE_WRITE,
    /// Make a range read as zeroes. Where a device cannot, SPDK writes zeroes.
    WriteZeroes = spdk_sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES,
    /// Give blocks back.
    Unmap = spdk_sys::SPDK_BDEV_IO_TYPE_UNMAP,
    /// Make what was written lasting.
    Flush = spdk_sys::SPDK_BDEV_IO_TYPE_FLUSH,
    /// Abort everything that is in flight.
    Reset = spdk_sys::SPDK_BDEV_IO_TYPE_RESET,
    /// Compare what is stored. Where a device cannot, SPDK reads and compares.
    Compare = spdk_sys::SPDK_BDEV_IO_TYPE_COMPARE,
    /// Compare, and write if it was equal, in one. Where a device cannot, SPDK keeps others away
    /// from the range meanwhile.
    CompareAndWrite = spdk_sys::SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE,
    /// Abort an I/O. A device that can may still refuse a particular one.
    Abort = spdk_sys::SPDK_BDEV_IO_TYPE_ABORT,
    /// Lend the device's own memory. Where there is none, SPDK reads into a buffer, or writes it.
    /// (Not where devices pass it on to others: see [`Channel::zcopy`](super::Channel::zcopy).)
    Zcopy = spdk_sys::SPDK_BDEV_IO_TYPE_ZCOPY,
    /// An NVMe admin command as it is.
    NvmeAdmin = spdk_sys::SPDK_BDEV_IO_TYPE_NVME_ADMIN,
    /// An NVMe I/O command as it is.
    NvmeIo = spdk_sys::SPDK_BDEV_IO_TYPE_NVME_IO,
    /// An NVMe I/O command as it is, with metadata in memory of its own.
    NvmeIoWithMetadata = spdk_sys::SPDK_BDEV_IO_TYPE_NVME_IO_MD,
}

impl IoType {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Unmap,
        Self::Flush,
        Self::Reset,
        Self::Compare,
        Self::CompareAndWrite,
        Self::Abort,
        Self::Zcopy,
        Self::NvmeAdmin,
        Self::NvmeIo,
        Self::NvmeIoWithMetadata,
    ];

    /// Its name, for messages.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
            Self::Reset => "reset",
            Self::Compare => "compare",
            Self::CompareAndWrite => "compare and write",
            Self::Abort => "abort",
            Self::Zcopy => "zero-copy",
            Self::NvmeAdmin => "NVMe admin command",
            Self::NvmeIo | Self::NvmeIoWithMetadata => "NVMe I/O command",
        }
    }

    /// Whether SPDK wants a descriptor for writing.
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Reset | Self::Compare | Self::Abort)
    }

    /// Whether it is about a range of blocks.
    pub(super) fn has_range(self) -> bool {
        !matches!(
            self,
            Self::Reset | Self::Abort | Self::NvmeAdmin | Self::NvmeIo | Self::NvmeIoWithMetadata
        )
    }
}

impl From<Kind> for IoType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Read => Self::Read,
            Kind::Write => Self::Write,
            Kind::WriteZeroes => Self::WriteZeroes,
            Kind::Unmap => Self::Unmap,
            Kind::Flush => Self::Flush,
            Kind::Reset => Self::Reset,
        }
    }
}

/// What a device can be asked for, with SPDK's help.
///
/// # Safety
/// The bdev exists.
pub(super) unsafe fn supported(bdev: *mut spdk_bdev) -> Kinds {
    // SAFETY: the bdev exists (contract). For zeroes and zero-copy the answer includes SPDK's help.
    let asked = |io_type: IoType| unsafe { spdk_sys::spdk_bdev_io_type_supported(bdev, io_type as u32) };
    let can = |io_type: &IoType| match io_type {
        // SAFETY: as above.
        IoType::Zcopy => asked(IoType::Zcopy) && unsafe { zcopy::is_sound(bdev) },
        IoType::Compare => asked(IoType::Compare) || asked(IoType::Read),
        IoType::CompareAndWrite => {
            asked(IoType::CompareAndWrite) || asked(IoType::Read) && asked(IoType::Write)
        }
        io_type => asked(*io_type),
    };
    let able = IoType::ALL.into_iter().filter(can);
    able.fold(Kinds::NONE, Kinds::with)
}

/// A set of kinds or types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u32);

impl Kinds {
    pub(crate) const NONE: Self = Self(0);

    /// Whether SPDK's type is that of a kind in the set.
    #[inline]
    pub(crate) fn contains(self, io_type: spdk_bdev_io_type) -> bool {
        1_u32.checked_shl(io_type).is_some_and(|bit| self.0 & bit != 0)
    }

    pub(crate) fn with(self, io_type: impl Into<IoType>) -> Self {
        Self(self.0 | 1 << io_type.into() as u32)
    }

    pub(crate) fn without(self, io_type: impl Into<IoType>) -> Self {
        Self(self.0 & !(1 << io_type.into() as u32))
    }
}
