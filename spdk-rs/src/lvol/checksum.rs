//! The checksum of a snapshot: CRC-64/GO-ISO over the clusters that are its own.
//!
//! The job holds the blob, so that the clusters it sums up stay where they are. It keeps several
//! reads in flight and folds them in order, each in a slice of its own, so that the reactor is never
//! held for longer than one chunk takes.

use std::collections::VecDeque;
use std::ffi::{CStr, c_int};
use std::future::Future;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use crc_fast::{CrcAlgorithm, Digest};
use spdk_sys::{spdk_blob, spdk_io_channel};

use super::blob::HeldBlob;
use super::jobs::Job;
use super::{Lvol, lookup, volume, xattr};
use crate::buf::DmaBuf;
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, JoinHandle, Result, reactor};

/// The xattr in which the sum is stored: 8 raw bytes in the machine's order.
pub const CHECKSUM_XATTR: &CStr = c"checksum";

/// The name under which the job holds the volume's lock.
const OPERATION: &CStr = c"checksum";

/// Bytes read at a time: long enough for the device, short enough for the reactor.
const CHUNK: u64 = 128 << 10;

/// Reads in flight.
const DEPTH: usize = 8;

const WHAT: &str = "checksum";

/// Computes the sum: of all clusters, and stores it; or of some, and does not. On the metadata thread
/// only.
pub(super) async fn run(lvol: Lvol, clusters: Option<Range<u64>>) -> Result<u64> {
    let registered = Job::begin(&lvol)?;
    // The job is a task of its own: it has to close what it opened, also when nobody waits.
    let guard = StopOnDrop(Rc::clone(registered.job()));
    let task: JoinHandle<Result<u64>> = reactor::spawn(async move {
        let job = Rc::clone(registered.job());
        let result = compute(&lvol, &job, clusters).await;
        drop(registered);
        result
    });
    let result = task.await;
    drop(guard);
    result?
}

struct StopOnDrop(Rc<Job>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

async fn compute(lvol: &Lvol, job: &Job, clusters: Option<Range<u64>>) -> Result<u64> {
    let raw = volume::open_lvol(WHAT, lvol)?;
    if !lookup::lvol_info(raw).snapshot {
        return Err(Error::from_errno(WHAT, lvol.to_string(), libc::EPERM)
            .with_detail("only a snapshot's data stay as they are; take a snapshot of it first"));
    }
    let blob = HeldBlob::open(WHAT, lvol, OPERATION).await?;
    let Some(clusters) = clusters else {
        let sum = sum(lvol, &blob, job, 0..blob.num_clusters()).await?;
        let raw = sum.to_ne_bytes().to_vec();
        blob.write_xattr("store checksum", CHECKSUM_XATTR.to_owned(), Some(raw))
            .await?;
        return Ok(sum);
    };
    if clusters.end > blob.num_clusters() {
        let detail = format!(
            "clusters {} to {} were asked for, and it has {}",
            clusters.start,
            clusters.end,
            blob.num_clusters()
        );
        return Err(Error::new(ErrorKind::OutOfRange, WHAT, lvol.to_string(), detail));
    }
    sum(lvol, &blob, job, clusters).await
}

async fn sum(lvol: &Lvol, blob: &HeldBlob, job: &Job, clusters: Range<u64>) -> Result<u64> {
    let channel = BlobChannel::open(lvol, blob)?;
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    let mut chunks = chunks(blob, clusters);
    let mut reads = VecDeque::with_capacity(DEPTH);
    let mut spare = Vec::with_capacity(DEPTH);
    loop {
        while reads.len() < DEPTH && !job.is_stopped() {
            let Some(chunk) = chunks.next() else { break };
            let buf = match spare.pop() {
                Some(buf) => buf,
                None => DmaBuf::new(CHUNK as usize)?,
            };
            reads.push_back(reactor::spawn(channel.read(chunk, buf)));
        }
        let Some(read) = reads.pop_front() else { break };
        // A read that panicked or was dropped has no result, and no buffer to give back.
        let (rc, buf) = match read.await {
            Ok((rc, buf)) => (rc, Some(buf)),
            Err(_) => (-libc::ECANCELED, None),
        };
        if rc != 0 {
            // The others still use the channel.
            job.stop();
            while let Some(read) = reads.pop_front() {
                let _ = read.await;
            }
            return Err(Error::from_errno(WHAT, lvol.to_string(), rc));
        }
        if let Some(buf) = buf {
            digest.update(buf.as_slice());
            spare.push(buf);
        }
        // A slice ends here: the reactor turns before the next chunk is folded in.
        reactor::yield_now().await;
    }
    if job.is_stopped() {
        return Err(Error::from_errno(WHAT, lvol.to_string(), libc::EINTR).with_detail("it was stopped"));
    }
    Ok(digest.finalize())
}

/// A part of an allocated cluster, in io units.
#[derive(Clone, Copy)]
struct Chunk {
    offset: u64,
    units: u64,
    bytes: usize,
}

/// The parts of the allocated ones among the clusters, ascending. The lock keeps the map as it is.
fn chunks(blob: &HeldBlob, clusters: Range<u64>) -> impl Iterator<Item = Chunk> + use<> {
    let (raw, cluster_size, unit) = (blob.raw(), blob.cluster_size(), blob.io_unit());
    clusters
        // SAFETY: the blob stays open for as long as the job reads; metadata thread.
        .filter(move |cluster| unsafe { spdk_sys::shim_blob_cluster_is_allocated(raw.as_ptr(), *cluster) })
        .flat_map(move |cluster| {
            let (start, end) = (cluster * cluster_size, (cluster + 1) * cluster_size);
            (start..end).step_by(CHUNK as usize).map(move |at| {
                let bytes = CHUNK.min(end - at);
                Chunk {
                    offset: at / unit,
                    units: bytes / unit,
                    bytes: bytes as usize,
                }
            })
        })
}

/// A channel for reading a blob. Closed when the last read that uses it has ended.
struct BlobChannel {
    inner: Rc<ChannelInner>,
    blob: NonNull<spdk_blob>,
}

struct ChannelInner(NonNull<spdk_io_channel>);

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: the channel was opened on this thread, and no I/O uses it any more.
        unsafe { spdk_sys::spdk_bs_free_io_channel(self.0.as_ptr()) }
    }
}

