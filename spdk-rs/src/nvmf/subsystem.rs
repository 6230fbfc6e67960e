//! Subsystems: what hosts connect to.

use std::ffi::c_void;
use std::net::SocketAddr;

use spdk_sys::{
    spdk_nvme_transport_id, spdk_nvmf_subsystem, spdk_nvmf_subsystem_state_change_done, spdk_nvmf_tgt,
};

use super::{Target, c_name, on_state, tcp};
use crate::bdev::{self, Bdev};
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, Result, reactor};

pub(super) const CREATE: &str = "create NVMe-oF subsystem";

/// Options of a new subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemOptions {
    /// Serial number, up to 20 ASCII characters.
    pub serial: String,
    /// Model number, up to 40 ASCII characters.
    pub model: String,
    /// The highest namespace id. (0 would let it grow, but not while a host is connected.)
    pub max_namespaces: u32,
    /// Lets every host connect. (Otherwise none can: allowing single hosts is not done yet.)
    pub allow_any_host: bool,
}

impl Default for SubsystemOptions {
    fn default() -> Self {
        Self {
            serial: "SPDK00000000000001".to_owned(),
            model: "SPDK bdev Controller".to_owned(),
            max_namespaces: 32,
            allow_any_host: true,
        }
    }
}

/// A namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number, by which hosts know it.
    pub id: u32,
    /// The name of the block device behind it.
    pub bdev: String,
}

/// A subsystem, named by its NQN. The handle holds nothing; dropping it leaves the subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    nqn: String,
}

type ChangeState =
    unsafe extern "C" fn(*mut spdk_nvmf_subsystem, spdk_nvmf_subsystem_state_change_done, *mut c_void) -> i32;

impl Subsystem {
    pub(super) fn create(target: *mut spdk_nvmf_tgt, nqn: &str, options: SubsystemOptions) -> Result<Self> {
        let this = Self { nqn: nqn.to_owned() };
        let c_nqn = c_name(CREATE, nqn)?;
        let serial = c_name(CREATE, &options.serial)?;
        let model = c_name(CREATE, &options.model)?;
        // SAFETY: the target exists (it was looked up on the app thread, where this runs); SPDK
        // copies all texts.
        unsafe {
            if !spdk_sys::spdk_nvmf_tgt_find_subsystem(target, c_nqn.as_ptr()).is_null() {
                let why = "there is one of this NQN";
                return Err(Error::new(ErrorKind::AlreadyExists, CREATE, nqn, why));
            }
            let subsystem = spdk_sys::spdk_nvmf_subsystem_create(
                target,
                c_nqn.as_ptr(),
                spdk_sys::SPDK_NVMF_SUBTYPE_NVME,
                options.max_namespaces,
            );
            let subsystem = Error::check_ptr(CREATE, nqn, subsystem, libc::EINVAL)
                .map_err(|error| {
                    error.with_detail("not a valid NQN (nqn.2016-06.io.example:name), or too many subsystems")
                })?
                .as_ptr();
            let mut rc = spdk_sys::spdk_nvmf_subsystem_set_sn(subsystem, serial.as_ptr());
            if rc == 0 {
                rc = spdk_sys::spdk_nvmf_subsystem_set_mn(subsystem, model.as_ptr());
            }
            if rc != 0 {
                // New, inactive, unknown to anybody else: it can be destroyed at once.
                spdk_sys::spdk_nvmf_subsystem_destroy(subsystem);
                let why = "serial or model number is too long or not ASCII";
                return Err(Error::new(ErrorKind::InvalidArgument, CREATE, nqn, why));
            }
            spdk_sys::spdk_nvmf_subsystem_set_allow_any_host(subsystem, options.allow_any_host);
        }
        Ok(this)
    }

    pub(super) fn find(nqn: &str) -> Result<Self> {
        let this = Self { nqn: nqn.to_owned() };
        this.raw("find NVMe-oF subsystem")?;
        Ok(this)
    }

