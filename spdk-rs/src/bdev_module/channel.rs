//! A thread's part of a device: gives it I/O, and takes the I/O back.
//!
//! # What the device is spared
//!
//! SPDK calls `submit_request` whenever somebody submits: also from the callback of an I/O that
//! the device completes in the middle of `submit_request`. A device would be entered again while
//! it holds `&mut` to its channel. Here it is not: while its code runs the channel is *busy*, and
//! what ends or comes meanwhile waits in a list for the channel's poller. (SPDK would send a
//! message for each I/O that a device completes at once; the list is cheaper, too.)

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use spdk_sys::{
    spdk_bdev_io, spdk_bdev_io_status, spdk_io_channel, spdk_io_channel_iter, spdk_poller, spdk_thread,
};

use super::BlockDevice;
use super::disk::Disk;
use super::io::{self, Ending, INVALID_OPCODE, Io, Ready};
use super::later::{self, Later};
use crate::bdev::kind::{Kind, Kinds};
use crate::executor::{Bell, user_code_within_c};
use crate::reactor::{self, Adoption};
use crate::sync::Arc;
use crate::{Error, Result, guard};

/// What completing an I/O needs, whatever the device. All but `thread` and `bell`, which never
/// change, is for that thread alone.
pub(super) struct Header {
    thread: *mut spdk_thread,
    /// Wakes that thread's core, where it may sleep.
    bell: Option<Arc<Bell>>,
    door: Cell<Door>,
    /// I/O that the device has.
    in_flight: Cell<usize>,
    /// What the poller is to do.
    later: Later,
    poller: Cell<*mut spdk_poller>,
    /// Gives the device an I/O: [`State::give`], without its type.
    give: unsafe fn(NonNull<Header>, NonNull<spdk_bdev_io>),
}

/// Whether the device can be given I/O.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Its code is on the stack.
    Busy,
    /// Its code has panicked: it is given no more.
    Shut,
}

thread_local! {
    /// The channel whose device's code is on top of the stack. (Its `door` tells of those beneath.)
    static ON_TOP: Cell<*const Header> = const { Cell::new(std::ptr::null()) };
}

/// The channel. SPDK's own has room for a pointer to it.
#[repr(C)] // a pointer to it is one to the header
pub(super) struct State<D: BlockDevice> {
    header: Header,
    kinds: Kinds,
    alignment: usize,
    disk: NonNull<Disk<D>>,
    channel: UnsafeCell<D::Channel>,
    /// Goes last: what the channel holds may need it.
    _adoption: Adoption,
}

/// What SPDK is to allocate with each channel.
pub(super) const CONTEXT_SIZE: u32 = size_of::<*mut c_void>() as u32;

/// # Safety
/// `channel` is one of a device of this module.
#[inline]
unsafe fn context(channel: *mut spdk_io_channel) -> *mut *mut c_void {
    // SAFETY: SPDK puts the context, which has CONTEXT_SIZE bytes, right behind the channel.
    unsafe { channel.byte_add(spdk_sys::SHIM_IO_CHANNEL_SIZE as usize).cast() }
}

/// How an I/O comes to a device. Each way is compiled by itself, which is what it takes to have the
/// one that most of them come by all in one function.
const SUBMITTED: u8 = 0;
const OTHER: u8 = 1;

impl<D: BlockDevice> State<D> {
    /// # Safety
    /// `channel` is one of a `D`, and alive.
    #[inline]
    unsafe fn of(channel: *mut spdk_io_channel) -> NonNull<Self> {
        // SAFETY: `create` has put a pointer to the state there (contract).
        unsafe { NonNull::new_unchecked((*context(channel)).cast()) }
    }

