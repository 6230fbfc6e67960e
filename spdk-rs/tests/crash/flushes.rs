//! What it costs that metadata lasts: how many flushes each operation asks of a disk with a volatile write
//! cache. One without is never flushed.

use anyhow::{Context, Result, ensure};

use super::actor::{SHAPE, WITH_CACHE};
use super::cases::{create, destroy, fill, snapshot};
use super::common::{self, run};
use super::store::place::{Place, Shape};
use super::store::volumes::Op;

/// Operations, one after the other, and the flushes of each.
fn costs() -> Vec<(&'static str, Op, u64)> {
    let vol = || "0-vol".to_owned();
    let resize = |clusters| Op::Resize { vol: vol(), clusters };
    let clone = |vol: &str, name: &str| Op::Clone {
        vol: vol.into(),
        name: name.into(),
    };
    vec![
        (
            "the first change after a load, a creation",
            create("0-first", 1, true),
            2,
        ),
        ("create a thin volume", create("0-vol", 4, true), 1),
        ("create a thick volume", create("0-thick", 2, false), 2),
        // Of a store that was loaded no cluster is known to be zero.
        ("zero the first new cluster of 512", fill("0-vol", &[0], 1), 2),
        ("zero another new cluster", fill("0-vol", &[1], 1), 1),
        ("write to clusters that are there", fill("0-vol", &[0, 1], 2), 0),
        ("take a snapshot", snapshot("0-vol", "0-snap"), 5),
        (
            "copy the first cluster of 512 from the snapshot",
            fill("0-vol", &[0], 3),
            2,
        ),
        ("copy another one", fill("0-vol", &[1], 3), 1),
        ("take a snapshot of a clone", snapshot("0-vol", "0-upper"), 5),
        (
            "checksum",
            Op::Checksum {
                vol: "0-upper".into(),
            },
            1,
        ),
        ("clone", clone("0-snap", "0-clone"), 1),
        (
            "rename",
            Op::Rename {
                vol: vol(),
                name: "0-other".into(),
            },
            1,
        ),
        (
            "rename back",
            Op::Rename {
                vol: "0-other".into(),
                name: vol(),
            },
            1,
        ),
        ("grow", resize(6), 1),
        ("decouple, copying two clusters", Op::Decouple { vol: vol() }, 5),
        (
            "inflate, copying four clusters",
            Op::Inflate {
                vol: "0-clone".into(),
            },
            7,
        ),
        ("write to a thick volume", fill("0-thick", &[0], 4), 0),
        (
            "take a snapshot of a thick volume",
            snapshot("0-thick", "0-below"),
            5,
        ),
        ("delete a snapshot with a clone", destroy("0-below"), 4),
        (
            "shrink",
            Op::Resize {
                vol: "0-thick".into(),
                clusters: 1,
            },
            2,
        ),
        (
            "set read-only",
            Op::ReadOnly {
                vol: "0-first".into(),
            },
            1,
        ),
        ("delete a volume", destroy("0-thick"), 1),
    ]
}

#[test]
fn what_is_flushed() {
    const NAME: &str = "flushes::what_is_flushed";
    common::isolated_and_heard(NAME, "flushes: ", || run(count()).expect(NAME));
}

async fn count() -> Result<()> {
    let mut wrong = Vec::new();
    for shape in [WITH_CACHE, SHAPE] {
        wrong.extend(count_on(shape).await?);
    }
    ensure!(wrong.is_empty(), "flushes: {wrong:#?}");
    Ok(())
}

async fn count_on(shape: Shape) -> Result<Vec<String>> {
    let place = tempfile::tempdir()?;
    let disk = place.path().join("disk");
    let store = Place::create(&disk, shape).await?;
    let made = store.disk.flushes();
    store.store.unload().await?;
    let unloaded = store.disk.flushes() - made;
    store.leave().await?;
    let store = Place::load(&disk, shape).await?;
    let mut counted = vec![
        ("create a store", made, 5),
        ("unload it", unloaded, 2),
        ("load it", store.disk.flushes(), 0),
    ];
    for (name, op, expected) in costs() {
        let before = store.disk.flushes();
        store.perform(&op).await.context(name)?;
        counted.push((name, store.disk.flushes() - before, expected));
    }
    let before = store.disk.flushes();
    store.store.rename("other").await?;
    counted.push(("rename the store", store.disk.flushes() - before, 1));
    store.leave().await?;

    let mut wrong = Vec::new();
    for (name, is, expected) in counted {
        let expected = if shape.write_cache { expected } else { 0 };
        if shape.write_cache {
            println!("flushes: {is}  {name}");
        }
        if is != expected {
            wrong.push(format!("{name}: {is}, should be {expected}"));
        }
    }
    Ok(wrong)
}
