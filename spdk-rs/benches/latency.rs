//! How long the smallest things take: one I/O, a task, a message. By Criterion, which keeps what it
//! found the last time and says what has changed.
//!
//! ```sh
//! cargo bench -p spdk-rs              # all, a minute and a half
//! cargo bench -p spdk-rs -- read/aio  # some
//! ```
//!
//! Needs neither root nor huge pages; without a second core, what crosses cores is left out. (How
//! this compares with SPDK's own C, `ci/bench` measures.)

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::Criterion;
use spdk_rs::bdev::{self, Bdev, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::sync::oneshot;
use spdk_rs::reactor::{Thread, ThreadHandle, cores};
use spdk_rs::runtime::Handle;
use spdk_rs::{Runtime, spawn};

const SIZE: u64 = 4096;
const DISK: u64 = 16 << 20;

/// What is measured on.
struct Place {
    spdk: Handle,
    tokio: tokio::runtime::Runtime,
}

impl Place {
    /// Runs a future on core 0, and returns what it does; the calling thread sleeps meanwhile.
    fn run<T, M, F>(&self, make: M) -> T
    where
        T: Send + 'static,
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let task = self.spdk.spawn(make).expect("SPDK runs");
        let ended = self.tokio.block_on(task).expect("no panic");
        ended.expect("what is measured works")
    }
}

async fn devices(file: &Path) -> Result<()> {
    bdev::null::create("null0", DISK / 512, 512)?;
    bdev::malloc::create("malloc0", DISK / 512, 512)?;
    bdev::aio::create("aio0", file, 512)?;
    bdev::malloc::create("base0", DISK / 512, 512)?;
    let options = StoreOptions::default().cluster_size(1 << 20);
    let store = LvolStore::create("base0", "lvs", options).await?;
    store.create_lvol("vol", DISK / 2, Provisioning::Thick).await?;
    Ok(())
}

/// Gives back what SPDK would complain of.
async fn clean_up() -> Result<()> {
    LvolStore::find("lvs").await?.destroy().await?;
    Ok(())
}

/// One I/O after the other, all over half of the device.
async fn one_by_one<F>(name: &str, times: u64, each: impl Fn(Channel, DmaBuf, u64) -> F) -> Result<Duration>
where
    F: Future<Output = spdk_rs::Result<(Channel, DmaBuf)>>,
{
    let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
    let (mut channel, mut buf) = (descriptor.channel()?, DmaBuf::zeroed(SIZE as usize)?);
    let places = DISK / 2 / SIZE;
    let begun = Instant::now();
    for at in 0..times {
        (channel, buf) = each(channel, buf, at * 61 % places * SIZE).await?;
    }
    let took = begun.elapsed();
    drop(channel);
    descriptor.close().await?;
    Ok(took)
}

fn io(criterion: &mut Criterion, place: &Place) {
    let kinds = [
        ("null", "null0"),
        ("malloc", "malloc0"),
        ("aio", "aio0"),
        ("lvol", "lvs/vol"),
    ];
    let mut writes = criterion.benchmark_group("write");
    for (kind, name) in kinds {
        writes.bench_function(kind, |bencher| {
            bencher.iter_custom(|times| {
                let write = async |channel: Channel, buf, at| {
                    let (_, buf) = channel.write(buf, at).await.ok()?;
                    Ok((channel, buf))
                };
                place.run(move || one_by_one(name, times, write))
            });
        });
    }
    writes.finish();
    let mut reads = criterion.benchmark_group("read");
    for (kind, name) in kinds {
        reads.bench_function(kind, |bencher| {
            bencher.iter_custom(|times| {
                let read = async |channel: Channel, buf, at| {
                    let (_, buf) = channel.read(buf, at).await.ok()?;
                    Ok((channel, buf))
                };
                place.run(move || one_by_one(name, times, read))
            });
        });
    }
    reads.finish();
}

/// A task that does nothing, until whoever spawned it knows that it has ended.
async fn tasks(thread: Option<ThreadHandle>, times: u64) -> Result<Duration> {
    let begun = Instant::now();
    for _ in 0..times {
        match &thread {
            None => spawn(async {}).await?,
            Some(thread) => thread.spawn_on(|| async {})?.await?,
        }
    }
    Ok(begun.elapsed())
}

/// Messages that do nothing, sent one after the other, until the last has arrived.
async fn messages(thread: ThreadHandle, times: u64) -> Result<Duration> {
    let begun = Instant::now();
    for _ in 1..times {
        thread.send(|| ())?;
    }
    let (last, arrived) = oneshot::channel();
    thread.send(move || {
        let _ = last.send(());
    })?;
    arrived.await?;
    Ok(begun.elapsed())
}

fn threads(criterion: &mut Criterion, place: &Place) {
    let app = Thread::app().expect("SPDK runs");
    let cores = cores().expect("SPDK runs");
    let other = cores.get(1).map(|core| Thread::on_core(*core).expect("a thread"));
    let mut group = criterion.benchmark_group("spawn");
    group.bench_function("here", |bencher| {
        bencher.iter_custom(|times| place.run(move || tasks(None, times)));
    });
    if let Some(other) = &other {
        group.bench_function("other_core_and_back", |bencher| {
            bencher.iter_custom(|times| {
                let other = other.clone();
                place.run(move || tasks(Some(other), times))
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("message");
    for (name, thread) in [("here", Some(app)), ("other_core", other)] {
        let Some(thread) = thread else { continue };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let thread = thread.clone();
                place.run(move || messages(thread, times))
            });
        });
    }
    group.finish();
}

fn main() -> Result<()> {
    // In memory if there is such a place, so that the file's device is none of what is measured.
    let memory = Path::new("/dev/shm");
    let mut file = match memory.is_dir() {
        true => tempfile::NamedTempFile::new_in(memory)?,
        false => tempfile::NamedTempFile::new()?,
    };
    file.write_all(&vec![1; DISK as usize])?;
    let two = std::thread::available_parallelism()?.get() > 1;
    let runtime = Runtime::builder()
        .name("latency")
        .core_mask(if two { "0x3" } else { "0x1" })
        .no_huge(true)
        .memory_mb(512);
    let place = Place {
        spdk: runtime.build()?.spawn()?,
        tokio: tokio::runtime::Builder::new_current_thread().build()?,
    };
    let path = file.path().to_owned();
    place.run(|| async move { devices(&path).await });
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    io(&mut criterion, &place);
    threads(&mut criterion, &place);
    criterion.final_summary();
    place.run(clean_up);
    place.tokio.block_on(place.spdk.stop())?;
    Ok(())
}