    /// The subsystem as it is now: good until the app thread gets to do something else.
    fn raw(&self, what: &'static str) -> Result<*mut spdk_nvmf_subsystem> {
        let target = Target::raw(what)?;
        let c_nqn = c_name(what, &self.nqn)?;
        // SAFETY: the target exists; on the app thread subsystems do not come or go meanwhile.
        let raw = unsafe { spdk_sys::spdk_nvmf_tgt_find_subsystem(target, c_nqn.as_ptr()) };
        if raw.is_null() {
            let why = "there is no such subsystem";
            return Err(Error::new(ErrorKind::NotFound, what, &self.nqn, why));
        }
        Ok(raw)
    }

    /// Its NQN.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Its namespaces, by ascending id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the subsystem has gone; [`ErrorKind::WrongThread`] if not
    /// called on the app thread.
    pub fn namespaces(&self) -> Result<Vec<Namespace>> {
        let raw = self.raw("list namespaces")?;
        let mut namespaces = Vec::new();
        // SAFETY: subsystem and namespaces exist while the app thread runs nothing else; each
        // namespace keeps its bdev open.
        unsafe {
            let mut ns = spdk_sys::spdk_nvmf_subsystem_get_first_ns(raw);
            while !ns.is_null() {
                let bdev = spdk_sys::spdk_nvmf_ns_get_bdev(ns);
                namespaces.push(Namespace {
                    id: spdk_sys::spdk_nvmf_ns_get_id(ns),
                    bdev: bdev::text(spdk_sys::spdk_bdev_get_name(bdev)),
                });
                ns = spdk_sys::spdk_nvmf_subsystem_get_next_ns(raw, ns);
            }
        }
        Ok(namespaces)
    }

    /// Adds a block device, which the subsystem claims, and returns the namespace's id. `id`
    /// asks for a certain one.
    ///
    /// If the future is dropped, the change is made all the same.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the subsystem or the device; [`ErrorKind::PermissionDenied`] if
    /// the device is claimed; [`ErrorKind::AlreadyExists`] if the id is in use;
    /// [`ErrorKind::Busy`] if the subsystem is being changed by somebody else;
    /// [`ErrorKind::WrongThread`]; [`ErrorKind::Other`] if SPDK refuses without a reason.
    #[doc(alias = "spdk_nvmf_subsystem_add_ns")]
    pub async fn add_namespace(&self, bdev: &str, id: Option<u32>) -> Result<u32> {
        let bdev = Bdev::find(bdev)?;
        self.change(move |this| this.add_namespace_now(&bdev, id.unwrap_or(0)))
            .await
    }

    fn add_namespace_now(&self, bdev: &Bdev, id: u32) -> Result<u32> {
        const WHAT: &str = "add namespace";
        let name = format!("{} to {}", bdev.name(), self.nqn);
        let raw = self.raw(WHAT)?;
        // SPDK answers 0 whatever the reason: the known ones are looked at before.
        let fresh = Bdev::find(bdev.name())?;
        if let Some(module) = fresh.claimed_by() {
            let why = format!("the block device is claimed by {module}");
            return Err(Error::new(ErrorKind::PermissionDenied, WHAT, name, why));
        }
        let raw_bdev = bdev::lookup(WHAT, bdev.name())?;
        // SAFETY: subsystem and bdev exist while the app thread runs nothing else. A plain C
        // struct for the options, set up by its function.
        let given = unsafe {
            if id != 0 && !spdk_sys::spdk_nvmf_subsystem_get_ns(raw, id).is_null() {
                let why = format!("namespace id {id} is in use");
                return Err(Error::new(ErrorKind::AlreadyExists, WHAT, name, why));
            }
            let mut opts: spdk_sys::spdk_nvmf_ns_opts = std::mem::zeroed();
            let size = size_of::<spdk_sys::spdk_nvmf_ns_opts>();
            spdk_sys::spdk_nvmf_ns_opts_get_defaults(&mut opts, size);
            opts.nsid = id;
            spdk_sys::spdk_nvmf_subsystem_add_ns(raw, raw_bdev, &opts, size, std::ptr::null())
        };
        if given == 0 {
            let why = "SPDK refused (the id is too high, the subsystem is full or being changed)";
            return Err(Error::new(ErrorKind::Other, WHAT, name, why));
        }
        Ok(given)
    }

