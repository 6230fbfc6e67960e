//! The slots, by the states that an operation in one can be in; as `tests` is for the others.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::Submitted;
use super::slots::{SlotOp, Slots, Stage, complete, is_orphaned, keep, set_waiting};
use crate::executor::Waiter;

/// Says when it is dropped.
struct Canary(Rc<Cell<u32>>);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

type Op = SlotOp<(), i32, Canary>;

struct Bench {
    slots: Slots<(), i32, Canary>,
    dropped: Rc<Cell<u32>>,
    at_c: Rc<RefCell<Vec<*mut c_void>>>,
}

impl Bench {
    fn new() -> Self {
        Self {
            slots: Slots::new(0, Arc::default(), ()),
            dropped: Rc::default(),
            at_c: Rc::default(),
        }
    }

    fn prepare(&self) -> Op {
        self.slots.prepare(|| Canary(Rc::clone(&self.dropped)))
    }

    fn pending(&self) -> Op {
        let mut op = self.prepare();
        op.live().at().submit(|(), _, cb_arg| {
            self.at_c.borrow_mut().push(cb_arg);
            Submitted::Pending
        });
        op
    }

    fn call_back(&self, result: Result<(), i32>) {
        let cb_arg = self.at_c.borrow_mut().remove(0);
        // SAFETY: the pointer comes from `pending`, and is called back once.
        unsafe { complete::<(), _, Canary, _>(cb_arg, result, |()| (), Waiter::wake) };
    }
}

fn poll(op: &mut Op) -> Poll<Result<(), i32>> {
    poll_with(op, Waker::noop())
}

fn poll_with(op: &mut Op, waker: &Waker) -> Poll<Result<(), i32>> {
    let cx = Context::from_waker(waker);
    let op = op.live();
    let at = op.at();
    if !at.has_ended() {
        at.wait(&cx, at.turn(&cx));
        return Poll::Pending;
    }
    let mut done = op.done();
    let (_, result, keep) = done.parts();
    let result = result.map_err(|failure| *failure);
    // SAFETY: it is taken out once: it is not dropped with `done`.
    drop(unsafe { std::ptr::read(keep) });
    Poll::Ready(result)
}

#[test]
fn completes_and_is_used_again() {
    let bench = Bench::new();
    let mut places = Vec::new();
    for round in 0..3 {
        let mut op = bench.pending();
        places.push(bench.at_c.borrow()[0]);
        assert!(poll(&mut op).is_pending());
        assert_eq!(bench.dropped.get(), round);
        let result = if round == 1 { Err(7) } else { Ok(()) };
        bench.call_back(result);
        assert_eq!(bench.dropped.get(), round, "the future still has it");
        assert_eq!(poll(&mut op), Poll::Ready(result));
        assert_eq!(bench.dropped.get(), round + 1);
    }
    assert!(places.iter().all(|place| *place == places[0]), "one slot for all");
}

#[test]
fn dropped_before_it_was_submitted() {
    let bench = Bench::new();
    drop(bench.prepare());
    assert_eq!(bench.dropped.get(), 1);
}

#[test]
fn dropped_while_pending() {
    let bench = Bench::new();
    let op = bench.pending();
    let cb_arg = bench.at_c.borrow()[0];
    // SAFETY: the operation is pending.
    assert!(!unsafe { is_orphaned::<(), i32, Canary>(cb_arg) });
    drop(op);
    assert_eq!(bench.dropped.get(), 0, "C has it");
    // SAFETY: the operation is pending, and this is the only reference to its keep.
    unsafe {
        assert!(is_orphaned::<(), i32, Canary>(cb_arg));
        assert_eq!(keep::<(), i32, Canary>(cb_arg).1.0.get(), 0);
    }
    // Its slot is not given out again meanwhile.
    let other = bench.pending();
    assert_ne!(bench.at_c.borrow()[1], cb_arg);
    bench.call_back(Err(1));
    assert_eq!(bench.dropped.get(), 1);
    drop(other);
    bench.call_back(Err(2));
    assert_eq!(bench.dropped.get(), 2);
}

#[test]
fn completed_but_never_taken() {
    let bench = Bench::new();
    let op = bench.pending();
    bench.call_back(Err(1));
    assert_eq!(bench.dropped.get(), 0);
    drop(op);
    assert_eq!(bench.dropped.get(), 1);
}

#[test]
fn refused() {
    let bench = Bench::new();
    let mut op = bench.prepare();
    op.live().at().submit(|(), _, _| Submitted::Failed(-12));
    assert_eq!(poll(&mut op), Poll::Ready(Err(-12)));
    assert_eq!(bench.dropped.get(), 1);
}

