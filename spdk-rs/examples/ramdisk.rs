//! A RAM disk, written in Rust: registers it, writes to it through SPDK, and reads back.
//!
//! Needs neither root nor huge pages:
//!
//! ```text
//! cargo run --example ramdisk
//! ```

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use spdk_rs::Runtime;
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;

const BLOCK: u32 = 4096;

struct RamDisk {
    blocks: u64,
    /// One reactor runs here, so the lock is always free. A disk for many would have one for
    /// each stripe.
    data: Mutex<Vec<u8>>,
}

impl RamDisk {
    fn new(blocks: u64) -> Self {
        Self {
            blocks,
            data: Mutex::new(vec![0; blocks as usize * BLOCK as usize]),
        }
    }
}

impl BlockDevice for RamDisk {
    /// Threads have nothing of their own.
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(BLOCK, self.blocks)
            .product("RAM disk in Rust")
            .supports(Kind::WriteZeroes)
            .supports(Kind::Unmap)
            .supports(Kind::Flush)
            .supports(Kind::Reset)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), mut io: Io) {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        // SPDK has checked that this lies within the disk.
        let range = io.offset() as usize..(io.offset() + io.num_bytes()) as usize;
        match io.kind() {
            Kind::Read => {
                io.fill_from(&data[range]);
            }
            Kind::Write => {
                io.copy_to(&mut data[range]);
            }
            Kind::WriteZeroes | Kind::Unmap => data[range].fill(0),
            // Nothing is ever in flight here, or in a cache.
            _ => {}
        }
        io.complete(Status::Success);
    }
}

fn main() -> Result<()> {
    let runtime = Runtime::builder()
        .name("ramdisk")
        .no_huge(true)
        .memory_mb(512)
        .build()?;
    runtime.run(use_it())?
}

async fn use_it() -> Result<()> {
    let registered = bdev_module::register("ram", RamDisk::new(4096))?;
    let disk = Bdev::find("ram")?;
    println!("{}: {}, {} bytes", disk.name(), disk.product(), disk.size());

    let descriptor = disk.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let mut buf = DmaBuf::new(BLOCK as usize)?;
    for block in 0..disk.num_blocks() {
        buf.fill(block as u8);
        let offset = block * u64::from(BLOCK);
        buf = channel.write(buf, offset).await.ok()?.1;
    }
    channel.write_zeroes(0, u64::from(BLOCK)).await?;
    for block in 0..disk.num_blocks() {
        let offset = block * u64::from(BLOCK);
        buf = channel.read(buf, offset).await.ok()?.1;
        let right = buf.as_slice().iter().all(|byte| *byte == block as u8);
        ensure!(right, "block {block} is not what was written");
    }
    println!("{} blocks were written, read and verified", disk.num_blocks());

    drop(channel);
    descriptor.close().await?;
    registered.unregister().await?;
    Ok(())
}
