//! Parsers for the values of the command line's options.
//!
//! Each takes the text that SPDK's C `spdk_tgt` takes and returns a checked value, or a message that names what is
//! wrong with the text. They are pure functions: whether the machine has those cores or that memory is asked later.

use std::fmt;
use std::str::FromStr;

/// The most cores that the linked DPDK can number.
const MAX_CORES: usize = 128;

/// A set of CPU cores, as `-m` takes it: a hexadecimal mask, or a list in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    text: String,
    cores: Vec<usize>,
}

impl Cores {
    /// The set in the notation that SPDK's environment takes: the user's own text.
    pub fn as_spdk(&self) -> &str {
        &self.text
    }

    /// The numbers of the cores, ascending.
    pub fn numbers(&self) -> &[usize] {
        &self.cores
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cores = match text.strip_prefix('[') {
            Some(rest) => parse_core_list(
                rest.strip_suffix(']')
                    .ok_or("a core list ends with ']', for example [0,2-3]")?,
            )?,
            None => parse_core_mask(text)?,
        };
        Ok(Self {
            text: text.to_owned(),
            cores,
        })
    }
}

fn parse_core_mask(text: &str) -> Result<Vec<usize>, String> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("not a hexadecimal core mask (for example 0x3) or a core list ([0,1])".into());
    }
    let mut cores = Vec::new();
    for (nibble, digit) in digits.bytes().rev().enumerate() {
        let value = char::from(digit).to_digit(16).unwrap_or(0);
        cores.extend(
            (0..4)
                .filter(|bit| value >> bit & 1 == 1)
                .map(|bit| nibble * 4 + bit),
        );
    }
    check_cores(cores)
}

fn parse_core_list(text: &str) -> Result<Vec<usize>, String> {
    let number = |digits: &str| {
        digits
            .trim()
            .parse::<usize>()
            .ok()
            .filter(|core| *core < MAX_CORES)
            .ok_or_else(|| format!("'{}' is not a core number below {MAX_CORES}", digits.trim()))
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("the range {first}-{last} runs backwards"));
                }
                cores.extend(first..=last);
            }
            None => cores.push(number(part)?),
        }
    }
    check_cores(cores)
}

fn check_cores(mut cores: Vec<usize>) -> Result<Vec<usize>, String> {
    cores.sort_unstable();
    cores.dedup();
    match cores.last() {
        None => Err("no core is set".into()),
        Some(last) if *last >= MAX_CORES => Err(format!(
            "core {last} is beyond the last possible one, {}",
            MAX_CORES - 1
        )),
        Some(_) => Ok(cores),
    }
}

/// `-s`: megabytes, or a number with the suffix K, M or G (then of bytes).
pub fn memory_mb(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size: megabytes, or a number with K, M or G (for example 1G)".to_owned())?;
    let mb = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => Some(number),
        "K" | "KB" | "KIB" => Some(number >> 10),
        "M" | "MB" | "MIB" => Some(number),
        "G" | "GB" | "GIB" => number.checked_mul(1 << 10),
        suffix => return Err(format!("'{suffix}' is not a size suffix: use K, M or G")),
    };
    match mb.and_then(|mb| i32::try_from(mb).ok()) {
        Some(0) => Err("less than one megabyte".into()),
        Some(mb) => Ok(mb.unsigned_abs()),
        None => Err("more memory than SPDK can be asked for".into()),
    }
}

/// A number that must not be negative, in C's notation: decimal, 0x… or 0….
pub fn c_number(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    u64::from_str_radix(digits, radix)
        .ok()
        .filter(|_| !digits.starts_with('+'))
        .ok_or_else(|| "not a number of zero or more".to_owned())
}

/// [`c_number`] that fits a C `int`.
pub fn c_int(text: &str) -> Result<i32, String> {
    i32::try_from(c_number(text)?).map_err(|_| "too large".to_owned())
}

/// The address that DPDK maps memory at: not zero, and positive as a C `long`.
pub fn base_virtaddr(text: &str) -> Result<u64, String> {
    match c_number(text)? {
        0 => Err("must not be 0".into()),
        addr if i64::try_from(addr).is_err() => Err("too large for an address".into()),
        addr => Ok(addr),
    }
}

/// The number of trace entries a core: a power of two.
pub fn trace_entries(text: &str) -> Result<u64, String> {
    Some(c_number(text)?)
        .filter(|entries| entries.is_power_of_two())
        .ok_or_else(|| "must be a power of two".to_owned())
}

/// The tracepoint group mask, hexadecimal.
pub fn tpoint_mask(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map(|_| text.to_owned())
        .map_err(|_| "not a hexadecimal mask (for example 0x8, or 0xffff for all groups)".to_owned())
}

