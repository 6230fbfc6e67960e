//! Who has what: each cluster, and each page of metadata.

use std::ops::Range;

/// Units (clusters or pages), each with the one that claimed it first; and those that more than one
/// have claimed.
pub(super) struct Claims {
    /// 0 for nobody, else one more than the owner.
    owners: Vec<u32>,
    shared: Vec<Shared>,
}

/// Units that two have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) owners: [u32; 2],
    pub(super) units: Range<u64>,
}

impl Claims {
    pub(super) fn new(units: u64) -> Self {
        Self {
            owners: vec![0; units as usize],
            shared: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.owners.len() as u64
    }

    /// Notes that `owner` has `unit`, which exists. Says who had it before.
    pub(super) fn claim(&mut self, unit: u64, owner: u32) -> Option<u32> {
        let first = &mut self.owners[unit as usize];
        if *first == 0 {
            *first = owner + 1;
            return None;
        }
        let before = *first - 1;
        let owners = [before, owner];
        match self.shared.last_mut() {
            Some(last) if last.owners == owners && last.units.end == unit => last.units.end += 1,
            _ => self.shared.push(Shared {
                owners,
                units: unit..unit + 1,
            }),
        }
        Some(before)
    }

    pub(super) fn owner(&self, unit: u64) -> Option<u32> {
        match self.owners.get(unit as usize) {
            None | Some(0) => None,
            Some(owner) => Some(owner - 1),
        }
    }

    pub(super) fn shared(&self) -> &[Shared] {
        &self.shared
    }
}
