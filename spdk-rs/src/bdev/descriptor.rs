//! Open block devices.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use spdk_sys::spdk_bdev_desc;

use super::c_name;
use super::channel::{Channel, ChannelInner};
use super::event_target::{EventTarget, on_event};
use super::events::Listeners;
use super::kind::{self, IoType, Kinds};
use crate::reactor::Owner;
use crate::{Error, ErrorKind, Result};

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Why a descriptor is not usable any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Closed,
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Lets go as soon as no I/O is in flight.
    Closing(Why),
    /// Has let go: the C descriptor and channels are gone.
    Gone(Why),
}

/// What a [`Descriptor`], its channels and their I/O share.
pub(super) struct Inner {
    /// Null before it is opened, and after it has let go.
    raw: Cell<*mut spdk_bdev_desc>,
    /// Where SPDK sends its events. On its own, so that it can stay with a C descriptor that
    /// nobody can close any more (its thread has gone).
    events: Arc<EventTarget>,
    name: String,
    owner: Owner,
    mode: Mode,
    block_size: Cell<u32>,
    /// For sizes that are a power of two; else a mask that nothing passes.
    block_mask: Cell<u64>,
    block_shift: Cell<u32>,
    /// In bytes.
    size: Cell<u64>,
    /// What the device can do.
    supported: Cell<Kinds>,
    state: Cell<State>,
    channels: RefCell<Vec<Weak<ChannelInner>>>,
    /// Who waits for a change of state.
    waiters: RefCell<Vec<Waker>>,
    listeners: Listeners,
}

/// An open block device; see the [module's documentation](super).
///
/// It belongs to the spdk_thread that opened it. Dropping it closes the device once its channels
/// are dropped and their I/O has ended; [`Descriptor::close`] waits for that.
#[doc(alias = "spdk_bdev_desc")]
pub struct Descriptor(Rc<Inner>);

static_assertions::assert_not_impl_any!(Descriptor: Send, Sync);

impl Descriptor {
    pub(crate) fn open(name: &str, mode: Mode) -> Result<Self> {
        const WHAT: &str = "open bdev";
        let owner = Owner::current(WHAT, name)?;
        let c_name = c_name(WHAT, name)?;
        let inner = Rc::new(Inner {
            raw: Cell::new(std::ptr::null_mut()),
            events: EventTarget::new(&owner),
            name: name.to_owned(),
            owner,
            mode,
            block_size: Cell::new(1),
            block_mask: Cell::new(u64::MAX),
            block_shift: Cell::new(0),
            size: Cell::new(0),
            supported: Cell::new(Kinds::NONE),
            state: Cell::new(State::Open),
            channels: RefCell::default(),
            waiters: RefCell::default(),
            listeners: Listeners::default(),
        });
        inner.events.set(&inner);
        let mut raw = std::ptr::null_mut();
        // SAFETY: this runs on an spdk_thread (Owner). The event callback's argument lives until
        // the descriptor is closed, in `let_go` or Drop, on this thread; SPDK delivers no event
        // after that.
        let rc = unsafe {
            spdk_sys::spdk_bdev_open_ext(
                c_name.as_ptr(),
                mode == Mode::ReadWrite,
                Some(on_event),
                Arc::as_ptr(&inner.events).cast_mut().cast::<c_void>(),
                &mut raw,
            )
        };
        Error::check(WHAT, name, rc).map_err(|error| explain_open(error, rc))?;
        inner.raw.set(raw);
        inner.read_size();
        inner.read_kinds();
        Ok(Self(inner))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it was opened for.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u32 {
        self.0.block_size.get()
    }

    /// The device's size in bytes; follows when the device is resized.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// The current thread's path to the device. There may be several; they share one in SPDK.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`] if this is not the thread that opened the device;
    /// [`ErrorKind::Closed`], [`ErrorKind::Removed`]; [`ErrorKind::NoMemory`].
    #[doc(alias = "spdk_bdev_get_io_channel")]
    pub fn channel(&self) -> Result<Channel> {
        const WHAT: &str = "get I/O channel";
        let raw = self.0.check(WHAT)?;
        // SAFETY: the descriptor is open, and this is its thread.
        let channel = unsafe { spdk_sys::spdk_bdev_get_io_channel(raw) };
        let channel = Error::check_ptr(WHAT, &self.0.name, channel, libc::ENOMEM)?;
        let inner = ChannelInner::new(channel.as_ptr(), Rc::clone(&self.0));
        let mut channels = self.0.channels.borrow_mut();
        channels.retain(|channel| channel.strong_count() > 0);
        channels.push(Rc::downgrade(&inner));
        Ok(Channel::new(inner))
    }

    pub(super) fn inner(&self) -> &Rc<Inner> {
        &self.0
    }

    /// Whether the device was removed.
    pub fn is_removed(&self) -> bool {
        self.0.why_not() == Some(Why::Removed)
    }

    /// Resolves when the device is removed, or this descriptor has been closed.
    pub fn removed(&self) -> Removed {
        Removed(Rc::clone(&self.0))
    }

    /// Closes the device: waits for the I/O in flight, then lets go of channels and device. I/O
    /// on channels that are still there fails with [`ErrorKind::Closed`] from now on.
    ///
    /// # Errors
    /// [`ErrorKind::WrongThread`] if this is not the thread that opened the device; it is closed
    /// all the same then, soon.
    #[doc(alias = "spdk_bdev_close")]
    pub async fn close(self) -> Result<()> {
        self.0.owner.check("close bdev", &self.0.name)?;
        self.0.start_closing(Why::Closed);
        std::future::poll_fn(|cx| self.0.poll_gone(cx)).await;
        Ok(())
    }
}

/// SPDK's errnos of an open say less than they could.
pub(super) fn explain_open(error: Error, rc: i32) -> Error {
    match -rc {
        // Nothing else is invalid: a callback is given.
        libc::EINVAL => error
            .with_kind(ErrorKind::NotFound)
            .with_detail("there is no such block device"),
        libc::ENODEV => error.with_detail("is being removed"),
        libc::EPERM => error.with_detail(
            "is claimed by a module (a volume store, an NVMe-oF namespace …), so that it can be \
             opened for reading only",
        ),
        _ => error,
    }
}

impl Inner {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    #[inline]
    pub(super) fn block_size(&self) -> u64 {
        u64::from(self.block_size.get())
    }

