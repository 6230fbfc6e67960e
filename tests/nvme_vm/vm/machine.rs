//! A machine: what it has, and a running one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Files, Heard, Qmp};
use crate::common::Reaped;
use crate::common::process::tail;

/// How long a machine may be silent, and how long it may run.
const SILENCE: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(180);

/// What the kernel is told. Zeroing all memory when it is allocated makes the reservation of hugepages slow; and on a
/// busy machine the timer seems not to work at first.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 quiet nokaslr no_timer_check mitigations=off init_on_alloc=0 tsc=reliable";

/// A machine's parts.
#[derive(Clone)]
pub struct Machine {
    /// Kernel modules, and by themselves those that they need.
    pub modules: Vec<String>,
    /// Further files: here, and in the guest.
    pub files: Vec<(PathBuf, String)>,
    /// Further programs, with the libraries that they are linked with: here, and in the guest.
    pub programs: Vec<(PathBuf, String)>,
    /// Added to the kernel's command line.
    pub command_line: String,
    /// Added to QEMU's arguments.
    pub arguments: Vec<String>,
    /// Megabytes of memory.
    pub memory_mb: u32,
    /// How many of them are hugepages of 2 MiB.
    pub hugepages: u32,
}

impl Machine {
    /// A machine without disks whose NVMe controllers belong to programs, not to the kernel.
    pub fn for_user_space() -> Self {
        Self {
            modules: vec!["uio_pci_generic".to_owned()],
            files: Vec::new(),
            programs: Vec::new(),
            // The kernel's own driver is part of its image, and must not take the controllers.
            command_line: "initcall_blacklist=nvme_init".to_owned(),
            arguments: Vec::new(),
            memory_mb: 1536,
            hugepages: 330,
        }
    }

    /// A machine whose kernel has its NVMe driver.
    pub fn with_kernel_driver() -> Self {
        Self {
            command_line: String::new(),
            ..Self::for_user_space()
        }
    }

    /// Further arguments for QEMU.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Further modules for the kernel.
    #[must_use]
    pub fn modules<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.modules.extend(modules.into_iter().map(Into::into));
        self
    }

    /// An NVMe controller with one namespace on `drive`, in a slot of its own that it can be taken out of.
    #[must_use]
    pub fn controller(self, id: &str, drive: &Drive) -> Self {
        self.slot(id)
            .arguments(drive.arguments())
            .arguments(["-device".to_owned(), drive.controller(id)])
    }

    /// An NVMe controller with a namespace on each of `drives`, from number 1 on.
    #[must_use]
    pub fn namespaces(mut self, id: &str, drives: &[Drive]) -> Self {
        self = self.slot(id).arguments([
            "-device".to_owned(),
            format!("nvme,id={id},serial={id},bus=slot-{id}"),
        ]);
        for (number, drive) in (1..).zip(drives) {
            let namespace = format!("nvme-ns,drive={},bus={id},nsid={number}", drive.node);
            self = self
                .arguments(drive.arguments())
                .arguments(["-device".to_owned(), namespace]);
        }
        self
    }

    /// A slot for the controller `id`.
    #[must_use]
    pub fn slot(self, id: &str) -> Self {
        let count = self
            .arguments
            .iter()
            .filter(|text| text.starts_with("pcie-root-port"))
            .count();
        let slot = format!("pcie-root-port,id=slot-{id},chassis={},bus=pcie.0", count + 1);
        self.arguments(["-device".to_owned(), slot])
    }

    /// A name for what distinguishes the files of its guest.
    pub fn kind(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.modules, &self.files, &self.programs).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

/// A disk image, and how QEMU treats it.
#[derive(Clone)]
pub struct Drive {
    /// The name of QEMU's node for it.
    pub node: String,
    /// The image.
    pub image: PathBuf,
    /// `raw`, or `qcow2`, which keeps much in QEMU's memory until it is flushed.
    pub format: &'static str,
    /// Whether the controller has a volatile write cache.
    pub write_cache: bool,
    /// Filters over the image, from below: QEMU options without `file` and `node-name`.
    pub filters: Vec<String>,
}

