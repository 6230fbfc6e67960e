//! Block devices written in Rust: what they are asked, and what becomes of it.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::ensure;
use common::bdev::{LIMIT, MIB, open, pattern, poll_once, read, register, write};
use common::disk::{DROPPED, Fate, TestDisk};
use common::{builder, isolated, run};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{Bdev, Mode, Uuid};
use spdk_rs::bdev_module::{Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, NvmeStatus, bdev_module, op};

#[test]
fn it_is_a_block_device_like_any_other() {
    isolated("it_is_a_block_device_like_any_other", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            assert_eq!(registered.name(), "rust0");
            let found = Bdev::find("rust0")?;
            assert_eq!((found.block_size(), found.size()), (512, MIB as u64));
            assert_eq!((found.product(), found.alignment()), ("Test disk", 1));
            assert!(!found.uuid().is_nil(), "SPDK makes one up");

            let (descriptor, channel) = open("rust0")?;
            let data = pattern(64 << 10, 3);
            write(&channel, &data, 4096).await?;
            assert_eq!(read(&channel, data.len(), 4096).await?, data);
            assert_eq!(disk.content()[4096..][..data.len()], data);
            channel.write_zeroes(4096, 512).await?;
            channel.unmap(8192, 1024).await?;
            channel.flush().await?;
            channel.reset().await?;
            let content = disk.content();
            assert_eq!(content[4096..4608], [0; 512]);
            assert_eq!(content[4608..8192], data[512..4096]);
            assert_eq!(content[8192..9216], [0; 1024]);
            let able = [Kind::WriteZeroes, Kind::Unmap, Kind::Flush, Kind::Reset];
            assert_eq!(able.map(|kind| disk.seen(kind)), [1; 4]);

            assert_eq!(disk.channels(), 1);
            drop(channel);
            descriptor.close().await?;
            timeout(LIMIT, registered.unregister()).await??;
            assert_eq!((disk.channels(), Arc::strong_count(&disk)), (0, 1));
            assert_eq!(Bdev::find("rust0").unwrap_err().kind(), ErrorKind::NotFound);
            // The name is free again.
            timeout(LIMIT, disk.register("rust0")?.unregister()).await??;
            assert_eq!(DROPPED.load(Ordering::Acquire), 0);
            drop(disk);
            assert_eq!(DROPPED.load(Ordering::Acquire), 1);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn it_can_what_it_says_and_no_more() {
    isolated("it_can_what_it_says_and_no_more", || {
        run(async {
            let uuid = Uuid::from_u128(0x1234_5678);
            let properties = Properties::new(4096, 16)
                .product("Reads only")
                .uuid(uuid)
                .alignment(4096)
                .read_only();
            let disk = TestDisk::with(properties, 16 * 4096);
            let registered = register(&disk, "rom").await?;
            let found = Bdev::find(&uuid.to_string())?;
            assert_eq!((found.name(), found.product()), ("rom", "Reads only"));
            assert_eq!((found.block_size(), found.alignment()), (4096, 4096));
            let (_descriptor, channel) = open("rom")?;
            read(&channel, 4096, 0).await?;
            let refused = [
                write(&channel, &[0; 4096], 0).await,
                channel.write_zeroes(0, 4096).await,
                channel.unmap(0, 4096).await,
                channel.reset().await,
            ];
            for result in refused {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
            }
            channel.flush().await?; // nothing to flush
            assert_eq!(Kind::ALL.map(|kind| disk.seen(kind)), [1, 0, 0, 0, 0, 0]);
            timeout(LIMIT, registered.unregister()).await??;

            // What SPDK writes itself, in pieces, for a device that cannot write zeroes.
            let disk = TestDisk::with(Properties::new(512, 2048), MIB);
            let registered = register(&disk, "plain").await?;
            let (_descriptor, channel) = open("plain")?;
            write(&channel, &pattern(8192, 1), 0).await?;
            channel.write_zeroes(0, 4096).await?;
            assert_eq!(disk.content()[..4096], [0; 4096]);
            assert_eq!(disk.content()[4096..8192], pattern(8192, 1)[4096..]);
            assert_eq!(disk.seen(Kind::WriteZeroes), 0);
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_cannot_be_registered_is_refused_whole() {
    isolated("what_cannot_be_registered_is_refused_whole", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            for (name, properties, kind) in [
                ("rust0", Properties::new(512, 8), ErrorKind::AlreadyExists),
                ("", Properties::new(512, 8), ErrorKind::InvalidArgument),
                ("a\0b", Properties::new(512, 8), ErrorKind::InvalidArgument),
                ("rust1", Properties::new(500, 8), ErrorKind::InvalidArgument),
                ("rust1", Properties::new(512, 0), ErrorKind::InvalidArgument),
                (
                    "rust1",
                    Properties::new(512, 8).alignment(3),
                    ErrorKind::InvalidArgument,
                ),
            ] {
                let error = bdev_module::register(name, TestDisk::with(properties, 4096)).unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
            }
            assert_eq!(
                DROPPED.load(Ordering::Acquire),
                6,
                "each refused device is dropped"
            );
            let worker = spdk_rs::reactor::Thread::create("worker", 0)?;
            let elsewhere =
                worker.spawn_on(|| async { TestDisk::new(4096).register("rust1").unwrap_err().kind() })?;
            assert_eq!(elsewhere.await?, ErrorKind::WrongThread);
            assert!(Bdev::find("rust1").is_err());

            // A thread that cannot have a channel is told so, and another attempt may follow.
            let descriptor = Bdev::find("rust0")?.open(Mode::ReadWrite)?;
            disk.refuse_channels(Some(ErrorKind::Busy));
            assert_eq!(descriptor.channel().unwrap_err().kind(), ErrorKind::NoMemory);
            disk.refuse_channels(None);
            write(&descriptor.channel()?, &[1; 512], 0).await?;
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn each_status_arrives() {
    isolated("each_status_arrives", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            let nvme = |code_type, code| NvmeStatus {
                code_type,
                code,
                cdw0: 7,
            };
            for (fate, kind, status) in [
                (Fate::End(Status::Failed), ErrorKind::Io, (0, 0x06)),
                (Fate::End(Status::Aborted), ErrorKind::Canceled, (0, 0x07)),
                (Fate::End(Status::Nvme(nvme(2, 0x81))), ErrorKind::Io, (2, 0x81)),
                (
                    Fate::End(Status::Nvme(nvme(0, 0x80))),
                    ErrorKind::OutOfRange,
                    (0, 0x80),
                ),
                (Fate::DoneButEnd(Status::Failed), ErrorKind::Io, (0, 0x06)),
                // Nobody has completed it: it fails, and is not lost.
                (Fate::Dropped, ErrorKind::Io, (0, 0x06)),
            ] {
                // The third write from here on, and none before or after it.
                write(&channel, &[0; 512], 3 * 512).await?;
                disk.fail(Kind::Write, 3, fate);
                for n in 1..=4_u8 {
                    let result = write(&channel, &[n; 512], u64::from(n) * 512).await;
                    if n != 3 {
                        result?;
                        continue;
                    }
                    let error = result.unwrap_err();
                    let got = error.nvme_status().expect("a status");
                    assert_eq!(
                        (error.kind(), got.code_type, got.code),
                        (kind, status.0, status.1),
                        "{fate:?}"
                    );
                    if let Fate::End(Status::Nvme(_)) = fate {
                        assert_eq!(got.cdw0, 7);
                    }
                }
                let third = u8::from(matches!(fate, Fate::DoneButEnd(_))) * 3;
                assert_eq!(disk.content()[3 * 512..4 * 512], [third; 512], "{fate:?}");
                disk.fail(Kind::Flush, 1, fate);
                assert_eq!(channel.flush().await.unwrap_err().kind(), kind, "{fate:?}");
            }
            assert_eq!(op::outstanding(), 0);
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn short_of_memory_it_is_asked_again() {
    isolated("short_of_memory_it_is_asked_again", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            // Alone on the channel, where SPDK itself would wait for ever.
            disk.fail_times(Kind::Write, 1, 5, Fate::End(Status::NoMemory));
            write(&channel, &pattern(4096, 9), 0).await?;
            assert_eq!(disk.seen(Kind::Write), 6);
            assert_eq!(disk.content()[..4096], pattern(4096, 9));

            // Among others, some of them held back.
            disk.hold();
            let mut held = Vec::new();
            for n in 0..4_u64 {
                let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[1; 512])?, n * 512));
                assert!(poll_once(io.as_mut()).is_pending());
                held.push(io);
            }
            disk.fail_times(Kind::Write, 1, 3, Fate::End(Status::NoMemory));
            let mut late = Vec::new();
            for n in 4..10_u64 {
                let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[2; 512])?, n * 512));
                assert!(poll_once(io.as_mut()).is_pending());
                late.push(io);
            }
            sleep(Duration::from_millis(5)).await;
            assert_eq!(
                disk.seen(Kind::Write),
                11,
                "the first of them; SPDK holds the others"
            );
            disk.release();
            for io in held.into_iter().chain(late) {
                timeout(LIMIT, io).await?.into_result()?;
            }
            assert_eq!(disk.content()[..2048], [1; 2048]);
            assert_eq!(disk.content()[2048..5120], [2; 3072]);

            // A reset cannot wait.
            disk.fail(Kind::Reset, 1, Fate::End(Status::NoMemory));
            assert_eq!(
                timeout(LIMIT, channel.reset()).await?.unwrap_err().kind(),
                ErrorKind::Io
            );
            timeout(LIMIT, channel.reset()).await??;
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn it_ends_when_it_is_told_and_not_before() {
    isolated("it_ends_when_it_is_told_and_not_before", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            disk.hold();
            let mut first = Box::pin(channel.write(DmaBuf::copy_of(&[5; 512])?, 0));
            let mut second = Box::pin(channel.write(DmaBuf::copy_of(&[6; 512])?, 512));
            assert!(poll_once(first.as_mut()).is_pending());
            assert!(poll_once(second.as_mut()).is_pending());
            sleep(Duration::from_millis(20)).await;
            assert_eq!(op::outstanding(), 2);
            let mut held = disk.take_held();
            assert_eq!(held.len(), 2);

            // The later one first, from a thread that SPDK does not know.
            let io = held.pop().expect("two");
            assert_eq!(
                format!("{io:?}"),
                "Io { kind: Write, offset_blocks: 1, num_blocks: 1 }"
            );
            let other = std::thread::spawn(move || io.complete(Status::Success));
            timeout(LIMIT, second).await?.into_result()?;
            other.join().expect("no panic");
            assert!(poll_once(first.as_mut()).is_pending());
            drop(held);
            let error = timeout(LIMIT, first).await?.into_result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_store_lives_on_it() {
    isolated("a_store_lives_on_it", || {
        run(async {
            let disk = TestDisk::new(64 * MIB);
            let registered = register(&disk, "base").await?;
            let options = StoreOptions::default().cluster_size(MIB as u32);
            let store = LvolStore::create("base", "lvs", options).await?;
            assert_eq!(Bdev::find("base")?.claimed_by(), Some("lvol"));
            let volume = store
                .create_lvol("vol", 8 * MIB as u64, Provisioning::Thin)
                .await?;
            let (descriptor, channel) = open("lvs/vol")?;
            let data = pattern(MIB, 5);
            write(&channel, &data, 0).await?;
            let snapshot = volume.snapshot("snap").await?;
            write(&channel, &pattern(4096, 6), 0).await?;
            assert_eq!(read(&channel, 4096, 0).await?, pattern(4096, 6));
            assert_eq!(read(&channel, MIB - 4096, 4096).await?, data[4096..]);

            // The device fails a read beneath: it is told above.
            let broken = Status::Nvme(NvmeStatus {
                code_type: 2,
                code: 0x81,
                cdw0: 0,
            });
            disk.fail(Kind::Read, 1, Fate::End(broken));
            assert_eq!(read(&channel, 4096, 0).await.unwrap_err().kind(), ErrorKind::Io);
            assert_eq!(read(&channel, 4096, 0).await?, pattern(4096, 6));
            drop(channel);
            descriptor.close().await?;
            volume.destroy().await?;
            snapshot.destroy().await?;
            store.destroy().await?;
            assert!(disk.seen(Kind::Unmap) + disk.seen(Kind::WriteZeroes) > 0);
            timeout(LIMIT, registered.unregister()).await??;
            assert_eq!((disk.channels(), Arc::strong_count(&disk)), (0, 1));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn spdks_own_devices_lie_on_it() {
    isolated("spdks_own_devices_lie_on_it", || {
        // SPDK makes it as soon as the device beneath appears: inside of `register`.
        let config = r#"{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_passthru_create",
            "params": {"base_bdev_name": "rust0", "name": "pass0"}}]}]}"#;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), config).expect("a file");
        let runtime = builder().json_config(file.path()).build().expect("options");
        let ended = runtime.run(async {
            let disk = TestDisk::new(MIB);
            let registered = disk.register("rust0")?;
            let slow = delay::create("slow0", "pass0", Latency::all(Duration::from_millis(2)))?;
            ensure!(slow.num_blocks() == 2048);
            let (descriptor, channel) = open("slow0")?;
            write(&channel, &pattern(8192, 7), 512).await?;
            assert_eq!(read(&channel, 8192, 512).await?, pattern(8192, 7));
            assert_eq!(disk.content()[512..8704], pattern(8192, 7));
            disk.fail(Kind::Write, 1, Fate::End(Status::NoMemory));
            write(&channel, &pattern(512, 8), 0).await?;
            channel.reset().await?;
            assert_eq!(disk.seen(Kind::Reset), 1);
            // The pile goes from the bottom, with I/O on its way.
            let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[1; 512])?, 0));
            assert!(poll_once(io.as_mut()).is_pending());
            timeout(LIMIT, registered.unregister()).await??;
            timeout(LIMIT, io).await?.into_result()?;
            assert!(descriptor.is_removed());
            assert_eq!((disk.channels(), Arc::strong_count(&disk)), (0, 1));
            anyhow::Ok(())
        });
        ended.expect("started").expect("the scenario");
    });
}
