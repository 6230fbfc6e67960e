//! What the integration tests share.
//!
//! DPDK can be started once in a process, so each test that starts it runs in a process of its
//! own: the test starts its own binary again for just that test.

#![allow(dead_code)] // each test binary uses its own part of this

pub mod bdev;
pub mod disk;
pub mod lvol;
pub mod random;

use std::fs::File;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use spdk_rs::Runtime;
use spdk_rs::runtime::Builder;

const CHILD: &str = "SPDK_RS_TEST_CHILD";

/// Runs `body` in a process of its own, alone among the tests that do so: each
/// of them keeps a core busy.
///
/// `name` is the test's own name.
#[track_caller]
pub fn isolated(name: &str, body: impl FnOnce()) {
    if is_child() {
        body();
        return;
    }
    let output = run_child(name, &[]);
    assert!(
        output.status.success(),
        "{name} failed in its process ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// The same, and prints the lines that begin with a mark of what it has said.
#[track_caller]
pub fn isolated_and_heard(name: &str, mark: &str, body: impl FnOnce()) {
    if is_child() {
        body();
        return;
    }
    let output = run_child(name, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines()
        .filter_map(|line| line.find(mark).map(|at| &line[at..]))
        .for_each(|line| println!("{line}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}: {complaint}", output.status);
}

/// The same with SPDK on two cores: `body` runs on the first.
#[track_caller]
pub fn on_two_cores<F>(name: &str, body: impl FnOnce() -> F)
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    isolated(name, || {
        let runtime = builder().core_mask("0x3").build().expect("options");
        runtime.run(body()).expect("started").expect(name);
    });
}

/// Whether this process was started by [`isolated`] or [`run_child`].
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test of this binary in a process of its own, and returns what it printed.
pub fn run_child(name: &str, env: &[(&str, &str)]) -> Output {
    let _alone = Alone::enter();
    let child = child_command(name, env).stdin(Stdio::null()).output();
    child.expect("this binary can be started again")
}

/// The same, for at most so long; `None` if it had to be killed.
pub fn run_child_for(name: &str, env: &[(&str, &str)], limit: Duration) -> Option<Output> {
    let _alone = Alone::enter();
    let mut command = child_command(name, env);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("this binary can be started again");
    let pid = child.id() as libc::pid_t;
    let (sender, ended) = channel();
    let output = thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = sender.send(());
        output
    });
    let in_time = ended.recv_timeout(limit).is_ok();
    if !in_time {
        // SAFETY: sends a signal. The thread has not told yet that the process has ended; if it is
        // just about to, its number is not another's so soon.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let output = output.join().expect("the thread only waits");
    in_time.then(|| output.expect("what it printed"))
}

/// The command for a test of this binary in a process of its own.
pub fn child_command(name: &str, env: &[(&str, &str)]) -> Command {
    let exe = std::env::current_exe().expect("a path to this binary");
    let mut command = Command::new(exe);
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(env.iter().copied());
    let end_with_parent = || {
        // SAFETY: prctl is a plain system call. A test that is killed must not leave a reactor
        // behind that polls for ever.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call, which is fine between fork and exec.
    unsafe { command.pre_exec(end_with_parent) };
    command
}

/// A lock among the test processes of a user.
struct Alone(File);

impl Alone {
    fn enter() -> Self {
        // SAFETY: getuid has no preconditions. (One user's file is of no use to another.)
        let user = unsafe { libc::getuid() };
        let path = std::env::temp_dir().join(format!("spdk-rs-tests-{user}.lock"));
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .expect("a lock file");
        // SAFETY: the descriptor is open; flock waits and has no other effect.
        let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!(rc, 0, "flock");
        Self(file)
    }
}

/// A runtime as the tests want it: no huge pages, no root, no PCI, one core.
pub fn builder() -> Builder {
    Runtime::builder()
        .name("spdk-rs-test")
        .memory_mb(512)
        .no_huge(true)
        .no_pci(true)
}

/// Runs `main` in SPDK.
#[track_caller]
pub fn run<F>(main: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let runtime = builder().build().expect("options that are fine");
    runtime.run(main).expect("SPDK starts and stops")
}

/// As [`run`], with 64 I/O objects for all, 16 in each thread's cache. (The tests use a RAM disk alone: with a
/// device upon another, the upper one's I/O can take all objects, and the lower one's waits for
/// ever. That is SPDK's own limit.)
#[track_caller]
pub fn run_with_small_pool<F>(main: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let config = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_set_options", "params": {"bdev_io_pool_size": 64, "bdev_io_cache_size": 16}}]}]}"#;
    let runtime = builder()
        .json_config_text(config)
        .build()
        .expect("options that are fine");
    runtime.run(main).expect("SPDK starts and stops")
}
