//! The half in the guest: the kernel's host, a file system, fio, and a reader of the backup.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{ALLOWED, NQN, STRANGER};
use crate::guest::{self, mounts};
use crate::vm::Link;

const PLACE: &str = "/mnt";
const BACKUP_PLACE: &str = "/backup";
const MIB: usize = 1 << 20;

pub fn in_guest(link: &Link, params: &Value) -> Result<()> {
    let host = Host {
        address: guest::network()?,
        port: params["port"].to_string(),
    };
    let refused = host.connect(STRANGER);
    link.check(refused.is_err(), "a host that is not allowed is refused")?;
    let log = guest::kernel_log()?;
    link.check(
        log.contains(&format!("not allowed, hostnqn: {STRANGER}")),
        "and its kernel knows why",
    )?;

    host.connect(ALLOWED)?;
    let volume = device(&params["volume"])?;
    let version = guest::run(&["/bin/nvme", "version"])?;
    let version = version.lines().next().unwrap_or_default();
    link.note(format_args!("connected by {version}: {volume}"))?;
    let before = Seen::now(link)?;
    guest::run(&["/bin/mkfs.ext4", "-q", &volume])?;
    mounts::mount("ext4", &volume, PLACE, 0, "")?;
    let known = format!("{PLACE}/known");
    fs::write(&known, data())?;
    let fio = Fio::start()?;

    mounts::freeze(PLACE, true)?;
    let backup = link.ask("snapshot", json!({}));
    mounts::freeze(PLACE, false)?;
    let backup = device(&backup?)?;
    mounts::mount("ext4", &backup, BACKUP_PLACE, libc::MS_RDONLY, "noload")?;
    let in_backup = fs::read(format!("{BACKUP_PLACE}/known"))?;
    link.check(
        in_backup == data(),
        format_args!("{backup}: the file of the volume is in the backup"),
    )?;
    mounts::unmount(BACKUP_PLACE, 0)?;
    let reader = Reader::start(&backup)?;

    let deletes = link.ask("refuse", json!({}))?;
    link.same("deletes that were refused", &deletes["refused"], &deletes["of"])?;
    let seconds = deletes["seconds"].as_f64().unwrap_or_default();
    link.note(format_args!("they took {seconds:.1} s"))?;
    let reads = reader.end()?;
    link.check(
        reads > 0,
        format_args!("reads of the backup meanwhile, each as it was before: {reads}"),
    )?;
    link.same("the backup's device is there", Path::new(&backup).exists(), true)?;
    let namespaces = link.ask("namespaces", json!({}))?;
    link.same("namespaces that the target has", namespaces, 2)?;

    let granted = link.ask("grant", json!({}))?;
    link.same("one more delete is granted", granted, true)?;
    guest::wait_for("the end of the backup's device", || {
        (!Path::new(&backup).exists()).then_some(())
    })?;
    link.check(true, format_args!("{backup} is gone"))?;
    let namespaces = link.ask("namespaces", json!({}))?;
    link.same("namespaces that the target has", namespaces, 1)?;
    fio.end(link)?;
    mounts::unmount(PLACE, 0)?;
    mounts::mount("ext4", &volume, PLACE, 0, "")?;
    link.check(fs::read(&known)? == data(), "the file on the volume is as it was")?;
    mounts::unmount(PLACE, 0)?;
    let checked = guest::run(&["/bin/e2fsck", "-fn", &volume])?;
    link.check(
        true,
        format_args!(
            "e2fsck is content: {}",
            checked
                .lines()
                .find(|line| line.contains("files"))
                .unwrap_or(&checked)
        ),
    )?;
    before.compare(link)?;
    guest::run(&["/bin/nvme", "disconnect", "-n", NQN])?;
    link.same(
        "the volume's device when it is disconnected",
        Path::new(&volume).exists(),
        false,
    )
}

/// Where the target is.
struct Host {
    address: String,
    port: String,
}

impl Host {
    fn connect(&self, name: &str) -> Result<String> {
        let id = name.rsplit(':').next().unwrap_or_default();
        let mut words = vec![
            "/bin/nvme",
            "connect",
            "-t",
            "tcp",
            "-a",
            &self.address,
            "-s",
            &self.port,
        ];
        words.extend(["-n", NQN, "--hostnqn", name, "--hostid", id]);
        guest::run(&words)
    }
}

/// The block device with that UUID, when the kernel has made it.
fn device(uuid: &Value) -> Result<String> {
    let uuid = uuid.as_str().context("a UUID")?;
    guest::wait_for(&format!("namespace {uuid}"), || {
        let mut names = fs::read_dir("/sys/class/block")
            .ok()?
            .flatten()
            .map(|entry| entry.path());
        let path = names.find(|path| {
            let its = fs::read_to_string(path.join("uuid")).unwrap_or_default();
            its.trim() == uuid
                && Path::new("/dev")
                    .join(path.file_name().unwrap_or_default())
                    .exists()
        })?;
        Some(format!("/dev/{}", path.file_name()?.to_str()?))
    })
}