    /// Calls code of the device.
    ///
    /// # Safety
    /// On the channel's thread; the state is alive, and its door is `door`, so the channel not busy.
    #[inline(always)] // it is called in two places, one of which must be quick
    unsafe fn enter(this: NonNull<Self>, door: Door, body: impl FnOnce(&D, &mut D::Channel)) {
        /// Also on a panic, and before anything else gets to run.
        struct Leave<'a>(&'a Header, Door, *const Header);
        impl Drop for Leave<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.door.set(self.1);
                ON_TOP.set(self.2);
            }
        }
        // SAFETY: the state is alive (contract), and this is its thread.
        let header = unsafe { &(*this.as_ptr()).header };
        let entered = || {
            header.door.set(Door::Busy);
            let _leave = Leave(header, door, ON_TOP.replace(header));
            // SAFETY: the disk outlives its channels. Nobody else has a reference to the channel:
            // one is made here alone, while the channel is busy, and not twice.
            let (device, channel) = unsafe {
                let this = this.as_ptr();
                (Disk::device((*this).disk), &mut *(*this).channel.get())
            };
            body(device, channel);
        };
        let fine = guard::ffi(false, || {
            // SPDK may be going through a queue of I/O.
            user_code_within_c(entered);
            true
        });
        if !fine {
            header.door.set(Door::Shut);
        }
    }

    /// Gives the device an I/O: now, or when it has returned.
    ///
    /// # Safety
    /// On the channel's thread; the state is alive. The I/O is ready, and was given to no other.
    #[inline(always)] // so that an I/O comes by as few calls as it can
    unsafe fn deliver<const WAY: u8>(this: NonNull<Self>, raw: NonNull<spdk_bdev_io>) {
        // SAFETY: as the contract says. The header is the first member of the state.
        unsafe {
            let header = &(*this.as_ptr()).header;
            match header.door.get() {
                Door::Open => {}
                Door::Busy => return header.later.push(raw, Ending::NONE),
                Door::Shut => return complete(raw, spdk_sys::SPDK_BDEV_IO_STATUS_FAILED),
            }
            header.in_flight.set(header.in_flight.get() + 1);
            let io = Io::new(raw, this.cast());
            Self::enter(this, Door::Open, move |device, channel| {
                device.submit(channel, io)
            });
        }
    }

    /// [`State::deliver`] for [`Header::give`].
    unsafe fn give(header: NonNull<Header>, raw: NonNull<spdk_bdev_io>) {
        // SAFETY: the header of a state of this type, which has put this function into it.
        unsafe { Self::deliver::<OTHER>(header.cast(), raw) };
    }
}

/// The poller of a channel: what was to be done later.
unsafe extern "C" fn poll(header: *mut c_void) -> c_int {
    const IDLE: c_int = 0;
    const BUSY: c_int = 1;
    // SAFETY: the poller's argument, a header that lives until the poller is unregistered. Each
    // I/O was put into the list by somebody who had it, to be ended or given once. (Nothing here
    // panics but the device's code, which is guarded.)
    unsafe {
        let header = NonNull::new_unchecked(header.cast::<Header>());
        let this = header.as_ref();
        // What comes while these are done is for the next turn.
        let mut batch = this.later.take();
        if batch.is_empty() {
            return IDLE;
        }
        while let Some((raw, ending)) = batch.pop() {
            match ending {
                Ending::NONE => (this.give)(header, raw),
                ending => finish(raw, header, ending),
            }
        }
        BUSY
    }
}

/// SPDK makes a channel on the current thread.
pub(super) unsafe extern "C" fn create<D: BlockDevice>(io_device: *mut c_void, ctx: *mut c_void) -> c_int {
    guard::ffi(-libc::EIO, || {
        user_code_within_c(|| {
            // SAFETY: SPDK was given the disk as io_device, and the disk outlives its channels.
            match unsafe { make::<D>(NonNull::new_unchecked(io_device.cast())) } {
                Ok(state) => {
                    // SAFETY: the context of the new channel has room for a pointer.
                    unsafe { *ctx.cast() = state };
                    0
                }
                Err(error) => {
                    // SPDK has no way to pass this on.
                    eprintln!("spdk-rs: no channel: {error}");
                    -error.errno()
                }
            }
        })
    })
}

/// # Safety
/// The disk is there, and outlives the state.
unsafe fn make<D: BlockDevice>(disk: NonNull<Disk<D>>) -> Result<*mut State<D>> {
    let adoption = reactor::adopt_current()?;
    // SAFETY: the disk is there (contract).
    let (device, (kinds, alignment)) = unsafe { (Disk::device(disk), Disk::abilities(disk)) };
    let state = Box::new(State {
        header: Header {
            // SAFETY: reads a thread-local variable.
            thread: unsafe { spdk_sys::spdk_get_thread() },
            bell: reactor::bell(),
            door: Cell::new(Door::Open),
            in_flight: Cell::new(0),
            later: Later::default(),
            poller: Cell::new(std::ptr::null_mut()),
            give: State::<D>::give,
        },
        kinds,
        alignment,
        disk,
        channel: UnsafeCell::new(device.channel()?),
        _adoption: adoption,
    });
    let state = Box::into_raw(state);
    // SAFETY: on an spdk_thread. The header stays where it is until `destroy`, which unregisters
    // the poller. If there is none, nobody knows of the state, and it is ours again.
    unsafe {
        let poller = spdk_sys::spdk_poller_register_named(Some(poll), state.cast(), 0, c"rust_bdev".as_ptr());
        if poller.is_null() {
            drop(Box::from_raw(state));
            return Err(Error::from_errno("register poller", "", libc::ENOMEM));
        }
        (*state).header.poller.set(poller);
    }
    Ok(state)
}

