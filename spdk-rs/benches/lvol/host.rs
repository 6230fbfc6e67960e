//! A host that writes and reads 4 KiB blocks at random, each lane its own ones, and compares what it
//! reads with what it wrote. Each line on its standard input ends a phase: it prints the phase's
//! latencies. The end of the input ends it. An I/O that fails, or data that differ, too.

use std::cell::{Cell, RefCell};
use std::io::BufRead;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use spdk_rs::bdev::{Bdev, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::nvme::{self, AttachOptions};
use spdk_rs::reactor::sync::mpsc;
use spdk_rs::reactor::timeout;
use spdk_rs::spawn;

const BLOCK: usize = 4096;
/// Of a lane.
const BLOCKS: u64 = 2048;

pub async fn run(address: SocketAddr, nqn: String, depth: usize) -> Result<()> {
    let names = nvme::attach("host0", &AttachOptions::new(address, nqn)).await?;
    let name = names.first().context("the subsystem has no namespace")?;
    let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
    ensure!(
        descriptor.size() >= depth as u64 * BLOCKS * BLOCK as u64,
        "{name} is too small for {depth} lanes"
    );
    let channel = Rc::new(descriptor.channel()?);
    // All of it first, so that the clusters are there.
    let mut zeroes = DmaBuf::zeroed(BLOCK)?;
    for block in 0..depth as u64 * BLOCKS {
        ((), zeroes) = channel.write(zeroes, block * BLOCK as u64).await.ok()?;
    }
    let stop = Rc::new(Cell::new(false));
    let times = Rc::new(RefCell::new(super::histogram()));
    let mut lanes = Vec::new();
    for lane in 0..depth as u64 {
        let (channel, stop, times) = (Rc::clone(&channel), Rc::clone(&stop), Rc::clone(&times));
        lanes.push(spawn(async move { work(lane, &channel, &stop, &times).await }));
    }
    println!("ready");

    let (lines, mut phases) = mpsc::unbounded();
    thread::spawn(move || {
        let ends = std::io::stdin().lock().lines();
        for line in ends.map_while(|line| line.ok()) {
            if lines.unbounded_send(line).is_err() {
                break;
            }
        }
    });
    loop {
        // A lane that has failed does not wait for the phase's end.
        let word = timeout(
            Duration::from_millis(100),
            futures_util::StreamExt::next(&mut phases),
        )
        .await;
        if lanes.iter().any(|lane| lane.is_finished()) {
            break;
        }
        match word {
            Err(_) => {}
            Ok(None) => break,
            Ok(Some(_)) => {
                let phase = times.replace(super::histogram());
                println!("{}", super::percentiles(&phase));
            }
        }
    }
    stop.set(true);
    for lane in lanes {
        lane.await??;
    }
    drop(channel);
    descriptor.close().await?;
    Ok(nvme::detach("host0").await?)
}

async fn work(
    lane: u64,
    channel: &Channel,
    stop: &Cell<bool>,
    times: &RefCell<Histogram<u64>>,
) -> Result<()> {
    let mut written = vec![0_u64; BLOCKS as usize];
    let mut buf = DmaBuf::zeroed(BLOCK)?;
    let mut random = lane + 1;
    let mut count = 0;
    while !stop.get() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let block = (random >> 33) % BLOCKS;
        let at = (lane * BLOCKS + block) * BLOCK as u64;
        let begin;
        if random >> 63 == 0 {
            count += 1;
            fill(&mut buf, count, at);
            begin = Instant::now();
            ((), buf) = channel.write(buf, at).await.ok()?;
            written[block as usize] = count;
        } else {
            begin = Instant::now();
            ((), buf) = channel.read(buf, at).await.ok()?;
        }
        let taken = begin.elapsed();
        let id = written[block as usize];
        ensure!(
            holds(&buf, id, at),
            "what is at {at} is not what was written there"
        );
        times.borrow_mut().record(taken.as_nanos() as u64)?;
    }
    Ok(())
}

/// A write's number, and where it goes, in all of the block.
fn fill(buf: &mut DmaBuf, id: u64, at: u64) {
    for (word, bytes) in buf.as_mut_slice().chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word_of(id, at, word as u64).to_le_bytes());
    }
}

fn holds(buf: &DmaBuf, id: u64, at: u64) -> bool {
    let mut words = buf.as_slice().chunks_exact(8).enumerate();
    words.all(|(word, bytes)| bytes == word_of(id, at, word as u64).to_le_bytes())
}

fn word_of(id: u64, at: u64, word: u64) -> u64 {
    match id {
        0 => 0,
        _ => (id << 40) ^ at ^ (word << 20),
    }
}
