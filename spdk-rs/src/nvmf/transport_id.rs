//! SPDK's transport ids.

use std::net::SocketAddr;

use spdk_sys::spdk_nvme_transport_id;

use crate::bdev::c_name;
use crate::{Error, ErrorKind, Result};

/// The transport id of a TCP address, and of a subsystem there if an NQN is given.
pub(crate) fn tcp(
    what: &'static str,
    address: SocketAddr,
    nqn: Option<&str>,
) -> Result<spdk_nvme_transport_id> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut text = format!(
        "trtype:TCP adrfam:{family} traddr:{} trsvcid:{}",
        address.ip(),
        address.port()
    );
    if address.port() == 0 {
        let why = "port 0 is not an address to serve or to connect to";
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            what,
            address.to_string(),
            why,
        ));
    }
    if let Some(nqn) = nqn {
        // The text is split at white space.
        if nqn.is_empty() || nqn.len() > 223 || nqn.contains(char::is_whitespace) {
            let why = "is not an NQN";
            return Err(Error::new(ErrorKind::InvalidArgument, what, nqn, why));
        }
        text.push_str(" subnqn:");
        text.push_str(nqn);
    }
    parse(what, text)
}

/// The transport id that SPDK reads in a text.
pub(crate) fn parse(what: &'static str, text: String) -> Result<spdk_nvme_transport_id> {
    let c_text = c_name(what, &text)?;
    // SAFETY: a plain C struct, for which zero is valid; parse writes it and reads the text.
    unsafe {
        let mut id: spdk_nvme_transport_id = std::mem::zeroed();
        let rc = spdk_sys::spdk_nvme_transport_id_parse(&mut id, c_text.as_ptr());
        Error::check(what, text, rc)?;
        Ok(id)
    }
}
