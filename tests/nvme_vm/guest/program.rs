//! Programs of the guest: halves of parts that run SPDK, each in a process of its own, since DPDK can be started once
//! in a process.

use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use spdk_rs::Runtime;

use crate::parts::Half;
use crate::vm::{Heard, Link};

/// A program that was started.
pub struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Starts the program `name`, which is one of the parts' table.
    pub fn start(name: &str, params: &Value) -> Result<Self> {
        let child = Command::new("/init")
            .args(["program", name, &params.to_string()])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| name.to_owned())?;
        Ok(Self {
            child,
            name: name.to_owned(),
        })
    }

    /// Passes on what it says, and the answers to what it asks, until it has ended. It must end well.
    pub fn serve(mut self, link: &Link) -> Result<()> {
        let mut said = None;
        let out = self.child.stdout.take().context("a pipe")?;
        let mut answers = self.child.stdin.take().context("a pipe")?;
        for line in BufReader::new(out).lines() {
            let line = line?;
            match serde_json::from_str(&line) {
                Ok(Heard::Check { ok, what }) => link.check(ok, what)?,
                Ok(Heard::Note { what }) => link.note(what)?,
                Ok(Heard::Tell { what }) => link.tell(what)?,
                Ok(Heard::Ask { what, params }) => {
                    let answer = link.ask(&what, params)?;
                    answers.write_all(format!("{answer}\n").as_bytes())?;
                }
                Ok(Heard::End { error }) => said = Some(error),
                // SPDK and DPDK say things there, too.
                Err(_) => eprintln!("{}: {line}", self.name),
            }
        }
        let status = self.child.wait()?;
        match said {
            Some(Some(error)) => bail!("{}: {error}", self.name),
            None => bail!("{} ended with {status}", self.name),
            Some(None) => ensure!(status.success(), "{} ended with {status}", self.name),
        }
        Ok(())
    }
}

/// Runs a program from its start to its end.
pub fn run_program(link: &Link, name: &str, params: &Value) -> Result<()> {
    Program::start(name, params)?.serve(link)
}

/// What the process of a program does.
pub fn program(half: Half, params: &str) -> Result<()> {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let fd = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().map(File::from);
    let link = Link::between(fd(&input)?, fd(&output)?);
    let outcome = half(&link, &serde_json::from_str(params)?);
    link.end(&outcome)?;
    outcome
}

/// Runs `main` with SPDK, in little memory.
pub fn with_spdk<F: Future<Output = Result<()>> + 'static>(main: F) -> Result<()> {
    run_spdk(Vec::new(), main)
}

/// The same, after a call of an RPC method.
pub fn with_spdk_and<F: Future<Output = Result<()>> + 'static>(call: Value, main: F) -> Result<()> {
    run_spdk(vec![call], main)
}

fn run_spdk<F: Future<Output = Result<()>> + 'static>(calls: Vec<Value>, main: F) -> Result<()> {
    let runtime = Runtime::builder()
        .name("nvme_vm")
        .memory_mb(64)
        .json_config_text(super::target::config(calls).to_string())
        .build()?;
    runtime.run(main)?
}
