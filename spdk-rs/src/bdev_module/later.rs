//! What a channel's poller is to do: I/O in a list that allocates nothing, since each I/O has room
//! for a link in the context that SPDK gives a module with it.

use std::cell::Cell;
use std::ptr::{self, NonNull};

use spdk_sys::spdk_bdev_io;

use super::io::Ending;

/// A module's context in an I/O.
#[repr(C)]
struct Link {
    /// How it is to end; [`Ending::NONE`] if it is to be given to the device instead.
    ending: Ending,
    /// The one behind it in the list.
    next: *mut spdk_bdev_io,
}

const CONTEXT: usize = std::mem::offset_of!(spdk_bdev_io, driver_ctx);
const _: () = assert!(size_of::<Link>() <= spdk_sys::SHIM_BDEV_IO_CTX_SIZE as usize);
const _: () = assert!(CONTEXT % align_of::<Link>() == 0 && align_of::<spdk_bdev_io>() >= align_of::<Link>());

/// # Safety
/// The I/O is a device's of this module.
#[inline]
unsafe fn link(raw: NonNull<spdk_bdev_io>) -> *mut Link {
    // SAFETY: the context begins where the struct's last member stands (its address is computed
    // from that of the whole allocation), and is aligned and large enough (asserted above).
    unsafe { raw.as_ptr().byte_add(CONTEXT).cast() }
}

/// Keeps an ending in the I/O.
///
/// # Safety
/// The I/O is a device's of this module, in no list, and this thread's.
pub(super) unsafe fn keep(raw: NonNull<spdk_bdev_io>, ending: Ending) {
    // SAFETY: the contract is `link`'s, and nobody else writes there.
    unsafe { (*link(raw)).ending = ending };
}

/// What was kept.
///
/// # Safety
/// As [`keep`], which was called.
pub(super) unsafe fn kept(raw: NonNull<spdk_bdev_io>) -> Ending {
    // SAFETY: by contract.
    unsafe { (*link(raw)).ending }
}

/// A list of I/O, first in, first out.
pub(super) struct Later {
    /// Null if there is none; then `last` says nothing.
    first: Cell<*mut spdk_bdev_io>,
    last: Cell<*mut spdk_bdev_io>,
}

impl Default for Later {
    fn default() -> Self {
        Self {
            first: Cell::new(ptr::null_mut()),
            last: Cell::new(ptr::null_mut()),
        }
    }
}

impl Later {
    /// # Safety
    /// The I/O is a device's of this module. Whoever puts it here has it, and lets go of it; it is in
    /// no list.
    #[inline]
    pub(super) unsafe fn push(&self, raw: NonNull<spdk_bdev_io>, ending: Ending) {
        let new = raw.as_ptr();
        // SAFETY: nobody else uses the context of an I/O of which one has let go (contract), so the
        // last one of the list has one, too.
        unsafe {
            let next = ptr::null_mut();
            link(raw).write(Link { ending, next });
            if self.first.get().is_null() {
                self.first.set(new);
            } else {
                (*link(NonNull::new_unchecked(self.last.get()))).next = new;
            }
            self.last.set(new);
        }
    }

    /// All of them.
    #[inline]
    pub(super) fn take(&self) -> Batch {
        Batch(self.first.replace(ptr::null_mut()))
    }
}

/// I/O that was in a list.
#[must_use = "nobody else knows of this I/O"]
pub(super) struct Batch(*mut spdk_bdev_io);

impl Batch {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_null()
    }

    /// The next one, which is the caller's from now on.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<(NonNull<spdk_bdev_io>, Ending)> {
        let raw = NonNull::new(self.0)?;
        // SAFETY: it has been in a list, whose contract keeps it and its context as they were.
        let link = unsafe { link(raw).read() };
        self.0 = link.next;
        Some((raw, link.ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As SPDK allocates it: the context goes on behind the struct.
    #[repr(C)]
    struct Allocated(spdk_bdev_io, [u64; 2]);

    #[test]
    fn first_in_first_out() {
        // SAFETY: plain C structs, for which zero is valid.
        let mut three: [Box<Allocated>; 3] = std::array::from_fn(|_| Box::new(unsafe { std::mem::zeroed() }));
        let three = three
            .each_mut()
            .map(|io| NonNull::from(&mut **io).cast::<spdk_bdev_io>());
        let list = Later::default();
        assert!(list.take().is_empty());
        // SAFETY: they are ours alone, and in no list.
        unsafe {
            list.push(three[0], Ending::FAILED);
            list.push(three[1], Ending::NONE);
        }
        let mut batch = list.take();
        assert!(list.take().is_empty());
        // SAFETY: as before.
        unsafe { list.push(three[2], Ending::NO_MEMORY) };
        let mut next = || batch.pop().map(|(raw, ending)| (raw, ending.status()));
        assert_eq!(next(), Some((three[0], Ending::FAILED.status())));
        assert_eq!(next(), Some((three[1], Ending::NONE.status())));
        assert_eq!(next(), None);
        assert_eq!(list.take().pop().map(|(raw, _)| raw), Some(three[2]));
    }
}
