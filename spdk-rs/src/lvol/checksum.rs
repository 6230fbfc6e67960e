//! The checksum of a snapshot: CRC-64/GO-ISO over the clusters that are its own.
//!
//! The job opens the blob once more and takes its lock, so that the clusters it sums up stay where
//! they are. It keeps several reads in flight and folds them in order, each in a slice of its own,
//! so that the reactor is never held for longer than one chunk takes.

use std::collections::VecDeque;
use std::ffi::{CStr, c_int, c_void};
use std::future::Future;
use std::ptr::NonNull;
use std::rc::Rc;

use crc_fast::{CrcAlgorithm, Digest};
use spdk_sys::{spdk_blob, spdk_blob_store, spdk_io_channel};

use super::jobs::Job;
use super::{Lvol, lookup, volume};
use crate::buf::DmaBuf;
use crate::op::{self, Submitted};
use crate::{Error, JoinHandle, Result, guard, reactor};

/// The xattr in which the sum is stored: 8 raw bytes in the machine's order.
pub const CHECKSUM_XATTR: &CStr = c"checksum";

/// The name under which the job holds the volume's lock.
const OPERATION: &CStr = c"checksum";

/// Bytes read at a time: long enough for the device, short enough for the reactor.
const CHUNK: u64 = 128 << 10;

/// Reads in flight.
const DEPTH: usize = 8;

const WHAT: &str = "checksum";

