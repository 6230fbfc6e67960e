//! Tells a person what is being done, and how far it is.
//!
//! cargo keeps a build script's output to itself unless it fails (or `-vv` is given), so the same lines
//! go to the file `progress` in the cache too. `ci/setup` runs these steps as an ordinary program,
//! where standard error is the terminal.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

/// Where the lines go.
pub struct Progress {
    start: Instant,
    path: PathBuf,
    /// Made with the first line: a run that has nothing to say leaves another one's lines alone.
    file: OnceLock<Option<File>>,
}

impl Progress {
    /// Lines go to standard error, and to `progress` in `cache` if that can be written.
    pub fn new(cache: &Path) -> Self {
        Self {
            start: Instant::now(),
            path: cache.join("progress"),
            file: OnceLock::new(),
        }
    }

    /// One line.
    pub fn say(&self, line: &str) {
        let line = format!("spdk-sys [{:>4}s] {line}", self.start.elapsed().as_secs());
        eprintln!("{line}");
        if let Some(mut file) = self.file.get_or_init(|| File::create(&self.path).ok()).as_ref() {
            // Progress is a courtesy: a full disk stops the build at the next real write.
            let _ = writeln!(file, "{line}");
        }
    }
}
