//! One error type for everything that can go wrong.
//!
//! An [`Error`] says which operation failed, on which device, with which errno, and, where the
//! device itself answered, with which NVMe status. Programs match on [`Error::kind`]; people
//! read the [`Display`](fmt::Display) text.
//!
//! # The sign of an errno
//!
//! SPDK has several calling conventions, and mixes them. Inside this crate an errno is *always
//! positive*; the sign is settled here and nowhere else, by one converter per convention:
//!
//! | convention | converter |
//! |---|---|
//! | returns (or calls back with) 0 or a negative errno | [`Error::check`] |
//! | returns a pointer, null for failure, no reason given | [`Error::check_ptr`] |
//! | returns false for failure, no reason given | [`Error::check_bool`] |
//! | libc: returns -1 and sets `errno` | [`Error::check_libc`] |
//! | bdev I/O: success flag, and a status kept in the I/O | [`Error::check_io`] |

use std::borrow::Cow;
use std::fmt;

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such device, volume, file or address.
    NotFound,
    /// The name (or UUID, or address) is taken.
    AlreadyExists,
    /// Somebody else holds it, or another operation on it is running.
    Busy,
    /// An argument that can never be right.
    InvalidArgument,
    /// An offset or length beyond the end of the device or buffer.
    OutOfRange,
    /// An offset or length that is not a multiple of the block size.
    Misaligned,
    /// A write to something that is open for reading only, or is read-only by nature.
    ReadOnly,
    /// The handle was closed.
    Closed,
    /// The device went away while the handle was open.
    Removed,
    /// Called on an spdk_thread that does not own the object, or on none.
    WrongThread,
    /// Out of memory, or of SPDK's preallocated objects.
    NoMemory,
    /// The store or device is full.
    NoSpace,
    /// Not permitted.
    PermissionDenied,
    /// The device (or what lies beneath it) reported a failure.
    Io,
    /// What is stored is not what it was compared with.
    Miscompare,
    /// Nobody answers at the address.
    Unreachable,
    /// It took longer than the caller was ready to wait.
    TimedOut,
    /// Aborted: the task, the operation or the runtime was stopped.
    Canceled,
    /// The device, or this build of SPDK, cannot do that.
    Unsupported,
    /// The environment was started before in this process; it can be started only once.
    AlreadyStarted,
    /// The environment is not running (not started yet, or stopped already).
    NotRunning,
    /// The environment could not be started.
    StartFailed,
    /// None of the others; see the errno.
    Other,
}

impl ErrorKind {
    /// The kind that a (positive) errno stands for.
    fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Self::NotFound,
            libc::EEXIST | libc::EADDRINUSE => Self::AlreadyExists,
            libc::EBUSY => Self::Busy,
            libc::EINVAL => Self::InvalidArgument,
            libc::ERANGE => Self::OutOfRange,
            libc::EROFS => Self::ReadOnly,
            libc::EBADF => Self::Closed,
            libc::ENOMEM => Self::NoMemory,
            libc::ENOSPC => Self::NoSpace,
            libc::EPERM | libc::EACCES => Self::PermissionDenied,
            libc::EIO => Self::Io,
            libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH => Self::Unreachable,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ECANCELED | libc::EINTR => Self::Canceled,
            libc::ENOTSUP | libc::ENOSYS => Self::Unsupported,
            _ => Self::Other,
        }
    }

    /// The errno that best stands for this kind where no C function gave one.
    fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENODEV,
            Self::AlreadyExists | Self::AlreadyStarted => libc::EEXIST,
            Self::Busy => libc::EBUSY,
            Self::InvalidArgument | Self::Misaligned => libc::EINVAL,
            Self::OutOfRange => libc::ERANGE,
            Self::ReadOnly => libc::EROFS,
            Self::Closed => libc::EBADF,
            Self::Removed => libc::ENODEV,
            Self::WrongThread | Self::PermissionDenied => libc::EPERM,
            Self::NoMemory => libc::ENOMEM,
            Self::NoSpace => libc::ENOSPC,
            Self::Unreachable => libc::EHOSTUNREACH,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Canceled => libc::ECANCELED,
            Self::Unsupported => libc::ENOTSUP,
            Self::NotRunning | Self::StartFailed | Self::Io | Self::Miscompare | Self::Other => libc::EIO,
        }
    }
}

/// The status with which an NVMe controller (or SPDK in its place) ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NvmeStatus {
    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path, 7 vendor.
    pub code_type: u8,
    /// Status code within its type.
    pub code: u8,
    /// Command specific result, dword 0 of the completion.
    pub cdw0: u32,
}

impl NvmeStatus {
    /// Successful completion.
    pub const SUCCESS: Self = Self {
        code_type: 0,
        code: 0,
        cdw0: 0,
    };

