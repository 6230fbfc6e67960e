//! Starting and stopping, and everything that can be wrong with that.

mod common;

use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{builder, child_command, is_child, isolated, run, run_child};
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{Poller, Thread, interval, sleep, timeout};
use spdk_rs::runtime::{LogLevel, shutdown_requested};
use spdk_rs::{ErrorKind, env, spawn};

#[test]
fn starts_runs_and_stops() {
    isolated("starts_runs_and_stops", || {
        assert!(!env::is_running());
        let early = DmaBuf::new(4096).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::NotRunning);
        let start = Instant::now();
        let (value, kept) = run(async {
            assert!(env::is_running());
            let current = Thread::current().expect("an spdk_thread");
            assert!(current.is_current());
            assert_eq!(current.id(), Thread::app().expect("the app thread").id());
            (42, DmaBuf::copy_of(b"outlives").expect("memory"))
        });
        assert_eq!(value, 42);
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(!env::is_running());
        assert!(Thread::app().is_err());
        drop(kept); // its memory went with SPDK: dropping it must not crash
        let again = builder().build().expect("options").run(async {}).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyStarted, "{again}");
    });
}

#[test]
fn start_inside_a_running_runtime_is_an_error() {
    isolated("start_inside_a_running_runtime_is_an_error", || {
        run(async {
            let nested = builder().build().expect("options").run(async {}).unwrap_err();
            assert_eq!(nested.kind(), ErrorKind::AlreadyStarted, "{nested}");
        });
    });
}

#[test]
fn bad_options_are_errors_before_anything_is_started() {
    let cases = [
        (builder().core_mask("0xzz"), ErrorKind::InvalidArgument, "0xzz"),
        (
            builder().core_mask("[0,120]"),
            ErrorKind::InvalidArgument,
            "core 120",
        ),
        (
            builder().core_mask("0x1").main_core(3),
            ErrorKind::InvalidArgument,
            "main core 3",
        ),
        (builder().memory_mb(0), ErrorKind::InvalidArgument, "0 MiB"),
        (builder().memory_mb(64), ErrorKind::NoMemory, "128 MiB"),
        (builder().memory_mb(1 << 30), ErrorKind::NoMemory, "ask for less"),
        (
            builder().no_huge(false).memory_mb(1 << 30),
            ErrorKind::NoMemory,
            "huge pages",
        ),
        (
            builder().json_config("/no/such.json"),
            ErrorKind::NotFound,
            "/no/such.json",
        ),
        (builder().json_config("/"), ErrorKind::Other, "JSON"),
        (
            builder().rpc_socket("/no/dir/spdk.sock"),
            ErrorKind::InvalidArgument,
            "directory",
        ),
        (
            builder().rpc_socket("s".repeat(108)),
            ErrorKind::InvalidArgument,
            "too long",
        ),
        (
            builder().wait_for_rpc(true),
            ErrorKind::InvalidArgument,
            "RPC socket",
        ),
        (
            builder().trace_entries(1000),
            ErrorKind::InvalidArgument,
            "power of two",
        ),
        (
            builder().tpoint_mask("xyz"),
            ErrorKind::InvalidArgument,
            "hexadecimal",
        ),
        (
            builder().pci_allow("0000:01:00.0"),
            ErrorKind::InvalidArgument,
            "huge pages",
        ),
        (builder().pci_block("bogus"), ErrorKind::InvalidArgument, "bogus"),
        (builder().mem_channels(99), ErrorKind::InvalidArgument, "channels"),
        (builder().name("a b"), ErrorKind::InvalidArgument, "name"),
        (
            builder().huge_dir("/no/dir"),
            ErrorKind::InvalidArgument,
            "/no/dir",
        ),
        (builder().huge_dir("/"), ErrorKind::InvalidArgument, "hugetlbfs"),
    ];
    for fine in ["s".repeat(107), "relative".to_owned()] {
        builder()
            .rpc_socket(fine)
            .build()
            .map(drop)
            .expect("a path that SPDK takes");
    }
    for (builder, kind, text) in cases {
        let shown = format!("{builder:?}");
        let error = builder.build().map(drop).expect_err(&shown);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.to_string().contains(text),
            "'{error}' does not say '{text}'"
        );
        assert!(!error.to_string().contains('\n'));
    }
    let error = builder()
        .log_flag("bogus")
        .build()
        .expect("looked at by run")
        .run(async {});
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// A start that fails within DPDK or SPDK: an error that names the cause, and nothing printed.
#[test]
fn too_little_memory_is_an_error_with_the_cause() {
    const NAME: &str = "too_little_memory_is_an_error_with_the_cause";
    if !is_child() {
        let output = run_child(NAME, &[]);
        let err = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{out}{err}");
        for text in ["EAL", "DPDK", "*ERROR*", "Usage"] {
            let spoken = err.contains(text) || out.contains(text);
            assert!(!spoken, "'{text}' was printed:\n{out}{err}");
        }
        return;
    }
    let runtime = builder().memory_mb(160).build().expect("160 MiB are there");
    let error = runtime.run(async {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StartFailed);
    let text = error.to_string();
    assert_eq!(text, "start SPDK: could not allocate spdk_bdev_io pool");
    let again = builder().build().expect("options").run(async {}).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyStarted);
}

