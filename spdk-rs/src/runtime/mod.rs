//! SPDK's life in this process: configure, start, run a future, stop.
//!
//! # The model
//!
//! [`Builder`] collects options and checks them: whatever DPDK would answer with a page of usage
//! or an abort is an [`Error`](crate::Error) from [`Builder::build`] instead.
//! [`Runtime::run`] then takes over the calling thread. It starts SPDK with a reactor on each
//! core of the mask (the calling thread becomes the main core's), runs the given future on the
//! app thread, and, when that has ended, stops everything in order:
//!
//! 1. the tasks that are left, on every thread, are dropped where they belong;
//! 2. operations that C has not finished are waited for (up to [`DRAIN_LIMIT`]);
//! 3. spdk_threads exit, SPDK's subsystems shut down, `run` returns.
//!
//! What SPDK and DPDK print while they start is held back. If the start fails, it is searched
//! for the line that tells why, which becomes part of the error; if it succeeds, it is printed
//! as far as the log level asks for it.
//!
//! DPDK can be started *once* in a process. A second start is an error, also after a stop and
//! after a start that failed.
//!
//! ```no_run
//! use spdk_rs::{Runtime, bdev};
//!
//! # fn main() -> spdk_rs::Result<()> {
//! let runtime = Runtime::builder().name("hello").memory_mb(512).no_huge(true).build()?;
//! runtime.run(async {
//!     let disk = bdev::malloc::create("ram0", 2048, 512)?;
//!     println!("{} has {} bytes", disk.name(), disk.size());
//!     bdev::malloc::delete("ram0").await
//! })?
//! # }
//! ```
//!
//! [`Runtime::spawn`] does the same on threads of its own, and returns a [`Handle`] that sends work
//! there from anywhere: from Tokio, say.
//!
//! # Signals
//!
//! SIGINT and SIGTERM are SPDK's while it [runs](Runtime::run) on the calling thread. A program that wants to end by itself then awaits
//! [`shutdown_requested`]. Where nobody does, the first signal ends the future given to `run`,
//! which then returns an error that says [`Canceled`](crate::ErrorKind::Canceled). The first signal
//! also puts back the handlers that were there before: so the second one ends a process, by
//! default, whose stop is held up.

mod app;
mod builder;
mod capture;
mod config;
mod handle;
mod idle;
mod options;
mod signal;
mod stop;

pub use app::Runtime;
pub use builder::{Builder, IovaMode, LogLevel};
pub use handle::Handle;
pub use idle::Idle;
pub use signal::{ShutdownRequested, shutdown_requested};
pub use stop::DRAIN_LIMIT;
pub(crate) use stop::is_stopping;
