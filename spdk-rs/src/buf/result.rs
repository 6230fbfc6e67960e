//! A result that gives the buffer back.

use super::DmaBuf;
use crate::{Error, Result};

/// What an I/O yields: its result, and the buffer that it was given, in success and failure alike.
///
/// ```
/// # use spdk_rs::{buf::BufResult, Result};
/// # fn shape(result: BufResult<()>) -> Result<()> {
/// let (result, buf) = result.into_parts();
/// result?;
/// # drop(buf); Ok(())
/// # }
/// ```
#[must_use = "it holds the result of the I/O, and the buffer"]
#[derive(Debug)]
pub struct BufResult<T, B = DmaBuf>(pub Result<T>, pub B);

impl<T, B> BufResult<T, B> {
    /// The result, and the buffer.
    pub fn into_parts(self) -> (Result<T>, B) {
        (self.0, self.1)
    }

    /// The result alone; the buffer is freed.
    ///
    /// # Errors
    /// The I/O failed.
    pub fn into_result(self) -> Result<T> {
        self.0
    }

    /// The value and the buffer, or the error alone (the buffer is freed).
    ///
    /// # Errors
    /// The I/O failed.
    pub fn ok(self) -> Result<(T, B)> {
        match self.0 {
            Ok(value) => Ok((value, self.1)),
            Err(error) => Err(error),
        }
    }

    /// The buffer, for tests and examples.
    ///
    /// # Panics
    /// The I/O failed.
    #[track_caller]
    pub fn unwrap(self) -> (T, B) {
        match self.0 {
            Ok(value) => (value, self.1),
            Err(error) => panic!("I/O failed: {error}"),
        }
    }

    /// Whether the I/O succeeded.
    pub fn is_ok(&self) -> bool {
        self.0.is_ok()
    }

    /// The error, if the I/O failed.
    pub fn err(&self) -> Option<&Error> {
        self.0.as_ref().err()
    }

    /// Changes the value of a success.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> BufResult<U, B> {
        BufResult(self.0.map(change), self.1)
    }

    /// Continues a success with something that may fail.
    pub fn and_then<U>(self, next: impl FnOnce(T, &mut B) -> Result<U>) -> BufResult<U, B> {
        let Self(result, mut buf) = self;
        let result = result.and_then(|value| next(value, &mut buf));
        BufResult(result, buf)
    }
}