    #[inline]
    pub(super) fn size(&self) -> u64 {
        self.size.get()
    }

    pub(super) fn num_blocks(&self) -> u64 {
        self.size() / self.block_size()
    }

    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// The C descriptor, if this may be used here and now.
    pub(super) fn check(&self, what: &'static str) -> Result<*mut spdk_bdev_desc> {
        self.owner.check(what, &self.name)?;
        match self.why_not() {
            None => Ok(self.raw.get()),
            Some(why) => Err(self.unusable(what, why)),
        }
    }

    /// The error of an operation that came too late.
    fn unusable(&self, what: &'static str, why: Why) -> Error {
        let (kind, detail) = match why {
            Why::Closed => (ErrorKind::Closed, "the descriptor was closed"),
            Why::Removed => (ErrorKind::Removed, "the device was removed"),
        };
        Error::new(kind, what, &self.name, detail)
    }

    /// The error of I/O that could not start any more.
    pub(super) fn gone(&self, what: &'static str) -> Error {
        self.unusable(what, self.why_not().unwrap_or(Why::Closed))
    }

    fn why_not(&self) -> Option<Why> {
        match self.state.get() {
            State::Open => None,
            State::Closing(why) | State::Gone(why) => Some(why),
        }
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    pub(super) fn is_removed(&self) -> bool {
        self.why_not() == Some(Why::Removed)
    }

    /// The C descriptor. Not null while I/O is in flight.
    #[inline]
    pub(super) fn raw(&self) -> *mut spdk_bdev_desc {
        self.raw.get()
    }

    /// I/O that SPDK has not finished yet, of all channels. (Those whose handles were dropped are
    /// kept by their I/O.)
    fn in_flight(&self) -> usize {
        let channels = self.channels.borrow();
        channels
            .iter()
            .filter_map(Weak::upgrade)
            .map(|channel| channel.in_flight())
            .sum()
    }

    /// The device goes.
    pub(super) fn removed(&self) {
        self.start_closing(Why::Removed);
    }

    /// The device has another size.
    pub(super) fn resized(&self) {
        self.read_size();
        self.listeners.wake();
    }

    fn start_closing(&self, why: Why) {
        match (self.state.get(), why) {
            // A removed device stays removed; it is what the user wants to know.
            (State::Open, why) | (State::Closing(Why::Closed), why @ Why::Removed) => {
                self.state.set(State::Closing(why));
                for channel in self.channels.borrow().iter().filter_map(Weak::upgrade) {
                    channel.refuse();
                }
                self.let_go_if_idle();
            }
            (State::Closing(_) | State::Gone(_), _) => {}
        }
        self.wake_all();
    }

    /// If it is closing and no I/O is in flight, gives channels and descriptor back to SPDK, on
    /// which a removal waits.
    pub(super) fn let_go_if_idle(&self) {
        let State::Closing(why) = self.state.get() else {
            return;
        };
        if self.in_flight() > 0 {
            return;
        }
        self.state.set(State::Gone(why));
        for channel in self.channels.take() {
            if let Some(channel) = channel.upgrade() {
                channel.put();
            }
        }
        self.close_raw();
        self.wake_all();
    }

    fn close_raw(&self) {
        let raw = self.raw.replace(std::ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: the descriptor is open until here; this is its thread (this runs in its
            // events, in completions, and after `check`); no I/O is in flight. SPDK allows it in
            // its event callback.
            unsafe { spdk_sys::spdk_bdev_close(raw) };
        }
    }

    fn wake_all(&self) {
        for waker in self.waiters.take() {
            waker.wake();
        }
        self.listeners.wake();
    }

    fn wait(&self, cx: &mut Context<'_>) {
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state.get(), State::Gone(_)) {
            return Poll::Ready(());
        }
        self.wait(cx);
        Poll::Pending
    }

    fn read_size(&self) {
        // SAFETY: the descriptor is open, which keeps the bdev.
        unsafe {
            let bdev = spdk_sys::spdk_bdev_desc_get_bdev(self.raw.get());
            let block = spdk_sys::spdk_bdev_get_block_size(bdev);
            self.block_size.set(block);
            self.block_mask.set(match block.is_power_of_two() {
                true => u64::from(block) - 1,
                false => u64::MAX,
            });
            self.block_shift.set(block.trailing_zeros());
            let blocks = spdk_sys::spdk_bdev_get_num_blocks(bdev);
            self.size.set(blocks * self.block_size());
        }
    }

    fn read_kinds(&self) {
        // SAFETY: the descriptor is open, which keeps the bdev.
        let supported = unsafe { kind::supported(spdk_sys::spdk_bdev_desc_get_bdev(self.raw.get())) };
        self.supported.set(supported);
    }

    /// What the device can do.
    pub(super) fn supported(&self) -> Kinds {
        self.supported.get()
    }

    /// Whether the device can do it.
    pub(super) fn supports(&self, kind: IoType) -> bool {
        self.supported.get().contains(kind as u32)
    }

    /// A range of whole blocks, in blocks.
    pub(super) fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        (offset / self.block_size(), len / self.block_size())
    }

