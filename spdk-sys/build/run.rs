//! Runs other programs: a small, known environment, the exit status checked, output kept.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

/// Variables that go on to make, configure and git. CFLAGS, DESTDIR and the like would change the
/// result without changing its fingerprint; GIT_* would send `git apply` to another repository.
const PASSED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "PKG_CONFIG_PATH",
];

/// A command with an environment of its own.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs it and gives its standard output; an error holds what it said on standard error.
pub fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .output()
        .context(|| format!("run {} to {what}", program(command)))?;
    if !output.status.success() {
        return Err(Error::from(format!(
            "cannot {what}: {} ended with {}\n{}",
            program(command),
            output.status,
            tail(&String::from_utf8_lossy(&output.stderr), 20)
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives it `input` and returns its standard output.
pub fn output_with_input(command: &mut Command, input: &[u8], what: &str) -> Result<String> {
    let mut file =
        tempfile_in(&std::env::temp_dir()).context(|| format!("make a temporary file to {what}"))?;
    file.write_all(input)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .context(|| format!("write input to {what}"))?;
    output(command.stdin(file), what)
}

/// An unnamed temporary file.
fn tempfile_in(dir: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir)
}

/// Runs it with both outputs appended to the log; an error shows the log's tail and where it is.
pub fn logged(command: &mut Command, log: &Path, what: &str) -> Result<()> {
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(log);
    let mut file = open().context(|| format!("write {}", log.display()))?;
    let start = file.metadata().map(|m| m.len()).unwrap_or(0);
    let (out, err) = (open(), open());
    let streams = out.and_then(|o| err.map(|e| (o, e)));
    let (out, err) = streams.context(|| format!("write {}", log.display()))?;
    writeln!(file, "+ {command:?}").context(|| format!("write {}", log.display()))?;
    let status = command.stdout(out).stderr(err).status();
    let status = status.context(|| format!("run {} to {what}", program(command)))?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut f| {
        f.seek(SeekFrom::Start(start))
            .and_then(|_| f.read_to_end(&mut text))
    });
    let text = match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("(cannot read the log: {error})"),
    };
    let hint = if text.contains("No space left on device") {
        "\nThe disk is full: free some space, or choose another place with SPDK_SYS_CACHE."
    } else {
        ""
    };
    Err(Error::from(format!(
        "cannot {what}: {} ended with {status}. The end of its log ({}):\n{}{hint}",
        program(command),
        log.display(),
        tail(&text, 30)
    )))
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The last lines of a text, indented.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..]
        .iter()
        .map(|l| format!("    {l}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_input() {
        let text = output_with_input(&mut command("cat"), b"hello", "copy").unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_failure_shows_status_and_standard_error() {
        let error = output(command("sh").args(["-c", "echo oh no >&2; exit 3"]), "try it")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot try it") && error.contains("3") && error.contains("oh no"),
            "{error}"
        );
    }

    #[test]
    fn a_failure_shows_the_tail_of_its_own_log_only() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        logged(command("sh").args(["-c", "echo earlier"]), &log, "do the first").unwrap();
        let error = logged(
            command("sh").args(["-c", "seq 100; exit 1"]),
            &log,
            "do the second",
        )
        .unwrap_err();
        let error = error.to_string();
        assert!(error.contains("    100") && error.contains("    71\n"), "{error}");
        assert!(
            !error.contains("    70\n") && !error.contains("earlier"),
            "{error}"
        );
    }

    #[test]
    fn a_full_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let full = "echo 'cc1: fatal error: error writing: No space left on device' >&2; exit 1";
        let error = logged(command("sh").args(["-c", full]), &dir.path().join("log"), "build").unwrap_err();
        assert!(error.to_string().contains("SPDK_SYS_CACHE"), "{error}");
    }

    #[test]
    fn the_environment_is_small() {
        let text = output(&mut command("env"), "list variables").unwrap();
        for line in text.lines() {
            let name = line.split('=').next().unwrap();
            assert!(
                name == "LC_ALL" || PASSED_ON.contains(&name),
                "{name} went through"
            );
        }
    }

    #[test]
    fn tails() {
        assert_eq!(tail("a\nb\nc", 2), "    b\n    c");
        assert_eq!(tail("", 2), "");
    }
}
