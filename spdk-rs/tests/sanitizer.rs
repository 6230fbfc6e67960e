//! That the address sanitizer sees what it is there for; `ci/sanitize address` runs this first.

#![cfg(spdk_asan)]

mod common;

use common::bdev::{open, poll_once, register};
use common::disk::TestDisk;
use common::{is_child, isolated, run, run_child};
use spdk_rs::buf::{DmaBuf, DmaPool};
// It stands for all of SPDK's code: reads from the end to the first byte that is not the one given.
use spdk_sys::spdk_strlen_pad;

/// Runs `body`, which does what is forbidden, in a process of its own, which must not survive it.
#[track_caller]
fn seen(name: &str, what: &str, body: impl FnOnce() + 'static) {
    if is_child() {
        run(async move { body() });
        return;
    }
    let output = run_child(name, &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    let report = text
        .lines()
        .find(|line| line.contains("ERROR: AddressSanitizer:"));
    assert!(!output.status.success(), "nothing was seen");
    assert!(report.is_some_and(|line| line.contains(what)), "{text}");
}

fn buffer() -> DmaBuf {
    DmaBuf::zeroed(4096).expect("memory")
}

#[test]
fn rust_reads_a_buffer_that_was_freed() {
    seen("rust_reads_a_buffer_that_was_freed", "use-after-poison", || {
        let at = buffer().as_ptr();
        // SAFETY: none, on purpose.
        let byte = unsafe { at.read_volatile() };
        println!("{byte}");
    });
}

#[test]
fn rust_reads_a_buffer_that_went_back_to_its_pool() {
    seen(
        "rust_reads_a_buffer_that_went_back_to_its_pool",
        "use-after-poison",
        || {
            let pool = DmaPool::new(1, 4096).expect("memory");
            let at = pool.take().expect("there is one").as_ptr();
            // SAFETY: none, on purpose.
            let byte = unsafe { at.read_volatile() };
            println!("{byte}");
        },
    );
}

#[test]
fn c_reads_a_buffer_that_was_freed() {
    seen("c_reads_a_buffer_that_was_freed", "use-after-poison", || {
        let at = buffer().as_ptr();
        // SAFETY: none, on purpose.
        let length = unsafe { spdk_strlen_pad(at.cast(), 4096, 0) };
        println!("{length}");
    });
}

#[test]
fn c_reads_past_the_end() {
    seen("c_reads_past_the_end", "use-after-poison", || {
        let buf = buffer();
        // SAFETY: none, on purpose.
        let length = unsafe { spdk_strlen_pad(buf.as_ptr().cast(), buf.len() + 1, 0) };
        println!("{length}");
    });
}

/// The device works on buffers whose futures are gone: they must still be there.
#[test]
fn a_device_uses_the_buffers_of_orphans() {
    isolated("a_device_uses_the_buffers_of_orphans", || {
        run(async {
            let disk = TestDisk::new(1 << 20);
            let registered = register(&disk, "rust0").await?;
            let (descriptor, channel) = open("rust0")?;
            disk.hold();
            let mut read = Box::pin(channel.read(DmaBuf::new(4096)?, 0));
            let mut write = Box::pin(channel.write(DmaBuf::zeroed(4096)?, 0));
            assert!(poll_once(read.as_mut()).is_pending() && poll_once(write.as_mut()).is_pending());
            drop((read, write));
            disk.release();
            drop(channel);
            descriptor.close().await?;
            registered.unregister().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    if !is_child() {
        let output = run_child("what_is_allowed_is_not_complained_about", &[]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    run(async {
        // More than waits to be freed at a time.
        for _ in 0..20 {
            let buf = DmaBuf::zeroed(1 << 20).expect("memory");
            // SAFETY: the buffer is alive, and as long.
            assert_eq!(unsafe { spdk_strlen_pad(buf.as_ptr().cast(), buf.len(), 0) }, 0);
        }
        let pool = DmaPool::new(1, 4096).expect("memory");
        for _ in 0..2 {
            pool.take().expect("there is one").fill(1);
        }
    });
}
