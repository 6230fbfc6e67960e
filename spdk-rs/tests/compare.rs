//! Comparing, and writing if equal, where SPDK does it for the device.

mod common;

use std::rc::Rc;

use anyhow::Result;
use common::bdev::{open, read, register, write};
use common::disk::{Fate, TestDisk};
use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, Mode};
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::buf::{DmaBuf, DmaBufList};
use spdk_rs::reactor::timeout;
use spdk_rs::{ErrorKind, op};

const LIMIT: std::time::Duration = common::bdev::LIMIT;
const BLOCK: usize = 512;

fn block(byte: u8) -> Result<DmaBuf> {
    Ok(DmaBuf::copy_of(&[byte; BLOCK])?)
}

/// As many buffers as there are pieces, of these lengths.
fn pieces(data: &[u8], lens: &[usize]) -> Result<DmaBufList> {
    let mut at = 0;
    let mut bufs = Vec::new();
    for len in lens {
        let mut buf = DmaBuf::new(len + 64)?; // what is not initialised is not compared
        buf.extend_from_slice(&data[at..at + len])?;
        bufs.push(buf);
        at += len;
    }
    Ok(DmaBufList::new(bufs))
}

#[test]
fn what_differs_is_told() {
    isolated("what_differs_is_told", || {
        run(async {
            bdev::malloc::create("ram", 2048, BLOCK as u32)?;
            let file = tempfile::NamedTempFile::new()?;
            file.as_file().set_len(1 << 20)?;
            bdev::aio::create("file", file.path(), BLOCK as u32)?;
            for name in ["ram", "file"] {
                let (descriptor, channel) = open(name)?;
                let data = common::bdev::pattern(4 * BLOCK, 3);
                write(&channel, &data, 1024).await?;
                let (result, buf) = channel.compare(DmaBuf::copy_of(&data)?, 1024).await.into_parts();
                result?;
                assert_eq!(buf.as_slice(), data, "the buffer comes back as it was");
                let (result, mut buf) = channel.compare(buf, 512).await.into_parts();
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Miscompare, "{error}");
                let status = error.nvme_status().expect("a status");
                assert_eq!((status.code_type, status.code), (2, 0x85));
                assert_eq!((error.operation(), error.device()), ("compare", name));
                // The last byte counts, too.
                *buf.as_mut_slice().last_mut().expect("a byte") ^= 1;
                let differs = channel.compare(buf, 1024).await;
                assert_eq!(differs.err().map(|e| e.kind()), Some(ErrorKind::Miscompare));

                let list = pieces(&data, &[100, 0, 1000, 948])?;
                let ((), mut list) = channel.comparev(list, 1024).await.ok()?;
                list.bufs_mut()[2].as_mut_slice()[999] ^= 1;
                let differs = channel.comparev(list, 1024).await;
                assert_eq!(differs.err().map(|e| e.kind()), Some(ErrorKind::Miscompare));

                let reader = Bdev::find(name)?.open(Mode::ReadOnly)?;
                reader
                    .channel()?
                    .compare(DmaBuf::copy_of(&data)?, 1024)
                    .await
                    .into_result()?;
                for (buf, offset, kind) in [
                    (DmaBuf::zeroed(BLOCK)?, 1 << 20, ErrorKind::OutOfRange),
                    (DmaBuf::zeroed(BLOCK)?, 5, ErrorKind::Misaligned),
                    (DmaBuf::new(BLOCK)?, 0, ErrorKind::InvalidArgument),
                ] {
                    let refused = channel.compare(buf, offset).await;
                    assert_eq!(refused.err().map(|e| e.kind()), Some(kind));
                }
                drop(channel);
                descriptor.close().await?;
            }
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_is_equal_is_written_over() {
    isolated("what_is_equal_is_written_over", || {
        run(async {
            bdev::malloc::create("ram", 2048, BLOCK as u32)?;
            let (descriptor, channel) = open("ram")?;
            let (result, (zero, one)) = channel
                .compare_and_write(block(0)?, block(1)?, 512)
                .await
                .into_parts();
            result?;
            assert_eq!(
                (zero.as_slice(), one.as_slice()),
                (&[0; BLOCK][..], &[1; BLOCK][..])
            );
            assert_eq!(read(&channel, 1536, 0).await?[512..1024], [1; BLOCK]);

            let (result, (zero, two)) = channel.compare_and_write(zero, block(2)?, 512).await.into_parts();
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Miscompare, "{error}");
            assert_eq!(
                read(&channel, BLOCK, 512).await?,
                [1; BLOCK],
                "nothing was written"
            );
            let lists = (
                pieces(&[1; BLOCK], &[12, 500])?,
                pieces(&[9; BLOCK], &[256, 256])?,
            );
            let ((), (_, nines)) = channel.comparev_and_writev(lists.0, lists.1, 512).await.ok()?;
            assert_eq!(nines.len(), BLOCK);
            assert_eq!(read(&channel, BLOCK, 512).await?, [9; BLOCK]);

            // One block at a time, and the same length on both sides.
            let long = DmaBuf::zeroed(2 * BLOCK)?;
            let unequal = channel.compare_and_write(long, two, 4096).await;
            assert_eq!(unequal.err().map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
            let (long, two) = unequal.1;
            let data = DmaBuf::zeroed(2 * BLOCK)?;
            let refused = channel.compare_and_write(long, data, 4096).await;
            let error = refused.err().expect("too long");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains("no more than 1"), "{error}");
            let reader = Bdev::find("ram")?.open(Mode::ReadOnly)?;
            let refused = reader.channel()?.compare_and_write(zero, two, 0).await;
            assert_eq!(refused.err().map(|e| e.kind()), Some(ErrorKind::ReadOnly));
            descriptor.close().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Tasks that count up in one block, each by what it has read: none gets lost.
#[test]
fn of_many_at_once_one_wins() {
    isolated("of_many_at_once_one_wins", || {
        run(async {
            bdev::malloc::create("ram", 2048, BLOCK as u32)?;
            let slow = bdev::delay::Latency::all(std::time::Duration::from_micros(50));
            let slow = bdev::delay::create("slow", "ram", slow)?;
            let descriptor = slow.open(Mode::ReadWrite)?;
            let channel = Rc::new(descriptor.channel()?);
            let count = |channel: Rc<bdev::Channel>| async move {
                for _ in 0..20 {
                    loop {
                        let ((), old) = channel.read(DmaBuf::new(BLOCK)?, 0).await.ok()?;
                        let value = u64::from_le_bytes(old.as_slice()[..8].try_into().expect("8 bytes"));
                        let mut new = DmaBuf::zeroed(BLOCK)?;
                        new.as_mut_slice()[..8].copy_from_slice(&(value + 1).to_le_bytes());
                        match channel.compare_and_write(old, new, 0).await.into_result() {
                            Ok(()) => break,
                            Err(error) if error.kind() == ErrorKind::Miscompare => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Ok(())
            };
            let tasks: Vec<_> = (0..8)
                .map(|_| spdk_rs::spawn(count(Rc::clone(&channel))))
                .collect();
            for task in tasks {
                timeout(LIMIT, task).await???;
            }
            assert_eq!(read(&channel, BLOCK, 0).await?[..8], 160_u64.to_le_bytes());
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_failing_read_is_no_miscompare_and_dropped_ones_come_home() {
    isolated(
        "a_failing_read_is_no_miscompare_and_dropped_ones_come_home",
        || {
            run(async {
                let disk = TestDisk::new(1 << 20);
                let registered = register(&disk, "rust").await?;
                let (descriptor, channel) = open("rust")?;
                disk.fail(Kind::Read, 1, Fate::End(Status::Failed));
                let failed = channel.compare(block(0)?, 0).await;
                assert_eq!(failed.err().map(|e| e.kind()), Some(ErrorKind::Io));
                channel.compare(block(0)?, 0).await.into_result()?;

                disk.hold();
                let mut compare = Box::pin(channel.compare(block(0)?, 0));
                assert!(common::bdev::poll_once(compare.as_mut()).is_pending());
                let mut swap = Box::pin(channel.compare_and_write(block(0)?, block(7)?, 512));
                assert!(common::bdev::poll_once(swap.as_mut()).is_pending());
                drop((compare, swap));
                assert_eq!(op::outstanding(), 2);
                common::bdev::until("both reads have come", || disk.seen(Kind::Read) >= 4).await?;
                disk.release();
                common::bdev::until("both have ended", || op::outstanding() == 0).await?;
                assert_eq!(disk.content()[512..1024], [7; BLOCK], "what C has goes on");
                drop(channel);
                descriptor.close().await?;
                registered.unregister().await?;
                anyhow::Ok(())
            })
            .expect("the scenario");
        },
    );
}
