//! Checks of stores: damage is done to one in a file while nobody has it loaded; a check finds just that,
//! writes nothing, and a repair mends it: the store loads, the survivors hold their data, and a check of
//! the loaded store has nothing to say.

#[path = "../common/mod.rs"]
mod common;

mod damages;
mod image;
mod rpc;
mod shop;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::lvol::scenario;
use damages::{Damage, Loads, damages};
use image::{Image, List};
use shop::{Blobs, Contents, contents, furnish, load, put_away, write};
use spdk_rs::ErrorKind;
use spdk_rs::lvol::check::{Finding, Repair, check_bdev, check_file, repair_bdev, repair_file};
use spdk_rs::lvol::{LvolStore, Provisioning};
use spdk_rs::reactor::timeout;

/// For one damage.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_whole_store_is_clean() {
    scenario("a_whole_store_is_clean", |disk| async move {
        let held = furnish(&disk).await?;
        let before = std::fs::read(&disk)?;
        let report = check_file(&disk)?;
        ensure!(
            report.is_clean() && !report.loaded && !report.recovery_due,
            "{report}"
        );
        ensure!(report.name.as_deref() == Some("lvs") && report.cluster_size == common::lvol::MIB);
        let volumes = report.volumes.iter();
        let volumes =
            volumes.map(|volume| (volume.blob.name.as_deref(), volume.clusters, volume.own_clusters));
        let mut volumes: Vec<_> = volumes.collect();
        volumes.sort_unstable();
        let named = |name, clusters, own| (Some(name), clusters, own);
        ensure!(
            volumes
                == [
                    named("large", 600, 1),
                    named("snap", 8, 1),
                    named("thick", 2, 2),
                    named("twin", 8, 1),
                    named("vol", 8, 1)
                ],
            "{report}"
        );
        let repaired = repair_file(&disk, &Repair::new())?;
        ensure!(repaired.steps.is_empty() && repaired.after == report);

        // Loaded: the same by its name and by its bdev, and a file that is written to by nobody.
        let store = load(&disk).await?;
        let loaded = store.check().await?;
        ensure!(
            loaded.is_clean() && loaded.loaded && loaded.volumes == report.volumes,
            "{loaded}"
        );
        ensure!(check_bdev("aio0").await? == loaded);
        let refused = repair_bdev("aio0", Repair::new()).await.unwrap_err();
        ensure!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("unload it first"));
        store.unload().await?;
        let unloaded = check_bdev("aio0").await?;
        ensure!(unloaded.is_clean() && !unloaded.loaded && unloaded.volumes == report.volumes);
        ensure!(std::fs::read(&disk)? == before, "a check has written");
        spdk_rs::bdev::aio::delete("aio0").await?;

        let store = load(&disk).await?;
        ensure!(contents(&store).await? == held);
        Ok(())
    });
}

#[test]
fn damage_is_found_and_mended() {
    scenario("damage_is_found_and_mended", |disk| async move {
        let held = furnish(&disk).await?;
        let whole = check_file(&disk)?;
        ensure!(whole.is_clean(), "{whole}");
        let blobs = Blobs::of(&whole);
        let base = disk.with_extension("base");
        std::fs::rename(&disk, &base)?;
        for damage in damages() {
            let mended = mend(&damage, &base, &disk, &blobs, held.clone());
            let mended = timeout(LIMIT, mended).await.context("it hangs");
            mended.and_then(|mended| mended).with_context(|| damage.name)?;
        }
        Ok(())
    });
}

async fn names(store: &LvolStore) -> Result<BTreeSet<String>> {
    let lvols = store.lvols().await?.into_iter();
    Ok(lvols.map(|lvol| lvol.name().to_owned()).collect())
}

async fn mend(damage: &Damage, base: &Path, disk: &Path, blobs: &Blobs, held: Contents) -> Result<()> {
    std::fs::copy(base, disk)?;
    (damage.make)(&Image::open(disk)?, blobs)?;
    let before = std::fs::read(disk)?;
    let report = check_file(disk)?;
    let found = &report.findings;
    let is_found = |finds: &fn(&Finding) -> bool| found.iter().filter(|finding| finds(finding)).count() == 1;
    ensure!(
        damage.finds.iter().all(is_found) && found.len() == damage.finds.len(),
        "{report}"
    );
    ensure!(std::fs::read(disk)? == before, "a check has written");

    // What SPDK makes of it by itself. (In a copy: a load may write.)
    let copy = disk.with_extension("copy");
    std::fs::copy(disk, &copy)?;
    let loaded = load(&copy).await;
    let names = match &loaded {
        Ok(store) => Some(names(store).await?),
        Err(_) => None,
    };
    let should = match damage.loads {
        Loads::Nothing => None,
        Loads::All => Some(held.keys().cloned().collect()),
        Loads::AllBut(name) => Some(held.keys().filter(|held| *held != name).cloned().collect()),
    };
    if !damage.name.starts_with("a name") {
        ensure!(names == should, "{names:?} are loaded, should be {should:?}");
    }
    if let Ok(store) = loaded {
        put_away(&store).await?;
    }

    let repaired = repair_file(disk, &(damage.repair)(blobs)?)?;
    ensure!(repaired.before == report);
    let store = load(disk)
        .await
        .with_context(|| format!("repaired: {}", repaired.after))?;
    let report = store.check().await?;
    ensure!(report.is_clean(), "loaded: {report}");
    let mut expected = held;
    (damage.after)(&mut expected);
    ensure!(contents(&store).await? == expected, "the survivors' data");
    put_away(&store).await?;
    let report = check_file(disk)?;
    ensure!(report.is_clean() && !report.recovery_due, "unloaded: {report}");
    Ok(())
}

