//! The delay bdev under a reset.

mod common;

use common::{isolated, run};
use spdk_rs::bdev::{self, Bdev, Mode, delay};

/// Without the patch the completion of the reset follows a NULL channel, and the process dies.
#[test]
fn a_delay_bdev_can_be_reset() {
    isolated("a_delay_bdev_can_be_reset", || {
        run(async {
            bdev::malloc::create("ram0", 64, 4096).expect("the base");
            delay::create("slow0", "ram0", delay::Latency::default()).expect("the delay bdev");
            let descriptor = Bdev::find("slow0")
                .expect("it is there")
                .open(Mode::ReadWrite)
                .expect("it opens");
            let channel = descriptor.channel().expect("a channel");
            channel.reset().await.expect("the reset reaches the base");
            drop(channel);
            drop(descriptor);
            delay::delete("slow0").await.expect("it goes");
            bdev::malloc::delete("ram0").await.expect("the base goes");
        });
    });
}
