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

    /// A program of the packages.
    pub fn program(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Where a file of the packages is when they are installed; any other is where it is.
    pub fn installed(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.dir)
            .map_or_else(|_| path.to_owned(), |path| Path::new("/").join(path))
    }

    /// Where the packages' libraries are, for the loader.
    pub fn libraries(&self) -> String {
        // The last is a private place of a library that fio is linked with.
        let places = [
            "usr/lib/x86_64-linux-gnu",
            "lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu/ceph",
        ];
        places
            .map(|place| self.dir.join(place).display().to_string())
            .join(":")
    }

    /// QEMU, with its own libraries and firmware.
    pub fn qemu(&self) -> Command {
        let mut command = Command::new(self.dir.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", self.libraries());
        for firmware in ["qemu", "seabios"] {
            command.arg("-L").arg(self.dir.join("usr/share").join(firmware));
        }
        command
    }
}
