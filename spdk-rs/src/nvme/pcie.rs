//! Controllers in this machine's PCI slots.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::attach::{Keep, create};
use crate::bdev::{c_name, check_app_thread};
use crate::{Error, ErrorKind, Result, guard, nvmf};

const WHAT: &str = "attach NVMe controller";
/// SPDK gives up by itself: after the time that the controller says it needs to become ready.
const LIMIT: Duration = Duration::from_secs(150);
/// What Linux knows of PCI devices.
const DEVICES: &str = "/sys/bus/pci/devices";
/// The drivers that let programs have a device.
const FOR_PROGRAMS: [&str; 3] = ["uio_pci_generic", "igb_uio", "vfio-pci"];

/// Takes the NVMe controller in a PCI slot (`0000:01:00.0`; the domain, `0000:`, may be left out). The
/// controller is called `name`, its block devices `name` followed by `n1`, `n2` … for the namespaces; these
/// names are returned.
///
/// A driver for user space must have it (`uio_pci_generic` or `vfio-pci`; `ci/bind-nvme` in this crate's repository
/// gives it to one), and the runtime needs hugepages: without them there are no PCI devices.
///
/// If the future is dropped and the controller arrives later, it is detached again.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such device, no NVMe controller in the slot, or SPDK does not see
/// it (the runtime is without PCI); [`ErrorKind::Busy`] if another driver has it, or none: the error says
/// which, and what to do; [`ErrorKind::PermissionDenied`] if this process may not use it, or was told to leave
/// it ([`Builder::pci_block`](crate::runtime::Builder::pci_block), `pci_allow`); [`ErrorKind::AlreadyExists`] if there is a controller of this name or address;
/// [`ErrorKind::InvalidArgument`]; [`ErrorKind::WrongThread`] if not called on the app thread.
#[doc(alias = "bdev_nvme_create")]
pub async fn attach_pcie(name: &str, address: &str) -> Result<Vec<String>> {
    let device = format!("{name} ({address})");
    check_app_thread(WHAT, &device)?;
    let fail = |kind, why: String| Err(Error::new(kind, WHAT, device.clone(), why));
    if name.is_empty() {
        return fail(ErrorKind::InvalidArgument, "a controller needs a name".to_owned());
    }
    let Some(address) = whole(address) else {
        let why = "is not the address of a PCI device: it looks like 0000:01:00.0".to_owned();
        return fail(ErrorKind::InvalidArgument, why);
    };
    if let Err((kind, why)) = may_have(&address) {
        return fail(kind, why);
    }
    let id = nvmf::parse(WHAT, format!("trtype:PCIe traddr:{address}"))?;
    let keep = Keep::new(id, c_name(WHAT, name)?, None);
    let attached = create(WHAT, device, keep, LIMIT).await;
    attached.map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.with_detail(
            "SPDK does not see it: the runtime is without PCI (no hugepages, or told so), or another process \
             uses it",
        ),
        ErrorKind::AlreadyExists => error.with_detail("there is a controller of this name or address"),
        _ => error,
    })
}

/// Which devices this process was told to take, if not all, and which to leave. (DPDK heeds that for what it finds by
/// itself, and not where a device is asked for.)
struct Lists {
    only: Vec<String>,
    not: Vec<String>,
}

static LISTS: OnceLock<Lists> = OnceLock::new();

/// Has the method `bdev_nvme_attach_controller` answer why a controller cannot be attached. Addresses are given as
/// Linux writes them.
pub(crate) fn say_why(only: Vec<String>, not: Vec<String>) {
    let _ = LISTS.set(Lists { only, not }); // a process starts once
    // SAFETY: only keeps the function, which may be called at any time.
    unsafe { spdk_sys::spdk_rs_nvme_set_refuse(Some(refuse)) };
}

/// What SPDK asks. What is no address it refuses itself.
unsafe extern "C" fn refuse(traddr: *const c_char, why: *mut c_char, len: usize) -> c_int {
    guard::ffi(0, || {
        // SAFETY: the text ends with a zero, and stays as it is during the call.
        let address = unsafe { CStr::from_ptr(traddr) }.to_str().ok().and_then(whole);
        let refused = address.map_or(Ok(()), |address| may_have(&address));
        let Err((kind, text)) = refused else {
            return 0;
        };
        let count = text.len().min(len - 1);
        // SAFETY: C gives memory of this length, more than one byte.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), why.cast(), count);
            why.add(count).write(0);
        }
        -Error::new(kind, WHAT, "", "").errno()
    })
}

