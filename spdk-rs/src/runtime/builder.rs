//! The options of a runtime, and their checks.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use super::Runtime;
use super::config::Config;
use super::idle::Idle;
use crate::env::memory::{self, Source};
use crate::env::{cores, hugepages};
use crate::{Error, ErrorKind, Result};

pub(super) const WHAT: &str = "configure SPDK";

/// What SPDK prints on standard error. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// Warnings; the default.
    Warn,
    /// What SPDK's own programs print.
    Notice,
    /// More.
    Info,
    /// Everything that the [flags](Builder::log_flag) select; needs an SPDK built for debugging.
    Debug,
}

/// How DMA addresses are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IovaMode {
    /// Physical addresses; needs root.
    Physical,
    /// Virtual addresses, through an IOMMU if there are devices at all.
    Virtual,
}

/// Collects the options of a [`Runtime`]; made by [`Runtime::builder`].
///
/// Where nothing else is said, an option that is not given leaves SPDK its own default.
#[derive(Clone, Debug)]
#[must_use = "options take effect with build() and Runtime::run()"]
pub struct Builder {
    pub(super) name: String,
    pub(super) core_mask: String,
    pub(super) main_core: Option<u32>,
    pub(super) idle: Idle,
    pub(super) memory_mb: Option<u32>,
    pub(super) no_huge: bool,
    pub(super) huge_dir: Option<PathBuf>,
    pub(super) huge_unlink: bool,
    pub(super) single_file_segments: bool,
    pub(super) no_pci: bool,
    pub(super) pci_allow: Vec<String>,
    pub(super) pci_block: Vec<String>,
    pub(super) shm_id: Option<u32>,
    pub(super) mem_channels: Option<u32>,
    pub(super) iova_mode: Option<IovaMode>,
    pub(super) base_virtaddr: Option<u64>,
    pub(super) rpc_socket: Option<String>,
    pub(super) json_config: Option<Config>,
    pub(super) json_ignore_init_errors: bool,
    pub(super) wait_for_rpc: bool,
    pub(super) log_level: LogLevel,
    pub(super) log_flags: Vec<String>,
    pub(super) trace_entries: u64,
    pub(super) tpoint_mask: Option<String>,
    pub(super) core_dump: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: "spdk-rs".to_owned(),
            core_mask: "0x1".to_owned(),
            main_core: None,
            idle: Idle::Spin,
            memory_mb: None,
            no_huge: false,
            huge_dir: None,
            huge_unlink: false,
            single_file_segments: false,
            no_pci: false,
            pci_allow: Vec::new(),
            pci_block: Vec::new(),
            shm_id: None,
            mem_channels: None,
            iova_mode: None,
            base_virtaddr: None,
            rpc_socket: None,
            json_config: None,
            json_ignore_init_errors: false,
            wait_for_rpc: false,
            log_level: LogLevel::Warn,
            log_flags: Vec::new(),
            trace_entries: 0,
            tpoint_mask: None,
            core_dump: false,
        }
    }
}

impl Builder {
    /// The program's name, as DPDK and the trace file use it. Default: `spdk-rs`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The cores that get a reactor: a hexadecimal mask (`0x3`) or a list (`[0,2-3]`). Default:
    /// core 0.
    pub fn core_mask(mut self, mask: impl Into<String>) -> Self {
        self.core_mask = mask.into();
        self
    }

    /// The core of the calling thread's reactor. Default: the lowest of the mask.
    pub fn main_core(mut self, core: u32) -> Self {
        self.main_core = Some(core);
        self
    }

    /// What the reactors do when there is nothing to do. Default: they [spin](Idle::Spin).
    ///
    /// ```
    /// # use spdk_rs::{Runtime, runtime::Idle};
    /// let options = Runtime::builder().idle(Idle::sleep());
    /// ```
    pub fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// Memory in MiB: with huge pages what SPDK begins with (it takes more as it needs it), else
    /// all that it gets. Default: none to begin with; 512 without huge pages.
    pub fn memory_mb(mut self, mb: u32) -> Self {
        self.memory_mb = Some(mb);
        self
    }

    /// Runs without huge pages, which also needs no root. PCI devices cannot be used then: this
    /// implies [`no_pci`](Self::no_pci) and virtual addresses.
    pub fn no_huge(mut self, no_huge: bool) -> Self {
        self.no_huge = no_huge;
        self
    }

