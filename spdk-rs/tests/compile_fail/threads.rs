//! What SPDK ties to a thread stays there.

use std::cell::Cell;
use std::rc::Rc;

use spdk_rs::bdev::{Channel, Descriptor};
use spdk_rs::bdev_module::Io;
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{Poller, ThreadHandle};

fn send<T: Send>(_: T) {}
fn share<T: Sync>(_: &T) {}

pub fn a_buffer_goes_anywhere_and_a_channel_does_not(buf: DmaBuf, channel: Channel) {
    send(buf);
    share(&channel); //~ E0277 Channel
    send(channel); //~ E0277 cannot be sent between threads safely
}

pub fn a_descriptor(descriptor: Descriptor) {
    share(&descriptor); //~ E0277 cannot be shared between threads safely
    send(descriptor.removed()); //~ E0277 cannot be sent between threads safely
    send(descriptor); //~ E0277 cannot be sent between threads safely
}

pub fn a_poller(poller: Poller) {
    send(poller); //~ E0277 cannot be sent between threads safely
}

pub fn a_buffer_in_flight(channel: &Channel, buf: DmaBuf, other: DmaBuf) {
    send(channel.read(buf, 0)); //~ E0277 cannot be sent between threads safely
    send(channel.write(other, 0)); //~ E0277 cannot be sent between threads safely
}

pub fn an_operation(op: spdk_rs::op::Op<i32, ()>) {
    send(op); //~ E0277 between threads safely
}

pub fn a_devices_io_goes_to_one_thread_at_a_time(io: Io) {
    share(&io); //~ E0277 cannot be shared between threads safely
    send(io);
}

pub fn a_channel_is_not_taken_to_another_thread(thread: &ThreadHandle, channel: Channel) {
    let _ = thread.spawn_on(|| async {});
    let _ = thread.spawn_on(move || async move { channel.flush().await }); //~ E0277 cannot be sent
}

pub fn a_future_in_flight_is_not_taken_along(thread: &ThreadHandle, channel: &Channel, buf: DmaBuf) {
    let read = channel.read(buf, 0);
    let _ = thread.spawn_on(move || read); //~ E0277 cannot be sent
}

pub fn a_message_is_send(thread: &ThreadHandle, count: Rc<Cell<u32>>) {
    let _ = thread.send(|| {});
    let _ = thread.send(move || count.set(1)); //~ E0277 cannot be sent
}

pub fn what_a_task_returns_comes_to_the_caller(thread: &ThreadHandle) {
    let _ = thread.spawn_on(|| async { 1 });
    let _ = thread.spawn_on(|| async { Rc::new(1) }); //~ E0277 cannot be sent
}

pub fn what_stays_there_need_not_be_send(thread: &ThreadHandle) {
    let _ = thread.spawn_on(|| async {
        let count = Rc::new(Cell::new(1));
        spdk_rs::reactor::yield_now().await;
        count.get()
    });
}

pub fn a_message_outlives_its_sender(thread: &ThreadHandle) {
    let text = String::new();
    let _ = thread.send(|| drop(text.len())); //~ E0373 may outlive
}

pub fn a_task_outlives_its_spawner(thread: &ThreadHandle) {
    let text = String::new();
    let _ = thread.spawn_on(|| async { text.len() }); //~ E0373 may outlive
}
