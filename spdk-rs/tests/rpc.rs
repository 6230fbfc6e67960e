//! Methods in Rust, called over a socket: each call is answered exactly once, whatever happens to it.

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{builder, isolated};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spdk_rs::reactor::{Thread, sleep};
use spdk_rs::rpc::{CallError, Client, RpcError, When, register};
use spdk_rs::{ErrorKind, spawn};

static STARTED: AtomicUsize = AtomicUsize::new(0);
static ENDED: AtomicUsize = AtomicUsize::new(0);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    a: i64,
    b: i64,
}

#[derive(Serialize)]
struct Sum {
    sum: i64,
    text: String,
}

fn methods() {
    register("test_add", When::Running, |Add { a, b }| async move {
        let text = "\"quoted\" and Unicode: ä €\n".to_owned();
        Ok(Sum { sum: a + b, text })
    })
    .unwrap();
    register("test_fail", When::Running, |params: Value| async move {
        let error = RpcError::from_errno(libc::EBUSY);
        Err::<(), _>(error.with_data(json!({"given": params})))
    })
    .unwrap();
    register("test_slow", When::Running, |(): ()| async {
        STARTED.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(300)).await;
        ENDED.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    })
    .unwrap();
    register("test_never", When::Running, |(): ()| async {
        STARTED.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
        Ok(true)
    })
    .unwrap();
    register("test_panic", When::Running, |(): ()| async {
        sleep(Duration::from_millis(1)).await;
        if STARTED.load(Ordering::SeqCst) < usize::MAX {
            panic!("on purpose");
        }
        Ok(())
    })
    .unwrap();
    register("test_long", When::Running, |len: Len| async move {
        Ok("x".repeat(len.len))
    })
    .unwrap();
    register("test_early", When::Starting, |(): ()| async { Ok(true) }).unwrap();
}

#[derive(Deserialize)]
struct Len {
    len: usize,
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("spdk-rs-{}-{name}.sock", std::process::id()))
}

