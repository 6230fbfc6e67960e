//! The host: a process of its own that uses the exported volumes over NVMe/TCP.
//!
//! It serves its commands as JSON-RPC methods on a socket of its own:
//!
//! | method | what it does |
//! |---|---|
//! | `host_write {part}` | writes a part of the volume, each unit with a new generation |
//! | `host_verify {namespace}` | reads all of a namespace and compares it with the ledger |
//! | `host_open_backup` | waits for namespace 2 and opens it |
//! | `host_start` | goes on reading, writing and verifying in the background |
//! | `host_snapshot_begins`, `host_snapshot_done` | stand around the taking of the backup |
//! | `host_status` | what was done and what went wrong so far |
//! | `host_expect_removal`, `host_wait_removed` | stand around the removal of namespace 2 |
//! | `host_stop` | ends the background work |

mod options;
mod service;
mod traffic;
mod volume;

pub use options::HostOptions;
pub use traffic::HostStatus;

use anyhow::Result;

/// Runs the host until it is told to stop by a signal.
pub fn main(options: &str) -> Result<()> {
    service::serve(serde_json::from_str(options)?)
}
