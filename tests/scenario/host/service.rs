//! The host's state and its commands.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use spdk_rs::bdev::Bdev;
use spdk_rs::nvme::{self, AttachOptions};
use spdk_rs::reactor::sleep;
use spdk_rs::rpc::{RpcError, When, register};
use spdk_rs::runtime::{LogLevel, shutdown_requested};
use spdk_rs::{Error, JoinHandle, Runtime};

use super::HostOptions;
use super::traffic::{self, HostStatus, Traffic};
use super::volume::Volume;
use crate::layout::{Image, Ledger, Part, UNIT, UNITS};

/// The controller's name here; its namespaces are `host0n1` and `host0n2`.
const CONTROLLER: &str = "host0";
/// Tasks in the background, on the volume and on the backup.
const TASKS: [u64; 2] = [4, 2];
/// How long the host waits for a namespace to come or go.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the commands work on.
struct Host {
    options: HostOptions,
    ledger: Rc<RefCell<Ledger>>,
    open: [RefCell<Option<Open>>; 2],
}

/// An open namespace and the work on it.
struct Open {
    volume: Rc<Volume>,
    traffic: Rc<Traffic>,
    tasks: Vec<JoinHandle<()>>,
}

thread_local! {
    /// Set once, before any command can come; the commands run on the same thread.
    static HOST: RefCell<Option<Rc<Host>>> = const { RefCell::new(None) };
}