/// Runs SPDK with the methods, and `client` beside it on a thread of its own.
fn serve(name: &str, client: impl FnOnce(&Path) + Send + 'static) {
    methods();
    let path = socket(name);
    let runtime = builder().rpc_socket(path.to_str().unwrap()).build().unwrap();
    runtime
        .run(async move {
            let client = std::thread::spawn(move || client(&path));
            while !client.is_finished() {
                sleep(Duration::from_millis(2)).await;
            }
            client.join()
        })
        .unwrap()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn code(result: Result<Value, CallError>) -> (i32, String) {
    match result {
        Err(CallError::Rpc { error, .. }) => (error.code, error.message),
        other => panic!("not an error: {other:?}"),
    }
}

#[test]
fn results_and_errors_arrive_whole() {
    isolated("results_and_errors_arrive_whole", || {
        serve("whole", |path| {
            let mut client = Client::connect(path).unwrap();
            let sum = client.call("test_add", json!({"a": 40, "b": 2})).unwrap();
            assert_eq!(sum, json!({"sum": 42, "text": "\"quoted\" and Unicode: ä €\n"}));

            let (number, message) = code(client.call("test_add", json!({"a": 1})));
            assert_eq!(number, RpcError::INVALID_PARAMS);
            assert!(message.contains("missing field `b`"), "{message}");
            let (_, message) = code(client.call("test_add", json!({"a": 1, "b": 2, "c": 3})));
            assert!(message.contains("unknown field `c`"), "{message}");

            // Strings come through SPDK's parser, which decodes escapes in place.
            let given = json!({"text": "a\"b\\c\u{1}ä", "list": [1, -2.5, null, true, {}], "big": u64::MAX});
            let error = client.call("test_fail", &given).unwrap_err();
            let expected = RpcError::from_errno(libc::EBUSY).with_data(json!({"given": given}));
            assert_eq!(error.rpc(), Some(&expected));
            assert_eq!(expected.message, "Device or resource busy");

            let long = client.call("test_long", json!({"len": 4 << 20})).unwrap();
            assert_eq!(long.as_str().map(str::len), Some(4 << 20));
            let (number, message) = code(client.call("test_long", json!({"len": 40 << 20})));
            assert_eq!(number, RpcError::INTERNAL_ERROR);
            assert!(message.contains("too long"), "{message}");
            client.call("test_add", json!({"a": 0, "b": 0})).unwrap();

            assert_eq!(
                code(client.call("test_nothing", Value::Null)).0,
                RpcError::METHOD_NOT_FOUND
            );
            assert_eq!(
                code(client.call("test_early", Value::Null)).0,
                RpcError::INVALID_STATE
            );
        });
    });
}

#[test]
fn a_call_that_waits_holds_nobody_up() {
    isolated("a_call_that_waits_holds_nobody_up", || {
        serve("waits", |path| {
            let slow = {
                let mut client = Client::connect(path).unwrap();
                std::thread::spawn(move || client.call("test_slow", Value::Null))
            };
            let mut client = Client::connect(path).unwrap();
            while STARTED.load(Ordering::SeqCst) == 0 {
                client.call("test_add", json!({"a": 1, "b": 1})).unwrap();
            }
            client.call("test_add", json!({"a": 1, "b": 1})).unwrap();
            assert_eq!(ENDED.load(Ordering::SeqCst), 0);
            assert_eq!(slow.join().unwrap().unwrap(), json!(true));
        });
    });
}

#[test]
fn a_caller_that_goes_away_changes_nothing() {
    isolated("a_caller_that_goes_away_changes_nothing", || {
        serve("gone", |path| {
            let calls = 100; // more than SPDK has places for connections
            for number in 0..calls {
                let mut stream = UnixStream::connect(path).unwrap();
                stream
                    .write_all(br#"{"jsonrpc":"2.0","id":1,"method":"test_slow"}"#)
                    .unwrap();
                while STARTED.load(Ordering::SeqCst) == number {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            while ENDED.load(Ordering::SeqCst) < calls {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut client = Client::connect(path)
                .unwrap()
                .with_timeout(Duration::from_secs(10));
            client.call("test_add", json!({"a": 1, "b": 1})).unwrap();
        });
    });
}

#[test]
fn a_panic_is_an_answer_and_the_server_goes_on() {
    isolated("a_panic_is_an_answer_and_the_server_goes_on", || {
        serve("panic", |path| {
            let mut client = Client::connect(path).unwrap();
            let (number, message) = code(client.call("test_panic", Value::Null));
            assert_eq!(number, RpcError::INTERNAL_ERROR);
            assert!(message.contains("test_panic panicked"), "{message}");
            client.call("test_add", json!({"a": 1, "b": 1})).unwrap();
        });
    });
}

#[test]
fn calls_that_never_end_do_not_hinder_the_stop() {
    isolated("calls_that_never_end_do_not_hinder_the_stop", || {
        let (ended, end) = std::sync::mpsc::channel();
        serve("never", move |path| {
            for _ in 0..3 {
                let mut client = Client::connect(path).unwrap();
                let ended = ended.clone();
                std::thread::spawn(move || ended.send(client.call("test_never", Value::Null).is_err()));
            }
            while STARTED.load(Ordering::SeqCst) < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // The server was stopped with the calls open: each caller heard something, an answer or the end.
        for _ in 0..3 {
            assert!(end.recv_timeout(Duration::from_secs(5)).unwrap());
        }
    });
}

#[test]
fn names_are_unique_and_registered_where_it_is_safe() {
    isolated("names_are_unique_and_registered_where_it_is_safe", || {
        methods();
        let again = register("test_add", When::Running, |(): ()| async { Ok(()) }).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        let spdks = register("bdev_get_bdevs", When::Running, |(): ()| async { Ok(()) }).unwrap_err();
        assert_eq!(spdks.kind(), ErrorKind::AlreadyExists);
        for name in ["", "with\0nul"] {
            let bad = register(name, When::Running, |(): ()| async { Ok(()) }).unwrap_err();
            assert_eq!(bad.kind(), ErrorKind::InvalidArgument);
        }
        common::run(async {
            register("test_on_app_thread", When::Running, |(): ()| async { Ok(()) }).unwrap();
            let elsewhere = || register("test_elsewhere", When::Running, |(): ()| async { Ok(()) });
            let elsewhere = std::thread::spawn(elsewhere).join().unwrap().unwrap_err();
            assert_eq!(elsewhere.kind(), ErrorKind::WrongThread);
            assert!(spawn(async { Thread::current().is_some() }).await.unwrap());
            let mut count = 0;
            let full = loop {
                match register(&format!("test_{count}"), When::Running, |(): ()| async { Ok(()) }) {
                    Ok(()) => count += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(full.kind(), ErrorKind::NoSpace);
            assert!(count > 30);
        });
    });
}
