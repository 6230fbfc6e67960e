//! A disk with bad places: QEMU's `blkdebug` fails what reads or writes them, and the controller says so in NVMe's words.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::{Bdev, Mode, wait_for_examine};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::{Error, nvme};

use super::actor::SHAPE;
use super::media_deletes;
use super::record;
use crate::guest;
use crate::parts::{Part, io};
use crate::run::Run;
use crate::vm::{Drive, Link, Machine, Vm};

pub const PART: Part = Part {
    name: "media",
    about: "bad places of the disk: the status that arrives, and deletes that meet them",
    host,
    guest: in_guest,
    programs: &[
        ("media-status", status),
        ("media-deletes", media_deletes::in_guest),
        (record::WORK, record::work),
    ],
};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Where the disk is bad, in bytes.
const UNREADABLE: u64 = 20 * MIB;
const UNWRITABLE: u64 = 21 * MIB;
const SEED: u64 = 0x4d4d;

fn host(run: &mut Run) -> Result<()> {
    let drive = Drive::create("disk", run.file("media-status.img"), SHAPE.disk)?;
    let machine = Machine::for_user_space().controller("nvme0", &drive);
    let mut vm = run.boot(&machine, PART.name, json!({"program": "media-status"}))?;
    run.serve(&mut vm, |_, vm, what, _| match what {
        "bad" => {
            let places = [Bad::at("read", UNREADABLE), Bad::at("write", UNWRITABLE)];
            damage(vm, &drive.node, &places)
        }
        "healed" => heal(vm, &drive.node),
        what => bail!("nobody here knows {what}"),
    })?;
    vm.quit()?;
    media_deletes::host(run)
}

/// What fails, always.
pub struct Bad {
    kind: &'static str,
    /// In bytes; everywhere, if there is none.
    at: Option<u64>,
}

impl Bad {
    /// `read`s of this place, or `write`s.
    pub fn at(kind: &'static str, at: u64) -> Self {
        Self { kind, at: Some(at) }
    }

    /// All of them.
    pub fn everywhere(kind: &'static str) -> Self {
        Self { kind, at: None }
    }
}

/// Puts a node between a drive's uppermost one and the one beneath.
pub fn damage(vm: &mut Vm, node: &str, bad: &[Bad]) -> Result<Value> {
    let rule = |bad: &Bad| {
        let mut rule = json!({"event": "none", "iotype": bad.kind, "errno": libc::EIO, "once": false});
        if let Some(at) = bad.at {
            rule["sector"] = json!(at / 512);
        }
        rule
    };
    let rules: Vec<Value> = bad.iter().map(rule).collect();
    let debug = json!({"driver": "blkdebug", "node-name": format!("{node}-bad"), "image": format!("{node}-0"),
        "discard": "unmap", "inject-error": rules});
    vm.qmp.call("blockdev-add", debug)?;
    put_over(vm, node, "bad")
}

/// Takes it out again.
pub fn heal(vm: &mut Vm, node: &str) -> Result<Value> {
    put_over(vm, node, "0")?;
    vm.qmp
        .call("blockdev-del", json!({"node-name": format!("{node}-bad")}))
}

fn put_over(vm: &mut Vm, node: &str, beneath: &str) -> Result<Value> {
    let options =
        json!({"driver": "raw", "node-name": node, "file": format!("{node}-{beneath}"), "discard": "unmap"});
    vm.qmp.call("blockdev-reopen", json!({"options": [options]}))
}

fn in_guest(link: &Link, params: &Value) -> Result<()> {
    let addresses = guest::bind()?;
    let mut params = params.clone();
    params["address"] = json!(addresses[0]);
    params["addresses"] = json!(addresses);
    let program = params["program"].as_str().unwrap_or(record::WORK).to_owned();
    guest::run_program(link, &program, &params)
}

/// Reads and writes the bad places, of the disk and of a volume on it.
fn status(link: &Link, params: &Value) -> Result<()> {
    let (link, address) = (
        link.clone(),
        params["address"].as_str().context("an address")?.to_owned(),
    );
    guest::with_spdk(async move {
        nvme::attach_pcie("Nvme0", &address).await?;
        disk(&link).await?;
        volume(&link).await
    })
}

/// That an error has NVMe's status, type and code.
fn says(link: &Link, error: &Error, status: &str) -> Result<()> {
    let said = error.nvme_status().context("no status")?;
    let said = format!("{:02x}/{:02x}", said.code_type, said.code);
    link.same(format_args!("NVMe's status of {error}"), said, status)
}

async fn disk(link: &Link) -> Result<()> {
    let descriptor = Bdev::find("Nvme0n1")?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    io::write(&channel, UNREADABLE - MIB, 3 * MIB, 64 << 10, SEED).await?;
    link.ask("bad", Value::Null)?;
    // A command that meets the place somewhere fails as a whole.
    for (offset, len) in [(UNREADABLE, BLOCK), (UNREADABLE - 8192, 4 * BLOCK)] {
        let read = channel.read(DmaBuf::new(len)?, offset).await.ok();
        says(link, &read.err().context("a bad place was read")?, "02/81")?;
    }
    let write = channel.write(DmaBuf::zeroed(BLOCK)?, UNWRITABLE).await.ok();
    says(link, &write.err().context("a bad place was written")?, "02/80")?;
    let mut wrong = 0;
    for (offset, len) in [
        (UNREADABLE - MIB, MIB),
        (
            UNREADABLE + BLOCK as u64,
            UNWRITABLE - UNREADABLE + MIB - BLOCK as u64,
        ),
    ] {
        wrong += io::wrong_blocks(&channel, offset, len, BLOCK, SEED).await?;
    }
    link.same("blocks beside it that are not what was written", wrong, 0)?;
    link.ask("healed", Value::Null)?;
    let wrong = io::wrong_blocks(&channel, UNREADABLE - MIB, 3 * MIB, BLOCK, SEED).await?;
    link.same(
        "blocks that are not what was written, when it is healed",
        wrong,
        0,
    )?;
    drop(channel);
    Ok(descriptor.close().await?)
}

/// Of a volume one block lies there. Its error says so; NVMe's words do not come through a blobstore.
async fn volume(link: &Link) -> Result<()> {
    let options = StoreOptions::default().cluster_size(SHAPE.cluster as u32);
    let store = LvolStore::create("Nvme0n1", "lvs", options).await?;
    let size = store.stats().await?.free_clusters * SHAPE.cluster;
    let volume = store.create_lvol("vol", size, Provisioning::Thick).await?;
    let descriptor = volume.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    link.ask("bad", Value::Null)?;
    let (mut failed, mut written) = (Vec::new(), Vec::new());
    for offset in (0..size).step_by(BLOCK) {
        failed.extend(channel.read(DmaBuf::new(BLOCK)?, offset).await.ok().err());
        written.extend(channel.write(DmaBuf::zeroed(BLOCK)?, offset).await.ok().err());
    }
    for (what, errors) in [("reads", &failed), ("writes", &written)] {
        let [error] = &errors[..] else {
            bail!("{} {what} of the volume failed: {errors:?}", errors.len());
        };
        link.check(
            error.device() == volume.uuid().to_string() || error.to_string().contains("lvs/vol"),
            format_args!("of all {what} of a volume one fails: {error}"),
        )?;
    }
    link.ask("healed", Value::Null)?;
    drop(channel);
    descriptor.close().await?;
    volume.destroy().await?;
    wait_for_examine().await?;
    let check = store.check().await?;
    ensure!(check.findings.is_empty(), "{check}");
    Ok(())
}
