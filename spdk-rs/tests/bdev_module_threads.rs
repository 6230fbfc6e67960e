//! Block devices written in Rust: several threads, threads of SPDK's own, and futures.

mod common;

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use common::bdev::{LIMIT, MIB, Raw, open, pattern, poll_once, read, register, until, write};
use common::disk::TestDisk;
use common::{builder, isolated, run};
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::{self, Async, AsyncBlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{Thread, sleep, timeout};
use spdk_rs::{ErrorKind, op};
use spdk_sys::spdk_bdev_io;

#[test]
fn each_thread_has_its_channel() {
    isolated("each_thread_has_its_channel", || {
        let runtime = builder().core_mask("0x3").build().expect("options");
        let ended = runtime.run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let found = Bdev::find("rust0")?;
            let workers = [Thread::create("one", 0)?, Thread::create("two", 1)?];
            let mut tasks = Vec::new();
            for (n, worker) in (0_u64..).zip(&workers) {
                let found = found.clone();
                tasks.push(worker.spawn_on(move || async move {
                    let descriptor = found.open(Mode::ReadWrite)?;
                    let channel = descriptor.channel()?;
                    for round in 0..200_u64 {
                        let offset = (n * 64 + round % 64) * 4096;
                        let data = pattern(4096, (n * 7 + round) as u8);
                        write(&channel, &data, offset).await?;
                        ensure!(read(&channel, 4096, offset).await? == data);
                    }
                    drop(channel);
                    Ok(descriptor.close().await?)
                })?);
            }
            for task in tasks {
                timeout(LIMIT, task).await???;
            }
            assert_eq!((disk.seen(Kind::Write), disk.seen(Kind::Read)), (400, 400));

            // What one thread submits another one ends, by way of SPDK's thread.
            disk.hold();
            let task = workers[1].spawn_on(move || async move {
                let (descriptor, mut ios) = (found.open(Mode::ReadWrite)?, Vec::new());
                let channel = descriptor.channel()?;
                for n in 0..64_u64 {
                    let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[9; 512])?, n * 512));
                    assert!(poll_once(io.as_mut()).is_pending());
                    ios.push(io);
                }
                for io in ios {
                    io.await.into_result()?;
                }
                drop(channel);
                anyhow::Ok(descriptor.close().await?)
            })?;
            until("all are held", || disk.seen(Kind::Write) == 464).await?;
            assert!(!task.is_finished());
            disk.release();
            timeout(LIMIT, task).await???;
            assert_eq!(disk.content()[..64 * 512], [9; 64 * 512]);

            // Open on the other thread, in use there, and unregistered here.
            disk.hold();
            let found = Bdev::find("rust0")?;
            let task = workers[1].spawn_on(move || async move {
                let descriptor = found.open(Mode::ReadWrite)?;
                write(&descriptor.channel()?, &[1; 512], 0).await?;
                descriptor.removed().await;
                anyhow::Ok(())
            })?;
            until("it is held", || disk.seen(Kind::Write) == 465).await?;
            timeout(LIMIT, registered.unregister()).await??;
            assert_eq!((disk.channels(), Arc::strong_count(&disk)), (0, 1));
            timeout(LIMIT, task).await???;
            for worker in workers {
                worker.exit().await;
            }
            anyhow::Ok(())
        });
        ended.expect("started").expect("the scenario");
    });
}

/// Serves I/O with futures that sleep, and panic at block 13.
#[derive(Default)]
struct Sleepy {
    serving: AtomicUsize,
    at_once: AtomicUsize,
    never: AtomicBool,
}

impl AsyncBlockDevice for Sleepy {
    type Channel = RefCell<Vec<u64>>;

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<RefCell<Vec<u64>>> {
        Ok(RefCell::default())
    }

    async fn serve(&self, channel: &RefCell<Vec<u64>>, io: &mut Io) -> Status {
        let serving = self.serving.fetch_add(1, Ordering::AcqRel) + 1;
        self.at_once.fetch_max(serving, Ordering::AcqRel);
        channel.borrow_mut().push(io.offset_blocks());
        if self.never.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(2)).await;
        self.serving.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(io.offset_blocks(), 13, "unlucky");
        io.fill(io.offset_blocks() as u8);
        Status::Success
    }
}

