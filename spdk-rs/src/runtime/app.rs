//! Starting SPDK, and what comes after it.

use std::ffi::c_void;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::builder::{Builder, LogLevel};
use super::capture::Capture;
use super::idle::Idle;
use super::options::Options;
use super::signal::{self, Signals};
use super::stop;
use crate::env::{self, Phase};
use crate::executor::JoinError;
use crate::{Error, ErrorKind, Result, guard, reactor};

const WHAT: &str = "start SPDK";

/// SPDK, configured and ready to start. See the [module's documentation](super).
#[derive(Debug)]
#[must_use = "nothing is started before run()"]
pub struct Runtime {
    builder: Builder,
}

/// What the first message on the app thread finds.
struct Start {
    /// Spawns the main task.
    main: Option<Box<dyn FnOnce()>>,
    capture: Arc<Capture>,
    print_all: bool,
    signals: Signals,
    idle: Idle,
    started: bool,
}

impl Runtime {
    /// Options to set.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn new(builder: Builder) -> Self {
        Self { builder }
    }

    /// Starts SPDK on the calling thread, runs `main` on its app thread, and stops SPDK when
    /// `main` has ended. Returns what `main` returned.
    ///
    /// # Errors
    /// * [`ErrorKind::AlreadyStarted`]: SPDK was started in this process before.
    /// * [`ErrorKind::StartFailed`]: SPDK could not be started; the text names the cause.
    /// * [`ErrorKind::Canceled`]: a signal came, and nobody awaits
    ///   [`shutdown_requested`](super::shutdown_requested); or SPDK stopped by itself.
    ///
    /// # Panics
    /// With what `main` panicked with, or a message, poller or callback on any of SPDK's threads;
    /// in either case after SPDK was stopped in order. (Panics of other tasks go to their
    /// [`JoinHandle`](crate::JoinHandle).)
    #[doc(alias = "spdk_app_start")]
    pub fn run<F>(self, main: F) -> Result<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.run_as(main, Signals::Spdks)
    }

    pub(super) fn run_as<F>(self, main: F, signals: Signals) -> Result<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // Also checks what SPDK itself must look at (log flags), before anything is used up.
        let mut options = Options::new(&self.builder)?;
        #[cfg(feature = "nvme")]
        crate::nvme::say_why(
            super::options::pci_addresses(&self.builder.pci_allow)?,
            super::options::pci_addresses(&self.builder.pci_block)?,
        );
        env::begin_start()?;
        guard::set_hook(stop::request);

        // Not a channel between threads: main runs on this OS thread, and is done when SPDK
        // returns.
        let result = std::rc::Rc::new(std::cell::RefCell::new(None));
        let slot = std::rc::Rc::clone(&result);
        let spawn_main = move || {
            let task = reactor::spawn(main);
            drop(reactor::spawn(async move {
                let ended = task.await;
                *slot.borrow_mut() = Some(ended);
                stop::request();
            }));
        };
        let print_all = self.builder.log_level >= LogLevel::Notice;
        let capture = Capture::begin();
        let socket = self.builder.rpc_socket.clone();
        let wait_for_rpc = self.builder.wait_for_rpc;
        capture.watch(print_all, move || {
            // SPDK waits for an RPC before it calls us: it is up when the socket answers.
            wait_for_rpc
                && socket
                    .as_deref()
                    .is_some_and(|path| UnixStream::connect(path).is_ok())
        });
        let mut start = Start {
            main: Some(Box::new(spawn_main)),
            capture: Arc::clone(&capture),
            print_all,
            signals,
            idle: self.builder.idle,
            started: false,
        };
        let handlers = signal::Handlers::save();
        let raw = options.as_mut();
        raw.shutdown_cb = Some(signal::shutdown_cb);
        // SAFETY: the options and their texts, and `start`, outlive the call, which returns when
        // SPDK has stopped. `begin_start` sees to it that this is the only call in the process.
        let rc = unsafe { spdk_sys::spdk_app_start(raw, Some(start_fn), (&raw mut start).cast::<c_void>()) };
        drop(handlers);
        let reason = if start.started { None } else { capture.reason() };
        env::set_phase(Phase::Over);
        reactor::leave_app_thread();
        // 1 is what spdk_app_start returns when it could not even start its reactors (all else
        // that it returns was passed to spdk_app_stop, negative from SPDK's own code); then
        // there is nothing that spdk_app_fini could take down.
        if rc != 1 {
            // SAFETY: SPDK's reactors have returned, in order; called once.
            unsafe { spdk_sys::spdk_app_fini() };
        }
        if let Some(payload) = guard::take() {
            std::panic::resume_unwind(payload);
        }
        let ended = result.borrow_mut().take();
        match ended {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(resume(error)),
            None if start.started || rc == 0 => Err(stopped_early()),
            None => Err(start_failed(rc, reason, &self.builder)),
        }
    }
}

/// SPDK is up: this is the first thing it runs for us, on the app thread.
unsafe extern "C" fn start_fn(arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: the pointer that `run` passed, to its own `start`, which it does not touch
        // until SPDK has returned.
        let start = unsafe { &mut *arg.cast::<Start>() };
        start.capture.release(start.print_all);
        start.started = true;
        if start.signals == Signals::Hosts {
            signal::put_back(|_| true);
        }
        reactor::hang_bells(start.idle);
        if let Err(error) = reactor::enter_app_thread() {
            eprintln!("spdk-rs: {error}");
            stop::request();
            return;
        }
        env::set_phase(Phase::Running);
        stop::entered();
        if let Err(error) = reactor::begin_idle(start.idle) {
            eprintln!("spdk-rs: {error}");
            stop::request();
            return;
        }
        if let Some(main) = start.main.take() {
            main();
        }
    });
}

fn resume(error: JoinError) -> Error {
    match error.try_into_panic() {
        Ok(payload) => std::panic::resume_unwind(payload),
        Err(_) => stopped_early(),
    }
}

fn stopped_early() -> Error {
    let why = if signal::was_requested() {
        "stopped by a signal"
    } else {
        "SPDK was stopped before the main task had ended"
    };
    Error::new(ErrorKind::Canceled, "run", "", why)
}

fn start_failed(rc: i32, reason: Option<String>, builder: &Builder) -> Error {
    let config = builder.json_config.as_ref();
    let config = config.map_or_else(String::new, |config| format!("with {}", config.name()));
    let why = reason.unwrap_or_else(|| "SPDK does not say why".to_owned());
    match rc {
        // Neither is an errno: the one is what spdk_app_start itself returns, the other is what a
        // subsystem that has no better idea does.
        1 | -1 => Error::new(ErrorKind::StartFailed, WHAT, config, why),
        rc => Error::from_errno(WHAT, config, rc)
            .with_kind(ErrorKind::StartFailed)
            .with_detail(why),
    }
}
