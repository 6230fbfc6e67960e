//! Destroying a volume that somebody holds: refused whole, with exactly the holder that was injected; and granted to
//! the very same handle when the holder has gone.

mod common;

use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::lvol::{MIB, ensure_unchanged, infos, load_anew, scenario, store_on};
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::future::join5;
use spdk_rs::bdev::{self, Bdev, Mode, delay};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{DestroyError, Lvol, LvolStore, Provisioning, stop_checksum};
use spdk_rs::reactor::{sleep, timeout};
use spdk_rs::{ErrorKind, spawn};

const LIMIT: Duration = Duration::from_secs(60);

/// A store on a delay bdev on an AIO bdev, with `vol` (thin) on `snap`, which has data in clusters 0 to 3 and 8.
async fn volume_on(disk: &Path) -> Result<(LvolStore, Lvol, Lvol)> {
    let store = store_on(disk).await?;
    let vol = store.create_lvol("vol", 16 * MIB, Provisioning::Thin).await?;
    for cluster in [0, 1, 2, 3, 8] {
        write(&vol, cluster).await?;
    }
    let snap = vol.snapshot("snap").await?;
    Ok((store, vol, snap))
}

fn pattern(cluster: u64) -> Vec<u8> {
    (0..MIB)
        .map(|at| ((at / 512 + at) as u8).wrapping_add(cluster as u8))
        .collect()
}

async fn write(lvol: &Lvol, cluster: u64) -> Result<()> {
    let descriptor = Bdev::find(&lvol.uuid().to_string())?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    channel
        .write(DmaBuf::copy_of(&pattern(cluster))?, cluster * MIB)
        .await
        .into_result()?;
    drop(channel);
    Ok(descriptor.close().await?)
}

