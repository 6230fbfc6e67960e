//! One I/O, in the hands of a device.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;

use libc::iovec;
use spdk_sys::{spdk_bdev_io, spdk_bdev_io_status};

use super::channel::{self, Header};
use crate::bdev::kind::{Kind, Kinds};
use crate::{Error, ErrorKind, NvmeStatus, Result};

/// How an I/O ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Done. All memory of a read was filled.
    Success,
    /// Not done; no more is known.
    Failed,
    /// Not done, since it was aborted.
    Aborted,
    /// Not begun, for want of something that comes back when other I/O ends: the device is given
    /// the I/O again, and whoever submitted it notices nothing. (SPDK waits for other I/O of the
    /// channel to end; if there is none, it comes again in the reactor's next turn.) A reset
    /// cannot be put off; it fails.
    #[doc(alias = "SPDK_BDEV_IO_STATUS_NOMEM")]
    NoMemory,
    /// What an NVMe controller would have said.
    Nvme(NvmeStatus),
}

/// Generic status codes of NVMe, in the order of its specification.
pub(super) const INVALID_OPCODE: NvmeStatus = generic(0x01);
const WRITE_PROTECTED: NvmeStatus = generic(0x20);
const OUT_OF_RANGE: NvmeStatus = generic(0x80);
const CAPACITY_EXCEEDED: NvmeStatus = generic(0x81);

const fn generic(code: u8) -> NvmeStatus {
    NvmeStatus {
        code_type: 0,
        code,
        cdw0: 0,
    }
}

/// A status in one word, which goes through lists and messages in a register: SPDK's status in the
/// low byte, and what belongs to NVMe's above it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending(u64);

impl Ending {
    pub(super) const SUCCESS: Self = Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_SUCCESS);
    pub(super) const FAILED: Self = Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_FAILED);
    pub(super) const NO_MEMORY: Self = Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_NOMEM);
    /// No ending at all: what SPDK says while an I/O goes on.
    pub(super) const NONE: Self = Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_PENDING);

    #[inline]
    const fn of(status: spdk_bdev_io_status) -> Self {
        Self(status as u8 as u64) // from -128 to 127
    }

    #[inline]
    pub(super) fn status(self) -> spdk_bdev_io_status {
        (self.0 as u8 as i8).into()
    }

    /// Meaningful if the status says that NVMe has more to say.
    pub(super) fn nvme(self) -> NvmeStatus {
        NvmeStatus {
            code_type: (self.0 >> 8) as u8,
            code: (self.0 >> 16) as u8,
            cdw0: (self.0 >> 32) as u32,
        }
    }
}

impl From<Status> for Ending {
    #[inline]
    fn from(status: Status) -> Self {
        match status {
            Status::Success => Self::SUCCESS,
            Status::Failed => Self::FAILED,
            Status::Aborted => Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_ABORTED),
            Status::NoMemory => Self::NO_MEMORY,
            Status::Nvme(nvme) => Self(
                Self::of(spdk_sys::SPDK_BDEV_IO_STATUS_NVME_ERROR).0
                    | u64::from(nvme.code_type) << 8
                    | u64::from(nvme.code) << 16
                    | u64::from(nvme.cdw0) << 32,
            ),
        }
    }
}

/// For devices that do their work on other ones.
impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        if let Some(status) = error.nvme_status() {
            return Self::Nvme(status);
        }
        match error.kind() {
            ErrorKind::NoMemory => Self::NoMemory,
            ErrorKind::Canceled => Self::Aborted,
            ErrorKind::OutOfRange => Self::Nvme(OUT_OF_RANGE),
            ErrorKind::NoSpace => Self::Nvme(CAPACITY_EXCEEDED),
            ErrorKind::ReadOnly => Self::Nvme(WRITE_PROTECTED),
            ErrorKind::Unsupported => Self::Nvme(INVALID_OPCODE),
            _ => Self::Failed,
        }
    }
}

