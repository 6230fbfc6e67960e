//! The Linux kernel's NVMe/TCP host against the target: it has a file system on a volume and reads the volume's backup,
//! while the target refuses to delete the backup, again and again, and then does it once.
//!
//! The target runs on this machine, the host in the guest, which reaches 127.0.0.1 here by QEMU's user network.

mod host;
mod target;

use super::Part;

/// The part.
pub const PART: Part = Part {
    name: "linux",
    about: "the kernel's NVMe/TCP host: ext4 and fio, while a backup's delete is refused 1,000 times, then granted",
    host: target::host,
    guest: host::in_guest,
    programs: &[],
};

const NQN: &str = "nqn.2016-06.io.spdk:volume";
const ALLOWED: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111";
const STRANGER: &str = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222";