/// A PCI address as SPDK's parser takes it, in one notation: `dddd:bb:dd.f`.
///
/// Accepted are `domain:bus:device.function`, `bus:device.function`, `domain:bus:device`, `bus:device`, and
/// those with a full set of dots in place of the colons.
pub fn pci_address(text: &str) -> Result<String, String> {
    let bad = || "not a PCI address (for example 0000:01:00.0)".to_owned();
    let hex = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| bad());
    let colons: Vec<&str> = text.split(':').collect();
    let fields: Vec<&str> = text.split([':', '.']).collect();
    let fields: Vec<u32> = fields.into_iter().map(hex).collect::<Result<_, _>>()?;
    let (domain, bus, device, function) = match (fields.as_slice(), colons.len()) {
        (&[domain, bus, device, function], 3 | 1) => (domain, bus, device, function),
        (&[domain, bus, device], 3) => (domain, bus, device, 0),
        (&[bus, device, function], 2 | 1) => (0, bus, device, function),
        (&[bus, device], _) => (0, bus, device, 0),
        _ => return Err(bad()),
    };
    if bus > 0xff || device > 0x1f || function > 7 {
        return Err(bad());
    }
    Ok(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Result<Vec<usize>, String> {
        text.parse::<Cores>().map(|set| set.numbers().to_vec())
    }

    #[test]
    fn masks_and_lists_name_the_same_cores() {
        assert_eq!(cores("0x1"), Ok(vec![0]));
        assert_eq!(cores("3"), Ok(vec![0, 1]));
        assert_eq!(cores("0xF0"), Ok(vec![4, 5, 6, 7]));
        assert_eq!(cores("10000000000000001"), Ok(vec![0, 64]));
        assert_eq!(cores("[0,2-3]"), Ok(vec![0, 2, 3]));
        assert_eq!(cores("[1,1,0]"), Ok(vec![0, 1]));
    }

    #[test]
    fn wrong_core_sets_are_refused() {
        for text in [
            "", "0x", "0", "0x0", "xyz", "[", "[]", "[a]", "[0", "[3-1]", "[128]", "-1",
        ] {
            assert!(cores(text).is_err(), "{text} was taken");
        }
        let one_beyond = format!("1{}", "0".repeat(MAX_CORES / 4));
        assert!(cores(&one_beyond).is_err());
    }

    #[test]
    fn memory_is_megabytes_unless_a_suffix_says_otherwise() {
        assert_eq!(memory_mb("512"), Ok(512));
        assert_eq!(memory_mb("512M"), Ok(512));
        assert_eq!(memory_mb("2g"), Ok(2048));
        assert_eq!(memory_mb("1GiB"), Ok(1024));
        assert_eq!(memory_mb("4096k"), Ok(4));
        for text in [
            "",
            "M",
            "x",
            "1T",
            "0",
            "1K",
            "-5",
            "99999999999",
            "1.5G",
            "99999999999999999999",
        ] {
            assert!(memory_mb(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn numbers_follow_c() {
        assert_eq!(c_int("10"), Ok(10));
        assert_eq!(c_int("0x10"), Ok(16));
        assert_eq!(c_int("010"), Ok(8));
        assert_eq!(c_int("0"), Ok(0));
        for text in ["", "-1", "+1", "1x", "0x", "4294967296"] {
            assert!(c_int(text).is_err(), "{text} was taken");
        }
        assert_eq!(base_virtaddr("0x200000000000"), Ok(0x2000_0000_0000));
        assert!(base_virtaddr("0").is_err());
        assert!(base_virtaddr("0xffffffffffffffff").is_err());
    }

    #[test]
    fn trace_entries_are_powers_of_two() {
        assert_eq!(trace_entries("32768"), Ok(32768));
        assert_eq!(trace_entries("1"), Ok(1));
        for text in ["0", "3", "-2", "x"] {
            assert!(trace_entries(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn tracepoint_masks_are_hexadecimal() {
        assert_eq!(tpoint_mask("0xffff"), Ok("0xffff".into()));
        assert_eq!(tpoint_mask("8"), Ok("8".into()));
        assert!(tpoint_mask("nvmf").is_err());
    }

    #[test]
    fn pci_addresses_come_in_spdks_notations() {
        for (text, full) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("1.2.3.4", "0001:02:03.4"),
            ("5e:00.1", "0000:5e:00.1"),
            ("5e.0.1", "0000:5e:00.1"),
            ("2:5e:0", "0002:5e:00.0"),
            ("5e:1f", "0000:5e:1f.0"),
            ("5e.1f", "0000:5e:1f.0"),
        ] {
            assert_eq!(pci_address(text).as_deref(), Ok(full), "{text}");
        }
        for text in [
            "",
            "5e",
            "0000:01:20.0",
            "0000:01:00.8",
            "100:0",
            "x:y",
            "0000:01:00.0.0",
        ] {
            assert!(pci_address(text).is_err(), "{text} was taken");
        }
    }
}
