//! A blocking JSON-RPC client for the UNIX socket that an SPDK application serves.
//!
//! One [`Client`] is one connection with one call under way. To have two, connect twice: SPDK serves the connections
//! side by side. It needs no SPDK in its own process, and it must not be used on a reactor of the very process that
//! serves the socket: it blocks, and the answer would never be sent.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::RpcError;

/// A connection to an SPDK application's RPC socket.
///
/// ```no_run
/// use spdk_rs::rpc::Client;
///
/// let mut client = Client::connect("/var/tmp/spdk.sock")?;
/// let bdevs = client.call("bdev_get_bdevs", serde_json::json!({}))?;
/// println!("{bdevs:#}");
/// # Ok::<(), spdk_rs::rpc::CallError>(())
/// ```
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    received: Vec<u8>,
    next_id: u64,
    timeout: Option<Duration>,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The socket cannot be reached.
    #[error("cannot connect to the RPC socket {}: {source}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The connection broke, or the server closed it, before the answer came: the call may or may not have been
    /// carried out.
    #[error("{method}: the connection to {} failed: {source}", path.display())]
    Connection {
        /// The method that was called.
        method: String,
        /// The socket's path.
        path: PathBuf,
        /// The reason; [`io::ErrorKind::TimedOut`] when the client's own timeout ran out.
        source: io::Error,
    },
    /// The server answered with an error.
    #[error("{method}: {error}")]
    Rpc {
        /// The method that was called.
        method: String,
        /// The answer.
        error: RpcError,
    },
    /// The server answered with something else than a JSON-RPC answer, or a result of another shape than asked for.
    #[error("{method}: unexpected answer: {reason}")]
    Answer {
        /// The method that was called.
        method: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl CallError {
    /// The error object that the server sent, if it is this that went wrong.
    pub fn rpc(&self) -> Option<&RpcError> {
        match self {
            Self::Rpc { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] when nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, CallError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).map_err(|source| CallError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            received: Vec::new(),
            next_id: 1,
            timeout: None,
        })
    }

    /// Tries to connect until somebody listens or the time is over; for a server that is being started.
    ///
    /// # Errors
    ///
    /// The last attempt's [`CallError::Connect`].
    pub fn connect_within(path: impl AsRef<Path>, limit: Duration) -> Result<Self, CallError> {
        let end = Instant::now() + limit;
        loop {
            match Self::connect(path.as_ref()) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                result => return result,
            }
        }
    }

    /// Limits how long a call may wait for its answer; `None`, the default, waits for ever.
    ///
    /// After a timeout the connection is of no more use, since the late answer may still come: connect anew.
    #[must_use]
    pub fn with_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// The process that listens on the socket, as the kernel knows it.
    ///
    /// # Errors
    ///
    /// The kernel's, which has no cause on a connected socket.
    pub fn peer_pid(&self) -> io::Result<u32> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the descriptor is this connection's, and `peer` and `len` are valid for writes of the sizes given.
        let rc = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &mut len,
            )
        };
        if rc == 0 {
            Ok(peer.pid.unsigned_abs())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Calls a method and waits for its result.
    ///
    /// `params` is an object with the parameters by name; an empty one (or `null`) is left out, since some of SPDK's
    /// methods refuse parameters altogether.
    ///
    /// # Errors
    ///
    /// [`CallError::Rpc`] with the server's code, message and data when the method failed.
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, CallError> {
        let bad = |reason: String| CallError::Answer {
            method: method.to_owned(),
            reason,
        };
        let params =
            serde_json::to_value(params).map_err(|e| bad(format!("parameters are not JSON: {e}")))?;
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": id, "method": method});
        if !params.is_null() && params.as_object().is_none_or(|map| !map.is_empty()) {
            request["params"] = params;
        }
        let mut answer = self.exchange(&request).map_err(|source| CallError::Connection {
            method: method.to_owned(),
            path: self.path.clone(),
            source,
        })?;
        if answer["error"].is_object() {
            return Err(CallError::Rpc {
                method: method.to_owned(),
                error: error_of(&mut answer["error"]),
            });
        }
        if answer["id"] != id {
            return Err(bad(format!("it is for request {}, not {id}", answer["id"])));
        }
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(bad("it has neither result nor error".into())),
        }
    }

    /// [`call`](Self::call), with the result in a type of one's own.
    ///
    /// # Errors
    ///
    /// Also [`CallError::Answer`] when the result is not of that shape.
    pub fn call_as<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: impl Serialize,
    ) -> Result<T, CallError> {
        let result = self.call(method, params)?;
        serde_json::from_value(result).map_err(|e| CallError::Answer {
            method: method.to_owned(),
            reason: e.to_string(),
        })
    }

    fn exchange(&mut self, request: &Value) -> io::Result<Value> {
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        self.limit(end)?;
        self.stream.write_all(request.to_string().as_bytes())?;
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(answer) = take_value(&mut self.received)? {
                return Ok(answer);
            }
            self.limit(end)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.received.extend_from_slice(&chunk[..len]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn limit(&self, end: Option<Instant>) -> io::Result<()> {
        let left = match end.map(|end| end.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            left => left,
        };
        self.stream.set_read_timeout(left)?;
        self.stream.set_write_timeout(left)
    }
}

/// Takes the first whole JSON value off the front of what was received, if there is one.
fn take_value(received: &mut Vec<u8>) -> io::Result<Option<Value>> {
    // An answer is an object. Before one can have ended, parsing would only be repeated at every chunk.
    if !matches!(received.last(), Some(b'}' | b'\n')) {
        return Ok(None);
    }
    let mut values = serde_json::Deserializer::from_slice(received).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => {
            let end = values.byte_offset();
            received.drain(..end);
            Ok(Some(value))
        }
        Some(Err(e)) if !e.is_eof() => Err(io::Error::new(io::ErrorKind::InvalidData, e)),
        _ => Ok(None),
    }
}