/// SPDK ends a channel, on its thread; no I/O is in flight.
pub(super) unsafe extern "C" fn destroy<D: BlockDevice>(_io_device: *mut c_void, ctx: *mut c_void) {
    guard::ffi((), || {
        user_code_within_c(|| {
            // SAFETY: the pointer that `create` has put there; SPDK ends each channel once, on
            // its thread, on which the poller was registered.
            unsafe {
                let state = *ctx.cast::<*mut State<D>>();
                spdk_sys::spdk_poller_unregister((*state).header.poller.as_ptr());
                drop(Box::from_raw(state));
            }
        });
    });
}

/// SPDK submits an I/O, on the channel's thread.
pub(super) unsafe extern "C" fn submit_request<D: BlockDevice>(
    channel: *mut spdk_io_channel,
    bdev_io: *mut spdk_bdev_io,
) {
    // SAFETY: SPDK calls with a channel of this device, which lives as long as I/O is in flight
    // on it, and an I/O that is the device's from now on. The callback of get_buf comes once, on
    // this thread, unless SPDK aborts the I/O first.
    unsafe {
        let state = State::<D>::of(channel);
        let raw = NonNull::new_unchecked(bdev_io);
        let (kinds, alignment) = ((*state.as_ptr()).kinds, (*state.as_ptr()).alignment);
        match io::ready(raw, kinds, alignment) {
            Ready::Now => State::deliver::<SUBMITTED>(state, raw),
            Ready::NeedsBuf(len) => spdk_sys::spdk_bdev_io_get_buf(bdev_io, Some(on_buf::<D>), len),
            Ready::Never => complete_nvme(raw, INVALID_OPCODE),
        }
    }
}

/// SPDK has (or has not) memory for an I/O; it has put it into the I/O.
unsafe extern "C" fn on_buf<D: BlockDevice>(
    channel: *mut spdk_io_channel,
    bdev_io: *mut spdk_bdev_io,
    success: bool,
) {
    // SAFETY: as in `submit_request`, which asked for it.
    unsafe {
        if success {
            State::<D>::give(State::<D>::of(channel).cast(), NonNull::new_unchecked(bdev_io));
        } else {
            spdk_sys::spdk_bdev_io_complete(bdev_io, spdk_sys::SPDK_BDEV_IO_STATUS_FAILED);
        }
    }
}

/// The device is about to be unregistered: tells this thread's part of it.
pub(super) unsafe extern "C" fn drain<D: BlockDevice>(iter: *mut spdk_io_channel_iter) {
    // SAFETY: SPDK calls on each channel's thread, as a message of its own, so outside of the
    // device's code; the iteration goes on once.
    unsafe {
        let state = State::<D>::of(spdk_sys::spdk_io_channel_iter_get_channel(iter));
        let door = (*state.as_ptr()).header.door.get();
        State::enter(state, door, |device, channel| device.drain(channel));
        spdk_sys::spdk_for_each_channel_continue(iter, 0);
    }
}

/// Ends an I/O that the device has: now, in the poller, or by a message.
///
/// # Safety
/// The device has the I/O, on this channel, and lets go of it with this call. On any thread.
#[inline]
pub(super) unsafe fn end(raw: NonNull<spdk_bdev_io>, header: NonNull<Header>, ending: Ending) {
    // SAFETY: a channel lives as long as the device has I/O of it. On other threads only what
    // never changes is read.
    unsafe {
        let channel = header.as_ptr();
        if ON_TOP.get() != channel.cast_const() {
            if spdk_sys::spdk_get_thread() != (*channel).thread {
                end_there(raw, header, ending);
                return;
            }
            if (*channel).door.get() != Door::Busy {
                finish(raw, header, ending);
                return;
            }
        }
        if ending == Ending::NO_MEMORY {
            finish(raw, header, ending); // of which nobody hears
        } else {
            (*channel).later.push(raw, ending);
        }
    }
}

