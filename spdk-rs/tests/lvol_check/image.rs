//! Changes a store in a file, byte by byte, while nobody has it loaded. It knows the format by itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crc_fast::{CrcAlgorithm, checksum};

const PAGE: usize = 4096;

/// The lists of what is used.
#[derive(Clone, Copy)]
pub enum List {
    Pages,
    Clusters,
    Blobs,
}

pub struct Image {
    file: File,
    /// The first page of metadata.
    metadata: u32,
}

impl Image {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut image = Self { file, metadata: 0 };
        let superblock = image.block(0)?;
        ensure!(superblock.starts_with(b"SPDKBLOB"));
        image.metadata = number(&superblock, 48);
        Ok(image)
    }

    fn block(&self, number: u32) -> Result<Vec<u8>> {
        let mut page = vec![0; PAGE];
        self.file
            .read_exact_at(&mut page, u64::from(number) * PAGE as u64)?;
        Ok(page)
    }

    fn put_block(&self, number: u32, page: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(page, u64::from(number) * PAGE as u64)?)
    }

    /// A page of metadata.
    pub fn page(&self, number: u32) -> Result<Vec<u8>> {
        self.block(self.metadata + number)
    }

    /// Writes a page of metadata, with the right checksum.
    pub fn put_page(&self, number: u32, mut page: Vec<u8>) -> Result<()> {
        seal(&mut page);
        self.put_raw(number, &page)
    }

    pub fn put_raw(&self, number: u32, page: &[u8]) -> Result<()> {
        self.put_block(self.metadata + number, page)
    }

    /// It was not unloaded.
    pub fn set_unclean(&self) -> Result<()> {
        let mut page = self.block(0)?;
        page[16..20].fill(0);
        seal(&mut page);
        self.put_block(0, &page)
    }

    /// Where a list begins.
    fn list(&self, list: List) -> Result<u32> {
        let at = match list {
            List::Pages => 32,
            List::Clusters => 40,
            List::Blobs => 72,
        };
        Ok(number(&self.block(0)?, at))
    }

    /// Says in a list that something is used, or free.
    pub fn set_used(&self, list: List, bit: u64, used: bool) -> Result<()> {
        let start = self.list(list)?;
        let mut page = self.block(start)?;
        let byte = &mut page[5 + bit as usize / 8];
        let before = *byte;
        match used {
            true => *byte |= 1 << (bit % 8),
            false => *byte &= !(1 << (bit % 8)),
        }
        ensure!(*byte != before, "it is so already");
        self.put_block(start, &page)
    }

    /// The first cluster that is said to be free.
    pub fn free_cluster(&self) -> Result<u64> {
        let page = self.block(self.list(List::Clusters)?)?;
        let bits = 0..u64::from(number(&page, 1));
        let mut free = bits.filter(|bit| page[5 + *bit as usize / 8] & 1 << (bit % 8) == 0);
        free.next().context("none is free")
    }

    /// Breaks the header of a list.
    pub fn break_list(&self, list: List) -> Result<()> {
        let start = self.list(list)?;
        let mut page = self.block(start)?;
        page[0] = 7;
        self.put_block(start, &page)
    }

    /// Writes over the first place in a blob's root page where something stands.
    pub fn replace(&self, blob: u64, old: &[u8], new: &[u8]) -> Result<()> {
        let mut page = self.page(blob as u32)?;
        let at = page.windows(old.len()).position(|window| window == old);
        let at = at.with_context(|| format!("blob {blob:#x} does not say {old:?}"))?;
        page[at..at + new.len()].copy_from_slice(new);
        self.put_page(blob as u32, page)
    }

    /// The extent page of a blob that has one.
    pub fn extent_page(&self, blob: u64) -> Result<u32> {
        let page = self.page(blob as u32)?;
        let mut at = 16;
        while page[at] != 5 {
            at += 5 + number(&page, at + 1) as usize;
            ensure!(at < PAGE - 16, "it has no extent table");
        }
        Ok(number(&page, at + 13))
    }

    /// The clusters that an extent page names.
    pub fn clusters(&self, extent_page: u32) -> Result<Vec<u32>> {
        let page = self.page(extent_page)?;
        let count = (number(&page, 17) as usize - 4) / 4;
        Ok((0..count).map(|index| number(&page, 25 + index * 4)).collect())
    }

    pub fn set_cluster(&self, extent_page: u32, index: usize, cluster: u32) -> Result<()> {
        let mut page = self.page(extent_page)?;
        page[25 + index * 4..][..4].copy_from_slice(&cluster.to_le_bytes());
        self.put_page(extent_page, page)
    }

    /// Gives a blob one more internal xattr that names another blob.
    pub fn add_internal_xattr(&self, blob: u64, name: &str, value: u64) -> Result<()> {
        let mut page = self.page(blob as u32)?;
        let mut at = 16;
        while page[at] != 0 {
            if page[at] == 3 {
                page[at + 5] |= 2; // It has internal xattrs.
            }
            at += 5 + number(&page, at + 1) as usize;
        }
        let mut xattr = vec![4];
        xattr.extend((4 + name.len() as u32 + 8).to_le_bytes());
        xattr.extend((name.len() as u16).to_le_bytes());
        xattr.extend(8_u16.to_le_bytes());
        xattr.extend(name.as_bytes());
        xattr.extend(value.to_le_bytes());
        page[at..at + xattr.len()].copy_from_slice(&xattr);
        self.put_page(blob as u32, page)
    }
}

fn number(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}

fn seal(page: &mut [u8]) {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, &page[..PAGE - 4]) as u32;
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
}
