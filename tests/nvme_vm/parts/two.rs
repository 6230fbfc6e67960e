//! Two controllers with several namespaces: each is a block device of its own, and what happens to one leaves the others
//! alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::{Bdev, Mode, wait_for_examine};
use spdk_rs::lvol::{DestroyError, LvolStore, Provisioning, StoreOptions};
use spdk_rs::reactor::sleep;
use spdk_rs::{nvme, spawn};

use super::{Part, io};
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Link, Machine};

/// The part.
pub const PART: Part = Part {
    name: "two",
    about: "two controllers with three and two namespaces, stores on both, one taken away; devices to skip and to take",
    host,
    guest: in_guest,
    programs: &[("two-make", make), ("two-find", find)],
};

const MIB: u64 = 1 << 20;
const VOLUME: u64 = 16 * MIB;
const STEP: usize = 256 << 10;
/// Megabytes of the namespaces, each another.
const FIRST: [u64; 3] = [64, 96, 32];
const SECOND: [u64; 2] = [80, 48];
/// The namespaces that have a store.
const STORES: [(&str, &str); 2] = [("A", "An2"), ("B", "Bn1")];
/// Those that are written to as they are.
const RAW: [&str; 3] = ["An1", "An3", "Bn2"];

fn host(run: &mut Run) -> Result<()> {
    let drives = |id: &str, sizes: &[u64]| -> Result<Vec<Drive>> {
        let drive = |(number, mib): (usize, &u64)| {
            let node = format!("{id}-ns{number}");
            Drive::create(&node, run.file(&format!("two-{node}.img")), mib * MIB)
        };
        sizes.iter().enumerate().map(drive).collect()
    };
    let (first, second) = (drives("first", &FIRST)?, drives("second", &SECOND)?);
    let machine = Machine::for_user_space()
        .namespaces("first", &first)
        .namespaces("second", &second);
    run.boot_to_end(&machine, PART.name, json!({}))
}

fn in_guest(link: &Link, _params: &Value) -> Result<()> {
    let addresses = guest::bind()?;
    link.same("controllers", addresses.len(), 2)?;
    let params = json!(addresses);
    guest::run_program(link, "two-make", &params)?;
    guest::run_program(link, "two-find", &params)?;
    skip_or_take(link, &addresses)
}

/// Attaches both; A and B are their names.
async fn attach(link: &Link, params: &Value) -> Result<()> {
    for (at, name) in ["A", "B"].into_iter().enumerate() {
        let names = nvme::attach_pcie(name, params[at].as_str().context("an address")?).await?;
        let sizes: Vec<_> = names
            .iter()
            .map(|name| Ok(format!("{name} {} MiB", Bdev::find(name)?.size() / MIB)))
            .collect::<Result<_>>()?;
        let expected: Vec<_> = (1..)
            .zip(if at == 0 { &FIRST[..] } else { &SECOND })
            .map(|(number, mib)| format!("{name}n{number} {mib} MiB"))
            .collect();
        link.same("namespaces", sizes.join(", "), expected.join(", "))?;
    }
    Ok(wait_for_examine().await?)
}

/// Data by which a device is known.
fn seed(name: &str) -> u64 {
    name.bytes()
        .fold(0x5eed, |seed, byte| seed << 8 | u64::from(byte))
}

async fn write(name: &str, size: u64) -> Result<()> {
    let descriptor = Bdev::find(name)?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    io::write(&channel, 0, size, STEP, seed(name)).await?;
    drop(channel);
    Ok(descriptor.close().await?)
}

/// How many blocks of those devices are not what was written to each.
async fn wrong_blocks(names: &[&str]) -> Result<usize> {
    let mut wrong = 0;
    for name in names {
        let descriptor = Bdev::find(name)?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        let size = if name.contains('/') {
            VOLUME
        } else {
            Bdev::find(name)?.size()
        };
        wrong += io::wrong_blocks(&channel, 0, size, STEP, seed(name)).await?;
        drop(channel);
        descriptor.close().await?;
    }
    Ok(wrong)
}

