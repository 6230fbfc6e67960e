//! The machine, seen from outside: what it is made of, how it is started, talked to and ended.
//!
//! Nothing here knows what is tested in it.
#![allow(dead_code, reason = "each part uses some of it")]

mod files;
mod initramfs;
mod link;
mod log_writes;
mod machine;
mod python;
mod qmp;

pub use files::Files;
pub use initramfs::Initramfs;
pub use link::{Heard, Link};
pub use log_writes::{Change, LogWrites};
pub use machine::{Drive, Machine, Vm};
pub use python::Python;
pub use qmp::Qmp;
