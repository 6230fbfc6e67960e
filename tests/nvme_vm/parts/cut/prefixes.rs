//! A disk that has got as far as the n-th change, for every n: all that is between the beginning of an operation and its
//! answer is replayed change by change, and each disk is looked at as a target would find it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::aio;
use spdk_rs::lvol::check::{Remedy, check_file};
use spdk_rs::lvol::{LvolStore, StoreOptions};
use spdk_rs::{Runtime, nvme};

use super::actor::{Line, SHAPE};
use super::store::place::{Report, perform, report};
use super::store::volumes::{Family, Op};
use crate::guest;
use crate::parts::Part;
use crate::run::Run;
use crate::vm::{Drive, Heard, Link, LogWrites, Machine};

pub const PART: Part = Part {
    name: "prefixes",
    about: "every ordered prefix of what a delete writes",
    host: on_host,
    guest: |link, params| super::run_with_address(link, "prefixes-work", params),
    programs: &[("prefixes-work", work), ("prefixes-look", look)],
};

/// What is done, one after the other. Deletes are looked at change by change: of a thick and of a thin volume, of a clone,
/// of a snapshot with a clone, of one between two, and of one without clones; with --full, all that comes before, too.
fn script() -> Vec<Op> {
    let name = |name: &str| format!("0-{name}");
    let create = |vol, clusters, thin| Op::Create {
        vol: name(vol),
        clusters,
        thin,
    };
    let write = |vol, cells: &[(u64, u64)]| Op::Write {
        vol: name(vol),
        cells: cells.to_vec(),
    };
    let snapshot = |vol, made| Op::Snapshot {
        vol: name(vol),
        name: name(made),
    };
    let destroy = |vol| Op::Destroy { vol: name(vol) };
    vec![
        create("thick", 3, false),
        write("thick", &[(0, 1), (5, 2)]),
        create("thin", 4, true),
        write("thin", &[(0, 3), (9, 4)]),
        snapshot("thin", "old"),
        write("thin", &[(0, 5), (4, 6)]),
        snapshot("thin", "new"),
        Op::Checksum { vol: name("new") },
        Op::Clone {
            vol: name("new"),
            name: name("clone"),
        },
        write("clone", &[(9, 7)]),
        write("thin", &[(12, 8)]),
        create("other", 2, true),
        write("other", &[(1, 9)]),
        destroy("thick"),
        destroy("other"),
        destroy("old"),
        destroy("clone"),
        destroy("new"),
        create("last", 1, false),
        write("last", &[(2, 10)]),
        destroy("thin"),
    ]
}

/// An operation, and how many changes the disk had made when it began, and when it was answered.
struct Done {
    op: Op,
    before: Family,
    begun: usize,
    answered: usize,
}

fn on_host(run: &mut Run) -> Result<()> {
    let log = LogWrites::create("log", run.file("prefixes.log"))?;
    let mut drive = Drive::create("disk", run.file("prefixes.img"), SHAPE.disk)?;
    drive.filters.push(log.filter());
    let done = record(run, &log, &drive)?;
    let changes = log.changes()?;
    run.note(format_args!("the disk made {} changes", changes.len()));

    let (disk, copy) = (run.file("prefix"), run.file("prefix-copy"));
    std::fs::File::create(&disk)?.set_len(SHAPE.disk)?;
    let mut at = 0;
    for done in &done {
        log.replay(&changes[at..done.begun], &disk)?;
        at = done.begun;
        if !run.full && !matches!(done.op, Op::Destroy { .. }) {
            continue;
        }
        let mut after = done.before.clone();
        after.apply(&done.op);
        let (mut old, mut new, mut wrong) = (0, 0, Vec::new());
        for count in done.begun..=done.answered {
            log.replay(&changes[at..count], &disk)?;
            at = count;
            std::fs::copy(&disk, &copy)?;
            let may_be = match count {
                _ if count == done.begun => vec![done.before.clone()],
                _ if count == done.answered || new > 0 => vec![after.clone()],
                _ => done.before.unheard(&done.op),
            };
            match found(&copy).and_then(|report| which(&report, &may_be, &after)) {
                Ok(true) => new += 1,
                Ok(false) => old += 1,
                Err(error) => wrong.push(format!("after {} changes: {error:#}", count - done.begun)),
            }
        }
        for wrong in &wrong {
            run.note(wrong);
        }
        run.check(
            wrong.is_empty() && new > 0 && (old > 0 || done.before == after),
            format_args!(
                "{:?}: {old} prefixes with what was, {new} with what is, others: {}",
                done.op,
                wrong.len()
            ),
        );
    }
    Ok(())
}

