//! Tests named after the states an operation can be in. The "C side" here is a list of context
//! pointers that the test calls back when it likes.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;

/// Says when it is dropped.
struct Canary(Rc<Cell<u32>>);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

fn canary() -> (Canary, Rc<Cell<u32>>) {
    let dropped = Rc::new(Cell::new(0));
    (Canary(Rc::clone(&dropped)), dropped)
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static LATE: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
}

fn late(value: i32, keep: Canary) {
    drop(keep);
    LATE.with_borrow_mut(|late| late.push(value));
}

fn late_values() -> Vec<i32> {
    LATE.with_borrow_mut(std::mem::take)
}

/// Starts an operation that C keeps; returns it and C's pointer.
fn pending(keep: Canary) -> (Op<i32, Canary>, *mut c_void) {
    let mut at_c = std::ptr::null_mut();
    let op = start(keep, late, |_: &mut Canary, cb_arg| {
        at_c = cb_arg;
        Submitted::Pending
    });
    (op, at_c)
}

fn call_back(at_c: *mut c_void, value: i32) {
    // SAFETY: the pointer comes from `pending` and each test calls back once.
    unsafe { complete::<i32, Canary>(at_c, value) }
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    let mut cx = Context::from_waker(Waker::noop());
    pin!(future).poll(&mut cx)
}

#[test]
fn submit_failed_yields_the_value_and_frees_at_once() {
    let (keep, dropped) = canary();
    let op = start(keep, late, |_: &mut Canary, _| Submitted::Failed(-12));
    let Poll::Ready((value, keep)) = poll_once(op) else {
        panic!("a refused operation is ready")
    };
    assert_eq!(value, -12);
    assert_eq!(dropped.get(), 0);
    drop(keep);
    assert_eq!(dropped.get(), 1);
    assert!(late_values().is_empty());
}

#[test]
fn submit_failed_and_dropped_unpolled() {
    let (keep, dropped) = canary();
    drop(start(keep, late, |_: &mut Canary, _| Submitted::Failed(-12)));
    assert_eq!(dropped.get(), 1);
    assert_eq!(late_values(), [-12]);
}

#[test]
fn completed_before_submit_returned() {
    let (keep, dropped) = canary();
    let op = start(keep, late, |_: &mut Canary, cb_arg| {
        call_back(cb_arg, 5);
        Submitted::Pending
    });
    let Poll::Ready((value, keep)) = poll_once(op) else {
        panic!("completed")
    };
    assert_eq!((value, dropped.get()), (5, 0));
    drop(keep);
    assert_eq!(dropped.get(), 1);
}

#[test]
fn completed_in_submit_which_then_reports_failure_too() {
    let (keep, dropped) = canary();
    let op = start(keep, late, |_: &mut Canary, cb_arg| {
        call_back(cb_arg, -16);
        Submitted::Failed(-1)
    });
    let Poll::Ready((value, keep)) = poll_once(op) else {
        panic!("completed")
    };
    assert_eq!(value, -16, "the callback's word stands");
    drop(keep);
    assert_eq!(dropped.get(), 1);
}

#[test]
fn completed_before_polled() {
    let (keep, _dropped) = canary();
    let (op, at_c) = pending(keep);
    call_back(at_c, 3);
    assert!(matches!(poll_once(op), Poll::Ready((3, _))));
}

