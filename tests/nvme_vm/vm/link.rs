//! What the two halves say to each other: lines of JSON over the guest's second serial line.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is heard from the guest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heard {
    /// A check and whether it was passed.
    Check {
        /// Whether it was passed.
        ok: bool,
        /// What was checked, and what was seen.
        what: String,
    },
    /// Something that was seen, without a promise.
    Note {
        /// What was seen.
        what: String,
    },
    /// Something for the part's other half.
    Tell {
        /// What is told.
        what: Value,
    },
    /// A question; the guest waits for the answer.
    Ask {
        /// For what.
        what: String,
        /// With which parameters.
        params: Value,
    },
    /// Nothing more will come.
    End {
        /// Why it could not go on to its end.
        error: Option<String>,
    },
}

/// The guest's end. Clones are the same one.
#[derive(Clone)]
pub struct Link(Arc<Mutex<Ends>>);

struct Ends {
    heard: BufReader<File>,
    said: File,
}

impl Link {
    /// Takes a terminal that passes bytes on as they are.
    pub fn new(terminal: File) -> Result<Self> {
        Ok(Self::between(terminal.try_clone()?, terminal))
    }

    /// Takes where answers are heard, and where things are said.
    pub fn between(heard: File, said: File) -> Self {
        Self(Arc::new(Mutex::new(Ends {
            heard: BufReader::new(heard),
            said,
        })))
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().expect("nobody panics with it")
    }

    fn say(&self, what: &Heard) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        Ok(self.ends().said.write_all(&line)?)
    }

    /// A check and whether it was passed.
    pub fn check(&self, ok: bool, what: impl Display) -> Result<()> {
        self.say(&Heard::Check {
            ok,
            what: what.to_string(),
        })
    }

    /// A check that something is what it should be.
    pub fn same(&self, what: impl Display, seen: impl Display, promised: impl Display) -> Result<()> {
        let (seen, promised) = (seen.to_string(), promised.to_string());
        if seen == promised {
            self.check(true, format_args!("{what}: {seen}"))
        } else {
            self.check(false, format_args!("{what}: {seen}, should be {promised}"))
        }
    }

    /// Something that was seen, without a promise.
    pub fn note(&self, what: impl Display) -> Result<()> {
        self.say(&Heard::Note {
            what: what.to_string(),
        })
    }

    /// Tells the other half something.
    pub fn tell(&self, what: Value) -> Result<()> {
        self.say(&Heard::Tell { what })
    }

    /// Asks the other half to do something, and waits for its answer.
    pub fn ask(&self, what: &str, params: Value) -> Result<Value> {
        self.say(&Heard::Ask {
            what: what.to_owned(),
            params,
        })?;
        let mut line = String::new();
        self.ends().heard.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the other half is gone");
        serde_json::from_str(&line).with_context(|| format!("{what}: answered with {line}"))
    }

    /// Says that nothing more will come.
    pub fn end(&self, outcome: &Result<()>) -> Result<()> {
        let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        self.say(&Heard::End { error })
    }
}