#[test]
fn completed_before_submit_returned() {
    let bench = Bench::new();
    for report in [Submitted::Pending, Submitted::Failed(-1)] {
        let mut op = bench.prepare();
        op.live().at().submit(|(), _, cb_arg| {
            // SAFETY: called back once.
            unsafe { complete::<(), _, Canary, _>(cb_arg, Err(5), |()| (), Waiter::wake) };
            report
        });
        assert_eq!(poll(&mut op), Poll::Ready(Err(5)), "the callback's word stands");
    }
    assert_eq!(bench.dropped.get(), 2);
}

#[test]
fn slots_outlive_their_handle() {
    let Bench { slots, dropped, at_c } = Bench::new();
    let bench = Bench {
        slots,
        dropped: Rc::clone(&dropped),
        at_c: Rc::clone(&at_c),
    };
    let taken = bench.pending();
    let mut kept = bench.pending();
    drop(taken);
    drop(bench);
    for cb_arg in at_c.take() {
        // SAFETY: each is called back once.
        unsafe { complete::<(), i32, Canary, _>(cb_arg, Ok(()), |()| (), Waiter::wake) };
    }
    assert_eq!(dropped.get(), 1);
    assert_eq!(poll(&mut kept), Poll::Ready(Ok(())));
    assert_eq!(dropped.get(), 2);
}

#[test]
fn as_many_as_wanted_at_a_time() {
    let bench = Bench::new();
    let mut ops: Vec<Op> = (0..1000).map(|_| bench.pending()).collect();
    let mut places = bench.at_c.borrow().clone();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 1000);
    for value in 0..1000 {
        bench.call_back(Err(value));
    }
    for (value, op) in (0..).zip(&mut ops) {
        assert_eq!(poll(op), Poll::Ready(Err(value)));
    }
}

#[test]
fn the_waker_is_the_last_one() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let bench = Bench::new();
    let mut op = bench.pending();
    let counts = [0, 1].map(|_| Arc::new(Count(AtomicUsize::new(0))));
    for count in &counts {
        let waker = Waker::from(Arc::clone(count));
        assert!(poll_with(&mut op, &waker).is_pending());
    }
    bench.call_back(Err(0));
    assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
}

#[test]
fn left_while_waiting() {
    let bench = Bench::new();
    let mut op = bench.pending();
    assert_eq!(op.stage(), Stage::Pending);
    let cb_arg = bench.at_c.borrow()[0];
    assert_eq!(op.cb_arg(), Some(cb_arg));
    // SAFETY: the operation is pending.
    unsafe { set_waiting::<(), i32, Canary>(cb_arg, true) };
    assert_eq!(op.stage(), Stage::Waiting);
    let wakes = Arc::new(Wakes::default());
    assert!(poll_with(&mut op, &Waker::from(Arc::clone(&wakes))).is_pending());
    op.leave(-4, |old: &mut Canary| Canary(Rc::clone(&old.0)));
    assert_eq!((op.stage(), wakes.0.load(Ordering::SeqCst)), (Stage::Ended, 1));
    assert_ne!(op.cb_arg(), Some(cb_arg));
    // SAFETY: C has its place in the queue still.
    assert!(unsafe { is_orphaned::<(), i32, Canary>(cb_arg) });
    assert_eq!(poll(&mut op), Poll::Ready(Err(-4)));
    assert_eq!((bench.dropped.get(), op.stage()), (1, Stage::Ended));
    assert!(op.cb_arg().is_none() && op.context().is_none());
    bench.call_back(Err(9));
    assert_eq!(bench.dropped.get(), 2);
}

#[test]
fn dropped_while_waiting_or_begun_after_all() {
    let bench = Bench::new();
    for begun in [false, true] {
        let mut op = bench.pending();
        let cb_arg = bench.at_c.borrow()[0];
        // SAFETY: the operation is pending.
        unsafe { set_waiting::<(), i32, Canary>(cb_arg, true) };
        if begun {
            // SAFETY: as above.
            unsafe { set_waiting::<(), i32, Canary>(cb_arg, false) };
            bench.call_back(Err(6));
            assert_eq!(poll(&mut op), Poll::Ready(Err(6)));
        } else {
            drop(op);
            // SAFETY: as above.
            assert!(unsafe { is_orphaned::<(), i32, Canary>(cb_arg) });
            bench.call_back(Err(6));
        }
        assert_eq!(bench.dropped.get(), 1 + u32::from(begun));
    }
}

/// The sanitizer would tell if the pool went too early, and its leak check if it never went.
#[test]
fn one_beside_another_keeps_the_slots_too() {
    let bench = Bench::new();
    let first = bench.prepare();
    let dropped = Rc::clone(&bench.dropped);
    drop(bench);
    let second = first.beside(|| Canary(Rc::clone(&dropped))).expect("not yielded");
    assert_eq!(second.stage(), Stage::Prepared);
    drop(first);
    assert_eq!((dropped.get(), second.context().is_some()), (1, true));
    drop(second);
    assert_eq!(dropped.get(), 2);
}
