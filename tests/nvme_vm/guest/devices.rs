//! The NVMe controllers of the guest.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
        let driver = Path::new(DEVICES).join(address).join("driver");
        let name = fs::read_link(&driver).with_context(|| driver.display().to_string())?;
        ensure!(
            name.ends_with("uio_pci_generic"),
            "{address} is bound to {}",
            name.display()
        );
    }
    // SPDK wants to open this, and the kernel makes it a moment later.
    let end = Instant::now() + Duration::from_secs(5);
    while fs::metadata("/dev/uio0").is_err() {
        ensure!(Instant::now() < end, "there is no /dev/uio0");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(addresses)
}