/// # Safety
/// As [`end`], on another thread than the channel's.
#[cold]
unsafe fn end_there(raw: NonNull<spdk_bdev_io>, header: NonNull<Header>, ending: Ending) {
    // SAFETY: as in `end`. A message may be sent from any thread, also one that is not SPDK's.
    unsafe {
        later::keep(raw, ending);
        let (thread, bell) = ((*header.as_ptr()).thread, (*header.as_ptr()).bell.clone());
        while spdk_sys::spdk_thread_send_msg(thread, Some(on_end), raw.as_ptr().cast()) != 0 {
            std::thread::yield_now(); // until the thread has used some messages up
        }
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}

/// The message of [`end_there`].
unsafe extern "C" fn on_end(bdev_io: *mut c_void) {
    // SAFETY: an I/O that the device has ended elsewhere, on its channel's thread. It has a
    // channel of its device, alive, whose context is a pointer to a State, whose first member is
    // the header.
    unsafe {
        let raw = NonNull::new_unchecked(bdev_io.cast());
        let ending = later::kept(raw);
        let channel = spdk_sys::spdk_bdev_io_get_io_channel(raw.as_ptr());
        end(raw, NonNull::new_unchecked((*context(channel)).cast()), ending);
    }
}

/// # Safety
/// As [`end`], on the channel's thread.
#[inline]
unsafe fn finish(raw: NonNull<spdk_bdev_io>, header: NonNull<Header>, ending: Ending) {
    // SAFETY: the I/O is the device's until here (contract), where it is given back to SPDK once;
    // the header is not used after that.
    unsafe {
        let in_flight = &(*header.as_ptr()).in_flight;
        in_flight.set(in_flight.get() - 1);
        if ending == Ending::SUCCESS {
            return complete(raw, spdk_sys::SPDK_BDEV_IO_STATUS_SUCCESS);
        }
        match ending.status() {
            spdk_sys::SPDK_BDEV_IO_STATUS_NVME_ERROR => complete_nvme(raw, ending.nvme()),
            spdk_sys::SPDK_BDEV_IO_STATUS_NOMEM => put_off(raw, header),
            status => complete(raw, status),
        }
    }
}

/// # Safety
/// As [`finish`].
#[cold]
unsafe fn put_off(raw: NonNull<spdk_bdev_io>, header: NonNull<Header>) {
    // SAFETY: as in `finish`; the bdev stays as long as there is I/O. Another thread may begin or
    // end a reset of its own meanwhile.
    unsafe {
        if Kind::of((*raw.as_ptr()).type_.into()) == Some(Kind::Reset) {
            complete(raw, spdk_sys::SPDK_BDEV_IO_STATUS_FAILED);
            return;
        }
        // SPDK tries again when another I/O of the channel ends, if that is no reset. There is
        // one reset at a time; it is this channel's or another's.
        let reset = &raw mut (*(*raw.as_ptr()).bdev).internal.reset_in_progress;
        let resets = usize::from(!AtomicPtr::from_ptr(reset).load(Ordering::Relaxed).is_null());
        let others = (*header.as_ptr()).in_flight.get();
        if others > resets {
            complete(raw, spdk_sys::SPDK_BDEV_IO_STATUS_NOMEM);
        } else {
            (*header.as_ptr()).later.push(raw, Ending::NONE);
        }
    }
}

/// # Safety
/// On the I/O's thread; the I/O is given back to SPDK with this call.
#[inline]
unsafe fn complete(raw: NonNull<spdk_bdev_io>, status: spdk_bdev_io_status) {
    // SAFETY: as the contract says.
    unsafe { spdk_sys::spdk_bdev_io_complete(raw.as_ptr(), status) };
}

/// # Safety
/// As [`complete`].
#[cold]
unsafe fn complete_nvme(raw: NonNull<spdk_bdev_io>, status: crate::NvmeStatus) {
    let (code_type, code) = (c_int::from(status.code_type), c_int::from(status.code));
    // SAFETY: as the contract says.
    unsafe { spdk_sys::spdk_bdev_io_complete_nvme_status(raw.as_ptr(), status.cdw0, code_type, code) };
}
