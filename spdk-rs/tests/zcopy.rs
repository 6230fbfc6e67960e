//! Memory that devices lend: theirs (malloc), or SPDK's in their place.

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, MIB, open, pattern, poll_once, read, register, until, write};
use common::disk::{Fate, TestDisk};
use common::{isolated, run, run_with_small_pool};
use spdk_rs::bdev::{self, Bdev, Channel, Descriptor, IoType, Mode, Zcopy, delay::Latency};
use spdk_rs::bdev_module::{Kind, Registered, Status};
use spdk_rs::reactor::{Thread, sleep, timeout};
use spdk_rs::{Error, ErrorKind, op};

const BLOCK: usize = 4096;

/// What is begun; nothing else uses the blocks that these tests borrow.
fn borrow(
    channel: &Channel,
    offset: u64,
    len: usize,
    populate: bool,
) -> impl Future<Output = spdk_rs::Result<Zcopy>> {
    // SAFETY: as said above, and there are far less than a thousand at a time.
    unsafe { channel.zcopy(offset, len as u64, populate) }
}

async fn lent(channel: &Channel, offset: u64, len: usize, populate: bool) -> Result<Zcopy> {
    Ok(timeout(LIMIT, borrow(channel, offset, len, populate)).await??)
}

fn kind<T>(result: spdk_rs::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error: Error| error.kind())
}

async fn all_home() -> Result<()> {
    until("all came home", || op::outstanding() == 0).await
}

/// A RAM disk, whose memory is lent itself.
fn ram() -> Result<(Descriptor, Channel)> {
    bdev::malloc::create("ram", 8192, 512)?;
    open("ram")
}

/// A device in Rust, for which SPDK lends a buffer. It is orderly.
async fn orderly() -> Result<(Arc<TestDisk>, Registered, Descriptor, Channel)> {
    let disk = TestDisk::new(MIB);
    let registered = register(&disk, "rust0").await?;
    let (descriptor, channel) = open("rust0")?;
    Ok((disk, registered, descriptor, channel))
}

/// Reads, changes and stores; overwrites; abandons.
async fn use_it(channel: &Channel, in_place: bool) -> Result<()> {
    let old = pattern(4 * BLOCK, 1);
    write(channel, &old, 0).await?;
    let at = BLOCK as u64;
    let mut memory = lent(channel, at, BLOCK, true).await?;
    ensure!((memory.len(), memory.capacity()) == (BLOCK, BLOCK));
    ensure!(memory.as_slice() == &old[BLOCK..2 * BLOCK], "populated");
    ensure!(memory.spare_capacity_mut().is_empty() && op::outstanding() == 1);
    memory.as_mut_slice()[7] = !old[BLOCK + 7];
    timeout(LIMIT, memory.commit()).await??;
    let mut new = old;
    new[BLOCK + 7] = !new[BLOCK + 7];
    ensure!(read(channel, 4 * BLOCK, 0).await? == new, "committed");

    let mut memory = lent(channel, 2 * at, 2 * BLOCK, false).await?;
    ensure!((memory.len(), memory.capacity(), memory.is_empty()) == (0, 2 * BLOCK, true));
    ensure!(memory.as_slice().is_empty() && memory.as_mut_slice().is_empty());
    ensure!(kind(memory.copy_from(&[0; BLOCK])) == Some(ErrorKind::OutOfRange));
    memory.copy_from(&pattern(2 * BLOCK, 9))?;
    timeout(LIMIT, memory.commit()).await??;
    new[2 * BLOCK..].copy_from_slice(&pattern(2 * BLOCK, 9));
    ensure!(read(channel, 4 * BLOCK, 0).await? == new, "overwritten");

    // Half of it is not enough.
    let mut memory = lent(channel, 0, BLOCK, false).await?;
    for byte in &mut memory.spare_capacity_mut()[..BLOCK / 2] {
        byte.write(3);
    }
    // SAFETY: this half was written to just now.
    unsafe { memory.set_len(BLOCK / 2) };
    ensure!(memory.as_slice() == [3; BLOCK / 2]);
    let half = timeout(LIMIT, memory.commit()).await?.unwrap_err();
    ensure!(half.kind() == ErrorKind::InvalidArgument, "{half}");
    ensure!(half.to_string().contains("2048 of 4096"), "{half}");

    let mut memory = lent(channel, at, BLOCK, true).await?;
    memory.as_mut_slice().fill(5);
    timeout(LIMIT, memory.abandon()).await??;
    if in_place {
        new[..BLOCK / 2].fill(3);
        new[BLOCK..2 * BLOCK].fill(5);
    }
    ensure!(read(channel, 4 * BLOCK, 0).await? == new, "abandoned");
    all_home().await
}

