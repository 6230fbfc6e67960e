//! The error object of JSON-RPC, which the server sends and the client receives.

use std::fmt;

use serde_json::Value;

/// The error that a JSON-RPC method answers with: a code, a message, and details if there are any.
///
/// ```
/// use spdk_rs::rpc::RpcError;
///
/// let error = RpcError::from_errno(libc::EBUSY).with_data(serde_json::json!({"holder": "backup"}));
/// assert_eq!(error.message, "Device or resource busy");
/// assert_eq!(error.to_string(), r#"Device or resource busy (-32603, {"holder":"backup"})"#);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RpcError {
    /// The number that programs look at: one of this type's constants, or a negative errno.
    pub code: i32,
    /// One sentence for people. SPDK's clients match some of them literally.
    pub message: String,
    /// What else is known, in a form that programs can read.
    pub data: Option<Value>,
}

impl RpcError {
    /// What came in was not JSON.
    pub const PARSE_ERROR: i32 = -32700;
    /// What came in was JSON, but no request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The parameters are not what the method takes.
    pub const INVALID_PARAMS: i32 = -32602;
    /// The method failed. SPDK answers most failures with this code and the errno's text.
    pub const INTERNAL_ERROR: i32 = -32603;
    /// The method exists, but not in the server's present state (SPDK's own code).
    pub const INVALID_STATE: i32 = -1;

    /// An error with this code and message.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// An [internal error](Self::INTERNAL_ERROR) with the C library's text for `errno`, as SPDK's methods answer.
    ///
    /// Either sign is taken: `EBUSY` and `-EBUSY` are the same error.
    pub fn from_errno(errno: i32) -> Self {
        Self::new(Self::INTERNAL_ERROR, errno_text(errno))
    }

    /// An error whose *code* is the negative errno, as some of SPDK's methods answer.
    pub fn with_errno_code(errno: i32) -> Self {
        Self::new(-errno.abs(), errno_text(errno))
    }

    /// An [invalid parameters](Self::INVALID_PARAMS) error.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, message)
    }

    /// The same error with details.
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.code)?;
        if let Some(data) = &self.data {
            write!(f, ", {data}")?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for RpcError {}

/// The C library's text for an errno of either sign, without Rust's addition of the number.
fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno.saturating_abs()).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_of_either_sign_gives_the_text_that_clients_match() {
        assert_eq!(RpcError::from_errno(-16).message, "Device or resource busy");
        assert_eq!(RpcError::from_errno(16), RpcError::from_errno(-16));
        assert_eq!(RpcError::from_errno(16).code, -32603);
        assert_eq!(RpcError::with_errno_code(19).code, -19);
        assert_eq!(RpcError::with_errno_code(-19).message, "No such device");
    }
}
