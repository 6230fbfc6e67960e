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
use common::bdev::{LIMIT, MIB, Raw, open, poll_once, until};
use common::{isolated, run};
use spdk_rs::bdev::{Channel, Descriptor, aio};
use spdk_rs::reactor::{Poller, timeout};

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
            anyhow::bail!("{} is flushed too fast to see anything: build on a disk", path.display())
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
