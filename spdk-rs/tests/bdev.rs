//! Block devices: create, find, open, read, write.

mod common;

use anyhow::Result;
use common::{isolated, run};
use spdk_rs::ErrorKind;
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::buf::DmaBuf;

fn file_of(mib: u64) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(mib << 20)?;
    Ok(file)
}

#[test]
fn aio_write_and_read_back() {
    isolated("aio_write_and_read_back", || {
        run(async {
            let file = file_of(16)?;
            let disk = bdev::aio::create("aio0", file.path(), 512)?;
            assert_eq!((disk.block_size(), disk.size()), (512, 16 << 20));
            assert_eq!(disk.product(), "AIO disk");
            let descriptor = disk.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            let data: Vec<u8> = (0..8192).map(|n| (n % 251) as u8).collect();
            let (result, buf) = channel.write(DmaBuf::copy_of(&data)?, 4096).await.into_parts();
            result?;
            assert_eq!(buf.as_slice(), data, "the buffer comes back as it was");
            channel.flush().await?;
            let ((), buf) = channel.read(DmaBuf::new(8192)?, 4096).await.ok()?;
            assert_eq!(buf.as_slice(), data);
            let on_disk = std::fs::read(file.path())?;
            assert_eq!(on_disk[4096..12288], data);
            assert!(on_disk[..4096].iter().all(|byte| *byte == 0));
            channel.write_zeroes(4096, 512).await?;
            let ((), buf) = channel.read(buf, 4096).await.ok()?;
            assert_eq!(buf.as_slice()[..512], [0; 512]);
            assert_eq!(buf.as_slice()[512..], data[512..]);
            drop(channel);
            descriptor.close().await?;
            bdev::aio::delete("aio0").await?;
            assert_eq!(Bdev::find("aio0").unwrap_err().kind(), ErrorKind::NotFound);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
