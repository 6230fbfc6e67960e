//! Memory that a device uses is out of reach; so is an I/O that was completed.

use spdk_rs::bdev::{Channel, Descriptor};
use spdk_rs::bdev_module::{Io, Status};
use spdk_rs::buf::{DmaBuf, DmaBufList};

pub async fn a_buffer_is_gone_while_it_is_read_into(channel: &Channel, buf: DmaBuf) -> usize {
    let read = channel.read(buf, 0);
    buf.len(); //~ E0382 borrow of moved value: `buf`
    let (_, buf) = read.await.into_parts();
    buf.len()
}

pub async fn a_buffer_is_gone_while_it_is_written(channel: &Channel, mut buf: DmaBuf) {
    let write = channel.write(buf, 0);
    buf.fill(0); //~ E0382 borrow of moved value: `buf`
    let _ = write.await;
}

pub async fn a_buffer_is_gone_after_a_failure_that_freed_it(channel: &Channel, buf: DmaBuf) {
    let failed = channel.write(buf, 0).await.into_result().is_err();
    drop((failed, buf)); //~ E0382 use of moved value: `buf`
}

pub async fn one_buffer_is_not_in_two_io(channel: &Channel, buf: DmaBuf) {
    let first = channel.write(buf, 0);
    let second = channel.write(buf, 4096); //~ E0382 use of moved value: `buf`
    let _ = first.await;
}

pub async fn no_buffer_of_a_list_stays_behind(channel: &Channel, list: DmaBufList) {
    let first = &list.bufs()[0];
    let write = channel.writev(list, 0);
    drop(first.len()); //~ E0505 cannot move out of `list`
    let _ = write.await;
}

pub async fn no_slice_outlives_the_move(channel: &Channel, buf: DmaBuf) {
    let data = buf.as_slice();
    let write = channel.write(buf, 0);
    drop(data.len()); //~ E0505 cannot move out of `buf`
    let _ = write.await;
}

pub fn a_buffer_is_changed_by_one_at_a_time(mut buf: DmaBuf) {
    let data = buf.as_slice();
    buf.fill(0);
    drop(data.len()); //~ E0502 cannot borrow `buf` as mutable
}

pub async fn a_closed_descriptor_opens_no_channel(descriptor: Descriptor) {
    let _ = descriptor.close().await;
    let _ = descriptor.channel(); //~ E0382 borrow of moved value: `descriptor`
}

pub fn an_io_is_completed_once(io: Io) {
    io.complete(Status::Success);
    io.complete(Status::Success); //~ E0382 use of moved value: `io`
}

pub fn no_memory_of_an_io_outlives_it(mut io: Io) {
    let mut segments = io.segments_mut();
    let first = segments.next();
    io.complete(Status::Success);
    drop(first.is_some()); //~ E0505 cannot move out of `io`
}
