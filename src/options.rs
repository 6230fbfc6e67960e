//! The command line: SPDK's own options with their letters, long names, value syntax and defaults.
//!
//! [`parse`] ends in one of three: options that can be used, a text for standard output (help, version), or an
//! [`UsageError`] of at most two lines. It looks at nothing but its arguments.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser, ValueEnum};

use crate::values::{self, Cores};
use crate::version;

/// The socket that SPDK's tools look for when they are given none.
pub const DEFAULT_RPC_SOCKET: &str = "/var/tmp/spdk.sock";

/// The exit status for a command line that cannot be used: what C's spdk_tgt leaves with.
pub const USAGE_EXIT_CODE: u8 = 2;

/// What the target does otherwise than SPDK's own, for the end of `--help`.
const DIFFERENCES: &str = "\
Other than SPDK's C spdk_tgt:
  -c, --config takes the JSON configuration too (as later SPDK does); the INI form is refused.
  --no-huge runs without hugepages, and so without root.
  Words that are not options, and a zero or unknown memory size, are refused rather than passed over.
  -m, -p, -B, -W, -e and --iova-mode are checked before SPDK starts; repeated options: the last one counts.
  A configuration error names the method that failed; a second target on one RPC socket is refused.
  The RPC socket is created with mode 0600.
  Not in this build: iscsi, vhost (and its -S), ftl, pmem.";

/// An SPDK target with truthful lvol deletion.
#[derive(Parser, Debug, Clone, PartialEq, Eq)]
#[command(
    name = "spdk_tgt",
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true,
    after_help = DIFFERENCES,
    max_term_width = 100
)]
pub struct Options {
    /// JSON configuration file (the old INI form is refused)
    #[arg(
        short = 'c',
        long = "config",
        value_name = "config",
        allow_hyphen_values = true
    )]
    config: Option<PathBuf>,

    /// JSON configuration file
    #[arg(long = "json", value_name = "config", allow_hyphen_values = true)]
    json: Option<PathBuf>,

    /// Don't exit on an invalid configuration entry
    #[arg(long)]
    pub json_ignore_init_errors: bool,

    /// Do not set the core dump size limit
    #[arg(short = 'd', long)]
    pub limit_coredump: bool,

    /// Tracepoint group mask for SPDK's trace buffers, hexadecimal: bdev 0x8, nvmf_tcp 0x20, all 0xffff
    #[arg(short = 'e', long, value_name = "mask", value_parser = values::tpoint_mask, allow_hyphen_values = true)]
    pub tpoint_group_mask: Option<String>,

    /// Save the process id to this file
    #[arg(short = 'f', value_name = "file", allow_hyphen_values = true)]
    pub pid_file: Option<PathBuf>,

    /// Force creating just one hugetlbfs file
    #[arg(short = 'g', long)]
    pub single_file_segments: bool,

    /// Shared memory id
    #[arg(short = 'i', long, value_name = "id", value_parser = values::c_int, allow_hyphen_values = true)]
    pub shm_id: Option<i32>,

    /// Cores to run on: a hexadecimal mask, or a list such as [0,2-3]
    #[arg(
        short = 'm',
        long = "cpumask",
        value_name = "mask",
        default_value = "0x1",
        allow_hyphen_values = true
    )]
    pub cores: Cores,

    /// Number of memory channels
    #[arg(short = 'n', long, value_name = "num", value_parser = values::c_int, allow_hyphen_values = true)]
    pub mem_channels: Option<i32>,

    /// Master (primary) core
    #[arg(short = 'p', long, value_name = "id", value_parser = values::c_int, allow_hyphen_values = true)]
    pub master_core: Option<i32>,

    /// RPC listen address: the path of a UNIX domain socket
    #[arg(short = 'r', long, value_name = "path", default_value = DEFAULT_RPC_SOCKET, allow_hyphen_values = true)]
    pub rpc_socket: PathBuf,

    /// Memory to begin with in MB, or with the suffix K, M or G [default: as much as is needed; with --no-huge 512]
    #[arg(short = 's', long, value_name = "size", value_parser = values::memory_mb, allow_hyphen_values = true)]
    pub mem_size: Option<u32>,

    /// Disable PCI access
    #[arg(short = 'u', long)]
    pub no_pci: bool,

    /// Never use this PCI device (can be used more than once)
    #[arg(short = 'B', long, value_name = "bdf", value_parser = values::pci_address, action = ArgAction::Append,
          conflicts_with = "pci_whitelist", allow_hyphen_values = true)]
    pub pci_blacklist: Vec<String>,

    /// Use this PCI device only (can be used more than once; not with -B)
    #[arg(short = 'W', long, value_name = "bdf", value_parser = values::pci_address, action = ArgAction::Append,
          allow_hyphen_values = true)]
    pub pci_whitelist: Vec<String>,

    /// Enable a debug log flag (needs an SPDK configured with --enable-debug)
    #[arg(short = 'L', long, value_name = "flag", action = ArgAction::Append, allow_hyphen_values = true)]
    pub logflag: Vec<String>,

    /// Unlink huge files after initialization
    #[arg(short = 'R', long)]
    pub huge_unlink: bool,

    /// Disable notice level logging to standard error
    #[arg(long)]
    pub silence_noticelog: bool,

    /// Wait for RPCs to initialize subsystems
    #[arg(long)]
    pub wait_for_rpc: bool,

    /// Use a specific hugetlbfs mount to reserve memory from
    #[arg(long, value_name = "path", allow_hyphen_values = true)]
    pub huge_dir: Option<PathBuf>,

    /// Run without hugepages and without root: ordinary memory, virtual addresses, no PCI
    #[arg(long, conflicts_with_all = ["huge_dir", "huge_unlink", "single_file_segments"])]
    pub no_huge: bool,

    /// IOVA mode
    #[arg(long, value_name = "mode")]
    pub iova_mode: Option<IovaMode>,

    /// Base virtual address for DPDK
    #[arg(long, value_name = "addr", value_parser = values::base_virtaddr, default_value = "0x200000000000",
          allow_hyphen_values = true)]
    pub base_virtaddr: u64,

    /// Number of trace entries for each core, a power of two
    #[arg(long, value_name = "num", value_parser = values::trace_entries, default_value = "32768",
          allow_hyphen_values = true)]
    pub num_trace_entries: u64,

    /// Deprecated: has no effect
    #[arg(long, value_name = "num", allow_hyphen_values = true)]
    max_delay: Option<String>,

    /// Print the versions of spdk_tgt, SPDK and its patches
    #[arg(short = 'v', long, action = ArgAction::SetTrue)]
    version: bool,
}

