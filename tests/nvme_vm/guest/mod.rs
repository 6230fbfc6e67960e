//! The guest's side: process 1, which sets the guest up and runs a part's half in it.
//!
//! Only this folder and the parts' `guest` functions run there.
#![allow(dead_code, unused_imports, reason = "each part uses some of it")]

mod command;
mod devices;
mod kernel_log;
pub mod mounts;
mod network;
mod program;
mod setup;
mod target;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

pub use command::{run, wait_for};
pub use devices::{addresses, bind, driver};
pub use kernel_log::kernel_log;
pub use network::network;
pub use program::{Program, program, run_program, with_spdk, with_spdk_and};
pub use target::{start_target, start_target_as, start_target_with};

use crate::parts;
use crate::vm::Link;

/// What process 1 does. It does not return: the machine is ended from outside.
pub fn init() -> ! {
    // Whatever goes wrong before the link is there can be read on the console.
    match setup::link() {
        Ok(link) => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&link)));
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("a panic: the console has its message")));
            if let Err(error) = link.end(&outcome) {
                eprintln!("the link is lost: {error:#}");
            }
        }
        Err(error) => eprintln!("the guest cannot be set up: {error:#}"),
    }
    loop {
        std::thread::park();
    }
}

fn work(link: &Link) -> Result<()> {
    let job = link.ask("job", json!({}))?;
    setup::all(job["hugepages"].as_u64().unwrap_or_default())?;
    let name = job["part"].as_str().unwrap_or_default();
    let part = parts::find(name).with_context(|| format!("there is no part '{name}'"))?;
    (part.guest)(link, &job["params"])
}
