//! The guest's network device, with the address that QEMU's user network gives to the first guest.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

/// This machine's 127.0.0.1, seen from the guest.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Switches it on. The address of this machine from there.
pub fn network() -> Result<String> {
    let mut names = fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|entry| entry.file_name());
    let name = names
        .find(|name| name != "lo")
        .context("there is no network device")?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: a plain C struct of numbers and a union of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_encoded_bytes()) {
        *to = *from as libc::c_char;
    }
    let set = |what, request: &libc::ifreq| {
        // SAFETY: the descriptor is a socket, and `request` is what these requests read.
        let rc = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_ref(request)) };
        ensure!(rc == 0, "the network device: {}", io::Error::last_os_error());
        Ok(())
    };
    for (what, address) in [(libc::SIOCSIFADDR, GUEST), (libc::SIOCSIFNETMASK, NETMASK)] {
        request.ifr_ifru.ifru_addr = socket_address(address);
        set(what, &request)?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    set(libc::SIOCSIFFLAGS, &request)?;
    Ok(MACHINE.to_string())
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // A port of two bytes comes first.
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}
