//! A mirror of two block devices, written in Rust with futures: what is written goes to both, and
//! one may be lost.
//!
//! Needs neither root nor huge pages:
//!
//! ```text
//! cargo run --example mirror
//! ```

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use anyhow::{Result, ensure};
use spdk_rs::bdev::{self, Bdev, Channel, Descriptor, Mode};
use spdk_rs::bdev_module::{self, Async, AsyncBlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::{Error, ErrorKind, Runtime};

struct Mirror {
    legs: [Bdev; 2],
}

/// A thread's own way to the two devices.
struct Legs([(Descriptor, Channel); 2]);

impl AsyncBlockDevice for Mirror {
    type Channel = Legs;

    fn properties(&self) -> Properties {
        let [a, b] = &self.legs;
        Properties::new(a.block_size(), a.num_blocks().min(b.num_blocks()))
            .product("Mirror")
            .alignment(a.alignment().max(b.alignment()))
            .supports(Kind::Flush)
    }

    fn channel(&self) -> spdk_rs::Result<Legs> {
        let open = |leg: &Bdev| -> spdk_rs::Result<_> {
            let descriptor = leg.open(Mode::ReadWrite)?;
            let channel = descriptor.channel()?;
            Ok((descriptor, channel))
        };
        let [a, b] = &self.legs;
        Ok(Legs([open(a)?, open(b)?]))
    }

    async fn serve(&self, Legs([(_, a), (_, b)]): &Legs, io: &mut Io) -> Status {
        let result = match io.kind() {
            Kind::Read => read(io, a, b).await,
            Kind::Write => write(io, a, b).await,
            Kind::Flush => {
                let (a, b) = both(a.flush(), b.flush()).await;
                a.or(b)
            }
            kind => Err(Error::new(ErrorKind::Unsupported, format!("{kind:?}"), "", "")),
        };
        result.into()
    }
}

/// From the one, or else from the other.
async fn read(io: &mut Io, a: &Channel, b: &Channel) -> spdk_rs::Result<()> {
    let buf = DmaBuf::new(io.num_bytes() as usize)?;
    let (result, mut buf) = a.read(buf, io.offset()).await.into_parts();
    if result.is_err() {
        buf = b.read(buf, io.offset()).await.ok()?.1;
    }
    io.fill_from(buf.as_slice());
    Ok(())
}

/// To both at once; one will do. (A mirror for more than a demonstration would keep a list of what
/// the other one has missed.)
async fn write(io: &Io, a: &Channel, b: &Channel) -> spdk_rs::Result<()> {
    let copy = || -> spdk_rs::Result<_> {
        let mut buf = DmaBuf::new(io.num_bytes() as usize)?;
        for segment in io.segments() {
            buf.extend_from_slice(segment)?;
        }
        Ok(buf)
    };
    let (a, b) = both(a.write(copy()?, io.offset()), b.write(copy()?, io.offset())).await;
    a.into_result().or(b.into_result())
}

/// Waits for both, which go on side by side.
async fn both<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> (T, T) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_ended, mut b_ended) = (None, None);
    poll_fn(|cx| {
        if a_ended.is_none() {
            if let Poll::Ready(value) = a.as_mut().poll(cx) {
                a_ended = Some(value);
            }
        }
        if b_ended.is_none() {
            if let Poll::Ready(value) = b.as_mut().poll(cx) {
                b_ended = Some(value);
            }
        }
        match (a_ended.take(), b_ended.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_ended, b_ended) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

fn main() -> Result<()> {
    let runtime = Runtime::builder()
        .name("mirror")
        .no_huge(true)
        .memory_mb(512)
        .build()?;
    runtime.run(use_it())?
}

async fn use_it() -> Result<()> {
    let legs = [
        bdev::malloc::create("leg0", 8192, 512)?,
        bdev::malloc::create("leg1", 8192, 512)?,
    ];
    let registered = bdev_module::register("mirror", Async::new(Mirror { legs: legs.clone() }))?;
    let mirror = Bdev::find("mirror")?;
    let descriptor = mirror.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    println!("{} of {} and {}", mirror.name(), legs[0].name(), legs[1].name());

    let data: Vec<u8> = (0..65536_u32).map(|at| (at / 7) as u8).collect();
    channel.write(DmaBuf::copy_of(&data)?, 4096).await.into_result()?;
    channel.flush().await?;
    for leg in &legs {
        let leg_descriptor = leg.open(Mode::ReadOnly)?;
        let leg_channel = leg_descriptor.channel()?;
        let ((), buf) = leg_channel.read(DmaBuf::new(data.len())?, 4096).await.ok()?;
        ensure!(buf.as_slice() == data, "{} is no copy", leg.name());
        println!("{} has a copy", leg.name());
        drop(leg_channel);
        leg_descriptor.close().await?;
    }

    bdev::malloc::delete("leg0").await?;
    let ((), buf) = channel.read(DmaBuf::new(data.len())?, 4096).await.ok()?;
    ensure!(buf.as_slice() == data, "the other leg has something else");
    let data = vec![7; 4096];
    channel.write(DmaBuf::copy_of(&data)?, 0).await.into_result()?;
    let ((), buf) = channel.read(DmaBuf::new(data.len())?, 0).await.ok()?;
    ensure!(buf.as_slice() == data, "what was read is not what was written");
    println!("leg0 is gone, and the mirror goes on");

    drop(channel);
    descriptor.close().await?;
    registered.unregister().await?;
    bdev::malloc::delete("leg1").await?;
    Ok(())
}