/// Computes and stores the sum. On the metadata thread only.
pub(super) async fn run(lvol: Lvol) -> Result<u64> {
    let registered = Job::begin(&lvol)?;
    // The job is a task of its own: it has to close what it opened, also when nobody waits.
    let guard = StopOnDrop(Rc::clone(registered.job()));
    let task: JoinHandle<Result<u64>> = reactor::spawn(async move {
        let job = Rc::clone(registered.job());
        let result = compute(&lvol, &job).await;
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

async fn compute(lvol: &Lvol, job: &Job) -> Result<u64> {
    let raw = volume::open_lvol(WHAT, lvol)?;
    if !lookup::lvol_info(raw).snapshot {
        return Err(Error::from_errno(WHAT, lvol.to_string(), libc::EPERM)
            .with_detail("only a snapshot's data stay as they are; take a snapshot of it first"));
    }
    let mut blob = OpenBlob::open(lvol).await?;
    blob.lock()?;
    let sum = sum(lvol, &blob, job).await?;
    blob.store(sum).await?;
    Ok(sum)
}

async fn sum(lvol: &Lvol, blob: &OpenBlob, job: &Job) -> Result<u64> {
    let channel = BlobChannel::open(blob)?;
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    let mut chunks = blob.chunks();
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

/// A reference of our own to a volume's blob, locked or not. It is given back when this is
/// dropped, also with the task, when the runtime stops: reads that are in flight then have the
/// volume's own reference beneath them until they have ended.
struct OpenBlob {
    locked: bool,
    bs: *mut spdk_blob_store,
    blob: NonNull<spdk_blob>,
    device: String,
    cluster_size: u64,
    unit: u64,
}

impl OpenBlob {
    async fn open(lvol: &Lvol) -> Result<Self> {
        let device = lvol.to_string();
        let raw = volume::open_lvol(WHAT, lvol)?;
        // SAFETY: the lvol was found in this very step.
        let (bs, id) = unsafe {
            (
                spdk_sys::shim_lvol_blobstore(raw.as_ptr()),
                spdk_sys::shim_lvol_blob_id(raw.as_ptr()),
            )
        };
        let ((blob, rc), ()) = op::with_handle((), close_late, |(), cb_fn, cb_arg| {
            // SAFETY: the store is loaded (its lvol was found), on its metadata thread. The
            // function calls back exactly once.
            unsafe { spdk_sys::spdk_bs_open_blob(bs, id, Some(cb_fn), cb_arg) };
            Submitted::Pending
        })
        .await;
        Error::check(WHAT, &device, rc)?;
        let blob = Error::check_ptr(WHAT, &device, blob, libc::ENODEV)?;
        // SAFETY: the open blob keeps its store loaded.
        let (cluster_size, unit) = unsafe {
            (
                spdk_sys::spdk_bs_get_cluster_size(bs),
                spdk_sys::spdk_bs_get_io_unit_size(bs),
            )
        };
        Ok(Self {
            locked: false,
            bs,
            blob,
            device,
            cluster_size,
            unit,
        })
    }

    fn lock(&mut self) -> Result<()> {
        // SAFETY: the blob is open, this is its metadata thread; the name is static.
        let rc = unsafe { spdk_sys::shim_blob_lock(self.blob.as_ptr(), OPERATION.as_ptr()) };
        self.locked = rc == 0;
        match -rc {
            libc::EBUSY => Err(Error::from_errno(WHAT, &self.device, rc)
                .with_detail("another operation on the volume is running")),
            libc::ENOTSUP => Err(Error::from_errno(WHAT, &self.device, rc)
                .with_detail("needs an SPDK with this project's patches")),
            _ => Error::check(WHAT, &self.device, rc),
        }
    }

    /// The parts of the allocated clusters, ascending. The lock keeps the map as it is.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + use<> {
        let (blob, cluster_size, unit) = (self.blob, self.cluster_size, self.unit);
        // SAFETY: the blob is open.
        let clusters = unsafe { spdk_sys::spdk_blob_get_num_clusters(blob.as_ptr()) };
        (0..clusters)
            // SAFETY: the blob stays open for as long as the job reads; metadata thread.
            .filter(move |cluster| unsafe {
                spdk_sys::shim_blob_cluster_is_allocated(blob.as_ptr(), *cluster)
            })
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

    /// Stores the sum with the blob, on disk.
    async fn store(&self, sum: u64) -> Result<()> {
        let raw = sum.to_ne_bytes();
        // SAFETY: the blob is open, this is its metadata thread; the value is copied.
        let rc = unsafe {
            spdk_sys::spdk_blob_set_xattr(
                self.blob.as_ptr(),
                CHECKSUM_XATTR.as_ptr(),
                raw.as_ptr().cast(),
                raw.len() as u16,
            )
        };
        Error::check("store checksum", &self.device, rc)?;
        let blob = self.blob;
        let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
            // SAFETY: the blob is open, this is its metadata thread. Exactly one callback.
            unsafe { spdk_sys::spdk_blob_sync_md(blob.as_ptr(), Some(cb_fn), cb_arg) };
            Submitted::Pending
        })
        .await;
        Error::check("store checksum", &self.device, rc)
    }
}

impl Drop for OpenBlob {
    fn drop(&mut self) {
        if self.locked {
            // SAFETY: the blob is open, and locked by us.
            unsafe { spdk_sys::shim_blob_unlock(self.blob.as_ptr()) }
        }
        close(self.blob.as_ptr());
    }
}

/// Closes a blob; nobody waits for it, but the runtime does before it stops SPDK.
fn close(blob: *mut spdk_blob) {
    unsafe extern "C" fn closed(cb_arg: *mut c_void, rc: c_int) {
        // SAFETY: C passes on the cb_arg of `start` below, once; the types are those.
        guard::ffi((), || unsafe { op::complete::<c_int, ()>(cb_arg, rc) });
    }
    drop(op::start((), op::discard::<c_int, ()>, |_: &mut (), cb_arg| {
        // SAFETY: the blob is open by us, this is its metadata thread. Exactly one callback.
        unsafe { spdk_sys::spdk_blob_close(blob, Some(closed), cb_arg) };
        Submitted::Pending
    }));
}

/// Closes a blob whose opener has gone.
fn close_late((blob, rc): (*mut spdk_blob, c_int), (): ()) {
    if rc == 0 && !blob.is_null() {
        close(blob);
    }
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
    fn open(blob: &OpenBlob) -> Result<Self> {
        // SAFETY: the blob is open, so its store is loaded.
        let channel = unsafe { spdk_sys::spdk_bs_alloc_io_channel(blob.bs) };
        let channel = Error::check_ptr(WHAT, &blob.device, channel, libc::ENOMEM)?;
        Ok(Self {
            inner: Rc::new(ChannelInner(channel)),
            blob: blob.blob,
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
    let (mut value, mut len) = (std::ptr::null(), 0);
    // SAFETY: the lvol's blob is open (checked), this is its metadata thread. The value stays
    // where it is until we return to the reactor.
    let bytes = unsafe {
        let blob = spdk_sys::shim_lvol_blob(raw.as_ptr());
        let rc = spdk_sys::spdk_blob_get_xattr_value(blob, CHECKSUM_XATTR.as_ptr(), &mut value, &mut len);
        if rc != 0 {
            return Ok(None);
        }
        std::slice::from_raw_parts(value.cast::<u8>(), len)
    };
    match bytes.try_into() {
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
