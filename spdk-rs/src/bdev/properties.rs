//! What a block device can do, and how it wants to be used.

use spdk_sys::spdk_bdev;

use super::Bdev;
use super::kind::{self, IoType, Kinds};

/// The part of a [`Bdev`] that this file tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Properties {
    supported: Kinds,
    write_cache: bool,
    write_unit: u32,
    boundary: u32,
    atomic: u16,
    metadata: Option<Metadata>,
    zoned: bool,
    open_zones: u32,
}

/// What a device stores with each block, besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Bytes for each block.
    pub size: u32,
    /// It comes at the end of each block, and is part of [`Bdev::block_size`]. Otherwise it goes
    /// through memory of its own: [`Channel::read_with_metadata`](super::Channel::read_with_metadata).
    pub interleaved: bool,
    /// The protection information in it, if there is any.
    pub protection: Option<Protection>,
}

/// A type of protection information (T10 DIF), as the SCSI and NVMe standards number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "spdk_dif_type")]
pub enum Protection {
    /// Guard, and the low 32 bits of the block's number.
    Type1,
    /// Guard, and numbers of the initiator's choice.
    Type2,
    /// Guard alone.
    Type3,
}

impl Properties {
    /// # Safety
    /// The bdev exists, and cannot go away while this runs.
    pub(super) unsafe fn of(bdev: *mut spdk_bdev) -> Self {
        // SAFETY: the bdev exists (contract); all of these read only.
        unsafe {
            Self {
                supported: kind::supported(bdev),
                write_cache: spdk_sys::spdk_bdev_has_write_cache(bdev),
                write_unit: spdk_sys::spdk_bdev_get_write_unit_size(bdev),
                boundary: spdk_sys::spdk_bdev_get_optimal_io_boundary(bdev),
                atomic: spdk_sys::spdk_bdev_get_acwu(bdev),
                metadata: Metadata::of(bdev),
                zoned: spdk_sys::spdk_bdev_is_zoned(bdev),
                open_zones: spdk_sys::spdk_bdev_get_optimal_open_zones(bdev),
            }
        }
    }
}

impl Metadata {
    /// # Safety
    /// As [`Properties::of`].
    unsafe fn of(bdev: *mut spdk_bdev) -> Option<Self> {
        // SAFETY: as the contract says; all of these read only.
        let (size, interleaved, dif) = unsafe {
            (
                spdk_sys::spdk_bdev_get_md_size(bdev),
                spdk_sys::spdk_bdev_is_md_interleaved(bdev),
                spdk_sys::spdk_bdev_get_dif_type(bdev),
            )
        };
        (size > 0).then_some(Self {
            size,
            interleaved,
            protection: match dif {
                spdk_sys::SPDK_DIF_TYPE1 => Some(Protection::Type1),
                spdk_sys::SPDK_DIF_TYPE2 => Some(Protection::Type2),
                spdk_sys::SPDK_DIF_TYPE3 => Some(Protection::Type3),
                _ => None,
            },
        })
    }
}

impl Bdev {
    /// Whether it can be asked for this, with SPDK's help where [`IoType`] says so.
    #[doc(alias = "spdk_bdev_io_type_supported")]
    pub fn supports(&self, io_type: IoType) -> bool {
        self.properties.supported.contains(io_type as u32)
    }

    /// Whether it has a volatile write cache, so that [`Channel::flush`](super::Channel::flush) matters.
    #[doc(alias = "spdk_bdev_has_write_cache")]
    pub fn has_write_cache(&self) -> bool {
        self.properties.write_cache
    }

    /// How many blocks a write had better be a multiple of; 1 for most devices.
    #[doc(alias = "spdk_bdev_get_write_unit_size")]
    pub fn write_unit(&self) -> u32 {
        self.properties.write_unit
    }

    /// I/O had better not cross multiples of this many blocks. (Some devices have SPDK split it
    /// there.)
    #[doc(alias = "spdk_bdev_get_optimal_io_boundary")]
    pub fn optimal_io_boundary(&self) -> Option<u32> {
        let boundary = self.properties.boundary;
        (boundary > 0).then_some(boundary)
    }

    /// The largest [`Channel::compare_and_write`](super::Channel::compare_and_write), in blocks.
    #[doc(alias = "spdk_bdev_get_acwu")]
    pub fn max_compare_and_write(&self) -> u16 {
        self.properties.atomic
    }

    /// What it stores with each block, besides its data.
    #[doc(alias = "spdk_bdev_get_md_size")]
    #[doc(alias = "spdk_bdev_get_dif_type")]
    pub fn metadata(&self) -> Option<Metadata> {
        self.properties.metadata
    }

    /// Whether it has zones, each of which is written from its beginning to its end.
    #[doc(alias = "spdk_bdev_is_zoned")]
    pub fn is_zoned(&self) -> bool {
        self.properties.zoned
    }

    /// How many zones are best open at a time; `None` without zones, or where the device does not say.
    #[doc(alias = "spdk_bdev_get_optimal_open_zones")]
    pub fn optimal_open_zones(&self) -> Option<u32> {
        let zones = self.properties.open_zones;
        (self.is_zoned() && zones > 0).then_some(zones)
    }
}
