//! `ci/bind-nvme` with a real kernel: a controller goes to SPDK and comes back, and nothing that is in use goes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Part;
use crate::guest::{self, driver, mounts};
use crate::run::Run;
use crate::vm::{Drive, Link, Machine, Python};

/// The part.
pub const PART: Part = Part {
    name: "bind",
    about: "ci/bind-nvme: refused while in use, taken by uio or vfio, given back with its data",
    host,
    guest: in_guest,
    programs: &[],
};

const KERNELS_DRIVER: &str = "/sys/bus/pci/drivers/nvme";
const SCRIPT: &str = "/bin/bind-nvme";
const PLACE: &str = "/mnt";
const FILE: &str = "/mnt/data";
/// A user who is not root.
const USER: u32 = 1000;

fn host(run: &mut Run) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/bind-nvme");
    let python = Python::of(&script, &[])?;
    let (interpreter, home) = python.places();
    for iommu in [false, true] {
        let mut machine = python.put_into(Machine::with_kernel_driver());
        machine.files.push((script.clone(), SCRIPT.to_owned()));
        let mkfs = run.files().program("sbin/mkfs.ext4");
        machine.programs.push((mkfs, "/sbin/mkfs.ext4".to_owned()));
        machine = machine.modules(["vfio-pci", "vfio_iommu_type1"]);
        if iommu {
            machine.command_line.push_str(" intel_iommu=on");
            machine = machine.arguments(["-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"]);
            // QEMU needs to split the interrupt controller for that.
            machine = machine.arguments(["-machine", "kernel-irqchip=split"]);
        }
        for name in ["spare", "other"] {
            let drive = Drive::create(name, run.file(&format!("{name}-{iommu}.img")), 256 << 20)?;
            machine = machine.controller(name, &drive);
        }
        run.note(if iommu {
            "with an IOMMU"
        } else {
            "without an IOMMU"
        });
        let params = json!({"iommu": iommu, "python": interpreter, "home": home});
        run.boot_to_end(&machine, PART.name, params)?;
    }
    Ok(())
}

/// The script in the guest.
struct Script {
    python: String,
    home: String,
}

impl Script {
    fn run(&self, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(&self.python);
        command.arg(SCRIPT).args(args).env("PYTHONHOME", &self.home);
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().context("cannot run Python")?;
        let text = [stdout, stderr].concat();
        Ok((status.code(), String::from_utf8_lossy(&text).trim().to_owned()))
    }

    /// That it does what it was told, and says so.
    fn does(&self, link: &Link, args: &[&str], says: &str) -> Result<()> {
        let (status, text) = self.run(args)?;
        link.check(
            status == Some(0) && text.contains(says),
            format_args!("{args:?}: {text}"),
        )
    }

    /// That it refuses for this reason, and that the controller stays with its driver.
    fn refuses(&self, link: &Link, args: &[&str], reason: &str) -> Result<()> {
        let before = driver(args[1])?;
        let (status, text) = self.run(args)?;
        link.check(
            status == Some(1) && text.contains(reason) && driver(args[1])? == before,
            format_args!("{args:?} is refused, and {before} keeps it: {text}"),
        )
    }
}

/// The block device of the controller at an address, when the kernel has made it.
fn block_device(address: &str) -> Result<String> {
    let name = |dir: &str| -> Option<String> {
        let mut names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
        names.find_map(|name| name.into_string().ok().filter(|name| name.starts_with("nvme")))
    };
    let nvme = format!("/sys/bus/pci/devices/{address}/nvme");
    guest::wait_for(&format!("a namespace of {address}"), || {
        let controller = name(&nvme)?;
        let device = format!("/dev/{}", name(&format!("{nvme}/{controller}"))?);
        Path::new(&device).exists().then_some(device)
    })
}

/// Known data, different in each sector.
fn data() -> Vec<u8> {
    (0..4_u32 << 20).map(|at| (at / 512 * 7 + at) as u8).collect()
}