impl From<Result<()>> for Status {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::from(&error), |()| Self::Success)
    }
}

/// An I/O that SPDK has given to a device, which is to complete it.
///
/// It may be kept, put into a queue, and sent to another thread. It is completed once, by
/// [`complete`](Self::complete) or by being dropped, which fails it. That may happen on any
/// thread: SPDK learns of it on the thread of the I/O's channel, if need be by a message.
///
/// While code of the device's channel is running ([`BlockDevice::submit`] and the like), no
/// completion is heard: that comes in the reactor's next turn, so that whoever submitted the I/O
/// does not come back with the next one in the middle of it.
///
/// [`BlockDevice::submit`]: super::BlockDevice::submit
#[doc(alias = "spdk_bdev_io")]
#[must_use = "an I/O that is dropped fails"]
pub struct Io {
    raw: NonNull<spdk_bdev_io>,
    header: NonNull<Header>,
}

// SAFETY: from its submission to its completion an I/O belongs to the device; what is read of it
// here does not change meanwhile. Its memory, which is lent through `&self` and `&mut self` alone,
// is plain. Completion goes to the right thread by itself.
unsafe impl Send for Io {}

static_assertions::assert_impl_all!(Io: Send);
static_assertions::assert_not_impl_any!(Io: Clone);

impl Io {
    /// # Safety
    /// The device has been given the I/O, on `header`'s channel, by this and nothing else; it is
    /// of a [`Kind`].
    #[inline]
    pub(super) unsafe fn new(raw: NonNull<spdk_bdev_io>, header: NonNull<Header>) -> Self {
        Self { raw, header }
    }

    pub(super) fn raw(&self) -> *mut spdk_bdev_io {
        self.raw.as_ptr()
    }

    /// What it asks for.
    #[inline]
    pub fn kind(&self) -> Kind {
        // SAFETY: the I/O is ours until it is completed.
        let io_type = unsafe { (*self.raw.as_ptr()).type_ };
        match Kind::of(io_type.into()) {
            Some(kind) => kind,
            None => unreachable!("no other kind is given to a device"),
        }
    }

    /// Bytes in a block.
    #[inline]
    pub fn block_size(&self) -> u32 {
        // SAFETY: the I/O is ours until it is completed, and keeps its bdev.
        unsafe { (*(*self.raw.as_ptr()).bdev).blocklen }
    }

    /// Where the range begins, in blocks; 0 for a reset.
    #[inline]
    pub fn offset_blocks(&self) -> u64 {
        self.range().0
    }

    /// How long the range is, in blocks; 0 for a reset. SPDK has checked that it lies within the
    /// device.
    #[inline]
    pub fn num_blocks(&self) -> u64 {
        self.range().1
    }

