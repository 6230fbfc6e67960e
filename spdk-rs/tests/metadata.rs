//! Data with metadata in memory of its own.
//!
//! None of SPDK v20.07's devices has such metadata but an NVMe namespace that was formatted so: its
//! null bdev refuses it, its malloc bdev has none. So the device is written in Rust; the way to it,
//! splitting included, is SPDK's.

mod common;

use std::sync::{Arc, Mutex};

use common::bdev::{open, pattern, read, write};
use common::disk::lock;
use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, IoType};
use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::{ErrorKind, Result};

const BLOCK: usize = 512;
const TAG: usize = 8;

/// Data, the metadata, and how many I/O had no metadata.
#[derive(Default)]
struct Stored {
    data: Vec<u8>,
    tags: Vec<u8>,
    without: usize,
}

struct Tagged(Mutex<Stored>);

impl BlockDevice for Tagged {
    type Channel = ();

    fn properties(&self) -> Properties {
        let disk = Properties::new(BLOCK as u32, 64);
        disk.metadata(TAG as u32).optimal_io_boundary(4, true)
    }

    fn channel(&self) -> Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), mut io: Io) {
        let mut stored = lock(&self.0);
        let (first, count) = (io.offset_blocks() as usize, io.num_blocks() as usize);
        assert!(count <= 4, "SPDK splits");
        let (data, tags) = (
            first * BLOCK..(first + count) * BLOCK,
            first * TAG..(first + count) * TAG,
        );
        match io.kind() {
            Kind::Write => {
                io.copy_to(&mut stored.data[data]);
                assert!(io.metadata_mut().is_none());
                match io.metadata() {
                    Some(metadata) => stored.tags[tags].copy_from_slice(metadata),
                    None => stored.without += 1,
                }
            }
            Kind::Read => {
                io.fill_from(&stored.data[data]);
                assert!(io.metadata().is_none());
                match io.metadata_mut() {
                    Some(metadata) => {
                        for (to, from) in metadata.iter_mut().zip(&stored.tags[tags]) {
                            to.write(*from);
                        }
                    }
                    None => stored.without += 1,
                }
            }
            _ => {}
        }
        drop(stored);
        io.complete(Status::Success);
    }
}

#[test]
fn data_and_metadata_go_together() {
    isolated("data_and_metadata_go_together", || {
        run(async {
            let stored = Stored {
                data: vec![0; 64 * BLOCK],
                tags: vec![0; 64 * TAG],
                without: 0,
            };
            let device = Arc::new(Tagged(Mutex::new(stored)));
            let registered = bdev_module::register("tagged", Arc::clone(&device))?;
            bdev::wait_for_examine().await?;
            let metadata = Bdev::find("tagged")?.metadata().expect("metadata");
            assert_eq!((metadata.size, metadata.interleaved), (8, false));
            assert_eq!(metadata.protection, None);
            let (descriptor, channel) = open("tagged")?;
            assert_eq!(descriptor.block_size(), 512);

            let (data, tags) = (pattern(16 * BLOCK, 1), pattern(16 * TAG, 9));
            let bufs = (DmaBuf::copy_of(&data)?, DmaBuf::copy_of(&tags)?);
            let at = 6 * BLOCK as u64;
            let ((), bufs) = channel.write_with_metadata(bufs.0, bufs.1, at).await.ok()?;
            assert_eq!((bufs.0.as_slice(), bufs.1.as_slice()), (&data[..], &tags[..]));
            assert_eq!(lock(&device.0).data[6 * BLOCK..22 * BLOCK], data);
            assert_eq!(lock(&device.0).tags[6 * TAG..22 * TAG], tags);
            let (buf, tag_buf) = (DmaBuf::new(16 * BLOCK)?, DmaBuf::new(16 * TAG)?);
            let ((), read_back) = channel.read_with_metadata(buf, tag_buf, at).await.ok()?;
            assert_eq!(read_back.0.as_slice(), data);
            assert_eq!(read_back.1.as_slice(), tags);

            // What is read and written without metadata leaves it alone.
            let before = lock(&device.0).without;
            write(&channel, &[5; 4 * BLOCK], 8 * BLOCK as u64).await?;
            assert_eq!(read(&channel, 2 * BLOCK, 8 * BLOCK as u64).await?, [5; 2 * BLOCK]);
            assert_eq!(lock(&device.0).without, before + 2);
            assert_eq!(lock(&device.0).tags[6 * TAG..22 * TAG], tags);

            // Too little metadata would be read beyond its end.
            for (tags, kind) in [
                (15 * TAG, ErrorKind::InvalidArgument),
                (17 * TAG, ErrorKind::InvalidArgument),
            ] {
                let (buf, tags) = (DmaBuf::zeroed(16 * BLOCK)?, DmaBuf::zeroed(tags)?);
                let (result, (buf, tags)) = channel.write_with_metadata(buf, tags, 0).await.into_parts();
                assert_eq!(result.unwrap_err().kind(), kind);
                let error = channel
                    .read_with_metadata(buf, tags, 0)
                    .await
                    .into_result()
                    .unwrap_err();
                assert_eq!(error.kind(), kind);
                assert!(error.to_string().contains("128 bytes of metadata"), "{error}");
            }
            let (buf, tags) = (DmaBuf::zeroed(BLOCK)?, DmaBuf::zeroed(TAG)?);
            let beyond = channel.read_with_metadata(buf, tags, 64 * BLOCK as u64).await;
            assert_eq!(beyond.err().map(|e| e.kind()), Some(ErrorKind::OutOfRange));
            let (buf, tags) = beyond.1;
            drop(channel);
            descriptor.close().await?;
            registered.unregister().await?;

            let ram = bdev::malloc::create("ram", 64, BLOCK as u32)?;
            assert!(ram.supports(IoType::Read) && ram.metadata().is_none());
            let (descriptor, channel) = open("ram")?;
            let (result, (buf, tags)) = channel.read_with_metadata(buf, tags, 0).await.into_parts();
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            let error = channel
                .write_with_metadata(buf, tags, 0)
                .await
                .into_result()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            descriptor.close().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
