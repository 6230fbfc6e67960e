//! The builder's options as SPDK's `struct spdk_app_opts`.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use spdk_sys::{spdk_app_opts, spdk_pci_addr};

use super::builder::{Builder, IovaMode, LogLevel, c_string, invalid};
use crate::Result;
use crate::env::memory::DEFAULT_NO_HUGE_MB;

/// `struct spdk_app_opts` and the texts that it points to. SPDK keeps pointers to some of them
/// (socket, configuration) until it has stopped.
pub(super) struct Options {
    raw: spdk_app_opts,
    _texts: Vec<CString>,
    _config_file: Option<File>,
}

impl Options {
    pub(super) fn new(builder: &Builder) -> Result<Self> {
        // SAFETY: all-zero is a valid value of this plain C struct; opts_init then sets it up.
        let mut raw = unsafe {
            let mut raw: spdk_app_opts = std::mem::zeroed();
            spdk_sys::spdk_app_opts_init(&mut raw);
            raw
        };
        let mut texts = Vec::new();
        let mut keep = |text: CString| {
            let ptr = text.as_ptr(); // the heap part of a CString stays where it is
            texts.push(text);
            ptr
        };
        let c_path = |path: &Path| c_string(path.as_os_str().as_bytes());
        raw.name = keep(c_string(builder.name.as_str())?);
        raw.reactor_mask = keep(c_string(builder.core_mask.as_str())?);
        raw.rpc_addr = match &builder.rpc_socket {
            Some(address) => keep(c_string(address.as_str())?),
            None => std::ptr::null(),
        };
        let mut config_file = None;
        if let Some(config) = &builder.json_config {
            let (path, file) = config.path()?;
            raw.json_config_file = keep(c_path(&path)?);
            config_file = file;
        }
        raw.json_config_ignore_errors = builder.json_ignore_init_errors;
        raw.delay_subsystem_init = builder.wait_for_rpc;
        if let Some(dir) = &builder.huge_dir {
            raw.hugedir = keep(c_path(dir)?);
        }
        if let Some(mask) = &builder.tpoint_mask {
            raw.tpoint_group_mask = keep(c_string(mask.as_str())?);
        }
        let iova_mode = builder.iova_mode.or(builder.no_huge.then_some(IovaMode::Virtual));
        raw.iova_mode = match iova_mode {
            Some(IovaMode::Physical) => c"pa".as_ptr(),
            Some(IovaMode::Virtual) => c"va".as_ptr(),
            None => std::ptr::null(),
        };
        if builder.no_huge {
            raw.env_context = c"--no-huge".as_ptr().cast_mut().cast();
        }
        let memory_mb = builder
            .memory_mb
            .or(builder.no_huge.then_some(DEFAULT_NO_HUGE_MB));
        raw.mem_size = number(memory_mb, raw.mem_size);
        raw.master_core = number(builder.main_core, raw.master_core);
        raw.mem_channel = number(builder.mem_channels, raw.mem_channel);
        raw.shm_id = number(builder.shm_id, raw.shm_id);
        if let Some(address) = builder.base_virtaddr {
            raw.base_virtaddr = address;
        }
        raw.no_pci = builder.no_pci || builder.no_huge;
        raw.hugepage_single_segments = builder.single_file_segments;
        raw.unlink_hugepage = builder.huge_unlink;
        raw.print_level = level(builder.log_level);
        raw.num_entries = builder.trace_entries;
        raw.enable_coredump = builder.core_dump;
        for flag in &builder.log_flags {
            set_log_flag(flag)?;
        }
        let (list, addresses) = if builder.pci_block.is_empty() {
            (&mut raw.pci_whitelist, &builder.pci_allow)
        } else {
            (&mut raw.pci_blacklist, &builder.pci_block)
        };
        if !addresses.is_empty() && !raw.no_pci {
            raw.num_pci_addr = addresses.len();
            *list = pci_list(addresses)?;
        }
        Ok(Self {
            raw,
            _texts: texts,
            _config_file: config_file,
        })
    }

    pub(super) fn as_mut(&mut self) -> &mut spdk_app_opts {
        &mut self.raw
    }
}

fn number(value: Option<u32>, default: i32) -> i32 {
    // `build` has refused what does not fit.
    value
        .and_then(|value| i32::try_from(value).ok())
        .unwrap_or(default)
}

pub(super) fn level(level: LogLevel) -> spdk_sys::spdk_log_level {
    match level {
        LogLevel::Off => spdk_sys::SPDK_LOG_DISABLED,
        LogLevel::Error => spdk_sys::SPDK_LOG_ERROR,
        LogLevel::Warn => spdk_sys::SPDK_LOG_WARN,
        LogLevel::Notice => spdk_sys::SPDK_LOG_NOTICE,
        LogLevel::Info => spdk_sys::SPDK_LOG_INFO,
        LogLevel::Debug => spdk_sys::SPDK_LOG_DEBUG,
    }
}

fn set_log_flag(flag: &str) -> Result<()> {
    let c_flag = c_string(flag)?;
    // SAFETY: the flags are registered by constructors, before main; the name is read only.
    let rc = unsafe { spdk_sys::spdk_log_set_flag(c_flag.as_ptr()) };
    if rc != 0 {
        return Err(invalid(format!("log flag '{flag}'"), "is unknown to SPDK"));
    }
    Ok(())
}

/// Parses a PCI address.
pub(super) fn parse_pci(address: &str) -> Result<spdk_pci_addr> {
    let c_address = c_string(address)?;
    // SAFETY: a plain C struct, for which zero is valid; parse writes it and reads the text.
    unsafe {
        let mut parsed: spdk_pci_addr = std::mem::zeroed();
        match spdk_sys::spdk_pci_addr_parse(&mut parsed, c_address.as_ptr()) {
            0 => Ok(parsed),
            _ => Err(invalid(
                format!("PCI address '{address}'"),
                "is not of the form 0000:01:00.0",
            )),
        }
    }
}

/// PCI addresses as Linux writes them.
#[cfg(feature = "nvme")]
pub(super) fn pci_addresses(addresses: &[String]) -> Result<Vec<String>> {
    let written = |address: &String| {
        let spdk_pci_addr {
            domain,
            bus,
            dev,
            func,
        } = parse_pci(address)?;
        Ok(format!("{domain:04x}:{bus:02x}:{dev:02x}.{func}"))
    };
    addresses.iter().map(written).collect()
}

/// A list that SPDK frees with `free`.
fn pci_list(addresses: &[String]) -> Result<*mut spdk_pci_addr> {
    let parsed = addresses
        .iter()
        .map(|address| parse_pci(address))
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: calloc checks the product; the copy stays within both lists.
    unsafe {
        let list = libc::calloc(parsed.len(), size_of::<spdk_pci_addr>());
        let list = crate::Error::check_ptr("configure SPDK", "", list, libc::ENOMEM)?;
        let list = list.as_ptr().cast::<spdk_pci_addr>();
        list.copy_from_nonoverlapping(parsed.as_ptr(), parsed.len());
        Ok(list)
    }
}