#[test]
fn futures_serve_and_a_panic_is_one_ios() {
    isolated("futures_serve_and_a_panic_is_one_ios", || {
        let sleepy = Arc::new(Sleepy::default());
        let inner = Arc::clone(&sleepy);
        let start = Instant::now();
        run(async move {
            let registered = bdev_module::register("sleepy", Async::new(Arc::clone(&inner)))?;
            let (_descriptor, channel) = open("sleepy")?;
            let mut reads = Vec::new();
            for n in 0..32_u64 {
                let mut io = Box::pin(channel.read(DmaBuf::new(512)?, n * 512));
                assert!(poll_once(io.as_mut()).is_pending());
                reads.push(io);
            }
            for (n, io) in reads.into_iter().enumerate() {
                let (result, buf) = timeout(LIMIT, io).await?.into_parts();
                match n {
                    13 => assert_eq!(result.unwrap_err().kind(), ErrorKind::Io),
                    _ => assert_eq!((result?, buf.as_slice()), ((), &[n as u8; 512][..])),
                }
            }
            assert!(
                inner.at_once.load(Ordering::Acquire) > 16,
                "they sleep side by side"
            );
            assert_eq!(
                read(&channel, 512, 512).await?,
                [1; 512],
                "and the device goes on"
            );

            // At the end, with futures that would never end.
            inner.never.store(true, Ordering::Release);
            registered.keep();
            for n in 0..4_u64 {
                let mut io = Box::pin(channel.write(DmaBuf::zeroed(512)?, n * 512));
                assert!(poll_once(io.as_mut()).is_pending());
            }
            sleep(Duration::from_millis(5)).await;
            assert_eq!(op::outstanding(), 4);
            anyhow::Ok(())
        })
        .expect("the scenario");
        assert!(start.elapsed() < LIMIT, "nothing had to be given up");
        assert_eq!(Arc::strong_count(&sleepy), 1);
    });
}

/// What a thread of C's does, one message after the other.
struct Visit {
    raw: Option<Raw>,
    buf: DmaBuf,
    done: Arc<AtomicUsize>,
}

unsafe extern "C" fn visit(arg: *mut c_void) {
    // SAFETY: the box of the test below, sent once.
    let mut visit = unsafe { Box::from_raw(arg.cast::<Visit>()) };
    assert!(Thread::current().is_none(), "no thread of this crate's");
    let raw = visit.raw.insert(Raw::open(c"sleepy"));
    let (descriptor, channel) = (raw.descriptor, raw.channel);
    assert!(Thread::current().is_some(), "but one that can do as much now");
    let buf = visit.buf.as_mut_ptr().cast();
    let arg = Box::into_raw(visit).cast();
    // SAFETY: open on this thread; the buffer has so many bytes, and stays until the callback.
    let rc = unsafe { spdk_sys::spdk_bdev_read(descriptor, channel, buf, 512, 512, Some(visited), arg) };
    assert_eq!(rc, 0);
}

unsafe extern "C" fn visited(io: *mut spdk_bdev_io, success: bool, arg: *mut c_void) {
    // SAFETY: the box of `visit`, given back once; the I/O is freed once.
    let mut visit = unsafe {
        spdk_sys::spdk_bdev_free_io(io);
        Box::from_raw(arg.cast::<Visit>())
    };
    // SAFETY: the device has filled it.
    unsafe { visit.buf.set_len(512) };
    if let Some(raw) = &visit.raw {
        raw.close();
    }
    let right = success && visit.buf.as_slice() == [1; 512];
    visit.done.store(if right { 1 } else { 2 }, Ordering::Release);
    // SAFETY: the current thread, which goes when its channel has gone.
    let rc: c_int = unsafe { spdk_sys::spdk_thread_exit(spdk_sys::spdk_get_thread()) };
    assert_eq!(rc, 0);
}

#[test]
fn a_thread_of_spdks_can_serve_with_futures() {
    isolated("a_thread_of_spdks_can_serve_with_futures", || {
        run(async {
            let registered = bdev_module::register("sleepy", Async::new(Sleepy::default()))?;
            // SAFETY: reads a counter.
            let threads = || unsafe { spdk_sys::spdk_thread_get_count() };
            let before = threads();
            let done = Arc::new(AtomicUsize::new(0));
            let visit_box = Box::new(Visit {
                raw: None,
                buf: DmaBuf::new(512)?,
                done: Arc::clone(&done),
            });
            // SAFETY: while SPDK runs; a thread without a mask runs on any core. The message owns
            // the box.
            unsafe {
                let thread = spdk_sys::spdk_thread_create(c"of-c".as_ptr(), null_mut());
                let arg = Box::into_raw(visit_box).cast();
                assert_eq!(spdk_sys::spdk_thread_send_msg(thread, Some(visit), arg), 0);
            }
            assert_eq!(threads(), before + 1);
            until("it has read", || done.load(Ordering::Acquire) == 1).await?;
            // It would be five seconds if something of ours still held it.
            let start = Instant::now();
            until("it has gone", || threads() == before).await?;
            assert!(start.elapsed() < Duration::from_secs(2));
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
