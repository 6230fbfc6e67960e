//! The guest's files: this program as `init`, the target, their libraries, and kernel modules, in a cpio archive.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Files, Machine};

/// The target's place in the guest.
pub const TARGET: &str = "/bin/spdk_tgt";

/// An archive that is being put together: path in the guest, and contents (`None` is a folder).
pub struct Initramfs {
    entries: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Initramfs {
    /// The archive for a machine.
    pub fn of(files: &Files, machine: &Machine) -> Result<Self> {
        let mut this = Self {
            entries: BTreeMap::new(),
        };
        for dir in ["/dev", "/proc", "/sys", "/tmp", "/run", "/var/run", "/var/tmp"] {
            this.dir(Path::new(dir));
        }
        this.program(files, &std::env::current_exe()?, "/init")?;
        this.program(files, Path::new(env!("CARGO_BIN_EXE_spdk_tgt")), TARGET)?;
        // In the order in which they are to be loaded.
        let mut order = Vec::new();
        for module in &machine.modules {
            this.module(&files.modules(), module, &mut order)?;
        }
        this.file("/modules/order", order.join("\n").into_bytes());
        for (from, to) in &machine.files {
            let data = fs::read(from).with_context(|| from.display().to_string())?;
            this.file(to, data);
        }
        for (from, to) in &machine.programs {
            this.program(files, from, to)?;
        }
        Ok(this)
    }

    fn dir(&mut self, path: &Path) {
        for path in path.ancestors().filter(|path| path.parent().is_some()) {
            self.entries.entry(path.to_owned()).or_default();
        }
    }

    fn file(&mut self, path: impl AsRef<Path>, data: Vec<u8>) {
        let path = path.as_ref();
        self.dir(path.parent().unwrap_or(path));
        self.entries.insert(path.to_owned(), Some(data));
    }

    /// A program without what only debuggers read, and the libraries that it is linked with.
    fn program(&mut self, files: &Files, from: &Path, to: &str) -> Result<()> {
        self.file(to, stripped(from)?);
        for library in libraries(files, from)? {
            let to = files.installed(&library);
            if !self.entries.contains_key(&to) {
                let data = fs::read(&library).with_context(|| library.display().to_string())?;
                self.file(&to, data);
            }
        }
        Ok(())
    }

    /// A kernel module, after those that it depends on.
    fn module(&mut self, modules: &Path, name: &str, order: &mut Vec<String>) -> Result<()> {
        if order.iter().any(|other| other == name) {
            return Ok(());
        }
        let path = find(modules, name)?;
        let path =
            path.with_context(|| format!("the kernel has no module {name} below {}", modules.display()))?;
        let data = fs::read(&path)?;
        for other in dependencies(&data) {
            self.module(modules, &other, order)?;
        }
        self.file(format!("/modules/{name}.ko"), data);
        order.push(name.to_owned());
        Ok(())
    }

    /// Writes the archive.
    pub fn write(&self, to: &Path) -> Result<()> {
        let mut out = std::io::BufWriter::new(fs::File::create(to)?);
        for (number, (path, data)) in self.entries.iter().enumerate() {
            let name = path.strip_prefix("/")?.as_os_str();
            entry(&mut out, number + 1, name, data.as_deref())?;
        }
        entry(&mut out, 0, OsStr::new("TRAILER!!!"), Some(b""))?;
        Ok(out.flush()?)
    }
}

/// One entry of the "new ASCII" format, which the kernel reads.
fn entry(out: &mut impl Write, inode: usize, name: &OsStr, data: Option<&[u8]>) -> Result<()> {
    let mode = if data.is_some() { 0o100_755 } else { 0o040_755 };
    let data = data.unwrap_or_default();
    let length = name.len() + 1;
    let fields = [inode, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, length, 0];
    let mut head = b"070701".to_vec();
    for field in fields {
        head.extend_from_slice(format!("{:08x}", u32::try_from(field)?).as_bytes());
    }
    head.extend_from_slice(name.as_bytes());
    head.push(0);
    for part in [head.as_slice(), data] {
        out.write_all(part)?;
        out.write_all(&[0; 3][..part.len().wrapping_neg() % 4])?;
    }
    Ok(())
}

fn stripped(from: &Path) -> Result<Vec<u8>> {
    let to = tempfile_for(from);
    let done = Command::new("strip").arg("-o").arg(&to).arg(from).status();
    let data = match done {
        Ok(status) if status.success() => fs::read(&to),
        _ => fs::read(from),
    };
    let _ = fs::remove_file(&to);
    data.with_context(|| from.display().to_string())
}

fn tempfile_for(from: &Path) -> PathBuf {
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    std::env::temp_dir().join(format!("{name}.{}.stripped", std::process::id()))
}

/// The libraries of a program, as the loader finds them, and the loader.
fn libraries(files: &Files, program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LD_LIBRARY_PATH", files.libraries())
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "ldd {}: {text}", program.display());
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}: {}", program.display(), line.trim());
        }
        let place = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(place.map(PathBuf::from));
        // pthread_cancel and pthread_exit load this one when they are first called.
        if let Some(libc) = place.filter(|place| place.ends_with("/libc.so.6")) {
            let unwinder = Path::new(libc).with_file_name("libgcc_s.so.1");
            found.extend(unwinder.exists().then_some(unwinder));
        }
    }
    Ok(found)
}

/// A module's file, wherever it is below `dir`. In names `-` and `_` are the same.
fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let plain = |text: &str| text.replace('-', "_");
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.extension() == Some(OsStr::new("ko"))
            && path.file_stem().and_then(OsStr::to_str).map(plain) == Some(plain(name))
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The modules that a module says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next();
    let text = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    text.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
