//! What is linked, how, and why.
//!
//! A consumer needs no link argument: all of it is said here, through `links = "spdk"`.
//!
//! Two ways to link an archive:
//! * *whole*: SPDK registers bdev modules, subsystems, RPC methods, transports, socket implementations
//!   and log flags by constructors in objects that nothing refers to. The linker would leave such
//!   objects out of a plain archive, and the target would start without them, silently.
//! * *plain*: archives without constructors. They come last, since the linker reads them once.
//!
//! `-bundle` goes with `+whole-archive`: bundled into the rlib, archives of this size would be copied
//! for every profile, and rustc refuses the combination in a crate with `links`.
//!
//! Left out on purpose: `sock_uring` (its priority is above that of posix sockets, so linking it would
//! move NVMe/TCP to it), `scsi`, `iscsi`, `vhost` (their pools do not fit into 512 MiB without
//! hugepages), `ftl` and `blobfs` (no user here).

use std::path::{Path, PathBuf};

use crate::config::Features;

/// How an archive is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Every object, because of constructors.
    Whole,
    /// Only the objects that are referred to.
    Plain,
    /// A shared library of the system.
    System,
}

/// One library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Library {
    /// Without `lib` and `.a`.
    pub name: &'static str,
    /// How it is linked.
    pub how: How,
}

/// All libraries, in the order of the link line, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Search paths.
    pub paths: Vec<PathBuf>,
    /// Libraries.
    pub libraries: Vec<Library>,
}

/// Always there. Reasons for *whole*: log flags (all of them but a few), RPC methods, subsystems,
/// trace points, bdev modules, the posix socket implementation, the accel modules.
const BASE: &[&str] = &[
    // subsystems, and the start of an application
    "spdk_event_bdev",
    "spdk_event_accel",
    "spdk_event_vmd",
    "spdk_event_sock",
    "spdk_event_net",
    "spdk_event",
    // bdev modules, each with its RPC methods
    "spdk_bdev_malloc",
    "spdk_bdev_null",
    "spdk_bdev_passthru",
    "spdk_bdev_lvol",
    "spdk_bdev_error",
    "spdk_bdev_gpt",
    "spdk_bdev_split",
    "spdk_bdev_delay",
    "spdk_bdev_zone_block",
    "spdk_bdev_aio",
    // RPC methods of the libraries
    "spdk_app_rpc",
    "spdk_log_rpc",
    "spdk_bdev_rpc",
    "spdk_env_dpdk_rpc",
    // libraries
    "spdk_accel_ioat",
    "spdk_ioat",
    "spdk_sock_posix",
    "spdk_lvol",
    "spdk_blob",
    "spdk_vmd",
    "spdk_bdev",
    "spdk_accel",
    "spdk_net",
    "spdk_sock",
    "spdk_notify",
    "spdk_rpc",
    "spdk_jsonrpc",
    "spdk_json",
    "spdk_trace",
    "spdk_thread",
    "spdk_util",
    "spdk_log",
    "spdk_env_dpdk",
];

const NVME: &[&str] = &["spdk_bdev_nvme", "spdk_nvme"];
/// The target uses the NVMe library's transport ids, so that comes along without the bdev module.
const NVMF: &[&str] = &["spdk_event_nvmf", "spdk_nvmf", "spdk_nvme"];
const URING: &[&str] = &["spdk_bdev_uring"];
const RAID: &[&str] = &["spdk_bdev_raid"];
const NBD: &[&str] = &["spdk_event_nbd", "spdk_nbd"];

/// All whole: buses, mempool operations (without them "spdk_msg_mempool creation failed", -12), log
/// types and tailqs are registered by constructors.
const DPDK: &[&str] = &[
    "rte_eal",
    "rte_mempool",
    "rte_ring",
    "rte_mbuf",
    "rte_mempool_ring",
    "rte_pci",
    "rte_bus_pci",
    "rte_bus_vdev",
    "rte_telemetry",
    "rte_kvargs",
];

/// No constructors: `conf` and `blob_bdev` are pure functions, isa-l has none at all.
const PLAIN: &[&str] = &["spdk_blob_bdev", "spdk_conf", "isal"];

const SYSTEM: &[&str] = &["aio", "numa", "uuid", "crypto", "ssl", "rt", "dl", "pthread", "m"];

