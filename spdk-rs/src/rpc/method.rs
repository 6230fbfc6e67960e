//! Methods in Rust, in SPDK's table of RPC methods.

use std::ffi::CString;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use spdk_sys::{spdk_json_val, spdk_jsonrpc_request};

use super::reply::Reply;
use super::{RpcError, json};
use crate::reactor::{self, Thread};
use crate::{Error, ErrorKind, Result, env, guard};

/// When a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// When SPDK's subsystems are initialised: nearly always the right one.
    Running,
    /// Only before (the application was started with `--wait-for-rpc`). The handler must not need the subsystems.
    Starting,
    /// At any time.
    Always,
}

impl When {
    fn mask(self) -> u32 {
        match self {
            Self::Running => spdk_sys::SPDK_RPC_RUNTIME,
            Self::Starting => spdk_sys::SPDK_RPC_STARTUP,
            Self::Always => spdk_sys::SPDK_RPC_RUNTIME | spdk_sys::SPDK_RPC_STARTUP,
        }
    }
}

/// What a slot holds: the method's name, and what decodes, runs and answers a call.
struct Method {
    name: &'static str,
    call: Box<dyn Fn(Value, Reply) + Send + Sync>,
}

/// SPDK calls a method's function with the request and nothing else, so that every method needs a function of its own.
/// There is one for each of these slots; a method stays in its slot for ever, as in SPDK's table.
static SLOTS: [OnceLock<Method>; FUNCTIONS.len()] = [const { OnceLock::new() }; FUNCTIONS.len()];

type Function = unsafe extern "C" fn(*mut spdk_jsonrpc_request, *const spdk_json_val);

macro_rules! functions {
    ($($slot:literal)*) => { [$(function::<$slot>),*] };
}

static FUNCTIONS: [Function; 64] = functions!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
);

unsafe extern "C" fn function<const SLOT: usize>(
    request: *mut spdk_jsonrpc_request,
    params: *const spdk_json_val,
) {
    guard::ffi((), || {
        let method = SLOTS[SLOT].get();
        // SAFETY: SPDK hands the request to this function alone, which is the method's.
        let reply = unsafe { Reply::new(request, method.map_or("the method", |method| method.name)) };
        // The slot is filled before SPDK knows of its function; without a method the reply answers by itself.
        let Some(method) = method else { return };
        // SAFETY: `params` is null or what SPDK's parser left, and lives at least until this function returns.
        match unsafe { json::read(params) } {
            Ok(params) => (method.call)(params, reply),
            Err(error) => reply.send(Err(RpcError::invalid_params(error.to_string()))),
        }
    });
}

