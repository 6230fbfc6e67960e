//! What happens to an open device.
//!
//! Nothing is queued: what a listener is told is the difference between how things are and what it
//! was told last. So it may be slow, and hears of the newest size alone.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use super::descriptor::{Descriptor, Inner};

/// Something that has happened to an open device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "spdk_bdev_event_type")]
pub enum Event {
    /// It has another size, which [`Descriptor::size`] tells, too. I/O may use all of it.
    #[doc(alias = "SPDK_BDEV_EVENT_RESIZE")]
    Resized {
        /// How many blocks it has now.
        blocks: u64,
    },
    /// An Open-Channel device wants data moved. (Where from is for the C side: SPDK v20.07 keeps
    /// it in a list without a lock.)
    #[doc(alias = "SPDK_BDEV_EVENT_MEDIA_MANAGEMENT")]
    MediaManagement,
    /// It was removed. Nothing comes after this.
    #[doc(alias = "SPDK_BDEV_EVENT_REMOVE")]
    Removed,
}

/// What a descriptor's listeners share.
#[derive(Default)]
pub(super) struct Listeners {
    list: RefCell<Vec<Weak<Listener>>>,
}

struct Listener {
    /// What it was told last.
    blocks: Cell<u64>,
    media_management: Cell<bool>,
    removed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Listeners {
    fn add(&self, listener: &Rc<Listener>) {
        let mut list = self.list.borrow_mut();
        list.retain(|listener| listener.strong_count() > 0);
        list.push(Rc::downgrade(listener));
    }

    /// To be called when anything has changed. A waker may do anything, so no list is borrowed
    /// while they are woken.
    pub(super) fn wake(&self) {
        let list = self.list.borrow().clone();
        for listener in list.iter().filter_map(Weak::upgrade) {
            let waker = listener.waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(super) fn media_management(&self) {
        for listener in self.list.borrow().iter().filter_map(Weak::upgrade) {
            listener.media_management.set(true);
        }
        self.wake();
    }
}

/// What happens to an open device from now on: [`Descriptor::events`].
///
/// It does not keep the device open. What has happened before it was asked is not lost, but put
/// together: one [`Event::Resized`] with the newest size, one [`Event::MediaManagement`], and
/// [`Event::Removed`] in the end.
pub struct Events {
    descriptor: Weak<Inner>,
    listener: Rc<Listener>,
}

static_assertions::assert_not_impl_any!(Events: Send, Sync);

impl Events {
    /// The next event; `None` after the removal, and once the descriptor is closed or dropped.
    ///
    /// It may be dropped and asked for again: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for those who write futures or streams. The newest waker counts.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let Some(descriptor) = self.descriptor.upgrade() else {
            return Poll::Ready(None);
        };
        let listener = &self.listener;
        let blocks = descriptor.num_blocks();
        if listener.blocks.replace(blocks) != blocks {
            return Poll::Ready(Some(Event::Resized { blocks }));
        }
        if listener.media_management.replace(false) {
            return Poll::Ready(Some(Event::MediaManagement));
        }
        if descriptor.is_removed() && !listener.removed.replace(true) {
            return Poll::Ready(Some(Event::Removed));
        }
        if !descriptor.is_open() {
            return Poll::Ready(None);
        }
        let old = listener.waker.replace(Some(cx.waker().clone()));
        drop(old); // which may be anything: not while it is borrowed
        Poll::Pending
    }
}

impl Descriptor {
    /// Listens to what happens to the device from now on (and to a removal that has happened
    /// already). There may be several listeners, each of which is told everything.
    ///
    /// ```no_run
    /// # use spdk_rs::bdev::{Descriptor, Event};
    /// # async fn example(descriptor: &Descriptor) {
    /// let mut events = descriptor.events();
    /// while let Some(event) = events.next().await {
    ///     match event {
    ///         Event::Resized { blocks } => println!("{blocks} blocks now"),
    ///         Event::Removed => println!("gone"),
    ///         _ => {}
    ///     }
    /// }
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        let inner = self.inner();
        let listener = Rc::new(Listener {
            blocks: Cell::new(inner.num_blocks()),
            media_management: Cell::new(false),
            removed: Cell::new(false),
            waker: RefCell::new(None),
        });
        inner.listeners().add(&listener);
        Events {
            descriptor: Rc::downgrade(inner),
            listener,
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let descriptor = self.descriptor.upgrade();
        f.debug_struct("Events")
            .field("name", &descriptor.as_ref().map(|inner| inner.name()))
            .finish()
    }
}
