//! What the tests of the target share: a folder for a run, child processes, and the target among them.
//!
//! Nothing here knows what is tested. Each test crate uses its own part of it.
#![allow(dead_code, unused_imports, reason = "each test crate uses a part")]

pub mod place;
pub mod process;
pub mod target;

pub use place::Place;
pub use process::{Process, Reaped};
pub use target::{Target, TargetOptions};