/// Adds a method to SPDK's RPC server.
///
/// For every call, `params` (an object; an empty one if the caller gave none) is decoded as `P`, and the future that
/// `handler` returns is run as a task on the app thread. Parameters that cannot be decoded are answered with
/// [`RpcError::INVALID_PARAMS`] and the reason, without asking the handler. Mark `P` with
/// `#[serde(deny_unknown_fields)]` to refuse misspelt ones, as SPDK's own methods do.
///
/// Call it before [`Runtime::run`](crate::Runtime::run), or on the app thread. A method cannot be removed.
///
/// # Errors
///
/// * [`ErrorKind::AlreadyExists`]: SPDK or somebody else has a method of that name.
/// * [`ErrorKind::WrongThread`]: SPDK is running, and this is not its app thread.
/// * [`ErrorKind::NoSpace`]: 64 methods are registered.
/// * [`ErrorKind::InvalidArgument`]: the name is empty or contains a NUL.
#[doc(alias = "spdk_rpc_register_method")]
pub fn register<P, R, H, F>(name: &str, when: When, handler: H) -> Result<()>
where
    P: DeserializeOwned + 'static,
    R: Serialize,
    H: Fn(P) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, RpcError>> + 'static,
{
    /// Registrations look for a free slot and for the name one at a time.
    static REGISTERING: Mutex<usize> = Mutex::new(0);
    const WHAT: &str = "register RPC method";

    let failed = |kind, why: &str| Err(Error::new(kind, WHAT, name, why));
    let c_name = match CString::new(name) {
        Ok(c_name) if !name.is_empty() => c_name,
        _ => return failed(ErrorKind::InvalidArgument, "a name is not empty and has no NUL"),
    };
    if env::is_running() && Thread::current().map(|t| t.id()) != Some(Thread::app()?.id()) {
        return failed(
            ErrorKind::WrongThread,
            "while SPDK runs, do this on its app thread",
        );
    }
    let mut used = REGISTERING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the name is a C string. SPDK's table is changed only under the lock above or by constructors before
    // main, and read on the app thread.
    if unsafe { spdk_sys::spdk_rpc_is_method_allowed(c_name.as_ptr(), 0) } != -libc::ENOENT {
        return failed(ErrorKind::AlreadyExists, "there is a method of that name");
    }
    let Some((slot, function)) = SLOTS.get(*used).zip(FUNCTIONS.get(*used)) else {
        return failed(ErrorKind::NoSpace, "there is no room for more methods in Rust");
    };
    let name: &'static str = Box::leak(name.into());
    let handler = Arc::new(handler);
    let call = Box::new(move |params, reply| run(&handler, params, reply));
    // Nobody else fills the slot: the lock is held.
    let _ = slot.set(Method { name, call });
    *used += 1;
    // SAFETY: the name is copied; the function may be called for as long as the process lives.
    unsafe { spdk_sys::spdk_rpc_register_method(c_name.as_ptr(), Some(*function), when.mask()) };
    Ok(())
}

/// Decodes a call's parameters, and starts the task that answers it.
fn run<P, R, H, F>(handler: &Arc<H>, params: Value, reply: Reply)
where
    P: DeserializeOwned + 'static,
    R: Serialize,
    H: Fn(P) -> F + 'static,
    F: Future<Output = Result<R, RpcError>> + 'static,
{
    let params = match decode(params) {
        Ok(params) => params,
        Err(error) => return reply.send(Err(error)),
    };
    if Thread::current().is_none() {
        let why = "the target is still starting: no Rust task can run yet";
        return reply.send(Err(RpcError::new(RpcError::INVALID_STATE, why)));
    }
    let handler = Arc::clone(handler);
    // The handle is not needed: a panic answers the call when the reply is dropped, and goes no further.
    drop(reactor::spawn(async move {
        let outcome = handler(params).await.and_then(|result| {
            serde_json::to_string(&result).map_err(|e| {
                let why = format!("the result is not JSON: {e}");
                RpcError::new(RpcError::INTERNAL_ERROR, why)
            })
        });
        reply.send(outcome);
    }));
}

/// No parameters are an empty object, or nothing at all for a method that takes nothing.
fn decode<P: DeserializeOwned>(params: Value) -> Result<P, RpcError> {
    let none = params.is_null();
    let params = if none { Value::Object(Map::new()) } else { params };
    serde_json::from_value(params)
        .or_else(|error| {
            if none {
                serde_json::from_value(Value::Null).map_err(|_| error)
            } else {
                Err(error)
            }
        })
        .map_err(|error| RpcError::invalid_params(format!("Invalid parameters: {error}")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Params {
        #[serde(default)]
        name: Option<String>,
    }

    #[test]
    fn parameters_that_are_left_out_are_an_empty_object() {
        assert_eq!(decode::<Params>(Value::Null), Ok(Params { name: None }));
        assert_eq!(decode::<()>(Value::Null), Ok(()));
        assert_eq!(decode::<Value>(Value::Null), Ok(json!({})));
    }

    #[test]
    fn parameters_that_do_not_fit_are_told() {
        let error = decode::<Params>(json!({"nmae": "x"})).unwrap_err();
        assert_eq!(error.code, RpcError::INVALID_PARAMS);
        assert!(error.message.contains("nmae"), "{error}");
        assert!(decode::<Params>(json!([1])).is_err());
    }

    #[test]
    fn states_are_spdks() {
        assert_eq!(When::Always.mask(), When::Running.mask() | When::Starting.mask());
    }
}