#[test]
fn read_change_and_commit() {
    isolated("read_change_and_commit", || {
        let place = tempfile::tempdir().expect("a place");
        let path = place.path().join("disk");
        std::fs::write(&path, vec![0; MIB]).expect("a file");
        run(async move {
            let (descriptor, channel) = ram()?;
            use_it(&channel, true).await?;
            descriptor.close().await?;

            bdev::delay::create("slow", "ram", Latency::all(Duration::from_millis(2)))?;
            let (descriptor, channel) = open("slow")?;
            use_it(&channel, false).await?;
            descriptor.close().await?;
            bdev::wait_for_examine().await?;
            bdev::delay::delete("slow").await?;

            bdev::aio::create("file", path.to_str().expect("a path"), 512)?;
            let (descriptor, channel) = open("file")?;
            use_it(&channel, false).await?;
            descriptor.close().await?;

            let (_disk, registered, descriptor, channel) = orderly().await?;
            use_it(&channel, false).await?;
            descriptor.close().await?;
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn refusals_say_why() {
    isolated("refusals_say_why", || {
        run(async {
            let (ram, channel) = ram()?;
            assert_eq!(
                kind(borrow(&channel, 8192 * 512, 512, true).await),
                Some(ErrorKind::OutOfRange)
            );
            assert_eq!(
                kind(borrow(&channel, 3, 512, true).await),
                Some(ErrorKind::Misaligned)
            );
            assert_eq!(
                kind(borrow(&channel, 0, 0, true).await),
                Some(ErrorKind::InvalidArgument)
            );
            let all = lent(&channel, 0, 8192 * 512, true).await?;
            assert_eq!(all.as_slice().len(), 8192 * 512, "its own memory knows no limit");
            drop(all);
            let reader = Bdev::find("ram")?.open(Mode::ReadOnly)?;
            let error = borrow(&reader.channel()?, 0, 512, true).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
            reader.close().await?;

            // What does not fit into a buffer is refused before SPDK is asked.
            bdev::null::create("null", 8192, 512)?;
            let (_null, channel) = open("null")?;
            let most = lent(&channel, 0, 64 << 10, true).await?;
            assert_eq!(most.capacity(), 64 << 10);
            timeout(LIMIT, most.commit()).await??;
            let error = borrow(&channel, 0, 128 << 10, true).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(
                error.to_string().contains("256 blocks: SPDK's buffers"),
                "{error}"
            );

            // These would lend what their base has taken back.
            ram.close().await?;
            bdev::passthru::create("pass", "ram")?;
            let (descriptor, channel) = open("pass")?;
            assert!(!Bdev::find("pass")?.supports(IoType::Zcopy));
            let error = borrow(&channel, 0, 512, true).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            descriptor.close().await?;
            assert_eq!(op::outstanding(), 0);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn dropped_at_every_stage() {
    isolated("dropped_at_every_stage", || {
        run(async {
            let (_ram, ram) = ram()?;
            let (disk, registered, descriptor, rust) = orderly().await?;
            for channel in [&ram, &rust] {
                write(channel, &[1; BLOCK], 0).await?;
                // Not begun.
                drop(borrow(channel, 0, BLOCK, true));
                assert_eq!(op::outstanding(), 0);
                // Begun.
                let mut start = Box::pin(borrow(channel, 0, BLOCK, true));
                assert!(poll_once(start.as_mut()).is_pending());
                drop(start);
                assert_eq!(op::outstanding(), 1);
                all_home().await?;
                // Begun, where nothing has to be read.
                let mut start = Box::pin(borrow(channel, 0, BLOCK, false));
                assert!(poll_once(start.as_mut()).is_pending());
                drop(start);
                all_home().await?;
                // Lent, and not taken.
                let mut start = Box::pin(borrow(channel, 0, BLOCK, true));
                assert!(poll_once(start.as_mut()).is_pending());
                sleep(Duration::from_millis(20)).await;
                assert_eq!(op::outstanding(), 1);
                drop(start);
                all_home().await?;
                // Held.
                for populate in [true, false] {
                    let memory = lent(channel, 0, BLOCK, populate).await?;
                    sleep(Duration::from_millis(5)).await;
                    assert_eq!(op::outstanding(), 1, "it counts");
                    drop(memory);
                    all_home().await?;
                }
                // To be committed, but not begun.
                drop(lent(channel, 0, BLOCK, true).await?.commit());
                all_home().await?;
                assert_eq!(read(channel, BLOCK, 0).await?, [1; BLOCK]);
                // The commit goes on.
                let mut memory = lent(channel, 0, BLOCK, true).await?;
                memory.as_mut_slice().fill(2);
                let mut commit = Box::pin(memory.commit());
                assert!(poll_once(commit.as_mut()).is_pending());
                drop(commit);
                all_home().await?;
                assert_eq!(read(channel, BLOCK, 0).await?, [2; BLOCK]);
                // Done, and not taken.
                let mut commit = Box::pin(lent(channel, 0, BLOCK, true).await?.commit());
                assert!(poll_once(commit.as_mut()).is_pending());
                all_home().await?;
                drop(commit);
            }
            // A commit that fails says so, and one that nobody waits for does no harm.
            for dropped in [false, true] {
                let memory = lent(&rust, 0, BLOCK, true).await?;
                disk.fail(Kind::Write, 1, Fate::End(Status::Failed));
                let mut commit = Box::pin(memory.commit());
                assert!(poll_once(commit.as_mut()).is_pending());
                if !dropped {
                    assert_eq!(kind(timeout(LIMIT, commit).await?), Some(ErrorKind::Io));
                }
            }
            disk.fail(Kind::Read, 1, Fate::End(Status::Failed));
            assert_eq!(kind(borrow(&rust, 0, BLOCK, true).await), Some(ErrorKind::Io));
            all_home().await?;
            descriptor.close().await?;
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// A loan is I/O in flight.
#[test]
fn closing_removal_and_resets_while_it_is_held() {
    isolated("closing_removal_and_resets_while_it_is_held", || {
        run(async {
            let (descriptor, channel) = ram()?;
            let (disk, registered, rust_descriptor, rust) = orderly().await?;
            for channel in [&channel, &rust] {
                let mut memory = lent(channel, 0, BLOCK, true).await?;
                timeout(LIMIT, channel.reset()).await??;
                memory.as_mut_slice().fill(6);
                timeout(LIMIT, memory.commit()).await??;
                assert_eq!(read(channel, BLOCK, 0).await?, [6; BLOCK]);
            }

            // Forgotten, as far as anybody can see.
            let mut memory = ManuallyDrop::new(lent(&channel, 0, BLOCK, true).await?);
            let mut close = Box::pin(descriptor.close());
            assert!(poll_once(close.as_mut()).is_pending());
            sleep(Duration::from_millis(20)).await;
            assert!(poll_once(close.as_mut()).is_pending(), "it waits");
            assert_eq!(
                kind(borrow(&channel, 0, BLOCK, true).await),
                Some(ErrorKind::Closed)
            );
            memory.as_mut_slice().fill(7);
            timeout(LIMIT, ManuallyDrop::into_inner(memory).commit()).await??;
            timeout(LIMIT, close).await??;
            let (ram, channel) = open("ram")?;
            assert_eq!(read(&channel, BLOCK, 0).await?, [7; BLOCK]);

            // Dropping it lets a removal go on; the memory is there until then.
            let mut memory = lent(&channel, 0, BLOCK, true).await?;
            let mut removal = spdk_rs::spawn(bdev::malloc::delete("ram"));
            timeout(LIMIT, ram.removed()).await?;
            sleep(Duration::from_millis(20)).await;
            assert!(poll_once(Pin::new(&mut removal)).is_pending(), "it waits");
            memory.as_mut_slice().fill(8);
            assert_eq!(memory.as_slice(), [8; BLOCK]);
            drop(memory);
            timeout(LIMIT, removal).await???;

            // SPDK's buffer can still be stored while its device goes.
            let mut memory = lent(&rust, 0, BLOCK, true).await?;
            let removal = spdk_rs::spawn(registered.unregister());
            timeout(LIMIT, rust_descriptor.removed()).await?;
            memory.as_mut_slice().fill(9);
            timeout(LIMIT, memory.commit()).await??;
            assert_eq!(disk.content()[..BLOCK], [9; BLOCK]);
            timeout(LIMIT, removal).await???;
            assert_eq!(op::outstanding(), 0);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn stopped_while_it_is_held() {
    isolated("stopped_while_it_is_held", || {
        run(async {
            let (descriptor, channel) = ram()?;
            let task = spdk_rs::spawn(async move {
                let _descriptor = descriptor;
                let memory = lent(&channel, 0, BLOCK, true).await?;
                std::future::pending::<()>().await;
                drop(memory);
                anyhow::Ok(())
            });
            sleep(Duration::from_millis(20)).await;
            assert_eq!(op::outstanding(), 1);
            drop(task);
            anyhow::Ok(())
        })
        .expect("the scenario");
        assert_eq!(op::outstanding(), 0, "it came home before SPDK stopped");
    });
}

/// Another spdk_thread of this OS thread cannot end it; but what is dropped there goes home.
#[test]
fn on_the_wrong_spdk_thread() {
    thread_local! {
        static CARRIED: RefCell<Option<(Channel, Zcopy, Zcopy)>> = const { RefCell::new(None) };
    }
    isolated("on_the_wrong_spdk_thread", || {
        run(async {
            let (_ram, channel) = ram()?;
            let (_disk, registered, descriptor, rust) = orderly().await?;
            let loans = (
                lent(&channel, 0, BLOCK, true).await?,
                lent(&rust, 0, BLOCK, true).await?,
            );
            CARRIED.set(Some((channel, loans.0, loans.1)));
            let worker = Thread::create("worker", 0)?;
            let kinds = worker.spawn_on(|| async {
                let (channel, first, second) = CARRIED.take().expect("same OS thread");
                let start = kind(borrow(&channel, 0, BLOCK, true).await);
                drop(second);
                assert_eq!(op::outstanding(), 2, "it ends over there");
                (start, kind(first.commit().await))
            })?;
            let wrong = Some(ErrorKind::WrongThread);
            assert_eq!(timeout(LIMIT, kinds).await??, (wrong, wrong));
            all_home().await?;
            worker.exit().await;
            descriptor.close().await?;
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Each loan holds one of SPDK's I/O objects.
#[test]
fn short_of_io_objects() {
    isolated("short_of_io_objects", || {
        let ended = run_with_small_pool(async {
            let (_descriptor, channel) = ram()?;
            let mut held = Vec::new();
            for n in 0..64 {
                held.push(lent(&channel, n * BLOCK as u64, BLOCK, true).await?);
            }
            let mut waiting: Vec<_> = (64..67_u64)
                .map(|n| Box::pin(borrow(&channel, n * BLOCK as u64, BLOCK, false)))
                .collect();
            for start in &mut waiting {
                assert!(poll_once(start.as_mut()).is_pending());
            }
            sleep(Duration::from_millis(5)).await;
            assert_eq!(op::outstanding(), 67);
            drop(waiting.remove(0)); // gives its turn up
            assert_eq!(op::outstanding(), 67, "its place in the queue is SPDK's");
            held.truncate(62);
            for start in waiting {
                let mut memory = timeout(LIMIT, start).await??;
                memory.copy_from(&[4; BLOCK])?;
                timeout(LIMIT, memory.commit()).await??;
            }
            until("all but those that are held", || op::outstanding() == 62).await?;
            drop(held);
            all_home().await?;
            assert_eq!(read(&channel, BLOCK, 66 * BLOCK as u64).await?, [4; BLOCK]);
            anyhow::Ok(())
        });
        ended.expect("the scenario");
    });
}
