//! From options to a running target, and to its end.
//!
//! Without a configuration, SPDK initialises its subsystems and serves the RPC socket by itself. With one, the target
//! starts as if for `--wait-for-rpc`, on a private socket; a thread carries the configuration out there, and then the
//! server moves to the public socket. So nobody sees a half-configured target, and a call that fails is told by name.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use spdk_rs::rpc::{self, Client};
use spdk_rs::runtime::{Builder, IovaMode, LogLevel, shutdown_requested};
use spdk_rs::{ErrorKind, Runtime};

use crate::config::{self, Config};
use crate::load::{self, LoadError};
use crate::options::{self, Options};
use crate::{socket, version};

/// How long SPDK may take to serve the private socket. Without hugepages, memory is cleared first.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Runs the target until it is asked to stop.
///
/// # Errors
///
/// One sentence, fit to be shown.
pub fn run(options: &Options) -> Result<(), String> {
    if options.has_max_delay() {
        eprintln!("spdk_tgt: --max-delay is deprecated and has no effect");
    }
    let socket = options.rpc_socket.clone();
    socket::check(&socket).map_err(text)?;
    let config = match options.config_file() {
        Some(path) => Some((path.clone(), config::read(path).map_err(text)?)),
        None => None,
    };
    spdk_rs::lvol::rpc::register().map_err(text)?;

    let builder = builder(options)?;
    let pid_file = options.pid_file.clone();
    let Some((file, config)) = config else {
        let runtime = builder
            .rpc_socket(utf8(&socket)?)
            .wait_for_rpc(options.wait_for_rpc);
        let started = runtime.build().map_err(text)?.run(async move {
            rpc::check_served(&socket).map_err(text)?;
            serve(pid_file).await
        });
        return finish(started);
    };

    let private = private_socket(&socket);
    let runtime = builder
        .rpc_socket(utf8(&private)?)
        .wait_for_rpc(true)
        .build()
        .map_err(text)?;
    let (done, loaded) = oneshot::channel();
    let tolerant = options.json_ignore_init_errors;
    let path = file.clone();
    let loader = thread::spawn(move || {
        let result = load_at(&private, &path, &config, tolerant);
        if result.is_err() && !spdk_rs::env::is_running() {
            // Before SPDK's subsystems are initialised no task of ours runs there: ask SPDK itself to stop.
            // SAFETY: raises a signal for this process, whose handler is SPDK's as long as it is up.
            unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        }
        // The receiver is gone when the target was stopped meanwhile.
        let _ = done.send(result.is_ok());
        result
    });
    let started = runtime.run(async move {
        // A failure is told by the thread, and by its end.
        if loaded.await != Ok(true) {
            return Ok(());
        }
        rpc::serve_at(&socket).map_err(text)?;
        serve(pid_file).await
    });
    if matches!(&started, Err(error) if error.kind() != ErrorKind::Canceled) {
        // SPDK never came up; the thread waits for it in vain, and is left to.
        return finish(started);
    }
    match loader.join() {
        Ok(Ok(())) => finish(started),
        // Stopped by a signal, under the thread's feet.
        Ok(Err(error)) if started.is_err() && error.connection_was_lost() => finish(started),
        Ok(Err(error)) => Err(format!("configuration {}: {error}", file.display())),
        Err(_) => Err("the thread that carries out the configuration panicked".to_owned()),
    }
}

/// The target at work: until a signal asks it to stop. (A second one then ends the process: the runtime sees to it.)
async fn serve(pid_file: Option<PathBuf>) -> Result<(), String> {
    if let Some(path) = pid_file {
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(|e| format!("cannot write the pid file {}: {e}", path.display()))?;
    }
    shutdown_requested().await;
    Ok(())
}

/// The outcome of the run. A target that was asked to stop before it had started has done what it should.
fn finish(started: spdk_rs::Result<Result<(), String>>) -> Result<(), String> {
    match started {
        Ok(outcome) => outcome,
        Err(error) if error.kind() == ErrorKind::Canceled => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Carries the configuration out, on the private socket.
fn load_at(socket: &Path, path: &Path, config: &Config, tolerant: bool) -> Result<(), LoadError> {
    let mut warn =
        |error: LoadError| eprintln!("spdk_tgt: configuration {}: passed over: {error}", path.display());
    let tolerate: Option<&mut dyn FnMut(LoadError)> = if tolerant { Some(&mut warn) } else { None };
    let mut client = Client::connect_within(socket, START_LIMIT).map_err(LoadError::Target)?;
    load::load(&mut client, config, tolerate)
}

/// The socket that only the configuration is carried out on; SPDK's own loader names it so too.
fn private_socket(socket: &Path) -> PathBuf {
    let mut private = socket.as_os_str().to_owned();
    private.push(format!(".{}_config", std::process::id()));
    private.into()
}

/// The options as SPDK's runtime takes them.
fn builder(options: &Options) -> Result<Builder, String> {
    let mut builder = Runtime::builder()
        .name("spdk_tgt")
        .core_mask(options.cores.as_spdk())
        .no_huge(options.no_huge)
        .no_pci(options.no_pci)
        .huge_unlink(options.huge_unlink)
        .single_file_segments(options.single_file_segments)
        .base_virtaddr(options.base_virtaddr)
        .trace_entries(options.num_trace_entries)
        .core_dump(!options.limit_coredump)
        .log_level(log_level(options));
    if let Some(mb) = options.mem_size {
        builder = builder.memory_mb(mb);
    }
    if let Some(dir) = &options.huge_dir {
        builder = builder.huge_dir(dir);
    }
    if let Some(core) = options.master_core {
        builder = builder.main_core(core.unsigned_abs());
    }
    if let Some(id) = options.shm_id {
        builder = builder.shm_id(id.unsigned_abs());
    }
    // SPDK takes 0 for "not said", DPDK refuses it.
    if let Some(channels) = options.mem_channels.filter(|channels| *channels > 0) {
        builder = builder.mem_channels(channels.unsigned_abs());
    }
    if let Some(mode) = options.iova_mode {
        builder = builder.iova_mode(match mode {
            options::IovaMode::Pa => IovaMode::Physical,
            options::IovaMode::Va => IovaMode::Virtual,
        });
    }
    if let Some(mask) = &options.tpoint_group_mask {
        builder = builder.tpoint_mask(mask);
    }
    builder = options.pci_blacklist.iter().fold(builder, Builder::pci_block);
    builder = options.pci_whitelist.iter().fold(builder, Builder::pci_allow);
    Ok(options.logflag.iter().fold(builder, Builder::log_flag))
}

fn log_level(options: &Options) -> LogLevel {
    if version::SPDK_DEBUG && !options.logflag.is_empty() {
        LogLevel::Debug
    } else if options.silence_noticelog {
        LogLevel::Warn
    } else {
        LogLevel::Info
    }
}

fn utf8(path: &Path) -> Result<&str, String> {
    path.to_str()
        .ok_or_else(|| format!("the path {} is not UTF-8", path.display()))
}

fn text(error: impl Display) -> String {
    error.to_string()
}
