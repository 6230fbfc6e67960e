//! SPDK's null device, written in Rust: what `bdev_module` itself takes, compared with C's.

use spdk_rs::Result;
use spdk_rs::bdev_module::{self, BlockDevice, Io, Properties, Registered, Status};

struct Null {
    blocks: u64,
}

impl BlockDevice for Null {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(512, self.blocks)
    }

    fn channel(&self) -> Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), io: Io) {
        // Like C's, it leaves the buffer of a read as it is.
        io.complete(Status::Success);
    }
}

/// Makes a device of so many blocks of 512 bytes.
pub fn register(name: &str, blocks: u64) -> Result<Registered> {
    bdev_module::register(name, Null { blocks })
}
