//! A note on disk, that a snapshot is being made, which could not be taken back when it was done: until
//! it is, a crash makes the load look whether the volume lies on the snapshot.

use anyhow::{Context, Result, ensure};
use spdk_rs::ErrorKind;
use spdk_rs::lvol::check::Finding;

use super::actor::{SHAPE, of_lane};
use super::cases::{chain, snapshot};
use super::common;
use super::store::disk::Fault;
use super::store::place::Place;
use super::store::volumes::{Family, Op};
use crate::common::run;

/// The write of a snapshot's root page that takes the note back, among the I/O of taking it as the first
/// change after a load.
const LAST: u64 = 8;

#[test]
fn a_snapshot_not_marked_as_done_is_kept() {
    const NAME: &str = "notes::a_snapshot_not_marked_as_done_is_kept";
    common::isolated(NAME, || run(scenario()).expect(NAME));
}

async fn scenario() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (disk, crashed) = (place.path().join("disk"), place.path().join("crashed"));
    let mut family = Family::default();
    let store = Place::create(&disk, SHAPE).await?;
    for op in chain() {
        store.perform(&op).await?;
        family.apply(&op);
    }
    store.leave().await?;
    let store = Place::load(&disk, SHAPE).await?;
    let taken = snapshot("0-vol", "0-more");
    store.disk.arm(Fault::Fail, LAST);
    store.perform(&taken).await.context("it is done all the same")?;
    ensure!(!store.disk.disarm(), "an I/O failed");
    family.apply(&taken);
    let noted = |finding: &Finding| matches!(finding, Finding::InterruptedSnapshot { taken: true, .. });
    ensure!(
        store.store.check().await?.findings.iter().any(noted),
        "the note is on disk"
    );

    // What would take the volume off the snapshot waits for it, and a crash then leads to both.
    let vol = || "0-vol".to_owned();
    for op in [
        snapshot("0-vol", "0-third"),
        Op::Inflate { vol: vol() },
        Op::Decouple { vol: vol() },
        Op::Destroy { vol: vol() },
    ] {
        let answer = store.perform(&op).await;
        std::fs::copy(&disk, &crashed)?;
        let error = answer.err().with_context(|| format!("{op:?} was done"))?;
        let error = error.downcast_ref::<spdk_rs::Error>().map(spdk_rs::Error::kind);
        ensure!(
            error.is_none_or(|kind| kind == ErrorKind::Busy),
            "{op:?}: {error:?}"
        );
    }
    // The next write of the snapshot's metadata takes it back.
    store.perform(&Op::Checksum { vol: "0-more".into() }).await?;
    store.check(|_| false).await?;
    let third = snapshot("0-vol", "0-third");
    store.perform(&third).await.context("afterwards")?;
    store.leave().await?;

    for (disk, family) in [
        (&crashed, family.clone()),
        (&disk, {
            family.apply(&third);
            family
        }),
    ] {
        let store = Place::load_despite(disk, SHAPE, noted).await?;
        family.check(&of_lane(&store.report().await?, 0))?;
        store.check(|_| false).await?;
        store.leave().await?;
    }
    Ok(())
}
