//! What a volume costs where there are many: nothing that is done with one of them should take longer
//! because there are others.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use spdk_rs::bdev::{Bdev, Mode, malloc, split};
use spdk_rs::lvol::{Lvol, LvolStore, Provisioning};

use super::local::{print, store_on};
use super::{histogram, percentiles};

/// A point of the reactor's own time: when others have its core, it stands still.
struct Instant(Duration);

impl Instant {
    fn now() -> Self {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the function fills in the time.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Self(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// So small: what looks for partitions on it can read what it wants.
const SMALL: u64 = 64 << 10;
/// The store lies on it: it is loaded anew with it.
const PART: &str = "basep0";

/// How many volumes there are.
pub fn sizes(quick: bool) -> &'static [usize] {
    match quick {
        true => &[100, 1_000],
        false => &[100, 1_000, 10_000],
    }
}

/// So many volumes are made, listed, found, opened, loaded and deleted. What counts is the cost of
/// each.
pub async fn run(n: usize) -> Result<()> {
    // A page of metadata each, with room to spare, and clusters of 16 KiB.
    let bytes = (n as u64 * 3 * (16 << 10)).max(16 * MIB);
    malloc::create("base", bytes / BLOCK, BLOCK as u32)?;
    split::create("base", 1, None)?;
    let store = store_on(PART, 16 << 10).await?;
    let each = |begin: Instant| begin.elapsed().as_secs_f64() * 1e6 / n as f64;

    let mut times = histogram();
    let begin = Instant::now();
    for at in 0..n {
        let begin = Instant::now();
        store
            .create_lvol(&format!("vol{at}"), SMALL, Provisioning::Thin)
            .await?;
        times.record(begin.elapsed().as_nanos() as u64)?;
    }
    let mut result = percentiles(&times);
    result["each_us"] = json!(each(begin));
    print("create", n, result);

    let one_more = tail(&store).await?;
    print("create and delete one more", n, json!({"each_us": one_more}));

    let begin = Instant::now();
    let lvols = store.lvols().await?;
    ensure!(lvols.len() == n, "{} of {n} volumes are listed", lvols.len());
    print("list", n, json!({"each_us": each(begin)}));

    let begin = Instant::now();
    for lvol in &lvols {
        ensure!(store.lvol(lvol.name()).await? == *lvol, "found by name");
        ensure!(
            Lvol::find(&lvol.uuid().to_string()).await? == *lvol,
            "found by UUID"
        );
        ensure!(lvol.info().await?.name == lvol.name(), "and told of");
    }
    print("look up", n, json!({"each_us": each(begin)}));

    let begin = Instant::now();
    let mut opened = Vec::with_capacity(n);
    for lvol in &lvols {
        let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        opened.push((descriptor, channel));
    }
    for (descriptor, channel) in opened {
        drop(channel);
        descriptor.close().await?;
    }
    print("open", n, json!({"each_us": each(begin)}));

    store.unload().await?;
    split::delete("base").await?;
    let begin = Instant::now();
    split::create("base", 1, None)?;
    let store = LvolStore::load(PART).await?;
    print("load", n, json!({"each_us": each(begin)}));

    let lvols = store.lvols().await?;
    ensure!(lvols.len() == n, "{} of {n} volumes were loaded", lvols.len());
    let mut times = histogram();
    let begin = Instant::now();
    for lvol in lvols {
        let begin = Instant::now();
        lvol.destroy().await?;
        times.record(begin.elapsed().as_nanos() as u64)?;
    }
    let mut result = percentiles(&times);
    result["each_us"] = json!(each(begin));
    print("delete", n, result);
    ensure!(store.lvols().await?.is_empty(), "volumes are left");
    store.destroy().await?;
    Ok(malloc::delete("base").await?)
}

/// One more volume is made and deleted beside the others: microseconds, the median of 50.
async fn tail(store: &LvolStore) -> Result<f64> {
    let mut times = histogram();
    for _ in 0..50 {
        let begin = Instant::now();
        let lvol = store.create_lvol("one-more", SMALL, Provisioning::Thin).await?;
        lvol.destroy().await?;
        times.record(begin.elapsed().as_nanos() as u64)?;
    }
    Ok(times.value_at_quantile(0.5) as f64 / 1e3)
}
