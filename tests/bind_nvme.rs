//! `ci/bind-nvme` on a made-up system: what it lists, and what it refuses. `ci/nvme-vm bind` has it bind controllers.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use common::Place;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ci/bind-nvme");
const ADDRESS: &str = "0000:01:00.0";
const DEVICE: &str = "sys/bus/pci/devices/0000:01:00.0";

/// What the script said, and its exit status.
struct Said {
    status: Option<i32>,
    out: String,
    error: String,
}

impl Said {
    /// That it ended with this status, having said all of this.
    #[track_caller]
    fn expect(&self, status: i32, parts: &[&str]) {
        let Self { out, error, .. } = self;
        let (text, all) = (if status == 0 { out } else { error }, format!("{out}\n{error}"));
        assert_eq!(self.status, Some(status), "{all}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in:\n{all}");
        }
    }
}

/// A made-up system with a controller that the kernel's driver has: one namespace with a partition.
struct System {
    place: Place,
}

impl System {
    fn new() -> Result<Self> {
        let this = Self { place: Place::new()? };
        this.device(ADDRESS, "0x010802", Some("nvme"))?;
        this.write(&format!("{DEVICE}/nvme/nvme0/model"), "Fast 1000   \n")?;
        this.write(&format!("{DEVICE}/nvme/nvme0/serial"), "S1\n")?;
        this.write(&format!("{DEVICE}/nvme/nvme0/nvme0n1/size"), "2097152\n")?;
        this.block("nvme0n1", "259:0", 2 << 30)?;
        this.write("sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n")?;
        this.block("nvme0n1p1", "259:1", 1 << 30)?;
        for driver in ["nvme", "uio_pci_generic", "vfio-pci"] {
            fs::create_dir_all(this.path(&format!("sys/bus/pci/drivers/{driver}")))?;
        }
        this.write("sys/bus/pci/drivers_probe", "")?;
        this.write("proc/swaps", "Filename Type Size Used Priority\n")?;
        this.write("proc/self/mountinfo", "1 0 254:0 / / rw - ext4 /dev/vda1 rw\n")?;
        // The kernel's modules are none of a test's business.
        let modprobe = this.path("bin/modprobe");
        this.write(
            "bin/modprobe",
            "#!/bin/sh\necho \"modprobe: FATAL: Module $1 not found.\" >&2\nexit 1\n",
        )?;
        fs::set_permissions(modprobe, PermissionsExt::from_mode(0o755))?;
        Ok(this)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.place.file(path)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it is below the place"))?;
        Ok(fs::write(path, text)?)
    }

    fn link(&self, path: &str, to: impl AsRef<Path>) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it is below the place"))?;
        let _ = fs::remove_file(&path);
        Ok(symlink(to, path)?)
    }

    fn device(&self, address: &str, class: &str, driver: Option<&str>) -> Result<()> {
        let device = format!("sys/bus/pci/devices/{address}");
        for (file, text) in [("class", class), ("vendor", "0x1b36"), ("device", "0x0010")] {
            self.write(&format!("{device}/{file}"), &format!("{text}\n"))?;
        }
        self.write(&format!("{device}/driver_override"), "(null)\n")?;
        if let Some(driver) = driver {
            self.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "")?;
            self.link(
                &format!("{device}/driver"),
                self.path(&format!("sys/bus/pci/drivers/{driver}")),
            )?;
        }
        Ok(())
    }

    fn block(&self, name: &str, number: &str, bytes: u64) -> Result<()> {
        self.write(&format!("sys/class/block/{name}/dev"), &format!("{number}\n"))?;
        self.write(
            &format!("sys/class/block/{name}/size"),
            &format!("{}\n", bytes / 512),
        )?;
        self.write(&format!("dev/{name}"), "")
    }

    /// A process that has `file` open.
    fn process(&self, file: &str) -> Result<()> {
        self.write("proc/4711/comm", "qemu\n")?;
        self.link("proc/4711/fd/7", file)
    }

    fn run(&self, args: &[&str], answer: &str) -> Result<Said> {
        let path = std::env::var("PATH")?;
        let mut child = Command::new(SCRIPT)
            .args(args)
            .env("BIND_NVME_ROOT", self.place.dir())
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // It does not always ask.
        let _ = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(answer.as_bytes()));
        let output = child.wait_with_output()?;
        Ok(Said {
            status: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            error: String::from_utf8(output.stderr)?,
        })
    }

    /// That `bind --yes` is refused with all of this, and that nothing was done.
    #[track_caller]
    fn refuses(&self, parts: &[&str]) {
        let said = self.run(&["bind", ADDRESS, "--yes"], "").expect("it runs");
        said.expect(1, parts);
        self.untouched();
    }

    #[track_caller]
    fn untouched(&self) {
        let read = |path: &str| fs::read_to_string(self.path(path)).expect("it is there");
        assert_eq!(read(&format!("{DEVICE}/driver_override")), "(null)\n");
        assert_eq!(read("sys/bus/pci/drivers/nvme/unbind"), "");
        assert_eq!(read("sys/bus/pci/drivers_probe"), "");
    }

    fn end(mut self) {
        self.place.discard();
    }
}

