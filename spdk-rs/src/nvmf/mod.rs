//! Serving block devices to other hosts: the NVMe-oF target.
//!
//! # The model
//!
//! SPDK's nvmf subsystem has one [`Target`]. It needs a *transport* (TCP here) once; then it
//! serves [`Subsystem`]s, named by NQN, each with listeners (addresses) and namespaces (block
//! devices). A subsystem is created inactive and serves once it is [started](Subsystem::start).
//! Namespaces and listeners may be changed at any time: an active subsystem is paused for that
//! moment, which hosts do not notice but for a short wait.
//!
//! All of it happens on the [app thread](crate::reactor::Thread::app). The handles here only name
//! things; what was deleted by somebody else (over RPC, say) is an error when it is used.
//!
//! ```no_run
//! # use spdk_rs::{bdev, nvmf::{SubsystemOptions, Target, TcpOptions}};
//! # async fn example() -> spdk_rs::Result<()> {
//! let target = Target::find()?;
//! target.create_tcp_transport(TcpOptions::default()).await?;
//! let subsystem = target.create_subsystem("nqn.2016-06.io.spdk:demo", SubsystemOptions::default())?;
//! bdev::malloc::create("ram0", 2048, 512)?;
//! subsystem.add_namespace("ram0", None).await?;
//! subsystem.listen("127.0.0.1:4420".parse().expect("an address")).await?;
//! subsystem.start().await?;
//! # Ok(()) }
//! ```

mod subsystem;
mod transport_id;

use std::ffi::{c_int, c_void};

use spdk_sys::spdk_nvmf_tgt;

use crate::bdev::{c_name, check_app_thread};
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, Result};

pub use subsystem::{Namespace, Subsystem, SubsystemOptions};
pub(crate) use transport_id::{parse, tcp};

const TCP: &std::ffi::CStr = c"TCP";

/// SPDK's NVMe-oF target, of which its nvmf subsystem has one.
#[derive(Clone, Copy, Debug)]
pub struct Target(());

/// Options of the TCP transport; `None` leaves SPDK its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Commands that a queue can hold.
    pub max_queue_depth: Option<u16>,
    /// Largest transfer of one command, in bytes.
    pub max_io_size: Option<u32>,
    /// Size of a data buffer, in bytes.
    pub io_unit_size: Option<u32>,
    /// How many data buffers all connections share.
    pub num_shared_buffers: Option<u32>,
}

impl Target {
    /// The target.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if SPDK's nvmf subsystem is not running (it is linked away, or was
    /// not configured); [`ErrorKind::WrongThread`] if not called on the app thread.
    pub fn find() -> Result<Self> {
        Self::raw("find NVMe-oF target").map(|_| Self(()))
    }

    fn raw(what: &'static str) -> Result<*mut spdk_nvmf_tgt> {
        check_app_thread(what, "")?;
        // SAFETY: the variable is written on the app thread, where this runs.
        let raw = unsafe { spdk_sys::g_spdk_nvmf_tgt };
        if raw.is_null() {
            let why = "SPDK's nvmf subsystem has no target";
            return Err(Error::new(ErrorKind::NotFound, what, "", why));
        }
        Ok(raw)
    }

    /// Whether the TCP transport was created.
    ///
    /// # Errors
    /// As [`Target::find`].
    pub fn has_tcp_transport(&self) -> Result<bool> {
        let raw = Self::raw("find TCP transport")?;
        // SAFETY: the target exists while the app thread does not run anything else.
        Ok(unsafe { !spdk_sys::spdk_nvmf_tgt_get_transport(raw, TCP.as_ptr()).is_null() })
    }

    /// Creates the TCP transport, which stays until SPDK stops.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]; [`ErrorKind::NoMemory`], also if the options are not
    /// acceptable to SPDK (it does not tell); as [`Target::find`].
    #[doc(alias = "spdk_nvmf_tgt_add_transport")]
    pub async fn create_tcp_transport(&self, options: TcpOptions) -> Result<()> {
        const WHAT: &str = "create NVMe-oF transport";
        const NAME: &str = "TCP";
        if self.has_tcp_transport()? {
            let why = "there is one already";
            return Err(Error::new(ErrorKind::AlreadyExists, WHAT, NAME, why));
        }
        let raw = Self::raw(WHAT)?;
        // SAFETY: a plain C struct, for which zero is valid, then set up by opts_init; create
        // reads it. On the app thread.
        let transport = unsafe {
            let mut opts: spdk_sys::spdk_nvmf_transport_opts = std::mem::zeroed();
            let known = spdk_sys::spdk_nvmf_transport_opts_init(TCP.as_ptr(), &mut opts);
            Error::check_bool(WHAT, NAME, known, libc::ENOTSUP)?;
            set(&mut opts.max_queue_depth, options.max_queue_depth);
            set(&mut opts.max_io_size, options.max_io_size);
            set(&mut opts.io_unit_size, options.io_unit_size);
            set(&mut opts.num_shared_buffers, options.num_shared_buffers);
            spdk_sys::spdk_nvmf_transport_create(TCP.as_ptr(), &mut opts)
        };
        let transport = Error::check_ptr(WHAT, NAME, transport, libc::ENOMEM)?;
        let (rc, ()) = op::unary((), |(), cb_fn, cb_arg| {
            // SAFETY: target and transport exist; the target owns the transport from now on. It
            // calls back once, in whatever case.
            unsafe {
                spdk_sys::spdk_nvmf_tgt_add_transport(raw, transport.as_ptr(), Some(cb_fn), cb_arg);
            }
            Submitted::Pending
        })
        .await;
        Error::check(WHAT, NAME, rc)
    }

    /// Creates a subsystem, inactive, without namespaces and listeners.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]; [`ErrorKind::InvalidArgument`] if it is not an NQN (or the
    /// target's table of subsystems is full, which SPDK does not tell apart); as
    /// [`Target::find`].
    #[doc(alias = "spdk_nvmf_subsystem_create")]
    pub fn create_subsystem(&self, nqn: &str, options: SubsystemOptions) -> Result<Subsystem> {
        Subsystem::create(Self::raw(subsystem::CREATE)?, nqn, options)
    }

    /// Finds a subsystem.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; as [`Target::find`].
    #[doc(alias = "spdk_nvmf_tgt_find_subsystem")]
    pub fn subsystem(&self, nqn: &str) -> Result<Subsystem> {
        Subsystem::find(nqn)
    }
}

fn set<T>(option: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *option = value;
    }
}

/// `void (*)(struct spdk_nvmf_subsystem *, void *cb_arg, int status)`, completing an operation
/// whose result is an errno and whose keep is empty.
unsafe extern "C" fn on_state(_: *mut spdk_sys::spdk_nvmf_subsystem, cb_arg: *mut c_void, status: c_int) {
    // SAFETY: C passes on the cb_arg of an operation of these types, once.
    crate::guard::ffi((), || unsafe { op::complete::<i32, ()>(cb_arg, status) });
}
