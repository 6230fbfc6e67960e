//! Random operations on the volumes of a store, several at a time, on the same and on related
//! volumes, against a model: at each look, names, sizes, relations, clusters and all data must be
//! what some order of the operations explains, and so must each answer (`history`); only what runs
//! meanwhile excuses a refusal (`conflict`). After a load all is as it was.
//!
//! `SPDK_RS_LVOL_MODEL_OPS` says how many operations, `SPDK_RS_LVOL_MODEL_SEED` which (see
//! `common::random`). A run that fails has said its seed, and looks for a short list of steps that
//! fails, too (`shrink`), which `SPDK_RS_LVOL_MODEL_STEPS` runs again.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/store/mod.rs"]
mod store;

mod chooser;
mod conflict;
mod history;
mod life;
mod model;
mod ops;
mod shrink;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use chooser::Chooser;
use common::random::{Random, seed};
use common::{is_child, run};
use life::{Life, Tally};
use model::Wrong;
use ops::Op;
use shrink::{MARK, Runner, shrink};

/// Operations in the life of a store: a list that fails is not longer.
const LIFE: u64 = 1_500;
/// Each has a life, where nothing else is asked for.
const SEEDS: [u64; 3] = [1, 2, 3];
/// For shrinking.
const PATIENCE: Duration = Duration::from_secs(120);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a process does.
fn child() {
    run(async {
        if let Err(error) = work().await {
            // The process is not to wait for what never ends.
            eprintln!("{MARK}{error:#}");
            std::process::exit(1);
        }
    });
}

async fn work() -> Result<()> {
    let place: PathBuf = std::env::var_os("LVOL_MODEL_PLACE").context("given")?.into();
    let disk = place.join("disk");
    let wrong = match std::env::var("LVOL_MODEL_WRONG").as_deref() {
        Ok("decouple") => Some(Wrong::Decouple),
        Ok("holder") => Some(Wrong::Holder),
        _ => None,
    };
    if let Some(list) = std::env::var_os("LVOL_MODEL_STEPS") {
        let mut life = Life::begin(&disk, wrong).await?;
        for step in shrink::read(list.as_ref()) {
            life.take(&step).await?;
        }
        life.end().await?;
        return Ok(());
    }
    let seed = number("LVOL_MODEL_SEED").context("given")?;
    let count = number("LVOL_MODEL_OPS").context("given")?;
    let mut lives = Random(seed);
    let mut all = Tally::default();
    let mut done = 0;
    while done < count {
        let mut log = File::create(place.join("steps"))?;
        let mut life = Life::begin(&disk, wrong).await?;
        let mut chooser = Chooser {
            random: Random(lives.below(u64::MAX)),
            key: 0,
        };
        let end = done + number("LVOL_MODEL_LIFE").unwrap_or(LIFE).min(count - done);
        while done < end {
            for step in chooser.some(&life.model) {
                writeln!(log, "{}", serde_json::to_string(&step)?)?;
                done += u64::from(!matches!(step.op, Op::Settle | Op::Reload { .. }));
                life.take(&step).await?;
            }
        }
        let Tally {
            done,
            refused,
            busy,
            looks,
            loads,
        } = life.end().await?;
        all.done += done;
        all.refused += refused;
        all.busy += busy;
        all.looks += looks;
        all.loads += loads;
    }
    println!(
        "lvol_model: {} operations done, {} refused ({} as busy), {} looks, {} loads",
        all.done, all.refused, all.busy, all.looks, all.loads
    );
    anyhow::ensure!(all.done > all.refused, "most was refused");
    Ok(())
}

#[test]
fn against_a_model() {
    if is_child() {
        return child();
    }
    let place = tempfile::tempdir().expect("a place");
    let runner = Runner {
        test: "against_a_model",
        place: place.path(),
        env: Vec::new(),
    };
    if let Some(list) = std::env::var_os("SPDK_RS_LVOL_MODEL_STEPS") {
        let failed = runner.fails(&shrink::read(list.as_ref()));
        assert!(failed.is_none(), "{}", failed.unwrap_or_default());
        return;
    }
    let count = number("SPDK_RS_LVOL_MODEL_OPS").unwrap_or(LIFE);
    let chosen = seed("SPDK_RS_LVOL_MODEL_SEED").map(|seed| vec![seed]);
    for seed in chosen.unwrap_or_else(|| SEEDS.to_vec()) {
        at_random(&runner, seed, count);
    }
}

fn at_random(runner: &Runner, seed: u64, count: u64) {
    println!("SPDK_RS_LVOL_MODEL_SEED={seed} SPDK_RS_LVOL_MODEL_OPS={count}");
    let limit = Duration::from_secs(60 + count / 20);
    match runner.at_random(seed, count, limit) {
        Ok(said) => said
            .lines()
            .filter_map(|line| line.find("lvol_model: ").map(|at| &line[at..]))
            .for_each(|line| println!("{line}")),
        Err(why) => {
            eprintln!(
                "{why}\n\nIt is being shrunk, for at most {} s.",
                PATIENCE.as_secs()
            );
            let steps = runner.steps();
            let of = steps.len();
            let failure = shrink(runner, steps, why, PATIENCE);
            panic!("SPDK_RS_LVOL_MODEL_SEED={seed}: {}", failure.report(of));
        }
    }
}

/// A model with a rule that is not so differs, and a list of a few steps says where.
fn finds(test: &str, wrong: &str, word: &str, at_most: usize) {
    if is_child() {
        return child();
    }
    let place = tempfile::tempdir().expect("a place");
    let runner = Runner {
        test,
        place: place.path(),
        // Short lives, so that lists are short from the start.
        env: vec![
            ("LVOL_MODEL_WRONG", wrong.to_owned()),
            ("LVOL_MODEL_LIFE", "60".to_owned()),
        ],
    };
    let limit = Duration::from_secs(100);
    let why = runner.at_random(1, 3_000, limit).expect_err("the model is wrong");
    let failure = shrink(&runner, runner.steps(), why, PATIENCE);
    assert!(failure.why.contains(word), "{}", failure.why);
    assert!(failure.len() <= at_most, "{}", failure.report(0));
    assert!(failure.again > 0, "{}", failure.report(0));
}

#[test]
fn a_wrong_rule_is_found() {
    finds("a_wrong_rule_is_found", "decouple", "parent", 4);
}

#[test]
fn a_wrong_rule_of_what_runs_together_is_found() {
    finds(
        "a_wrong_rule_of_what_runs_together_is_found",
        "holder",
        "checksum",
        5,
    );
}
