//! NVMe over TCP: a target in one process, a host in another.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::bdev::{MIB, poll_once, register};
use common::disk::{Fate, TestDisk};
use common::{builder, child_command, isolated, run};
use spdk_rs::bdev::delay::Latency;
use spdk_rs::bdev::{self, Bdev, Channel, Mode, NvmeCommand};
use spdk_rs::bdev_module::{Kind, Status};
use spdk_rs::buf::{BufResult, DmaBuf};
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::nvme::{self, AttachOptions};
use spdk_rs::nvmf::{Namespace, Subsystem, SubsystemOptions, Target, TcpOptions};
use spdk_rs::reactor::timeout;
use spdk_rs::{ErrorKind, runtime};

const NQN: &str = "nqn.2016-06.io.spdk:test";
const PORT: &str = "SPDK_RS_TEST_PORT";
/// How long the target's device takes for a write.
const SLOW: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(30);

/// A port that is free now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

async fn serve(address: SocketAddr) -> Result<Subsystem> {
    let target = Target::find()?;
    target.create_tcp_transport(TcpOptions::default()).await?;
    let subsystem = target.create_subsystem(NQN, SubsystemOptions::default())?;
    bdev::malloc::create("ram0", 8192, 512)?;
    assert_eq!(subsystem.add_namespace("ram0", Some(3)).await?, 3);
    subsystem.listen(address).await?;
    subsystem.start().await?;
    Ok(subsystem)
}

#[test]
fn host_and_target_in_two_processes() {
    if let Ok(port) = std::env::var(PORT) {
        return target_process(port.parse().expect("a port"));
    }
    isolated("host_and_target_in_two_processes", || {
        let address = free_address();
        let port = address.port().to_string();
        let mut target = child_command("host_and_target_in_two_processes", &[(PORT, &port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the target's process");
        let stdout = target.stdout.take().expect("a pipe");
        // Open to the end: the test harness of that process prints, too.
        let mut lines = BufReader::new(stdout).lines();
        let ready = lines
            .by_ref()
            .map_while(|line| line.ok())
            .any(|line| line.contains("READY"));
        assert!(ready, "the target's process ended early");
        let second = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
            "0x2"
        } else {
            "0x1"
        };
        let runtime = builder().core_mask(second).build().expect("options");
        runtime
            .run(async move { host(address).await })
            .expect("SPDK starts and stops")
            .expect("the host's part");
        drop(target.stdin.take());
        assert!(target.wait().expect("its status").success(), "the target's part");
    });
}

async fn host(address: SocketAddr) -> Result<()> {
    let options = AttachOptions::new(address, "nqn.2016-06.io.spdk:other");
    let refused = timeout(LIMIT, nvme::attach("bad", &options)).await?.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");

    let options = AttachOptions::new(address, NQN);
    let names = timeout(LIMIT, nvme::attach("net", &options)).await??;
    assert_eq!(names, ["netn3", "netn5", "netn7"]);
    let taken = timeout(LIMIT, nvme::attach("net", &options)).await?.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");

    let descriptor = Bdev::find("netn3")?.open(Mode::ReadWrite)?;
    assert_eq!(descriptor.size(), 8192 * 512);
    let channel = descriptor.channel()?;
    let data: Vec<u8> = (0..65536_u32).map(|n| (n % 253) as u8).collect();
    let ((), buf) = timeout(LIMIT, channel.write(DmaBuf::copy_of(&data)?, 512))
        .await?
        .ok()?;
    drop(buf);
    let ((), buf) = timeout(LIMIT, channel.read(DmaBuf::new(65536)?, 512))
        .await?
        .ok()?;
    ensure!(buf.as_slice() == data, "read back");
    commands(&channel, &data).await?;
    abort().await?;
    abort_what_is_queued(&channel).await?;
    flush().await?;

    // Detaching takes the device from under the open descriptor, which lets go by itself.
    timeout(LIMIT, nvme::detach("net")).await??;
    ensure!(descriptor.is_removed());
    let late = channel.read(buf, 0).await;
    assert_eq!(late.err().context("an error")?.kind(), ErrorKind::Removed);
    let gone = nvme::detach("net").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    Ok(())
}

async fn admin(
    channel: &Channel,
    command: NvmeCommand,
    buf: Option<DmaBuf>,
) -> Result<BufResult<u32, Option<DmaBuf>>> {
    // SAFETY: these tests send identify, get log page, features that concern nobody else, and what no
    // controller knows; with as much memory as these take.
    Ok(timeout(LIMIT, unsafe { channel.nvme_admin_passthru(command, buf) }).await?)
}

async fn io(
    channel: &Channel,
    command: NvmeCommand,
    buf: Option<DmaBuf>,
) -> Result<BufResult<u32, Option<DmaBuf>>> {
    // SAFETY: these tests send reads and writes of as many blocks as the buffer has, flushes, and
    // what no controller knows.
    Ok(timeout(LIMIT, unsafe { channel.nvme_io_passthru(command, buf) }).await?)
}

/// The target's device takes its time with a write, until the host has it aborted.
async fn abort() -> Result<()> {
    let descriptor = Bdev::find("netn5")?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let start = Instant::now();
    let mut write = channel.write(DmaBuf::copy_of(&[7; 512])?, 0);
    assert!(timeout(Duration::from_millis(200), &mut write).await.is_err());
    timeout(LIMIT, write.abort()).await??;
    let (result, buf) = timeout(LIMIT, write).await?.into_parts();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Canceled, "{error}");
    assert_eq!(
        error.nvme_status().map(|s| (s.code_type, s.code)),
        Some((0, 0x07))
    );
    assert_eq!(buf.as_slice(), [7; 512]);
    assert!(start.elapsed() < SLOW);
    descriptor.close().await?;
    Ok(())
}

/// Of dword 12 of a command.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;

/// Flushes that the target's device does, two asked for and two with what is written, and one of each that
/// it fails: the target counts them.
async fn flush() -> Result<()> {
    let descriptor = Bdev::find("netn7")?.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;
    let written = channel.write(DmaBuf::copy_of(&[7; 4096])?, 0);
    timeout(LIMIT, written).await?.into_result()?;
    timeout(LIMIT, channel.flush()).await??;
    io(&channel, NvmeCommand::default(), None).await?.into_result()?; // opcode 0 is a flush
    // "Force unit access": a write and a write of zeroes, and a write without.
    for (opcode, cdw12) in [(1, FORCE_UNIT_ACCESS), (8, FORCE_UNIT_ACCESS), (1, 0)] {
        let command = NvmeCommand {
            opcode,
            cdw12,
            ..NvmeCommand::default()
        };
        let data = (opcode == 1).then(|| DmaBuf::copy_of(&[8; 512])).transpose()?;
        io(&channel, command, data).await?.into_result()?;
    }
    let forced = NvmeCommand {
        opcode: 1,
        cdw12: FORCE_UNIT_ACCESS,
        ..NvmeCommand::default()
    };
    let forced = io(&channel, forced, Some(DmaBuf::copy_of(&[9; 512])?)).await?;
    let flush = timeout(LIMIT, channel.flush()).await?;
    for error in [forced.into_result().unwrap_err(), flush.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.nvme_status().is_some(), "{error}");
    }
    drop(channel);
    Ok(descriptor.close().await?)
}