    /// Takes a namespace away from the hosts, and lets go of its block device.
    ///
    /// If the future is dropped, the change is made all the same.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the subsystem or the namespace; [`ErrorKind::Busy`] if the
    /// subsystem is being changed by somebody else; [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_nvmf_subsystem_remove_ns")]
    pub async fn remove_namespace(&self, id: u32) -> Result<()> {
        const WHAT: &str = "remove namespace";
        self.change(move |this| {
            let name = format!("{id} of {}", this.nqn);
            let raw = this.raw(WHAT)?;
            // SAFETY: the subsystem exists while the app thread runs nothing else.
            let rc = unsafe {
                if spdk_sys::spdk_nvmf_subsystem_get_ns(raw, id).is_null() {
                    let why = "there is no such namespace";
                    return Err(Error::new(ErrorKind::NotFound, WHAT, name, why));
                }
                spdk_sys::spdk_nvmf_subsystem_remove_ns(raw, id)
            };
            // The namespace is there, so -1 is about the subsystem's state.
            Error::check_bool(WHAT, name, rc == 0, libc::EBUSY).map_err(being_changed)
        })
        .await
    }

    /// Serves the subsystem at a TCP address. The TCP transport must have been created.
    ///
    /// If the future is dropped, the change is made all the same.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the subsystem or the transport; [`ErrorKind::AlreadyExists`]
    /// if something else listens there; [`ErrorKind::Busy`] if the subsystem is being changed by
    /// somebody else; [`ErrorKind::InvalidArgument`] for port 0; [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_nvmf_subsystem_add_listener")]
    pub async fn listen(&self, address: SocketAddr) -> Result<()> {
        const WHAT: &str = "listen";
        let id = tcp(WHAT, address, None)?;
        if !Target::find()?.has_tcp_transport()? {
            let why = "there is no TCP transport; create it first";
            return Err(Error::new(ErrorKind::NotFound, WHAT, address.to_string(), why));
        }
        self.change_async(async move |this: Self| this.listen_now(address, id).await)
            .await
    }

    async fn listen_now(&self, address: SocketAddr, mut id: spdk_nvme_transport_id) -> Result<()> {
        const WHAT: &str = "listen";
        let name = || format!("at {address} for {}", self.nqn);
        let target = Target::raw(WHAT)?;
        let raw = self.raw(WHAT)?;
        // SAFETY: the target exists; the id is read. Another subsystem may listen there, too.
        let rc = unsafe { spdk_sys::spdk_nvmf_tgt_listen(target, &mut id) };
        Error::check(WHAT, name(), rc)
            .map_err(|error| error.with_detail("the address is in use, or not one of this host"))?;
        let (rc, mut id) = op::unary(id, |id, cb_fn, cb_arg| {
            // SAFETY: the subsystem exists: nothing else ran on the app thread since it was
            // looked up. It calls back once, in whatever case. The id stays in the keep.
            unsafe {
                spdk_sys::spdk_nvmf_subsystem_add_listener(raw, id, Some(cb_fn), cb_arg);
            }
            Submitted::Pending
        })
        .await;
        Error::check(WHAT, name(), rc).map_err(|error| {
            // SAFETY: the target lives as long as SPDK's nvmf subsystem; undoes the listen above.
            unsafe { spdk_sys::spdk_nvmf_tgt_stop_listen(target, &mut id) };
            match -rc {
                libc::EAGAIN => being_changed(error),
                _ => error,
            }
        })
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is not inactive; [`ErrorKind::NotFound`];
    /// [`ErrorKind::NoMemory`]; [`ErrorKind::WrongThread`].
    #[doc(alias = "spdk_nvmf_subsystem_start")]
    pub async fn start(&self) -> Result<()> {
        self.state("start NVMe-oF subsystem", spdk_sys::spdk_nvmf_subsystem_start)
            .await
    }

    /// Stops to serve; hosts are disconnected.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is not active; otherwise as [`Subsystem::start`].
    #[doc(alias = "spdk_nvmf_subsystem_stop")]
    pub async fn stop(&self) -> Result<()> {
        self.state("stop NVMe-oF subsystem", spdk_sys::spdk_nvmf_subsystem_stop)
            .await
    }

    /// Holds the hosts' I/O back until [`Subsystem::resume`].
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is not active; otherwise as [`Subsystem::start`].
    #[doc(alias = "spdk_nvmf_subsystem_pause")]
    pub async fn pause(&self) -> Result<()> {
        self.state("pause NVMe-oF subsystem", spdk_sys::spdk_nvmf_subsystem_pause)
            .await
    }

    /// Continues after [`Subsystem::pause`].
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is not paused; otherwise as [`Subsystem::start`].
    #[doc(alias = "spdk_nvmf_subsystem_resume")]
    pub async fn resume(&self) -> Result<()> {
        self.state("resume NVMe-oF subsystem", spdk_sys::spdk_nvmf_subsystem_resume)
            .await
    }

    async fn state(&self, what: &'static str, change: ChangeState) -> Result<()> {
        let raw = self.raw(what)?;
        let (rc, ()) = op::start((), op::discard, |(): &mut (), cb_arg| {
            // SAFETY: the subsystem was looked up on this thread just now. It calls back once if
            // it returns 0, and else never.
            Submitted::from_rc(unsafe { change(raw, Some(on_state), cb_arg) })
        })
        .await;
        if rc == 0 {
            return Ok(());
        }
        if rc == -libc::ENOMEM {
            return Error::check(what, &self.nqn, rc);
        }
        // No errno: the distance between the state it is in and the one that it should be in.
        let why = "it is in another state, or on its way to one";
        Err(Error::new(ErrorKind::Busy, what, &self.nqn, why))
    }

    /// Makes a change that wants the subsystem paused or inactive.
    async fn change<R: 'static>(&self, change: impl FnOnce(&Self) -> Result<R> + 'static) -> Result<R> {
        self.change_async(async move |this: Self| change(&this)).await
    }