/// How I/O addresses are chosen.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum IovaMode {
    /// Physical addresses.
    Pa,
    /// Virtual addresses.
    Va,
}

impl Options {
    /// The configuration file, by whichever of its two options it was named.
    pub fn config_file(&self) -> Option<&PathBuf> {
        self.config.as_ref().or(self.json.as_ref())
    }

    /// Whether `--max-delay` was given, which has no effect any more.
    pub fn has_max_delay(&self) -> bool {
        self.max_delay.is_some()
    }

    /// What the options forbid together, and one option's value in the light of another's.
    fn check(&self) -> Result<(), UsageError> {
        if self.config.is_some() && self.json.is_some() {
            return Err(UsageError::new(
                "-c and --json name the same configuration: give one",
            ));
        }
        if self.config_file().is_some() && self.wait_for_rpc {
            return Err(UsageError::new(
                "a JSON configuration can't be used together with --wait-for-rpc",
            ));
        }
        if let Some(master) = self.master_core {
            if !usize::try_from(master).is_ok_and(|core| self.cores.numbers().contains(&core)) {
                return Err(UsageError::new(format!(
                    "the master core {master} is not among the cores {}",
                    self.cores
                )));
            }
        }
        if self.no_huge && self.iova_mode == Some(IovaMode::Pa) {
            return Err(UsageError::new(
                "--no-huge has no physical addresses: use --iova-mode va",
            ));
        }
        if !self.logflag.is_empty() && !version::SPDK_DEBUG {
            return Err(UsageError::new(
                "the linked SPDK must be configured with --enable-debug for the -L flag",
            ));
        }
        Ok(())
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Run the target.
    Run(Box<Options>),
    /// Print this on standard output and leave.
    Print(String),
}

/// A command line that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    message: String,
}

impl UsageError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nTry 'spdk_tgt --help'.", self.message)
    }
}

impl std::error::Error for UsageError {}

/// Reads a command line, its first word being the program's name.
pub fn parse<I, T>(args: I) -> Result<Request, UsageError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Ok(Request::Print(error.to_string()));
        }
        Err(error) => return Err(UsageError::new(first_line(&error.to_string()))),
    };
    if options.version {
        return Ok(Request::Print(format!("{}\n", version::long())));
    }
    options.check()?;
    Ok(Request::Run(Box::new(options)))
}

