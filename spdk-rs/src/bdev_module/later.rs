//! What a channel's poller is to do: I/O in a list that allocates nothing, since each I/O has room
//! for a link that a module may use for a list of its own.

use std::cell::Cell;
use std::ptr::{self, NonNull};

use spdk_sys::spdk_bdev_io;

use super::io::Ending;

/// What is kept in an I/O, where SPDK's own modules have its place in a `TAILQ` of theirs. (It lies
/// beside what SPDK itself looks at, which a module's context, behind the struct, does not.)
#[repr(C)]
struct Link {
    /// How it is to end; [`Ending::NONE`] if it is to be given to the device instead.
    ending: Ending,
    /// The one behind it in the list.
    next: *mut spdk_bdev_io,
}

const PLACE: usize = std::mem::offset_of!(spdk_bdev_io, module_link);
const _: () = assert!(PLACE + size_of::<Link>() <= std::mem::offset_of!(spdk_bdev_io, internal));
const _: () = assert!(PLACE % align_of::<Link>() == 0 && align_of::<spdk_bdev_io>() >= align_of::<Link>());

/// # Safety
/// The I/O is a device's of this module.
#[inline]
unsafe fn link(raw: NonNull<spdk_bdev_io>) -> *mut Link {
    // SAFETY: within the I/O, aligned and with room up to the next member (asserted above).
    unsafe { raw.as_ptr().byte_add(PLACE).cast() }
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
        // SAFETY: nobody else uses the link of an I/O of which one has let go (contract), nor that of
        // the list's last one.
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
        // SAFETY: it has been in a list, whose contract keeps it and its link as they were.
        let link = unsafe { link(raw).read() };
        self.0 = link.next;
        Some((raw, link.ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out() {
        // SAFETY: plain C structs, for which zero is valid.
        let mut three: [Box<spdk_bdev_io>; 3] =
            std::array::from_fn(|_| Box::new(unsafe { std::mem::zeroed() }));
        let three = three.each_mut().map(|io| NonNull::from(&mut **io));
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
