//! Memory sizes, checked before DPDK sees them.

use std::fs;
use std::path::Path;

use super::hugepages;
use crate::{Error, ErrorKind, Result};

const WHAT: &str = "check memory size";
const MIB: u64 = 1024 * 1024;

/// What SPDK gets without huge pages if nothing is asked for. (DPDK's own default, 64 MiB, is
/// not enough for SPDK's message and event pools.)
pub(crate) const DEFAULT_NO_HUGE_MB: u32 = 512;

/// The least that is tried. SPDK's event and message pools alone take about 100 MiB, and v20.07
/// does not look whether the latter could be made: with less it may crash. (What its subsystems
/// need comes on top; they do look.)
const LEAST_MB: u64 = 128;

/// Where SPDK's memory comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Ordinary,
    Huge {
        /// The only mount to look at.
        dir: Option<&'a Path>,
        shm_id: Option<u32>,
    },
}

/// Checks that there is as much memory as SPDK is to take.
pub(crate) fn check(memory_mb: Option<u32>, source: Source) -> Result<()> {
    let no_huge = matches!(source, Source::Ordinary);
    let wanted = u64::from(memory_mb.unwrap_or(if no_huge { DEFAULT_NO_HUGE_MB } else { 0 }));
    let name = match wanted {
        0 => "(as needed)".to_owned(),
        wanted => format!("{wanted} MiB"),
    };
    if memory_mb == Some(0) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            WHAT,
            "0 MiB",
            "SPDK needs some memory: leave the size away, or give some hundred MiB",
        ));
    }
    // With huge pages the size is what to begin with: DPDK takes more as it needs them.
    if no_huge && memory_mb.is_some() && wanted < LEAST_MB {
        let why = format!("SPDK's own pools need {LEAST_MB} MiB already; 512 is a good start");
        return Err(Error::new(ErrorKind::NoMemory, WHAT, name, why));
    }
    if memory_mb.is_some_and(|mb| i32::try_from(mb).is_err()) {
        return Err(Error::new(ErrorKind::OutOfRange, WHAT, name, "too large"));
    }
    let (free, what, advice) = match source {
        Source::Ordinary => (available_bytes(), "memory", "ask for less"),
        Source::Huge { shm_id, .. } if shm_id.is_some_and(hugepages::has_primary) => return Ok(()),
        Source::Huge { dir, .. } => (
            hugepages::free_bytes(dir),
            "free huge pages",
            "ask for less, reserve more (vm.nr_hugepages), or run without huge pages",
        ),
    };
    let Some(free) = free else {
        return Ok(()); // cannot tell: let DPDK try
    };
    if free / MIB < wanted.max(LEAST_MB) {
        return Err(Error::new(
            ErrorKind::NoMemory,
            WHAT,
            name,
            format!("there are only {} MiB of {what}: {advice}", free / MIB),
        ));
    }
    Ok(())
}

/// `MemAvailable` of /proc/meminfo.
fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    meminfo(&text, "MemAvailable:")
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: Source = Source::Huge {
        dir: None,
        shm_id: None,
    };

    #[test]
    fn meminfo_lines() {
        let text = "MemTotal:       100 kB\nMemAvailable:   50 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(50 * 1024));
        assert_eq!(meminfo(text, "HugeTotal:"), None);
    }

    #[test]
    fn none_and_too_much() {
        let error = check(Some(0), Source::Ordinary).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let error = check(Some(1 << 30), Source::Ordinary).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoMemory);
        let error = check(Some(u32::MAX), Source::Ordinary).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        for too_little in [1, 127] {
            let error = check(Some(too_little), Source::Ordinary).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoMemory);
            let with_huge_pages = check(Some(too_little), HUGE).err();
            let why = with_huge_pages.map_or(String::new(), |error| error.to_string());
            assert!(!why.contains("SPDK's own pools"), "{why}");
        }
        check(Some(128), Source::Ordinary).expect("128 MiB are there");
    }
}