    /// As [`blocks`](Self::blocks), where [`is_aligned`](Self::is_aligned) has said yes.
    #[inline(always)]
    pub(super) fn aligned_blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let shift = self.block_shift.get();
        (offset >> shift, len >> shift)
    }

    /// Whether offsets and lengths (or'ed together) are ones of whole blocks. May say no where
    /// the long way says yes.
    #[inline]
    pub(super) fn is_aligned(&self, bytes: u64) -> bool {
        bytes & self.block_mask.get() == 0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let raw = self.raw.replace(std::ptr::null_mut());
        if raw.is_null() {
            return;
        }
        // No channel is left, so no I/O is in flight: they hold a reference to this.
        self.listeners.wake();
        let events = Arc::clone(&self.events);
        self.owner.run(move || {
            // SAFETY: the descriptor is open until here, and this runs on its thread.
            unsafe { spdk_sys::spdk_bdev_close(raw) };
            drop(events);
        });
    }
}

/// The future of [`Descriptor::removed`].
#[must_use = "it waits when it is awaited"]
pub struct Removed(Rc<Inner>);

impl Future for Removed {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.is_open() {
            self.0.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor")
            .field("name", &self.0.name)
            .field("mode", &self.0.mode)
            .field("state", &self.0.state.get())
            .field("in_flight", &self.0.in_flight())
            .finish()
    }
}
