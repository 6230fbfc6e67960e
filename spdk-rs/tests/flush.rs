//! Flushes: that of a file does not stop the reactor, and that of a volume reaches its base.

mod common;

use std::cell::Cell;
use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::bdev::{LIMIT, MIB, Raw, open, pattern, poll_once, register, until, write};
use common::disk::{Fate, TestDisk};
use common::{isolated, run};
use spdk_rs::bdev::{Bdev, Channel, Descriptor, IoType, aio};
use spdk_rs::bdev_module::{Kind, Properties, Status};
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::{Poller, timeout};
use spdk_rs::{ErrorKind, spawn};

/// Counts the reactor's turns.
struct Turns {
    count: Rc<Cell<u32>>,
    _poller: Poller,
}

impl Turns {
    fn count() -> Result<Self> {
        let count = Rc::new(Cell::new(0));
        let poller = Poller::register("turns", Duration::ZERO, {
            let count = Rc::clone(&count);
            move || {
                count.set(count.get() + 1);
                false
            }
        })?;
        Ok(Self {
            count,
            _poller: poller,
        })
    }
}

fn fill(path: &Path) -> Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let data = vec![7; MIB];
    for _ in 0..256 {
        file.write_all(&data)?;
    }
    Ok(())
}

/// The device goes when the flush has ended, which does not mind.
async fn removed_while_it_is_flushed(descriptor: Descriptor, channel: Channel) -> Result<()> {
    {
        let mut flush = pin!(channel.flush());
        ensure!(poll_once(flush.as_mut()).is_pending());
        let mut delete = pin!(aio::delete("aio0"));
        ensure!(poll_once(delete.as_mut()).is_pending());
        timeout(LIMIT, flush).await??;
        ensure!(descriptor.is_removed());
        timeout(LIMIT, delete).await??;
    }
    drop(channel);
    descriptor.close().await?;
    Ok(())
}

/// Leaves so much in the page cache that a flush takes its time, and flushes. Returns how long it
/// took, and the reactor's turns meanwhile.
async fn slow_flush(path: &Path, channel: &Channel, turns: &Turns) -> Result<(Duration, u32)> {
    fill(path)?;
    turns.count.set(0);
    let start = Instant::now();
    timeout(LIMIT, channel.flush()).await??;
    Ok((start.elapsed(), turns.count.get()))
}

#[test]
fn the_reactor_turns_while_a_file_is_flushed() {
    isolated("the_reactor_turns_while_a_file_is_flushed", || {
        // Where this was built there is a disk, rather than memory.
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a place");
        let path = place.path().join("disk");
        run(async move {
            File::create(&path)?.set_len(256 * MIB as u64)?;
            aio::create("aio0", &path, 4096)?;
            let (descriptor, channel) = open("aio0")?;
            let turns = Turns::count()?;
            for _ in 0..8 {
                let (took, turned) = slow_flush(&path, &channel, &turns).await?;
                println!("a flush took {took:?}, in which the reactor turned {turned} times");
                if took < Duration::from_millis(20) {
                    continue; // the kernel has been quicker
                }
                ensure!(turned > 100, "it turned {turned} times in {took:?}");
                fill(&path)?;
                return removed_while_it_is_flushed(descriptor, channel).await;
            }
            anyhow::bail!(
                "{} is flushed too fast to see anything: build on a disk",
                path.display()
            )
        })
        .expect("the scenario");
    });
}

/// The kernel has nothing that it could flush there, and says so. (This crate does not hand on I/O to a
/// device without blocks: as C does it.)
#[test]
fn a_flush_that_fails_is_an_error() {
    unsafe extern "C" fn done(io: *mut spdk_sys::spdk_bdev_io, success: bool, ended: *mut c_void) {
        // SAFETY: the I/O is the callback's; the cell lives until the I/O has ended.
        unsafe {
            spdk_sys::spdk_bdev_free_io(io);
            (*ended.cast::<Cell<Option<bool>>>()).set(Some(success));
        }
    }
    isolated("a_flush_that_fails_is_an_error", || {
        run(async {
            aio::create("zero", "/dev/zero", 512)?;
            let raw = Raw::open(c"zero");
            let ended = Rc::new(Cell::new(None));
            let arg = Rc::as_ptr(&ended).cast_mut().cast();
            // SAFETY: the descriptor and the channel are open, and this thread's.
            let rc = unsafe {
                spdk_sys::spdk_bdev_flush_blocks(raw.descriptor, raw.channel, 0, 0, Some(done), arg)
            };
            ensure!(rc == 0, "submitted: {rc}");
            until("the flush ends", || ended.get().is_some()).await?;
            ensure!(ended.get() == Some(false));
            raw.close();
            Ok(aio::delete("zero").await?)
        })
        .expect("the scenario");
    });
}

