//! Models of what crosses threads: `ci/loom` tries every order in which the threads can run. The
//! thread of the model is the executor's own.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;
use crate::sync::model::block_on;

/// Runs as the reactor does, until `done`: by the length alone it sees that there is work.
fn run_until(executor: &Executor, done: impl Fn() -> bool) {
    while !done() {
        if executor.is_idle() {
            thread::yield_now();
        } else {
            executor.run();
        }
    }
}

/// A number that loom watches: unordered accesses are found.
#[derive(Clone)]
struct Watched(Arc<UnsafeCell<u32>>);

// SAFETY: whether accesses are ordered is what the models find out.
unsafe impl Send for Watched {}

impl Watched {
    fn new() -> Self {
        Self(Arc::new(UnsafeCell::new(0)))
    }

    fn add(&self, value: u32) {
        // SAFETY: loom stops the model if somebody else has access.
        self.0.with_mut(|number| unsafe { *number += value });
    }

    fn get(&self) -> u32 {
        // SAFETY: as above.
        self.0.with(|number| unsafe { *number })
    }
}

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn loom_messages_of_two_threads_all_run() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let place = Watched::new();
        let threads = [1, 10].map(|value| {
            let (inbox, place) = (Arc::clone(&executor.inbox), place.clone());
            thread::spawn(move || {
                let call: Call = Box::new(move || place.add(value));
                assert!(inbox.call(call).is_ok());
            })
        });
        run_until(&executor, || place.get() == 11);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Runs as a reactor does that sleeps when it has nothing to do: until it is woken, for loom has no
/// clock. A wake-up that is lost is a deadlock, which loom reports.
fn run_or_sleep(executors: &[&Executor], bell: &Bell, done: impl Fn() -> bool) {
    while !done() {
        if executors.iter().map(|executor| executor.run()).sum::<usize>() == 0 {
            let idle = || executors.iter().all(|executor| executor.is_idle());
            bell.sleep(|| idle().then_some(Duration::MAX));
        }
    }
}

#[test]
fn loom_a_message_wakes_a_thread_that_sleeps() {
    loom::model(|| {
        let bell = Arc::new(Bell::new());
        let executor = Executor::new(Inbox::new(Some(Arc::clone(&bell))));
        let place = Watched::new();
        let (inbox, sent) = (Arc::clone(&executor.inbox), place.clone());
        let sender = thread::spawn(move || {
            let call: Call = Box::new(move || sent.add(1));
            assert!(inbox.call(call).is_ok());
        });
        run_or_sleep(&[&executor], &bell, || place.get() == 1);
        sender.join().unwrap();
    });
}

#[test]
fn loom_a_sleeper_with_two_inboxes_is_woken_by_both() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2); // all orders would take hours
    model.check(|| {
        let bell = Arc::new(Bell::new());
        let executors = [(); 2].map(|()| Executor::new(Inbox::new(Some(Arc::clone(&bell)))));
        let place = Watched::new();
        let [one, two] = &executors;
        let senders = [(one, 1), (two, 10)].map(|(executor, value)| {
            let (inbox, place) = (Arc::clone(&executor.inbox), place.clone());
            thread::spawn(move || {
                let call: Call = Box::new(move || place.add(value));
                assert!(inbox.call(call).is_ok());
            })
        });
        run_or_sleep(&[one, two], &bell, || place.get() == 11);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn loom_messages_of_one_thread_run_in_order() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let inbox = Arc::clone(&executor.inbox);
        let place = Watched::new();
        let sent = place.clone();
        let sender = thread::spawn(move || {
            for value in [1, 2] {
                let place = sent.clone();
                let call: Call = Box::new(move || place.add(place.get() + value));
                assert!(inbox.call(call).is_ok());
            }
        });
        run_until(&executor, || place.get() >= 3);
        assert_eq!(place.get(), 4, "(0 + 1) * 2 + 2");
        sender.join().unwrap();
    });
}

