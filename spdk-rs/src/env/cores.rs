//! Core masks, checked before DPDK sees them: it answers a bad one with a page of usage, and a
//! core that it may not use with an abort.

use std::collections::BTreeSet;

use crate::{Error, ErrorKind, Result};

const WHAT: &str = "check core mask";

/// DPDK's RTE_MAX_LCORE as SPDK builds it.
const MAX_CORES: u32 = 128;

fn bad(mask: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, WHAT, mask, why)
}

/// The cores that a mask names: hexadecimal bits (`0x3`, `f`) or a list (`[0,2-3]`).
pub(crate) fn parse(mask: &str) -> Result<BTreeSet<u32>> {
    let text = mask.trim();
    let cores = match text.strip_prefix('[') {
        Some(list) => {
            let list = list
                .strip_suffix(']')
                .ok_or_else(|| bad(mask, "a core list ends with ']'"))?;
            parse_list(mask, list)?
        }
        None => parse_bits(mask, text)?,
    };
    if cores.is_empty() {
        return Err(bad(mask, "names no core"));
    }
    if let Some(core) = cores.iter().find(|core| **core >= MAX_CORES) {
        return Err(bad(
            mask,
            format!("core {core} is beyond the {MAX_CORES} that DPDK can use"),
        ));
    }
    Ok(cores)
}

fn parse_bits(mask: &str, text: &str) -> Result<BTreeSet<u32>> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad(
            mask,
            "is neither a hexadecimal mask (0x3) nor a core list ([0,1])",
        ));
    }
    let mut cores = BTreeSet::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let bits = digit.to_digit(16).unwrap_or(0);
        let base = u32::try_from(place * 4).map_err(|_| bad(mask, "is too long"))?;
        cores.extend((0..4).filter(|bit| bits & (1 << bit) != 0).map(|bit| base + bit));
    }
    Ok(cores)
}

fn parse_list(mask: &str, list: &str) -> Result<BTreeSet<u32>> {
    let number = |text: &str| -> Result<u32> {
        text.trim()
            .parse()
            .map_err(|_| bad(mask, format!("'{text}' is not a core number")))
    };
    let mut cores = BTreeSet::new();
    for part in list.split(',') {
        match part.split_once('-') {
            None => {
                cores.insert(number(part)?);
            }
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(bad(mask, format!("'{part}' runs backwards")));
                }
                // Not collected before it is bounded: "0-4000000000" is a small text.
                cores.extend(first..=last.min(first.saturating_add(MAX_CORES)));
            }
        }
    }
    Ok(cores)
}

/// Checks that this process may run on every core of the mask; returns them.
pub(crate) fn check(mask: &str) -> Result<BTreeSet<u32>> {
    let cores = parse(mask)?;
    let tried = cores.clone();
    // On a thread of its own, whose affinity nobody minds. Asking beats looking it up: it knows
    // about cores that are absent, offline, or outside of the container's cpuset alike.
    let refused = std::thread::spawn(move || tried.into_iter().find(|core| !can_run_on(*core)))
        .join()
        .unwrap_or(None);
    match refused {
        None => Ok(cores),
        Some(core) => Err(bad(
            mask,
            format!(
                "core {core} does not exist or may not be used here ({} online)",
                online()
            ),
        )),
    }
}

fn can_run_on(core: u32) -> bool {
    // SAFETY: cpu_set_t is a plain bit array, for which zero is valid; CPU_SET checks the bound;
    // the set outlives the call, which reads it only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
    }
}

fn online() -> i64 {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(mask: &str) -> Vec<u32> {
        parse(mask).expect(mask).into_iter().collect()
    }

    #[test]
    fn masks() {
        assert_eq!(cores("0x1"), [0]);
        assert_eq!(cores("3"), [0, 1]);
        assert_eq!(cores("0xF0"), [4, 5, 6, 7]);
        assert_eq!(cores("[0]"), [0]);
        assert_eq!(cores("[0, 2-4,7]"), [0, 2, 3, 4, 7]);
    }

    #[test]
    fn bad_masks() {
        for mask in [
            "",
            "0x",
            "0",
            "0x0",
            "zz",
            "0x1g",
            "-1",
            "[",
            "[]",
            "[1",
            "[a]",
            "[3-1]",
            "[1-]",
            "[0-4000000000]",
            "1 2",
            "[5000000000]",
        ] {
            let error = parse(mask).expect_err(mask);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{mask}");
        }
    }

    #[test]
    fn a_core_that_does_not_exist() {
        let error = check("[0,127]").expect_err("128 cores are not to be expected");
        assert!(error.to_string().contains("core 127"), "{error}");
    }
}