    /// Where the range begins, in bytes; 0 for a reset.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset_blocks() * u64::from(self.block_size())
    }

    /// How long the range is, in bytes; 0 for a reset.
    #[inline]
    pub fn num_bytes(&self) -> u64 {
        self.num_blocks() * u64::from(self.block_size())
    }

    #[inline]
    fn range(&self) -> (u64, u64) {
        if self.kind() == Kind::Reset {
            return (0, 0);
        }
        // SAFETY: the I/O is ours until it is completed; all kinds but reset have this member.
        unsafe {
            let range = &raw const (*self.raw.as_ptr()).u.bdev;
            ((*range).offset_blocks, (*range).num_blocks)
        }
    }

    /// The memory; there is none but for reads and writes.
    #[inline]
    fn iovecs(&self, kind: Kind) -> &[iovec] {
        if self.kind() != kind {
            return &[];
        }
        // SAFETY: the I/O is ours until it is completed, and of a kind with memory.
        unsafe { iovecs(self.raw) }
    }

    /// The data of a write, piece by piece; nothing for other kinds. Together they are as long
    /// as the range.
    #[doc(alias = "spdk_bdev_io_get_iovec")]
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.iovecs(Kind::Write).iter().map(|iovec| {
            if iovec.iov_len == 0 {
                return &[][..];
            }
            // SAFETY: whoever submitted a write leaves its memory alone until it is completed,
            // which takes this object.
            unsafe { std::slice::from_raw_parts(iovec.iov_base.cast(), iovec.iov_len) }
        })
    }

    /// The memory of a read, piece by piece; nothing for other kinds. Together they are as long
    /// as the range. All of it has to be filled before the read is a success.
    pub fn segments_mut(&mut self) -> SegmentsMut<'_> {
        let iovecs = self.iovecs(Kind::Read).as_ptr_range();
        SegmentsMut {
            next: iovecs.start,
            end: iovecs.end,
            _io: PhantomData,
        }
    }

    /// Copies the data of a write, as much as fits. Returns how many bytes that were: 0 for
    /// other kinds.
    pub fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        for segment in self.segments() {
            let len = segment.len().min(target.len() - copied);
            target[copied..copied + len].copy_from_slice(&segment[..len]);
            copied += len;
        }
        copied
    }

    /// Fills the memory of a read from `source`, as far as that goes. Returns how many bytes
    /// were copied: 0 for other kinds.
    pub fn fill_from(&mut self, source: &[u8]) -> usize {
        let mut copied = 0;
        let mut segments = self.segments_mut();
        while let Some(segment) = segments.next() {
            let len = segment.len().min(source.len() - copied);
            let part = &source[copied..copied + len];
            // SAFETY: u8 and MaybeUninit<u8> have the same layout, and writing u8 initialises.
            let part = unsafe { &*(std::ptr::from_ref(part) as *const [MaybeUninit<u8>]) };
            segment[..len].copy_from_slice(part);
            copied += len;
        }
        copied
    }

    /// Fills all memory of a read with `byte`.
    pub fn fill(&mut self, byte: u8) {
        let mut segments = self.segments_mut();
        while let Some(segment) = segments.next() {
            segment.fill(MaybeUninit::new(byte));
        }
    }

    /// Ends the I/O. See [`Io`] for when and where that is heard.
    #[doc(alias = "spdk_bdev_io_complete")]
    #[inline]
    pub fn complete(self, status: Status) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the I/O was the device's until now, and `this` is not dropped.
        unsafe { channel::end(this.raw, this.header, status.into()) };
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // SAFETY: the I/O was the device's until now.
        unsafe { channel::end(self.raw, self.header, Ending::FAILED) };
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("kind", &self.kind())
            .field("offset_blocks", &self.offset_blocks())
            .field("num_blocks", &self.num_blocks())
            .finish()
    }
}

/// The memory of a read. It is lent piece by piece (this is no [`Iterator`]), since C may name the
/// same memory twice.
#[derive(Debug)]
pub struct SegmentsMut<'a> {
    next: *const iovec,
    end: *const iovec,
    _io: PhantomData<&'a mut Io>,
}

impl SegmentsMut<'_> {
    /// The next piece.
    #[allow(clippy::should_implement_trait)] // it lends, which Iterator cannot
    pub fn next(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: within the I/O's iovecs, which do not change while the I/O is borrowed.
        let (base, len) = unsafe {
            let iovec = *self.next;
            self.next = self.next.add(1);
            (iovec.iov_base, iovec.iov_len)
        };
        if len == 0 {
            return Some(&mut []);
        }
        // SAFETY: whoever submitted a read leaves its memory to the device until it is completed,
        // which takes the I/O; it is lent once at a time. Whatever it holds is MaybeUninit.
        Some(unsafe { std::slice::from_raw_parts_mut(base.cast(), len) })
    }
}

/// What has to be done before a device can have an I/O.
pub(super) enum Ready {
    Now,
    /// It has no memory, or none that is aligned as the device needs it: this many bytes of it.
    NeedsBuf(u64),
    /// No kind that the device can do.
    Never,
}