    /// As [`Self::change`]. It runs as a task of its own: a caller that goes away must not leave
    /// the subsystem paused.
    async fn change_async<R: 'static>(
        &self,
        change: impl AsyncFnOnce(Self) -> Result<R> + 'static,
    ) -> Result<R> {
        self.raw("change NVMe-oF subsystem")?;
        let this = self.clone();
        reactor::spawn(async move {
            let paused = match this.pause().await {
                Ok(()) => true,
                // Inactive, most likely, and then the change may be made at once; if not, the
                // change is refused.
                Err(error) if error.kind() == ErrorKind::Busy => false,
                Err(error) => return Err(error),
            };
            let result = change(this.clone()).await;
            if paused {
                let resumed = this.resume().await;
                if result.is_ok() {
                    resumed?;
                }
            }
            result
        })
        .await?
    }

    /// Stops serving, disconnects the hosts, and removes the subsystem with its listeners and
    /// namespaces. The block devices stay.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is being changed by somebody else; [`ErrorKind::NotFound`];
    /// [`ErrorKind::WrongThread`]. The subsystem is there as before then.
    #[doc(alias = "spdk_nvmf_subsystem_destroy")]
    pub async fn destroy(self) -> Result<()> {
        const WHAT: &str = "destroy NVMe-oF subsystem";
        // Starting is refused unless it is inactive: after this it is active in either case, or
        // being changed, and then stopping is refused.
        match self.start().await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => return Err(error),
        }
        self.stop().await?;
        let target = Target::raw(WHAT)?;
        let raw = self.raw(WHAT)?;
        // SAFETY: subsystem, target and listeners exist while the app thread runs nothing else.
        // The subsystem is inactive, as its destruction demands. The ids are copies, since
        // removing a listener frees the original.
        unsafe {
            loop {
                let listener = spdk_sys::spdk_nvmf_subsystem_get_first_listener(raw);
                if listener.is_null() {
                    break;
                }
                let mut id = *spdk_sys::spdk_nvmf_subsystem_listener_get_trid(listener);
                if spdk_sys::spdk_nvmf_subsystem_remove_listener(raw, &id) != 0 {
                    break;
                }
                spdk_sys::spdk_nvmf_tgt_stop_listen(target, &mut id);
            }
            spdk_sys::spdk_nvmf_subsystem_destroy(raw);
        }
        Ok(())
    }
}

fn being_changed(error: Error) -> Error {
    error
        .with_kind(ErrorKind::Busy)
        .with_detail("the subsystem is being changed by somebody else")
}
