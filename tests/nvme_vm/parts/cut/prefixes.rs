//! A disk that has got as far as the n-th change, for every n: all that is between the beginning of an operation and its
//! answer is replayed change by change, and each disk is looked at as a target would find it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::Runtime;
use spdk_rs::bdev::aio;
use spdk_rs::lvol::LvolStore;
use spdk_rs::lvol::check::{Remedy, check_file};

use super::actor::{Line, SHAPE};
use super::record::{self, Recording, record};
use super::store::place::{Report, report};
use super::store::volumes::{Family, Op};
use crate::parts::Part;
use crate::run::Run;
use crate::vm::{Heard, Link};

pub const PART: Part = Part {
    name: "prefixes",
    about: "every ordered prefix of what a delete writes",
    host: on_host,
    guest: |link, params| super::run_with_address(link, record::WORK, params),
    programs: &[("prefixes-look", look)],
};

fn on_host(run: &mut Run) -> Result<()> {
    let Recording { log, changes, done } = record(run, PART.name)?;
    let (disk, copy) = (run.file("prefix"), run.file("prefix-copy"));
    std::fs::File::create(&disk)?.set_len(SHAPE.disk)?;
    let mut at = 0;
    for done in &done {
        log.replay(&changes[at..done.begun], &disk)?;
        at = done.begun;
        if !run.full && !matches!(done.op, Op::Destroy { .. }) {
            continue;
        }
        let after = done.after();
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