#[test]
fn loom_a_wake_from_another_thread_is_not_lost() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let shared = Arc::new(Mutex::new((false, None::<Waker>)));
        let other = Arc::clone(&shared);
        let event = thread::spawn(move || {
            let mut state = other.lock().unwrap();
            state.0 = true;
            let waker = state.1.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let handle = executor.spawn(std::future::poll_fn(move |cx| {
            let mut state = shared.lock().unwrap();
            if state.0 {
                return Poll::Ready(7);
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        }));
        run_until(&executor, || handle.is_finished());
        assert_eq!(block_on(handle).unwrap(), 7);
        event.join().unwrap();
    });
}

#[test]
fn loom_a_message_to_a_closing_thread_is_refused_or_dropped() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let inbox = Arc::clone(&executor.inbox);
        let dropped = Arc::new(AtomicUsize::new(0));
        let message = Counted(Arc::clone(&dropped));
        let sender = thread::spawn(move || inbox.call(Box::new(move || drop(message))).is_ok());
        executor.close();
        let by_close = dropped.load(Ordering::Relaxed);
        let taken = sender.join().unwrap();
        let in_all = dropped.load(Ordering::Relaxed);
        assert_eq!(in_all, 1);
        // What was taken was dropped before the executor had closed, and on its thread.
        assert!(!taken || by_close == 1);
    });
}

#[test]
fn loom_a_task_that_is_woken_while_its_thread_closes_is_dropped_there() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let waker = Rc::new(RefCell::new(None::<Waker>));
        let place = Rc::clone(&waker);
        let alive = Rc::new(());
        let kept = Rc::clone(&alive);
        let handle = executor.spawn(async move {
            let _kept = kept;
            std::future::poll_fn(|cx| {
                *place.borrow_mut() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
            .await;
        });
        executor.run();
        let waker = waker.take().expect("polled once");
        let event = thread::spawn(move || waker.wake());
        thread::yield_now(); // so that the other can be first: async-task is nothing that loom knows
        executor.close();
        assert_eq!(Rc::strong_count(&alive), 1, "dropped by its own thread");
        assert!(block_on(handle).unwrap_err().is_canceled());
        event.join().unwrap();
    });
}

#[test]
fn loom_a_result_reaches_another_thread() {
    loom::model(|| {
        let (sender, handle) = channel();
        let place = Watched::new();
        let seen = place.clone();
        let joiner = thread::spawn(move || {
            assert_eq!(block_on(handle).unwrap(), 5);
            seen.get()
        });
        place.add(1); // what the task did before it ended
        sender.send(Ok(5));
        drop(sender);
        assert_eq!(joiner.join().unwrap(), 1);
    });
}

#[test]
fn loom_a_sender_that_goes_says_so() {
    loom::model(|| {
        let (sender, handle) = channel::<()>();
        let joiner = thread::spawn(move || block_on(handle).unwrap_err().is_canceled());
        drop(sender);
        assert!(joiner.join().unwrap());
    });
}

#[test]
fn loom_the_waker_that_counts_is_the_last() {
    loom::model(|| {
        let (sender, handle) = channel();
        let task = thread::spawn(move || sender.send(Ok(1)));
        let mut handle = pin!(handle);
        // Somebody polled before, and then gave the handle away.
        let first = handle.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let value = match first {
            Poll::Ready(value) => value,
            Poll::Pending => block_on(handle),
        };
        assert_eq!(value.unwrap(), 1);
        task.join().unwrap();
    });
}

#[test]
fn loom_an_abort_reaches_a_task_that_waits() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let handle = executor.spawn(std::future::pending::<()>());
        let other = thread::spawn(move || {
            handle.abort();
            block_on(handle).unwrap_err().is_canceled()
        });
        run_until(&executor, || executor.active.borrow().is_empty());
        assert!(other.join().unwrap());
    });
}

#[test]
fn loom_an_abort_of_a_task_that_ends_is_harmless() {
    loom::model(|| {
        let executor = Executor::new(Inbox::new(None));
        let handle = executor.spawn(async { 3 });
        let other = thread::spawn(move || {
            handle.abort();
            match block_on(handle) {
                Ok(value) => assert_eq!(value, 3),
                Err(error) => assert!(error.is_canceled()),
            }
        });
        run_until(&executor, || executor.active.borrow().is_empty());
        other.join().unwrap();
    });
}
