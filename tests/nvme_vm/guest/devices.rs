//! The NVMe controllers of the guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::wait_for;

/// What QEMU's NVMe controllers are known by.
const VENDOR_AND_DEVICE: &str = "1b36 0010";
/// The class of NVMe controllers.
const CLASS: &str = "0x010802";
const DEVICES: &str = "/sys/bus/pci/devices";

/// The addresses of the controllers, in order.
pub fn addresses() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        let entry = entry?;
        let class = fs::read_to_string(entry.path().join("class"))?;
        if class.trim() == CLASS {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Gives the controllers to programs: those that are there, and those that come. The addresses of the former.
pub fn bind() -> Result<Vec<String>> {
    let id = "/sys/bus/pci/drivers/uio_pci_generic/new_id";
    fs::write(id, VENDOR_AND_DEVICE).context(id)?;
    let addresses = addresses()?;
    ensure!(!addresses.is_empty(), "there is no NVMe controller");
    for address in &addresses {
        let driver = driver(address)?;
        ensure!(driver == "uio_pci_generic", "{address} is bound to {driver}");
    }
    // SPDK wants to open this, and the kernel makes it a moment later.
    wait_for("/dev/uio0", || fs::metadata("/dev/uio0").ok())?;
    Ok(addresses)
}

/// The driver of the controller at an address.
pub fn driver(address: &str) -> Result<String> {
    let link = fs::read_link(Path::new(DEVICES).join(address).join("driver"));
    let path = link.with_context(|| format!("{address} has no driver"))?;
    let name = path.file_name().unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
