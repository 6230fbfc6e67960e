//! Block devices written in Rust: callbacks that submit again, devices that call each other, and
//! what C asks for.

mod common;

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

use common::bdev::{LIMIT, MIB, Raw, open, poll_once, register, until, write};
use common::disk::{TestDisk, lock};
use common::{isolated, run};
use spdk_rs::bdev::Channel;
use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::{BufResult, DmaBuf};
use spdk_rs::reactor::timeout;
use spdk_sys::spdk_bdev_io;

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

#[test]
fn outside_of_the_device_completions_are_heard_at_once() {
    isolated("outside_of_the_device_completions_are_heard_at_once", || {
        run(async {
            let disk = TestDisk::new(MIB);
            let registered = register(&disk, "rust0").await?;
            let writer = Writer {
                raw: Raw::open(c"rust0"),
                buf: DmaBuf::zeroed(512)?,
                left: Cell::new(1),
                done: Cell::new(0),
                failed: Cell::new(0),
            };
            disk.hold();
            writer.submit();
            assert_eq!(writer.done.get(), 0);
            disk.release();
            assert_eq!(writer.done.get(), 1);
            writer.raw.close();
            timeout(LIMIT, registered.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

type Pending = Pin<Box<dyn Future<Output = BufResult<()>>>>;

thread_local! {
    static OWN: RefCell<Option<Channel>> = const { RefCell::new(None) };
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
}

/// Holds an I/O back until the next one comes; then has `Inner` complete it, in the midst of that.
struct Outer(Arc<Mutex<Option<Io>>>);

/// Completes what the other one has held back.
struct Inner(Arc<Mutex<Option<Io>>>);

impl BlockDevice for Outer {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), io: Io) {
        if io.kind() == Kind::Read {
            return; // dropped, which fails it
        }
        INSIDE.set(true);
        if lock(&self.0).is_some() {
            let channel = OWN.take().expect("a channel");
            let buf = DmaBuf::zeroed(512).expect("memory");
            let mut write: Pending = Box::pin(channel.write(buf, 0));
            assert!(poll_once(write.as_mut()).is_pending());
            PENDING.set(Some(write));
            assert!(lock(&self.0).is_none(), "completed meanwhile");
        }
        *lock(&self.0) = Some(io);
        INSIDE.set(false);
    }

    fn drain(&self, (): &mut ()) {
        drop(lock(&self.0).take());
    }
}

impl BlockDevice for Inner {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(512, 2048)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), io: Io) {
        let held = lock(&self.0).take();
        if let Some(held) = held {
            held.complete(Status::Success);
        }
        io.complete(Status::Success);
    }
}

#[test]
fn callbacks_wait_also_if_another_device_calls_for_them() {
    isolated("callbacks_wait_also_if_another_device_calls_for_them", || {
        run(async {
            let held = Arc::new(Mutex::new(None));
            let outer = bdev_module::register("outer", Outer(Arc::clone(&held)))?;
            let inner = bdev_module::register("inner", Inner(Arc::clone(&held)))?;
            spdk_rs::bdev::wait_for_examine().await?;
            let (_inner, channel) = open("inner")?;
            OWN.set(Some(channel));
            let writer = Writer {
                raw: Raw::open(c"outer"),
                buf: DmaBuf::zeroed(512)?,
                left: Cell::new(2),
                done: Cell::new(0),
                failed: Cell::new(0),
            };
            writer.submit();
            writer.submit();
            until("the first has ended", || writer.done.get() == 1).await?;
            let going = spdk_rs::spawn(outer.unregister());
            until("the second, too", || writer.failed.get() == 1).await?;
            writer.raw.close();
            timeout(LIMIT, going).await???;
            drop(PENDING.take());
            timeout(LIMIT, inner.unregister()).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// Submits an I/O to itself, in the midst of its code.
struct Selfish {
    order: Arc<Mutex<Vec<String>>>,
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