fn error_of(error: &mut Value) -> RpcError {
    let code = error["code"].as_i64().and_then(|code| i32::try_from(code).ok());
    let message = error["message"].as_str().unwrap_or("an error without a message");
    let mut rpc = RpcError::new(code.unwrap_or(0), message);
    rpc.data = error.get_mut("data").map(Value::take);
    rpc
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// A server that sends the given pieces to whoever asks, a piece a write.
    fn serve(name: &str, pieces: &'static [&'static str]) -> (PathBuf, JoinHandle<String>) {
        let path = std::env::temp_dir().join(format!("spdk-rs-rpc-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            String::from_utf8(request[..len].to_vec()).unwrap()
        });
        (path, server)
    }

    #[test]
    fn an_answer_in_pieces_is_put_together() {
        let (path, server) = serve(
            "pieces",
            &[r#"{"jsonrpc":"2.0","id":1,"#, r#""result":{"a":[1"#, ",2]}}\n"],
        );
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.call("m", json!({"x": 1})).unwrap(), json!({"a": [1, 2]}));
        let request: Value = serde_json::from_str(&server.join().unwrap()).unwrap();
        assert_eq!(
            request,
            json!({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"x": 1}})
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn parameters_that_are_empty_are_left_out() {
        let (path, server) = serve("empty", &[r#"{"jsonrpc":"2.0","id":1,"result":true}"#]);
        assert!(
            Client::connect(&path)
                .unwrap()
                .call_as::<bool>("m", json!({}))
                .unwrap()
        );
        assert!(!server.join().unwrap().contains("params"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_error_keeps_code_message_and_data() {
        let (path, _server) = serve(
            "error",
            &[
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Device or resource busy","data":{"n":1}}}"#,
            ],
        );
        let error = Client::connect(&path)
            .unwrap()
            .call("bdev_lvol_delete", Value::Null)
            .unwrap_err();
        let rpc = error.rpc().unwrap();
        assert_eq!(*rpc, RpcError::from_errno(16).with_data(json!({"n": 1})));
        assert!(
            error
                .to_string()
                .starts_with("bdev_lvol_delete: Device or resource busy")
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_closed_connection_and_a_timeout_name_the_method() {
        let (path, _server) = serve("closed", &[r#"{"jsonrpc":"2.0","#]);
        let error = Client::connect(&path)
            .unwrap()
            .call("m", Value::Null)
            .unwrap_err();
        assert!(
            matches!(&error, CallError::Connection { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
        );
        std::fs::remove_file(&path).unwrap();

        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path)
            .unwrap()
            .with_timeout(Duration::from_millis(50));
        let error = client.call("slow", Value::Null).unwrap_err();
        assert!(matches!(&error, CallError::Connection { method, source, .. }
            if method == "slow" && source.kind() == io::ErrorKind::TimedOut));
        drop(listener);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn something_else_than_json_is_an_error() {
        let (path, _server) = serve("garbage", &["HTTP/1.1 400\n"]);
        assert!(Client::connect(&path).unwrap().call("m", Value::Null).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_listening_process_is_known() {
        let (path, _server) = serve("peer", &[]);
        assert_eq!(
            Client::connect(&path).unwrap().peer_pid().unwrap(),
            std::process::id()
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nobody_listening_is_an_error_with_the_path() {
        let error = Client::connect("/nonexistent/spdk.sock").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/spdk.sock"));
    }
}