/// SPDK queues what the controller's queue has no room for, and can abort it there. The others go on,
/// and so does what comes later: without the patch nothing that is queued is tried again after that.
async fn abort_what_is_queued(channel: &Channel) -> Result<()> {
    const ALL: usize = 1500;
    const ABORTED: usize = 600;
    for _ in 0..2 {
        let mut writes = Vec::new();
        for _ in 0..ALL {
            let mut write = channel.write(DmaBuf::zeroed(512)?, 0);
            assert!(poll_once(Pin::new(&mut write)).is_pending());
            writes.push(write);
        }
        // All at once, before the target answers.
        let last = writes.iter_mut().rev().take(ABORTED);
        let mut aborts: Vec<_> = last.map(|write| Box::pin(write.abort())).collect();
        for abort in &mut aborts {
            assert!(poll_once(abort.as_mut()).is_pending());
        }
        for abort in aborts {
            timeout(LIMIT, abort).await??;
        }
        for (n, write) in writes.into_iter().enumerate() {
            let kind = timeout(LIMIT, write).await?.err().map(|error| error.kind());
            let aborted = n >= ALL - ABORTED;
            assert_eq!(kind, aborted.then_some(ErrorKind::Canceled), "write {n}");
        }
    }
    Ok(())
}

/// A field of text, padded with spaces or NULs.
fn text(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    text.trim_end_matches([' ', '\0']).to_owned()
}

