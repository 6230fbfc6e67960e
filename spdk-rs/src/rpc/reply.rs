//! The duty to answer one request.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;

use spdk_sys::{spdk_json_write_ctx, spdk_jsonrpc_request};

use super::{RpcError, json};
use crate::guard;

/// The longest answer: SPDK sends at most 32 MiB, the rest is for what stands around the result.
const LONGEST: usize = (32 << 20) - 4096;

/// A request that was not answered yet. It is answered when this is dropped, at the latest.
///
/// SPDK keeps request and connection until the answer, also when the caller has gone: it must come exactly once. It is
/// given on the app thread, where SPDK's server runs.
pub(super) struct Reply {
    request: Option<NonNull<spdk_jsonrpc_request>>,
    method: &'static str,
    _not_send: PhantomData<*mut ()>,
}

static_assertions::assert_not_impl_any!(Reply: Send, Sync);

impl Reply {
    /// Takes the duty over.
    ///
    /// # Safety
    ///
    /// `request` is a request that SPDK has handed to a method's handler, and that nobody else answers.
    pub(super) unsafe fn new(request: *mut spdk_jsonrpc_request, method: &'static str) -> Self {
        Self {
            request: NonNull::new(request),
            method,
            _not_send: PhantomData,
        }
    }

    /// Answers with a result, given as JSON text, or an error.
    pub(super) fn send(mut self, outcome: Result<String, RpcError>) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Result<String, RpcError>) {
        let Some(request) = self.request.take() else {
            return;
        };
        let request = request.as_ptr();
        let error = match outcome {
            Ok(result) if result.len() <= LONGEST => {
                // SAFETY: the request was not answered before (it was still here), and is not touched afterwards. A
                // result has exactly one value.
                unsafe {
                    let writer = spdk_sys::spdk_jsonrpc_begin_result(request);
                    json::write(writer, &result);
                    spdk_sys::spdk_jsonrpc_end_result(request, writer);
                }
                return;
            }
            Ok(result) => RpcError::new(
                RpcError::INTERNAL_ERROR,
                format!(
                    "the result of {} is too long to send: {} bytes",
                    self.method,
                    result.len()
                ),
            ),
            Err(error) => error,
        };
        // The message is for people: a NUL in it, which C cannot carry, is no loss.
        let message = CString::new(error.message.replace('\0', "")).unwrap_or_default();
        let data = error.data.map(|data| data.to_string());
        // SAFETY: as above. The message is copied; the callback runs before the function returns, and its argument is
        // the text that lives until then.
        unsafe {
            spdk_sys::spdk_rs_jsonrpc_send_error_data(
                request,
                error.code,
                message.as_ptr(),
                data.as_ref().map(|_| write_data as unsafe extern "C" fn(_, _)),
                data.as_ref().map_or(std::ptr::null_mut(), |text| {
                    std::ptr::from_ref(text).cast_mut().cast()
                }),
            );
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.request.is_some() {
            let why = if std::thread::panicking() {
                format!("{} panicked; the target goes on", self.method)
            } else {
                format!("{} was given up: the target is stopping", self.method)
            };
            self.answer(Err(RpcError::new(RpcError::INTERNAL_ERROR, why)));
        }
    }
}

/// Writes the details of an error.
unsafe extern "C" fn write_data(writer: *mut spdk_json_write_ctx, arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: `arg` is the String that `answer` passed and still holds; SPDK calls this where a value stands.
        unsafe { json::write(writer, &*arg.cast::<String>()) };
    });
}