/// What has no room in the file, here because the process may not write there, is told from what is broken.
#[test]
fn no_room_is_told() {
    isolated("no_room_is_told", || {
        let place = tempfile::tempdir().expect("a place");
        let path = place.path().join("disk");
        run(async move {
            File::create(&path)?.set_len(4 * MIB as u64)?;
            aio::create("aio0", &path, 4096)?;
            let (descriptor, channel) = open("aio0")?;
            let limit = libc::rlimit {
                rlim_cur: 2 * MIB as u64,
                rlim_max: 2 * MIB as u64,
            };
            // SAFETY: plain system calls; what is too large fails then, and does not end the process.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                ensure!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0, "a limit");
            }
            write(&channel, &pattern(4096, 1), MIB as u64).await?;
            let error = write(&channel, &pattern(4096, 1), 3 * MIB as u64)
                .await
                .unwrap_err();
            ensure!(error.kind() == ErrorKind::NoSpace, "{error}");
            channel.flush().await?;
            drop(channel);
            descriptor.close().await?;
            Ok(aio::delete("aio0").await?)
        })
        .expect("the scenario");
    });
}

/// A store on a device that counts, and a thin volume there; and one without anything to flush.
#[test]
fn a_volumes_flush_reaches_the_base() {
    isolated("a_volumes_flush_reaches_the_base", || {
        run(async {
            let disk = TestDisk::new(64 * MIB);
            let registered = register(&disk, "disk").await?;
            let store = LvolStore::create("disk", "lvs", StoreOptions::default()).await?;
            let vol = store
                .create_lvol("vol", 8 * MIB as u64, Provisioning::Thin)
                .await?;
            ensure!(Bdev::find("lvs/vol")?.supports(IoType::Flush));
            let (descriptor, channel) = open("lvs/vol")?;
            write(&channel, &pattern(4096, 1), 0).await?;
            disk.forget_seen();
            channel.flush().await?;
            ensure!((disk.seen(Kind::Flush), disk.seen(Kind::Write)) == (1, 0));

            // What the base answers is the answer, and there is none before that.
            disk.fail(Kind::Flush, 1, Fate::End(Status::Failed));
            let error = channel.flush().await.unwrap_err();
            ensure!(error.kind() == ErrorKind::Io, "{error}");
            disk.hold();
            let mut flush = Box::pin(channel.flush());
            ensure!(timeout(Duration::from_millis(50), &mut flush).await.is_err());
            disk.release();
            timeout(LIMIT, flush).await??;
            ensure!(disk.seen(Kind::Flush) == 3);

            // A snapshot was written as its volume.
            store.lvol("vol").await?.snapshot("snap").await?;
            ensure!(Bdev::find("lvs/snap")?.supports(IoType::Flush));
            let (reader, snapshot) = open("lvs/snap")?;
            snapshot.flush().await?;
            ensure!(disk.seen(Kind::Flush) == 4);
            drop(snapshot);
            reader.close().await?;

            // A volume that is being destroyed, as other I/O: it is gone.
            let destroyed = spawn(vol.destroy());
            until("the volume goes", || descriptor.is_removed()).await?;
            ensure!(channel.flush().await.is_err());
            drop(channel);
            descriptor.close().await?;
            timeout(LIMIT, destroyed).await???;
            ensure!(disk.seen(Kind::Flush) == 4);
            store.destroy().await?;
            Ok(registered.unregister().await?)
        })
        .expect("the scenario");
    });
}

#[test]
fn a_volume_can_do_what_its_base_can() {
    isolated("a_volume_can_do_what_its_base_can", || {
        run(async {
            let properties = Properties::new(512, 64 * MIB as u64 / 512)
                .supports(Kind::WriteZeroes)
                .supports(Kind::Unmap);
            let disk = TestDisk::with(properties, 64 * MIB);
            let registered = register(&disk, "disk").await?;
            let store = LvolStore::create("disk", "lvs", StoreOptions::default()).await?;
            store
                .create_lvol("vol", 8 * MIB as u64, Provisioning::Thin)
                .await?;
            ensure!(!Bdev::find("lvs/vol")?.supports(IoType::Flush));
            ensure!(!Bdev::find("lvs/vol")?.has_write_cache());
            let (descriptor, channel) = open("lvs/vol")?;
            channel.flush().await?; // there is nothing to do
            ensure!(disk.seen(Kind::Flush) == 0);
            drop(channel);
            descriptor.close().await?;
            store.destroy().await?;
            Ok(registered.unregister().await?)
        })
        .expect("the scenario");
    });
}