/// Runs the host.
pub fn serve(options: HostOptions) -> Result<()> {
    commands()?;
    let runtime = Runtime::builder()
        .name("spdk-rs-host")
        .core_mask(format!("[{}]", options.core))
        .no_huge(true)
        .memory_mb(512)
        // SPDK's driver tells of a lost connection as a notice, and the driver of the test looks for it.
        .log_level(LogLevel::Notice)
        .rpc_socket(options.socket.to_string_lossy())
        .build()?;
    let ledger = Rc::new(RefCell::new(Ledger::open(&options.ledger)?));
    let host = Rc::new(Host {
        options,
        ledger,
        open: [RefCell::new(None), RefCell::new(None)],
    });
    HOST.set(Some(Rc::clone(&host)));
    runtime.run(async move {
        shutdown_requested().await;
        host.stop().await?;
        for image in [Image::Backup, Image::Volume] {
            host.close(image).await?;
        }
        HOST.take();
        nvme::detach(CONTROLLER).await
    })??;
    Ok(())
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct WriteParams {
    part: String,
}

#[derive(Deserialize)]
struct VerifyParams {
    namespace: u32,
}

fn commands() -> spdk_rs::Result<()> {
    register("host_connect", When::Running, |_: Nothing| on(Host::connect))?;
    register("host_write", When::Running, |params: WriteParams| {
        on(async move |host| host.write(&params.part).await)
    })?;
    register("host_verify", When::Running, |params: VerifyParams| {
        on(async move |host| host.verify(params.namespace).await)
    })?;
    register("host_open_backup", When::Running, |_: Nothing| {
        on(Host::open_backup)
    })?;
    register("host_start", When::Running, |_: Nothing| on(Host::start))?;
    register("host_snapshot_begins", When::Running, |_: Nothing| {
        on(Host::snapshot_begins)
    })?;
    register("host_snapshot_done", When::Running, |_: Nothing| {
        on(Host::snapshot_done)
    })?;
    register("host_status", When::Running, |_: Nothing| on(Host::status))?;
    register("host_expect_removal", When::Running, |_: Nothing| {
        on(Host::expect_removal)
    })?;
    register("host_wait_removed", When::Running, |_: Nothing| {
        on(Host::wait_removed)
    })?;
    register("host_stop", When::Running, |_: Nothing| {
        on(async |host: Rc<Host>| host.stop().await.map(|()| Value::Bool(true)))
    })
}

/// Runs a command on the host; its error becomes the answer's message.
async fn on(command: impl AsyncFnOnce(Rc<Host>) -> spdk_rs::Result<Value>) -> Result<Value, RpcError> {
    let Some(host) = HOST.with_borrow(Clone::clone) else {
        return Err(RpcError::new(RpcError::INVALID_STATE, "the host is not up"));
    };
    command(host)
        .await
        .map_err(|error| RpcError::new(RpcError::INTERNAL_ERROR, error.to_string()))
}

impl Host {
    fn volume(&self, image: Image) -> spdk_rs::Result<Rc<Volume>> {
        match &*self.open[image as usize].borrow() {
            Some(open) => Ok(Rc::clone(&open.volume)),
            None => Err(refused(format!("{image:?} is not open"))),
        }
    }

    fn open(&self, name: &str, image: Image) -> spdk_rs::Result<()> {
        let volume = Rc::new(Volume::open(name, image)?);
        let traffic = Traffic::new(Rc::clone(&volume), Rc::clone(&self.ledger));
        *self.open[image as usize].borrow_mut() = Some(Open {
            volume,
            traffic,
            tasks: Vec::new(),
        });
        Ok(())
    }

    async fn connect(self: Rc<Self>) -> spdk_rs::Result<Value> {
        let address = (Ipv4Addr::LOCALHOST, self.options.port).into();
        let names = nvme::attach(CONTROLLER, &AttachOptions::new(address, &self.options.nqn)).await?;
        self.open(&namespace(1), Image::Volume)?;
        Ok(json!(names))
    }

    async fn write(&self, part: &str) -> spdk_rs::Result<Value> {
        let volume = self.volume(Image::Volume)?;
        let has: fn(u64) -> bool = match Part::named(part) {
            Some(Part::Older) => |unit| Part::Older.has(unit),
            Some(Part::Main) => |unit| Part::Main.has(unit),
            None => return Err(refused(format!("there is no part {part}"))),
        };
        let units = traffic::write_all(&volume, &self.ledger, has).await?;
        Ok(json!({"bytes": units * UNIT}))
    }

    async fn verify(&self, namespace: u32) -> spdk_rs::Result<Value> {
        let image = if namespace == 1 {
            Image::Volume
        } else {
            Image::Backup
        };
        let volume = self.volume(image)?;
        let wrong = traffic::verify_all(&volume, &self.ledger).await?;
        let ledger = self.ledger.borrow();
        let written = (0..UNITS).filter(|unit| ledger.get(image, *unit).to > 0).count() as u64;
        Ok(json!({"wrong": wrong, "data_bytes": written * UNIT, "zero_bytes": (UNITS - written) * UNIT}))
    }

    async fn open_backup(self: Rc<Self>) -> spdk_rs::Result<Value> {
        let name = namespace(2);
        wait(|| Bdev::find(&name).is_ok()).await;
        self.open(&name, Image::Backup)?;
        // If the host is at work already, it is at work here too from now on.
        let busy = self.open[0]
            .borrow()
            .as_ref()
            .is_some_and(|open| !open.tasks.is_empty());
        if busy {
            self.start_on(Image::Backup);
        }
        Ok(json!(name))
    }

    async fn start(self: Rc<Self>) -> spdk_rs::Result<Value> {
        traffic::touch_hot(&*self.volume(Image::Volume)?, &self.ledger).await?;
        let started = self.start_on(Image::Volume) + self.start_on(Image::Backup);
        Ok(json!(started))
    }

    fn start_on(&self, image: Image) -> u64 {
        let mut open = self.open[image as usize].borrow_mut();
        let Some(open) = open.as_mut() else { return 0 };
        let count = TASKS[image as usize];
        open.tasks
            .extend((1..=count).map(|number| open.traffic.start(number + 100 * image as u64)));
        count
    }

    async fn snapshot_begins(self: Rc<Self>) -> spdk_rs::Result<Value> {
        self.ledger
            .borrow_mut()
            .snapshot_begins()
            .map_err(|e| refused(e.to_string()))?;
        Ok(Value::Bool(true))
    }

    async fn snapshot_done(self: Rc<Self>) -> spdk_rs::Result<Value> {
        self.ledger
            .borrow_mut()
            .snapshot_done()
            .map_err(|e| refused(e.to_string()))?;
        // What is written from here on is not in the snapshot.
        traffic::touch_hot(&*self.volume(Image::Volume)?, &self.ledger).await?;
        Ok(Value::Bool(true))
    }

    async fn status(self: Rc<Self>) -> spdk_rs::Result<Value> {
        let counters = |image: Image| {
            let open = self.open[image as usize].borrow();
            open.as_ref()
                .map(|open| open.traffic.counters())
                .unwrap_or_default()
        };
        let status = HostStatus {
            volume: counters(Image::Volume),
            backup: counters(Image::Backup),
        };
        serde_json::to_value(status).map_err(|e| refused(e.to_string()))
    }

    async fn expect_removal(self: Rc<Self>) -> spdk_rs::Result<Value> {
        if let Some(open) = &*self.open[Image::Backup as usize].borrow() {
            open.traffic.expect_end();
        }
        Ok(Value::Bool(true))
    }

    /// Waits until namespace 2 has gone, and lets go of it, without which it could not.
    async fn wait_removed(self: Rc<Self>) -> spdk_rs::Result<Value> {
        let name = namespace(2);
        let removed = || {
            let open = self.open[Image::Backup as usize].borrow();
            open.as_ref().is_none_or(|open| open.volume.is_removed())
        };
        wait(removed).await;
        if !removed() {
            return Ok(Value::Bool(false));
        }
        self.close(Image::Backup).await?;
        wait(|| Bdev::find(&name).is_err()).await;
        Ok(json!(Bdev::find(&name).is_err()))
    }

    /// Ends the background work.
    async fn stop(&self) -> spdk_rs::Result<()> {
        for open in &self.open {
            let tasks = match open.borrow_mut().as_mut() {
                Some(open) => {
                    open.traffic.stop();
                    std::mem::take(&mut open.tasks)
                }
                None => Vec::new(),
            };
            for task in tasks {
                task.await.map_err(Error::from)?;
            }
        }
        Ok(())
    }

    /// Closes a namespace, if it is open, when the work on it has ended.
    async fn close(&self, image: Image) -> spdk_rs::Result<()> {
        let Some(open) = self.open[image as usize].borrow_mut().take() else {
            return Ok(());
        };
        open.traffic.stop();
        for task in open.tasks {
            task.await.map_err(Error::from)?;
        }
        drop(open.traffic);
        match Rc::try_unwrap(open.volume) {
            Ok(volume) => volume.close().await,
            Err(_) => Err(refused(format!("{image:?} is still in use"))),
        }
    }
}

fn namespace(nsid: u32) -> String {
    format!("{CONTROLLER}n{nsid}")
}

fn refused(why: String) -> Error {
    Error::new(spdk_rs::ErrorKind::Other, "host command", "", why)
}

/// Waits for something, but not for ever.
async fn wait(ready: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() && Instant::now() < end {
        sleep(Duration::from_millis(5)).await;
    }
}