#[test]
fn a_bad_json_configuration_is_an_error_with_the_cause() {
    isolated("a_bad_json_configuration_is_an_error_with_the_cause", || {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_aio_create", "params": {"name": "a", "filename": "/no/such/file", "block_size": 512}}]}]}"#;
        std::fs::write(file.path(), config).expect("written");
        let runtime = builder().json_config(file.path()).build().expect("options");
        let error = runtime.run(async {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StartFailed);
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    });
}

#[test]
fn a_good_json_configuration_is_loaded_first() {
    isolated("a_good_json_configuration_is_loaded_first", || {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_create", "params": {"name": "m", "num_blocks": 2048, "block_size": 512}}]}]}"#;
        std::fs::write(file.path(), config).expect("written");
        let runtime = builder().json_config(file.path()).build().expect("options");
        let size = runtime.run(async { spdk_rs::bdev::Bdev::find("m").map(|disk| disk.size()) });
        assert_eq!(size.expect("started").expect("found"), 1 << 20);
    });
}

#[test]
fn a_json_configuration_may_be_given_as_it_is() {
    let bad = builder()
        .json_config_text("{\n\"subsystems\": [}")
        .build()
        .unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidArgument);
    assert!(bad.to_string().contains("line 2 column 16"), "{bad}");
    isolated("a_json_configuration_may_be_given_as_it_is", || {
        let config = r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_null_create", "params": {"name": "n", "num_blocks": 2048, "block_size": 512}}]}]}"#;
        let runtime = builder().json_config_text(config).build().expect("options");
        let size = runtime.run(async { spdk_rs::bdev::Bdev::find("n").map(|disk| disk.size()) });
        assert_eq!(size.expect("started").expect("found"), 1 << 20);
    });
}

#[test]
fn chatter_of_a_good_start_depends_on_the_log_level() {
    const NAME: &str = "chatter_of_a_good_start_depends_on_the_log_level";
    if is_child() {
        let notice = std::env::var_os("NOTICE").is_some();
        let level = if notice { LogLevel::Notice } else { LogLevel::Warn };
        builder()
            .log_level(level)
            .build()
            .expect("options")
            .run(async {})
            .expect("ran");
        return;
    }
    let quiet = run_child(NAME, &[]);
    let loud = run_child(NAME, &[("NOTICE", "1")]);
    assert!(quiet.status.success() && loud.status.success());
    let quiet = String::from_utf8_lossy(&quiet.stderr).into_owned();
    let loud = String::from_utf8_lossy(&loud.stderr).into_owned();
    assert_eq!(quiet, "");
    assert!(loud.contains("Total cores available"), "{loud}");
}

#[test]
fn a_panic_of_the_main_task_comes_out_of_run() {
    isolated("a_panic_of_the_main_task_comes_out_of_run", || {
        let caught = std::panic::catch_unwind(|| run(async { panic!("main went wrong") }));
        let payload = caught.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"main went wrong"));
        assert!(!env::is_running());
    });
}

#[test]
fn a_panic_of_a_poller_ends_the_run_and_comes_out_of_it() {
    isolated("a_panic_of_a_poller_ends_the_run_and_comes_out_of_it", || {
        let caught = std::panic::catch_unwind(|| {
            run(async {
                let _poller = Poller::register("bad", Duration::ZERO, || panic!("poller went wrong"));
                std::future::pending::<()>().await;
            });
        });
        let payload = caught.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"poller went wrong"));
    });
}

#[test]
fn a_panic_of_another_task_stays_in_its_handle() {
    isolated("a_panic_of_another_task_stays_in_its_handle", || {
        let error = run(async { spawn(async { panic!("task went wrong") }).await.unwrap_err() });
        assert!(error.is_panic());
        assert_eq!(error.to_string(), "the task panicked: task went wrong");
    });
}