impl Drive {
    /// A new, sparse, raw image.
    pub fn create(node: &str, image: PathBuf, bytes: u64) -> Result<Self> {
        std::fs::File::create(&image)?.set_len(bytes)?;
        Ok(Self {
            node: node.to_owned(),
            image,
            format: "raw",
            write_cache: false,
            filters: Vec::new(),
        })
    }

    /// A new image whose map is in QEMU's memory until it is flushed: killed, it has a volatile write cache.
    pub fn create_volatile(node: &str, image: PathBuf, bytes: u64) -> Result<Self> {
        std::fs::write(&image, empty_qcow2(bytes)?)?;
        Ok(Self {
            node: node.to_owned(),
            image,
            format: "qcow2",
            write_cache: true,
            filters: Vec::new(),
        })
    }

    /// QEMU's nodes. Without `discard=unmap` on each of them QEMU drops Deallocate, and says all the same that what
    /// is deallocated reads as zeroes.
    pub fn arguments(&self) -> Vec<String> {
        let node = &self.node;
        let mut nodes = vec![
            format!("driver=file,filename={}", self.image.display()),
            format!("driver={}", self.format),
        ];
        nodes.extend(self.filters.iter().cloned());
        let last = nodes.len() - 1;
        let mut arguments = Vec::new();
        for (number, options) in nodes.into_iter().enumerate() {
            let name = if number == last {
                node.clone()
            } else {
                format!("{node}-{number}")
            };
            let beneath = match number {
                0 => String::new(),
                _ => format!(",file={node}-{}", number - 1),
            };
            arguments.push("-blockdev".to_owned());
            arguments.push(format!("{options}{beneath},node-name={name},discard=unmap"));
        }
        arguments
    }

    /// The controller's `-device`.
    pub fn controller(&self, id: &str) -> String {
        format!(
            "nvme,id={id},serial={id},drive={},bus=slot-{id},write-cache={}",
            self.node,
            if self.write_cache { "on" } else { "off" }
        )
    }
}

