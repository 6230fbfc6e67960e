//! The control: the same steps and the same checks, on a target without the mend.
//!
//! SPDK answers a delete of a busy volume with "Device or resource busy" and destroys it all the same: bdev, UUID and
//! NVMe-oF namespace are gone from memory, the data stay on disk, and after a restart the volume is back. The control
//! run must fail exactly those checks that this breaks. Were it to fail none, the checks would prove nothing; were it
//! to fail others, something else would be wrong.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use crate::checks::Checks;
use crate::common::Place;

/// The checks that SPDK without the mend breaks, and how.
const LIE: &[(&str, &str)] = &[
    ("9.holder", "the answer does not say who holds the volume"),
    (
        "9.bdev",
        "the volume vanished, after an answer that it had not been deleted",
    ),
    ("9.volume", "its clone lost its parent"),
    ("9.namespaces", "the exported namespace is gone"),
    ("9.host-errors-2", "the host's reads of it failed"),
];

/// What may fail too: whether a read of the backup ended well between the last look and the delete is chance.
const CHANCE: &[&str] = &["9.host-io-2"];

/// What must hold in the control too, for the failures above to be a lie and not a plain deletion.
const TRUE_ALL_THE_SAME: &[&str] = &[
    "9.refused",
    "9.before",
    "10.backup",
    "10.namespaces",
    "10.sum",
    "10.data-2",
];

/// Runs the job on the target at `target`, and says whether the lie was seen.
pub fn show(target: &Path) -> Result<()> {
    let mut checks = Checks::new(false);
    let mut place = Place::new()?;
    println!(
        "The control: the same steps and checks on an SPDK without the mend. Failures in step 9 are expected."
    );
    let outcome = crate::run(&mut checks, &place, Some(target.to_owned()));
    let failed = checks.failed();
    println!("\nWhat the checks caught:");
    for (name, what) in LIE.iter().filter(|(name, _)| failed.contains(name)) {
        println!("    {name}: {what}");
    }
    outcome?;
    judge(failed)?;
    place.discard();
    println!(
        "\nThe lie was seen: refused as busy, the volume vanished all the same, and after a restart it was back. ({:.0} s)",
        checks.seconds()
    );
    Ok(())
}

/// Whether exactly the promised checks failed.
fn judge(failed: &BTreeSet<&'static str>) -> Result<()> {
    let lie: BTreeSet<&str> = LIE.iter().map(|(name, _)| *name).collect();
    let missing: Vec<_> = lie.iter().filter(|name| !failed.contains(*name)).collect();
    let others: Vec<_> = failed
        .iter()
        .filter(|name| !lie.contains(*name) && !CHANCE.contains(name))
        .collect();
    if !missing.is_empty() {
        bail!("the checks did not catch what they should have: {missing:?}");
    }
    if !others.is_empty() {
        bail!("checks failed that the defect does not explain: {others:?}");
    }
    if let Some(name) = TRUE_ALL_THE_SAME.iter().find(|name| failed.contains(*name)) {
        bail!("{name} failed: this is not the lie");
    }
    Ok(())
}