impl BlobChannel {
    fn open(lvol: &Lvol, blob: &HeldBlob) -> Result<Self> {
        // SAFETY: the blob is open, so its store is loaded.
        let channel = unsafe { spdk_sys::spdk_bs_alloc_io_channel(blob.store()) };
        let channel = Error::check_ptr(WHAT, lvol.to_string(), channel, libc::ENOMEM)?;
        Ok(Self {
            inner: Rc::new(ChannelInner(channel)),
            blob: blob.raw(),
        })
    }

    /// Reads a chunk. Buffer and channel are kept until C is done, also if the future is dropped.
    fn read(&self, chunk: Chunk, buf: DmaBuf) -> impl Future<Output = (c_int, DmaBuf)> + use<> {
        let (blob, inner) = (self.blob, Rc::clone(&self.inner));
        async move {
            let (rc, (_channel, mut buf)) = op::unary((inner, buf), |(channel, buf), cb_fn, cb_arg| {
                // SAFETY: blob and channel are open until the job has seen all reads end; the
                // buffer holds a whole chunk and is kept. Exactly one callback.
                unsafe {
                    spdk_sys::spdk_blob_io_read(
                        blob.as_ptr(),
                        channel.0.as_ptr(),
                        buf.as_mut_ptr().cast(),
                        chunk.offset,
                        chunk.units,
                        Some(cb_fn),
                        cb_arg,
                    );
                }
                Submitted::Pending
            })
            .await;
            if rc == 0 {
                // SAFETY: the read has filled that many bytes, at most the capacity.
                unsafe { buf.set_len(chunk.bytes) };
            }
            (rc, buf)
        }
    }
}

/// The stored sum. On the metadata thread only.
pub(super) fn stored(lvol: &Lvol) -> Result<Option<u64>> {
    let raw = volume::open_lvol("read checksum", lvol)?;
    let Some(bytes) = xattr::read(raw, CHECKSUM_XATTR) else {
        return Ok(None);
    };
    match bytes.as_slice().try_into() {
        Ok(raw) => Ok(Some(u64::from_ne_bytes(raw))),
        Err(_) => Err(Error::from_errno("read checksum", lvol.to_string(), libc::EINVAL)
            .with_detail(format!("the stored value has {} bytes, not 8", bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithm_is_longhorns() {
        let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
        digest.update(b"12345");
        digest.update(b"6789");
        assert_eq!(digest.finalize(), 0xb909_56c7_75a4_1001);
    }
}
