//! Holds back what C prints while SPDK starts, and finds the line that tells why it did not.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A start that takes longer than this prints as it goes: whoever waits wants to know for what.
const LIMIT: Duration = Duration::from_secs(10);

/// Standard output and standard error are redirected while this is active. It concerns the whole
/// process, so other threads' output waits, too.
pub(super) struct Capture {
    streams: Mutex<Option<[Stream; 2]>>,
}

struct Stream {
    fd: RawFd,
    original: OwnedFd,
    file: File,
}

impl Stream {
    fn redirect(fd: RawFd) -> io::Result<Self> {
        // SAFETY: plain system calls on descriptors; each result is checked before it is owned.
        unsafe {
            let original = check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?;
            let original = OwnedFd::from_raw_fd(original);
            let file = check(libc::memfd_create(c"spdk-start".as_ptr(), libc::MFD_CLOEXEC))?;
            let file = File::from_raw_fd(file);
            check(libc::dup2(file.as_raw_fd(), fd))?;
            Ok(Self { fd, original, file })
        }
    }

    fn restore(&self) -> Vec<u8> {
        // SAFETY: both descriptors are open. If this fails, output is lost, and nothing else.
        unsafe { libc::dup2(self.original.as_raw_fd(), self.fd) };
        let len = self.file.metadata().map_or(0, |meta| meta.len());
        let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
        match self.file.read_exact_at(&mut text, 0) {
            Ok(()) => text,
            Err(_) => Vec::new(),
        }
    }
}

fn check(rc: i32) -> io::Result<i32> {
    match rc {
        -1 => Err(io::Error::last_os_error()),
        rc => Ok(rc),
    }
}

fn flush() {
    let _ = io::stdout().flush();
    // SAFETY: null means all of C's output streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

impl Capture {
    /// Starts to hold back. If that cannot be set up, output goes where it always goes.
    pub(super) fn begin() -> Arc<Self> {
        flush();
        let out = Stream::redirect(libc::STDOUT_FILENO);
        let streams = match out {
            Err(_) => None,
            Ok(out) => match Stream::redirect(libc::STDERR_FILENO) {
                Ok(err) => Some([out, err]),
                Err(_) => {
                    out.restore();
                    None
                }
            },
        };
        Arc::new(Self {
            streams: Mutex::new(streams),
        })
    }

    /// Stops to hold back; returns what came on standard output and on standard error. The second
    /// time there is nothing to return.
    fn end(&self) -> Option<[Vec<u8>; 2]> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.take().map(|streams| {
            flush();
            streams.map(|stream| stream.restore())
        })
    }

    /// SPDK is up: prints all of what was held back, or only warnings and errors.
    pub(super) fn release(&self, all: bool) {
        let Some([out, err]) = self.end() else { return };
        if all {
            let _ = io::stdout().write_all(&out);
            let _ = io::stdout().flush();
            let _ = io::stderr().write_all(&err);
            return;
        }
        for line in String::from_utf8_lossy(&err).lines() {
            if line.contains("*ERROR*") || line.contains("*WARNING*") {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// SPDK is not up: what was held back is thrown away but for the reason.
    pub(super) fn reason(&self) -> Option<String> {
        let [out, err] = self.end()?;
        let text = [String::from_utf8_lossy(&out), String::from_utf8_lossy(&err)].concat();
        telling_lines(&text)
    }

    /// Releases the output when `ready` says so, or after a while.
    pub(super) fn watch(self: &Arc<Self>, all: bool, ready: impl Fn() -> bool + Send + 'static) {
        let capture = Arc::downgrade(self);
        let watch = move || {
            let start = Instant::now();
            loop {
                std::thread::sleep(Duration::from_millis(10));
                let Some(capture) = capture.upgrade() else {
                    return;
                };
                let over = capture
                    .streams
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_none();
                if over {
                    return;
                }
                if ready() || start.elapsed() > LIMIT {
                    capture.release(all);
                    return;
                }
            }
        };
        // Without the watcher, output appears a bit later: no reason to fail.
        let _ = std::thread::Builder::new()
            .name("spdk-start".to_owned())
            .spawn(watch);
    }
}

/// Lines that only repeat that something went wrong.
const CONSEQUENCES: &[&str] = &[
    "Unable to initialize SPDK env",
    "Failed to initialize DPDK",
    "spdk_app_stop'd on non-zero",
    "Reactor Initilization failed",
    "Init subsystem",
    "Invalid arguments to initialize DPDK",
    "Cannot init memory", // DPDK; the line before says why
    "Error - exiting",
];

/// What marks a line of DPDK's as one that tells of a failure. (It has no level in its lines.)
const DPDK_WORDS: &[&str] = &[
    "annot",
    "ailed",
    "FATAL",
    "rror",
    "ot enough",
    "no mounted",
    "No free",
    "no free",
    "nvalid",
    "o memory",
    "unavailable",
    "could not",
    "unable",
    "Unable",
];

/// The lines that say why, shortened; at most two.
fn telling_lines(text: &str) -> Option<String> {
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = if let Some((_, message)) = line.split_once("*ERROR*: ") {
            message
        } else if let Some(message) = line.strip_prefix("EAL: ") {
            if !DPDK_WORDS.iter().any(|word| message.contains(word)) {
                continue;
            }
            message
        } else {
            continue;
        };
        let line = line.trim();
        let line = line.strip_prefix("FATAL: ").unwrap_or(line);
        let repeats = CONSEQUENCES.iter().any(|what| line.contains(what));
        if repeats || line.is_empty() || found.iter().any(|other| other == line) {
            continue;
        }
        found.push(line.to_owned());
        if found.len() == 2 {
            break;
        }
    }
    (!found.is_empty()).then(|| found.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_between_the_chatter() {
        let text = "\
Starting SPDK v20.07 / DPDK 20.05.0 initialization...
[ DPDK EAL parameters: x --no-shconf -c 0x1 -m 64 ]
EAL: Not enough memory available on socket 0! Requested: 64MB, available: 0MB
EAL: FATAL: Cannot init memory
[2026-01-01 00:00:00.000000] app.c: 500:app_setup_env: *ERROR*: Unable to initialize SPDK env
";
        assert_eq!(
            telling_lines(text).as_deref(),
            Some("Not enough memory available on socket 0! Requested: 64MB, available: 0MB")
        );
        assert_eq!(telling_lines("EAL: Detected 2 lcore(s)\n"), None);
    }

    #[test]
    fn spdk_errors_are_found_and_not_repeated() {
        let text = "[x] thread.c: 1:f: *ERROR*: a\n[x] thread.c: 1:f: *ERROR*: a\n\
                    [x] app.c: 2:g: *ERROR*: b\n[x] app.c: 3:h: *ERROR*: c\n";
        assert_eq!(telling_lines(text).as_deref(), Some("a; b"));
    }
}