/// Known data, different in each sector.
fn data() -> Vec<u8> {
    (0..16 * MIB as u32).map(|at| (at / 512 * 7 + at) as u8).collect()
}

/// What the kernel and the target have seen so far.
struct Seen {
    log: usize,
    connections: Value,
}

impl Seen {
    fn now(link: &Link) -> Result<Self> {
        Ok(Self {
            log: guest::kernel_log()?.len(),
            connections: link.ask("connections", json!({}))?,
        })
    }

    /// That the host has met no error since, and has not connected anew.
    fn compare(self, link: &Link) -> Result<()> {
        let now = Self::now(link)?;
        link.same(
            "connections ever made (admin, I/O)",
            now.connections,
            self.connections,
        )?;
        let log = guest::kernel_log()?;
        let new = &log[self.log..];
        let bad = [
            "error",
            "fail",
            "reset",
            "reconnect",
            "timeout",
            "timed out",
            "critical",
            "lost",
            "abort",
            "warning",
        ];
        let found: Vec<&str> = new
            .lines()
            .filter(|line| bad.iter().any(|word| line.to_lowercase().contains(word)))
            .collect();
        link.check(
            found.is_empty(),
            format_args!(
                "the kernel's log of {} lines has no error, no reset, no reconnect: {found:?}",
                new.lines().count()
            ),
        )
    }
}

/// fio, which writes to a file and verifies what it has written, until it is told to end.
struct Fio(Child);

impl Fio {
    const JOB: &str = "/tmp/fio.json";

    fn start() -> Result<Self> {
        let child = Command::new("/bin/fio")
            .args([
                "--name=verified",
                "--directory",
                PLACE,
                "--size=16m",
                "--rw=randwrite",
                "--bsrange=4k-64k",
            ])
            .args([
                "--ioengine=libaio",
                "--direct=1",
                "--iodepth=8",
                "--verify=crc32c",
                "--verify_fatal=1",
            ])
            .args([
                "--verify_backlog=32",
                "--time_based",
                "--runtime=600",
                "--end_fsync=1",
            ])
            .args(["--output-format=json", "--output", Self::JOB])
            .stdin(Stdio::null())
            .spawn()
            .context("fio")?;
        Ok(Self(child))
    }

    fn end(mut self, link: &Link) -> Result<()> {
        ensure!(
            self.0.try_wait()?.is_none(),
            "fio ended by itself: {}",
            fs::read_to_string(Self::JOB)?
        );
        // SAFETY: kill only takes numbers; the child is not reaped yet.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        let status = self.0.wait()?;
        let text = fs::read_to_string(Self::JOB)?;
        let from = text.find('{').context("fio said nothing")?;
        let said: Value = serde_json::from_str(&text[from..]).with_context(|| text.clone())?;
        let job = &said["jobs"][0];
        // So it ends when it is interrupted.
        link.same("fio's exit status", status, "exit status: 128")?;
        link.same("fio's error", &job["error"], 0)?;
        let (written, read) = (&job["write"]["total_ios"], &job["read"]["total_ios"]);
        link.check(
            written.as_u64() > Some(0) && read.as_u64() > Some(0),
            format_args!("fio's writes: {written}; reads that verified them: {read}"),
        )
    }
}

/// Reads a device again and again, past the page cache.
struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Reader {
    fn start(device: &str) -> Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(device)?;
        let mut pieces = Pieces::new();
        let mut first = Vec::new();
        for number in 0..Pieces::COUNT {
            first.push(pieces.read(&file, number)?);
        }
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), reads.clone());
        let thread = thread::spawn(move || {
            for number in (0..Pieces::COUNT).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let now = pieces.read(&file, number)?;
                ensure!(now == first[number], "piece {number} of the backup has changed");
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, reads, thread })
    }

    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| anyhow!("the reader panicked"))?;
        ended.context("the reader of the backup")?;
        Ok(self.reads.load(Ordering::Relaxed))
    }
}

/// Pieces of a device, and memory for one.
struct Pieces(Vec<u8>);

impl Pieces {
    const SIZE: usize = 256 << 10;
    /// Those of the first 32 MiB.
    const COUNT: usize = 128;

    fn new() -> Self {
        Self(vec![0; Self::SIZE + 4096])
    }

    /// The hash of a piece.
    fn read(&mut self, file: &File, number: usize) -> Result<u64> {
        let from = self.0.as_ptr().align_offset(4096);
        let piece = &mut self.0[from..from + Self::SIZE];
        file.read_exact_at(piece, (number * Self::SIZE) as u64)?;
        let mut hasher = DefaultHasher::new();
        piece.hash(&mut hasher);
        Ok(hasher.finish())
    }
}
