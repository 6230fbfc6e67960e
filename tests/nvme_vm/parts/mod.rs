//! The parts: each has a half that runs here and starts machines, and one that runs in them.
//!
//! A part stands alone: it makes its own images and its own machines.

mod bind;
mod cut;
mod io;
mod linux;
mod pcie;
mod removal;
mod two;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::Run;
use crate::vm::Link;

/// What runs in the guest, with the parameters that the host's half gave it.
pub type Half = fn(&Link, &Value) -> Result<()>;

/// A part.
pub struct Part {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The half that runs here.
    pub host: fn(&mut Run) -> Result<()>,
    /// The half that runs in the guest.
    pub guest: Half,
    /// The programs that this one starts, by their names.
    pub programs: &'static [(&'static str, Half)],
}

/// All of them, in the order in which they are run.
const PARTS: &[Part] = &[
    pcie::PART,
    cut::THROUGH,
    cut::VOLATILE,
    cut::prefixes::PART,
    cut::media::PART,
    removal::PART,
    two::PART,
    bind::PART,
    linux::PART,
];

/// The part of that name.
pub fn find(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

/// Parts by their names; if none is named, all.
pub fn choose(names: &[&str]) -> Result<Vec<&'static Part>> {
    if names.is_empty() {
        return Ok(PARTS.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        let Some(part) = find(name) else {
            let all: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
            bail!("there is no part '{name}'; the parts are: {}", all.join(" "));
        };
        chosen.push(part);
    }
    Ok(chosen)
}

/// Prints what parts there are.
pub fn list() {
    for part in PARTS {
        println!("{:<13} {}", part.name, part.about);
    }
}

/// The program of that name.
pub fn program(name: &str) -> Result<Half> {
    let mut programs = PARTS.iter().flat_map(|part| part.programs);
    let found = programs.find(|(other, _)| *other == name);
    found
        .map(|(_, half)| *half)
        .with_context(|| format!("there is no program '{name}'"))
}
