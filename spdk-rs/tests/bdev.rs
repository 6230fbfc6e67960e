//! Block devices: create, find, open, read, write.

mod common;

use std::ffi::CString;
use std::ptr::null_mut;

use anyhow::Result;
use common::bdev::register;
use common::disk::TestDisk;
use common::{builder, isolated, run};
use spdk_rs::ErrorKind;
use spdk_rs::bdev::{self, Bdev, IoType, Mode, Protection};
use spdk_rs::bdev_module::Properties;
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

#[test]
fn a_failing_device_is_told_with_its_status() {
    isolated("a_failing_device_is_told_with_its_status", || {
        run(async {
            let file = file_of(16)?;
            let descriptor = bdev::aio::create("aio0", file.path(), 512)?.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            file.as_file().set_len(8 << 20)?; // the device still believes in 16 MiB
            let (result, buf) = channel.read(DmaBuf::zeroed(4096)?, 12 << 20).await.into_parts();
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert_eq!((error.operation(), error.device()), ("read", "aio0"));
            assert!(error.nvme_status().is_some());
            let ((), _) = channel.read(buf, 0).await.ok()?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_exists_is_found_and_what_does_not_is_told() {
    isolated("what_exists_is_found_and_what_does_not_is_told", || {
        run(async {
            let disk = bdev::malloc::create("ram0", 2048, 4096)?;
            assert_eq!(
                (disk.num_blocks(), disk.block_size(), disk.size()),
                (2048, 4096, 8 << 20)
            );
            assert_eq!(disk.claimed_by(), None);
            assert_eq!(Bdev::find(&disk.uuid().to_string())?, disk);
            let stranger = bdev::Uuid::from_u128(7).to_string();
            for absent in ["ram1", "", &stranger, "a\0b"] {
                assert!(Bdev::find(absent).is_err(), "{absent}");
            }
            let descriptor = disk.open(Mode::ReadOnly)?;
            let second = disk.open(Mode::ReadWrite)?; // several may have it open
            drop(descriptor);
            drop(second);
            bdev::malloc::delete("ram0").await?;
            let gone = disk.open(Mode::ReadOnly).unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
            let gone = bdev::malloc::delete("ram0").await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");

            // Deleting it twice at once: the second one is told.
            let disk = bdev::malloc::create("ram0", 2048, 4096)?;
            let descriptor = disk.open(Mode::ReadOnly)?;
            let channel = descriptor.channel()?;
            let first = spdk_rs::spawn(bdev::malloc::delete("ram0"));
            let second = spdk_rs::spawn(bdev::malloc::delete("ram0"));
            let results = [first.await?, second.await?];
            assert!(results[0].is_ok());
            let busy = results[1].as_ref().unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
            let late = channel.read(DmaBuf::new(4096)?, 0).await;
            assert_eq!(late.err().map(|error| error.kind()), Some(ErrorKind::Removed));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn devices_tell_what_they_can_do() {
    isolated("devices_tell_what_they_can_do", || {
        run(async {
            let ram = bdev::malloc::create("ram", 2048, 512)?;
            for io_type in IoType::ALL {
                // Two of them with SPDK's help.
                let able = !matches!(
                    io_type,
                    IoType::NvmeAdmin | IoType::NvmeIo | IoType::NvmeIoWithMetadata
                );
                assert_eq!(ram.supports(io_type), able, "{io_type:?}");
            }
            assert!(ram.has_write_cache());
            assert_eq!((ram.write_unit(), ram.optimal_io_boundary()), (1, None));
            assert_eq!((ram.metadata(), ram.is_zoned()), (None, false));
            assert_eq!((ram.max_compare_and_write(), ram.optimal_open_zones()), (1, None));

            let protected = protected_null("protected")?;
            assert_eq!(protected.block_size(), 520);
            let metadata = protected.metadata().expect("metadata");
            assert_eq!((metadata.size, metadata.interleaved), (8, true));
            assert_eq!(metadata.protection, Some(Protection::Type1));
            assert!(!protected.has_write_cache());
            assert!(!protected.supports(IoType::Unmap) && !protected.supports(IoType::Flush));
            assert!(protected.supports(IoType::Abort) && protected.supports(IoType::Zcopy));

            let reads = Properties::new(512, 2048)
                .read_only()
                .optimal_io_boundary(16, true);
            let disk = TestDisk::with(reads, 2048 * 512);
            let registered = register(&disk, "reads").await?;
            let reads = Bdev::find("reads")?;
            assert_eq!(reads.optimal_io_boundary(), Some(16));
            assert!(reads.supports(IoType::Compare));
            for io_type in [
                IoType::Write,
                IoType::CompareAndWrite,
                IoType::Zcopy,
                IoType::WriteZeroes,
            ] {
                assert!(!reads.supports(io_type), "{io_type:?}");
            }
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// A null bdev with protection information at the end of each block, which SPDK makes from JSON alone.
fn protected_null(name: &str) -> Result<Bdev> {
    let c_name = CString::new(name)?;
    let mut bdev = null_mut();
    // SAFETY: on the app thread; a plain struct, for which zero is valid; the name is copied.
    let rc = unsafe {
        let mut opts: spdk_sys::spdk_null_bdev_opts = std::mem::zeroed();
        opts.name = c_name.as_ptr();
        opts.num_blocks = 2048;
        opts.block_size = 520;
        opts.md_size = 8;
        opts.md_interleave = true;
        opts.dif_type = spdk_sys::SPDK_DIF_TYPE1;
        spdk_sys::bdev_null_create(&mut bdev, &opts)
    };
    assert_eq!(rc, 0);
    Ok(Bdev::find(name)?)
}

/// SPDK makes zones on any device, by JSON alone.
#[test]
fn zones_are_told() {
    isolated("zones_are_told", || {
        let config = tempfile::NamedTempFile::new().expect("a file");
        let json = r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_create", "params": {"name": "ram", "num_blocks": 8192, "block_size": 512}},
            {"method": "bdev_zone_block_create", "params": {"name": "zoned", "base_bdev": "ram",
                "zone_capacity": 1024, "optimal_open_zones": 3}}]}]}"#;
        std::fs::write(config.path(), json).expect("written");
        let runtime = builder().json_config(config.path()).build().expect("options");
        let ended = runtime.run(async {
            let zoned = Bdev::find("zoned")?;
            assert!(zoned.is_zoned());
            assert_eq!(zoned.optimal_open_zones(), Some(3));
            anyhow::Ok(())
        });
        ended.expect("started").expect("the scenario");
    });
}
