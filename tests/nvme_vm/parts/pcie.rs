//! The NVMe PCIe driver on an emulated controller.

use anyhow::Result;
use serde_json::{Value, json};

use super::Part;
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Link, Machine};

/// The part.
pub const PART: Part = Part {
    name: "pcie",
    about: "the target on an NVMe controller: volumes, a delete while it is busy, a restart",
    host,
    guest: in_guest,
};

fn host(run: &mut Run) -> Result<()> {
    let drive = Drive::create("disk", run.file("pcie.img"), 1 << 30)?;
    let machine = Machine::for_user_space().controller("nvme0", &drive);
    run.boot_to_end(&machine, PART.name, json!({}))
}

fn in_guest(link: &mut Link, _params: &Value) -> Result<()> {
    let addresses = guest::bind()?;
    link.same("controllers", addresses.len(), 1)?;
    let mut target = guest::start_target()?;
    let names = target.call(
        "bdev_nvme_attach_controller",
        json!({"name": "Nvme0", "trtype": "PCIe", "traddr": addresses[0]}),
    )?;
    link.same("the target attaches it", names, json!(["Nvme0n1"]))?;
    let status = target.into_process().stop()?;
    link.check(
        status.success(),
        format_args!("the target stops on SIGTERM: {status}"),
    )
}
