//! JSON between SPDK's parser and writer and serde's values.

use std::ffi::{c_int, c_void};

use serde_json::Value;
use spdk_sys::{spdk_json_val, spdk_json_write_ctx};

use crate::{Error, ErrorKind, Result, guard};

/// Reads a value that SPDK has parsed.
///
/// SPDK decodes strings in place, so that its source text is of no use any more: the value is written out by SPDK's
/// own writer and read again.
///
/// # Safety
///
/// `value` is null (which reads as JSON's null) or points to a value as SPDK's parser left it, with all its members.
pub(super) unsafe fn read(value: *const spdk_json_val) -> Result<Value> {
    const WHAT: &str = "read JSON";
    if value.is_null() {
        return Ok(Value::Null);
    }
    let mut text: Vec<u8> = Vec::new();
    // SAFETY: the callback's argument is a Vec<u8> that outlives the writer, which ends below. `value` is a whole
    // value, as the caller promises.
    let rc = unsafe {
        let writer = spdk_sys::spdk_json_write_begin(Some(append), (&raw mut text).cast(), 0);
        let writer = Error::check_ptr(WHAT, "", writer, libc::ENOMEM)?.as_ptr();
        let written = spdk_sys::spdk_json_write_val(writer, value);
        // Ending flushes and frees the writer, also after a failure.
        let ended = spdk_sys::spdk_json_write_end(writer);
        if written != 0 { written } else { ended }
    };
    Error::check_bool(WHAT, "", rc == 0, libc::EINVAL)?;
    serde_json::from_slice(&text).map_err(|e| Error::new(ErrorKind::InvalidArgument, WHAT, "", e.to_string()))
}

/// Takes what SPDK's writer has written.
unsafe extern "C" fn append(arg: *mut c_void, data: *const c_void, size: usize) -> c_int {
    guard::ffi(-1, || {
        // SAFETY: `arg` is the Vec<u8> that `read` passed, which is not used otherwise while the writer is; `data` has
        // `size` bytes.
        let (text, piece) = unsafe {
            (
                &mut *arg.cast::<Vec<u8>>(),
                std::slice::from_raw_parts(data.cast::<u8>(), size),
            )
        };
        text.extend_from_slice(piece);
        0
    })
}

/// Writes a value, given as its text, where SPDK expects one.
///
/// # Safety
///
/// `writer` is a writer in use, at a place where a value may stand.
pub(super) unsafe fn write(writer: *mut spdk_json_write_ctx, text: &str) {
    // A failure means that the answer is larger than SPDK sends, or that memory has run out; SPDK logs both, and the
    // response is ended all the same: there is nothing else to answer with at this point.
    // SAFETY: the caller's promise; the text is copied.
    unsafe { spdk_sys::spdk_json_write_val_raw(writer, text.as_ptr().cast(), text.len()) };
}
