//! JSON-RPC: methods of one's own in SPDK's server, and a client for any SPDK application.
//!
//! # The model
//!
//! An SPDK application serves JSON-RPC on a UNIX socket. Its methods are a table of names, filled by the linked
//! modules before `main`; [`register`] adds methods that are written in Rust. A call runs on the app thread: the
//! handler's future is a task there, and while it waits, other calls and all I/O go on. **Every call is answered
//! exactly once**: with what the handler returns, or with an error if it panics, if the runtime stops first, or if the
//! parameters do not fit. A caller that has gone away changes nothing for the handler.
//!
//! [`Client`] is the other side, for programs and tests: it blocks, and needs no SPDK in its process.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use spdk_rs::rpc::{self, RpcError, When};
//!
//! #[derive(Deserialize)]
//! struct Params {
//!     name: String,
//! }
//!
//! #[derive(Serialize)]
//! struct Greeting {
//!     text: String,
//! }
//!
//! # fn main() -> spdk_rs::Result<()> {
//! rpc::register("greet", When::Running, |params: Params| async move {
//!     if params.name.is_empty() {
//!         return Err(RpcError::invalid_params("the name is empty"));
//!     }
//!     Ok(Greeting { text: format!("Hello, {}", params.name) })
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! What may not be done here: block, or know any method in particular.

mod client;
mod error;
mod json;
mod method;
mod reply;
mod serve;

pub use client::{CallError, Client};
pub use error::RpcError;
pub use method::{When, register};
pub use serve::{check_served, serve_at};