/// NVMe commands as they are. `data` is what is stored from the second block on.
async fn commands(channel: &Channel, data: &[u8]) -> Result<()> {
    const BLOCK: usize = 512;
    let command = |opcode: u8| NvmeCommand {
        opcode,
        ..NvmeCommand::default()
    };
    // Identify: the controller, and the namespace.
    let controller = NvmeCommand {
        cdw10: 1,
        ..command(0x06)
    };
    let (_, buf) = admin(channel, controller, Some(DmaBuf::new(4096)?)).await?.ok()?;
    let buf = buf.context("the buffer")?;
    let options = SubsystemOptions::default();
    assert_eq!(text(&buf.as_slice()[4..24]), options.serial);
    assert_eq!(text(&buf.as_slice()[24..64]), options.model);
    assert_eq!(text(&buf.as_slice()[768..1024]), NQN);
    let namespace = NvmeCommand {
        nsid: 3,
        ..command(0x06)
    };
    let (_, buf) = admin(channel, namespace, Some(buf)).await?.ok()?;
    let buf = buf.context("the buffer")?;
    assert_eq!(buf.as_slice()[..8], 8192_u64.to_le_bytes(), "its size in blocks");

    // Get features, of the number of queues: the answer is dword 0 of the completion.
    let queues = NvmeCommand {
        cdw10: 0x07,
        ..command(0x0a)
    };
    let (queues, none) = admin(channel, queues, None).await?.ok()?;
    assert!(queues != 0 && none.is_none(), "{queues:#x}");

    // Read, what write has stored, and the other way round. SPDK knows the namespace.
    let blocks = |opcode: u8, first: u32, count: u32| NvmeCommand {
        cdw10: first,
        cdw12: count - 1,
        ..command(opcode)
    };
    let read = blocks(2, 1, 16);
    let (_, buf) = io(channel, read, Some(DmaBuf::new(16 * BLOCK)?)).await?.ok()?;
    assert_eq!(buf.context("the buffer")?.as_slice(), &data[..16 * BLOCK]);
    let write = blocks(1, 4000, 2);
    let mut buf = DmaBuf::new(8 * BLOCK)?;
    buf.extend_from_slice(&[0x5a; 2 * BLOCK])?;
    let (_, buf) = io(channel, write, Some(buf)).await?.ok()?;
    assert_eq!(
        buf.context("the buffer")?.len(),
        2 * BLOCK,
        "sent as far as it was initialised"
    );
    let ((), buf) = timeout(LIMIT, channel.read(DmaBuf::new(4 * BLOCK)?, 4000 * BLOCK as u64))
        .await?
        .ok()?;
    assert_eq!(buf.as_slice()[..2 * BLOCK], [0x5a; 2 * BLOCK]);
    assert_eq!(buf.as_slice()[2 * BLOCK..], [0; 2 * BLOCK]);

    // What goes wrong comes back with its status, and with the memory.
    let (result, buf) = admin(channel, command(0xbe), Some(buf)).await?.into_parts();
    let error = result.unwrap_err();
    let status = error.nvme_status().context("a status")?;
    assert_eq!((status.code_type, status.code), (0, 1), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().starts_with("NVMe admin command netn3: "),
        "{error}"
    );
    let (result, buf) = io(channel, blocks(2, 8190, 4), buf).await?.into_parts();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    assert_eq!(
        error.nvme_status().map(|s| (s.code_type, s.code)),
        Some((0, 0x80))
    );
    let error = io(channel, command(0xbe), None).await?.into_result().unwrap_err();
    assert!(error.nvme_status().is_some(), "{error}");

    // The namespace has no metadata, and a RAM disk knows no commands. Nothing is sent.
    let metadata = DmaBuf::new(64)?;
    let buf = buf.context("the buffer")?;
    // SAFETY: as for `io`.
    let sent = unsafe { channel.nvme_io_passthru_with_metadata(blocks(2, 0, 1), buf, metadata) };
    let (result, (buf, metadata)) = sent.await.into_parts();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!((buf.capacity(), metadata.capacity()), (4 * BLOCK, 64));
    bdev::malloc::create("ram", 64, 512)?;
    let ram = Bdev::find("ram")?.open(Mode::ReadWrite)?;
    let error = admin(&ram.channel()?, controller, Some(buf))
        .await?
        .into_result()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(error.nvme_status(), None);
    ram.close().await?;
    let reader = Bdev::find("netn3")?.open(Mode::ReadOnly)?;
    let error = admin(&reader.channel()?, controller, None)
        .await?
        .into_result()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    reader.close().await?;
    Ok(())
}

fn target_process(port: u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    run(async move {
        let subsystem = serve(address).await?;
        bdev::malloc::create("ram1", 8192, 512)?;
        bdev::delay::create("slow", "ram1", Latency::NONE)?;
        bdev::wait_for_examine().await?;
        let slow = Latency {
            write: SLOW,
            write_p99: SLOW,
            ..Latency::NONE
        };
        bdev::delay::set_latency("slow", slow)?;
        assert_eq!(subsystem.add_namespace("slow", Some(5)).await?, 5);
        let disk = TestDisk::new(64 * MIB);
        let registered = register(&disk, "disk").await?;
        let store = LvolStore::create("disk", "lvs", StoreOptions::default()).await?;
        store
            .create_lvol("vol", 8 * MIB as u64, Provisioning::Thin)
            .await?;
        assert_eq!(subsystem.add_namespace("lvs/vol", Some(7)).await?, 7);
        disk.forget_seen();
        disk.fail_times(Kind::Flush, 5, 2, Fate::End(Status::Failed));
        println!("READY");
        let host = std::thread::spawn(|| std::io::stdin().read(&mut [0; 1]));
        while !host.is_finished() {
            spdk_rs::reactor::sleep(Duration::from_millis(10)).await;
        }
        ensure!(disk.seen(Kind::Flush) == 6, "{} flushes", disk.seen(Kind::Flush));
        subsystem.destroy().await?;
        store.destroy().await?;
        registered.unregister().await?;
        bdev::delay::delete("slow").await?;
        for ram in ["ram0", "ram1"] {
            bdev::malloc::delete(ram).await?;
        }
        anyhow::Ok(())
    })
    .expect("the target's part");
}

