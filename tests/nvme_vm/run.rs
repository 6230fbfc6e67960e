//! A run of parts: the folder, the machines' files, and the record of what was seen.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::common::Place;
use crate::parts::Part;
use crate::vm::{Files, Heard, Initramfs, Machine, Vm};

/// A run.
pub struct Run {
    files: Files,
    place: Place,
    /// Whether everything is to be done at full size.
    pub full: bool,
    started: Instant,
    boots: u32,
    kept: u32,
    broken: u32,
    failed: Vec<String>,
}

impl Run {
    /// A run with the QEMU and the kernel of `dir`.
    pub fn new(dir: &Path, full: bool) -> Result<Self> {
        Ok(Self {
            files: Files::new(dir)?,
            place: Place::new()?,
            full,
            started: Instant::now(),
            boots: 0,
            kept: 0,
            broken: 0,
            failed: Vec::new(),
        })
    }

    /// Runs the host's half of a part, which boots machines for the other half.
    pub fn part(&mut self, part: &Part) {
        let seconds = self.started.elapsed().as_secs_f32();
        println!("\n== {}: {}  ({seconds:.1} s)", part.name, part.about);
        let broken = self.broken;
        if let Err(error) = (part.host)(self) {
            self.check(false, format_args!("it could not go on: {error:#}"));
        }
        if self.broken > broken {
            self.failed.push(part.name.to_owned());
        }
    }

    /// Ends the run: how many checks were passed, and which parts failed.
    pub fn end(mut self) -> (u32, Vec<String>) {
        if self.failed.is_empty() {
            self.place.discard();
        }
        (self.kept, self.failed)
    }

    /// A check and whether it was passed.
    pub fn check(&mut self, kept: bool, what: impl Display) {
        if kept {
            self.kept += 1;
            println!("    ok   {what}");
        } else {
            self.broken += 1;
            println!("    FAIL {what}");
        }
    }

    /// Something that was seen, without a promise.
    pub fn note(&self, what: impl Display) {
        println!("         {what}");
    }

    /// The packages that were unpacked.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }

    /// Starts a machine that runs `part`'s half for guests.
    pub fn boot(&mut self, machine: &Machine, part: &str, params: Value) -> Result<Vm> {
        self.boots += 1;
        let dir = self.place.file(&format!("{part}-{}", self.boots));
        std::fs::create_dir(&dir)?;
        let initramfs = self.place.file(&format!("initramfs-{}", machine.kind()));
        if !initramfs.exists() {
            Initramfs::of(&self.files, machine)?.write(&initramfs)?;
        }
        Vm::start(&self.files, machine, &initramfs, dir, part, params)
    }

    /// Serves a machine until its half has ended. What it asks is answered by `answer`.
    pub fn serve(
        &mut self,
        vm: &mut Vm,
        mut answer: impl FnMut(&mut Self, &mut Vm, &str, &Value) -> Result<Value>,
    ) -> Result<()> {
        loop {
            match vm.hear()? {
                Heard::Check { ok, what } => self.check(ok, what),
                Heard::Note { what } => self.note(what),
                Heard::Tell { what } => bail!("nobody here listens to {what}"),
                Heard::Ask { what, params } => {
                    let value = answer(self, vm, &what, &params)
                        .with_context(|| format!("the guest asked for {what}"))?;
                    vm.answer(&value)?;
                }
                Heard::End { error: None } => return Ok(()),
                Heard::End { error: Some(error) } => bail!("in the guest: {error}"),
            }
        }
    }

    /// Starts a machine for a part that asks nothing, and sees it to its end.
    pub fn boot_to_end(&mut self, machine: &Machine, part: &str, params: Value) -> Result<()> {
        let mut vm = self.boot(machine, part, params)?;
        self.serve(&mut vm, |_, _, what, _| bail!("nobody here knows {what}"))?;
        vm.quit()
    }
}