#[test]
fn tasks_left_at_the_end_are_dropped_on_their_thread() {
    isolated("tasks_left_at_the_end_are_dropped_on_their_thread", || {
        struct Canary(mpsc::Sender<String>);
        impl Drop for Canary {
            fn drop(&mut self) {
                let thread = Thread::current().expect("an spdk_thread");
                self.0.send(thread.name().to_owned()).expect("received");
            }
        }
        let (tx, rx) = mpsc::channel();
        run(async move {
            let worker = Thread::create("worker", 0).expect("a thread");
            let there = Canary(tx.clone());
            let task = worker.spawn_on(move || async move {
                let _there = there;
                std::future::pending::<()>().await;
            });
            drop(task.expect("spawned"));
            let here = Canary(tx);
            drop(spawn(async move {
                let _here = here;
                std::future::pending::<()>().await;
            }));
            sleep(Duration::from_millis(20)).await;
        });
        let mut dropped: Vec<String> = rx.iter().collect();
        dropped.sort();
        assert_eq!(dropped, ["app_thread", "worker"]);
    });
}

#[test]
fn work_from_a_plain_thread_and_wakes_by_it() {
    isolated("work_from_a_plain_thread_and_wakes_by_it", || {
        run(async {
            let app = Thread::app().expect("the app thread");
            let (tx, rx) = mpsc::channel();
            let other = std::thread::spawn(move || {
                for n in 0..1000 {
                    // Not Send, made there: the future holds an Rc across an await.
                    let task = app.spawn_on(move || async move {
                        let cell = Rc::new(RefCell::new(n));
                        sleep(Duration::from_micros(n % 7)).await;
                        *cell.borrow_mut() += 1;
                        cell.take()
                    });
                    tx.send(task.expect("spawned")).expect("received");
                }
            });
            let mut sum = 0;
            let mut handles = Vec::new();
            while handles.len() < 1000 {
                match rx.try_recv() {
                    Ok(handle) => handles.push(handle),
                    Err(_) => sleep(Duration::from_micros(50)).await,
                }
            }
            for handle in handles {
                sum += handle.await.expect("ended");
            }
            other.join().expect("no panic");
            assert_eq!(sum, (1..=1000).sum::<u64>());
        });
    });
}

#[test]
fn handles_outlive_their_thread() {
    isolated("handles_outlive_their_thread", || {
        let app = run(async {
            let worker = Thread::create("short-lived", 0).expect("a thread");
            let value = worker.spawn_on(|| async { Thread::current().map(|own| own.name().to_owned()) });
            assert_eq!(
                value.expect("spawned").await.expect("ended").as_deref(),
                Some("short-lived")
            );
            let pending = worker.spawn_on(std::future::pending::<()>).expect("spawned");
            worker.exit().await;
            assert!(pending.await.unwrap_err().is_canceled());
            assert_eq!(worker.send(|| ()).unwrap_err().kind(), ErrorKind::NotRunning);
            worker.exit().await; // again: nothing to do
            assert!(Thread::create("nowhere", 77).is_err());
            Thread::app().expect("the app thread")
        });
        assert!(app.spawn_on(|| async {}).is_err());
    });
}

/// Tasks on another core; wakes and results across. Two cores are needed to see anything.
#[test]
fn two_cores() {
    if std::thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
        return;
    }
    isolated("two_cores", || {
        let runtime = builder().core_mask("0x3").build().expect("options");
        let ended = runtime.run(async {
            let app = Thread::app()?;
            let worker = Thread::create("worker", 1)?;
            for n in 0..2000_u64 {
                let back = app.clone();
                // There, back here, and there again.
                let doubled = worker.spawn_on(move || async move {
                    let here = Rc::new(n);
                    let there = back
                        .spawn_on(move || async move { n * 2 })
                        .expect("the app thread lives");
                    there.await.expect("ended") - *here
                })?;
                assert_eq!(doubled.await?, n);
            }
            let stuck = worker.spawn_on(std::future::pending::<()>)?;
            stuck.abort();
            assert!(stuck.await.unwrap_err().is_canceled());
            // Left running: it ends with the runtime.
            drop(worker.spawn_on(|| async {
                loop {
                    sleep(Duration::from_micros(10)).await;
                }
            })?);
            Ok::<_, spdk_rs::Error>(())
        });
        ended.expect("started").expect("the scenario");
    });
}

