//! Models of an operation that C completes on another thread: `ci/loom` tries every order in which
//! the threads can run. loom itself sees to it that the cell is freed.

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;
use crate::sync::AtomicUsize;
use crate::sync::model::block_on;

/// What an operation keeps; C writes into it. loom watches: unordered accesses are found.
struct Keep {
    number: UnsafeCell<u32>,
    ended: Arc<Ended>,
}

/// What became of it.
#[derive(Default)]
struct Ended {
    dropped: AtomicUsize,
    late: AtomicUsize,
}

impl Ended {
    /// How often the keep was dropped, and how often the result was late.
    fn counts(&self) -> (usize, usize) {
        (
            self.dropped.load(Ordering::Relaxed),
            self.late.load(Ordering::Relaxed),
        )
    }
}

impl Keep {
    fn get(&self) -> u32 {
        // SAFETY: loom stops the model if somebody writes meanwhile.
        self.number.with(|number| unsafe { *number })
    }

    fn set(&self, value: u32) {
        // SAFETY: loom stops the model if somebody else has access.
        self.number.with_mut(|number| unsafe { *number = value });
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.set(0);
        self.ended.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pointer that C holds.
struct AtC(*mut c_void);

// SAFETY: C takes it to another thread; result and keep are Send.
unsafe impl Send for AtC {}

impl AtC {
    /// C works on the keep, and completes.
    fn call_back(self, value: u32) {
        // SAFETY: the pointer comes from `start`, with these types, and is called back once.
        unsafe {
            keep::<u32, Keep>(self.0).set(value);
            complete::<u32, Keep>(self.0, value);
        }
    }
}

/// Starts an operation that C has.
fn pending() -> (Op<u32, Keep>, AtC, Arc<Ended>) {
    let ended = Arc::<Ended>::default();
    let kept = Keep {
        number: UnsafeCell::new(0),
        ended: Arc::clone(&ended),
    };
    let mut at_c = std::ptr::null_mut();
    let op = start(kept, late, |_: &mut Keep, cb_arg: *mut c_void| {
        at_c = cb_arg;
        Submitted::Pending
    });
    (op, AtC(at_c), ended)
}

fn late(value: u32, keep: Keep) {
    assert_eq!(keep.get(), value, "late comes after C");
    keep.ended.late.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn loom_completed_elsewhere_while_it_is_awaited() {
    loom::model(|| {
        let (op, at_c, ended) = pending();
        let c = thread::spawn(move || at_c.call_back(9));
        let (value, keep) = block_on(op);
        assert_eq!((value, keep.get()), (9, 9));
        drop(keep);
        assert_eq!(ended.counts(), (1, 0));
        c.join().unwrap();
    });
}

#[test]
fn loom_completed_elsewhere_while_it_is_dropped() {
    loom::model(|| {
        let (op, at_c, ended) = pending();
        let c = thread::spawn(move || at_c.call_back(9));
        drop(op);
        c.join().unwrap();
        assert_eq!(ended.counts(), (1, 1), "by one of the two, once");
    });
}

#[test]
fn loom_completed_elsewhere_while_it_is_polled_and_dropped() {
    loom::model(|| {
        let (mut op, at_c, ended) = pending();
        let c = thread::spawn(move || at_c.call_back(9));
        let first = Pin::new(&mut op).poll(&mut Context::from_waker(Waker::noop()));
        drop(op);
        let taken = match first {
            Poll::Ready((value, keep)) => {
                assert_eq!((value, keep.get()), (9, 9));
                true
            }
            Poll::Pending => false,
        };
        c.join().unwrap();
        assert_eq!(ended.counts(), (1, usize::from(!taken)));
    });
}

#[test]
fn loom_asked_elsewhere_whether_it_is_orphaned() {
    loom::model(|| {
        let (op, at_c, ended) = pending();
        let c = thread::spawn(move || {
            // SAFETY: the operation is pending until the call below.
            let orphaned = unsafe { is_orphaned::<u32, Keep>(at_c.0) };
            at_c.call_back(1);
            orphaned
        });
        drop(op);
        let _either = c.join().unwrap();
        assert_eq!(ended.counts(), (1, 1));
    });
}
