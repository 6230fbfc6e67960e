//! Whether what was written is what is read.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::{Result, ensure};
use spdk_rs::bdev::{Bdev, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::spawn;

/// Fills a buffer with what belongs at a place.
fn pattern(buf: &mut DmaBuf, place: u64, generation: u64) {
    let words = (0_u64..).map(|word| (place << 20 | word) ^ generation.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    buf.fill(0);
    for (at, word) in buf.as_mut_slice().chunks_mut(8).zip(words) {
        at.copy_from_slice(&word.to_le_bytes()[..at.len()]);
    }
}

/// Writes a pattern to a part of a device, reads it back and compares, twice; all `depth` I/Os in
/// flight at a time.
pub async fn verify(bdev: &Bdev, size: usize, depth: usize) -> Result<()> {
    let descriptor = bdev.open(Mode::ReadWrite)?;
    let channel = Rc::new(descriptor.channel()?);
    let places = (descriptor.size() / size as u64).min(4096);
    for generation in [1, 2] {
        for write in [true, false] {
            let next = Rc::new(Cell::new(0));
            let mut tasks = Vec::new();
            for _ in 0..depth {
                let (channel, next) = (Rc::clone(&channel), Rc::clone(&next));
                let buffers = (DmaBuf::zeroed(size)?, DmaBuf::zeroed(size)?);
                let work = move || (next.replace(next.get() + 1), places);
                tasks.push(spawn(part(channel, work, buffers, generation, write)));
            }
            for task in tasks {
                task.await??;
            }
        }
    }
    println!(" {:<20}: {places} I/Os verified, twice", bdev.name());
    drop(channel);
    descriptor.close().await?;
    Ok(())
}

/// One of the I/Os in flight: takes a place at a time.
async fn part(
    channel: Rc<Channel>,
    next: impl Fn() -> (u64, u64),
    (mut buf, mut expected): (DmaBuf, DmaBuf),
    generation: u64,
    write: bool,
) -> Result<()> {
    loop {
        let (place, places) = next();
        if place >= places {
            return Ok(());
        }
        let offset = place * buf.len() as u64;
        pattern(&mut expected, place, generation);
        if write {
            pattern(&mut buf, place, generation);
            (_, buf) = channel.write(buf, offset).await.ok()?;
            continue;
        }
        buf.fill(0xA5);
        (_, buf) = channel.read(buf, offset).await.ok()?;
        ensure!(
            buf.as_slice() == expected.as_slice(),
            "wrong data at {offset} of {}",
            channel.name()
        );
    }
}