#[test]
fn sleep_timeout_and_pollers() {
    isolated("sleep_timeout_and_pollers", || {
        run(async {
            let start = Instant::now();
            sleep(Duration::from_millis(30)).await;
            assert!(start.elapsed() >= Duration::from_millis(30));
            let late = timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            assert_eq!(
                timeout(Duration::from_secs(5), async { 3 })
                    .await
                    .expect("in time"),
                3
            );

            let calls = Rc::new(std::cell::Cell::new(0));
            let counted = Rc::clone(&calls);
            let own = Rc::new(RefCell::new(None));
            let itself = Rc::clone(&own);
            let poller = Poller::register("five", Duration::from_micros(100), move || {
                counted.set(counted.get() + 1);
                if counted.get() == 5 {
                    itself.borrow_mut().take(); // drops itself while it runs
                }
                true
            });
            *own.borrow_mut() = Some(poller.expect("registered"));
            sleep(Duration::from_millis(20)).await;
            assert_eq!(calls.get(), 5);
        });
    });
}

#[test]
fn an_interval_ticks_and_counts() {
    isolated("an_interval_ticks_and_counts", || {
        let short = interval(Duration::from_millis(1)).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::WrongThread);
        run(async {
            let none = interval(Duration::from_nanos(999)).unwrap_err();
            assert_eq!(none.kind(), ErrorKind::InvalidArgument, "{none}");
            let begun = Instant::now();
            let mut clock = interval(Duration::from_millis(5)).expect("a clock");
            let mut ticks = 0;
            while ticks < 4 {
                // A future that is given up loses nothing.
                let _ = timeout(Duration::from_millis(1), clock.tick())
                    .await
                    .map(|n| ticks += n);
            }
            assert!(
                begun.elapsed() >= Duration::from_millis(4 * 5),
                "{:?}",
                begun.elapsed()
            );
            sleep(Duration::from_millis(30)).await;
            assert!(clock.tick().await >= 2, "who comes late is told");
        });
    });
}

#[test]
fn signals() {
    const NAME: &str = "signals";
    if is_child() {
        let own = libc::pid_t::try_from(std::process::id()).expect("a pid");
        let kill = move |signal| {
            // SAFETY: sends a signal to this process.
            unsafe { libc::kill(own, signal) };
        };
        let runtime = builder().build().expect("options");
        if std::env::var_os("LISTEN").is_some() {
            let ended = runtime.run(async move {
                let _other = spawn(shutdown_requested());
                sleep(Duration::from_millis(1)).await;
                kill(libc::SIGTERM);
                shutdown_requested().await;
                7
            });
            assert_eq!(ended.expect("ended by itself"), 7);
        } else {
            let ended = runtime.run(async move {
                kill(libc::SIGINT);
                std::future::pending::<()>().await;
            });
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::Canceled);
        }
        // The handlers are the process's own again: this would otherwise reach SPDK's, which
        // would use a thread that is gone.
        kill(libc::SIGTERM);
        std::thread::sleep(Duration::from_secs(5));
        unreachable!("SIGTERM ends a process by default");
    }
    for env in [&[("LISTEN", "1")][..], &[]] {
        let output = run_child(NAME, env);
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(
            signal,
            Some(libc::SIGTERM),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// While a main task that has been asked to end goes on: SPDK's own handler would pass over a second signal.
#[test]
fn a_second_signal_ends_the_process() {
    const NAME: &str = "a_second_signal_ends_the_process";
    if is_child() {
        let raise = |signal| {
            // SAFETY: sends a signal to this thread.
            unsafe { libc::raise(signal) };
        };
        let ended = builder().build().expect("options").run(async move {
            let _listens = spawn(shutdown_requested());
            sleep(Duration::from_millis(1)).await;
            raise(libc::SIGINT);
            shutdown_requested().await;
            raise(libc::SIGTERM);
        });
        unreachable!("{ended:?}: SIGTERM ends a process by default");
    }
    let output = run_child(NAME, &[]);
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(
        signal,
        Some(libc::SIGTERM),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_signal_while_waiting_for_rpc() {
    const NAME: &str = "a_signal_while_waiting_for_rpc";
    if is_child() {
        let socket = std::env::var("SOCKET").expect("given");
        let runtime = builder()
            .rpc_socket(socket)
            .wait_for_rpc(true)
            .build()
            .expect("options");
        let ended = runtime.run(async { unreachable!("nobody lets it begin") });
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Canceled);
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rpc.sock");
    let shown = socket.display().to_string();
    let mut child = child_command(NAME, &[("SOCKET", &shown)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("a process");
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "no RPC socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status();
    assert!(killed.expect("kill runs").success());
    assert!(child.wait().expect("its status").success());
}

#[test]
fn spawning_outside_of_spdk_panics_with_advice() {
    let caught = std::panic::catch_unwind(|| drop(spawn(async {}))).unwrap_err();
    let text = caught.downcast_ref::<&str>().expect("a text");
    assert!(text.contains("spawn_on"), "{text}");
    assert!(Thread::current().is_none());
}
