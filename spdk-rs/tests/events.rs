//! What happens to an open device is told, whoever is slow.

mod common;

use std::ffi::CString;
use std::pin::pin;
use std::task::Poll;

use anyhow::Result;
use common::bdev::{LIMIT, MIB, poll_once, read, until, write};
use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, Event, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::op::{self, Submitted};
use spdk_rs::reactor::timeout;
use spdk_rs::{Error, ErrorKind};
use spdk_sys::spdk_bdev;

/// The C bdev of this name.
fn raw(name: &str) -> Result<*mut spdk_bdev> {
    let name = CString::new(name)?;
    // SAFETY: the tests run on the app thread, with a C string.
    let bdev = unsafe { spdk_sys::spdk_bdev_get_by_name(name.as_ptr()) };
    assert!(!bdev.is_null());
    Ok(bdev)
}

async fn resize(name: &str, bytes: u64) -> Result<()> {
    let bdev = raw(name)?;
    let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
        // SAFETY: on the app thread; the bdev is an lvol's, and stays. It calls back once.
        unsafe {
            let lvol = spdk_sys::vbdev_lvol_get_from_bdev(bdev);
            spdk_sys::vbdev_lvol_resize(lvol, bytes, Some(cb_fn), cb_arg);
        }
        Submitted::Pending
    })
    .await;
    Ok(Error::check("resize", name, rc)?)
}

