//! Threads end, with things of theirs in others' hands.

mod common;

use std::cell::RefCell;
use std::time::Duration;

use common::bdev::{LIMIT, until};
use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, Channel, Descriptor, Mode};
use spdk_rs::reactor::{Poller, Thread, sleep, timeout};

thread_local! {
    /// Where a thread leaves what is its own to another one on the same reactor.
    static LEFT: RefCell<Vec<(Descriptor, Channel)>> = const { RefCell::new(Vec::new()) };
    static LEFT_POLLER: RefCell<Option<Poller>> = const { RefCell::new(None) };
}

/// On a thread of its own: opens the device and leaves it.
fn leave_open(ram: &Bdev) -> anyhow::Result<()> {
    let descriptor = ram.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    LEFT.with_borrow_mut(|left| left.push((descriptor, channel)));
    Ok(())
}

/// What is dropped elsewhere goes home, also while its thread is on its way out.
#[test]
fn what_an_exiting_thread_has_left_elsewhere() {
    isolated("what_an_exiting_thread_has_left_elsewhere", || {
        run(async {
            let ram = bdev::malloc::create("ram", 8192, 512)?;
            // SAFETY: reads a counter.
            let threads = || unsafe { spdk_sys::spdk_thread_get_count() };
            let before = threads();
            let worker = Thread::create("worker", 0)?;
            worker
                .spawn_on(move || async move {
                    leave_open(&ram)?;
                    let poller = Poller::register("left", Duration::ZERO, || false)?;
                    LEFT_POLLER.set(Some(poller));
                    anyhow::Ok(())
                })?
                .await??;
            let exiting = spdk_rs::spawn({
                let worker = worker.clone();
                async move { worker.exit().await }
            });
            until("it takes no more tasks", || worker.send(|| ()).is_err()).await?;
            sleep(Duration::from_millis(5)).await;
            assert!(!exiting.is_finished(), "it waits for what it owns");
            drop(LEFT.take());
            drop(LEFT_POLLER.take());
            timeout(LIMIT, exiting).await??;
            until("it has gone", || threads() == before).await?;
            timeout(LIMIT, bdev::malloc::delete("ram")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// The same at the runtime's end, where the app thread's tasks go last.
#[test]
fn what_a_thread_has_left_to_the_runtimes_end() {
    isolated("what_a_thread_has_left_to_the_runtimes_end", || {
        run(async {
            let ram = bdev::malloc::create("ram", 8192, 512)?;
            let worker = Thread::create("worker", 0)?;
            worker
                .spawn_on(move || async move { leave_open(&ram) })?
                .await??;
            let rest = LEFT.take();
            spdk_rs::spawn(async move {
                let _rest = rest;
                std::future::pending::<()>().await;
            });
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
