//! The run queue on plain threads.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Pending until the flag is set; leaves its waker in the slot.
fn until(flag: &Rc<Cell<bool>>, slot: &Rc<RefCell<Option<Waker>>>) -> impl Future<Output = ()> + use<> {
    let (flag, slot) = (Rc::clone(flag), Rc::clone(slot));
    std::future::poll_fn(move |cx| {
        if flag.get() {
            return Poll::Ready(());
        }
        *slot.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
}

fn now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(future).poll(&mut cx) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn run_all(executor: &Executor) {
    while executor.run() > 0 {}
}

#[test]
fn runs_futures_that_are_not_send() {
    let executor = Executor::new(Inbox::new(None));
    let value = Rc::new(5);
    let mut handle = executor.spawn(async move { *value + 1 });
    assert!(now(&mut handle).is_none());
    run_all(&executor);
    assert_eq!(now(&mut handle).expect("ended").expect("a result"), 6);
}

#[test]
fn a_task_that_wakes_itself_leaves_the_loop_after_each_turn() {
    let executor = Executor::new(Inbox::new(None));
    let turns = Rc::new(Cell::new(0));
    let counted = Rc::clone(&turns);
    let _handle = executor.spawn(std::future::poll_fn(move |cx| {
        counted.set(counted.get() + 1);
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    }));
    assert_eq!(executor.run(), 1);
    assert_eq!(executor.run(), 1);
    assert_eq!(turns.get(), 2);
}

#[test]
fn a_panic_is_carried_by_the_handle() {
    let executor = Executor::new(Inbox::new(None));
    let mut handle = executor.spawn(async { panic!("task went wrong") });
    run_all(&executor);
    let error = now(&mut handle).expect("ended").unwrap_err();
    assert!(error.is_panic());
    assert_eq!(error.to_string(), "the task panicked: task went wrong");
    let payload = error.try_into_panic().expect("a panic");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"task went wrong"));
}

#[test]
fn abort_drops_the_future_on_its_thread() {
    let executor = Executor::new(Inbox::new(None));
    let (flag, slot) = (Rc::default(), Rc::default());
    let alive = Rc::new(());
    let kept = Rc::clone(&alive);
    let wait = until(&flag, &slot);
    let mut handle = executor.spawn(async move {
        wait.await;
        drop(kept);
    });
    run_all(&executor);
    std::thread::scope(|scope| {
        scope.spawn(|| handle.abort());
    });
    assert_eq!(Rc::strong_count(&alive), 2, "not dropped by the other thread");
    run_all(&executor);
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(now(&mut handle).expect("ended").unwrap_err().is_canceled());
}

#[test]
fn abort_before_the_first_poll() {
    let executor = Executor::new(Inbox::new(None));
    let ran = Rc::new(Cell::new(false));
    let set = Rc::clone(&ran);
    let mut handle = executor.spawn(async move { set.set(true) });
    handle.abort();
    run_all(&executor);
    assert!(!ran.get());
    assert!(now(&mut handle).expect("ended").is_err());
}

#[test]
fn close_drops_what_is_left_and_refuses_more() {
    let executor = Executor::new(Inbox::new(None));
    let (flag, slot) = (Rc::default(), Rc::default());
    let alive = Rc::new(());
    let kept = Rc::clone(&alive);
    let wait = until(&flag, &slot);
    let mut waiting = executor.spawn(async move {
        wait.await;
        drop(kept);
    });
    run_all(&executor);
    let mut unpolled = executor.spawn(async {});
    executor.close();
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(now(&mut waiting).expect("ended").is_err());
    assert!(now(&mut unpolled).expect("ended").is_err());
    let mut late = executor.spawn(async {});
    assert!(now(&mut late).expect("ended").unwrap_err().is_canceled());
    assert!(executor.inbox.call(Box::new(|| ())).is_err());
    // A waker that outlived its task and executor is harmless.
    let waker = slot.borrow_mut().take().expect("left there");
    drop(executor);
    std::thread::spawn(move || waker.wake()).join().expect("no panic");
}

#[test]
fn a_destructor_that_panics_does_not_save_the_other_tasks() {
    let _turn = guard::test_turn();
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let executor = Executor::new(Inbox::new(None));
    let alive = Rc::new(());
    let bomb = Bomb;
    let _first = executor.spawn(async move {
        let _bomb = bomb;
        std::future::pending::<()>().await;
    });
    let kept = Rc::clone(&alive);
    let _second = executor.spawn(async move {
        let _kept = kept;
        std::future::pending::<()>().await;
    });
    executor.close();
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(guard::take().is_some());
}

