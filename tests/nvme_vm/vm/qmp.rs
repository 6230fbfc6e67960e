//! QEMU's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

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

    /// Waits for an event, and takes it, if it comes in time.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Option<Value>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(Some(self.events.remove(at)));
            }
            // Events come in the order of answers: asking for anything brings those that have come.
            self.call("query-status", json!({}))?;
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