/// # Safety
/// The I/O was just submitted to the device.
#[inline]
pub(super) unsafe fn ready(raw: NonNull<spdk_bdev_io>, kinds: Kinds, alignment: usize) -> Ready {
    // SAFETY: the I/O is there, and the device's (contract).
    let io = unsafe { raw.as_ref() };
    let io_type = io.type_.into();
    if !kinds.contains(io_type) {
        return Ready::Never;
    }
    let read = io_type == Kind::Read as u32;
    if !read && (alignment == 1 || io_type != Kind::Write as u32) {
        return Ready::Now;
    }
    // SAFETY: a read or a write.
    let iovecs = unsafe { iovecs(raw) };
    let absent = read && iovecs.first().is_none_or(|iovec| iovec.iov_base.is_null());
    let misaligned = |iovec: &iovec| iovec.iov_base.addr() & (alignment - 1) != 0;
    if absent || alignment > 1 && iovecs.iter().any(misaligned) {
        // SAFETY: reads and writes have this member, and keep their bdev.
        let (blocks, block_size) = unsafe { (io.u.bdev.num_blocks, (*io.bdev).blocklen) };
        return Ready::NeedsBuf(blocks * u64::from(block_size));
    }
    Ready::Now
}

/// # Safety
/// A read or a write that belongs to the device for `'a`.
#[inline]
unsafe fn iovecs<'a>(raw: NonNull<spdk_bdev_io>) -> &'a [iovec] {
    // SAFETY: reads and writes have this member: a pointer to so many iovecs, which stay as they
    // are until the I/O is completed; null if there is no memory yet.
    unsafe {
        let range = &raw const (*raw.as_ptr()).u.bdev;
        match (*range).iovs {
            iovs if iovs.is_null() => &[],
            iovs => std::slice::from_raw_parts(iovs.cast(), usize::try_from((*range).iovcnt).unwrap_or(0)),
        }
    }
}

// The bindings have an iovec of their own.
const _: () = assert!(
    size_of::<iovec>() == size_of::<spdk_sys::iovec>()
        && std::mem::offset_of!(iovec, iov_len) == std::mem::offset_of!(spdk_sys::iovec, iov_len)
);

#[cfg(test)]
mod tests {
    use super::*;

