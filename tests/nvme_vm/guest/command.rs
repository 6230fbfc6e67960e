//! Programs of others in the guest, and what takes a moment.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Runs a program to its good end; what it printed.
pub fn run(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let Output {
        status,
        stdout,
        stderr,
    } = output.with_context(|| words.join(" "))?;
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    ensure!(
        status.success(),
        "{} ended with {status}: {text}",
        words.join(" ")
    );
    Ok(text)
}

/// Waits until there is what `look` looks for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "{what}: not there after 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
