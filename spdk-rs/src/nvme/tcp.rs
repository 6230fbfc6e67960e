//! Subsystems of NVMe over TCP.

use std::ffi::{c_int, c_void};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::time::Duration;

use super::attach::{Keep, annotate, create};
use crate::bdev::{c_name, check_app_thread};
use crate::executor::channel;
use crate::{Error, ErrorKind, Result, nvmf};

/// Where to connect to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// The target's TCP address.
    pub address: SocketAddr,
    /// The NQN of the subsystem there.
    pub subnqn: String,
    /// The NQN of this host; SPDK makes one up if none is given.
    pub hostnqn: Option<String>,
    /// How long to wait for the controller.
    pub timeout: Duration,
}

impl AttachOptions {
    /// Options for a subsystem at an address; 30 seconds to wait.
    pub fn new(address: SocketAddr, subnqn: impl Into<String>) -> Self {
        Self {
            address,
            subnqn: subnqn.into(),
            hostnqn: None,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Connects to a subsystem. The controller is called `name`, its block devices `name` followed by
/// `n1`, `n2` … for the namespaces; these names are returned.
///
/// If the future is dropped and the controller arrives later, it is detached again.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if the address is served by this very process (see the
/// [module's documentation](super)); [`ErrorKind::Unreachable`] if nobody listens there;
/// [`ErrorKind::NotFound`] if the target refuses the connection (no such subsystem, host not
/// allowed); [`ErrorKind::AlreadyExists`] if there is a controller of this name or address;
/// [`ErrorKind::TimedOut`]; [`ErrorKind::InvalidArgument`]; [`ErrorKind::WrongThread`] if not called
/// on the app thread.
#[doc(alias = "bdev_nvme_create")]
pub async fn attach(name: &str, options: &AttachOptions) -> Result<Vec<String>> {
    const WHAT: &str = "attach NVMe controller";
    let address = options.address;
    let device = format!("{name} ({} at {address})", options.subnqn);
    check_app_thread(WHAT, &device)?;
    if name.is_empty() {
        let why = "a controller needs a name";
        return Err(Error::new(ErrorKind::InvalidArgument, WHAT, device, why));
    }
    let hostnqn = options
        .hostnqn
        .as_deref()
        .map(|nqn| c_name(WHAT, nqn))
        .transpose()?;
    let id = nvmf::tcp(WHAT, address, Some(&options.subnqn))?;
    let keep = Keep::new(id, c_name(WHAT, name)?, hostnqn);
    if is_own_listener(address) {
        let why = "the address is served by this very process, and connecting to it would block the reactor \
                   that has to answer; use the block device directly, or attach from another process";
        return Err(Error::new(ErrorKind::Unsupported, WHAT, device, why));
    }
    // SPDK's connect blocks the reactor, for minutes where packets are lost: see on another
    // thread first whether there is anybody.
    probe(address, options.timeout)
        .await
        .map_err(|error| annotate(error, WHAT, &device))?;
    create(WHAT, device, keep, options.timeout)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                error.with_detail("the target refused: no such subsystem, or host not allowed")
            }
            ErrorKind::AlreadyExists => error.with_detail("there is a controller of this name or address"),
            _ => error,
        })
}

/// Whether anybody accepts connections at the address.
async fn probe(address: SocketAddr, timeout: Duration) -> Result<()> {
    const WHAT: &str = "connect to";
    let (sender, answer) = channel();
    let connect = move || {
        sender.send(Ok(TcpStream::connect_timeout(&address, timeout).map(drop)));
    };
    let thread = std::thread::Builder::new()
        .name("nvme-probe".to_owned())
        .spawn(connect);
    if thread.is_err() {
        return Ok(()); // let SPDK try
    }
    match answer.await? {
        Ok(()) => Ok(()),
        Err(error) => {
            let kind = match error.kind() {
                std::io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                _ => ErrorKind::Unreachable,
            };
            Err(Error::new(
                kind,
                WHAT,
                address.to_string(),
                format!("cannot connect: {error}"),
            ))
        }
    }
}

/// Whether this process listens at the address, through whatever socket.
fn is_own_listener(address: SocketAddr) -> bool {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return false;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(listening_at)
        .any(|own| {
            own.port() == address.port()
                && (own.ip() == address.ip() || own.ip().is_unspecified() && is_local(address.ip()))
        })
}

/// Whether the address is one of this host.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || TcpListener::bind((ip, 0)).is_ok()
}

/// The address of a descriptor, if it is a TCP socket that listens.
fn listening_at(fd: RawFd) -> Option<SocketAddr> {
    use libc::{sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
    // SAFETY: getsockopt and getsockname write at most the given lengths, and fail on what is not
    // an open socket. The casts to the family's own type are what sockaddr_storage is for.
    unsafe {
        let mut listens: c_int = 0;
        let mut len = size_of::<c_int>() as socklen_t;
        let option = (&raw mut listens).cast::<c_void>();
        if libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, option, &mut len) != 0 || listens == 0
        {
            return None;
        }
        let mut storage: sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<sockaddr_storage>() as socklen_t;
        if libc::getsockname(fd, (&raw mut storage).cast(), &mut len) != 0 {
            return None;
        }
        match c_int::from(storage.ss_family) {
            libc::AF_INET => {
                let v4 = &*(&raw const storage).cast::<sockaddr_in>();
                let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let v6 = &*(&raw const storage).cast::<sockaddr_in6>();
                let ip = IpAddr::from(v6.sin6_addr.s6_addr).to_canonical();
                Some(SocketAddr::new(ip, u16::from_be(v6.sin6_port)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_listeners_are_known() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        assert!(is_own_listener(address));
        drop(listener);
        assert!(!is_own_listener(address));
    }

    #[test]
    fn listening_everywhere_includes_every_local_address() {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        assert!(is_own_listener(SocketAddr::from(([127, 0, 0, 1], port))));
        assert!(
            !is_own_listener(SocketAddr::from(([192, 0, 2, 1], port))),
            "TEST-NET-1 is not ours"
        );
    }

    #[test]
    fn a_connected_socket_is_no_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let stream = TcpStream::connect(address).expect("connected");
        assert!(!is_own_listener(stream.local_addr().expect("its address")));
    }
}