    /// An I/O over these pieces of memory, which is never completed.
    fn with_io(io_type: u32, pieces: &mut [&mut [u8]], body: impl FnOnce(&mut Io)) {
        // SAFETY: plain C structs, for which zero is valid.
        let (mut raw, mut bdev): (spdk_bdev_io, spdk_sys::spdk_bdev) = unsafe { std::mem::zeroed() };
        bdev.blocklen = 512;
        let mut iovecs: Vec<spdk_sys::iovec> = pieces
            .iter_mut()
            .map(|piece| spdk_sys::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            })
            .collect();
        raw.bdev = &mut bdev;
        raw.type_ = u8::try_from(io_type).expect("a type");
        raw.u.bdev.iovs = iovecs.as_mut_ptr();
        raw.u.bdev.iovcnt = i32::try_from(iovecs.len()).expect("a few");
        raw.u.bdev.offset_blocks = 3;
        raw.u.bdev.num_blocks = 2;
        // SAFETY: the I/O is ours alone; the header is not looked at before it is completed.
        let io = unsafe { Io::new(NonNull::from(&mut raw), NonNull::dangling()) };
        body(&mut ManuallyDrop::new(io));
    }

    #[test]
    fn data_of_a_write_is_copied_across_segments() {
        let (mut a, mut b, mut c) = ([1; 3], [0; 0], [2; 4]);
        with_io(
            spdk_sys::SPDK_BDEV_IO_TYPE_WRITE,
            &mut [&mut a, &mut b, &mut c],
            |io| {
                assert_eq!(
                    (io.kind(), io.offset(), io.num_bytes()),
                    (Kind::Write, 1536, 1024)
                );
                assert_eq!(io.segments().map(<[u8]>::len).collect::<Vec<_>>(), [3, 0, 4]);
                for (len, wanted) in [(0, &[][..]), (2, &[1, 1]), (5, &[1, 1, 1, 2, 2])] {
                    let mut target = vec![9; len];
                    assert_eq!(io.copy_to(&mut target), len);
                    assert_eq!(target, wanted);
                }
                let mut target = [9; 9];
                assert_eq!(io.copy_to(&mut target), 7);
                assert_eq!(target, [1, 1, 1, 2, 2, 2, 2, 9, 9]);
                assert!(
                    io.segments_mut().next().is_none(),
                    "the data of a write stay as they are"
                );
                assert_eq!(io.fill_from(&[7; 7]), 0);
            },
        );
        assert_eq!((a, c), ([1; 3], [2; 4]));
    }

    #[test]
    fn memory_of_a_read_is_filled_across_segments() {
        let (mut a, mut b) = ([0; 3], [0; 4]);
        with_io(spdk_sys::SPDK_BDEV_IO_TYPE_READ, &mut [&mut a, &mut b], |io| {
            io.fill(8);
            assert_eq!(io.fill_from(&[1, 2, 3, 4, 5]), 5);
            assert_eq!(io.segments().count(), 0, "what is not filled yet cannot be seen");
            assert_eq!(io.copy_to(&mut [0; 7]), 0);
        });
        assert_eq!((a, b), ([1, 2, 3], [4, 5, 8, 8]));
        with_io(spdk_sys::SPDK_BDEV_IO_TYPE_READ, &mut [&mut a, &mut b], |io| {
            assert_eq!(io.fill_from(&[6; 9]), 7);
        });
        assert_eq!((a, b), ([6; 3], [6; 4]));
    }

    #[test]
    fn a_reset_has_no_range() {
        with_io(spdk_sys::SPDK_BDEV_IO_TYPE_RESET, &mut [], |io| {
            assert_eq!(
                (io.kind(), io.offset_blocks(), io.num_bytes()),
                (Kind::Reset, 0, 0)
            );
        });
    }

    #[test]
    fn an_ending_holds_a_status() {
        let nvme = NvmeStatus {
            code_type: 7,
            code: 0xfe,
            cdw0: 0xdead_beef,
        };
        let ending = Ending::from(Status::Nvme(nvme));
        assert_eq!(ending.status(), spdk_sys::SPDK_BDEV_IO_STATUS_NVME_ERROR);
        assert_eq!(ending.nvme(), nvme);
        for (status, code) in [
            (Status::Success, spdk_sys::SPDK_BDEV_IO_STATUS_SUCCESS),
            (Status::Failed, spdk_sys::SPDK_BDEV_IO_STATUS_FAILED),
            (Status::Aborted, spdk_sys::SPDK_BDEV_IO_STATUS_ABORTED),
            (Status::NoMemory, spdk_sys::SPDK_BDEV_IO_STATUS_NOMEM),
        ] {
            assert_eq!(Ending::from(status).status(), code);
        }
    }

    #[test]
    fn errors_become_statuses() {
        let status = |kind| Status::from(&Error::new(kind, "x", "", ""));
        assert_eq!(status(ErrorKind::NoMemory), Status::NoMemory);
        assert_eq!(status(ErrorKind::Busy), Status::Failed);
        let nvme = generic(0x80);
        assert_eq!(status(ErrorKind::OutOfRange), Status::Nvme(nvme));
        let error = Error::check_io("read", "", false, NvmeStatus { cdw0: 5, ..nvme });
        assert_eq!(Status::from(error), Status::Nvme(NvmeStatus { cdw0: 5, ..nvme }));
        assert_eq!(Status::from(Ok(())), Status::Success);
    }
}
