//! NVMe commands as they are, to block devices that are NVMe namespaces.

use std::ffi::{c_int, c_void};
use std::rc::Rc;

use spdk_sys::{spdk_bdev_desc, spdk_bdev_io, spdk_bdev_io_completion_cb, spdk_io_channel, spdk_nvme_cmd};

use super::Channel;
use super::channel::ChannelInner;
use super::done::{nvme_status, on_done_within_c};
use super::io::{self, Failure, Keep, Payload};
use super::kind::IoType;
use crate::buf::{BufResult, DmaBuf};
use crate::guard;
use crate::op::slots;

/// An NVMe command: what is not zero in its 64 bytes. SPDK fills in the rest (the command's number,
/// and where the data is).
///
/// ```
/// # use spdk_rs::bdev::NvmeCommand;
/// // Identify, the controller's data.
/// let identify = NvmeCommand { opcode: 0x06, cdw10: 1, ..NvmeCommand::default() };
/// # assert_eq!(identify.nsid, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "spdk_nvme_cmd")]
pub struct NvmeCommand {
    /// What to do. Bits 0 and 1 say where data goes: 1 to the controller, 2 from it, 3 both, 0 none.
    pub opcode: u8,
    /// The namespace. In an I/O command SPDK fills it in.
    pub nsid: u32,
    /// Dword 2.
    pub cdw2: u32,
    /// Dword 3.
    pub cdw3: u32,
    /// Dword 10.
    pub cdw10: u32,
    /// Dword 11.
    pub cdw11: u32,
    /// Dword 12.
    pub cdw12: u32,
    /// Dword 13.
    pub cdw13: u32,
    /// Dword 14.
    pub cdw14: u32,
    /// Dword 15.
    pub cdw15: u32,
}

impl NvmeCommand {
    /// Whether data goes to the controller, and nowhere else.
    fn only_sends(self) -> bool {
        self.opcode & 3 == 1
    }

    fn raw(self) -> spdk_nvme_cmd {
        // SAFETY: a plain C struct of numbers, which may be zero.
        let mut raw: spdk_nvme_cmd = unsafe { std::mem::zeroed() };
        raw.set_opc(self.opcode.into());
        raw.nsid = self.nsid;
        (raw.rsvd2, raw.rsvd3) = (self.cdw2, self.cdw3);
        raw.__bindgen_anon_1.cdw10 = self.cdw10;
        raw.__bindgen_anon_2.cdw11 = self.cdw11;
        (raw.cdw12, raw.cdw13) = (self.cdw12, self.cdw13);
        (raw.cdw14, raw.cdw15) = (self.cdw14, self.cdw15);
        raw
    }
}

/// A command, its memory, and its answer.
pub struct NvmeIo {
    command: NvmeCommand,
    buf: Option<DmaBuf>,
    metadata: Option<DmaBuf>,
    /// Dword 0 of the completion.
    cdw0: u32,
}

impl NvmeIo {
    fn new(command: NvmeCommand, mut buf: Option<DmaBuf>, mut metadata: Option<DmaBuf>) -> Box<Self> {
        if !command.only_sends() {
            // The controller may send less than there is room for.
            buf.iter_mut().chain(&mut metadata).for_each(fill_up);
        }
        Box::new(Self {
            command,
            buf,
            metadata,
            cdw0: 0,
        })
    }
}

/// Initialises what is not yet.
fn fill_up(buf: &mut DmaBuf) {
    for byte in buf.spare_capacity_mut() {
        byte.write(0);
    }
    // SAFETY: the rest was written to just now.
    unsafe { buf.set_len(buf.capacity()) };
}

impl Channel {
    /// Sends an admin command to the controller, with the buffer's initialised part if its opcode says
    /// that data goes to the controller alone, and else with room for as much as its capacity; what is
    /// not initialised there is zeroed before.
    ///
    /// Yields dword 0 of the completion. It allocates.
    ///
    /// # Errors
    /// See [`Channel`]: [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the device is no
    /// NVMe namespace, or the controller does not know the opcode;
    /// [`ErrorKind::ReadOnly`](crate::ErrorKind::ReadOnly) whatever the command does.
    /// [`Error::nvme_status`](crate::Error::nvme_status) is what the controller answered; that of
    /// an internal error (0, 6) is SPDK's own, for a buffer that is too large.
    ///
    /// # Safety
    /// The command moves no more data than the memory that goes with it holds, and makes the controller
    /// use no other memory of this host. It leaves alone what SPDK and other users of the controller
    /// build upon: queues, memory, events, namespaces and their format.
    #[doc(alias = "spdk_bdev_nvme_admin_passthru")]
    pub async unsafe fn nvme_admin_passthru(
        &self,
        command: NvmeCommand,
        buf: Option<DmaBuf>,
    ) -> BufResult<u32, Option<DmaBuf>> {
        let io = NvmeIo::new(command, buf, None);
        let BufResult(result, io) = self.nvme(IoType::NvmeAdmin, io).await;
        BufResult(result, io.buf)
    }