async fn verify(lvol: &Lvol) -> Result<()> {
    let descriptor = Bdev::find(&lvol.to_string())?.open(Mode::ReadOnly)?;
    let channel = descriptor.channel()?;
    for cluster in 0..16 {
        let ((), buf) = channel
            .read(DmaBuf::new(MIB as usize)?, cluster * MIB)
            .await
            .ok()?;
        let expected = if matches!(cluster, 0..=3 | 8) {
            pattern(cluster)
        } else {
            vec![0; MIB as usize]
        };
        ensure!(buf.as_slice() == expected, "cluster {cluster} of {lvol}");
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

fn slow(on: bool) -> Result<()> {
    let latency = Duration::from_millis(if on { 40 } else { 0 });
    Ok(delay::set_latency("slow0", delay::Latency::all(latency))?)
}

/// The destroy is refused by exactly this holder, and nothing has changed.
async fn refused(
    lvol: Lvol,
    operation: Option<&str>,
    holder: Option<&str>,
    open_refs: u32,
    clones: &[&str],
) -> Result<Lvol> {
    let store = lvol.store().clone();
    let before = infos(&store).await?;
    let error = match lvol.destroy().await {
        Ok(()) => bail!("it was destroyed"),
        Err(error) => error,
    };
    ensure!(error.kind() == ErrorKind::Busy, "{error}");
    let DestroyError::Busy { lvol, holders } = error else {
        bail!("another error: {error}");
    };
    ensure!(holders.operation.as_deref() == operation, "{holders:?}");
    ensure!(holders.holder.as_deref() == holder, "{holders:?}");
    ensure!(holders.open_refs == open_refs, "{holders:?}");
    ensure!(holders.clones == clones, "{holders:?}");
    ensure!(infos(&store).await? == before, "a refusal changed something");
    ensure!(Bdev::find(&lvol.uuid().to_string())?.name() == lvol.uuid().to_string());
    Ok(lvol)
}

/// Destroys `gone`, checks `kept`, and finds the same after the store has been loaded anew from the file alone.
async fn granted(disk: &Path, gone: Lvol, kept: &Lvol) -> Result<()> {
    let store = gone.store().clone();
    timeout(LIMIT, gone.clone().destroy()).await??;
    ensure!(gone.info().await.unwrap_err().kind() == ErrorKind::NotFound);
    verify(kept).await?;
    let before = infos(&store).await?;
    let store = load_anew(disk).await?;
    ensure_unchanged(&store, &before).await?;
    verify(kept).await?;
    store.destroy().await?;
    Ok(bdev::aio::delete("aio0").await?)
}

#[test]
fn a_checksum_holds_its_snapshot() {
    scenario("a_checksum_holds_its_snapshot", |disk| async move {
        let (_store, vol, snap) = volume_on(&disk).await?;
        let mut expected = Digest::new(CrcAlgorithm::Crc64GoIso);
        for cluster in [0, 1, 2, 3, 8] {
            expected.update(&pattern(cluster));
        }
        let expected = expected.finalize();

        ensure!(snap.stored_checksum().await?.is_none());
        ensure!(snap.checksum().await? == expected);
        ensure!(snap.stored_checksum().await? == Some(expected));
        ensure!(vol.checksum().await.unwrap_err().kind() == ErrorKind::PermissionDenied);

        slow(true)?;
        let job = spawn({
            let snap = snap.clone();
            async move { snap.checksum().await }
        });
        sleep(Duration::from_millis(20)).await;
        let snap = refused(snap, Some("checksum"), Some("snap"), 1, &["vol"]).await?;
        ensure!(!job.is_finished(), "it was to be running all the time");
        let again = snap.checksum().await.unwrap_err();
        ensure!(again.kind() == ErrorKind::Busy, "{again}");

        stop_checksum(&snap).await?;
        let stopped = job.await?.unwrap_err();
        ensure!(stopped.errno() == libc::EINTR, "{stopped}");
        ensure!(stop_checksum(&snap).await.unwrap_err().errno() == libc::ESRCH);
        ensure!(
            snap.stored_checksum().await? == Some(expected),
            "a stopped job leaves the sum"
        );

        // A future that is dropped stops its job.
        let dropped = timeout(Duration::from_millis(20), snap.checksum()).await;
        ensure!(dropped.unwrap_err().kind() == ErrorKind::TimedOut);
        let _ = stop_checksum(&snap).await; // waits for its end, if that has not come yet
        slow(false)?;
        granted(&disk, snap, &vol).await
    });
}

#[test]
fn an_inflate_holds_its_volume() {
    scenario("an_inflate_holds_its_volume", |disk| async move {
        let (store, vol, snap) = volume_on(&disk).await?;
        slow(true)?;
        let job = spawn({
            let vol = vol.clone();
            async move { vol.inflate().await }
        });
        sleep(Duration::from_millis(20)).await;
        let vol = refused(vol, Some("inflate"), Some("vol"), 1, &[]).await?;
        // The store cannot be destroyed either, and stays usable.
        ensure!(store.destroy().await.unwrap_err().kind() == ErrorKind::Busy);
        ensure!(store.lvols().await?.len() == 2);
        ensure!(!job.is_finished(), "it was to be running all the time");
        slow(false)?;
        job.await??;
        ensure!(!vol.info().await?.clone);
        granted(&disk, vol, &snap).await
    });
}

#[test]
fn an_inflate_of_the_clone_holds_the_snapshot() {
    scenario("an_inflate_of_the_clone_holds_the_snapshot", |disk| async move {
        let (_store, vol, snap) = volume_on(&disk).await?;
        slow(true)?;
        let job = spawn({
            let vol = vol.clone();
            async move { vol.inflate().await }
        });
        sleep(Duration::from_millis(20)).await;
        let snap = refused(snap, Some("inflate"), Some("vol"), 0, &["vol"]).await?;
        ensure!(!job.is_finished(), "it was to be running all the time");
        slow(false)?;
        job.await??;
        granted(&disk, snap, &vol).await
    });
}

/// Opens the volume's blob once more, as some other part of a program might, or closes it.
async fn foreign(lvol: &Lvol, open: bool) -> Result<()> {
    unsafe extern "C" fn opened(at: *mut c_void, _: *mut spdk_sys::spdk_blob, rc: c_int) {
        // SAFETY: `at` is the cell below: the blob is in memory, so C calls back at once.
        unsafe { *at.cast::<c_int>() = rc };
    }
    unsafe extern "C" fn closed(at: *mut c_void, rc: c_int) {
        // SAFETY: as above; nothing has to be written.
        unsafe { *at.cast::<c_int>() = rc };
    }
    let mut answer: c_int = 1;
    let at = (&raw mut answer).cast::<c_void>();
    // SAFETY: on the app thread, which is the metadata thread; the lists are walked without a pause.
    unsafe {
        let lvs = spdk_sys::shim_lvs_next(std::ptr::null_mut());
        let mut raw = spdk_sys::shim_lvol_next(lvs, std::ptr::null_mut());
        while !raw.is_null() && CStr::from_ptr((*raw).name.as_ptr()).to_str()? != lvol.name() {
            raw = spdk_sys::shim_lvol_next(lvs, raw);
        }
        ensure!(!raw.is_null(), "no {lvol}");
        if open {
            let (bs, id) = (
                spdk_sys::shim_lvol_blobstore(raw),
                spdk_sys::shim_lvol_blob_id(raw),
            );
            spdk_sys::spdk_bs_open_blob(bs, id, Some(opened), at);
        } else {
            spdk_sys::spdk_blob_close(spdk_sys::shim_lvol_blob(raw), Some(closed), at);
        }
    }
    ensure!(answer == 0, "errno {answer}, or no answer at once");
    Ok(())
}

#[test]
fn foreign_opens_hold_a_volume() {
    scenario("foreign_opens_hold_a_volume", |disk| async move {
        let (_store, vol, mut snap) = volume_on(&disk).await?;
        for opens in [1, 3] {
            for _ in 0..opens {
                foreign(&snap, true).await?;
            }
            snap = refused(snap, None, None, opens, &["vol"]).await?;
            for _ in 0..opens {
                foreign(&snap, false).await?;
            }
        }
        granted(&disk, snap, &vol).await
    });
}

#[test]
fn two_clones_and_two_destroys() {
    scenario("two_clones_and_two_destroys", |disk| async move {
        let (store, vol, snap) = volume_on(&disk).await?;
        let second = snap.clone_to("second").await?;
        let before = infos(&store).await?;
        let error = snap.destroy().await.unwrap_err();
        let DestroyError::HasClones { lvol: snap, clones } = error else {
            bail!("another error: {error}");
        };
        ensure!(clones == ["vol", "second"], "{clones:?}");
        ensure!(infos(&store).await? == before, "a refusal changed something");

        // A granted destroy waits for I/O that is under way; a second one is busy, never "not found".
        let descriptor = Bdev::find(&second.to_string())?.open(Mode::ReadOnly)?;
        let channel = descriptor.channel()?;
        // A read takes long, what the destroy itself writes does not.
        let read = Duration::from_millis(500);
        let latency = delay::Latency {
            read,
            read_p99: read,
            ..delay::Latency::NONE
        };
        delay::set_latency("slow0", latency)?;
        let reading = spawn({
            let buf = DmaBuf::new(4096)?;
            async move { channel.read(buf, 0).await.is_ok() }
        });
        sleep(Duration::from_millis(5)).await;
        let destroyed = spawn({
            let second = second.clone();
            async move { second.destroy().await }
        });
        sleep(Duration::from_millis(20)).await;
        ensure!(!descriptor.is_removed(), "the read is not waited for");
        let error = second.destroy().await.unwrap_err();
        let holders = error.holders().with_context(|| format!("busy: {error:?}"))?;
        ensure!(holders.operation.as_deref() == Some("delete"), "{holders}");
        ensure!(reading.await?, "the read was accepted before the destroy");
        drop(descriptor);
        slow(false)?;
        timeout(LIMIT, destroyed).await???;
        granted(&disk, snap, &vol).await
    });
}

/// Every operation that is refused says by which other one.
#[test]
fn refusals_name_the_operation() {
    scenario("refusals_name_the_operation", |disk| async move {
        let (_store, vol, snap) = volume_on(&disk).await?;
        slow(true)?;
        let inflated = vol.clone();
        let job = spawn(async move { inflated.inflate().await });
        sleep(Duration::from_millis(20)).await;
        let refusals = [
            vol.snapshot("other").await.err(),
            vol.inflate().await.err(),
            vol.decouple_parent().await.err(),
            vol.resize(32 * MIB).await.err(),
            vol.set_read_only().await.err(),
            vol.set_xattr("note", b"x").await.err(),
        ];
        for refusal in refusals {
            let refusal = refusal.context("it is held")?;
            ensure!(refusal.kind() == ErrorKind::Busy, "{refusal}");
            ensure!(
                refusal.to_string().contains("inflate in progress on vol"),
                "{refusal}"
            );
        }
        let summed = snap.clone();
        let sum = spawn(async move { summed.checksum().await });
        sleep(Duration::from_millis(20)).await;
        let refusal = snap.clone_to("other").await.unwrap_err();
        ensure!(
            refusal.to_string().contains("checksum in progress on snap"),
            "{refusal}"
        );
        slow(false)?;
        timeout(LIMIT, job).await???;
        timeout(LIMIT, sum).await???;
        // Refused for another reason, it does not.
        let refusal = vol.snapshot("snap").await.unwrap_err();
        ensure!(refusal.kind() == ErrorKind::AlreadyExists && !refusal.to_string().contains("progress"));
        Ok(())
    });
}

/// What is answered to be read-only does not change after that: nothing that changes it is under way.
#[test]
fn setting_read_only_holds_a_volume() {
    scenario("setting_read_only_holds_a_volume", |disk| async move {
        let (_store, vol, _snap) = volume_on(&disk).await?;
        let size = vol.info().await?.size;
        slow(true)?;
        let all = join5(
            vol.set_read_only(),
            vol.resize(size + MIB),
            vol.inflate(),
            vol.snapshot("other"),
            vol.set_read_only(),
        );
        let (set, grown, inflated, snapshot, again) = timeout(LIMIT, all).await?;
        set?;
        for refusal in [grown.err(), inflated.err(), snapshot.err(), again.err()] {
            let refusal = refusal.context("it is held")?;
            ensure!(refusal.kind() == ErrorKind::Busy, "{refusal}");
        }
        slow(false)?;
        ensure!(vol.resize(size + MIB).await.unwrap_err().kind() == ErrorKind::PermissionDenied);
        let info = vol.info().await?;
        ensure!(info.read_only && info.size == size && info.clone, "{info:?}");
        Ok(())
    });
}