/// clap's message without its marker, its tips and the usage text that follow it.
fn first_line(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Options {
        match parse(std::iter::once("spdk_tgt").chain(args.iter().copied())) {
            Ok(Request::Run(options)) => *options,
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    fn refused(args: &[&str]) -> String {
        match parse(std::iter::once("spdk_tgt").chain(args.iter().copied())) {
            Err(error) => error.to_string(),
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    #[test]
    fn defaults_are_spdks() {
        let options = run(&[]);
        assert_eq!(options.cores.as_spdk(), "0x1");
        assert_eq!(options.rpc_socket, PathBuf::from("/var/tmp/spdk.sock"));
        assert_eq!(options.base_virtaddr, 0x2000_0000_0000);
        assert_eq!(options.num_trace_entries, 32 * 1024);
        assert_eq!(options.mem_size, None);
        assert_eq!(options.shm_id, None);
        assert!(!options.no_pci && !options.no_huge && !options.wait_for_rpc);
    }

    #[test]
    fn letters_and_long_names_are_the_same_option() {
        let short = run(&[
            "-m", "[0,1]", "-s", "1G", "-r", "a.sock", "-u", "-i", "3", "-g", "-n", "4", "-p", "1", "-d",
            "-R", "-B", "1:2.3", "-e", "0xf", "-c", "x.json",
        ]);
        let long = run(&[
            "--cpumask",
            "[0,1]",
            "--mem-size=1024",
            "--rpc-socket",
            "a.sock",
            "--no-pci",
            "--shm-id=3",
            "--single-file-segments",
            "--mem-channels=4",
            "--master-core=1",
            "--limit-coredump",
            "--huge-unlink",
            "--pci-blacklist=0000:01:02.3",
            "--tpoint-group-mask=0xf",
            "--config=x.json",
        ]);
        assert_eq!(short, long);
        assert_eq!(short.mem_size, Some(1024));
        assert_eq!(short.cores.numbers(), [0, 1]);
    }

    #[test]
    fn attached_values_and_unique_prefixes_work_as_in_getopt() {
        assert_eq!(run(&["-s512"]).mem_size, Some(512));
        assert_eq!(run(&["-um0x3"]).cores.numbers(), [0, 1]);
        assert!(run(&["--silence"]).silence_noticelog);
        assert_eq!(run(&["--iova", "va"]).iova_mode, Some(IovaMode::Va));
    }

    #[test]
    fn the_last_of_a_repeated_option_counts_and_lists_grow() {
        assert_eq!(run(&["-s", "1", "-s", "2", "-u", "-u"]).mem_size, Some(2));
        assert_eq!(
            run(&["-W", "1:0", "-W", "2:0"]).pci_whitelist,
            ["0000:01:00.0", "0000:02:00.0"]
        );
    }

    #[test]
    fn config_and_json_are_two_names() {
        assert_eq!(
            run(&["--json", "a"]).config_file(),
            run(&["-c", "a"]).config_file()
        );
        assert!(refused(&["-c", "a", "--json", "b"]).contains("give one"));
        assert!(refused(&["--json", "a", "--wait-for-rpc"]).contains("--wait-for-rpc"));
        assert!(refused(&["-c", "a", "--wait-for-rpc"]).contains("--wait-for-rpc"));
    }

    #[test]
    fn every_refusal_is_two_lines_and_names_the_option() {
        for (args, named) in [
            (&["--frobnicate"][..], "--frobnicate"),
            (&["-Z"], "-Z"),
            (&["word"], "word"),
            (&["-m", "0xg"], "--cpumask"),
            (&["-m", "0"], "--cpumask"),
            (&["-s", "lots"], "--mem-size"),
            (&["-s"], "--mem-size"),
            (&["-i", "-1"], "--shm-id"),
            (&["-n", "x"], "--mem-channels"),
            (&["-p", "7"], "7"),
            (&["-B", "nope"], "--pci-blacklist"),
            (&["-B", "1:0", "-W", "2:0"], "--pci-whitelist"),
            (&["--iova-mode", "xx"], "--iova-mode"),
            (&["--num-trace-entries", "5"], "--num-trace-entries"),
            (&["--base-virtaddr", "0"], "--base-virtaddr"),
            (&["-e", "nvmf"], "--tpoint-group-mask"),
            (&["--no-huge", "--huge-dir", "x"], "--huge-dir"),
            (&["--no-huge", "--iova-mode", "pa"], "--iova-mode"),
        ] {
            let message = refused(args);
            assert_eq!(message.lines().count(), 2, "{message}");
            assert!(message.contains(named), "{args:?}: {message}");
        }
    }

    #[test]
    fn debug_flags_need_a_debug_spdk() {
        if !version::SPDK_DEBUG {
            assert!(refused(&["-L", "nvmf"]).contains("--enable-debug"));
        }
    }

    #[test]
    fn max_delay_is_taken_and_has_no_effect() {
        let options = run(&["--max-delay", "1000"]);
        assert!(options.has_max_delay());
    }

    #[test]
    fn help_and_version_go_to_standard_output() {
        for flag in ["-h", "--help"] {
            let Ok(Request::Print(text)) = parse(["spdk_tgt", flag]) else {
                panic!("{flag} did not print")
            };
            assert!(
                text.contains("--json-ignore-init-errors") && text.contains("Other than SPDK's C spdk_tgt")
            );
        }
        for flag in ["-v", "--version"] {
            let Ok(Request::Print(text)) = parse(["spdk_tgt", flag]) else {
                panic!("{flag} did not print")
            };
            assert!(text.contains("SPDK") && text.contains("patch level"), "{text}");
        }
    }
}
