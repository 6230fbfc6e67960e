//! Notes that are kept with volumes: what may be noted, on which volumes, for how long; and what is
//! left of one that could not be written.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::bdev::poll_once;
use common::disk::Fate;
use common::lvol::{MIB, kind, load_anew, scenario, store_in_memory, store_on};
use common::{isolated, run};
use spdk_rs::bdev::delay::{self, Latency};
use spdk_rs::bdev::{Bdev, Mode};
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, LvolStore, Provisioning, XATTR_MAX};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, spawn};

const LIMIT: Duration = Duration::from_secs(60);

/// What `xattrs` is to answer.
fn notes(notes: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    notes
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn slow(on: bool) -> Result<()> {
    let latency = Duration::from_millis(if on { 100 } else { 0 });
    Ok(delay::set_latency("slow0", Latency::all(latency))?)
}

#[test]
fn set_read_and_removed() {
    scenario("set_read_and_removed", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        ensure!(vol.xattrs().await?.is_empty() && vol.xattr("backup").await?.is_none());
        ensure!(kind(vol.remove_xattr("backup").await) == ErrorKind::NotFound);

        vol.set_xattr("backup", b"monday").await?;
        vol.set_xattr("empty", b"").await?;
        vol.set_xattr("gone", &[0, 255, 0]).await?;
        ensure!(vol.xattr("gone").await? == Some(vec![0, 255, 0]));
        vol.remove_xattr("gone").await?;
        vol.set_xattr("backup", b"tuesday").await?;
        let expected = notes(&[("backup", "tuesday"), ("empty", "")]);
        ensure!(vol.xattrs().await? == expected);
        ensure!(vol.xattr("empty").await? == Some(vec![]));

        // They are on disk, and neither a new name nor a new size is to them.
        load_anew(&disk).await?;
        ensure!(vol.xattrs().await? == expected);
        let vol = vol.rename("new").await?;
        vol.resize(8 * MIB).await?;
        ensure!(vol.xattrs().await? == expected);

        vol.clone().destroy().await?;
        ensure!(kind(vol.xattrs().await) == ErrorKind::NotFound);
        ensure!(kind(vol.set_xattr("backup", b"").await) == ErrorKind::NotFound);
        Ok(())
    });
}

#[test]
fn what_can_not_be_noted() {
    scenario("what_can_not_be_noted", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        for name in ["name", "uuid", "checksum", "clear_method", "", "a\0b"] {
            ensure!(
                kind(vol.set_xattr(name, b"x").await) == ErrorKind::InvalidArgument,
                "{name:?}"
            );
            ensure!(
                kind(vol.remove_xattr(name).await) == ErrorKind::InvalidArgument,
                "{name:?}"
            );
            ensure!(
                kind(vol.xattr(name).await) == ErrorKind::InvalidArgument,
                "{name:?}"
            );
        }
        let reserved = vol.set_xattr("uuid", b"x").await.unwrap_err().to_string();
        ensure!(
            reserved.contains("uuid is SPDK's own") && reserved.contains("lvs/vol"),
            "{reserved}"
        );

        let long = vec![7; XATTR_MAX - 4];
        vol.set_xattr("long", &long).await?;
        vol.set_xattr("more", &long).await?;
        let longer = vec![8; XATTR_MAX - 3];
        let refused = vol.set_xattr("long", &longer).await.unwrap_err();
        ensure!(refused.kind() == ErrorKind::InvalidArgument);
        ensure!(refused.to_string().contains("4064 bytes"), "{refused}");

        let store = load_anew(&disk).await?;
        ensure!(vol.xattr("long").await? == Some(long.clone()) && vol.xattr("more").await? == Some(long));
        ensure!(store.lvol("vol").await? == vol);

        // Read-only by its user's own wish; as a snapshot, it is written about again.
        vol.set_read_only().await?;
        let refused = vol.set_xattr("note", b"x").await.unwrap_err();
        ensure!(refused.kind() == ErrorKind::PermissionDenied);
        ensure!(refused.to_string().contains("read-only"), "{refused}");
        ensure!(kind(vol.remove_xattr("long").await) == ErrorKind::PermissionDenied);
        vol.clone_to("clone").await?;
        vol.remove_xattr("long").await?;
        vol.set_xattr("note", b"x").await?;
        ensure!(vol.xattrs().await?.into_keys().collect::<Vec<_>>() == ["more", "note"]);
        Ok(())
    });
}

#[test]
fn each_volume_has_its_own() {
    scenario("each_volume_has_its_own", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        vol.set_xattr("of", b"vol").await?;
        let snap = vol.snapshot("snap").await?;
        let clone = snap.clone_to("clone").await?;
        ensure!(snap.xattrs().await?.is_empty() && clone.xattrs().await?.is_empty());
        snap.set_xattr("of", b"snap").await?;
        clone.set_xattr("of", b"clone").await?;

        load_anew(&disk).await?;
        for lvol in [&vol, &snap, &clone] {
            ensure!(lvol.xattrs().await? == notes(&[("of", lvol.name())]), "{lvol}");
        }
        clone.inflate().await?;
        vol.decouple_parent().await?;
        ensure!(clone.xattrs().await? == notes(&[("of", "clone")]));
        ensure!(vol.xattrs().await? == notes(&[("of", "vol")]));

        // A snapshot that goes into its clone leaves nothing there.
        let snap = vol.snapshot("other").await?;
        snap.set_xattr("of", b"other").await?;
        snap.destroy().await?;
        ensure!(vol.xattrs().await? == notes(&[("of", "vol")]));
        Ok(())
    });
}