/// What is linked from the build tree `root`.
pub fn plan(root: &Path, features: &Features) -> Plan {
    let paths = ["build/lib", "dpdk/build/lib", "isa-l/.libs"]
        .map(|p| root.join(p))
        .to_vec();
    let mut libraries: Vec<Library> = Vec::new();
    let mut add = |names: &[&'static str], how| {
        for &name in names {
            if !libraries.iter().any(|l| l.name == name) {
                libraries.push(Library { name, how });
            }
        }
    };
    for (on, names) in [
        (features.nvme, NVME),
        (features.nvmf, NVMF),
        (features.uring, URING),
        (features.raid, RAID),
        (features.nbd, NBD),
        (true, BASE),
        (true, DPDK),
    ] {
        if on {
            add(names, How::Whole);
        }
    }
    add(PLAIN, How::Plain);
    if features.uring {
        add(&["uring"], How::System);
    }
    add(SYSTEM, How::System);
    Plan { paths, libraries }
}

impl Plan {
    /// The lines for cargo.
    pub fn lines(&self) -> Vec<String> {
        let paths = self
            .paths
            .iter()
            .map(|p| format!("cargo::rustc-link-search=native={}", p.display()));
        let libraries = self.libraries.iter().map(|l| {
            let kind = match l.how {
                How::Whole => "static:+whole-archive,-bundle=",
                How::Plain => "static:-bundle=",
                How::System => "dylib=",
            };
            format!("cargo::rustc-link-lib={kind}{}", l.name)
        });
        paths.chain(libraries).collect()
    }

    /// The archives that must be there, as paths.
    pub fn archives(&self) -> Vec<PathBuf> {
        let dir = |name: &str| match name {
            "isal" => &self.paths[2],
            n if n.starts_with("rte_") => &self.paths[1],
            _ => &self.paths[0],
        };
        let archives = self.libraries.iter().filter(|l| l.how != How::System);
        archives
            .map(|l| dir(l.name).join(format!("lib{}.a", l.name)))
            .collect()
    }

    /// Those of them that are not there.
    pub fn missing_archives(&self) -> Vec<PathBuf> {
        self.archives().into_iter().filter(|a| !a.is_file()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(features: &Features, how: How) -> Vec<&'static str> {
        let plan = plan(Path::new("/r"), features);
        plan.libraries
            .iter()
            .filter(|l| l.how == how)
            .map(|l| l.name)
            .collect()
    }

    #[test]
    fn features_choose() {
        let none = Features::default();
        for (features, name) in [
            (Features { nvme: true, ..none }, "spdk_bdev_nvme"),
            (Features { nvmf: true, ..none }, "spdk_event_nvmf"),
            (Features { uring: true, ..none }, "spdk_bdev_uring"),
            (Features { raid: true, ..none }, "spdk_bdev_raid"),
            (Features { nbd: true, ..none }, "spdk_event_nbd"),
        ] {
            assert!(names(&features, How::Whole).contains(&name));
            assert!(!names(&none, How::Whole).contains(&name));
        }
        // The target alone still needs the NVMe library, but not its bdev module.
        let nvmf = names(&Features { nvmf: true, ..none }, How::Whole);
        assert!(nvmf.contains(&"spdk_nvme") && !nvmf.contains(&"spdk_bdev_nvme"));
    }

    #[test]
    fn nothing_is_linked_twice_and_what_must_stay_out_is_out() {
        let plan = plan(Path::new("/r"), &Features::ALL);
        let mut all: Vec<&str> = plan.libraries.iter().map(|l| l.name).collect();
        for out in [
            "spdk_sock_uring",
            "spdk_iscsi",
            "spdk_scsi",
            "spdk_vhost",
            "spdk_ftl",
        ] {
            assert!(!all.contains(&out), "{out}");
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn lines() {
        let lines = plan(Path::new("/r"), &Features::ALL).lines();
        assert!(lines.contains(&"cargo::rustc-link-search=native=/r/dpdk/build/lib".to_owned()));
        assert!(
            lines
                .contains(&"cargo::rustc-link-lib=static:+whole-archive,-bundle=rte_mempool_ring".to_owned())
        );
        assert!(lines.contains(&"cargo::rustc-link-lib=dylib=uring".to_owned()));
        assert!(lines.last().unwrap().ends_with("=m"));
        let without = plan(Path::new("/r"), &Features::default()).lines();
        assert!(!without.contains(&"cargo::rustc-link-lib=dylib=uring".to_owned()));
    }

    #[test]
    fn archives_are_paths() {
        let archives = plan(Path::new("/r"), &Features::ALL).archives();
        assert!(archives.contains(&"/r/isa-l/.libs/libisal.a".into()));
        assert!(archives.contains(&"/r/dpdk/build/lib/librte_eal.a".into()));
        assert!(archives.contains(&"/r/build/lib/libspdk_bdev.a".into()));
    }
}