/// An empty image of up to 512 MiB in QEMU's own format (version 2): the header, a table of reference counts, a block
/// of them, and a map, a cluster each.
fn empty_qcow2(bytes: u64) -> Result<Vec<u8>> {
    const CLUSTER_BITS: u32 = 16;
    const CLUSTER: usize = 1 << CLUSTER_BITS;
    ensure!(
        bytes <= 512 << 20,
        "{bytes} bytes are more than this map has room for"
    );
    let mut image = vec![0; 4 * CLUSTER];
    let cluster = |number: u64| number << CLUSTER_BITS;
    let mut header = b"QFI\xfb".to_vec();
    header.extend(2_u32.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // not encrypted
    header.extend(1_u32.to_be_bytes()); // entries of the map
    header.extend(cluster(3).to_be_bytes());
    header.extend(cluster(1).to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of the table
    image[..header.len()].copy_from_slice(&header);
    image[CLUSTER..CLUSTER + 8].copy_from_slice(&cluster(2).to_be_bytes());
    for count in image[2 * CLUSTER..][..8].chunks_exact_mut(2) {
        count.copy_from_slice(&1_u16.to_be_bytes());
    }
    Ok(image)
}

/// A running machine. It is killed when it is given up.
pub struct Vm {
    qemu: Reaped,
    /// QEMU's control socket.
    pub qmp: Qmp,
    link: BufReader<UnixStream>,
    /// What has come of a line.
    partial: Vec<u8>,
    dir: PathBuf,
    job: Value,
    end: Instant,
}

impl Vm {
    /// Starts `machine` for the half of `part` that runs in it.
    pub fn start(
        files: &Files,
        machine: &Machine,
        initramfs: &Path,
        dir: PathBuf,
        part: &str,
        params: Value,
    ) -> Result<Self> {
        let socket = |name: &str| {
            let path = dir.join(name);
            Ok::<_, anyhow::Error>((UnixListener::bind(&path)?, path.display().to_string()))
        };
        let (link, link_path) = socket("link")?;
        let (qmp, qmp_path) = socket("qmp")?;
        let mut command = files.qemu();
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1"])
            .args(["-m", &machine.memory_mb.to_string()])
            .arg("-kernel")
            .arg(files.kernel())
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &format!("{COMMAND_LINE} {}", machine.command_line)])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", dir.join("console").display()))
            .args(["-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=link,path={link_path}")])
            .args(["-serial", "chardev:link"])
            .args(["-chardev", &format!("socket,id=qmp,path={qmp_path}")])
            .args(["-mon", "chardev=qmp,mode=control"])
            .args(&machine.arguments);
        let log = dir.join("qemu");
        let mut qemu = Reaped::spawn(&mut command, &log)?;
        let qmp = accept(&qmp, &mut qemu, &log)?;
        let link = accept(&link, &mut qemu, &log)?;
        Ok(Self {
            qemu,
            qmp: Qmp::new(qmp)?,
            link: BufReader::new(link),
            partial: Vec::new(),
            dir,
            job: json!({"part": part, "params": params, "hugepages": machine.hugepages}),
            end: Instant::now() + LIFE,
        })
    }

    /// What the guest says next.
    pub fn hear(&mut self) -> Result<Heard> {
        let end = self.end.min(Instant::now() + SILENCE);
        match self.hear_until(end)? {
            Some(heard) => Ok(heard),
            None => bail!("the guest says nothing any more{}", self.console()),
        }
    }

    /// What the guest says until then.
    pub fn hear_until(&mut self, end: Instant) -> Result<Option<Heard>> {
        loop {
            let Some(line) = self.line(end)? else {
                return Ok(None);
            };
            let Ok(heard) = serde_json::from_slice(&line) else {
                let line = String::from_utf8_lossy(&line).into_owned();
                bail!("the guest says {line:?}{}", self.console());
            };
            match heard {
                Heard::Ask { what, .. } if what == "job" => {
                    let job = self.job.clone();
                    self.answer(&job)?;
                }
                heard => return Ok(Some(heard)),
            }
        }
    }

    /// The next whole line, if it comes until then. What comes of one stays for later.
    fn line(&mut self, end: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.link.get_ref().set_read_timeout(Some(left))?;
            match self.link.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => return Ok(Some(std::mem::take(&mut self.partial))),
                Ok(_) => bail!("the machine has ended{}", self.console()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers what the guest has asked.
    pub fn answer(&mut self, value: &Value) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        Ok(self.link.get_mut().write_all(&line)?)
    }

    /// The last lines of the guest's console, for an error.
    fn console(&self) -> String {
        let console = tail(&self.dir.join("console"));
        format!(
            "; the last lines of its console ({}):\n{console}",
            self.dir.join("console").display()
        )
    }

    /// What QEMU itself has printed: its trace.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("qemu")).unwrap_or_default()
    }

    /// Ends the machine; QEMU writes to the images what it has in memory.
    pub fn quit(mut self) -> Result<()> {
        self.qmp.call("quit", json!({}))?;
        self.qemu
            .wait(Duration::from_secs(20))
            .context("QEMU does not quit")?;
        Ok(())
    }

    /// Cuts the power: QEMU is killed, and what it has in memory is lost. What the guest had said before.
    pub fn cut(mut self) -> Vec<Heard> {
        self.qemu.kill();
        let mut rest = std::mem::take(&mut self.partial);
        // The other end is closed; that it may be so with an error changes nothing.
        let _ = self.link.read_to_end(&mut rest);
        let lines = rest.split_inclusive(|byte| *byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line.strip_suffix(b"\n")?).ok())
            .collect()
    }
}

/// Waits until QEMU connects to a socket.
fn accept(socket: &UnixListener, qemu: &mut Reaped, log: &Path) -> Result<UnixStream> {
    socket.set_nonblocking(true)?;
    let end = Instant::now() + SILENCE;
    loop {
        match socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = qemu.ended()? {
            bail!("QEMU ended with {status}:\n{}", tail(log));
        }
        ensure!(Instant::now() < end, "QEMU does not start:\n{}", tail(log));
        std::thread::sleep(Duration::from_millis(5));
    }
}
