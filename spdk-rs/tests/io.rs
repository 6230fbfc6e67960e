//! I/O that is dropped, forgotten, refused, removed from under its feet, or short of memory.

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::bdev::poll_once;
use common::{isolated, run, run_with_small_pool};
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{self, Bdev, Channel, Descriptor, Mode};
use spdk_rs::buf::{BufResult, DmaBuf};
use spdk_rs::reactor::{Thread, sleep, timeout};
use spdk_rs::{ErrorKind, op};

const LIMIT: Duration = Duration::from_secs(20);
const BLOCK: usize = 4096;

/// A RAM disk, and over it one that answers after `millis`.
fn slow_disk(millis: u64) -> Result<(Descriptor, Channel)> {
    bdev::malloc::create("ram", 8192, 512)?;
    let slow = bdev::delay::create("slow", "ram", Latency::all(Duration::from_millis(millis)))?;
    let descriptor = slow.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    Ok((descriptor, channel))
}

fn disk() -> Result<(Descriptor, Channel)> {
    let descriptor = bdev::malloc::create("ram", 8192, 512)?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    Ok((descriptor, channel))
}

fn place(buf: &DmaBuf) -> Range<usize> {
    let start = buf.as_ptr() as usize;
    start..start + buf.capacity()
}

/// Whether memory at this place was freed. It waits before it is given out, but is forbidden.
#[cfg(spdk_asan)]
fn is_free(wanted: &Range<usize>) -> bool {
    unsafe extern "C" {
        safe fn __asan_address_is_poisoned(at: usize) -> std::ffi::c_int;
    }
    __asan_address_is_poisoned(wanted.start) != 0
}

/// Whether memory at this place is given out: asks for more until it is, or until there is a lot.
#[cfg(not(spdk_asan))]
fn is_free(wanted: &Range<usize>) -> bool {
    let mut held = Vec::new();
    for _ in 0..512 {
        let Ok(buf) = DmaBuf::new(BLOCK) else { break };
        let got = place(&buf);
        if got.start < wanted.end && wanted.start < got.end {
            return true;
        }
        held.push(buf);
    }
    false
}

