//! Data that say what they are and where they belong.

use anyhow::Result;
use spdk_rs::bdev::Channel;
use spdk_rs::buf::DmaBuf;

/// What a range holds that was written with `seed`, from `offset` on.
fn fill(data: &mut [u8], offset: u64, seed: u64) {
    for (word, bytes) in (offset / 16..).zip(data.chunks_exact_mut(16)) {
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..].copy_from_slice(&word.to_le_bytes());
    }
}

/// Writes a range, `step` bytes at a time.
pub async fn write(channel: &Channel, offset: u64, len: u64, step: usize, seed: u64) -> Result<()> {
    let mut buf = DmaBuf::zeroed(step)?;
    for at in (offset..offset + len).step_by(step) {
        fill(buf.as_mut_slice(), at, seed);
        ((), buf) = channel.write(buf, at).await.ok()?;
    }
    Ok(())
}

/// How many blocks of 4 KiB of a range are not what was written with `seed`; with 0, are not zeroes.
pub async fn wrong_blocks(channel: &Channel, offset: u64, len: u64, step: usize, seed: u64) -> Result<usize> {
    let mut expected = vec![0; step];
    let mut buf = DmaBuf::zeroed(step)?;
    let mut wrong = 0;
    for at in (offset..offset + len).step_by(step) {
        ((), buf) = channel.read(buf, at).await.ok()?;
        if seed != 0 {
            fill(&mut expected, at, seed);
        }
        let pairs = buf.as_slice().chunks(4096).zip(expected.chunks(4096));
        wrong += pairs.filter(|(is, should)| is != should).count();
    }
    Ok(wrong)
}
