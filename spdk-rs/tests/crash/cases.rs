//! The operations at each of whose steps something goes wrong.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::actor::of_lane;
use super::store::place::{Place, Report, Shape};
use super::store::volumes::{CELLS, Family, Op};

/// More steps than any operation has.
pub const MANY: u64 = 400;

/// What there is before, and what is done then.
pub struct Case {
    pub name: &'static str,
    pub before: Vec<Op>,
    pub op: Op,
}

impl Case {
    /// What there is before, as it should be.
    pub fn family(&self) -> Family {
        family(&self.before)
    }
}

/// What there is after these operations.
pub fn family(ops: &[Op]) -> Family {
    let mut family = Family::default();
    ops.iter().for_each(|op| family.apply(op));
    family
}

pub fn create(vol: &str, clusters: u64, thin: bool) -> Op {
    let vol = vol.into();
    Op::Create { vol, clusters, thin }
}

/// Something in each of these clusters.
pub fn fill(vol: &str, clusters: &[u64], id: u64) -> Op {
    Op::Write {
        vol: vol.into(),
        cells: clusters
            .iter()
            .map(|cluster| (cluster * CELLS, id + cluster))
            .collect(),
    }
}

pub fn snapshot(vol: &str, name: &str) -> Op {
    let (vol, name) = (vol.into(), name.into());
    Op::Snapshot { vol, name }
}

pub fn destroy(vol: &str) -> Op {
    Op::Destroy { vol: vol.into() }
}

/// A volume on two snapshots, each with something of its own.
pub fn chain() -> Vec<Op> {
    vec![
        create("0-vol", 4, true),
        fill("0-vol", &[0, 1], 100),
        snapshot("0-vol", "0-old"),
        fill("0-vol", &[1, 2], 200),
        snapshot("0-vol", "0-new"),
        fill("0-vol", &[2], 300),
    ]
}

pub fn cases() -> Vec<Case> {
    let case = |name, before, op| Case { name, before, op };
    let vol = || "0-vol".to_owned();
    vec![
        case(
            "destroy a thick volume",
            vec![create("0-vol", 3, false), fill("0-vol", &[0, 2], 1)],
            destroy("0-vol"),
        ),
        case("destroy a clone", chain(), destroy("0-vol")),
        case("destroy a snapshot with a clone", chain(), destroy("0-new")),
        case("destroy a snapshot beneath another", chain(), destroy("0-old")),
        case("create a thick volume", chain(), create("0-more", 3, false)),
        case("create a thin volume", chain(), create("0-more", 3, true)),
        case("take a snapshot", chain(), snapshot("0-vol", "0-more")),
        case(
            "clone",
            chain(),
            Op::Clone {
                vol: "0-old".into(),
                name: "0-more".into(),
            },
        ),
        case("inflate", chain(), Op::Inflate { vol: vol() }),
        case("decouple", chain(), Op::Decouple { vol: vol() }),
        case(
            "grow",
            vec![create("0-vol", 2, false), fill("0-vol", &[0, 1], 1)],
            Op::Resize {
                vol: vol(),
                clusters: 5,
            },
        ),
        case(
            "shrink",
            vec![create("0-vol", 5, false), fill("0-vol", &[0, 4], 1)],
            Op::Resize {
                vol: vol(),
                clusters: 2,
            },
        ),
        case(
            "rename",
            chain(),
            Op::Rename {
                vol: vol(),
                name: "0-more".into(),
            },
        ),
        case("set read-only", chain(), Op::ReadOnly { vol: vol() }),
    ]
}

/// Makes a disk with a store on which all that was done.
pub async fn prepare(before: &[Op], disk: &Path, shape: Shape) -> Result<()> {
    let place = Place::create(disk, shape).await?;
    for op in before {
        place.perform(op).await.with_context(|| format!("{op:?}"))?;
    }
    place.leave().await
}

/// The state is one of these, and no cluster is lost.
pub fn check(report: &Report, may_be: &[Family]) -> Result<()> {
    report.check_space()?;
    check_volumes(report, may_be)
}

pub fn check_volumes(report: &Report, may_be: &[Family]) -> Result<()> {
    let found = of_lane(report, 0);
    let wrong: Vec<_> = may_be.iter().map(|family| family.check(&found)).collect();
    ensure!(wrong.iter().any(Result::is_ok), "{wrong:?}; found: {found:?}");
    Ok(())
}
