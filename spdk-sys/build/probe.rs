//! Asks a build tree what it is: SPDK's own makefiles expand `shim/probe.c` with SPDK's own compiler and
//! flags, so the answer is that of the headers and the configuration that the archives were made with.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::run;

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Major, minor and patch number of SPDK.
    pub version: (u32, u32, u32),
    /// Level of the patches; 0 without them.
    pub level: u32,
    /// Name and value of every entry of CONFIG that the probe asks for; "n" if it is off.
    pub config: BTreeMap<String, String>,
}

/// Runs in the tree, prints the expanded probe.
const MAKEFILE: &str = "\
include $(SPDK_ROOT_DIR)/mk/spdk.common.mk
.PHONY: spdk-sys-probe
spdk-sys-probe:
\t@$(CC) $(CFLAGS) -E -P $(SPDK_SYS_PROBE)
";

/// Asks the tree `root`.
pub fn ask(root: &Path, probe: &Path) -> Result<Facts> {
    let mut make = run::command("make");
    make.current_dir(root)
        .args(["--no-print-directory", "-s", "-f", "-", "spdk-sys-probe"])
        .arg(format!("SPDK_ROOT_DIR={}", root.display()))
        .arg(format!("SPDK_SYS_PROBE={}", probe.display()))
        .env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(root));
    let what = format!(
        "ask the SPDK in {} for its version (it must be configured)",
        root.display()
    );
    parse(&run::output_with_input(&mut make, MAKEFILE.as_bytes(), &what)?)
}

/// Lines of the probe are `spdk_sys_probe <name> = <expansion>`; a name that is not a macro stays
/// itself.
pub fn parse(text: &str) -> Result<Facts> {
    let mut facts = Facts::default();
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let Some((name, value)) = line
            .strip_prefix("spdk_sys_probe ")
            .and_then(|r| r.split_once('='))
        else {
            continue;
        };
        let (name, value) = (name.trim(), value.trim());
        match name.strip_prefix("CONFIG_") {
            Some(name) => {
                let off = value == format!("SPDK_CONFIG_{name}");
                let value = match value {
                    _ if off => "n",
                    "1" => "y",
                    other => other,
                };
                facts.config.insert(name.to_owned(), value.to_owned());
            }
            None => {
                values.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    let number = |name: &str| values.get(name).and_then(|v| v.parse::<u32>().ok());
    let (Some(major), Some(minor), Some(patch)) = (number("MAJOR"), number("MINOR"), number("PATCH")) else {
        return Err(Error::from("SPDK's headers do not say which version they are."));
    };
    facts.version = (major, minor, patch);
    facts.level = number("PATCHLEVEL").unwrap_or(0);
    Ok(facts)
}

impl Facts {
    /// "20.07" or "20.07.1".
    pub fn version_string(&self) -> String {
        match self.version {
            (major, minor, 0) => format!("{major:02}.{minor:02}"),
            (major, minor, patch) => format!("{major:02}.{minor:02}.{patch}"),
        }
    }

    /// `URING=y ISAL=y …` for DEP_SPDK_CONFIG.
    pub fn config_string(&self) -> String {
        let pairs: Vec<String> = self.config.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join(" ")
    }

    /// An entry of CONFIG; "n" if the probe does not know it.
    pub fn config(&self, name: &str) -> &str {
        self.config.get(name).map_or("n", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "typedef int x;\nspdk_sys_probe MAJOR = 20\nspdk_sys_probe MINOR = 7\nspdk_sys_probe PATCH = 0\n\
        spdk_sys_probe PATCHLEVEL = 2\nspdk_sys_probe CONFIG_URING = 1\nspdk_sys_probe CONFIG_RDMA = SPDK_CONFIG_RDMA\n\
        spdk_sys_probe CONFIG_ARCH = x86-64-v2\n";

    #[test]
    fn patched() {
        let facts = parse(TEXT).unwrap();
        assert_eq!((facts.version, facts.level), ((20, 7, 0), 2));
        assert_eq!(
            (facts.config("URING"), facts.config("RDMA"), facts.config("ARCH")),
            ("y", "n", "x86-64-v2")
        );
        assert_eq!(facts.version_string(), "20.07");
        assert_eq!(facts.config_string(), "ARCH=x86-64-v2 RDMA=n URING=y");
    }

    #[test]
    fn unpatched() {
        let text = TEXT
            .replace("PATCHLEVEL = 2", "PATCHLEVEL = SPDK_RS_PATCHLEVEL")
            .replace("PATCH = 0", "PATCH = 3");
        let facts = parse(&text).unwrap();
        assert_eq!((facts.level, facts.version_string().as_str()), (0, "20.07.3"));
    }

    #[test]
    fn nonsense() {
        assert!(parse("").is_err());
        assert!(parse("spdk_sys_probe MAJOR = SPDK_VERSION_MAJOR\n").is_err());
    }
}
