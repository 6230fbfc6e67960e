//! Finds out, from what was read, what is wrong.

use std::collections::{BTreeMap, HashMap};

use super::bits::Bits;
use super::blob::Blob;
use super::claims::Claims;
use super::findings::{BlobName, Finding, Unit};
use super::survey::{METADATA, Masks, Survey};
use super::units::Units;

/// What is said to be used: certainly, and perhaps (while it changes). The same two if it rests.
pub(super) struct Used<'a> {
    pub(super) certainly: &'a Masks,
    pub(super) perhaps: &'a Masks,
}

pub(super) fn name_of(blob: &Blob) -> BlobName {
    BlobName {
        blob: blob.id,
        name: blob.name.clone(),
        uuid: blob.uuid,
    }
}

/// Without `used`, the store is recovered at the next load: what is used follows from the blobs.
pub(super) fn judge(survey: &Survey, used: Option<Used<'_>>) -> Vec<Finding> {
    let judge = Judge {
        survey,
        by_id: survey.blobs.iter().map(|blob| (blob.id, blob)).collect(),
    };
    let mut findings = Vec::new();
    judge.store(&mut findings);
    judge.blobs(&mut findings);
    judge.names(&mut findings);
    judge.parents(&mut findings);
    for (unit, claims) in judge.claims() {
        judge.shared(unit, claims, &mut findings);
    }
    if let Some(used) = used {
        for (unit, claims) in judge.claims() {
            let (certainly, perhaps) = match unit {
                Unit::Clusters => (&used.certainly.clusters, &used.perhaps.clusters),
                Unit::Pages => (&used.certainly.pages, &used.perhaps.pages),
            };
            leaked(unit, claims, certainly, &mut findings);
            judge.used_but_free(unit, claims, perhaps, &mut findings);
        }
    }
    findings
}

fn leaked(unit: Unit, claims: &Claims, used: &Bits, findings: &mut Vec<Finding>) {
    let mut units = Units::default();
    used.ones()
        .filter(|at| claims.owner(*at).is_none())
        .for_each(|at| units.push(at));
    if !units.is_empty() {
        findings.push(Finding::Leaked { unit, units });
    }
}

struct Judge<'a> {
    survey: &'a Survey,
    by_id: HashMap<u64, &'a Blob>,
}

impl<'a> Judge<'a> {
    fn claims(&self) -> [(Unit, &'a Claims); 2] {
        [
            (Unit::Clusters, &self.survey.clusters),
            (Unit::Pages, &self.survey.pages),
        ]
    }

    /// Those that the store has, as long as their metadata are whole.
    fn volumes(&self) -> impl Iterator<Item = &'a Blob> {
        let super_blob = self.survey.superblock.super_blob;
        let blobs = self.survey.blobs.iter();
        blobs.filter(move |blob| !blob.hidden && blob.damage.is_none() && Some(blob.id) != super_blob)
    }

