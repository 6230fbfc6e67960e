//! Block devices over others, and on files by io_uring: made, used, refused, deleted.

mod common;

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, Raw, open, pattern, poll_once, read, until, write};
use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, IoType, Mode, error, malloc, passthru, split};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::timeout;
use spdk_rs::{Error, ErrorKind};

const MIB: u64 = 1 << 20;

fn kind<T>(result: spdk_rs::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error: Error| error.kind())
}

fn is_there(name: &str) -> bool {
    Bdev::find(name).is_ok()
}

/// A RAM disk, and over it a device that claims it: what every `create` over a base must refuse.
async fn refusals<T>(create: impl Fn(&str) -> spdk_rs::Result<T>) -> Result<()> {
    malloc::create("claimed", 2048, 512)?;
    bdev::delay::create("above", "claimed", bdev::delay::Latency::NONE)?;
    ensure!(kind(create("claimed")) == Some(ErrorKind::PermissionDenied));
    ensure!(kind(create("absent")) == Some(ErrorKind::NotFound));
    ensure!(kind(create("a\0b")) == Some(ErrorKind::InvalidArgument));
    bdev::delay::delete("above").await?;

    // It is going, and waits for somebody who has it open and does not let go.
    let holder = Raw::open(c"claimed");
    let mut gone = Box::pin(malloc::delete("claimed"));
    ensure!(poll_once(gone.as_mut()).is_pending());
    ensure!(kind(create("claimed")) == Some(ErrorKind::Busy));
    holder.close();
    timeout(LIMIT, gone).await??;
    Ok(())
}

