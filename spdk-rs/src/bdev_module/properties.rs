//! What a device says of itself.

use std::borrow::Cow;

use crate::bdev::Uuid;
use crate::bdev::kind::{Kind, Kinds};

/// A device's geometry and abilities; read once, when it is registered.
///
/// ```
/// # use spdk_rs::bdev_module::{Kind, Properties};
/// let disk = Properties::new(4096, 1 << 20) // 4 GiB
///     .product("Example disk")
///     .supports(Kind::Unmap)
///     .alignment(4096);
/// # let _ = disk;
/// ```
#[derive(Clone, Debug)]
#[must_use = "it takes effect when the device is registered"]
pub struct Properties {
    pub(super) block_size: u32,
    pub(super) num_blocks: u64,
    pub(super) product: Cow<'static, str>,
    pub(super) uuid: Option<Uuid>,
    pub(super) alignment: usize,
    pub(super) write_cache: bool,
    pub(super) boundary: u32,
    pub(super) split: bool,
    pub(super) metadata: u32,
    pub(super) kinds: Kinds,
}

impl Properties {
    /// `num_blocks` blocks of `block_size` bytes (a multiple of 512), which can be read and
    /// written.
    pub fn new(block_size: u32, num_blocks: u64) -> Self {
        Self {
            block_size,
            num_blocks,
            product: Cow::Borrowed("Rust disk"),
            uuid: None,
            alignment: 1,
            write_cache: false,
            boundary: 0,
            split: false,
            metadata: 0,
            kinds: Kinds::NONE.with(Kind::Read).with(Kind::Write),
        }
    }

    /// What sort of device it is. Default: `Rust disk`.
    pub fn product(mut self, product: impl Into<Cow<'static, str>>) -> Self {
        self.product = product.into();
        self
    }

    /// Default (and for the nil UUID): SPDK makes one up.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// The device can do this, too. Default: [`Kind::Read`] and [`Kind::Write`].
    pub fn supports(mut self, kind: Kind) -> Self {
        self.kinds = self.kinds.with(kind);
        self
    }

    /// The device cannot write.
    pub fn read_only(mut self) -> Self {
        self.kinds = self.kinds.without(Kind::Write);
        self
    }

    /// The alignment in bytes, a power of two up to 4096, that each segment of memory has when
    /// the device gets to see it. SPDK copies what is not aligned (and splits I/O into pieces of
    /// 64 KiB for that). Default: 1.
    pub fn alignment(mut self, bytes: usize) -> Self {
        self.alignment = bytes;
        self
    }

    /// The device has a volatile write cache. Default: none.
    pub fn write_cache(mut self, write_cache: bool) -> Self {
        self.write_cache = write_cache;
        self
    }

    /// I/O had better not cross multiples of this many blocks; with `split` SPDK sees to it that
    /// no read or write does. Default: 0, no boundary.
    pub fn optimal_io_boundary(mut self, blocks: u32, split: bool) -> Self {
        self.boundary = blocks;
        self.split = split && blocks > 0;
        self
    }

    /// The device stores so many bytes of metadata with each block, which come in memory of their
    /// own, if they come: [`Io::metadata`](super::Io::metadata). Default: 0, none.
    pub fn metadata(mut self, bytes: u32) -> Self {
        self.metadata = bytes;
        self
    }

    /// Why SPDK could not work with this.
    pub(super) fn problem(&self) -> Option<String> {
        let Self {
            block_size,
            num_blocks,
            alignment,
            ..
        } = self;
        if *block_size == 0 || block_size % 512 != 0 {
            return Some(format!("blocks of {block_size} bytes: must be a multiple of 512"));
        }
        if *num_blocks == 0 {
            return Some("it has no blocks".to_owned());
        }
        if num_blocks.checked_mul(u64::from(*block_size)).is_none() {
            return Some(format!("{num_blocks} blocks of {block_size} bytes are too many"));
        }
        if !alignment.is_power_of_two() || *alignment > 4096 {
            return Some(format!(
                "an alignment of {alignment} bytes: must be a power of two up to 4096"
            ));
        }
        if self.product.contains('\0') {
            return Some("its product name contains a NUL".to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_spdk_cannot_work_with_is_named() {
        assert_eq!(Properties::new(512, 8).problem(), None);
        for (properties, word) in [
            (Properties::new(0, 8), "0 bytes"),
            (Properties::new(513, 8), "multiple of 512"),
            (Properties::new(512, 0), "no blocks"),
            (Properties::new(4096, u64::MAX / 4096 + 1), "too many"),
            (Properties::new(512, 8).alignment(0), "power of two"),
            (Properties::new(512, 8).alignment(48), "power of two"),
            (Properties::new(512, 8).alignment(8192), "up to 4096"),
            (Properties::new(512, 8).product("a\0b"), "NUL"),
        ] {
            let problem = properties.problem().expect(word);
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn kinds_are_a_set() {
        let kinds = Properties::new(512, 8).supports(Kind::Reset).read_only().kinds;
        let able: Vec<u32> = (0..100).filter(|io_type| kinds.contains(*io_type)).collect();
        assert_eq!(able, [Kind::Read as u32, Kind::Reset as u32]);
        assert_eq!(Kind::of(spdk_sys::SPDK_BDEV_IO_TYPE_UNMAP), Some(Kind::Unmap));
        assert_eq!(Kind::of(spdk_sys::SPDK_BDEV_IO_TYPE_NVME_IO), None);
    }
}
