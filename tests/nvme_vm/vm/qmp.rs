//! QEMU's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A connection to it.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What came while an answer was waited for.
    events: Vec<Value>,
}

impl Qmp {
    /// Greets QEMU at the other end of `stream`.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut this = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = this.line()?;
        ensure!(greeting["QMP"].is_object(), "QEMU greets with {greeting}");
        this.call("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("QEMU does not answer")?;
        ensure!(!line.is_empty(), "QEMU is gone");
        Ok(serde_json::from_str(&line)?)
    }

    /// Carries a command out.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = serde_json::to_vec(&json!({"execute": command, "arguments": arguments}))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        loop {
            let mut answer = self.line()?;
            if answer["event"].is_string() {
                self.events.push(answer);
            } else if answer["error"].is_object() {
                bail!("QEMU refuses {command}: {}", answer["error"]["desc"]);
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Carries out a command for people; what it printed.
    pub fn human(&mut self, command: &str) -> Result<String> {
        let answer = self.call("human-monitor-command", json!({"command-line": command}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Waits for an event, and takes it.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let event = self.line().with_context(|| format!("no event {name}"))?;
            self.events.push(event);
        }
    }
}