    /// Sends an I/O command to the namespace; else as [`nvme_admin_passthru`](Self::nvme_admin_passthru).
    ///
    /// # Errors
    /// As [`nvme_admin_passthru`](Self::nvme_admin_passthru).
    ///
    /// # Safety
    /// As [`nvme_admin_passthru`](Self::nvme_admin_passthru).
    #[doc(alias = "spdk_bdev_nvme_io_passthru")]
    pub async unsafe fn nvme_io_passthru(
        &self,
        command: NvmeCommand,
        buf: Option<DmaBuf>,
    ) -> BufResult<u32, Option<DmaBuf>> {
        let io = NvmeIo::new(command, buf, None);
        let BufResult(result, io) = self.nvme(IoType::NvmeIo, io).await;
        BufResult(result, io.buf)
    }

    /// As [`nvme_io_passthru`](Self::nvme_io_passthru), with metadata in memory of its own: so much
    /// for each block of `buf`.
    ///
    /// # Errors
    /// As [`nvme_io_passthru`](Self::nvme_io_passthru);
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the namespace has no metadata.
    ///
    /// # Safety
    /// As [`nvme_io_passthru`](Self::nvme_io_passthru).
    #[doc(alias = "spdk_bdev_nvme_io_passthru_md")]
    pub async unsafe fn nvme_io_passthru_with_metadata(
        &self,
        command: NvmeCommand,
        buf: DmaBuf,
        metadata: DmaBuf,
    ) -> BufResult<u32, (DmaBuf, DmaBuf)> {
        let io = NvmeIo::new(command, Some(buf), Some(metadata));
        let BufResult(result, io) = self.nvme(IoType::NvmeIoWithMetadata, io).await;
        match (io.buf, io.metadata) {
            (Some(buf), Some(metadata)) => BufResult(result, (buf, metadata)),
            _ => unreachable!("the memory that was given comes back"),
        }
    }

    async fn nvme(&self, kind: IoType, io: Box<NvmeIo>) -> BufResult<u32, Box<NvmeIo>> {
        let mut op = io::prepare(self.slots(), 0, 0, || Payload::Nvme(io));
        std::future::poll_fn(move |cx| {
            io::poll(
                &mut op,
                cx,
                kind,
                io::submit_now,
                |result, payload| match std::mem::take(payload) {
                    Payload::Nvme(io) => BufResult(result.map(|()| io.cdw0), io),
                    _ => unreachable!("the memory that was given comes back"),
                },
            )
        })
        .await
    }
}

/// Hands the command to SPDK, which copies it.
///
/// # Safety
/// As [`io::submit_now`], for a kind of NVMe command.
pub(super) unsafe fn submit_now(
    kind: IoType,
    io: &mut NvmeIo,
    descriptor: *mut spdk_bdev_desc,
    channel: *mut spdk_io_channel,
    cb_arg: *mut c_void,
) -> c_int {
    let memory = |buf: &mut Option<DmaBuf>| match buf {
        Some(buf) => (buf.as_mut_ptr().cast::<c_void>(), buf.len()),
        None => (std::ptr::null_mut(), 0),
    };
    let command = io.command.raw();
    let (buf, bytes) = memory(&mut io.buf);
    let done: spdk_bdev_io_completion_cb = Some(on_answered);
    // SAFETY: by contract; the memory is the keep's, and has these lengths.
    unsafe {
        match kind {
            IoType::NvmeAdmin => spdk_sys::spdk_bdev_nvme_admin_passthru(
                descriptor, channel, &command, buf, bytes, done, cb_arg,
            ),
            IoType::NvmeIo => {
                spdk_sys::spdk_bdev_nvme_io_passthru(descriptor, channel, &command, buf, bytes, done, cb_arg)
            }
            _ => {
                let (metadata, length) = memory(&mut io.metadata);
                spdk_sys::spdk_bdev_nvme_io_passthru_md(
                    descriptor, channel, &command, buf, bytes, metadata, length, done, cb_arg,
                )
            }
        }
    }
}

/// As [`on_done_within_c`], and keeps what the controller answered.
unsafe extern "C" fn on_answered(bdev_io: *mut spdk_bdev_io, success: bool, cb_arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: the I/O has ended, and is there until it is freed below. cb_arg is that of
        // `io::poll`'s operation, which has not ended; this reference to its keep ends here.
        unsafe {
            let status = nvme_status(bdev_io);
            if let Payload::Nvme(io) = &mut slots::keep::<Rc<ChannelInner>, Failure, Keep>(cb_arg).1.payload {
                io.cdw0 = status.cdw0;
            }
        }
    });
    // SAFETY: as SPDK calls this, once.
    unsafe { on_done_within_c(bdev_io, success, cb_arg) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_laid_out_as_nvme_says() {
        let command = NvmeCommand {
            opcode: 0x81,
            nsid: 1,
            cdw2: 2,
            cdw3: 3,
            cdw10: 10,
            cdw11: 11,
            cdw12: 12,
            cdw13: 13,
            cdw14: 14,
            cdw15: 15,
        };
        assert!(command.only_sends());
        let raw = command.raw();
        // SAFETY: 64 bytes without padding, all of them initialised.
        let dwords = unsafe { std::mem::transmute::<spdk_nvme_cmd, [u32; 16]>(raw) };
        assert_eq!(dwords, [0x81, 1, 2, 3, 0, 0, 0, 0, 0, 0, 10, 11, 12, 13, 14, 15]);
    }
}