/// Finds what was changed, and that a repair is refused and writes nothing.
fn refused(disk: &Path, repair: &Repair, because: &str) -> Result<()> {
    let before = std::fs::read(disk)?;
    let error = repair_file(disk, repair).err().context("it was not refused")?;
    ensure!(error.kind() == ErrorKind::InvalidArgument, "{error}");
    ensure!(error.to_string().contains(because), "{error}, and not {because}");
    ensure!(std::fs::read(disk)? == before, "it has written");
    Ok(())
}

#[test]
fn what_would_lose_more_than_was_told_is_refused() {
    scenario(
        "what_would_lose_more_than_was_told_is_refused",
        |disk| async move {
            furnish(&disk).await?;
            let whole = check_file(&disk)?;
            let blobs = Blobs::of(&whole);
            let thick = blobs.id("thick")?;
            let repair = Repair::new;
            refused(&disk, &repair().forget(blobs.id("snap")?), "which must stay")?;
            refused(&disk, &repair().adopt(thick), "is no zombie")?;
            refused(&disk, &repair().rename(thick, "vol"), "the name vol is taken")?;
            refused(&disk, &repair().rename(thick, ""), "1 to 63 bytes")?;
            refused(
                &disk,
                &repair().forget(thick).rename(thick, "new"),
                "to be forgotten",
            )?;
            refused(&disk, &repair().forget(0x1_0000_5555), "there is no blob")?;
            let lvs = (0..)
                .map(|page| 1 << 32 | page)
                .find(|id| !whole.volumes.iter().any(|volume| volume.blob.blob == *id));
            refused(
                &disk,
                &repair().forget(lvs.context("a blob")?),
                "what the store is called",
            )?;

            // A zombie and a leak: the lists are not made anew before it is said what becomes of it.
            let image = Image::open(&disk)?;
            image.set_used(List::Blobs, thick & 0xffff, false)?;
            let leaked = image.free_cluster()?;
            image.set_used(List::Clusters, leaked, true)?;
            refused(&disk, &repair(), "would bring back volume thick")?;
            image.set_used(List::Blobs, thick & 0xffff, true)?;
            // The same with a volume that is broken.
            let extent_page = image.extent_page(thick)?;
            let mut page = image.page(extent_page)?;
            page[30] ^= 1;
            image.put_raw(extent_page, &page)?;
            refused(&disk, &repair(), "may lose volume thick")?;
            Ok(())
        },
    );
}

#[test]
fn a_zombie_whose_clusters_others_have_is_not_adopted() {
    scenario(
        "a_zombie_whose_clusters_others_have_is_not_adopted",
        |disk| async move {
            let mut held = furnish(&disk).await?;
            let blobs = Blobs::of(&check_file(&disk)?);
            let thick = blobs.id("thick")?;
            // As a delete leaves it whose write of the root page did not come to the disk.
            let image = Image::open(&disk)?;
            image.set_used(List::Blobs, thick & 0xffff, false)?;
            for cluster in image.clusters(image.extent_page(thick)?)? {
                image.set_used(List::Clusters, cluster.into(), false)?;
            }
            let hidden = |finding: &Finding| match finding {
                Finding::Hidden {
                    blob,
                    clusters,
                    conflicts,
                } if blob.blob == thick => Some((*clusters, *conflicts)),
                _ => None,
            };
            let found = check_file(&disk)?.findings;
            ensure!(
                found.iter().find_map(hidden) == Some((2, 0)) && found.len() == 1,
                "{found:?}"
            );

            let store = load(&disk).await?;
            let new = store
                .create_lvol("new", 2 * common::lvol::MIB, Provisioning::Thick)
                .await?;
            write(&new, 0, 9).await?;
            held.remove("thick");
            let report = store.check().await?;
            ensure!(
                report.findings.iter().find_map(hidden) == Some((0, 2)),
                "{report}"
            );
            ensure!(report.findings.len() == 1 && !report.unsettled, "{report}");
            put_away(&store).await?;

            refused(
                &disk,
                &Repair::new().adopt(thick),
                "others have 2 of its clusters",
            )?;
            let repaired = repair_file(&disk, &Repair::new().forget(thick))?;
            ensure!(repaired.after.is_clean(), "{}", repaired.after);
            let store = load(&disk).await?;
            let report = store.check().await?;
            ensure!(report.is_clean(), "{report}");
            let now = contents(&store).await?;
            ensure!(now["new"][0].1 == common::bdev::pattern(4096, 9));
            ensure!(held.iter().all(|(name, blocks)| now.get(name) == Some(blocks)));
            Ok(())
        },
    );
}

