//! SPDK beside Tokio: on threads of its own, reached by a handle.

mod common;

use std::time::Duration;

use common::{builder, isolated};
use spdk_rs::bdev::{self, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{self, Poller, Thread, sleep};
use spdk_rs::runtime::Handle;
use spdk_rs::{ErrorKind, env};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

/// Runs `body` on Tokio's threads, with SPDK on two cores beside them.
fn beside<F: Future>(name: &str, body: impl FnOnce(Handle) -> F) {
    isolated(name, || {
        let spdk = builder().core_mask("0x3").build().expect("options").spawn();
        let spdk = spdk.expect("SPDK starts");
        let tokio = tokio::runtime::Runtime::new().expect("Tokio starts");
        tokio.block_on(async {
            let ran = timeout(LONG, body(spdk)).await;
            ran.expect("it ends in time");
        });
    });
}

/// Names of this process's OS threads.
fn os_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// The thread that SPDK was started on has ended. (DPDK keeps those of the other cores, asleep.)
async fn it_is_gone() {
    while os_threads().iter().any(|name| name == "reactor_0") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn many_tasks_of_both_runtimes_wait_for_each_other() {
    beside(
        "many_tasks_of_both_runtimes_wait_for_each_other",
        |spdk| async move {
            let made = spdk.spawn(|| async { bdev::malloc::create("ram0", 4096, 512) });
            let disk = made.unwrap().await.unwrap().unwrap();
            let callers = (0..16_u8).map(|i| {
                let (spdk, disk) = (spdk.clone(), disk.clone());
                tokio::spawn(async move {
                    for round in 0..20 {
                        let byte = i.wrapping_mul(16).wrapping_add(round);
                        let core = u32::from(byte % 2);
                        let (go, gone) = oneshot::channel();
                        let disk = disk.clone();
                        let task = spdk.spawn_on(core, move || async move {
                            // It sleeps until Tokio's thread wakes it.
                            let byte: u8 = gone.await.expect("sent");
                            assert_eq!(
                                Thread::on_core(core).unwrap().id(),
                                Thread::current().unwrap().id()
                            );
                            let disk = disk.open(Mode::ReadWrite).unwrap();
                            let channel = disk.channel().unwrap();
                            let offset = u64::from(i) * 4096;
                            let buf = DmaBuf::copy_of(&[byte; 4096]).unwrap();
                            let (result, buf) = channel.write(buf, offset).await.into_parts();
                            result.unwrap();
                            let (result, buf) = channel.read(buf, offset).await.into_parts();
                            result.unwrap();
                            disk.close().await.unwrap();
                            buf.as_slice()[4095]
                        });
                        let task = task.unwrap();
                        tokio::task::yield_now().await;
                        go.send(byte).unwrap();
                        assert_eq!(task.await.unwrap(), byte);
                    }
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await.expect("no panic");
            }
            assert_eq!(reactor::cores().unwrap(), [0, 1]);
            spdk.stop().await.expect("it stops in order");
        },
    );
}

#[test]
fn channels_cross_cores_and_runtimes() {
    use futures_util::StreamExt;
    use spdk_rs::reactor::sync::{mpsc, oneshot};

    beside("channels_cross_cores_and_runtimes", |spdk| async move {
        let (questions, mut asked) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(4);
        let server = spdk.spawn_on(1, || async move {
            let mut count = 0;
            while let Some((number, answer)) = asked.next().await {
                answer.send(number * number).expect("somebody waits");
                count += 1;
            }
            count
        });
        let ask = |mut questions: mpsc::Sender<_>| async move {
            for number in 0..2000_u64 {
                let (answer, answered) = oneshot::channel();
                std::future::poll_fn(|cx| questions.poll_ready(cx))
                    .await
                    .expect("it listens");
                questions.start_send((number, answer)).expect("there was room");
                assert_eq!(answered.await, Ok(number * number));
            }
        };
        let (here, there) = (questions.clone(), questions);
        let other_core = spdk.spawn_on(0, move || ask(there)).unwrap();
        ask(here).await;
        other_core.await.unwrap();
        assert_eq!(server.unwrap().await.unwrap(), 4000);
        spdk.stop().await.unwrap();
    });
}

#[test]
fn a_join_handle_aborts_and_its_drop_does_not() {
    beside("a_join_handle_aborts_and_its_drop_does_not", |spdk| async move {
        /// Tells when it is dropped, and where.
        struct Canary(mpsc::UnboundedSender<Option<u64>>);
        impl Drop for Canary {
            fn drop(&mut self) {
                let _ = self.0.send(Thread::current().map(|thread| thread.id()));
            }
        }
        let home = Thread::on_core(1).unwrap();
        let (sender, mut dropped) = mpsc::unbounded_channel();
        let canary = Canary(sender.clone());
        let task = spdk.spawn_on(1, move || async move {
            let _canary = canary;
            std::future::pending::<()>().await;
        });
        let task = task.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_canceled());
        assert_eq!(
            dropped.recv().await.unwrap(),
            Some(home.id()),
            "dropped where it belongs"
        );

        let canary = Canary(sender);
        let task = spdk.spawn_on(1, move || async move {
            let _canary = canary;
            sleep(Duration::from_millis(20)).await;
        });
        drop(task.unwrap());
        assert_eq!(
            dropped.recv().await.unwrap(),
            Some(home.id()),
            "it ran to its end"
        );

        let panics = spdk.spawn_on(1, || async { panic!("on purpose") }).unwrap();
        assert!(panics.await.unwrap_err().is_panic());
        spdk.stop().await.expect("a task's panic is its own");
    });
}

#[test]
fn after_the_stop_everything_is_refused() {
    beside("after_the_stop_everything_is_refused", |spdk| async move {
        let left = spdk
            .spawn_on(1, || async { std::future::pending::<()>().await })
            .unwrap();
        let other = spdk.clone();
        let waits = tokio::spawn(async move { other.ended().await });
        let error = spdk.spawn_on(7, || async {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let (one, two) = tokio::join!(spdk.stop(), spdk.stop());
        one.and(two).expect("both are told");
        waits.await.unwrap().expect("and who did not ask");
        assert!(left.await.unwrap_err().is_canceled());
        assert!(!env::is_running());
        for error in [
            spdk.spawn_on(0, || async {}).unwrap_err(),
            spdk.spawn(|| async {}).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::NotRunning, "{error}");
        }
        let again = builder().build().unwrap().spawn().unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyStarted, "{again}");
        it_is_gone().await;
    });
}

#[test]
fn the_last_handle_stops_it() {
    beside("the_last_handle_stops_it", |spdk| async move {
        let other = spdk.clone();
        drop(spdk);
        let names = os_threads();
        assert!(names.iter().any(|name| name == "reactor_0"), "{names:?}");
        other
            .spawn(|| async {})
            .unwrap()
            .await
            .expect("one is enough to keep it");
        drop(other);
        it_is_gone().await;
    });
}

#[test]
fn signals_stay_the_programs_own() {
    isolated("signals_stay_the_programs_own", || {
        let tokio = tokio::runtime::Runtime::new().unwrap();
        tokio.block_on(async {
            // Set up before SPDK, which sets up its own when it starts.
            let mut terms = signal(SignalKind::terminate()).unwrap();
            let spdk = tokio::task::spawn_blocking(|| builder().build().unwrap().spawn());
            let spdk = spdk.await.unwrap().unwrap();
            // SAFETY: raise has no preconditions.
            unsafe { libc::raise(libc::SIGTERM) };
            timeout(LONG, terms.recv()).await.expect("the program is told");
            spdk.spawn(|| async {}).unwrap().await.expect("SPDK runs on");
            spdk.stop().await.unwrap();
        });
    });
}

#[test]
fn a_start_that_fails_is_told() {
    isolated("a_start_that_fails_is_told", || {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), "{").unwrap();
        let error = builder()
            .json_config(config.path())
            .build()
            .unwrap()
            .spawn()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StartFailed, "{error}");
    });
}

#[test]
fn a_panic_that_ends_it_is_told() {
    beside("a_panic_that_ends_it_is_told", |spdk| async move {
        let task = spdk.spawn_on(1, || async {
            let poller = Poller::register("bad", Duration::ZERO, || panic!("on purpose")).unwrap();
            std::future::pending::<()>().await;
            drop(poller);
        });
        drop(task.unwrap());
        let error = spdk.ended().await.unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{error}");
    });
}