fn make(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        attach(&link, &params).await?;
        for name in RAW {
            write(name, Bdev::find(name)?.size()).await?;
        }
        for (store, on) in STORES {
            let store =
                LvolStore::create(on, store, StoreOptions::default().cluster_size(MIB as u32)).await?;
            for vol in ["vol", "other"] {
                let volume = store.create_lvol(vol, VOLUME, Provisioning::Thin).await?;
                write(&volume.to_string(), VOLUME).await?;
            }
        }
        let all = ["An1", "An3", "Bn2", "A/vol", "A/other", "B/vol", "B/other"];
        link.same("blocks of all that are another's", wrong_blocks(&all).await?, 0)?;
        deletes(&link).await?;

        nvme::detach("B").await?;
        let mut left: Vec<_> = Bdev::all()?.iter().map(|bdev| bdev.name().to_owned()).collect();
        left.retain(|name| name.starts_with('A') || name.starts_with('B'));
        left.sort();
        link.same("without B", left.join(" "), "An1 An2 An3")?;
        let gone = LvolStore::find("B").await.err().context("its store is there")?;
        link.check(
            gone.kind() == spdk_rs::ErrorKind::NotFound,
            format_args!("its store: {gone}"),
        )?;
        let wrong = wrong_blocks(&["An1", "An3", "A/vol", "A/other"]).await?;
        link.same("blocks of A that are wrong then", wrong, 0)?;
        nvme::attach_pcie("B", params[1].as_str().context("an address")?).await?;
        wait_for_examine().await?;
        link.same(
            "blocks of B that are wrong when it is back",
            wrong_blocks(&["Bn2", "B/vol"]).await?,
            0,
        )
    })
}

/// One that is busy on A, while one on B goes.
async fn deletes(link: &Link) -> Result<()> {
    let backup = LvolStore::find("A")
        .await?
        .lvol("vol")
        .await?
        .snapshot("backup")
        .await?;
    let sum = spawn({
        let backup = backup.clone();
        async move { backup.checksum().await }
    });
    // It opens the volume first; and it reads for longer than this.
    sleep(Duration::from_millis(20)).await;
    let refused = backup
        .destroy()
        .await
        .err()
        .context("a delete while a checksum runs is granted")?;
    link.check(
        matches!(refused, DestroyError::Busy { .. }),
        format_args!("a delete on A while a checksum runs: {refused}"),
    )?;
    let other = LvolStore::find("B").await?.lvol("other").await?;
    let granted = other.destroy().await.is_ok();
    link.check(granted && !sum.is_finished(), "one on B meanwhile is granted")?;
    sum.await??;
    let granted = refused.lvol().clone().destroy().await.is_ok();
    link.check(granted, "and on A when it has ended")
}

fn find(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        attach(&link, &params).await?;
        for (store, _) in STORES {
            let store = LvolStore::find(store).await?;
            let report = store.check().await?;
            ensure!(report.findings.is_empty(), "{report}");
            let mut names: Vec<_> = store.lvols().await?.iter().map(|lvol| lvol.to_string()).collect();
            names.sort();
            let expected = if store.name() == "A" {
                "A/other A/vol"
            } else {
                "B/vol"
            };
            link.same("volumes found anew", names.join(" "), expected)?;
        }
        let all = ["An1", "An3", "Bn2", "A/vol", "A/other", "B/vol"];
        link.same("blocks of all that are wrong", wrong_blocks(&all).await?, 0)
    })
}

/// The target's options `-B` and `-W`.
fn skip_or_take(link: &Link, addresses: &[String]) -> Result<()> {
    let first = addresses[0].as_str();
    for (option, taken) in [("-B", [false, true]), ("-W", [true, false])] {
        let mut target = guest::start_target_with(&[option, first])?;
        for (address, taken) in addresses.iter().zip(taken) {
            let params = json!({"name": format!("N{}", address.replace([':', '.'], "-")), "trtype": "PCIe", "traddr": address});
            let answer = target.call("bdev_nvme_attach_controller", params);
            let text = match &answer {
                Ok(names) => names.to_string(),
                Err(error) => error.to_string(),
            };
            link.check(
                answer.is_ok() == taken && (taken || text.contains("to leave that device alone")),
                format_args!("with {option} {first}, {address}: {text}"),
            )?;
        }
        let status = target.into_process().stop()?;
        link.check(status.success(), format_args!("the target stops: {status}"))?;
    }
    Ok(())
}
