//! Where QEMU and the kernel are: a folder into which Debian's packages were unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The unpacked packages.
pub struct Files {
    dir: PathBuf,
    /// The kernel's version, as in its file's name.
    version: String,
}

impl Files {
    /// Looks for what is needed in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let modules = dir.join("lib/modules");
        let versions = fs::read_dir(&modules).with_context(|| format!("no kernel in {}", dir.display()))?;
        let names = versions.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<Result<_>>()?;
        names.sort();
        Ok(Self {
            dir: dir.to_owned(),
            version: names
                .pop()
                .with_context(|| format!("{} is empty", modules.display()))?,
        })
    }

    /// The kernel's image.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// The folder of the kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.version).join("kernel")
    }

    /// QEMU, with its own libraries and firmware.
    pub fn qemu(&self) -> Command {
        let mut command = Command::new(self.dir.join("usr/bin/qemu-system-x86_64"));
        let libraries = ["usr/lib", "lib"].map(|dir| self.dir.join(dir).join("x86_64-linux-gnu"));
        let libraries = libraries.map(|dir| dir.display().to_string());
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        for firmware in ["qemu", "seabios"] {
            command.arg("-L").arg(self.dir.join("usr/share").join(firmware));
        }
        command
    }
}