#[test]
fn what_cannot_be_mended_is_told() {
    scenario("what_cannot_be_mended_is_told", |disk| async move {
        furnish(&disk).await?;
        let blobs = Blobs::of(&check_file(&disk)?);
        let base = std::fs::read(&disk)?;
        let image = Image::open(&disk)?;
        let (thick, vol) = (
            image.extent_page(blobs.id("thick")?)?,
            image.extent_page(blobs.id("vol")?)?,
        );
        image.set_cluster(thick, 1, image.clusters(vol)?[1])?;
        let report = check_file(&disk)?;
        let told = report.to_string();
        ensure!(report.findings.len() == 2, "{report}");
        ensure!(
            told.contains("have 1 clusters in common") && told.contains("volume thick"),
            "{told}"
        );
        ensure!(
            told.contains("1 clusters are said to be used, and nobody has them"),
            "{told}"
        );
        // The lists can be made right; two volumes still have one cluster.
        let repaired = repair_file(&disk, &Repair::new())?;
        ensure!(repaired.after.findings.len() == 1, "{}", repaired.after);
        let store = load(&disk).await?;
        let report = store.check().await?;
        ensure!(report.findings == repaired.after.findings, "{report}");
        put_away(&store).await?;

        std::fs::write(&disk, &base)?;
        let parent = blobs.id("snap")?.to_le_bytes();
        let nobody = (blobs.id("snap")? + 50).to_le_bytes();
        image.replace(
            blobs.id("vol")?,
            &[&b"SNAP"[..], &parent].concat(),
            &[&b"SNAP"[..], &nobody].concat(),
        )?;
        let report = check_file(&disk)?;
        ensure!(report.findings.len() == 1, "{report}");
        ensure!(
            report
                .to_string()
                .contains("which is not there, and cannot be opened"),
            "{report}"
        );
        // SPDK leaves it out.
        let store = load(&disk).await?;
        ensure!(store.lvol("vol").await.is_err());
        let report = store.check().await?;
        ensure!(
            report
                .to_string()
                .contains("which is not there, and cannot be opened"),
            "{report}"
        );
        put_away(&store).await?;

        std::fs::write(&disk, vec![0; 1 << 20])?;
        let error = check_file(&disk).unwrap_err();
        ensure!(
            error.kind() == ErrorKind::NotFound && error.to_string().contains("no signature"),
            "{error}"
        );
        Ok(())
    });
}

#[test]
fn a_store_that_is_written_to_is_clean() {
    scenario("a_store_that_is_written_to_is_clean", |disk| async move {
        furnish(&disk).await?;
        let store = load(&disk).await?;
        let busy = store.clone();
        let enough = Rc::new(Cell::new(false));
        // Allocates a cluster with each write, and makes and destroys volumes meanwhile.
        let work = spdk_rs::spawn({
            let enough = Rc::clone(&enough);
            async move {
                for round in (0..u8::MAX).cycle() {
                    if enough.get() {
                        break;
                    }
                    let lvol = busy
                        .create_lvol("busy", 40 * common::lvol::MIB, Provisioning::Thin)
                        .await?;
                    for cluster in 0..20 {
                        write(&lvol, cluster, round).await?;
                    }
                    lvol.snapshot("moment").await?;
                    write(&lvol, 0, round).await?;
                    lvol.destroy().await?;
                    busy.lvol("moment").await?.destroy().await?;
                }
                anyhow::Ok(())
            }
        });
        let mut checks = 0;
        while !work.is_finished() {
            let report = store.check().await?;
            ensure!(report.is_clean() || report.unsettled, "check {checks}: {report}");
            checks += 1;
            enough.set(checks >= 8);
        }
        work.await??;
        ensure!(checks >= 8, "{checks} checks");
        ensure!(store.check().await?.is_clean());
        Ok(())
    });
}
