//! Aborting one I/O: with the device, in SPDK's queue for memory, and too late.

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::Result;
use common::bdev::{LIMIT, MIB, open, poll_once, read, register, until, write};
use common::disk::TestDisk;
use common::{isolated, run, run_with_small_pool};
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{self, Channel, Descriptor, IoType, Read};
use spdk_rs::bdev_module::Kind;
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{Thread, sleep, timeout, yield_now};
use spdk_rs::{ErrorKind, op};

const BLOCK: usize = 4096;
/// Far longer than a test takes, and yet short enough that one that fails ends.
const LONG: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls with a waker of its own, as a task elsewhere would.
fn poll_from_afar(future: Pin<&mut impl Future>) -> Arc<Wakes> {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    assert!(future.poll(&mut Context::from_waker(&waker)).is_pending());
    wakes
}

/// A device over `base` that delays; not while SPDK has its look at it, which deleting it would wait
/// for.
async fn slow(base: &str, latency: Latency) -> Result<(Descriptor, Channel)> {
    let slow = bdev::delay::create("slow", base, Latency::NONE)?;
    bdev::wait_for_examine().await?;
    bdev::delay::set_latency("slow", latency)?;
    assert!(slow.supports(IoType::Abort));
    open("slow")
}

/// Waits until what was begun on a device that delays is in its own hands.
async fn delayed() {
    sleep(Duration::from_millis(20)).await;
}