#[test]
fn messages_run_in_order_and_a_panic_in_one_is_kept() {
    let _turn = guard::test_turn();
    let executor = Executor::new(Inbox::new(None));
    let (tx, rx) = mpsc::channel();
    for n in 0..3 {
        let tx = tx.clone();
        let call: Call = Box::new(move || {
            tx.send(n).expect("received below");
            assert_ne!(n, 1, "message one");
        });
        assert!(executor.inbox.call(call).is_ok());
    }
    run_all(&executor);
    assert_eq!(rx.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert!(guard::take().is_some());
}

#[test]
fn no_wake_from_other_threads_is_lost() {
    const ROUNDS: usize = 20_000;
    let executor = Executor::new(Inbox::new(None));
    let (tx, rx) = mpsc::channel::<(Arc<AtomicBool>, Waker)>();
    let other = std::thread::spawn(move || {
        for (flag, waker) in rx {
            flag.store(true, Ordering::SeqCst);
            waker.wake();
        }
    });
    let mut handle = executor.spawn(async move {
        for _ in 0..ROUNDS {
            let flag = Arc::new(AtomicBool::new(false));
            let mut sent = false;
            std::future::poll_fn(|cx| {
                if flag.load(Ordering::SeqCst) {
                    return Poll::Ready(());
                }
                if !sent {
                    sent = true;
                    let message = (Arc::clone(&flag), cx.waker().clone());
                    tx.send(message).expect("the thread lives");
                }
                Poll::Pending
            })
            .await;
        }
    });
    let start = std::time::Instant::now();
    while now(&mut handle).is_none() {
        executor.run();
        assert!(start.elapsed() < Duration::from_secs(60), "a wake was lost");
    }
    other.join().expect("no panic");
}

#[test]
fn closing_while_other_threads_wake() {
    for _ in 0..300 {
        let executor = Executor::new(Inbox::new(None));
        let alive = Rc::new(());
        let (tx, rx) = mpsc::channel::<Waker>();
        let other = std::thread::spawn(move || {
            while let Ok(waker) = rx.recv() {
                for _ in 0..20 {
                    waker.wake_by_ref();
                }
            }
        });
        for _ in 0..4 {
            let (tx, kept) = (tx.clone(), Rc::clone(&alive));
            drop(executor.spawn(async move {
                let _kept = kept;
                std::future::poll_fn(|cx| {
                    let _ = tx.send(cx.waker().clone());
                    Poll::<()>::Pending
                })
                .await;
            }));
        }
        executor.run();
        drop(tx);
        executor.close();
        assert_eq!(Rc::strong_count(&alive), 1, "all dropped here");
        other.join().expect("no panic");
    }
}

#[test]
fn join_handle_can_be_awaited_elsewhere() {
    let executor = Executor::new(Inbox::new(None));
    let handle = executor.spawn(async { 11 });
    let other = std::thread::spawn(move || {
        let mut handle = pin!(handle);
        loop {
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(result) = handle.as_mut().poll(&mut cx) {
                return result.expect("a result");
            }
            std::thread::yield_now();
        }
    });
    run_all(&executor);
    assert_eq!(other.join().expect("no panic"), 11);
}

/// An I/O: whoever polls it waits, until `complete` is called as C would.
#[derive(Clone, Default)]
struct FakeIo {
    done: Rc<Cell<bool>>,
    waiter: Rc<RefCell<Option<Waiter>>>,
}

impl FakeIo {
    async fn wait(&self, home: usize) {
        std::future::poll_fn(|cx| {
            if self.done.take() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(match Turn::of(cx, home) {
                Some(turn) => Waiter::Task(turn.task()),
                None => Waiter::Waker(cx.waker().clone()),
            });
            Poll::Pending
        })
        .await;
    }

    fn complete(&self) {
        self.done.set(true);
        let waiter = self.waiter.take();
        waiter.expect("somebody waits").wake();
    }
}

#[test]
fn an_io_runs_its_task_at_once() {
    let executor = Executor::new(Inbox::new(None));
    let (io, turns) = (FakeIo::default(), Rc::new(Cell::new(0)));
    let mut handle = executor.spawn({
        let (io, turns, home) = (io.clone(), Rc::clone(&turns), executor.inbox.home());
        async move {
            for _ in 0..3 {
                io.wait(home).await;
                turns.set(turns.get() + 1);
            }
        }
    });
    run_all(&executor);
    for turn in 1..=3 {
        io.complete();
        assert_eq!(turns.get(), turn, "not by the queue");
    }
    assert!(now(&mut handle).expect("ended").is_ok());
    run_all(&executor); // the queue lets go of it
    assert!(executor.active.borrow().is_empty());
}

#[test]
fn no_task_runs_inside_of_other_code() {
    let executor = Executor::new(Inbox::new(None));
    let io = FakeIo::default();
    let shared = Rc::new(RefCell::new(0));
    let _waits = executor.spawn({
        let (io, shared, home) = (io.clone(), Rc::clone(&shared), executor.inbox.home());
        async move {
            io.wait(home).await;
            *shared.borrow_mut() += 1; // panics if it is borrowed
        }
    });
    run_all(&executor);
    user_code(|| {
        let guard = shared.borrow_mut();
        io.complete();
        assert_eq!(*guard, 0);
    });
    assert_eq!(*shared.borrow(), 1, "but when that has returned");

    // The same for the code of a task.
    let seen = Rc::new(Cell::new(0));
    let _waits = executor.spawn({
        let (io, shared, home) = (io.clone(), Rc::clone(&shared), executor.inbox.home());
        async move {
            io.wait(home).await;
            *shared.borrow_mut() += 1;
        }
    });
    run_all(&executor);
    let _completes = executor.spawn({
        let (io, shared, seen) = (io.clone(), Rc::clone(&shared), Rc::clone(&seen));
        async move {
            let guard = shared.borrow_mut();
            io.complete();
            seen.set(*guard);
        }
    });
    run_all(&executor);
    assert_eq!((seen.get(), *shared.borrow()), (1, 2));
}

#[test]
fn tasks_that_complete_each_other_do_not_nest() {
    let executor = Executor::new(Inbox::new(None));
    let (a, b) = (FakeIo::default(), FakeIo::default());
    let turns = Rc::new(Cell::new(0_u32));
    for (mine, others) in [(a.clone(), b.clone()), (b.clone(), a.clone())] {
        let (turns, home) = (Rc::clone(&turns), executor.inbox.home());
        let _runs = executor.spawn(async move {
            loop {
                mine.wait(home).await;
                turns.set(turns.get() + 1);
                if others.waiter.borrow().is_some() {
                    others.complete();
                }
            }
        });
    }
    run_all(&executor);
    a.complete(); // a's turn, then b's, then each by the queue
    assert_eq!(turns.get(), 2);
    executor.run();
    assert!(turns.get() < 10, "the reactor has its turn in between");
}

#[test]
fn an_io_of_another_executor_goes_by_the_waker() {
    let (executor, other) = (Executor::new(Inbox::new(None)), Executor::new(Inbox::new(None)));
    let (io, done) = (FakeIo::default(), Rc::new(Cell::new(false)));
    let _waits = executor.spawn({
        let (io, done, home) = (io.clone(), Rc::clone(&done), other.inbox.home());
        async move {
            io.wait(home).await;
            done.set(true);
        }
    });
    run_all(&executor);
    io.complete();
    assert!(!done.get());
    run_all(&executor);
    assert!(done.get());
}

#[test]
fn a_panic_after_an_io_is_the_tasks() {
    let executor = Executor::new(Inbox::new(None));
    let io = FakeIo::default();
    let mut handle = executor.spawn({
        let (io, home) = (io.clone(), executor.inbox.home());
        async move {
            io.wait(home).await;
            panic!("after");
        }
    });
    run_all(&executor);
    io.complete();
    let error = now(&mut handle).expect("ended").expect_err("panicked");
    assert!(error.is_panic());
    // Nothing is left behind that would keep others waiting.
    assert_eq!(user_code(|| 1), 1);
    let mut next = executor.spawn(async { 2 });
    run_all(&executor);
    assert_eq!(now(&mut next).expect("ended").expect("a result"), 2);
}

#[test]
fn closing_drops_a_task_that_an_io_still_knows() {
    let executor = Executor::new(Inbox::new(None));
    let io = FakeIo::default();
    let held = Rc::new(());
    let _waits = executor.spawn({
        let (io, held, home) = (io.clone(), Rc::clone(&held), executor.inbox.home());
        async move {
            io.wait(home).await;
            drop(held);
        }
    });
    run_all(&executor);
    executor.close();
    assert_eq!(Rc::strong_count(&held), 1, "dropped with the executor");
    io.complete(); // finds an ended task
}

#[test]
fn no_task_runs_inside_of_what_is_dropped() {
    struct Completes(FakeIo, Rc<RefCell<u32>>);
    impl Drop for Completes {
        fn drop(&mut self) {
            let _guard = self.1.borrow_mut();
            self.0.complete();
        }
    }
    let executor = Executor::new(Inbox::new(None));
    let shared = Rc::new(RefCell::new(0));
    // In whatever order they are dropped, one of them is still there when its I/O completes.
    let ios = [FakeIo::default(), FakeIo::default()];
    let mut handles = Vec::new();
    for (mine, others) in [(0, 1), (1, 0)] {
        let (io, home) = (ios[mine].clone(), executor.inbox.home());
        let (completes, shared) = (
            Completes(ios[others].clone(), Rc::clone(&shared)),
            Rc::clone(&shared),
        );
        handles.push(executor.spawn(async move {
            let _completes = completes;
            io.wait(home).await;
            *shared.borrow_mut() += 1; // panics if it is borrowed
        }));
    }
    run_all(&executor);
    executor.close();
    for mut handle in handles {
        assert!(now(&mut handle).expect("ended").unwrap_err().is_canceled());
    }
    assert_eq!(*shared.borrow(), 0);
}

#[test]
fn a_result_that_nobody_takes_may_panic_when_it_is_dropped() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let executor = Executor::new(Inbox::new(None));
    let io = FakeIo::default();
    drop(executor.spawn(async { Bomb }));
    drop(executor.spawn({
        let (io, home) = (io.clone(), executor.inbox.home());
        async move {
            io.wait(home).await;
            Bomb
        }
    }));
    drop(executor.spawn(async { std::panic::panic_any(Bomb) }));
    run_all(&executor);
    io.complete();
    run_all(&executor);
    assert!(executor.active.borrow().is_empty());
    // One that is there is dropped with its handle, in the hands of whoever drops that.
    let handle = executor.spawn(async { Bomb });
    run_all(&executor);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(handle))).is_err());
}
