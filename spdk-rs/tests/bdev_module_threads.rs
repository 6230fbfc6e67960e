//! Block devices written in Rust: several threads, threads of SPDK's own, callbacks that submit
//! again, and futures.

mod common;

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use common::bdev::{LIMIT, MIB, open, pattern, poll_once, read, register, until, write};
use common::disk::{TestDisk, lock};
use common::{builder, isolated, run};
use spdk_rs::bdev::{Bdev, Channel, Mode};
use spdk_rs::bdev_module::{self, Async, AsyncBlockDevice, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::{BufResult, DmaBuf};
use spdk_rs::reactor::{Thread, sleep, timeout};
use spdk_rs::{ErrorKind, op};
use spdk_sys::{spdk_bdev_desc, spdk_bdev_io, spdk_io_channel};

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

/// An open device as C has it, with a callback of C's.
struct Raw {
    descriptor: *mut spdk_bdev_desc,
    channel: *mut spdk_io_channel,
}

impl Raw {
    fn open(name: &std::ffi::CStr) -> Self {
        unsafe extern "C" fn event(_: u32, _: *mut spdk_sys::spdk_bdev, _: *mut c_void) {}
        let mut descriptor = null_mut();
        // SAFETY: on an spdk_thread; the name is a C string, and the callback needs no argument.
        unsafe {
            let rc =
                spdk_sys::spdk_bdev_open_ext(name.as_ptr(), true, Some(event), null_mut(), &mut descriptor);
            assert_eq!(rc, 0);
            let channel = spdk_sys::spdk_bdev_get_io_channel(descriptor);
            assert!(!channel.is_null());
            Self { descriptor, channel }
        }
    }

    fn close(&self) {
        // SAFETY: opened on this thread; no I/O is in flight.
        unsafe {
            spdk_sys::spdk_put_io_channel(self.channel);
            spdk_sys::spdk_bdev_close(self.descriptor);
        }
    }
}

/// Completes an I/O only when the next one comes, in the midst of that.
struct Swap;

thread_local! {
    /// The device's code is on the stack.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl BlockDevice for Swap {
    type Channel = Option<Io>;

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<Option<Io>> {
        Ok(None)
    }

    fn submit(&self, held: &mut Option<Io>, io: Io) {
        assert!(!INSIDE.replace(true), "entered twice");
        if io.kind() == Kind::Read {
            io.complete(Status::Failed); // SPDK has a look at the device
        } else if let Some(before) = held.replace(io) {
            before.complete(Status::Success);
        }
        INSIDE.set(false);
    }

    fn drain(&self, held: &mut Option<Io>) {
        assert!(!INSIDE.replace(true), "entered twice");
        *held = None;
        INSIDE.set(false);
    }
}

/// A writer whose callback submits the next write.
struct Writer {
    raw: Raw,
    buf: DmaBuf,
    left: Cell<usize>,
    done: Cell<usize>,
    failed: Cell<usize>,
}

impl Writer {
    fn submit(&self) {
        self.left.set(self.left.get() - 1);
        let (raw, buf) = (&self.raw, self.buf.as_ptr().cast_mut().cast());
        let this = std::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: open on this thread; the buffer, of a block, and the writer stay.
        let rc = unsafe {
            spdk_sys::spdk_bdev_write(
                raw.descriptor,
                raw.channel,
                buf,
                0,
                512,
                Some(Self::on_done),
                this,
            )
        };
        assert_eq!(rc, 0);
    }

    unsafe extern "C" fn on_done(io: *mut spdk_bdev_io, success: bool, this: *mut c_void) {
        // SAFETY: the writer, which stays until all has ended; the I/O is freed once.
        let this = unsafe {
            spdk_sys::spdk_bdev_free_io(io);
            &*this.cast::<Self>()
        };
        if INSIDE.get() {
            eprintln!("a callback runs inside of the device's code");
            std::process::abort(); // a panic must not cross C
        }
        let count = if success { &this.done } else { &this.failed };
        count.set(count.get() + 1);
        if this.left.get() > 0 {
            this.submit();
        }
    }
}

#[test]
fn callbacks_wait_until_the_device_has_returned() {
    isolated("callbacks_wait_until_the_device_has_returned", || {
        run(async {
            let registered = bdev_module::register("swap", Swap)?;
            let writer = Writer {
                raw: Raw::open(c"swap"),
                buf: DmaBuf::zeroed(512)?,
                left: Cell::new(10_000),
                done: Cell::new(0),
                failed: Cell::new(0),
            };
            writer.submit();
            writer.submit();
            until("all but the last", || writer.done.get() == 9_999).await?;
            assert_eq!(writer.failed.get(), 0);
            let going = spdk_rs::spawn(registered.unregister());
            until("the last", || writer.failed.get() == 1).await?;
            writer.raw.close();
            timeout(LIMIT, going).await???;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Submits an I/O to itself, in the midst of its code.
struct Selfish {
    order: Arc<Mutex<Vec<String>>>,
}

type Pending = Pin<Box<dyn Future<Output = BufResult<()>>>>;

thread_local! {
    static OWN: RefCell<Option<Channel>> = const { RefCell::new(None) };
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

impl BlockDevice for Selfish {
    type Channel = u32;

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<u32> {
        Ok(0)
    }

    fn submit(&self, depth: &mut u32, io: Io) {
        if io.kind() == Kind::Read {
            return; // dropped, which fails it
        }
        *depth += 1;
        lock(&self.order).push(format!("{depth}: {} begins", io.offset_blocks()));
        if io.offset_blocks() == 0 {
            let channel = OWN.take().expect("a channel");
            let buf = DmaBuf::zeroed(512).expect("memory");
            let mut write: Pending = Box::pin(channel.write(buf, 512));
            assert!(poll_once(write.as_mut()).is_pending());
            PENDING.set(Some(write));
        }
        lock(&self.order).push(format!("{depth}: {} ends", io.offset_blocks()));
        *depth -= 1;
        io.complete(Status::Success);
    }
}

#[test]
fn a_device_is_not_entered_twice() {
    isolated("a_device_is_not_entered_twice", || {
        run(async {
            let order = Arc::new(Mutex::new(Vec::new()));
            let selfish = Selfish {
                order: Arc::clone(&order),
            };
            let registered = bdev_module::register("selfish", selfish)?;
            let (_descriptor, channel) = open("selfish")?;
            let (_other, own) = open("selfish")?;
            OWN.set(Some(own));
            write(&channel, &[0; 512], 0).await?;
            let second = PENDING.take().expect("it was submitted");
            timeout(LIMIT, second).await?.into_result()?;
            let order = lock(&order).join(", ");
            assert_eq!(order, "1: 0 begins, 1: 0 ends, 1: 1 begins, 1: 1 ends");
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Keeps a list of where the memory was.
struct Places(Arc<Mutex<Vec<(Kind, usize, usize)>>>);

impl BlockDevice for Places {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(512, 2048).alignment(512)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), mut io: Io) {
        let mut seen = lock(&self.0);
        for segment in io.segments() {
            assert_eq!(segment, vec![3; segment.len()]);
            seen.push((Kind::Write, segment.as_ptr().addr(), segment.len()));
        }
        let mut segments = io.segments_mut();
        while let Some(segment) = segments.next() {
            seen.push((Kind::Read, segment.as_ptr().addr(), segment.len()));
        }
        io.fill(4);
        io.complete(Status::Success);
    }
}

#[test]
fn memory_is_there_and_aligned() {
    thread_local! {
        static DONE: Cell<usize> = const { Cell::new(0) };
    }
    unsafe extern "C" fn done(io: *mut spdk_bdev_io, success: bool, read_len: *mut c_void) {
        let (mut iovecs, mut count) = (null_mut(), 0);
        // SAFETY: the I/O has ended, and is ours until it is freed, once; a read of SPDK's own
        // memory has one iovec, which was filled.
        unsafe {
            spdk_sys::spdk_bdev_io_get_iovec(io, &mut iovecs, &mut count);
            let len = read_len.addr();
            if len > 0 {
                let read = std::slice::from_raw_parts((*iovecs).iov_base.cast::<u8>(), len);
                if !success || count != 1 || read.iter().any(|byte| *byte != 4) {
                    std::process::abort();
                }
            }
            spdk_sys::spdk_bdev_free_io(io);
        }
        DONE.set(DONE.get() + usize::from(success));
    }
    isolated("memory_is_there_and_aligned", || {
        run(async {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let registered = bdev_module::register("places", Places(Arc::clone(&seen)))?;
            spdk_rs::bdev::wait_for_examine().await?;
            lock(&seen).clear();
            let raw = Raw::open(c"places");
            let mut buf = DmaBuf::new(8192)?;
            buf.fill(3);
            let base = buf.as_mut_ptr();
            let len = 2048;
            // SAFETY: open on this thread; the buffer has so many bytes, and stays.
            let submit = |read: bool, place: *mut u8, expect: usize| unsafe {
                let call = if read {
                    spdk_sys::spdk_bdev_read
                } else {
                    spdk_sys::spdk_bdev_write
                };
                let arg = std::ptr::without_provenance_mut(expect);
                let rc = call(raw.descriptor, raw.channel, place.cast(), 0, len, Some(done), arg);
                assert_eq!(rc, 0);
            };
            submit(false, base, 0); // as it is
            submit(false, base.wrapping_add(8), 0); // SPDK copies
            submit(true, null_mut(), 2048); // SPDK gives
            submit(true, base.wrapping_add(4096), 0);
            submit(true, base.wrapping_add(100), 0); // SPDK copies back
            until("all have ended", || DONE.get() == 5).await?;
            let places = lock(&seen).clone();
            assert_eq!(places.len(), 5);
            for (_, place, length) in &places {
                assert_eq!((place % 512, *length), (0, 2048));
            }
            use Kind::{Read, Write};
            assert_eq!(
                places.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(),
                [Write, Write, Read, Read, Read]
            );
            assert_eq!((places[0].1, places[3].1), (base.addr(), base.addr() + 4096));
            assert_eq!(buf.as_slice()[..100], [3; 100]);
            assert_eq!(buf.as_slice()[100..2148], [4; 2048]);
            assert_eq!(buf.as_slice()[2148..4096], [3; 1948]);
            raw.close();
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Our own channels do not ask; C does.
#[test]
fn what_it_cannot_do_does_not_reach_it() {
    thread_local! {
        static CODES: RefCell<Vec<(c_int, c_int)>> = const { RefCell::new(Vec::new()) };
    }
    unsafe extern "C" fn done(io: *mut spdk_bdev_io, _success: bool, _: *mut c_void) {
        let (mut cdw0, mut code_type, mut code) = (0, 0, 0);
        // SAFETY: the I/O has ended, and is ours until it is freed, once.
        unsafe {
            spdk_sys::spdk_bdev_io_get_nvme_status(io, &mut cdw0, &mut code_type, &mut code);
            spdk_sys::spdk_bdev_free_io(io);
        }
        CODES.with_borrow_mut(|codes| codes.push((code_type, code)));
    }
    isolated("what_it_cannot_do_does_not_reach_it", || {
        run(async {
            let disk = TestDisk::with(Properties::new(512, 2048), MIB);
            let registered = register(&disk, "plain").await?;
            let raw = Raw::open(c"plain");
            // SAFETY: open on this thread; the callback needs no argument.
            unsafe {
                let (descriptor, channel) = (raw.descriptor, raw.channel);
                let rc = [
                    spdk_sys::spdk_bdev_unmap_blocks(descriptor, channel, 0, 8, Some(done), null_mut()),
                    spdk_sys::spdk_bdev_flush_blocks(descriptor, channel, 0, 8, Some(done), null_mut()),
                    spdk_sys::spdk_bdev_reset(descriptor, channel, Some(done), null_mut()),
                ];
                assert_eq!(rc, [0; 3]);
            }
            until("all have ended", || CODES.with_borrow(Vec::len) == 3).await?;
            assert_eq!(CODES.take(), [(0, 1); 3], "invalid opcode");
            assert_eq!(Kind::ALL.map(|kind| disk.seen(kind)), [0; 6]);
            raw.close();
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
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
