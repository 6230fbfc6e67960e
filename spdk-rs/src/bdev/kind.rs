//! What block devices are asked for: the same on both sides, of those who ask and of devices
//! written in Rust.

use spdk_sys::spdk_bdev_io_type;

/// What an I/O asks for.
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

    /// Its name, for messages.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
            Self::Reset => "reset",
        }
    }

    /// Whether it needs a descriptor for writing. (SPDK counts flush among those.)
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Reset)
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u32);

impl Kinds {
    pub(crate) const NONE: Self = Self(0);

    /// Whether SPDK's type is that of a kind in the set.
    #[inline]
    pub(crate) fn contains(self, io_type: spdk_bdev_io_type) -> bool {
        1_u32.checked_shl(io_type).is_some_and(|bit| self.0 & bit != 0)
    }

    pub(crate) fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u32)
    }

    pub(crate) fn without(self, kind: Kind) -> Self {
        Self(self.0 & !(1 << kind as u32))
    }
}