#[test]
fn it_lists_controllers() -> Result<()> {
    let system = System::new()?;
    system.device("0000:02:00.0", "0x010802", Some("vfio-pci"))?;
    system.link(
        "sys/bus/pci/devices/0000:02:00.0/iommu_group",
        "../../../kernel/iommu_groups/12",
    )?;
    system.device("0000:03:00.0", "0x020000", None)?;
    system.write("run/udev/data/b259:0", "S:disk\nE:ID_PART_TABLE_TYPE=gpt\n")?;
    system.write("run/udev/data/b259:1", "E:ID_FS_TYPE=ext4\nE:ID_FS_LABEL=data\n")?;
    let said = system.run(&[], "")?;
    let expected = "\
0000:01:00.0  Fast 1000, serial S1
    driver nvme, no IOMMU
    nvme0n1  2 GiB, partition table gpt, not in use
        nvme0n1p1  1 GiB, ext4 data
0000:02:00.0  vendor 0x1b36, device 0x0010
    driver vfio-pci, IOMMU group 12
";
    said.expect(0, &[]);
    assert!(said.out.starts_with(expected), "{}", said.out);
    assert!(!said.out.contains("0000:03:00.0"), "{}", said.out);
    let uses = "    nvme0n1  2 GiB, partition table gpt, in use: nvme0n1p1 is mounted on /a b\n";
    system.write(
        "proc/self/mountinfo",
        "9 1 259:1 / /a\\040b rw - ext4 /dev/nvme0n1p1 rw\n",
    )?;
    system.run(&["list"], "")?.expect(0, &[uses]);
    system.end();
    Ok(())
}

#[test]
fn what_is_mounted_stays_with_the_kernel() -> Result<()> {
    let system = System::new()?;
    let mounts = |text: &str| system.write("proc/self/mountinfo", text);
    mounts("9 1 259:0 / /data rw shared:1 - xfs /dev/nvme0n1 rw\n")?;
    system.refuses(&["in use", "/dev/nvme0n1: mounted on /data"]);
    mounts("9 1 259:1 / /boot rw - ext4 /dev/root rw\n")?;
    system.refuses(&["/dev/nvme0n1: nvme0n1p1 is mounted on /boot"]);
    // Btrfs has numbers of its own.
    mounts("9 1 0:33 / /home rw - btrfs /dev/nvme0n1p1 rw\n")?;
    system.refuses(&["nvme0n1p1 is mounted on /home"]);
    mounts("1 0 254:0 / / rw - ext4 /dev/vda1 rw\n")?;
    system.write(
        "proc/4711/mountinfo",
        "9 1 259:1 / /inside rw - ext4 /dev/sda rw\n",
    )?;
    system.refuses(&["nvme0n1p1 is mounted on /inside"]);
    system.end();
    Ok(())
}