#[test]
fn polled_then_completed_wakes_the_last_waker_once() {
    let (keep, _dropped) = canary();
    let (mut op, at_c) = pending(keep);
    let (first, last) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    for wakes in [&first, &last] {
        let waker = Waker::from(Arc::clone(wakes));
        let polled = Pin::new(&mut op).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    call_back(at_c, 0);
    assert_eq!(first.0.load(Ordering::SeqCst), 0);
    assert_eq!(last.0.load(Ordering::SeqCst), 1);
    assert!(matches!(poll_once(op), Poll::Ready((0, _))));
}

#[test]
fn dropped_while_pending_keeps_everything_until_the_callback() {
    let (keep, dropped) = canary();
    let (op, at_c) = pending(keep);
    drop(op);
    assert_eq!(dropped.get(), 0, "C still uses it");
    // SAFETY: C's pointer, not called back yet.
    assert!(unsafe { is_orphaned::<i32, Canary>(at_c) });
    call_back(at_c, 9);
    assert_eq!(dropped.get(), 1);
    assert_eq!(late_values(), [9]);
}

#[test]
fn dropped_after_polled_forgets_the_waker() {
    let (keep, dropped) = canary();
    let (mut op, at_c) = pending(keep);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let polled = Pin::new(&mut op).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    drop(op);
    drop(waker);
    assert_eq!(Arc::strong_count(&wakes), 1, "the operation let the waker go");
    call_back(at_c, 1);
    assert_eq!((dropped.get(), wakes.0.load(Ordering::SeqCst)), (1, 0));
    assert_eq!(late_values(), [1]);
}

#[test]
fn dropped_after_completion_but_not_taken() {
    let (keep, dropped) = canary();
    let (op, at_c) = pending(keep);
    call_back(at_c, 4);
    assert_eq!(dropped.get(), 0);
    drop(op);
    assert_eq!(dropped.get(), 1);
    assert_eq!(late_values(), [4], "a late success reaches the clean-up");
}

#[test]
fn forgotten_future_neither_crashes_nor_frees_early() {
    let (keep, dropped) = canary();
    let (op, at_c) = pending(keep);
    std::mem::forget(op);
    call_back(at_c, 4);
    assert_eq!(
        dropped.get(),
        0,
        "leaked, as forget asks for, but never freed twice"
    );
    assert!(late_values().is_empty());
}

#[test]
fn keep_stays_in_place_and_is_reachable_from_the_callback() {
    let mut at_submit = std::ptr::null();
    let mut at_c = std::ptr::null_mut();
    let op = start([7_u8; 64], discard::<i32, _>, |keep: &mut [u8; 64], cb_arg| {
        at_submit = keep.as_ptr();
        at_c = cb_arg;
        Submitted::Pending
    });
    let moved = Box::new(op);
    // SAFETY: C's pointer, before it is called back.
    let keep = unsafe { super::keep::<i32, [u8; 64]>(at_c) };
    assert_eq!(keep.as_ptr(), at_submit);
    keep[0] = 1;
    // SAFETY: called back once.
    unsafe { complete::<i32, [u8; 64]>(at_c, 0) };
    let Poll::Ready((_, keep)) = poll_once(moved) else {
        panic!("completed")
    };
    assert_eq!((keep[0], keep[1]), (1, 7));
}

#[test]
fn completed_on_another_thread() {
    let mut at_c = 0_usize;
    let op = start(
        String::from("kept"),
        discard::<i32, _>,
        |_: &mut String, cb_arg| {
            at_c = cb_arg as usize;
            Submitted::Pending
        },
    );
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: C's pointer, called back once; i32 and String are Send.
            unsafe { complete::<i32, String>(at_c as *mut c_void, 8) }
        });
    });
    assert!(matches!(poll_once(op), Poll::Ready((8, kept)) if kept == "kept"));
}

#[test]
fn unary_starts_nothing_before_the_first_poll() {
    let submitted = Cell::new(false);
    let call = unary((), |(), _, _| {
        submitted.set(true);
        Submitted::Failed(-1)
    });
    drop(call);
    assert!(!submitted.get());
}

#[test]
fn with_handle_gives_a_late_handle_to_the_clean_up() {
    thread_local!(static CLOSED: Cell<usize> = const { Cell::new(0) });
    let mut at_c = None;
    {
        let mut open = pin!(with_handle::<u8, _, _>(
            (),
            |(handle, rc), ()| {
                assert_eq!(rc, 0);
                CLOSED.set(handle as usize);
            },
            |(), cb_fn, cb_arg| {
                at_c = Some((cb_fn, cb_arg));
                Submitted::Pending
            },
        ));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(open.as_mut().poll(&mut cx).is_pending());
    }
    let (cb_fn, cb_arg) = at_c.expect("submitted");
    // SAFETY: the callback and pointer of the operation above, called once.
    unsafe { cb_fn(cb_arg, 0x40 as *mut u8, 0) };
    assert_eq!(CLOSED.get(), 0x40);
}
