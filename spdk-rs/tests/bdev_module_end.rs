//! Block devices written in Rust: how they go.

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use anyhow::Result;
use common::bdev::{LIMIT, MIB, open, poll_once, register, until, write};
use common::disk::{DROPPED, Fate, TestDisk};
use common::{isolated, run};
use spdk_rs::bdev_module::Kind;
use spdk_rs::buf::{BufResult, DmaBuf};
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::timeout;
use spdk_rs::{ErrorKind, op};

#[test]
fn unregistered_with_io_in_flight() {
    isolated("unregistered_with_io_in_flight", || {
        run(async {
            let disk = TestDisk::new(MIB);
            // Once it is awaited, once dropped: here, and on another thread.
            for how in 0..3 {
                let registered = register(&disk, "rust0").await?;
                let (descriptor, channel) = open("rust0")?;
                disk.hold();
                let mut ios = Vec::new();
                for n in 0..32_u64 {
                    let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[1; 512])?, n * 512));
                    assert!(poll_once(io.as_mut()).is_pending());
                    ios.push(io);
                }
                let unanswered = ios.split_off(16);
                drop(unanswered); // their callers have gone
                match how {
                    0 => timeout(LIMIT, registered.unregister()).await??,
                    1 => drop(registered),
                    _ => {
                        let worker = spdk_rs::reactor::Thread::create("worker", 0)?;
                        worker.spawn_on(move || async { drop(registered) })?.await?;
                    }
                }
                // Descriptor and channel are still held.
                until("the device is gone", || Arc::strong_count(&disk) == 1).await?;
                assert!(descriptor.is_removed());
                assert_eq!((disk.channels(), op::outstanding()), (0, 0));
                for io in ios {
                    timeout(LIMIT, io).await?.into_result()?; // the drain has done them
                }
                let late = write(&channel, &[0; 512], 0).await.unwrap_err();
                assert_eq!(late.kind(), ErrorKind::Removed);
            }
            // What was begun goes on without its future.
            let registered = register(&disk, "rust0").await?;
            let mut going = Box::pin(registered.unregister());
            assert!(poll_once(going.as_mut()).is_pending());
            drop(going);
            until("the device is gone", || Arc::strong_count(&disk) == 1).await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn the_runtime_stops_with_devices_registered() {
    isolated("the_runtime_stops_with_devices_registered", || {
        let disks: Vec<_> = (0..4).map(|_| TestDisk::new(16 * MIB)).collect();
        let inner = disks.clone();
        let start = Instant::now();
        run(async move {
            inner[0].register("kept")?.keep();
            // One with a store upon it, which SPDK takes down first.
            inner[1].register("base")?.keep();
            let options = StoreOptions::default().cluster_size(MIB as u32);
            let store = LvolStore::create("base", "lvs", options).await?;
            store
                .create_lvol("vol", 4 * MIB as u64, Provisioning::Thin)
                .await?;
            let (_descriptor, channel) = open("lvs/vol")?;
            write(&channel, &[3; 4096], 0).await?;
            // Ones that are still in the hands of a task, with I/O that is held back.
            for (n, name) in [(2, "owned"), (3, "kept too")] {
                let registered = register(&inner[n], name).await?;
                let (descriptor, channel) = open(name)?;
                inner[n].hold();
                let owned = if n == 2 {
                    Some(registered)
                } else {
                    registered.keep();
                    None
                };
                spdk_rs::spawn(async move {
                    let _all = (owned, descriptor);
                    channel.write(DmaBuf::copy_of(&[1; 512])?, 0).await.into_result()
                });
            }
            until("the I/O is held", || op::outstanding() == 2).await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
        assert!(start.elapsed() < LIMIT, "nothing had to be given up");
        for (n, disk) in disks.iter().enumerate() {
            assert_eq!((n, Arc::strong_count(disk), disk.channels()), (n, 1, 0));
        }
        drop(disks);
        assert_eq!(DROPPED.load(Ordering::Acquire), 4);
    });
}

#[test]
fn a_panic_fails_the_io_and_ends_the_runtime() {
    type Write = Pin<Box<dyn Future<Output = BufResult<()>>>>;
    thread_local! {
        /// The runtime's end drops tasks, but not these.
        static WRITES: RefCell<Vec<Write>> = const { RefCell::new(Vec::new()) };
    }
    isolated("a_panic_fails_the_io_and_ends_the_runtime", || {
        let disk = TestDisk::new(MIB);
        let inner = Arc::clone(&disk);
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(move || {
            run(async move {
                register(&inner, "rust0").await?.keep();
                let (_descriptor, channel) = open("rust0")?;
                write(&channel, &[1; 512], 0).await?;
                // One that is in flight when the next one panics; a third one, after that.
                inner.hold();
                inner.fail(Kind::Write, 2, Fate::Panics);
                for n in 0..3 {
                    let mut io = Box::pin(channel.write(DmaBuf::copy_of(&[4; 512])?, n * 512));
                    assert!(poll_once(io.as_mut()).is_pending());
                    WRITES.with_borrow_mut(|writes| writes.push(io));
                }
                assert_eq!(inner.seen(Kind::Write), 3, "a broken device is asked for nothing");
                std::future::pending::<Result<()>>().await
            })
        }));
        let payload = ended.expect_err("the panic comes out of run");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"told to panic"));
        let results = WRITES
            .take()
            .into_iter()
            .map(|mut write| match poll_once(write.as_mut()) {
                Poll::Ready(result) => result.err().map(|error| error.kind()),
                Poll::Pending => panic!("an I/O never ended"),
            });
        // SPDK says "removed" of what ends badly after that.
        let results: Vec<_> = results.collect();
        assert_eq!(results[0], None, "drained");
        for error in &results[1..] {
            assert!(
                matches!(error, Some(ErrorKind::Io | ErrorKind::Removed)),
                "{error:?}"
            );
        }
        assert!(
            start.elapsed() < LIMIT,
            "the one in flight was not waited for in vain"
        );
        assert_eq!((disk.channels(), Arc::strong_count(&disk)), (0, 1));
    });
}