#[test]
fn what_is_used_otherwise_stays_with_the_kernel() -> Result<()> {
    let system = System::new()?;
    let swaps = "Filename Type Size Used Priority\n";
    system.write("proc/swaps", &format!("{swaps}/dev/nvme0n1p1 partition 1 0 -2\n"))?;
    system.refuses(&["/dev/nvme0n1: nvme0n1p1 is swap"]);
    system.write("proc/swaps", swaps)?;

    let holder = "sys/class/block/nvme0n1p1/holders/dm-3";
    system.write(holder, "")?;
    system.write("sys/class/block/dm-3/dm/name", "vg-root\n")?;
    system.write("sys/class/block/dm-3/dm/uuid", "LVM-abc\n")?;
    system.block("dm-3", "252:3", 1 << 30)?;
    system.refuses(&["nvme0n1p1 is part of dm-3 (LVM volume vg-root)\n"]);
    system.write(
        "proc/self/mountinfo",
        "9 1 252:3 / /srv rw - ext4 /dev/mapper/vg-root rw\n",
    )?;
    system.refuses(&["nvme0n1p1 is part of dm-3 (LVM volume vg-root), mounted on /srv\n"]);
    system.write("proc/self/mountinfo", "")?;
    fs::remove_file(system.path(holder))?;

    system.write("sys/class/block/nvme0n1/holders/md0", "")?;
    system.refuses(&["/dev/nvme0n1: part of md0\n"]);
    fs::remove_file(system.path("sys/class/block/nvme0n1/holders/md0"))?;

    for (open, device) in [
        ("nvme0n1p1", "/dev/nvme0n1: nvme0n1p1 is "),
        ("ng0n1", "/dev/nvme0n1: "),
        ("nvme0", ""),
    ] {
        system.process(&format!("/dev/{open}"))?;
        system.refuses(&[&format!("    {device}open in qemu (process 4711)\n")]);
    }
    system.process("/dev/null")?;

    let export = "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path";
    system.write(export, "/dev/nvme0n1\n")?;
    system.refuses(&["/dev/nvme0n1: exported by the kernel's NVMe target as nqn.x"]);
    fs::remove_file(system.path(export))?;

    // It cannot be claimed: somebody is in the way that none of these tells of.
    fs::remove_file(system.path("dev/nvme0n1"))?;
    system.refuses(&["/dev/nvme0n1 cannot be claimed: No such file or directory"]);
    system.end();
    Ok(())
}

#[test]
fn a_namespace_with_paths_is_found_by_its_own_name() -> Result<()> {
    let system = System::new()?;
    let nvme = system.path(&format!("{DEVICE}/nvme/nvme0"));
    fs::rename(nvme.join("nvme0n1"), nvme.join("nvme0c0n1"))?;
    system.write(
        "proc/self/mountinfo",
        "9 1 259:1 / /data rw - ext4 /dev/nvme0n1p1 rw\n",
    )?;
    system.refuses(&["/dev/nvme0n1: nvme0n1p1 is mounted on /data"]);
    system.end();
    Ok(())
}

#[test]
fn what_is_no_controller_to_take_is_refused() -> Result<()> {
    let system = System::new()?;
    let run = |address: &str| system.run(&["bind", address, "--yes"], "");
    run("nvme0")?.expect(1, &["nvme0 is no PCI address", "0000:01:00.0"]);
    run("05:00.0")?.expect(1, &["there is no PCI device 0000:05:00.0"]);
    system.device("0000:03:00.0", "0x020000", Some("e1000e"))?;
    run("03:00.0")?.expect(1, &["0000:03:00.0 is no NVMe controller", "0x020000"]);
    system.device("0000:04:00.0", "0x010802", Some("pci-stub"))?;
    run("04:00.0")?.expect(1, &["has the driver pci-stub", "unbind 0000:04:00.0"]);
    system.run(&["bind"], "")?.expect(2, &["address"]);
    system.run(&["take"], "")?.expect(2, &["take"]);
    system.untouched();
    system.end();
    Ok(())
}

#[test]
fn it_asks_first() -> Result<()> {
    let system = System::new()?;
    for answer in ["", "no\n", "y\n"] {
        let said = system.run(&["bind", ADDRESS], answer)?;
        said.expect(1, &["nothing was done", "--yes"]);
        assert!(
            said.out
                .contains("Fast 1000, serial S1\n    /dev/nvme0n1 (2 GiB)"),
            "{}",
            said.out
        );
        system.untouched();
    }
    system.end();
    Ok(())
}

