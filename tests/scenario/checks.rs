//! What the scenario promised and what was seen, promise by promise.
//!
//! Each check has a short name. A normal run stops at the end of the first step in which one fails. The control run
//! goes on, and is then judged by *which* checks failed: that is how the checks are known to be able to.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::time::Instant;

use anyhow::{Result, bail};

/// The record of a run.
pub struct Checks {
    started: Instant,
    step: String,
    failed: BTreeSet<&'static str>,
    done: BTreeSet<&'static str>,
    step_has_failed: bool,
    stop_at_failure: bool,
}

impl Checks {
    /// A record that stops the run at the first step with a failure, or not.
    pub fn new(stop_at_failure: bool) -> Self {
        Self {
            started: Instant::now(),
            step: String::new(),
            failed: BTreeSet::new(),
            done: BTreeSet::new(),
            step_has_failed: false,
            stop_at_failure,
        }
    }

    /// Begins a step, when the one before it has ended well.
    pub fn step(&mut self, number: u32, title: &str) -> Result<()> {
        self.end_step()?;
        self.step = format!("step {number}");
        let seconds = self.started.elapsed().as_secs_f32();
        println!("\n[{number:>2}/12] {title}  ({seconds:.1} s)");
        Ok(())
    }

    /// Ends the last step.
    pub fn end_step(&mut self) -> Result<()> {
        if std::mem::take(&mut self.step_has_failed) && self.stop_at_failure {
            bail!("{}: not as promised, see FAIL above", self.step);
        }
        Ok(())
    }

    /// Something that was seen, without a promise.
    pub fn note(&self, what: impl Display) {
        println!("         {what}");
    }

    /// A promise and whether it was kept.
    pub fn check(&mut self, name: &'static str, kept: bool, what: impl Display) {
        self.done.insert(name);
        if kept {
            println!("    ok   {what}");
        } else {
            println!("    FAIL {what}  [{name}]");
            self.failed.insert(name);
            self.step_has_failed = true;
        }
    }

    /// A promise that something equals what it should.
    pub fn equal<T: PartialEq + Debug>(
        &mut self,
        name: &'static str,
        what: impl Display,
        seen: &T,
        promised: &T,
    ) {
        if seen == promised {
            self.check(name, true, format_args!("{what}: {seen:?}"));
        } else {
            self.check(
                name,
                false,
                format_args!("{what}: {seen:?}, promised was {promised:?}"),
            );
        }
    }

    /// A promise that something reads as it should.
    pub fn same(
        &mut self,
        name: &'static str,
        what: impl Display,
        seen: impl Display,
        promised: impl Display,
    ) {
        let (seen, promised) = (seen.to_string(), promised.to_string());
        if seen == promised {
            self.check(name, true, format_args!("{what}: {seen}"));
        } else {
            self.check(
                name,
                false,
                format_args!("{what}: {seen}, promised was {promised}"),
            );
        }
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> &BTreeSet<&'static str> {
        &self.failed
    }

    /// How many promises were looked at.
    pub fn count(&self) -> usize {
        self.done.len()
    }

    /// How long the run has taken, in seconds.
    pub fn seconds(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }
}
