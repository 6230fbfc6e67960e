//! A child process with a log and an RPC socket, which never outlives the driver's hold on it.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use spdk_rs::rpc::{CallError, Client};

/// How long a process may take until its socket answers, and to stop when asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// A started process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    client: Client,
}

impl Process {
    /// Starts `command`, its output appended to `log`, and waits until `socket` answers.
    pub fn start(name: &str, mut command: Command, log: &Path, socket: &Path) -> Result<Self> {
        Self::attach(name, Reaped::spawn(&mut command, log)?, log, socket)
    }

    /// Waits until `socket` of a process that was started answers.
    pub fn attach(name: &str, mut child: Reaped, log: &Path, socket: &Path) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        let client = loop {
            match Client::connect(socket) {
                Ok(client) => break client,
                Err(error) => {
                    if let Some(status) = child.get().try_wait()? {
                        bail!("{name} ended with {status} instead of starting:\n{}", tail(log));
                    }
                    if Instant::now() > end {
                        return Err(anyhow!(error).context(format!("{name} does not answer:\n{}", tail(log))));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Self {
            name: name.to_owned(),
            child: child.take(),
            log: log.to_owned(),
            socket: socket.to_owned(),
            client: client.with_timeout(PATIENCE),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls an RPC method of the process.
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, CallError> {
        self.client.call(method, params)
    }

    /// Calls an RPC method of the process, with the result in a type.
    pub fn call_as<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: impl Serialize,
    ) -> Result<T, CallError> {
        self.client.call_as(method, params)
    }

    /// Another connection to the process, for a call that runs beside others. It waits as long as it takes.
    pub fn connect(&self) -> Result<Client, CallError> {
        Client::connect(&self.socket)
    }

    /// What the process has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill only takes numbers; the child is not reaped yet, so that the id is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        if status.signal() != Some(libc::SIGKILL) {
            bail!(
                "{} had ended by itself, with {status}:\n{}",
                self.name,
                tail(&self.log)
            );
        }
        Ok(())
    }

    /// Asks the process to stop, and waits until it has.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        self.wait(PATIENCE)
    }

    /// Waits until the process ends.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = wait(&mut self.child, limit)?;
        ended.with_context(|| format!("{} does not end:\n{}", self.name, tail(&self.log)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a child, and takes away what a target that could not stop leaves in memory: its trace, 129 MiB.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
    let _ = std::fs::remove_file(format!("/dev/shm/spdk_tgt_trace.pid{}", child.id()));
}

/// How a child has ended, if it does in time.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > end {
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A child that is killed when it is given up.
pub struct Reaped(Option<Child>);

impl Reaped {
    /// Starts `command`, its output appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let end_with_parent = || {
            // SAFETY: prctl is a plain system call. A driver that is killed must not leave a reactor behind.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure only makes a system call, which is fine between fork and exec.
        unsafe { command.pre_exec(end_with_parent) };
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self(Some(child)))
    }

    /// The process id.
    pub fn pid(&mut self) -> u32 {
        self.get().id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.get().try_wait()?)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        end(self.get());
    }

    /// Waits until it ends.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = wait(self.get(), limit)?;
        ended.with_context(|| format!("process {} does not end", self.pid()))
    }

    fn get(&mut self) -> &mut Child {
        self.0.as_mut().expect("taken only at the end")
    }

    fn take(mut self) -> Child {
        self.0.take().expect("taken only once")
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
