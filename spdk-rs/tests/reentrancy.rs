//! Completions that come in the midst of SPDK's own loops, and what they set off there.

mod common;

use std::ffi::{CString, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use common::bdev::{LIMIT, MIB, open, poll_once, register, until, write};
use common::disk::{Fate, TestDisk, lock};
use common::{isolated, run, run_with_small_pool};
use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{sleep, timeout, yield_now};
use spdk_rs::{JoinHandle, op};

/// SPDK asks again for I/O that was put off when another I/O ends, but not when a reset does.
#[test]
fn put_off_beside_a_reset() {
    isolated("put_off_beside_a_reset", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            disk.hold();
            let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[7; 512])?, 0));
            assert!(poll_once(io.as_mut()).is_pending());
            let mut reset = Box::pin(channel.reset());
            assert!(poll_once(reset.as_mut()).is_pending());
            until("both are held", || disk.seen(Kind::Reset) == 1).await?;
            let [write, reset_io] = <[Io; 2]>::try_from(disk.take_held()).expect("two");
            disk.release();
            write.complete(Status::NoMemory);
            reset_io.complete(Status::Success);
            timeout(LIMIT, reset).await??;
            timeout(LIMIT, io).await?.into_result()?;
            assert_eq!(disk.content()[..512], [7; 512]);
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// A reset aborts what waits in SPDK's queues, one after the other. Who waits for the first may
/// set the second going.
#[test]
fn aborted_by_a_reset() {
    isolated("aborted_by_a_reset", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            let channel = std::rc::Rc::new(channel);
            disk.hold();
            let mut first = Box::pin(channel.write(DmaBuf::zeroed(512)?, 0));
            assert!(poll_once(first.as_mut()).is_pending());
            let in_hand = disk.take_held().pop().expect("the first");

            disk.fail(Kind::Write, 1, Fate::End(Status::NoMemory));
            let waiting = spdk_rs::spawn({
                let channel = std::rc::Rc::clone(&channel);
                async move {
                    let result = channel.write(DmaBuf::zeroed(512)?, 512).await.into_result();
                    in_hand.complete(Status::Success); // upon which SPDK asks for the others again
                    result
                }
            });
            until("it was put off", || disk.seen(Kind::Write) == 2).await?;
            let mut behind = Box::pin(channel.write(DmaBuf::zeroed(512)?, 1024));
            assert!(poll_once(behind.as_mut()).is_pending());
            assert_eq!(disk.seen(Kind::Write), 2, "in SPDK's queue");

            let mut reset = Box::pin(channel.reset());
            assert!(poll_once(reset.as_mut()).is_pending());
            assert!(timeout(LIMIT, waiting).await??.is_err(), "aborted");
            timeout(LIMIT, first).await?.into_result()?;
            sleep(Duration::from_millis(5)).await;
            let given = disk.seen(Kind::Write) == 3;
            let ended = matches!(poll_once(behind.as_mut()), Poll::Ready(_));
            assert!(!(given && ended), "it has ended, and the device still has it");
            disk.release();
            timeout(LIMIT, reset).await??;
            if !ended {
                timeout(LIMIT, behind).await?.into_result()?;
            }
            write(&channel, &[1; 512], 0).await?;
            assert_eq!(op::outstanding(), 0);
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// A reset ends those that were asked for meanwhile, too, one after the other.
#[test]
fn reset_again_and_again() {
    isolated("reset_again_and_again", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            let channel = std::rc::Rc::new(channel);
            disk.hold();
            let mut tasks: Vec<JoinHandle<spdk_rs::Result<()>>> = Vec::new();
            for _ in 0..3 {
                let channel = std::rc::Rc::clone(&channel);
                tasks.push(spdk_rs::spawn(async move {
                    for _ in 0..3 {
                        channel.reset().await?;
                    }
                    Ok(())
                }));
            }
            until("one is held", || disk.seen(Kind::Reset) == 1).await?;
            disk.release();
            for task in tasks {
                timeout(LIMIT, task).await???;
            }
            write(&channel, &[1; 512], 0).await?;
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// SPDK's object of an I/O that has ended is kept for the next one as long as the callback runs. In the
/// midst of it, another I/O of the channel is ended. With 64 objects, none may be lost.
#[test]
fn ended_in_the_turn_of_another() {
    isolated("ended_in_the_turn_of_another", || {
        let ended = run_with_small_pool(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let (_descriptor, channel) = open("rust0")?;
            let channel = std::rc::Rc::new(channel);
            for _ in 0..200 {
                disk.hold();
                let mut held = Box::pin(channel.write(DmaBuf::zeroed(512)?, 0));
                assert!(poll_once(held.as_mut()).is_pending());
                let in_hand = disk.take_held().pop().expect("it is held");
                disk.release();
                let other = std::rc::Rc::clone(&channel);
                let task = spdk_rs::spawn(async move {
                    // (SPDK brings this end by a message: the turn begins in a callback of its own.)
                    other.write(DmaBuf::zeroed(512)?, 512).await.into_result()?;
                    in_hand.complete(Status::Success);
                    anyhow::Ok(())
                });
                timeout(LIMIT, task).await???;
                timeout(LIMIT, held).await?.into_result()?;
            }
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        });
        ended.expect("the scenario");
    });
}

/// One is asked for in each turn of the reactor: also between the end of another one and the moment
/// when SPDK lets the channels go on.
#[test]
fn resets_one_after_the_other() {
    isolated("resets_one_after_the_other", || {
        run(async {
            spdk_rs::bdev::malloc::create("ram0", 64, 512)?;
            let (descriptor, channel) = open("ram0")?;
            let channel = std::rc::Rc::new(channel);
            let mut tasks = Vec::new();
            for _ in 0..100 {
                let channel = std::rc::Rc::clone(&channel);
                tasks.push(spdk_rs::spawn(async move { channel.reset().await }));
                yield_now().await;
            }
            for task in tasks {
                timeout(LIMIT, task).await???;
            }
            write(&channel, &[1; 512], 0).await?;
            descriptor.close().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Completes an I/O of another device in the midst of its own code.
#[derive(Default)]
struct Helpful {
    others: Mutex<Option<Io>>,
    seen: AtomicUsize,
}

impl BlockDevice for Helpful {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), io: Io) {
        if io.kind() == Kind::Write {
            self.seen.fetch_add(1, Ordering::AcqRel);
        }
        let other = lock(&self.others).take();
        if let Some(other) = other {
            other.complete(Status::Success);
        }
        io.complete(Status::Success);
    }
}

/// Limits (or, with 0, does not limit any more) how many I/O a device is given in a second.
async fn limit(name: &str, per_second: u64) -> anyhow::Result<()> {
    unsafe extern "C" fn done(cb_arg: *mut c_void, status: c_int) {
        // SAFETY: the flag of below, which waits for this.
        unsafe { (*cb_arg.cast::<AtomicBool>()).store(status == 0, Ordering::Release) };
    }
    let is_set = Box::pin(AtomicBool::new(false));
    let name = CString::new(name)?;
    let mut limits = [per_second, u64::MAX, u64::MAX, u64::MAX];
    // SAFETY: on the app thread; the device is there; the flag stays until it is set.
    unsafe {
        let bdev = spdk_sys::spdk_bdev_get_by_name(name.as_ptr());
        assert!(!bdev.is_null());
        let flag = (&raw const *is_set).cast_mut().cast();
        spdk_sys::spdk_bdev_set_qos_rate_limits(bdev, limits.as_mut_ptr(), Some(done), flag);
    }
    until("the limit is set", || is_set.load(Ordering::Acquire)).await
}

/// With a limit SPDK keeps I/O in a queue, which it goes through in a loop.
#[test]
fn a_task_is_not_run_in_the_midst_of_spdks_queue() {
    const AT_ONCE: usize = 100; // in a millisecond, SPDK's slice of time
    isolated("a_task_is_not_run_in_the_midst_of_spdks_queue", || {
        run(async {
            let helpful = Arc::new(Helpful::default());
            let limited = bdev_module::register("limited", Arc::clone(&helpful))?;
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            limit("limited", 1000 * AT_ONCE as u64).await?;
            let (_limited, to_limited) = open("limited")?;
            let (_descriptor, channel) = open("rust0")?;
            let to_limited = std::rc::Rc::new(to_limited);

            disk.hold();
            let task = spdk_rs::spawn({
                let to_limited = std::rc::Rc::clone(&to_limited);
                async move {
                    channel.write(DmaBuf::zeroed(512)?, 0).await.into_result()?;
                    to_limited.write(DmaBuf::zeroed(512)?, 0).await.into_result()
                }
            });
            until("it is held", || disk.seen(Kind::Write) == 1).await?;
            // So many that some have to wait for the next slice.
            let mut writes = Vec::new();
            for n in 0.. {
                let mut io = Box::pin(to_limited.write(DmaBuf::zeroed(512)?, n % 2048 * 512));
                assert!(poll_once(io.as_mut()).is_pending());
                writes.push(io);
                if writes.len() >= helpful.seen.load(Ordering::Acquire) + 3 {
                    break;
                }
            }
            *lock(&helpful.others) = disk.take_held().pop();
            let count = writes.len() + 1;
            for io in writes {
                timeout(LIMIT, io).await?.into_result()?;
            }
            timeout(LIMIT, task).await???;
            sleep(Duration::from_millis(5)).await;
            assert_eq!(helpful.seen.load(Ordering::Acquire), count, "each came once");
            disk.release();
            timeout(LIMIT, limited.unregister()).await??;
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