    fn known(&self, id: u64) -> Option<&'a Blob> {
        self.by_id.get(&id).copied().filter(|blob| !blob.hidden)
    }

    fn store(&self, findings: &mut Vec<Finding>) {
        let blob = self.survey.superblock.super_blob.and_then(|id| self.known(id));
        let why = match blob {
            None => "the blob that says what it is called does not exist",
            // (That is said of the blob.)
            Some(blob) if blob.damage.is_some() => return,
            Some(blob) if blob.name.is_none() || blob.uuid.is_none() => {
                "the blob that says what it is called says no name, or no UUID"
            }
            Some(_) => return,
        };
        findings.push(Finding::NoStore { why: why.into() });
    }

    fn blobs(&self, findings: &mut Vec<Finding>) {
        for (at, blob) in self.survey.blobs.iter().enumerate() {
            if blob.hidden {
                findings.push(self.hidden(at as u32, blob));
            } else if let Some(damage) = &blob.damage {
                findings.push(Finding::Broken {
                    blob: name_of(blob),
                    page: damage.page,
                    why: damage.why.clone(),
                });
            }
        }
        for blob in self.volumes() {
            let lacks = [("name", blob.name.is_none()), ("uuid", blob.uuid.is_none())];
            for (lacks, _) in lacks.into_iter().filter(|(_, lacks)| *lacks) {
                let blob = name_of(blob);
                findings.push(Finding::Nameless { blob, lacks });
            }
            if let Some(clone) = blob.removal {
                findings.push(Finding::InterruptedDelete {
                    blob: name_of(blob),
                    clone,
                    taken_over: self.is_doomed(blob),
                });
            } else if let Some(of) = blob.in_the_making {
                findings.push(Finding::InterruptedSnapshot {
                    blob: name_of(blob),
                    of,
                    taken: !self.is_doomed(blob),
                });
            }
        }
    }

    fn lies_on(&self, clone: u64, snapshot: u64) -> bool {
        self.known(clone)
            .is_some_and(|clone| clone.parent == Some(snapshot))
    }

    /// A snapshot whose deletion or making was interrupted, and which the next load removes. Until then
    /// it has clusters that are others' already.
    fn is_doomed(&self, blob: &Blob) -> bool {
        let clone = blob.removal.or(blob.in_the_making);
        clone.is_some_and(|clone| !self.lies_on(clone, blob.id))
    }

    fn hidden(&self, at: u32, blob: &Blob) -> Finding {
        let count = |unit: usize| -> u64 {
            let shared = self.claims()[unit].1.shared().iter();
            let its = shared.filter(|shared| shared.owners[1] == at);
            its.map(|shared| shared.units.end - shared.units.start).sum()
        };
        let (clusters, pages) = (count(0), count(1));
        Finding::Hidden {
            blob: name_of(blob),
            clusters: blob.own_clusters.saturating_sub(clusters),
            conflicts: clusters + pages,
        }
    }

    fn names(&self, findings: &mut Vec<Finding>) {
        let mut names: BTreeMap<&String, Vec<BlobName>> = BTreeMap::new();
        let mut uuids: BTreeMap<_, Vec<BlobName>> = BTreeMap::new();
        for blob in self.volumes() {
            if let Some(name) = &blob.name {
                names.entry(name).or_default().push(name_of(blob));
            }
            if let Some(uuid) = blob.uuid {
                uuids.entry(uuid).or_default().push(name_of(blob));
            }
        }
        for (name, blobs) in names.into_iter().filter(|(_, blobs)| blobs.len() > 1) {
            let name = name.clone();
            findings.push(Finding::DuplicateName { name, blobs });
        }
        for (uuid, blobs) in uuids.into_iter().filter(|(_, blobs)| blobs.len() > 1) {
            findings.push(Finding::DuplicateUuid { uuid, blobs });
        }
    }

    fn parents(&self, findings: &mut Vec<Finding>) {
        // SPDK looks at the parent of thin blobs only.
        let parent = |blob: &Blob| blob.parent.filter(|_| blob.thin);
        for blob in self.volumes() {
            let Some(first) = parent(blob) else { continue };
            if self.known(first).is_none() {
                findings.push(Finding::NoParent {
                    blob: name_of(blob),
                    parent: first,
                    circle: false,
                });
            }
            let mut beneath = Some(first);
            for _ in 0..self.survey.blobs.len() {
                if beneath == Some(blob.id) {
                    findings.push(Finding::NoParent {
                        blob: name_of(blob),
                        parent: first,
                        circle: true,
                    });
                    break;
                }
                beneath = beneath.and_then(|id| self.known(id)).and_then(parent);
            }
        }
    }

    fn shared(&self, unit: Unit, claims: &Claims, findings: &mut Vec<Finding>) {
        let mut pairs: BTreeMap<[u32; 2], Vec<_>> = BTreeMap::new();
        for shared in claims.shared() {
            let [one, other] = shared.owners;
            // What the metadata have, and what one has twice, is said of that blob.
            if one == METADATA || one == other {
                continue;
            }
            let (one, other) = (
                &self.survey.blobs[one as usize],
                &self.survey.blobs[other as usize],
            );
            if [one, other]
                .iter()
                .all(|blob| !blob.hidden && !self.is_doomed(blob))
            {
                pairs.entry(shared.owners).or_default().push(shared.units.clone());
            }
        }
        for (owners, ranges) in pairs {
            let blobs = owners.map(|at| name_of(&self.survey.blobs[at as usize]));
            let units = ranges.into_iter().collect();
            findings.push(Finding::Shared { unit, units, blobs });
        }
    }

    fn used_but_free(&self, unit: Unit, claims: &Claims, used: &Bits, findings: &mut Vec<Finding>) {
        let mut free: BTreeMap<u32, Units> = BTreeMap::new();
        for at in (0..claims.len()).filter(|at| !used.get(*at)) {
            if let Some(owner) = claims.owner(at) {
                free.entry(owner).or_default().push(at);
            }
        }
        for (owner, units) in free {
            let blob = match owner {
                METADATA => None,
                at => Some(&self.survey.blobs[at as usize]),
            };
            if blob.is_none_or(|blob| !blob.hidden) {
                let blob = blob.map(name_of);
                findings.push(Finding::UsedButFree { unit, units, blob });
            }
        }
    }
}
