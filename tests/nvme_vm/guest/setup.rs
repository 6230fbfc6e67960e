//! What every program expects of a system: file systems, modules, hugepages, a loopback device.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

use crate::vm::Link;

/// Mounts what has to be there, and opens the link.
pub fn link() -> Result<Link> {
    mount("devtmpfs", "/dev")?;
    let console = File::options().read(true).write(true).open("/dev/console")?;
    for fd in 0..3 {
        // SAFETY: dup2 takes numbers; both descriptors are this process's.
        unsafe { libc::dup2(console.as_raw_fd(), fd) };
    }
    let terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .context("/dev/ttyS1")?;
    raw(&terminal).context("/dev/ttyS1")?;
    Link::new(terminal)
}

/// Bytes are passed on as they are.
fn raw(terminal: &File) -> Result<()> {
    // SAFETY: a plain C struct of numbers.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `settings` is valid for reads and writes of its own size.
    let rc = unsafe {
        let fd = terminal.as_raw_fd();
        match libc::tcgetattr(fd, &raw mut settings) {
            0 => {
                libc::cfmakeraw(&raw mut settings);
                libc::tcsetattr(fd, libc::TCSANOW, &raw const settings)
            }
            rc => rc,
        }
    };
    ensure!(rc == 0, io::Error::last_os_error());
    Ok(())
}

/// Everything else.
pub fn all(hugepages: u64) -> Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/var/run"),
        ("tmpfs", "/dev/shm"),
        ("hugetlbfs", "/dev/hugepages"),
    ] {
        fs::create_dir_all(place)?;
        mount(kind, place)?;
    }
    let pages = "/proc/sys/vm/nr_hugepages";
    fs::write(pages, hugepages.to_string())?;
    let have = fs::read_to_string(pages)?;
    ensure!(
        have.trim() == hugepages.to_string(),
        "{} of {hugepages} hugepages",
        have.trim()
    );
    for name in fs::read_to_string("/modules/order")?.lines() {
        load(name)?;
    }
    loopback()
}

fn mount(kind: &str, place: &str) -> Result<()> {
    let (kind_c, place_c) = (CString::new(kind)?, CString::new(place)?);
    // SAFETY: the texts end with zero; these file systems take no data.
    let rc = unsafe {
        libc::mount(
            kind_c.as_ptr(),
            place_c.as_ptr(),
            kind_c.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    // The kernel may have mounted /dev by itself.
    let error = io::Error::last_os_error();
    ensure!(
        rc == 0 || error.raw_os_error() == Some(libc::EBUSY),
        "mount {kind} on {place}: {error}"
    );
    Ok(())
}

fn load(name: &str) -> Result<()> {
    let file = File::open(format!("/modules/{name}.ko")).with_context(|| name.to_owned())?;
    // SAFETY: the descriptor is open, and the text of parameters is empty.
    let rc = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    let error = io::Error::last_os_error();
    ensure!(
        rc == 0 || error.raw_os_error() == Some(libc::EEXIST),
        "module {name}: {error}"
    );
    Ok(())
}

/// Switches 127.0.0.1 on.
fn loopback() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: a plain C struct of numbers and a union of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is a socket, and `request` is what this request reads.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(rc == 0, "no loopback device: {}", io::Error::last_os_error());
    Ok(())
}