#[test]
fn a_driver_that_is_not_there_is_said() -> Result<()> {
    let system = System::new()?;
    for driver in ["uio_pci_generic", "vfio-pci"] {
        fs::remove_dir(system.path(&format!("sys/bus/pci/drivers/{driver}")))?;
    }
    let missing =
        |driver| format!("the driver {driver} is not there: modprobe: FATAL: Module {driver} not found.");
    system.refuses(&[&missing("uio_pci_generic"), "intel_iommu=on"]);
    system.link(&format!("{DEVICE}/iommu_group"), "../../../kernel/iommu_groups/7")?;
    system.refuses(&[&missing("vfio-pci")]);
    system.end();
    Ok(())
}

#[test]
fn others_in_its_iommu_group_are_not_disturbed() -> Result<()> {
    let system = System::new()?;
    system.link(&format!("{DEVICE}/iommu_group"), "../../../kernel/iommu_groups/7")?;
    let group = "sys/kernel/iommu_groups/7/devices";
    system.link(&format!("{group}/{ADDRESS}"), system.path(DEVICE))?;
    system.device("0000:00:1c.0", "0x060400", Some("pcieport"))?;
    system.device("0000:01:00.1", "0x020000", Some("e1000e"))?;
    for address in ["0000:00:1c.0", "0000:01:00.1"] {
        let device = system.path(&format!("sys/bus/pci/devices/{address}"));
        system.link(&format!("{group}/{address}"), device)?;
    }
    system.refuses(&["shares IOMMU group 7 with 0000:01:00.1, which e1000e has"]);
    system.end();
    Ok(())
}

#[test]
fn what_the_kernel_does_not_bind_is_given_back() -> Result<()> {
    // These files do not act as the kernel's do: the driver stays what it was.
    let system = System::new()?;
    let said = system.run(&["bind", ADDRESS], "yes\n")?;
    said.expect(
        1,
        &[
            "uio_pci_generic did not take 0000:01:00.0, which has nvme now",
            "dmesg",
        ],
    );
    let read = |path: &str| fs::read_to_string(system.path(path));
    assert_eq!(read(&format!("{DEVICE}/driver_override"))?.trim(), "");
    assert_eq!(read("sys/bus/pci/drivers/nvme/unbind")?, ADDRESS);
    assert_eq!(read("sys/bus/pci/drivers_probe")?, ADDRESS);
    system.end();
    Ok(())
}

#[test]
fn what_a_program_has_is_not_given_back() -> Result<()> {
    let system = System::new()?;
    system.device("0000:02:00.0", "0x010802", Some("uio_pci_generic"))?;
    system.write("sys/bus/pci/devices/0000:02:00.0/uio/uio3/name", "")?;
    system.process("/dev/uio3")?;
    let refused = ["0000:02:00.0 is in use", "open in qemu (process 4711)"];
    system.run(&["unbind", "02:00.0"], "")?.expect(1, &refused);
    system.device("0000:04:00.0", "0x010802", Some("vfio-pci"))?;
    system.link(
        "sys/bus/pci/devices/0000:04:00.0/iommu_group",
        "../../../kernel/iommu_groups/12",
    )?;
    system.process("/dev/vfio/12")?;
    system
        .run(&["reset", "04:00.0"], "")?
        .expect(1, &["0000:04:00.0 is in use", "process 4711"]);
    system
        .run(&["unbind", ADDRESS], "")?
        .expect(0, &["has the kernel's driver already"]);
    system.untouched();
    system.end();
    Ok(())
}

#[test]
fn only_root_binds() -> Result<()> {
    // The script may lie where only root can go, and so may Python's modules.
    let as_nobody = "import argparse, os, pathlib, re, subprocess, sys
script = open(sys.argv.pop(1)).read()
os.getuid() or os.setuid(65534)
exec(script)";
    let output = Command::new("python3")
        .args(["-c", as_nobody, SCRIPT, "bind", ADDRESS, "--yes"])
        .env_remove("BIND_NVME_ROOT")
        .output()?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("only root may bind devices"), "{error}");
    Ok(())
}