/// A snapshot that has lost its last clone is still one after a load, and takes notes and a sum. What was
/// made read-only is none.
#[test]
fn a_snapshot_without_clones_takes_notes() {
    scenario("a_snapshot_without_clones_takes_notes", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
        fill(&vol).await?;
        let snap = vol.snapshot("snap").await?;
        vol.destroy().await?;
        let user = store.create_lvol("user", MIB, Provisioning::Thin).await?;
        user.set_read_only().await?;
        let before = [snap.info().await?, user.info().await?];
        ensure!(before[0].snapshot && !before[1].snapshot);

        load_anew(&disk).await?;
        ensure!([snap.info().await?, user.info().await?] == before);
        ensure!(kind(user.set_xattr("backup", b"monday").await) == ErrorKind::PermissionDenied);
        snap.set_xattr("backup", b"monday").await?;
        let sum = snap.checksum().await?;
        let clone = snap.clone_to("clone").await?;
        clone.destroy().await?;
        ensure!(snap.xattr("backup").await? == Some(b"monday".to_vec()));
        ensure!(snap.stored_checksum().await? == Some(sum));
        Ok(snap.destroy().await?)
    });
}

async fn fill(lvol: &Lvol) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    for cluster in 0..4 {
        let buf = DmaBuf::copy_of(&[7; 4096])?;
        channel.write(buf, cluster * MIB).await.into_result()?;
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

#[test]
fn one_thing_at_a_time() {
    scenario("one_thing_at_a_time", |disk| async move {
        let store = store_on(&disk).await?;
        let vol = store.create_lvol("vol", 8 * MIB, Provisioning::Thin).await?;
        fill(&vol).await?;
        let snap = vol.snapshot("snap").await?;

        // Held by another operation, it is refused.
        slow(true)?;
        let summed = snap.clone();
        let sum = spawn(async move { summed.checksum().await });
        sleep(Duration::from_millis(20)).await;
        ensure!(kind(snap.set_xattr("note", b"x").await) == ErrorKind::Busy);
        ensure!(kind(snap.remove_xattr("note").await) == ErrorKind::Busy);
        ensure!(snap.xattrs().await?.is_empty() && !sum.is_finished());
        vol.set_xattr("note", b"of another volume").await?;
        timeout(LIMIT, sum).await???;

        // It holds the volume itself, also when nobody waits for it any more.
        for dropped in [false, true] {
            let noted = snap.clone();
            let note = move || async move { noted.set_xattr("note", b"new").await };
            let mut written = None;
            if dropped {
                let mut future = Box::pin(note());
                ensure!(poll_once(future.as_mut()).is_pending());
                sleep(Duration::from_millis(5)).await;
                ensure!(poll_once(future.as_mut()).is_pending());
            } else {
                written = Some(spawn(note()));
            }
            sleep(Duration::from_millis(20)).await;
            let held = snap.clone().destroy().await.unwrap_err();
            let DestroyError::Busy { holders, .. } = held else {
                anyhow::bail!("not as busy: {held}");
            };
            ensure!(holders.operation.as_deref() == Some("xattr"), "{holders}");
            ensure!(kind(snap.set_xattr("other", b"x").await) == ErrorKind::Busy);
            match written {
                Some(written) => timeout(LIMIT, written).await???,
                None => sleep(Duration::from_millis(1500)).await,
            }
            ensure!(snap.xattrs().await? == notes(&[("note", "new")]));
        }
        slow(false)?;
        snap.destroy_when_idle(LIMIT).await?;
        Ok(())
    });
}

#[test]
fn a_note_that_could_not_be_written_was_not_taken() {
    const NAME: &str = "a_note_that_could_not_be_written_was_not_taken";
    isolated(NAME, || run(broken()).expect(NAME));
}

async fn broken() -> Result<()> {
    let (disk, registered, store) = store_in_memory(64 * MIB).await?;
    let vol = store.create_lvol("vol", 4 * MIB, Provisioning::Thin).await?;
    let snap = vol.snapshot("snap").await?;
    for lvol in [&vol, &snap] {
        lvol.set_xattr("old", b"1").await?;
        for failing in [1, 2, 100] {
            disk.fail_times(Kind::Write, 1, failing, Fate::End(Status::Failed));
            let broken = async |name, value| kind(lvol.set_xattr(name, value).await) == ErrorKind::Io;
            ensure!(broken("new", b"2").await, "{lvol}");
            if failing > 1 {
                ensure!(broken("old", b"2").await, "{lvol}");
            }
            if failing > 2 {
                ensure!(kind(lvol.remove_xattr("old").await) == ErrorKind::Io, "{lvol}");
            }
            disk.mend();
            ensure!(lvol.xattrs().await? == notes(&[("old", "1")]), "{lvol}");
        }
        // It is whole, and nobody holds it.
        lvol.set_xattr("new", b"2").await?;
    }
    store.unload().await?;
    timeout(LIMIT, registered.unregister()).await??;
    let registered = disk.register("ram")?;
    let store = LvolStore::load("ram").await?;
    for name in ["snap", "vol"] {
        let lvol = store.lvol(name).await?;
        ensure!(
            lvol.xattrs().await? == notes(&[("new", "2"), ("old", "1")]),
            "{lvol}"
        );
        // What failed last is not on disk either.
        disk.fail_times(Kind::Write, 1, 100, Fate::End(Status::Failed));
        ensure!(kind(lvol.remove_xattr("old").await) == ErrorKind::Io, "{lvol}");
        disk.mend();
        timeout(LIMIT, lvol.destroy()).await??;
    }
    store.destroy().await?;
    Ok(timeout(LIMIT, registered.unregister()).await??)
}