    /// Whether a compare found something else.
    pub(crate) fn is_miscompare(self) -> bool {
        (self.code_type, self.code) == (2, 0x85)
    }

    /// The errno that stands for this status.
    fn errno(self) -> i32 {
        match (self.code_type, self.code) {
            (0, 0x07 | 0x08) => libc::ECANCELED, // aborted by request, or with its queue
            (0, 0x80) => libc::ERANGE,           // LBA out of range
            (0, 0x81) => libc::ENOSPC,           // capacity exceeded
            (0, 0x20) => libc::EROFS,            // namespace is write protected
            (0, 0x01) => libc::ENOTSUP,          // invalid opcode
            _ => libc::EIO,
        }
    }
}

/// What went wrong: operation, device, errno, status.
///
/// ```
/// use spdk_rs::{Error, ErrorKind};
/// let error = Error::check("open", "disk0", -libc::ENODEV).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert_eq!(error.errno(), libc::ENODEV);
/// assert_eq!(error.to_string(), "open disk0: No such device (errno 19)");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    operation: Cow<'static, str>,
    device: String,
    kind: ErrorKind,
    errno: i32,
    /// The errno came from C (else it only mirrors the kind and is not worth printing).
    from_errno: bool,
    nvme: Option<NvmeStatus>,
    detail: Option<String>,
}

impl Error {
    /// An error that this crate found by itself. `device` may be empty.
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        let detail = detail.into();
        Self(Box::new(Inner {
            operation: operation.into(),
            device: device.into(),
            kind,
            errno: kind.errno(),
            from_errno: false,
            nvme: None,
            detail: (!detail.is_empty()).then_some(detail),
        }))
    }

    /// An error from an errno of either sign. `device` may be empty.
    pub fn from_errno(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        errno: i32,
    ) -> Self {
        // Where a callback's documentation promises "negative errno" some callers inside SPDK
        // still pass the positive one: the magnitude is all that can be trusted.
        let errno = errno.checked_abs().unwrap_or(libc::EIO);
        Self(Box::new(Inner {
            operation: operation.into(),
            device: device.into(),
            kind: ErrorKind::of_errno(errno),
            errno,
            from_errno: true,
            nvme: None,
            detail: None,
        }))
    }

    /// Convention: 0 for success, a negative errno for failure (`int` results and the
    /// `bserrno`, `lvolerrno`, `bdeverrno`, `status` of callbacks).
    ///
    /// # Errors
    /// `rc` was not 0.
    pub fn check(operation: impl Into<Cow<'static, str>>, device: impl Into<String>, rc: i32) -> Result<()> {
        if rc == 0 {
            return Ok(());
        }
        Err(Self::from_errno(operation, device, rc))
    }

    /// Convention: a pointer, null for failure, and nothing said about why. `errno` (positive)
    /// is what null stands for with this function: mostly `ENOMEM` or `ENODEV`.
    ///
    /// # Errors
    /// The pointer was null.
    pub fn check_ptr<T>(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        ptr: *mut T,
        errno: i32,
    ) -> Result<std::ptr::NonNull<T>> {
        std::ptr::NonNull::new(ptr).ok_or_else(|| Self::from_errno(operation, device, errno))
    }

    /// Convention: true for success, false for failure, and nothing said about why. `errno`
    /// (positive) is what false stands for with this function.
    ///
    /// # Errors
    /// `ok` was false.
    pub fn check_bool(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        ok: bool,
        errno: i32,
    ) -> Result<()> {
        if ok {
            return Ok(());
        }
        Err(Self::from_errno(operation, device, errno))
    }

    /// Convention of libc: -1 for failure, the reason in the thread's `errno`. Call it before
    /// anything else can change `errno`.
    ///
    /// # Errors
    /// `rc` was -1.
    pub fn check_libc(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        rc: i32,
    ) -> Result<i32> {
        if rc != -1 {
            return Ok(rc);
        }
        let errno = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        Err(Self::from_errno(operation, device, errno))
    }

    /// Convention of bdev I/O: a success flag, and the status as the I/O tells it. The errno is
    /// derived from the status, which is kept.
    ///
    /// # Errors
    /// `success` was false.
    pub fn check_io(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        success: bool,
        status: NvmeStatus,
    ) -> Result<()> {
        if success {
            return Ok(());
        }
        Err(Self::of_io(operation, device, status))
    }

    /// The error of an I/O that ended with this status.
    pub(crate) fn of_io(
        operation: impl Into<Cow<'static, str>>,
        device: impl Into<String>,
        status: NvmeStatus,
    ) -> Self {
        let mut error = Self::from_errno(operation, device, status.errno());
        error.0.nvme = Some(status);
        if status.is_miscompare() {
            return error
                .with_kind(ErrorKind::Miscompare)
                .with_detail("something else is stored");
        }
        error
    }

    /// Adds (or replaces) the sentence that says why, or what to do about it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Sets the kind where the caller knows better than the errno does.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What sort of failure this is; the thing to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno, always positive. Where no C function gave one, the one closest to the kind.
    pub fn errno(&self) -> i32 {
        self.0.errno
    }

    /// The operation that failed, for example `"write"`.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// The device, volume, file or address concerned; empty if there is none.
    pub fn device(&self) -> &str {
        &self.0.device
    }

    /// The NVMe status, if the device itself answered.
    pub fn nvme_status(&self) -> Option<NvmeStatus> {
        self.0.nvme
    }

    /// The sentence that says why, if there is one.
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.write_str(&inner.operation)?;
        if !inner.device.is_empty() {
            write!(f, " {}", inner.device)?;
        }
        f.write_str(": ")?;
        if let Some(detail) = &inner.detail {
            f.write_str(detail)?;
        }
        if inner.from_errno || inner.detail.is_none() {
            let text = errno_text(inner.errno);
            let errno = inner.errno;
            match inner.detail {
                Some(_) => write!(f, " ({text}, errno {errno})")?,
                None => write!(f, "{text} (errno {errno})")?,
            }
        }
        if let Some(nvme) = inner.nvme {
            write!(
                f,
                " [NVMe status type {:#x} code {:#04x}]",
                nvme.code_type, nvme.code
            )?;
        }
        Ok(())
    }
}