#[test]
fn a_new_size_is_told_and_can_be_used() {
    isolated("a_new_size_is_told_and_can_be_used", || {
        run(async {
            const OLD: u64 = 4 * MIB as u64;
            bdev::malloc::create("ram", 65536, 512)?;
            let options = StoreOptions::default().cluster_size(MIB as u32);
            let store = LvolStore::create("ram", "lvs", options).await?;
            store.create_lvol("vol", OLD, Provisioning::Thin).await?;
            let descriptor = Bdev::find("lvs/vol")?.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            let beyond = channel.write(DmaBuf::zeroed(4096)?, OLD).await;
            assert_eq!(beyond.err().map(|e| e.kind()), Some(ErrorKind::OutOfRange));

            // One waits, one is slow, one comes too late.
            let mut waits = descriptor.events();
            let mut slow = descriptor.events();
            let waiting = spdk_rs::spawn(async move { (waits.next().await, waits) });
            resize("lvs/vol", 2 * OLD).await?;
            let (event, mut waits) = timeout(LIMIT, waiting).await??;
            let blocks = descriptor.size() / u64::from(descriptor.block_size());
            assert_eq!(descriptor.size(), 2 * OLD);
            assert_eq!(event, Some(Event::Resized { blocks }));
            write(&channel, &[7; 4096], 2 * OLD - 4096).await?;
            assert_eq!(read(&channel, 4096, 2 * OLD - 4096).await?, [7; 4096]);
            let beyond = channel.read(DmaBuf::new(4096)?, 2 * OLD).await;
            assert_eq!(beyond.err().map(|e| e.kind()), Some(ErrorKind::OutOfRange));

            resize("lvs/vol", 3 * OLD).await?;
            until("it has grown again", || descriptor.size() == 3 * OLD).await?;
            let mut late = descriptor.events();
            let blocks = descriptor.size() / u64::from(descriptor.block_size());
            for events in [&mut slow, &mut waits] {
                // The newest size, once.
                assert_eq!(
                    timeout(LIMIT, events.next()).await?,
                    Some(Event::Resized { blocks })
                );
                assert!(poll_once(pin!(events.next())).is_pending());
            }
            assert!(poll_once(pin!(late.next())).is_pending());
            // What is open does not shrink.
            assert!(resize("lvs/vol", OLD).await.is_err());
            assert_eq!(descriptor.size(), 3 * OLD);

            // They hold nothing open.
            drop(channel);
            let waiting = spdk_rs::spawn(async move { slow.next().await });
            descriptor.close().await?;
            assert_eq!(timeout(LIMIT, waiting).await??, None);
            assert_eq!(waits.next().await, None, "closed is not removed");
            store.unload().await?;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_removal_is_told_last() {
    isolated("a_removal_is_told_last", || {
        run(async {
            let descriptor = bdev::malloc::create("ram", 64, 512)?.open(Mode::ReadOnly)?;
            let mut events = descriptor.events();
            let waiting = spdk_rs::spawn(async move { (events.next().await, events.next().await) });
            let deleted = spdk_rs::spawn(bdev::malloc::delete("ram"));
            let told = timeout(LIMIT, waiting).await??;
            assert_eq!(told, (Some(Event::Removed), None));
            timeout(LIMIT, deleted).await???;
            let mut late = descriptor.events();
            assert_eq!(late.next().await, Some(Event::Removed));
            assert_eq!(late.next().await, None);

            // Dropping the descriptor ends the events, and wakes those who wait.
            let descriptor = bdev::malloc::create("ram", 64, 512)?.open(Mode::ReadOnly)?;
            let mut events = descriptor.events();
            let waiting = spdk_rs::spawn(async move { events.next().await });
            let mut unused = descriptor.events();
            assert!(poll_once(pin!(unused.next())).is_pending());
            spdk_rs::reactor::sleep(std::time::Duration::from_millis(1)).await;
            drop(descriptor);
            assert_eq!(timeout(LIMIT, waiting).await??, None);
            timeout(LIMIT, bdev::malloc::delete("ram")).await??;
            assert_eq!(unused.next().await, None);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

/// SPDK calls on the thread of whoever asks for it, with the device locked.
#[test]
fn media_management_comes_from_any_thread() {
    isolated("media_management_comes_from_any_thread", || {
        run(async {
            let ram = bdev::malloc::create("ram", 64, 512)?;
            let bdev = raw("ram")?;
            // SAFETY: nobody has it open yet; as an Open-Channel device does before it registers.
            unsafe { (*bdev).media_events = true };
            let descriptor = ram.open(Mode::ReadWrite)?;
            let mut events = descriptor.events();
            let mut other = descriptor.events();
            let range = spdk_sys::spdk_bdev_media_event {
                offset: 3,
                num_blocks: 2,
            };
            let bdev = bdev.expose_provenance();
            let notify = move || {
                let bdev = std::ptr::with_exposed_provenance_mut::<spdk_bdev>(bdev);
                // SAFETY: the device stays while this runs. Both take its lock.
                unsafe {
                    assert_eq!(spdk_sys::spdk_bdev_push_media_events(bdev, &range, 1), 1);
                    for _ in 0..100 {
                        spdk_sys::spdk_bdev_notify_media_management(bdev);
                    }
                }
            };
            let waiting = spdk_rs::spawn(async move { (events.next().await, events) });
            let thread = std::thread::spawn(notify);
            let (event, mut events) = timeout(LIMIT, waiting).await??;
            assert_eq!(event, Some(Event::MediaManagement));
            thread.join().expect("no panic");
            // What came since is put together.
            spdk_rs::reactor::sleep(std::time::Duration::from_millis(5)).await;
            let more = matches!(
                poll_once(pin!(events.next())),
                Poll::Ready(Some(Event::MediaManagement))
            );
            assert!(!more || poll_once(pin!(events.next())).is_pending());
            assert_eq!(timeout(LIMIT, other.next()).await?, Some(Event::MediaManagement));
            assert!(poll_once(pin!(other.next())).is_pending());

            // From the owner's own thread, too; and when the owner closes before it hears of it.
            notify();
            assert_eq!(timeout(LIMIT, other.next()).await?, Some(Event::MediaManagement));
            notify();
            drop(descriptor);
            assert_eq!(other.next().await, None);
            timeout(LIMIT, bdev::malloc::delete("ram")).await??;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