async fn drained() -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while op::outstanding() > 0 {
        ensure!(
            Instant::now() < deadline,
            "{} operations never ended",
            op::outstanding()
        );
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

#[test]
fn dropped_before_the_first_poll() {
    isolated("dropped_before_the_first_poll", || {
        run(async {
            let (_descriptor, channel) = slow_disk(1)?;
            let buf = DmaBuf::zeroed(BLOCK)?;
            let memory = place(&buf);
            let write = channel.write(buf, 0);
            assert!(!is_free(&memory));
            drop(write);
            assert_eq!(op::outstanding(), 0, "nothing was submitted");
            assert!(is_free(&memory));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn dropped_while_the_device_works() {
    isolated("dropped_while_the_device_works", || {
        run(async {
            let (descriptor, channel) = slow_disk(100)?;
            for write in [false, true] {
                let buf = DmaBuf::zeroed(BLOCK)?;
                let memory = place(&buf);
                let io: Pin<Box<dyn Future<Output = BufResult<()>>>> = if write {
                    Box::pin(channel.write(buf, 0))
                } else {
                    Box::pin(channel.read(buf, 0))
                };
                let mut io = io;
                assert!(poll_once(io.as_mut()).is_pending());
                assert_eq!(op::outstanding(), 1);
                drop(io);
                assert_eq!(op::outstanding(), 1, "the device still works");
                assert!(!is_free(&memory), "the device still uses it");
                drained().await?;
                assert!(is_free(&memory), "and it is not leaked");
            }
            // Channel and descriptor go while I/O is in flight: it keeps them.
            let mut read = Box::pin(channel.read(DmaBuf::new(BLOCK)?, 0));
            assert!(poll_once(read.as_mut()).is_pending());
            drop(read);
            drop(channel);
            drop(descriptor);
            assert_eq!(op::outstanding(), 1);
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            assert_eq!(op::outstanding(), 0, "the delete had to wait for it");
            timeout(LIMIT, bdev::malloc::delete("ram")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn completed_but_never_taken() {
    isolated("completed_but_never_taken", || {
        run(async {
            let (_descriptor, channel) = slow_disk(1)?;
            let buf = DmaBuf::zeroed(BLOCK)?;
            let memory = place(&buf);
            let mut read = Box::pin(channel.read(buf, 0));
            assert!(poll_once(read.as_mut()).is_pending());
            drained().await?;
            assert!(!is_free(&memory), "the future has it");
            drop(read);
            assert!(is_free(&memory));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn forgotten() {
    isolated("forgotten", || {
        run(async {
            let (_descriptor, channel) = slow_disk(1)?;
            let channel = Box::leak(Box::new(channel)); // what is forgotten borrows it for ever
            let mut read = Box::pin(channel.read(DmaBuf::new(BLOCK)?, 0));
            assert!(poll_once(read.as_mut()).is_pending());
            std::mem::forget(read);
            drained().await?;
            let ((), buf) = channel.read(DmaBuf::new(BLOCK)?, 0).await.ok()?;
            assert_eq!(buf.as_slice(), [0; BLOCK]);
            // The leaked channel would hold SPDK's thread up for five seconds at its exit: the
            // device is taken away, which makes it let go.
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn stopped_with_io_in_flight() {
    isolated("stopped_with_io_in_flight", || {
        let start = Instant::now();
        run(async {
            let (descriptor, channel) = slow_disk(200)?;
            for n in 0..32 {
                let mut write = Box::pin(channel.write(DmaBuf::zeroed(BLOCK)?, n * BLOCK as u64));
                assert!(poll_once(write.as_mut()).is_pending());
            }
            let task = spdk_rs::spawn(async move {
                let channel = channel;
                let _descriptor = descriptor;
                channel.read(DmaBuf::new(BLOCK)?, 0).await.into_result()
            });
            sleep(Duration::from_millis(5)).await;
            drop(task);
            assert_eq!(op::outstanding(), 33);
            anyhow::Ok(())
        })
        .expect("the scenario");
        assert_eq!(op::outstanding(), 0, "all came home before SPDK stopped");
        assert!(start.elapsed() < LIMIT);
    });
}

#[test]
fn short_of_io_objects_everything_waits_and_ends() {
    isolated("short_of_io_objects_everything_waits_and_ends", || {
        let ended = run_with_small_pool(async {
            let (_descriptor, channel) = disk()?;
            let mut writes = Vec::new();
            for n in 0..500_u64 {
                let data = [n as u8; BLOCK];
                let mut write = Box::pin(channel.write(DmaBuf::copy_of(&data)?, n * BLOCK as u64));
                assert!(poll_once(write.as_mut()).is_pending());
                writes.push(write);
            }
            assert_eq!(op::outstanding(), 500);
            for write in writes {
                timeout(LIMIT, write).await?.into_result()?;
            }
            for n in 0..500_u64 {
                let ((), buf) = channel.read(DmaBuf::new(BLOCK)?, n * BLOCK as u64).await.ok()?;
                assert_eq!(buf.as_slice(), [n as u8; BLOCK]);
            }
            anyhow::Ok(())
        });
        ended.expect("the scenario");
    });
}

#[test]
fn dropped_while_waiting_for_an_io_object() {
    isolated("dropped_while_waiting_for_an_io_object", || {
        let ended = run_with_small_pool(async {
            let (_descriptor, channel) = disk()?;
            let mut writes = Vec::new();
            let mut places = Vec::new();
            for n in 0..200_u64 {
                let buf = DmaBuf::copy_of(&[1; BLOCK])?;
                places.push(place(&buf));
                let mut write = Box::pin(channel.write(buf, n * BLOCK as u64));
                assert!(poll_once(write.as_mut()).is_pending());
                writes.push(write);
            }
            // Every second one goes, of those submitted and of those that wait.
            let mut kept = Vec::new();
            for (n, write) in writes.into_iter().enumerate() {
                if n % 2 == 0 {
                    kept.push(write);
                }
            }
            assert_eq!(op::outstanding(), 200, "SPDK holds all of them");
            assert!(!is_free(&places[199]), "its place in the queue is SPDK's");
            for write in kept {
                timeout(LIMIT, write).await?.into_result()?;
            }
            drained().await?;
            assert!(is_free(&places[199]));
            // Those that gave their turn up were not written.
            let ((), buf) = channel.read(DmaBuf::new(BLOCK)?, 199 * BLOCK as u64).await.ok()?;
            assert_eq!(buf.as_slice(), [0; BLOCK]);
            let ((), buf) = channel.read(buf, 198 * BLOCK as u64).await.ok()?;
            assert_eq!(buf.as_slice(), [1; BLOCK]);
            anyhow::Ok(())
        });
        ended.expect("the scenario");
    });
}

#[test]
fn removed_with_io_in_flight() {
    isolated("removed_with_io_in_flight", || {
        run(async {
            let (descriptor, channel) = slow_disk(50)?;
            let mut reads = Vec::new();
            for n in 0..64 {
                let mut read = Box::pin(channel.read(DmaBuf::new(BLOCK)?, n * BLOCK as u64));
                assert!(poll_once(read.as_mut()).is_pending());
                reads.push(read);
            }
            let removed = spdk_rs::spawn(descriptor.removed());
            // Descriptor and channel are still held; the delete ends all the same.
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            timeout(LIMIT, removed).await??;
            assert!(descriptor.is_removed());
            assert_eq!(op::outstanding(), 0, "the delete had to wait for the I/O");
            for read in reads {
                // In flight before the removal: done, or ended with an error, but ended.
                let _ = timeout(LIMIT, read).await?;
            }
            let late = channel.read(DmaBuf::new(BLOCK)?, 0).await;
            assert_eq!(late.err().map(|error| error.kind()), Some(ErrorKind::Removed));
            assert_eq!(descriptor.channel().unwrap_err().kind(), ErrorKind::Removed);
            descriptor.close().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn close_waits_for_io_and_refuses_more() {
    isolated("close_waits_for_io_and_refuses_more", || {
        run(async {
            let (descriptor, channel) = slow_disk(30)?;
            let mut read = Box::pin(channel.read(DmaBuf::new(BLOCK)?, 0));
            assert!(poll_once(read.as_mut()).is_pending());
            let mut close = Box::pin(descriptor.close());
            assert!(poll_once(close.as_mut()).is_pending());
            let late = channel.write(DmaBuf::zeroed(BLOCK)?, 0).await;
            assert_eq!(late.err().map(|error| error.kind()), Some(ErrorKind::Closed));
            timeout(LIMIT, close).await??;
            assert_eq!(op::outstanding(), 0);
            timeout(LIMIT, read).await?.into_result()?;
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn refusals_are_told_apart() {
    isolated("refusals_are_told_apart", || {
        run(async {
            let (descriptor, channel) = slow_disk(0)?;
            let size = descriptor.size();
            let kind = |result: BufResult<()>| result.err().map(|error| error.kind());
            let block = || DmaBuf::zeroed(512);
            assert_eq!(
                kind(channel.read(block()?, size).await),
                Some(ErrorKind::OutOfRange)
            );
            assert_eq!(
                kind(channel.read(block()?, u64::MAX - 511).await),
                Some(ErrorKind::OutOfRange)
            );
            assert_eq!(kind(channel.read(block()?, 3).await), Some(ErrorKind::Misaligned));
            assert_eq!(
                kind(channel.read(DmaBuf::new(100)?, 0).await),
                Some(ErrorKind::Misaligned)
            );
            assert_eq!(
                kind(channel.write(DmaBuf::new(512)?, 0).await),
                Some(ErrorKind::InvalidArgument)
            );
            let empty = channel.unmap(0, 0).await.unwrap_err();
            assert_eq!(empty.kind(), ErrorKind::InvalidArgument);
            let reader = Bdev::find("slow")?.open(Mode::ReadOnly)?;
            let readable = reader.channel()?;
            assert_eq!(kind(readable.write(block()?, 0).await), Some(ErrorKind::ReadOnly));
            readable.read(block()?, 0).await.into_result()?;
            let null = bdev::null::create("null", 2048, 512)?.open(Mode::ReadWrite)?;
            let unmap = null.channel()?.unmap(0, 512).await.unwrap_err();
            assert_eq!(unmap.kind(), ErrorKind::Unsupported, "{unmap}");
            null.close().await?;
            bdev::null::delete("null").await?;

            let claimed = Bdev::find("ram")?;
            assert!(claimed.claimed_by().is_some());
            assert_eq!(
                claimed.open(Mode::ReadWrite).unwrap_err().kind(),
                ErrorKind::PermissionDenied
            );
            let taken = bdev::malloc::create("ram", 8, 512).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
            let other = bdev::aio::delete("ram").await.unwrap_err();
            assert_eq!(other.kind(), ErrorKind::InvalidArgument, "{other}");
            let absent = bdev::aio::create("a", "/no/such/file", 512).unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            assert!(absent.to_string().contains("/no/such/file"), "{absent}");
            assert_eq!(
                bdev::malloc::create("m", 0, 512).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
            assert_eq!(
                bdev::malloc::create("m", 1 << 30, 512).unwrap_err().kind(),
                ErrorKind::NoMemory
            );
            let by_uuid = Bdev::find(&claimed.uuid().to_string())?;
            assert_eq!(by_uuid, claimed);
            assert_eq!(Bdev::all()?.len(), 2);
            bdev::wait_for_examine().await?;
            channel.flush().await?;
            channel.unmap(0, 4096).await?;
            // (Not on a delay bdev: SPDK v20.07 crashes there.)
            let disk = bdev::malloc::create("other", 2048, 512)?.open(Mode::ReadWrite)?;
            disk.channel()?.reset().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Two spdk_threads share an OS thread here, so that a thread-local variable can carry what is
/// not Send from one to the other: it is refused there, and dropped where it belongs.
#[test]
fn the_wrong_spdk_thread_is_refused() {
    thread_local! {
        static CARRIED: RefCell<Option<(Descriptor, Channel)>> = const { RefCell::new(None) };
    }
    isolated("the_wrong_spdk_thread_is_refused", || {
        run(async {
            let disk = slow_disk(0)?;
            CARRIED.set(Some(disk));
            let worker = Thread::create("worker", 0)?;
            let kinds = worker.spawn_on(|| async {
                let (descriptor, channel) = CARRIED.take().expect("same OS thread");
                let read = channel.read(DmaBuf::new(512).expect("memory"), 0).await;
                let read = read.err().map(|error| error.kind());
                let again = descriptor.channel().unwrap_err().kind();
                let create = bdev::malloc::create("x", 8, 512).unwrap_err().kind();
                let find = Bdev::find("slow").unwrap_err().kind();
                drop(channel);
                drop(descriptor);
                (read, again, create, find)
            })?;
            let wrong = ErrorKind::WrongThread;
            assert_eq!(kinds.await?, (Some(wrong), wrong, wrong, wrong));
            // Dropped over there, closed over here: nothing holds the device any more.
            timeout(LIMIT, bdev::delay::delete("slow")).await??;

            // A thread may open a device by itself.
            let ram = Bdev::find("ram")?;
            let data = worker.spawn_on(move || async move {
                let descriptor = ram.open(Mode::ReadWrite)?;
                let channel = descriptor.channel()?;
                channel
                    .write(DmaBuf::copy_of(&[9; 512])?, 512)
                    .await
                    .into_result()?;
                let ((), buf) = channel.read(DmaBuf::new(1024)?, 0).await.ok()?;
                drop(channel);
                descriptor.close().await?;
                Ok::<_, spdk_rs::Error>(buf)
            })?;
            let buf = data.await??;
            assert_eq!(buf.as_slice()[512..], [9; 512]);
            worker.exit().await;
            timeout(LIMIT, bdev::malloc::delete("ram")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_thread_exits_after_its_io() {
    isolated("a_thread_exits_after_its_io", || {
        run(async {
            drop(slow_disk(200)?);
            let slow = Bdev::find("slow")?;
            let worker = Thread::create("worker", 0)?;
            let submitted = worker.spawn_on(move || async move {
                let descriptor = slow.open(Mode::ReadWrite)?;
                let channel = descriptor.channel()?;
                let mut write = Box::pin(channel.write(DmaBuf::zeroed(BLOCK)?, 0));
                assert!(poll_once(write.as_mut()).is_pending());
                anyhow::Ok(())
            })?;
            submitted.await??;
            assert_eq!(op::outstanding(), 1);
            timeout(LIMIT, worker.exit()).await?;
            assert_eq!(op::outstanding(), 0);
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn any_depth_on_one_channel() {
    isolated("any_depth_on_one_channel", || {
        run(async {
            let disk = bdev::malloc::create("ram", 65536, 512)?;
            let descriptor = disk.open(Mode::ReadWrite)?;
            let channel = std::rc::Rc::new(descriptor.channel()?);
            let tasks: Vec<_> = (0..128_u64)
                .map(|n| {
                    let channel = std::rc::Rc::clone(&channel);
                    spdk_rs::spawn(async move {
                        let mut buf = DmaBuf::new(BLOCK)?;
                        for round in 0..50_u8 {
                            buf.fill(round ^ n as u8);
                            buf = channel.write(buf, n * BLOCK as u64).await.ok()?.1;
                            buf = channel.read(buf, n * BLOCK as u64).await.ok()?.1;
                            assert!(buf.as_slice().iter().all(|byte| *byte == round ^ n as u8));
                        }
                        Ok::<_, spdk_rs::Error>(())
                    })
                })
                .collect();
            for task in tasks {
                timeout(LIMIT, task).await???;
            }
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