#[test]
fn what_a_device_delays() {
    isolated("what_a_device_delays", || {
        run(async {
            for base in ["ram", "null"] {
                match base {
                    "ram" => bdev::malloc::create(base, 8192, 512)?,
                    _ => bdev::null::create(base, 8192, 512)?,
                };
                let (descriptor, channel) = slow(base, Latency::all(LONG)).await?;
                let start = Instant::now();

                let mut reading = channel.read(DmaBuf::new(BLOCK)?, 0);
                let wakes = poll_from_afar(Pin::new(&mut reading));
                let mut other = channel.read(DmaBuf::new(BLOCK)?, 0);
                assert!(poll_once(Pin::new(&mut other)).is_pending());
                delayed().await;
                timeout(LIMIT, reading.abort()).await??;
                assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
                let (result, buf) = timeout(LIMIT, reading).await?.into_parts();
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Canceled, "{error}");
                assert_eq!(
                    error.nvme_status().map(|s| (s.code_type, s.code)),
                    Some((0, 0x07))
                );
                assert_eq!((buf.len(), buf.capacity()), (0, BLOCK));
                assert_eq!(op::outstanding(), 1, "the other one goes on");

                let mut writing = channel.write(DmaBuf::copy_of(&[5; BLOCK])?, 0);
                assert!(poll_once(Pin::new(&mut writing)).is_pending());
                delayed().await;
                timeout(LIMIT, writing.abort()).await??;
                let (result, buf) = timeout(LIMIT, writing).await?.into_parts();
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Canceled);
                assert_eq!(buf.as_slice(), [5; BLOCK]);

                // The descriptor closes, and waits for the other one.
                let mut close = Box::pin(descriptor.close());
                assert!(poll_once(close.as_mut()).is_pending());
                timeout(LIMIT, other.abort()).await??;
                timeout(LIMIT, close).await??;
                let error = timeout(LIMIT, other).await?.into_result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Canceled);
                timeout(LIMIT, bdev::delay::delete("slow")).await??;
                assert!(start.elapsed() < LONG);
            }
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn while_the_device_is_removed() {
    isolated("while_the_device_is_removed", || {
        run(async {
            bdev::null::create("null", 8192, 512)?;
            let (descriptor, channel) = slow("null", Latency::all(LONG)).await?;
            let mut reading = channel.read(DmaBuf::new(BLOCK)?, 0);
            assert!(poll_once(Pin::new(&mut reading)).is_pending());
            delayed().await;
            let removal = spdk_rs::spawn(bdev::delay::delete("slow"));
            timeout(LIMIT, descriptor.removed()).await?;
            timeout(LIMIT, reading.abort()).await??;
            timeout(LIMIT, removal).await???;
            let error = timeout(LIMIT, reading).await?.into_result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Removed, "{error}");
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_goes_on() {
    isolated("what_goes_on", || {
        run(async {
            // malloc takes aborts, and does none.
            bdev::malloc::create("ram", 8192, 512)?;
            let (_ram, channel) = open("ram")?;
            let mut writing = channel.write(DmaBuf::copy_of(&[3; BLOCK])?, 0);
            assert!(poll_once(Pin::new(&mut writing)).is_pending());
            match timeout(LIMIT, writing.abort()).await? {
                // It ended before the device had said that it does not.
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    assert!(error.to_string().contains("it goes on"), "{error}");
                }
            }
            timeout(LIMIT, writing).await?.into_result()?;
            assert_eq!(read(&channel, BLOCK, 0).await?, [3; BLOCK]);

            // A device in Rust is not asked to abort.
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (descriptor, channel) = open("rust0")?;
            disk.hold();
            let mut writing = channel.write(DmaBuf::copy_of(&[4; BLOCK])?, 0);
            assert!(poll_once(Pin::new(&mut writing)).is_pending());
            until("it is held", || disk.seen(Kind::Write) == 1).await?;
            let error = writing.abort().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(poll_once(Pin::new(&mut writing)).is_pending());
            disk.release();
            timeout(LIMIT, writing).await?.into_result()?;
            assert_eq!(disk.content()[..BLOCK], [4; BLOCK]);
            descriptor.close().await?;
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn nothing_to_abort() {
    isolated("nothing_to_abort", || {
        run(async {
            bdev::null::create("null", 8192, 512)?;
            let (_descriptor, channel) = open("null")?;
            let mut reading = channel.read(DmaBuf::new(BLOCK)?, 0);
            let error = reading.abort().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("not begun"), "{error}");
            assert!(poll_once(Pin::new(&mut reading)).is_pending());
            until("it has ended", || op::outstanding() == 0).await?;
            let error = reading.abort().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert_eq!((error.operation(), error.device()), ("abort", "null"));
            assert!(error.to_string().contains("has ended"), "{error}");
            (&mut reading).await.into_result()?; // and is none the worse
            let error = reading.abort().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn on_the_wrong_spdk_thread() {
    thread_local! {
        static CARRIED: RefCell<Option<Read>> = const { RefCell::new(None) };
    }
    isolated("on_the_wrong_spdk_thread", || {
        run(async {
            bdev::null::create("null", 8192, 512)?;
            let (_descriptor, channel) = slow("null", Latency::all(LONG)).await?;
            let mut reading = channel.read(DmaBuf::new(BLOCK)?, 0);
            assert!(poll_once(Pin::new(&mut reading)).is_pending());
            delayed().await;
            CARRIED.set(Some(reading));
            let worker = Thread::create("worker", 0)?;
            let kind = worker.spawn_on(|| async {
                let mut reading = CARRIED.take().expect("same OS thread");
                let error = reading.abort().await.unwrap_err();
                CARRIED.set(Some(reading));
                error.kind()
            })?;
            assert_eq!(timeout(LIMIT, kind).await??, ErrorKind::WrongThread);
            let mut reading = CARRIED.take().expect("brought back");
            timeout(LIMIT, reading.abort()).await??;
            let error = timeout(LIMIT, reading).await?.into_result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Canceled);
            worker.exit().await;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// The abort ends as an orphan, and so does what it aborts.
#[test]
fn dropped_in_the_midst() {
    isolated("dropped_in_the_midst", || {
        run(async {
            bdev::null::create("null", 8192, 512)?;
            let (_descriptor, channel) = slow("null", Latency::all(LONG)).await?;
            for forget in [false, true] {
                let mut reading = channel.read(DmaBuf::new(BLOCK)?, 0);
                assert!(poll_once(Pin::new(&mut reading)).is_pending());
                delayed().await;
                let mut abort = Box::pin(reading.abort());
                assert!(poll_once(abort.as_mut()).is_pending());
                match forget {
                    false => drop(abort),
                    true => std::mem::forget(abort),
                }
                drop(reading);
                until("all came home", || op::outstanding() == 0).await?;
            }
            // What was forgotten holds the channel.
            timeout(LIMIT, bdev::delay::delete("slow")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_waits_for_an_io_object() {
    isolated("what_waits_for_an_io_object", || {
        run_with_small_pool(async {
            bdev::malloc::create("ram", 8192, 512)?;
            let (_descriptor, channel) = open("ram")?;
            let mut writes = Vec::new();
            for n in 0..200_u64 {
                let mut write = channel.write(DmaBuf::copy_of(&[1; BLOCK])?, n * BLOCK as u64);
                assert!(poll_once(Pin::new(&mut write)).is_pending());
                writes.push(write);
            }
            let mut last = writes.pop().expect("200");
            let mut middle = writes.swap_remove(150);
            let wakes = poll_from_afar(Pin::new(&mut last));
            for write in [&mut last, &mut middle] {
                let mut abort = Box::pin(write.abort());
                assert!(poll_once(abort.as_mut()).is_ready(), "no device has to be asked");
            }
            assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "whoever polls it hears of it");
            for write in [last, middle] {
                let mut write = Box::pin(write);
                let std::task::Poll::Ready(result) = poll_once(write.as_mut()) else {
                    panic!("it has ended")
                };
                let (result, buf) = result.into_parts();
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Canceled, "{error}");
                assert_eq!(error.nvme_status(), None, "no device was asked");
                assert_eq!(buf.as_slice(), [1; BLOCK]);
            }
            assert_eq!(op::outstanding(), 200, "their places in the queue are SPDK's");
            for write in writes {
                timeout(LIMIT, write).await?.into_result()?;
            }
            until("the places are left", || op::outstanding() == 0).await?;
            for n in [199, 150] {
                assert_eq!(read(&channel, BLOCK, n * BLOCK as u64).await?, [0; BLOCK]);
            }
            assert_eq!(read(&channel, BLOCK, 149 * BLOCK as u64).await?, [1; BLOCK]);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn an_abort_without_memory_tries_again() {
    isolated("an_abort_without_memory_tries_again", || {
        run_with_small_pool(async {
            bdev::null::create("null", 8192, 512)?;
            let brief = Duration::from_millis(500);
            let latency = Latency {
                read: LONG,
                read_p99: LONG,
                write: brief,
                write_p99: brief,
            };
            let (_descriptor, channel) = slow("null", latency).await?;
            // The pool's 64 objects: 56 held for long, 8 for a moment (the last of them lacks one
            // for the device beneath).
            let mut held = Vec::new();
            for n in 0..56 {
                let mut read = channel.read(DmaBuf::new(BLOCK)?, n * BLOCK as u64);
                assert!(poll_once(Pin::new(&mut read)).is_pending());
                held.push(read);
                delayed_a_little().await;
            }
            let mut writes = Vec::new();
            for n in 0..8 {
                let mut write = channel.write(DmaBuf::zeroed(BLOCK)?, n * BLOCK as u64);
                assert!(poll_once(Pin::new(&mut write)).is_pending());
                writes.push(write);
                delayed_a_little().await;
            }
            assert_eq!(op::outstanding(), 64);
            let mut reading = held.pop().expect("56");
            let mut abort = Box::pin(reading.abort());
            assert!(poll_once(abort.as_mut()).is_pending());
            assert_eq!(op::outstanding(), 64, "it was not taken, and is not queued");
            timeout(LIMIT, abort).await??;
            let error = timeout(LIMIT, reading).await?.into_result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Canceled);
            for write in writes {
                timeout(LIMIT, write).await?.into_result()?;
            }
            for mut read in held {
                timeout(LIMIT, read.abort()).await??;
                timeout(LIMIT, read).await?.into_result().unwrap_err();
            }
            write(&channel, &[0; BLOCK], 0).await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

async fn delayed_a_little() {
    for _ in 0..100 {
        yield_now().await;
    }
}
