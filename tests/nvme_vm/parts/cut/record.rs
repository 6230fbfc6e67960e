//! Operations on volumes, and each change that the controller's disk makes for them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::lvol::{LvolStore, StoreOptions};
use spdk_rs::nvme;

use super::actor::SHAPE;
use super::store::place::perform;
use super::store::volumes::{Family, Op};
use crate::guest;
use crate::run::Run;
use crate::vm::{Change, Drive, Link, LogWrites, Machine};

/// The name of the program that works.
pub const WORK: &str = "record-work";

/// What is done, one after the other. Among it are deletes of a thick and of a thin volume, of a clone, of a
/// snapshot beneath another, of one with a clone, and of a volume that was one.
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

/// What was done.
pub struct Recording {
    pub log: LogWrites,
    pub changes: Vec<Change>,
    pub done: Vec<Done>,
}

/// An operation, and how many changes the disk had made when it began, and when it was answered.
pub struct Done {
    pub op: Op,
    pub before: Family,
    pub begun: usize,
    pub answered: usize,
}

impl Done {
    /// What there should be when it has been done.
    pub fn after(&self) -> Family {
        let mut after = self.before.clone();
        after.apply(&self.op);
        after
    }
}

/// Has a machine carry the script out, for `part`, whose half for guests runs [`WORK`] if it is given a script.
pub fn record(run: &mut Run, part: &str) -> Result<Recording> {
    let log = LogWrites::create("log", run.file(&format!("{part}.log")))?;
    let mut drive = Drive::create("disk", run.file(&format!("{part}.img")), SHAPE.disk)?;
    drive.filters.push(log.filter());
    let machine = Machine::for_user_space()
        .arguments(log.arguments())
        .controller("nvme0", &drive);
    let mut vm = run.boot(&machine, part, json!({"script": script()}))?;
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
    let changes = log.changes()?;
    run.check(
        done.len() == script().len(),
        format_args!(
            "operations done: {}, by {} changes of the disk",
            done.len(),
            changes.len()
        ),
    );
    ensure!(log.header()? > 0, "the log has no header");
    Ok(Recording { log, changes, done })
}

/// The program that works.
pub fn work(link: &Link, params: &Value) -> Result<()> {
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
