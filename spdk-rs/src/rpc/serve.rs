//! Where SPDK's RPC server listens.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Client;
use crate::reactor::Thread;
use crate::{Error, ErrorKind, Result};

/// Moves SPDK's RPC server to another socket. Connections to the former one are closed.
///
/// For a program that was configured on a socket of its own and now opens to the public. Call it on the app thread,
/// and not while a call is being answered on the former socket.
///
/// # Errors
///
/// * [`ErrorKind::WrongThread`]: not on the app thread.
/// * [`ErrorKind::Busy`]: another process serves the socket.
/// * [`ErrorKind::NotFound`]: the socket could not be made; SPDK's log says why.
#[doc(alias = "spdk_rpc_initialize")]
pub fn serve_at(path: impl AsRef<Path>) -> Result<()> {
    const WHAT: &str = "serve RPC";
    let path = path.as_ref();
    let name = path.display().to_string();
    if Thread::current().map(|t| t.id()) != Some(Thread::app()?.id()) {
        return Err(Error::new(
            ErrorKind::WrongThread,
            WHAT,
            name,
            "do this on the app thread",
        ));
    }
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::InvalidArgument, WHAT, name, "contains a NUL"))?;
    // SAFETY: this is the app thread, where the server and its poller live. The path is copied. SPDK sets the state
    // back when it starts to listen, and the subsystems are up, since tasks run.
    unsafe {
        spdk_sys::spdk_rpc_finish();
        spdk_sys::spdk_rpc_initialize(c_path.as_ptr());
        spdk_sys::spdk_rpc_set_state(spdk_sys::SPDK_RPC_RUNTIME);
    }
    check_served(path)
}

/// Whether it is this process that serves the socket.
///
/// SPDK only logs when it cannot: the socket's lock is held by another process, or the socket cannot be made.
///
/// # Errors
///
/// [`ErrorKind::Busy`] or [`ErrorKind::NotFound`], as [`serve_at`].
pub fn check_served(path: impl AsRef<Path>) -> Result<()> {
    const WHAT: &str = "serve RPC";
    let path = path.as_ref();
    let failed = |kind, why: String| Err(Error::new(kind, WHAT, path.display().to_string(), why));
    // The kernel completes a connection before the server accepts it, so that this does not wait for the reactor.
    match Client::connect(path).and_then(|client| {
        client.peer_pid().map_err(|source| super::CallError::Connect {
            path: path.to_owned(),
            source,
        })
    }) {
        Ok(pid) if pid == std::process::id() => Ok(()),
        Ok(pid) => failed(ErrorKind::Busy, format!("process {pid} serves it")),
        Err(error) => failed(ErrorKind::NotFound, error.to_string()),
    }
}