/// Has the machine carry the script out, and counts.
fn record(run: &mut Run, log: &LogWrites, drive: &Drive) -> Result<Vec<Done>> {
    let machine = Machine::for_user_space()
        .arguments(log.arguments())
        .controller("nvme0", drive);
    let mut vm = run.boot(&machine, PART.name, json!({"script": script()}))?;
    let mut done: Vec<Done> = Vec::new();
    let mut family = Family::default();
    run.serve(&mut vm, |_, _, what, params| {
        let count = log.changes()?.len();
        match what {
            "begins" => done.push(Done {
                op: serde_json::from_value(params.clone())?,
                before: family.clone(),
                begun: count,
                answered: 0,
            }),
            "done" => {
                let last = done.last_mut().context("nothing was begun")?;
                last.answered = count;
                family.apply(&last.op);
            }
            what => bail!("nobody here knows {what}"),
        }
        Ok(Value::Null)
    })?;
    vm.quit()?;
    run.check(
        done.len() == script().len(),
        format_args!("operations done: {}", done.len()),
    );
    let entries = log.header()?;
    ensure!(entries > 0, "the log has no header");
    Ok(done)
}

/// Whether what was found is what is there afterwards.
fn which(report: &Report, may_be: &[Family], after: &Family) -> Result<bool> {
    report.check_space()?;
    let wrong: Vec<_> = may_be
        .iter()
        .map(|family| family.check(&report.volumes))
        .collect();
    if wrong.iter().all(Result::is_err) {
        bail!("{wrong:?}");
    }
    Ok(after.check(&report.volumes).is_ok())
}

/// What a process finds that loads the store of an image.
fn found(image: &Path) -> Result<Report> {
    let output = Command::new(std::env::current_exe()?)
        .args(["program", "prefixes-look", &json!({ "image": image }).to_string()])
        .output()?;
    let mut said = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match serde_json::from_str(line) {
            Ok(Heard::Tell { what }) => match serde_json::from_value(what)? {
                Line::Report(report) => said.push(report),
                line => bail!("it says {line:?}"),
            },
            Ok(Heard::End { error: Some(error) }) => bail!(error),
            // SPDK and DPDK say things there, too.
            _ => {}
        }
    }
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said.pop().context("it says nothing")
}

/// The program that looks.
fn look(link: &Link, params: &Value) -> Result<()> {
    let (link, image) = (
        link.clone(),
        params["image"].as_str().context("a path")?.to_owned(),
    );
    let check = check_file(&image)?;
    let mut findings = check.findings.iter();
    ensure!(
        findings.all(|finding| finding.remedy() == Remedy::Load),
        "before it is loaded: {check}"
    );
    let runtime = Runtime::builder().name("prefixes").no_huge(true).build()?;
    runtime.run(async move {
        aio::create("disk0", &image, 512)?;
        let store = LvolStore::load("disk0").await?;
        let check = store.check().await?;
        ensure!(check.findings.is_empty(), "loaded: {check}");
        let found = report(&store, SHAPE).await?;
        link.tell(serde_json::to_value(Line::Report(found))?)
    })?
}

/// The program that works.
fn work(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        nvme::attach_pcie("Nvme0", params["address"].as_str().context("an address")?).await?;
        let options = StoreOptions::default().cluster_size(SHAPE.cluster as u32);
        let store = LvolStore::create("Nvme0n1", "lvs", options).await?;
        for op in serde_json::from_value::<Vec<Op>>(params["script"].clone())? {
            link.ask("begins", serde_json::to_value(&op)?)?;
            let origin = match &op {
                Op::Create { .. } => None,
                _ => Some(store.lvol(op.vol()).await?),
            };
            perform(&store, origin, &op, SHAPE)
                .await
                .with_context(|| format!("{op:?}"))?;
            link.ask("done", Value::Null)?;
        }
        Ok(())
    })
}
