//! What must be looked at, or awaited, is not dropped by mistake.

#![deny(unused_must_use)]

use spdk_rs::bdev::{Channel, Descriptor};
use spdk_rs::bdev_module::BlockDevice;
use spdk_rs::buf::{DmaBuf, DmaPool};
use spdk_rs::op::Op;
use spdk_rs::reactor::{Poller, ThreadHandle};

pub async fn the_result_of_an_io(channel: &Channel, buf: DmaBuf, other: DmaBuf) {
    channel.write(buf, 0).await; //~ unused_must_use the result of the I/O, and the buffer
    channel.write(other, 0); //~ unused_must_use nothing is written before it is awaited
}

pub async fn a_read(channel: &Channel, buf: DmaBuf) {
    channel.read(buf, 0); //~ unused_must_use nothing is read before it is awaited
    channel.flush().await; //~ unused_must_use must be used
    channel.flush(); //~ unused_must_use must be used
}

pub async fn a_close(descriptor: Descriptor) {
    descriptor.close().await; //~ unused_must_use must be used
}

pub fn an_operation(start: fn() -> Op<i32, ()>) {
    start(); //~ unused_must_use dropping the future orphans the operation
}

pub fn messages(thread: &ThreadHandle) {
    thread.send(|| {}); //~ unused_must_use must be used
    thread.spawn_on(|| async {}); //~ unused_must_use must be used
}

pub fn what_ends_when_it_is_dropped(device: impl BlockDevice, poller: fn() -> Poller) {
    spdk_rs::bdev_module::register("name", device); //~ unused_must_use must be used
    poller(); //~ unused_must_use the poller stops
}

pub fn memory() {
    DmaBuf::new(1); //~ unused_must_use must be used
    DmaPool::new(1, 1); //~ unused_must_use must be used
}

pub fn options() {
    spdk_rs::Runtime::builder(); //~ unused_must_use must be used
    spdk_rs::reactor::sleep(std::time::Duration::ZERO); //~ unused_must_use must be used
    spdk_rs::reactor::yield_now(); //~ unused_must_use must be used
}
