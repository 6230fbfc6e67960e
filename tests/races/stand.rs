//! The place where things meet: a target with a store on a disk that can be made slow.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spdk_rs::lvol::check::check_file;

use crate::common::{Place, Target, TargetOptions};

/// How long an answer may take before it counts as one that never comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Size of the volumes, in clusters of 1 MiB.
pub const CLUSTERS: u64 = 8;

/// A running target with the store `lvs` on `slow0` on the file, and the volume `vol` in it.
pub struct Stand {
    place: Place,
    options: TargetOptions,
    disk: PathBuf,
    target: Option<Target>,
}

/// A method and its parameters.
pub type Call = (&'static str, Value);

/// An answer: the result, or the error object.
pub type Answer = Result<Value, Value>;

impl Stand {
    pub fn new() -> Result<Self> {
        let place = Place::new()?;
        let options = TargetOptions::in_place(&place);
        let disk = place.file("disk");
        let mut target = options.start(None)?;
        target.create_slow_store(&disk, 256 << 20, 4096, 0)?;
        let mut stand = Self {
            place,
            options,
            disk,
            target: Some(target),
        };
        stand.create("vol")?;
        Ok(stand)
    }

    /// The same on an error device, whose writes can be made to fail.
    pub fn breakable() -> Result<Self> {
        let mut stand = Self::new()?;
        stand.call("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
        stand.call("bdev_delay_delete", json!({"name": "slow0"}))?;
        stand.call("bdev_error_create", json!({"base_name": "aio0"}))?;
        stand.call(
            "bdev_lvol_create_lvstore",
            json!({"bdev_name": "EE_aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20}),
        )?;
        stand.create("vol")?;
        Ok(stand)
    }

    /// Lets the next writes of a breakable stand fail.
    pub fn break_writes(&mut self, count: u32) -> Result<()> {
        self.call(
            "bdev_error_inject_error",
            json!({"name": "EE_aio0", "io_type": "write", "error_type": "failure", "num": count}),
        )?;
        Ok(())
    }

    /// From now on none of them fails.
    pub fn mend_writes(&mut self) -> Result<()> {
        self.call(
            "bdev_error_inject_error",
            json!({"name": "EE_aio0", "io_type": "clear", "error_type": "failure"}),
        )?;
        Ok(())
    }

    pub fn target(&mut self) -> &mut Target {
        self.target.as_mut().expect("it runs")
    }

    /// A call that must succeed.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        Ok(self.target().call(method, params)?)
    }

    /// The disk without its delay device, as after a restart.
    pub fn add_disk(&mut self) -> Result<()> {
        let params = json!({"name": "aio0", "filename": self.disk, "block_size": 4096});
        self.call("bdev_aio_create", params)?;
        Ok(())
    }

    /// Makes a volume that has all its clusters.
    pub fn create(&mut self, name: &str) -> Result<Value> {
        self.call(
            "bdev_lvol_create",
            json!({"lvs_name": "lvs", "lvol_name": name, "size": CLUSTERS << 20}),
        )
    }

    pub fn snapshot(&mut self, name: &str) -> Result<Value> {
        self.call(
            "bdev_lvol_snapshot",
            json!({"lvol_name": "lvs/vol", "snapshot_name": name}),
        )
    }

    /// Makes each read and write of the store take so many milliseconds.
    pub fn slow(&mut self, ms: u64) -> Result<()> {
        Ok(self.target().slow_down(&["read", "write"], ms * 1000)?)
    }

    /// Sends the calls in one packet, so that the target carries them out in one go.
    pub fn burst(&self, calls: &[Call]) -> Result<Burst> {
        let mut stream = UnixStream::connect(&self.options.socket)?;
        let requests: String = calls
            .iter()
            .enumerate()
            .map(|(id, (method, params))| {
                json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
            })
            .collect();
        stream.write_all(requests.as_bytes())?;
        Ok(Burst {
            stream,
            received: Vec::new(),
            answers: BTreeMap::new(),
            count: calls.len() as u64,
        })
    }

    /// Starts a job on a disk that is so slow that it is under way for a while, and sees that it is.
    pub fn begin(&mut self, job: Call) -> Result<Burst> {
        self.slow(100)?;
        let mut job = self.burst(&[job])?;
        // The connection is accepted, and the call carried out, before this one's is.
        self.state()?;
        std::thread::sleep(Duration::from_millis(20));
        ensure!(
            job.is_under_way()?,
            "the job has ended already: {:?}",
            job.answers
        );
        Ok(job)
    }

    /// All that is known of the volumes and of the store, and must be the same after a restart.
    pub fn state(&mut self) -> Result<Value> {
        let mut volumes = BTreeMap::new();
        let bdevs = self.call("bdev_get_bdevs", json!({}))?;
        for bdev in bdevs.as_array().into_iter().flatten() {
            let mut lvol = bdev["driver_specific"]["lvol"].clone();
            let Some(map) = lvol.as_object_mut() else {
                continue;
            };
            map.remove("base_bdev");
            if let Some(clones) = map.get_mut("clones").and_then(Value::as_array_mut) {
                clones.sort_by_key(Value::to_string);
            } else {
                // That it was a snapshot is not on disk when its last clone has gone.
                map.remove("snapshot");
            }
            let keys = ["aliases", "num_blocks", "supported_io_types"].map(|key| bdev[key].clone());
            volumes.insert(bdev["name"].to_string(), json!([lvol, keys]));
        }
        let stores = self.call("bdev_lvol_get_lvstores", json!({}))?;
        let stores: Vec<_> = stores
            .as_array()
            .into_iter()
            .flatten()
            .map(|store| json!([store["name"], store["uuid"], store["free_clusters"]]))
            .collect();
        Ok(json!({"volumes": volumes, "stores": stores}))
    }

    /// Names of the volumes that have a bdev, as they are known.
    pub fn volumes(&mut self) -> Result<Vec<String>> {
        let bdevs = self.call("bdev_get_bdevs", json!({}))?;
        let mut names: Vec<String> = bdevs
            .as_array()
            .into_iter()
            .flatten()
            .filter(|bdev| bdev["product_name"] == "Logical Volume")
            .filter_map(|bdev| bdev["aliases"][0].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Sends SIGTERM, waits for the end, and starts a target on the same disk. The store must have been unloaded as
    /// it should be.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.target = Some(self.options.start(None)?);
        self.add_disk()?;
        self.call("bdev_wait_for_examine", Value::Null)?;
        Ok(())
    }

    /// Kills the target, and starts another.
    pub fn crash(&mut self) -> Result<()> {
        let target = self.target.take().context("it runs")?;
        target.into_process().kill()?;
        self.target = Some(self.options.start(None)?);
        self.add_disk()?;
        self.call("bdev_wait_for_examine", Value::Null)?;
        Ok(())
    }

    /// The same as a restart, but the store comes back on a delay device whose reads are slow: it is being found for a while.
    pub fn restart_slowly(&mut self, ms: u64) -> Result<()> {
        self.stop()?;
        self.target = Some(self.options.start(None)?);
        // In this order, or the store is found on the disk.
        self.target().create_delay("aio0", ms * 1000, 0)?;
        self.add_disk()
    }

    fn stop(&mut self) -> Result<()> {
        let process = self.target.take().context("it runs")?.into_process();
        let seen = process.log().len();
        let status = process.stop()?;
        let log = std::fs::read_to_string(&self.options.log)?;
        let tail = &log[seen..];
        ensure!(status.code() == Some(0), "it ended with {status}:\n{tail}");
        match check_file(&self.disk) {
            Ok(report) => {
                ensure!(!report.recovery_due, "the store was not unloaded:\n{tail}");
                ensure!(report.is_clean(), "{report}\n{tail}");
            }
            Err(error) => {
                // The signature of what is there. Zeroes: nothing.
                let mut block = [0; 8];
                File::open(&self.disk)?.read_exact(&mut block)?;
                ensure!(block == [0; 8], "{error}");
            }
        }
        Ok(())
    }

    /// The end of a test: what is there now is there after a restart too, and can all be deleted.
    pub fn finish(mut self) -> Result<()> {
        let before = self.state()?;
        self.restart()?;
        let after = self.state()?;
        ensure!(after == before, "before {before:#}\nafter {after:#}");
        if before["stores"] != json!([]) {
            let report = self.call("bdev_lvol_check_lvstore", json!({"lvs_name": "lvs"}))?;
            ensure!(report["findings"] == json!([]), "{report:#}");
            self.call("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
        }
        self.restart()?;
        let left = self.state()?;
        ensure!(left == json!({"volumes": {}, "stores": []}), "left: {left:#}");
        self.stop()?;
        self.place.discard();
        Ok(())
    }
}

/// Calls that were sent.
pub struct Burst {
    stream: UnixStream,
    received: Vec<u8>,
    answers: BTreeMap<u64, Answer>,
    count: u64,
}

impl Burst {
    /// Waits for all answers. They are in the order of the calls.
    pub fn answers(mut self) -> Result<Vec<Answer>> {
        let end = Instant::now() + PATIENCE;
        while (self.answers.len() as u64) < self.count {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer for {PATIENCE:?}; there are only {:?}", self.answers);
            }
            self.receive(left)?;
        }
        Ok(self.answers.into_values().collect())
    }

    /// Waits for the answer of a single call.
    pub fn answer(self) -> Result<Answer> {
        self.answers()?.pop().context("one answer")
    }

    /// Whether an answer is still to come.
    pub fn is_under_way(&mut self) -> Result<bool> {
        self.receive(Duration::from_millis(1))?;
        Ok((self.answers.len() as u64) < self.count)
    }

    fn receive(&mut self, limit: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the target hung up; answers: {:?}", self.answers),
            Ok(len) => self.received.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut values = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
        let mut taken = 0;
        while let Some(Ok(mut value)) = values.next() {
            taken = values.byte_offset();
            let id = value["id"].as_u64().context("an answer has an id")?;
            let answer = match value.get_mut("error") {
                Some(error) => Err(error.take()),
                None => Ok(value["result"].take()),
            };
            self.answers.insert(id, answer);
        }
        self.received.drain(..taken);
        Ok(())
    }
}

/// The deletion of `lvs/{name}`.
pub fn delete(name: &str) -> Call {
    ("bdev_lvol_delete", json!({"name": format!("lvs/{name}")}))
}

pub fn delete_store() -> Call {
    ("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))
}

pub fn delete_base() -> Call {
    ("bdev_delay_delete", json!({"name": "slow0"}))
}

pub fn is_done(answer: &Answer) -> bool {
    matches!(answer, Ok(result) if result != &json!(false))
}

/// The call was refused as busy, in the words that clients know. (The code is not the same for all methods.)
pub fn is_busy(answer: &Answer) -> bool {
    matches!(answer, Err(error) if error["message"] == "Device or resource busy")
}

pub fn is_io_error(answer: &Answer) -> bool {
    matches!(answer, Err(error) if error["message"] == "Input/output error")
}