#[test]
fn error_fails_and_holds() {
    isolated("error_fails_and_holds", || {
        run(async {
            let ram = malloc::create("ram", 2048, 512)?;
            let disk = error::create(&ram.uuid().to_string())?;
            assert_eq!((disk.name(), disk.size()), ("EE_ram", MIB));
            assert_eq!(Bdev::find("ram")?.claimed_by(), Some("error"));
            let (descriptor, channel) = open("EE_ram")?;
            let old = pattern(4096, 1);
            write(&channel, &old, 0).await?;

            // Two writes and no more; reads are not concerned, and nothing has reached the base.
            error::fail("EE_ram", IoType::Write, 2)?;
            for seed in [2, 3] {
                let failed = write(&channel, &pattern(4096, seed), 0).await.unwrap_err();
                assert_eq!(failed.kind(), ErrorKind::Io, "{failed}");
                assert_eq!(read(&channel, 4096, 0).await?, old);
            }
            write(&channel, &pattern(4096, 4), 0).await?;
            assert_eq!(read(&channel, 4096, 0).await?, pattern(4096, 4));
            error::fail("EE_ram", IoType::Unmap, 1)?;
            assert_eq!(kind(channel.unmap(0, 4096).await), Some(ErrorKind::Io));
            error::fail("EE_ram", IoType::Flush, 1)?;
            assert_eq!(kind(channel.flush().await), Some(ErrorKind::Io));
            error::fail("EE_ram", IoType::Read, u32::MAX)?;
            assert_eq!(kind(read(&channel, 512, 0).await), Some(ErrorKind::Io));
            error::fail("EE_ram", IoType::Read, 0)?;
            read(&channel, 512, 0).await?;
            assert_eq!(kind(channel.write_zeroes(0, 512).await), Some(ErrorKind::Io));

            // SAFETY: all I/O is on this thread.
            unsafe { error::hold("EE_ram", IoType::Read, 1)? };
            let mut held = Box::pin(channel.read(DmaBuf::new(512)?, 0));
            assert!(poll_once(held.as_mut()).is_pending());
            read(&channel, 512, 0).await?;
            assert!(poll_once(held.as_mut()).is_pending(), "others pass by it");
            channel.reset().await?;
            assert_eq!(
                kind(timeout(LIMIT, held).await?.into_result()),
                Some(ErrorKind::Io)
            );

            assert_eq!(
                kind(error::fail("EE_ram", IoType::Reset, 1)),
                Some(ErrorKind::Unsupported)
            );
            assert_eq!(
                kind(error::fail("ram", IoType::Read, 1)),
                Some(ErrorKind::InvalidArgument)
            );
            assert_eq!(
                kind(error::fail("absent", IoType::Read, 1)),
                Some(ErrorKind::NotFound)
            );
            assert_eq!(kind(error::delete("ram").await), Some(ErrorKind::InvalidArgument));
            drop(channel);
            descriptor.close().await?;
            error::delete("EE_ram").await?;
            assert_eq!(Bdev::find("ram")?.claimed_by(), None);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn error_is_refused_and_goes_with_its_base() {
    isolated("error_is_refused_and_goes_with_its_base", || {
        run(async {
            refusals(error::create).await?;
            malloc::create("ram", 2048, 512)?;
            malloc::create("EE_ram", 2048, 512)?;
            assert_eq!(kind(error::create("ram")), Some(ErrorKind::AlreadyExists));
            assert_eq!(Bdev::find("ram")?.claimed_by(), None);
            malloc::delete("EE_ram").await?;
            for _ in 0..2 {
                error::create("ram")?;
                timeout(LIMIT, malloc::delete("ram")).await??;
                assert!(!is_there("EE_ram"));
                malloc::create("ram", 2048, 512)?;
                assert!(!is_there("EE_ram"), "it does not come back by itself");
            }
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn passthru_passes_on() {
    isolated("passthru_passes_on", || {
        run(async {
            refusals(|base| passthru::create("pass", base)).await?;
            let ram = malloc::create("ram", 2048, 512)?;
            assert_eq!(
                kind(passthru::create("ram", "ram")),
                Some(ErrorKind::AlreadyExists)
            );
            assert_eq!(
                kind(passthru::create("", "ram")),
                Some(ErrorKind::InvalidArgument)
            );
            passthru::create("pass", &ram.uuid().to_string())?;
            let (descriptor, channel) = open("pass")?;
            write(&channel, &pattern(8192, 5), 512).await?;
            channel.write_zeroes(512, 512).await?;
            channel.flush().await?;
            channel.reset().await?;
            drop(channel);
            descriptor.close().await?;
            assert_eq!(
                kind(passthru::delete("ram").await),
                Some(ErrorKind::InvalidArgument)
            );
            passthru::delete("pass").await?;
            assert_eq!(kind(passthru::delete("pass").await), Some(ErrorKind::NotFound));
            let (_descriptor, channel) = open("ram")?;
            let mut expected = pattern(8192, 5);
            expected[..512].fill(0);
            assert_eq!(read(&channel, 8192, 512).await?, expected);

            // It goes with its base, and SPDK makes it again with a new one.
            passthru::create("pass", "ram")?;
            timeout(LIMIT, malloc::delete("ram")).await??;
            assert!(!is_there("pass"));
            malloc::create("other", 2048, 512)?;
            assert_eq!(
                kind(passthru::create("pass", "other")),
                Some(ErrorKind::AlreadyExists)
            );
            malloc::create("ram", 2048, 512)?;
            assert!(is_there("pass"));
            passthru::delete("pass").await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn split_into_parts() {
    isolated("split_into_parts", || {
        run(async {
            refusals(|base| split::create(base, 2, None)).await?;
            malloc::create("ram", 8 * 2048 + 2048, 512)?;
            malloc::create("odd", 2048, 1536)?;
            for (base, count, mib, expected) in [
                ("ram", 0, None, ErrorKind::InvalidArgument),
                ("ram", 1, Some(0), ErrorKind::InvalidArgument),
                ("odd", 1, Some(1), ErrorKind::InvalidArgument),
                ("ram", 10, Some(1), ErrorKind::OutOfRange),
                ("ram", u32::MAX, None, ErrorKind::OutOfRange),
                ("ram", u32::MAX, Some(u64::MAX), ErrorKind::OutOfRange),
            ] {
                let refused = split::create(base, count, mib).unwrap_err();
                assert_eq!(refused.kind(), expected, "{refused}");
            }
            malloc::create("ramp1", 8, 512)?;
            assert_eq!(
                kind(split::create("ram", 2, None)),
                Some(ErrorKind::AlreadyExists)
            );
            malloc::delete("ramp1").await?;

            let parts = split::create("ram", 2, Some(4))?;
            let names: Vec<&str> = parts.iter().map(Bdev::name).collect();
            assert_eq!(names, ["ramp0", "ramp1"]);
            assert!(parts.iter().all(|part| part.size() == 4 * MIB));
            let (first, zero) = open("ramp0")?;
            let (second, one) = open("ramp1")?;
            write(&zero, &pattern(4096, 1), 0).await?;
            write(&one, &pattern(4096, 2), 4 * MIB - 4096).await?;
            assert_eq!(
                kind(zero.write_zeroes(4 * MIB, 512).await),
                Some(ErrorKind::OutOfRange)
            );
            let base = Bdev::find("ram")?.open(Mode::ReadOnly)?;
            let whole = base.channel()?;
            assert_eq!(read(&whole, 4096, 0).await?, pattern(4096, 1));
            assert_eq!(read(&whole, 4096, 8 * MIB - 4096).await?, pattern(4096, 2));

            // The delete waits for each of them.
            drop((zero, one));
            let mut delete = spdk_rs::spawn(split::delete("ram"));
            timeout(LIMIT, first.removed()).await?;
            timeout(LIMIT, second.removed()).await?;
            timeout(LIMIT, &mut delete).await???;
            assert!(!is_there("ramp0") && !is_there("ramp1"));
            assert_eq!(Bdev::find("ram")?.claimed_by(), None);
            assert_eq!(kind(split::delete("ram").await), Some(ErrorKind::InvalidArgument));
            assert_eq!(kind(split::delete("absent").await), Some(ErrorKind::NotFound));

            // Equal parts; they go with their base.
            drop((whole, base));
            let parts = split::create("ram", 4, None)?;
            assert_eq!((parts.len(), parts[3].num_blocks()), (4, (8 * 2048 + 2048) / 4));
            timeout(LIMIT, malloc::delete("ram")).await??;
            assert!((0..4).all(|n| !is_there(&format!("ramp{n}"))));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[cfg(feature = "raid")]
#[test]
fn raid0_stripes() {
    use spdk_rs::bdev::raid0;
    isolated("raid0_stripes", || {
        run(async {
            refusals(|base| raid0::create("raid", &[base], 4)).await?;
            malloc::create("a", 2048, 512)?;
            malloc::create("b", 4096, 512)?;
            malloc::create("large", 64, 4096)?;
            malloc::create("odd", 2048, 1536)?;
            for (bases, strip, expected) in [
                (&[][..], 4, ErrorKind::InvalidArgument),
                (&["a"; 256][..], 4, ErrorKind::InvalidArgument),
                (&["a", "b"][..], 3, ErrorKind::InvalidArgument),
                (&["a", "b"][..], 0, ErrorKind::InvalidArgument),
                (&["a", "large"][..], 4, ErrorKind::InvalidArgument),
                (&["odd"][..], 4, ErrorKind::InvalidArgument),
                (&["large"][..], 2, ErrorKind::OutOfRange),
                (&["a", "b"][..], 2048, ErrorKind::OutOfRange),
                (&["a", "b"][..], 1 << 31, ErrorKind::OutOfRange),
                (&["a", "a"][..], 4, ErrorKind::AlreadyExists),
                (&["a", "absent"][..], 4, ErrorKind::NotFound),
            ] {
                let refused = raid0::create("raid", bases, strip).unwrap_err();
                assert_eq!(refused.kind(), expected, "{refused}");
            }
            assert_eq!(
                kind(raid0::create("a", &["b"], 4)),
                Some(ErrorKind::AlreadyExists)
            );
            assert_eq!(kind(raid0::delete("a").await), Some(ErrorKind::InvalidArgument));
            assert_eq!(kind(raid0::delete("raid").await), Some(ErrorKind::NotFound));
            let claims =
                |names: [&str; 2]| names.map(|name| Bdev::find(name).map(|b| b.claimed_by().is_some()));
            assert_eq!(
                claims(["a", "b"]).map(Result::unwrap),
                [false, false],
                "nothing is left behind"
            );

            let raid = raid0::create("raid", &["a", "b"], 4)?;
            assert_eq!(raid.size(), 2 * MIB, "twice the smaller one");
            let (descriptor, channel) = open("raid")?;
            let data = pattern(16384, 9);
            write(&channel, &data, 0).await?;
            assert_eq!(read(&channel, 16384, 0).await?, data);
            for (base, strips) in [("a", [0, 2]), ("b", [1, 3])] {
                let base = Bdev::find(base)?.open(Mode::ReadOnly)?;
                let held = read(&base.channel()?, 8192, 0).await?;
                let expected: Vec<u8> = strips.map(|n| &data[n * 4096..][..4096]).concat();
                assert_eq!(held, expected);
            }
            drop(channel);
            let (first, second) = (raid0::delete("raid"), raid0::delete("raid"));
            let (first, second) = (spdk_rs::spawn(first), spdk_rs::spawn(second));
            let results = [timeout(LIMIT, first).await??, timeout(LIMIT, second).await??];
            assert!(results[0].is_ok(), "{:?}", results[0]);
            assert_eq!(results[1].as_ref().err().map(Error::kind), Some(ErrorKind::Busy));
            assert!(descriptor.is_removed() && !is_there("raid"));
            assert_eq!(claims(["a", "b"]).map(Result::unwrap), [false, false]);

            // A base goes, and the RAID with it. The other base is free once that is deleted, be it
            // after or while it goes.
            for early in [false, true] {
                raid0::create("raid", &["a", "b"], 4)?;
                let (descriptor, _channel) = open("raid")?;
                let gone = spdk_rs::spawn(malloc::delete("b"));
                if early {
                    spdk_rs::reactor::yield_now().await;
                    timeout(LIMIT, raid0::delete("raid")).await??;
                    timeout(LIMIT, gone).await???;
                } else {
                    timeout(LIMIT, gone).await???;
                    assert!(!is_there("raid") && descriptor.is_removed());
                    assert!(Bdev::find("a")?.claimed_by().is_some());
                    assert_eq!(
                        kind(raid0::create("raid", &["odd"], 4)),
                        Some(ErrorKind::InvalidArgument)
                    );
                    timeout(LIMIT, raid0::delete("raid")).await??;
                }
                assert_eq!(Bdev::find("a")?.claimed_by(), None);
                malloc::create("b", 4096, 512)?;
            }
            // A delete that nobody waits for ends all the same.
            raid0::create("raid", &["a", "b"], 4)?;
            let mut delete = Box::pin(raid0::delete("raid"));
            assert!(poll_once(delete.as_mut()).is_pending());
            drop(delete);
            until("the RAID is gone", || !is_there("raid")).await?;
            spdk_rs::reactor::sleep(std::time::Duration::from_millis(5)).await;
            raid0::create("raid", &["a", "b"], 4)?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[cfg(feature = "uring")]
mod by_uring {
    use super::*;
    use bdev::uring;

    #[test]
    fn uring_writes_and_refuses() {
        isolated("by_uring::uring_writes_and_refuses", || {
            run(async {
                let file = tempfile::NamedTempFile::new()?;
                file.as_file().set_len(4 * MIB)?;
                let disk = uring::create("ring", file.path(), 512)?;
                assert_eq!((disk.product(), disk.size()), ("URING bdev", 4 * MIB));
                let (descriptor, channel) = open("ring")?;
                write(&channel, &pattern(65536, 3), 4096).await?;
                assert_eq!(kind(channel.unmap(0, 512).await), Some(ErrorKind::Unsupported));
                channel.flush().await?; // nothing to do, it says
                drop(channel);
                descriptor.close().await?;
                assert_eq!(std::fs::read(file.path())?[4096..][..65536], pattern(65536, 3));

                assert_eq!(
                    kind(uring::create("ring", file.path(), 512)),
                    Some(ErrorKind::AlreadyExists)
                );
                let twice = uring::create("again", file.path(), 512).unwrap_err();
                assert_eq!(twice.kind(), ErrorKind::Busy);
                assert!(twice.to_string().contains("of this process already"), "{twice}");
                assert_eq!(
                    kind(uring::create("r", "/no/such/file", 512)),
                    Some(ErrorKind::NotFound)
                );
                for block_size in [0, 1, 256, 520, 8 << 20] {
                    let refused = uring::create("r", file.path(), block_size).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
                }
                let uneven = tempfile::NamedTempFile::new()?;
                uneven.as_file().set_len(5000)?;
                let refused = uring::create("r", uneven.path(), 512).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
                assert_eq!(kind(uring::delete("absent").await), Some(ErrorKind::NotFound));
                malloc::create("ram", 8, 512)?;
                assert_eq!(kind(uring::delete("ram").await), Some(ErrorKind::InvalidArgument));
                uring::delete("ring").await?;
                assert!(!is_there("ring") && file.path().exists());
                anyhow::Ok(())
            })
            .expect("the scenario");
        });
    }

    /// Only where the kernel can poll the disk beneath the temporary files.
    #[test]
    fn uring_reads() {
        const NAME: &str = "by_uring::uring_reads";
        if !common::is_child() {
            let output = common::run_child(NAME, &[]);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
            for line in text.lines().filter(|line| line.contains("SKIPPED")) {
                eprintln!("{line}");
            }
            return;
        }
        run(async {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), pattern(1 << 20, 3))?;
            file.as_file().sync_all()?;
            uring::create("ring", file.path(), 512)?;
            let (_descriptor, channel) = open("ring")?;
            match read(&channel, 65536, 4096).await {
                Ok(data) => assert_eq!(data, pattern(1 << 20, 3)[4096..][..65536]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    eprintln!(
                        "{NAME}: SKIPPED: the kernel does not poll the disk of {}",
                        file.path().display()
                    );
                }
            }
            anyhow::Ok(())
        })
        .expect("the scenario");
    }
}