fn in_guest(link: &Link, params: &Value) -> Result<()> {
    let word = |key: &str| params[key].as_str().unwrap_or_default().to_owned();
    let script = Script {
        python: word("python"),
        home: word("home"),
    };
    let iommu = params["iommu"] == true;
    let addresses = guest::addresses()?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    let (spare, other) = (addresses[0].as_str(), addresses[1].as_str());
    let device = block_device(spare)?;
    block_device(other)?;
    let (_, text) = script.run(&[])?;
    link.note(&text)?;
    link.same(
        "both are listed as not in use",
        text.matches("256 MiB, not in use").count(),
        2,
    )?;

    is_refused(link, None, spare, "the kernel's driver nvme has the controller")?;
    fs::write(format!("{KERNELS_DRIVER}/unbind"), other)?;
    is_refused(link, None, other, "no driver has the controller")?;
    fs::write(format!("{KERNELS_DRIVER}/bind"), other)?;
    block_device(other)?;

    guest::run(&["/sbin/mkfs.ext4", "-q", &device])?;
    mounts::mount("ext4", &device, PLACE, 0, "")?;
    fs::write(FILE, data())?;
    if iommu {
        mounts::unmount(PLACE, 0)?;
    } else {
        refusals(link, &script, spare, &device)?;
    }

    script.does(link, &["bind", spare, "--yes"], "bdev_nvme_attach_controller")?;
    let expected = if iommu { "vfio-pci" } else { "uio_pci_generic" };
    link.same("its driver", driver(spare)?, expected)?;
    link.same("the other's driver", driver(other)?, "nvme")?;
    link.check(!Path::new(&device).exists(), format_args!("{device} is gone"))?;
    if iommu {
        std::os::unix::fs::chown("/dev/hugepages", Some(USER), Some(USER))?;
        is_refused(link, Some(USER), spare, "this process may not open /dev/vfio/")?;
    }
    attach(link, &script, spare, iommu)?;

    script.does(link, &["unbind", spare], "kernel's driver again")?;
    link.same("its driver", driver(spare)?, "nvme")?;
    let device = block_device(spare)?;
    mounts::mount("ext4", &device, PLACE, 0, "")?;
    link.check(
        fs::read(FILE)? == data(),
        "its file system is back, with the data",
    )?;
    mounts::unmount(PLACE, 0)
}

/// What is in use is not taken. The file system is mounted, and is unmounted in the end.
fn refusals(link: &Link, script: &Script, address: &str, device: &str) -> Result<()> {
    let bind = ["bind", address, "--yes"];
    script.refuses(link, &bind, &format!("{device}: mounted on {PLACE}"))?;
    link.check(fs::read(FILE)? == data(), "what is mounted can be read as before")?;
    // It is in use still, and in no list of mounts any more: only the kernel's own claim tells.
    let open = File::open(FILE)?;
    mounts::unmount(PLACE, libc::MNT_DETACH)?;
    script.refuses(link, &bind, "cannot be claimed: Device or resource busy")?;
    drop(open);
    guest::wait_for("the end of the file system", || mounts::claim(device).ok())?;
    let open = File::open(device)?;
    script.refuses(link, &bind, "(process 1)")?;
    drop(open);
    script.refuses(link, &bind[..2], "nothing was done")
}

/// The target does not take a controller, and says why.
fn is_refused(link: &Link, user: Option<u32>, address: &str, reason: &str) -> Result<()> {
    let mut target = match user {
        Some(user) => guest::start_target_as(user)?,
        None => guest::start_target()?,
    };
    let answer = target.call(
        "bdev_nvme_attach_controller",
        json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address}),
    );
    let said = answer.err().context("it was attached")?.to_string();
    let to_do = if user.is_some() {
        "run it as root"
    } else {
        "ci/bind-nvme bind"
    };
    link.check(
        said.contains(reason) && said.contains(to_do),
        format_args!("the target does not attach {address}: {said}"),
    )?;
    let status = target.into_process().stop()?;
    link.check(status.success(), format_args!("and stops: {status}"))
}

/// The target takes the controller; while it has it, nobody gives it back.
fn attach(link: &Link, script: &Script, address: &str, iommu: bool) -> Result<()> {
    let mut users = vec![0];
    if iommu {
        users.push(USER);
    }
    for user in users {
        let mut target = if user == 0 {
            guest::start_target()?
        } else {
            let group = fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group"))?;
            let group = Path::new("/dev/vfio").join(group.file_name().unwrap_or_default());
            for place in [group.as_path(), Path::new("/dev/hugepages")] {
                std::os::unix::fs::chown(place, Some(user), Some(user))?;
            }
            guest::start_target_as(user)?
        };
        let names = target.call(
            "bdev_nvme_attach_controller",
            json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address}),
        )?;
        link.same(
            format_args!("the target of user {user} attaches it"),
            names,
            json!(["Nvme0n1"]),
        )?;
        let found = target.bdev("Nvme0n1")?.unwrap_or_default();
        link.same("its blocks", &found["num_blocks"], (256 << 20) / 512)?;
        script.refuses(link, &["unbind", address], "open in")?;
        let status = target.into_process().stop()?;
        link.check(
            status.success(),
            format_args!("the target stops on SIGTERM: {status}"),
        )?;
    }
    Ok(())
}