/// The address as Linux writes it.
fn whole(address: &str) -> Option<String> {
    let (rest, function) = address.rsplit_once('.')?;
    let mut parts = rest.rsplit(':');
    let (slot, bus, domain) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0"));
    let number = |text: &str, limit| {
        let number = u32::from_str_radix(text, 16).ok()?;
        (number < limit && !text.starts_with('+')).then_some(number)
    };
    let (domain, bus) = (number(domain, 1 << 16)?, number(bus, 1 << 8)?);
    let (slot, function) = (number(slot, 32)?, number(function, 8)?);
    let end = parts.next().is_none();
    end.then(|| format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"))
}

/// Whether this process may have the device; else why not, and what to do.
fn may_have(address: &str) -> std::result::Result<(), (ErrorKind, String)> {
    if let Some(Lists { only, not }) = LISTS.get() {
        let is_in = |list: &[String]| list.iter().any(|listed| listed == address);
        if is_in(not) || !(only.is_empty() || is_in(only)) {
            let why = "this process was started with the order to leave that device alone (`spdk_tgt` by its options -B \
                       and -W)";
            return Err((ErrorKind::PermissionDenied, why.to_owned()));
        }
    }
    usable(Path::new(DEVICES), address)
}

/// Whether Linux lets this process have the device; else why not, and what to do.
fn usable(devices: &Path, address: &str) -> std::result::Result<(), (ErrorKind, String)> {
    let device = devices.join(address);
    let Ok(class) = fs::read_to_string(device.join("class")) else {
        return Err((
            ErrorKind::NotFound,
            "there is no PCI device at this address".to_owned(),
        ));
    };
    if !class.trim().starts_with("0x0108") {
        let why = format!(
            "the PCI device there is no NVMe controller (its class is {})",
            class.trim()
        );
        return Err((ErrorKind::NotFound, why));
    }
    let to_do = format!(
        "give it to one for programs: ci/bind-nvme bind {address} in this crate's repository does, unless it is in \
         use (SPDK's scripts/setup.sh does for all controllers)"
    );
    let driver = fs::read_link(device.join("driver")).ok();
    let driver = driver
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy());
    match driver.as_deref() {
        None => Err((ErrorKind::Busy, format!("no driver has the controller; {to_do}"))),
        Some(driver) if !FOR_PROGRAMS.contains(&driver) => Err((
            ErrorKind::Busy,
            format!(
                "the kernel's driver {driver} has the controller, and with it everything on it (mounted file \
                 systems, too); {to_do}"
            ),
        )),
        Some(driver) => match file_of(&device, driver) {
            Some(file) => may_open(&file),
            None => Ok(()), // let SPDK try
        },
    }
}

/// The file through which programs use the device.
fn file_of(device: &Path, driver: &str) -> Option<PathBuf> {
    if driver == "vfio-pci" {
        let group = fs::read_link(device.join("iommu_group")).ok()?;
        return Some(Path::new("/dev/vfio").join(group.file_name()?));
    }
    let entry = fs::read_dir(device.join("uio")).ok()?.next()?.ok()?;
    Some(Path::new("/dev").join(entry.file_name()))
}

fn may_open(file: &Path) -> std::result::Result<(), (ErrorKind, String)> {
    let path = CString::new(file.as_os_str().as_bytes()).expect("a path of the kernel's");
    // It is not opened to see: when uio_pci_generic's file is closed, by whomever, the device loses its access to
    // memory, and whoever uses it hangs.
    // SAFETY: the text ends with zero; the call only answers.
    let rc = unsafe {
        libc::faccessat(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::R_OK | libc::W_OK,
            libc::AT_EACCESS,
        )
    };
    let error = std::io::Error::last_os_error();
    if rc == 0 || error.kind() != IoErrorKind::PermissionDenied {
        return Ok(()); // let SPDK try
    }
    let why = format!(
        "this process may not open {}: run it as root, or as a user who owns that file",
        file.display()
    );
    Err((ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn addresses_are_written_out() {
        for (text, whole_text) in [
            ("0000:01:00.0", Some("0000:01:00.0")),
            ("01:00.0", Some("0000:01:00.0")),
            ("10000:E1:1f.7", None),
            ("abcd:E1:1f.7", Some("abcd:e1:1f.7")),
            ("1:0.0", Some("0000:01:00.0")),
            ("01:20.0", None),
            ("01:00.8", None),
            ("0:0:01:00.0", None),
            ("01:00", None),
            ("+1:00.0", None),
            ("", None),
        ] {
            assert_eq!(whole(text).as_deref(), whole_text, "{text}");
        }
    }

    /// A device of a made-up `/sys`.
    fn device(class: &str, driver: Option<&str>) -> tempfile::TempDir {
        let devices = tempfile::tempdir().expect("a place");
        let device = devices.path().join("0000:01:00.0");
        fs::create_dir(&device).expect("a folder");
        fs::write(device.join("class"), class).expect("a file");
        if let Some(driver) = driver {
            symlink(format!("../../drivers/{driver}"), device.join("driver")).expect("a link");
        }
        devices
    }

    #[test]
    fn it_is_said_who_has_a_controller() {
        let ask = |class, driver| usable(device(class, driver).path(), "0000:01:00.0");
        let (kind, why) = ask("0x010802\n", Some("nvme")).expect_err("the kernel's");
        assert_eq!(kind, ErrorKind::Busy);
        assert!(
            why.contains("driver nvme has") && why.contains("ci/bind-nvme bind 0000:01:00.0"),
            "{why}"
        );
        let (kind, why) = ask("0x010802\n", None).expect_err("nobody's");
        assert_eq!(kind, ErrorKind::Busy);
        assert!(why.contains("ci/bind-nvme bind"), "{why}");
        let (kind, why) = ask("0x020000\n", Some("vfio-pci")).expect_err("a network card");
        assert_eq!(kind, ErrorKind::NotFound);
        assert!(why.contains("0x020000"), "{why}");
        assert_eq!(ask("0x010802\n", Some("vfio-pci")), Ok(()));
        let (kind, _) = usable(device("0x010802\n", None).path(), "0000:02:00.0").expect_err("no such");
        assert_eq!(kind, ErrorKind::NotFound);
    }
}