#[test]
fn attach_to_oneself_is_refused() {
    isolated("attach_to_oneself_is_refused", || {
        let address = free_address();
        run(async move {
            serve(address).await?;
            let start = Instant::now();
            let error = nvme::attach("self", &AttachOptions::new(address, NQN))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("this very process"), "{error}");
            assert!(start.elapsed() < Duration::from_secs(5));
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn attach_to_nobody_is_an_error() {
    isolated("attach_to_nobody_is_an_error", || {
        let address = free_address();
        run(async move {
            let error = nvme::attach("none", &AttachOptions::new(address, NQN))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            let error = nvme::detach("none").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        });
    });
}

#[test]
fn subsystem_changes_and_refusals() {
    isolated("subsystem_changes_and_refusals", || {
        let address = free_address();
        run(async move {
            let target = Target::find()?;
            let absent = target.subsystem(NQN).unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            let bad = target
                .create_subsystem("no nqn", SubsystemOptions::default())
                .unwrap_err();
            assert_eq!(bad.kind(), ErrorKind::InvalidArgument, "{bad}");
            let subsystem = serve(address).await?;
            let again = target
                .create_subsystem(NQN, SubsystemOptions::default())
                .unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            let again = target
                .create_tcp_transport(TcpOptions::default())
                .await
                .unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            let again = subsystem.start().await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Busy, "{again}");

            bdev::malloc::create("ram1", 2048, 512)?;
            let used = subsystem.add_namespace("ram1", Some(3)).await.unwrap_err();
            assert_eq!(used.kind(), ErrorKind::AlreadyExists, "{used}");
            let claimed = subsystem.add_namespace("ram0", None).await.unwrap_err();
            assert_eq!(claimed.kind(), ErrorKind::PermissionDenied, "{claimed}");
            let absent = subsystem.add_namespace("ram9", None).await.unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            assert_eq!(subsystem.add_namespace("ram1", None).await?, 1);
            let namespace = |id, bdev: &str| Namespace {
                id,
                bdev: bdev.to_owned(),
            };
            assert_eq!(
                subsystem.namespaces()?,
                [namespace(1, "ram1"), namespace(3, "ram0")]
            );
            let claimed = Bdev::find("ram1")?.open(Mode::ReadWrite).unwrap_err();
            assert_eq!(claimed.kind(), ErrorKind::PermissionDenied);

            subsystem.remove_namespace(1).await?;
            let absent = subsystem.remove_namespace(1).await.unwrap_err();
            assert_eq!(absent.kind(), ErrorKind::NotFound);
            // A change whose caller goes away is made all the same, and leaves nothing paused.
            let mut change = Box::pin(subsystem.add_namespace("ram1", Some(7)));
            std::future::poll_fn(|cx| {
                let _ = change.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(change);
            let deadline = Instant::now() + LIMIT;
            while subsystem.namespaces()?.len() < 2 {
                ensure!(Instant::now() < deadline, "the change was not made");
                spdk_rs::reactor::sleep(Duration::from_millis(1)).await;
            }
            // The device of a namespace can be deleted: the subsystem lets go of it.
            timeout(LIMIT, bdev::malloc::delete("ram1")).await??;
            assert_eq!(subsystem.namespaces()?, [namespace(3, "ram0")]);
            subsystem.pause().await?;
            subsystem.resume().await?;
            subsystem.clone().destroy().await?;
            let gone = subsystem.start().await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::NotFound);
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}

#[test]
fn a_target_that_is_left_running_stops_with_spdk() {
    isolated("a_target_that_is_left_running_stops_with_spdk", || {
        let address = free_address();
        run(async move { serve(address).await.map(drop) }).expect("served");
        assert!(runtime_is_over());
    });
}

fn runtime_is_over() -> bool {
    let again = builder()
        .build()
        .expect("options")
        .run(runtime::shutdown_requested());
    again.is_err_and(|error| error.kind() == ErrorKind::AlreadyStarted)
}
