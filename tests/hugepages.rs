//! The target with hugepages, of a mount of the test's own. It needs root, and 512 MiB that the kernel can make
//! hugepages of; who has not, is told so.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{Place, Process, TargetOptions};
use serde_json::json;

const PAGES: u64 = 256;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn pool(name: &str) -> Result<u64> {
    let path = format!("{POOL}/{name}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().context(path)
}

/// Hugepages and a place to take them from, which go with it.
struct Hugepages {
    dir: PathBuf,
    reserved: u64,
}

impl Hugepages {
    fn reserve(place: &Place) -> Result<Self> {
        // SAFETY: geteuid has no conditions.
        ensure!(unsafe { libc::geteuid() } == 0, "only root reserves hugepages");
        let dir = place.file("huge");
        fs::create_dir(&dir)?;
        let mut pages = Self { dir, reserved: 0 };
        let missing = PAGES.saturating_sub(pool("free_hugepages")?);
        pages.grow(missing)?;
        let mounted = Command::new("mount")
            .args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"])
            .arg(&pages.dir)
            .output()?;
        let error = String::from_utf8_lossy(&mounted.stderr);
        ensure!(mounted.status.success(), "no hugetlbfs: {error}");
        Ok(pages)
    }

    /// Others use the pool, too: what is there is added to, and only that is taken away.
    fn grow(&mut self, by: u64) -> Result<()> {
        if by > 0 {
            // Free memory may lie in pieces smaller than a page.
            fs::write("/proc/sys/vm/compact_memory", "1").context("compact_memory")?;
            let size = format!("{POOL}/nr_hugepages");
            fs::write(&size, (pool("nr_hugepages")? + by).to_string()).context(size)?;
            self.reserved = by;
        }
        let free = pool("free_hugepages")?;
        ensure!(free >= PAGES, "the kernel has {free} free hugepages to give");
        Ok(())
    }

    /// The files that a target holds there.
    fn files(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).output();
        if self.reserved == 0 {
            return;
        }
        if let Ok(now) = pool("nr_hugepages") {
            let size = now.saturating_sub(self.reserved).to_string();
            let _ = fs::write(format!("{POOL}/nr_hugepages"), size);
        }
    }
}

/// A target with `args` that takes its memory from `dir`.
fn start(options: &TargetOptions, dir: &Path, args: &[&str]) -> Result<Process> {
    let mut command = Command::new(&options.binary);
    command
        .arg("-u")
        .args(["-m", &format!("[{}]", options.core)])
        .arg("-r")
        .arg(&options.socket)
        .arg("--huge-dir")
        .arg(dir)
        .args(args);
    Process::start("spdk_tgt", command, &options.log, &options.socket)
}

#[test]
fn it_runs_with_hugepages() -> Result<()> {
    let mut place = Place::new()?;
    let pages = match Hugepages::reserve(&place) {
        Ok(pages) => pages,
        Err(why) => {
            eprintln!("it_runs_with_hugepages: SKIPPED, nothing was tested: {why:#}");
            place.discard();
            return Ok(());
        }
    };
    let options = TargetOptions::in_place(&place);

    // The size is what it begins with. It takes more when it needs more.
    let id = std::process::id().to_string();
    let mut process = start(&options, &pages.dir, &["-s", "8", "-i", &id])?;
    let begun = pages.files()?;
    let prefix = format!("spdk{id}map_");
    assert!(begun.iter().all(|name| name.starts_with(&prefix)), "{begun:?}");
    process.call(
        "bdev_malloc_create",
        json!({"name": "ram0", "num_blocks": 8192, "block_size": 4096}),
    )?;
    let grown = pages.files()?.len();
    assert!(grown >= begun.len() + 16, "{} files, then {grown}", begun.len());
    assert_eq!(process.stop()?.code(), Some(0));
    common::place::forget_shm_id(&id);
    // DPDK keeps what it began with until the next start, which clears it away.
    let left = pages.files()?;
    assert!(left.len() <= 4, "more than 8 MiB are left: {left:?}");

    let process = start(&options, &pages.dir, &["-g", "-s", "300"])?;
    let files = pages.files()?;
    assert!((1..=4).contains(&files.len()), "one file a segment: {files:?}");
    assert_eq!(process.stop()?.code(), Some(0));

    let process = start(&options, &pages.dir, &["-R"])?;
    assert_eq!(pages.files()?, [""; 0], "-R: no file is left to be seen");
    assert_eq!(process.stop()?.code(), Some(0));

    // What a target that was killed holds is free for the next.
    let all = (pool("free_hugepages")? * 2).to_string();
    start(&options, &pages.dir, &["-s", &all])?.kill()?;
    assert_eq!(pool("free_hugepages")?, 0, "they are held by nobody");
    let process = start(&options, &pages.dir, &["-s", "300"])?;
    assert_eq!(process.stop()?.code(), Some(0));

    drop(pages);
    place.discard();
    Ok(())
}