/// The text of an errno without the "(os error N)" that the standard library appends.
fn errno_text(errno: i32) -> String {
    let mut text = std::io::Error::from_raw_os_error(errno).to_string();
    if let Some(end) = text.rfind(" (os error") {
        text.truncate(end);
    }
    text
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("operation", &inner.operation)
            .field("device", &inner.device)
            .field("errno", &inner.errno)
            .field("nvme", &inner.nvme)
            .field("detail", &inner.detail)
            .finish()
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = std::io::Error::from_raw_os_error(error.errno()).kind();
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_positive_whatever_sign_c_used() {
        for rc in [-libc::EBUSY, libc::EBUSY] {
            let error = Error::check("destroy", "lvs/vol", rc).unwrap_err();
            assert_eq!(error.errno(), libc::EBUSY);
            assert_eq!(error.kind(), ErrorKind::Busy);
        }
        assert!(Error::check("x", "", 0).is_ok());
        assert_eq!(Error::check("x", "", i32::MIN).unwrap_err().errno(), libc::EIO);
    }

    #[test]
    fn text_names_operation_device_and_reason() {
        let error = Error::from_errno("open", "disk0", -libc::EPERM);
        assert_eq!(error.to_string(), "open disk0: Operation not permitted (errno 1)");
        let error = error.with_detail("claimed by lvol; delete the store first");
        assert_eq!(
            error.to_string(),
            "open disk0: claimed by lvol; delete the store first \
             (Operation not permitted, errno 1)"
        );
        let error = Error::new(ErrorKind::Misaligned, "read", "disk0", "offset 3");
        assert_eq!(error.to_string(), "read disk0: offset 3");
        let error = Error::new(ErrorKind::StartFailed, "start", "", "no memory");
        assert_eq!(error.to_string(), "start: no memory");
    }

    #[test]
    fn nvme_status_is_kept() {
        let status = NvmeStatus {
            code_type: 0,
            code: 0x80,
            cdw0: 7,
        };
        let error = Error::check_io("read", "n1", false, status).unwrap_err();
        assert_eq!(error.nvme_status(), Some(status));
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        assert!(error.to_string().contains("code 0x80"));
        let miscompare = NvmeStatus {
            code_type: 2,
            code: 0x85,
            cdw0: 0,
        };
        let error = Error::check_io("compare", "n1", false, miscompare).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Miscompare);
        assert!(error.to_string().contains("something else is stored"));
        // What SPDK reports for devices that have no NVMe status of their own.
        let internal = NvmeStatus {
            code_type: 0,
            code: 6,
            cdw0: 0,
        };
        let error = Error::check_io("read", "aio", false, internal).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(Error::check_io("read", "n1", true, NvmeStatus::SUCCESS).is_ok());
    }

    #[test]
    fn error_is_one_word_and_send() {
        fn send_sync<T: Send + Sync + 'static>() {}
        send_sync::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn other_conventions() {
        let null = std::ptr::null_mut::<u8>();
        let error = Error::check_ptr("alloc", "", null, libc::ENOMEM).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoMemory);
        assert!(Error::check_bool("init", "", true, libc::EINVAL).is_ok());
        // SAFETY: close() of an invalid descriptor has no effect but to set errno to EBADF.
        let rc = unsafe { libc::close(-1) };
        let error = Error::check_libc("close", "", rc).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
}
