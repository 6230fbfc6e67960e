//! Safe, asynchronous SPDK.
//!
//! [`Runtime`] starts SPDK and runs a future on it. On SPDK's threads, block devices
//! ([`bdev`]) are found, created, opened, read and written with plain `async` code: buffers
//! ([`buf::DmaBuf`]) are passed by value and come back, and a future that is dropped in the
//! middle of an I/O frees nothing that the device still uses.
//!
//! What SPDK ties to one of its threads is not `Send`; what names a thing is. Errors say which
//! operation failed on which device and why ([`Error`]).

pub mod bdev;
pub mod bdev_module;
pub mod buf;
pub mod env;
pub mod error;
mod executor;
mod guard;
pub mod lvol;
#[cfg(feature = "nvme")]
pub mod nvme;
#[cfg(feature = "nvmf")]
pub mod nvmf;
pub mod op;
pub mod reactor;
pub mod rpc;
pub mod runtime;
mod sanitize;
mod sync;

pub use error::{Error, ErrorKind, NvmeStatus, Result};
pub use executor::{JoinError, JoinHandle};
pub use reactor::spawn;
pub use runtime::Runtime;
