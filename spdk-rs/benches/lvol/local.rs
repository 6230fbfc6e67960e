//! In one process: how long a delete takes that is refused or granted, whether that depends on how
//! many volumes there are, and how fast data are summed up and read.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{Bdev, Channel, Mode, malloc};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, LvolStore, Provisioning, StoreOptions, stop_checksum};
use spdk_rs::reactor::sleep;
use spdk_rs::spawn;

use super::{histogram, percentiles};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// As the checksum reads.
const CHUNK: u64 = 128 << 10;
const DEPTH: usize = 8;

/// Not inlined: where a result is printed, `ci/bench` has valgrind tell what has been counted.
#[inline(never)]
pub fn print(what: &str, n: impl Display, mut result: Value) {
    result["bench"] = json!("lvol");
    result["what"] = json!(what);
    result["n"] = json!(n.to_string());
    println!("{result}");
}

pub async fn run(quick: bool) -> Result<()> {
    refused(if quick { 1_000 } else { 10_000 }).await?;
    for n in super::scale::sizes(quick) {
        super::scale::run(*n).await?;
    }
    for pair in 0..if quick { 3 } else { 7 } {
        checksum(pair, if quick { 128 } else { 256 }).await?;
        over_raw(pair, if quick { 20_000 } else { 200_000 }).await?;
    }
    Ok(())
}

pub async fn store_on(bdev: &str, cluster: u64) -> Result<LvolStore> {
    let options = StoreOptions::default().cluster_size(cluster as u32);
    Ok(LvolStore::create(bdev, "lvs", options).await?)
}

/// Writes the first bytes of a volume.
async fn fill(lvol: &Lvol, bytes: u64) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let mut buf = DmaBuf::copy_of(&vec![0x5a; MIB as usize])?;
    for at in (0..bytes).step_by(MIB as usize) {
        ((), buf) = channel.write(buf, at).await.ok()?;
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

/// A snapshot whose checksum is being computed, on a slow device, is to be deleted, again and again;
/// then it may be.
async fn refused(count: usize) -> Result<()> {
    malloc::create("base", 64 * MIB / BLOCK, BLOCK as u32)?;
    delay::create("slow", "base", Latency::NONE)?;
    let store = store_on("slow", MIB).await?;
    let vol = store.create_lvol("vol", 32 * MIB, Provisioning::Thin).await?;
    fill(&vol, 32 * MIB).await?;
    let backup = vol.snapshot("backup").await?;
    delay::set_latency("slow", Latency::all(Duration::from_millis(200)))?;
    let summed = backup.clone();
    let sum = spawn(async move { summed.checksum().await });
    sleep(Duration::from_millis(20)).await;
    let mut times = histogram();
    for _ in 0..count {
        let begin = Instant::now();
        let answer = backup.clone().destroy().await;
        times.record(begin.elapsed().as_nanos() as u64)?;
        let Err(DestroyError::Busy { holders, .. }) = answer else {
            anyhow::bail!("a delete was not refused as busy: {answer:?}");
        };
        ensure!(
            holders.operation.as_deref() == Some("checksum"),
            "held by {holders}"
        );
        if sum.is_finished() {
            break;
        }
    }
    ensure!(
        times.len() == count as u64,
        "the checksum ended after {} deletes",
        times.len()
    );
    print("refused delete", count, percentiles(&times));
    delay::set_latency("slow", Latency::NONE)?;
    stop_checksum(&backup).await?;
    ensure!(sum.await?.is_err(), "it was stopped");

    let mut times = histogram();
    for _ in 0..100 {
        let begin = Instant::now();
        vol.snapshot("more").await?.destroy().await.context("granted")?;
        times.record(begin.elapsed().as_nanos() as u64)?;
    }
    print("snapshot and granted delete", 100, percentiles(&times));
    store.destroy().await?;
    delay::delete("slow").await?;
    Ok(malloc::delete("base").await?)
}

/// Bytes a second of reading so much of a device, in order, in the checksum's way.
async fn read_all(channel: &std::rc::Rc<Channel>, bytes: u64) -> Result<f64> {
    let begin = Instant::now();
    let mut lanes = Vec::new();
    for lane in 0..DEPTH as u64 {
        let channel = std::rc::Rc::clone(channel);
        lanes.push(spawn(async move {
            let mut buf = DmaBuf::new(CHUNK as usize)?;
            for at in (lane * CHUNK..bytes).step_by(CHUNK as usize * DEPTH) {
                ((), buf) = channel.read(buf, at).await.ok()?;
            }
            anyhow::Ok(())
        }));
    }
    for lane in lanes {
        lane.await??;
    }
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

/// Summing a snapshot up, against reading it in order.
async fn checksum(pair: usize, mib: u64) -> Result<()> {
    malloc::create("base", (2 * mib + 64) * MIB / BLOCK, BLOCK as u32)?;
    let store = store_on("base", MIB).await?;
    let vol = store.create_lvol("vol", mib * MIB, Provisioning::Thin).await?;
    fill(&vol, mib * MIB).await?;
    let backup = vol.snapshot("backup").await?;
    let descriptor = Bdev::find("lvs/backup")?.open(Mode::ReadOnly)?;
    let channel = std::rc::Rc::new(descriptor.channel()?);
    read_all(&channel, mib * MIB).await?;
    let read = read_all(&channel, mib * MIB).await?;
    let begin = Instant::now();
    backup.checksum().await?;
    let sum = (mib * MIB) as f64 / begin.elapsed().as_secs_f64();
    let read = (read + read_all(&channel, mib * MIB).await?) / 2.0;
    let result = json!({
        "pair": pair, "checksum_gb_s": sum / 1e9, "read_gb_s": read / 1e9, "ratio": sum / read,
    });
    print("checksum", format!("{mib} MiB"), result);
    drop(channel);
    descriptor.close().await?;
    store.destroy().await?;
    Ok(malloc::delete("base").await?)
}

/// Random reads of 4 KiB at depth 32, of a volume and of the device beneath.
async fn over_raw(pair: usize, count: u64) -> Result<()> {
    malloc::create("base", 64 * MIB / BLOCK, BLOCK as u32)?;
    let store = store_on("base", MIB).await?;
    store.create_lvol("vol", 32 * MIB, Provisioning::Thick).await?;
    let mut rates = Vec::new();
    for name in ["base", "lvs/vol", "lvs/vol", "base"] {
        let descriptor = Bdev::find(name)?.open(Mode::ReadOnly)?;
        let channel = std::rc::Rc::new(descriptor.channel()?);
        let begin = Instant::now();
        let mut lanes = Vec::new();
        for lane in 0..32_u64 {
            let channel = std::rc::Rc::clone(&channel);
            lanes.push(spawn(async move {
                let mut buf = DmaBuf::new(BLOCK as usize)?;
                let mut random = lane;
                for _ in 0..count / 32 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = (random >> 33) % (32 * MIB / BLOCK) * BLOCK;
                    ((), buf) = channel.read(buf, at).await.ok()?;
                }
                anyhow::Ok(())
            }));
        }
        for lane in lanes {
            lane.await??;
        }
        rates.push((count / 32 * 32) as f64 / begin.elapsed().as_secs_f64());
        drop(channel);
        descriptor.close().await?;
    }
    let (raw, lvol) = ((rates[0] + rates[3]) / 2.0, (rates[1] + rates[2]) / 2.0);
    let result =
        json!({"pair": pair, "lvol_iops": lvol.round(), "raw_iops": raw.round(), "ratio": lvol / raw});
    print("random read over raw", "QD 32", result);
    store.destroy().await?;
    Ok(malloc::delete("base").await?)
}
