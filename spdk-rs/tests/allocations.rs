//! In the steady state an I/O allocates nothing: not alone, not with many others, not when
//! futures are dropped, not when SPDK is short of I/O objects.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use anyhow::{Result, ensure};
use common::{isolated, run, run_with_small_pool};
use spdk_rs::bdev::{self, Bdev, Channel, Mode};
use spdk_rs::buf::{DmaBuf, DmaBufList, DmaPool};
use spdk_rs::reactor::yield_now;
use spdk_rs::spawn;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it all; this counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by the caller's contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCK: usize = 4096;
const ROUNDS: usize = 2_000;

fn count() -> usize {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Runs `depth` tasks, each with many I/Os; what all of them allocate once all have begun.
async fn allocations<F>(depth: usize, io: impl Fn(usize) -> F) -> Result<usize>
where
    F: Future<Output = Result<()>> + 'static,
{
    let (warm, begun) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let tasks: Vec<_> = (0..depth)
        .map(|task| {
            let (warm, begun) = (Rc::clone(&warm), Rc::clone(&begun));
            let (first, rest): (Vec<F>, Vec<F>) = {
                let mut ios: Vec<F> = (0..ROUNDS).map(|round| io(task * ROUNDS + round)).collect();
                let rest = ios.split_off(ROUNDS / 2);
                (ios, rest)
            };
            spawn(async move {
                for io in first {
                    io.await?;
                }
                warm.set(warm.get() + 1);
                while warm.get() < depth {
                    yield_now().await;
                }
                // Nobody ends, and frees or wakes anything, before all have measured.
                let before = count();
                for io in rest {
                    io.await?;
                }
                begun.set(begun.get() + 1);
                while begun.get() < depth {
                    yield_now().await;
                }
                anyhow::Ok(count() - before)
            })
        })
        .collect();
    let mut most = 0;
    for task in tasks {
        most = most.max(task.await??);
    }
    Ok(most)
}

async fn round_trip(channel: Rc<Channel>, pool: DmaPool, at: usize, write: bool) -> Result<()> {
    let Some(mut buf) = pool.take() else {
        anyhow::bail!("the pool is empty")
    };
    let offset = (at % 1024 * BLOCK) as u64;
    if write {
        buf.fill(7);
        channel.write(buf, offset).await.into_result()?;
    } else {
        channel.read(buf, offset).await.into_result()?;
    }
    Ok(())
}

fn null() -> Result<Rc<Channel>> {
    let descriptor = bdev::null::create("null0", 64 << 10, 512)?.open(Mode::ReadWrite)?;
    Ok(Rc::new(descriptor.channel()?))
}

#[test]
fn the_counter_counts() {
    let before = count();
    drop(Box::new([0_u8; 100]));
    assert!(count() > before);
}

#[test]
fn none_for_reads_and_writes() {
    isolated("none_for_reads_and_writes", || {
        run(async {
            let channel = null()?;
            for depth in [1, 128] {
                let pool = DmaPool::new(depth, BLOCK)?;
                for write in [false, true] {
                    let io = |at| round_trip(Rc::clone(&channel), pool.clone(), at, write);
                    let allocated = allocations(depth, io).await?;
                    assert_eq!(allocated, 0, "depth {depth}, write {write}");
                }
            }
            anyhow::Ok(())
        })
        .expect("I/O");
    });
}

#[test]
fn none_for_lists() {
    isolated("none_for_lists", || {
        run(async {
            let channel = null()?;
            let bufs = (0..4)
                .map(|_| DmaBuf::zeroed(BLOCK))
                .collect::<Result<Vec<_>, _>>()?;
            let mut list = DmaBufList::new(bufs);
            let mut before = 0;
            for round in 0..ROUNDS {
                if round == ROUNDS / 2 {
                    before = count();
                }
                (_, list) = channel.readv(list, 0).await.ok()?;
                (_, list) = channel.writev(list, 0).await.ok()?;
            }
            assert_eq!(count(), before);
            anyhow::Ok(())
        })
        .expect("I/O");
    });
}

#[test]
fn none_for_zero_copy() {
    isolated("none_for_zero_copy", || {
        run(async {
            bdev::malloc::create("ram", 8192, 512)?;
            bdev::null::create("null", 8192, 512)?;
            for name in ["ram", "null"] {
                let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
                let channel = descriptor.channel()?;
                let mut before = 0;
                for round in 0..ROUNDS {
                    if round == ROUNDS / 2 {
                        before = count();
                    }
                    // SAFETY: nobody else uses these blocks.
                    let mut memory = unsafe { channel.zcopy(0, BLOCK as u64, round % 2 == 0) }.await?;
                    if round % 3 == 0 {
                        continue; // dropped
                    }
                    memory.copy_from(&[3; BLOCK])?;
                    memory.commit().await?;
                }
                assert_eq!(count(), before, "{name}");
            }
            anyhow::Ok(())
        })
        .expect("I/O");
    });
}

#[test]
fn none_with_dropped_futures() {
    isolated("none_with_dropped_futures", || {
        run(async {
            let channel = null()?;
            // Those that are dropped are still in flight when the next ones begin.
            let pool = DmaPool::new(1024, BLOCK)?;
            let io = |at: usize| {
                let (channel, pool) = (Rc::clone(&channel), pool.clone());
                async move {
                    if at % 3 == 0 {
                        let Some(buf) = pool.take() else {
                            anyhow::bail!("the pool is empty")
                        };
                        let mut read = pin!(channel.read(buf, 0));
                        let polled = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
                        ensure!(polled.is_pending(), "the device works");
                        return Ok(()); // dropped
                    }
                    round_trip(channel, pool, at, false).await
                }
            };
            assert_eq!(allocations(32, io).await?, 0);
            anyhow::Ok(())
        })
        .expect("I/O");
    });
}

#[test]
fn none_when_short_of_io_objects() {
    isolated("none_when_short_of_io_objects", || {
        let main = async {
            // One layer: with two, SPDK can run out of objects for good.
            let channel = null()?;
            let pool = DmaPool::new(128, BLOCK)?;
            let io = |at| round_trip(Rc::clone(&channel), pool.clone(), at % 512, false);
            assert_eq!(allocations(128, io).await?, 0);
            anyhow::Ok(())
        };
        run_with_small_pool(main).expect("I/O");
    });
}