    /// The hugetlbfs mount to take huge pages from.
    pub fn huge_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.huge_dir = Some(dir.into());
        self
    }

    /// Removes the huge pages' files as soon as they are mapped.
    pub fn huge_unlink(mut self, unlink: bool) -> Self {
        self.huge_unlink = unlink;
        self
    }

    /// One hugetlbfs file for each segment instead of one for each page.
    pub fn single_file_segments(mut self, single: bool) -> Self {
        self.single_file_segments = single;
        self
    }

    /// Leaves PCI devices alone.
    pub fn no_pci(mut self, no_pci: bool) -> Self {
        self.no_pci = no_pci;
        self
    }

    /// Lets SPDK use this PCI device (`0000:01:00.0`) and no other one that is not allowed too.
    pub fn pci_allow(mut self, address: impl Into<String>) -> Self {
        self.pci_allow.push(address.into());
        self
    }

    /// Keeps SPDK from this PCI device. Not together with [`pci_allow`](Self::pci_allow).
    pub fn pci_block(mut self, address: impl Into<String>) -> Self {
        self.pci_block.push(address.into());
        self
    }

    /// Shares DPDK's memory with other processes under this number. Default: shared with none.
    pub fn shm_id(mut self, id: u32) -> Self {
        self.shm_id = Some(id);
        self
    }

    /// The number of memory channels.
    pub fn mem_channels(mut self, channels: u32) -> Self {
        self.mem_channels = Some(channels);
        self
    }

    /// How DMA addresses are made.
    pub fn iova_mode(mut self, mode: IovaMode) -> Self {
        self.iova_mode = Some(mode);
        self
    }

    /// Where DPDK tries to map its memory.
    pub fn base_virtaddr(mut self, address: u64) -> Self {
        self.base_virtaddr = Some(address);
        self
    }

    /// Serves SPDK's JSON-RPC: the path of a UNIX socket to create, up to 107 bytes long.
    /// Default: not served.
    pub fn rpc_socket(mut self, path: impl Into<String>) -> Self {
        self.rpc_socket = Some(path.into());
        self
    }

    /// A file with the JSON configuration to load before the first task runs.
    pub fn json_config(mut self, path: impl Into<PathBuf>) -> Self {
        self.json_config = Some(Config::File(path.into()));
        self
    }

    /// The JSON configuration to load before the first task runs, itself.
    ///
    /// ```no_run
    /// # let runtime = spdk_rs::Runtime::builder();
    /// let runtime = runtime.json_config_text(
    ///     r#"{"subsystems": [{"subsystem": "bdev", "config": [
    ///         {"method": "bdev_null_create",
    ///          "params": {"name": "null0", "num_blocks": 4096, "block_size": 512}}]}]}"#,
    /// );
    /// ```
    pub fn json_config_text(mut self, text: impl Into<String>) -> Self {
        self.json_config = Some(Config::Text(text.into()));
        self
    }

    /// Starts even if parts of the JSON configuration fail.
    pub fn json_ignore_init_errors(mut self, ignore: bool) -> Self {
        self.json_ignore_init_errors = ignore;
        self
    }

    /// Serves RPCs before SPDK's subsystems are initialised, and goes on (to the first task)
    /// when the RPC `framework_start_init` says so. Needs [`rpc_socket`](Self::rpc_socket); has
    /// no effect with [`json_config`](Self::json_config).
    pub fn wait_for_rpc(mut self, wait: bool) -> Self {
        self.wait_for_rpc = wait;
        self
    }

    /// What SPDK prints on standard error. Default: [`LogLevel::Warn`].
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.log_level = level;
        self
    }

    /// Switches a debug log flag on (`all`, `bdev`, `nvmf` …).
    pub fn log_flag(mut self, flag: impl Into<String>) -> Self {
        self.log_flags.push(flag.into());
        self
    }

    /// Entries of the trace buffer for each core: 0 or a power of two. Default: 0, no trace.
    /// (SPDK's programs use 32768.)
    pub fn trace_entries(mut self, entries: u64) -> Self {
        self.trace_entries = entries;
        self
    }

    /// The trace point groups to record, a hexadecimal mask.
    pub fn tpoint_mask(mut self, mask: impl Into<String>) -> Self {
        self.tpoint_mask = Some(mask.into());
        self
    }

    /// Lets the process write core dumps of up to 5 GiB, as SPDK's programs do. Default: the
    /// process's limit stays as it is.
    pub fn core_dump(mut self, enable: bool) -> Self {
        self.core_dump = enable;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// One that names the option and says what is wrong with it: a malformed mask, a core that
    /// does not exist, no memory or more than there is, a configuration that cannot be read, and
    /// so on; or that the SPDK linked in is not the one that this was compiled for. Nothing was started, and another attempt may follow.
    pub fn build(self) -> Result<Runtime> {
        // Before any other call into it: does it have what the bindings say?
        spdk_sys::check().map_err(|wrong| {
            Error::new(ErrorKind::StartFailed, WHAT, "the linked SPDK", wrong.to_string())
        })?;
        self.check_name()?;
        let cores = cores::check(&self.core_mask)?;
        if let Some(core) = self.main_core.filter(|core| !cores.contains(core)) {
            let why = format!("is not in the core mask {}", self.core_mask);
            return Err(invalid(format!("main core {core}"), why));
        }
        self.idle.check()?;
        self.check_huge_dir()?;
        memory::check(self.memory_mb, self.memory_source())?;
        self.check_pci()?;
        self.check_numbers()?;
        self.check_rpc()?;
        if let Some(config) = &self.json_config {
            config.check()?;
        }
        for text in self.texts() {
            if text.contains('\0') {
                return Err(invalid(text.replace('\0', "\\0"), "contains a NUL"));
            }
        }
        Ok(Runtime::new(self))
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let config = self.json_config.as_ref().and_then(Config::file);
        let paths = [self.huge_dir.as_deref(), config];
        let paths = paths.into_iter().flatten().filter_map(|path| path.to_str());
        let lists = [&self.pci_allow, &self.pci_block, &self.log_flags];
        let lists = lists.into_iter().flatten().map(String::as_str);
        let rpc = self.rpc_socket.as_deref();
        paths.chain(lists).chain(rpc)
    }

    fn check_name(&self) -> Result<()> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(fine) {
            return Err(invalid(
                format!("name '{}'", self.name),
                "must be 1 to 32 letters, digits, '-', '_' or '.'",
            ));
        }
        Ok(())
    }

    fn check_pci(&self) -> Result<()> {
        if !self.pci_allow.is_empty() && !self.pci_block.is_empty() {
            return Err(invalid(
                "PCI devices",
                "either some are allowed or some are blocked, not both",
            ));
        }
        if self.no_huge && !self.pci_allow.is_empty() {
            return Err(invalid("PCI devices", "cannot be used without huge pages"));
        }
        for address in self.pci_allow.iter().chain(&self.pci_block) {
            super::options::parse_pci(address)?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        if self.trace_entries != 0 && !self.trace_entries.is_power_of_two() {
            return Err(invalid(
                format!("{} trace entries", self.trace_entries),
                "must be a power of two, or 0 for no trace",
            ));
        }
        if let Some(mask) = &self.tpoint_mask {
            let digits = mask.strip_prefix("0x").unwrap_or(mask);
            if u64::from_str_radix(digits, 16).is_err() || digits.starts_with('+') {
                return Err(invalid(
                    format!("trace point mask '{mask}'"),
                    "must be a hexadecimal number",
                ));
            }
        }
        if let Some(id) = self.shm_id.filter(|id| i32::try_from(*id).is_err()) {
            return Err(invalid(format!("shared memory id {id}"), "is too large"));
        }
        // DPDK's EAL refuses more (eal_common_options.c) with a page of usage.
        if let Some(n) = self.mem_channels.filter(|n| !(1..=32).contains(n)) {
            return Err(invalid(format!("{n} memory channels"), "must be 1 to 32"));
        }
        Ok(())
    }

    fn check_rpc(&self) -> Result<()> {
        const SUN_PATH: usize = 108;
        let Some(path) = &self.rpc_socket else {
            if self.wait_for_rpc && self.json_config.is_none() {
                return Err(invalid(
                    "waiting for RPC",
                    "needs an RPC socket: nothing else could end the wait",
                ));
            }
            return Ok(());
        };
        let name = || format!("RPC socket {path}");
        // While SPDK loads a configuration, it serves another socket, whose name is longer.
        let suffix = self.json_config.as_ref().map_or("", |_| ".4194304_config");
        // One byte is for the NUL.
        if path.len() + suffix.len() >= SUN_PATH {
            return Err(invalid(name(), "is too long for a socket's path"));
        }
        match Path::new(path).parent() {
            Some(dir) if dir.as_os_str().is_empty() || dir.is_dir() => Ok(()),
            _ => Err(invalid(name(), "lies in a directory that does not exist")),
        }
    }

    fn memory_source(&self) -> Source<'_> {
        if self.no_huge {
            return Source::Ordinary;
        }
        Source::Huge {
            dir: self.huge_dir.as_deref(),
            shm_id: self.shm_id,
        }
    }

    fn check_huge_dir(&self) -> Result<()> {
        let Some(dir) = &self.huge_dir else {
            return Ok(());
        };
        let why = match hugepages::is_hugetlbfs(dir) {
            Ok(true) => return Ok(()),
            Ok(false) => "is not a hugetlbfs mount".to_owned(),
            Err(error) => format!("is not a hugetlbfs mount: {error}"),
        };
        Err(invalid(format!("huge page directory {}", show(dir)), why))
    }
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn invalid(option: impl Into<String>, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, WHAT, option, why)
}

/// A text for C. NULs were refused by `build`.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| invalid("an option", "contains a NUL"))
}
