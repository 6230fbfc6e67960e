//! Steps 7 to 12: the delete that is refused, the crash, and the delete that is granted.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use spdk_rs::rpc::{CallError, Client};

use crate::common::{Process, Target};
use crate::host::HostStatus;
use crate::layout::HOT_CLUSTERS;
use crate::scenario::{BACKUP, NQN, Scenario, VOLUME};
use crate::seen::{Identity, NONE, describe, hex, list, or_none, show};

/// What every read takes while a checksum has to run long, in microseconds.
const SLOW_READ_US: u64 = 100_000;

/// A checksum that runs beside everything else, on a connection of its own.
pub struct RunningChecksum(JoinHandle<Result<Value, CallError>>);

impl RunningChecksum {
    fn start(target: &Target) -> Result<Self> {
        let mut client: Client = target.connect()?;
        Ok(Self(thread::spawn(move || {
            client.call("bdev_lvol_register_snapshot_checksum", json!({"name": BACKUP}))
        })))
    }

    fn is_running(&self) -> bool {
        !self.0.is_finished()
    }

    fn answer(self) -> Result<Result<Value, CallError>> {
        self.0
            .join()
            .map_err(|_| anyhow::anyhow!("the checksum's caller panicked"))
    }
}

impl Scenario<'_> {
    pub(super) fn checksum(&mut self) -> Result<u64> {
        self.call("bdev_lvol_register_snapshot_checksum", json!({"name": BACKUP}))?;
        self.stored_checksum()?
            .context("no checksum is stored after it was computed")
    }

    /// The stored sum; `None` if there is none.
    pub(super) fn stored_checksum(&mut self) -> Result<Option<u64>> {
        match self
            .target()?
            .call("bdev_lvol_get_snapshot_checksum", json!({"name": BACKUP}))
        {
            Ok(answer) => Ok(answer["checksum"].as_u64()),
            Err(error) if error.rpc().is_some() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn first_checksum(&mut self) -> Result<u64> {
        self.checks
            .step(7, "the backup's checksum is computed and stored")?;
        let none = self
            .target()?
            .call("bdev_lvol_get_snapshot_checksum", json!({"name": BACKUP}));
        let code = none
            .err()
            .as_ref()
            .and_then(CallError::rpc)
            .map(|error| error.code);
        self.checks.equal(
            "7.none",
            "before, there is none: code",
            &code.unwrap_or_default(),
            &-19,
        );
        let sum = self.checksum()?;
        self.checks.check(
            "7.sum",
            sum != 0,
            format_args!("S = {} (CRC-64/GO-ISO)", hex(sum)),
        );
        Ok(sum)
    }

    pub(super) fn slow_checksum(&mut self) -> Result<RunningChecksum> {
        self.checks
            .step(8, "reads become slow; a second checksum starts")?;
        self.set_read_delay(SLOW_READ_US)?;
        let second = RunningChecksum::start(self.target()?)?;
        thread::sleep(Duration::from_secs(1));
        let running = second.is_running();
        self.checks.check(
            "8.running",
            running,
            format_args!("{} ms a read: it runs", SLOW_READ_US / 1000),
        );
        Ok(second)
    }

    pub(super) fn refused_delete(
        &mut self,
        second: &RunningChecksum,
        volume: &Identity,
        backup: &Identity,
    ) -> Result<()> {
        self.checks.step(
            9,
            "while it runs, the backup is deleted: refused, and nothing changes",
        )?;
        let namespaces = self.target()?.namespaces(NQN)?;
        let connections = self.target()?.connections()?;
        let free = self.free_clusters()?;
        let before = self.host_status()?;
        self.checks.check(
            "9.before",
            second.is_running(),
            "the checksum runs before the delete",
        );

        let answer = self.target()?.call("bdev_lvol_delete", json!({"name": BACKUP}));
        let error = match &answer {
            Err(CallError::Rpc { error, .. }) => Some(error.clone()),
            Err(_) => return Ok(answer.map(|_| ())?),
            Ok(_) => None,
        };
        let said = error.as_ref().map_or("success".to_owned(), |error| {
            format!("{} ({})", error.message, error.code)
        });
        self.checks.same(
            "9.refused",
            "the delete answers",
            said,
            "Device or resource busy (-32603)",
        );
        let data = error.and_then(|error| error.data).unwrap_or_default();
        let holder = json!({"lvol": BACKUP, "reason": "locked", "operation": "checksum", "holder": "backup",
                            "open_refs": 1, "clones": ["vol"]});
        self.checks
            .same("9.holder", "and says who holds it", &data, &holder);

        // Time for the answer's consequences, if it has any, to reach the host.
        thread::sleep(Duration::from_secs(2));
        let now = self.identity(BACKUP)?;
        self.checks
            .same("9.bdev", "the backup's bdev", show(now.as_ref()), backup);
        let now = self.identity(VOLUME)?;
        self.checks
            .same("9.volume", "the volume's bdev", show(now.as_ref()), volume);
        let now = self.target()?.namespaces(NQN)?;
        self.checks.same(
            "9.namespaces",
            "namespaces",
            describe(&now),
            describe(&namespaces),
        );
        let now = self.free_clusters()?;
        self.checks.equal("9.space", "free clusters", &now, &free);
        let now = self.target()?.connections()?;
        self.checks.equal(
            "9.connections",
            "connections ever made (admin, I/O)",
            &now,
            &connections,
        );
        self.host_was_undisturbed(&before)?;
        self.checks.check(
            "9.after",
            second.is_running(),
            "the checksum still runs after the delete",
        );
        Ok(())
    }

    /// What the host says of its I/O since `before`.
    pub(super) fn host_was_undisturbed(&mut self, before: &HostStatus) -> Result<()> {
        let now = self.host_status()?;
        for (errors, goes_on, of_namespace, was, is) in [
            ("9.host-errors-1", "9.host-io-1", 1, &before.volume, &now.volume),
            ("9.host-errors-2", "9.host-io-2", 2, &before.backup, &now.backup),
        ] {
            let what = format!("host errors on namespace {of_namespace}");
            self.checks.same(errors, what, list(&is.errors), NONE);
            let io = is.done() - was.done();
            let what = format!("host I/O on namespace {of_namespace} went on: {io} more, verified");
            self.checks.check(goes_on, io > 0, what);
        }
        let log = self.host.as_ref().map(Process::log).unwrap_or_default();
        let resets = log.matches("resetting controller").count();
        self.checks
            .equal("9.host-resets", "times that the host reconnected", &resets, &0);
        Ok(())
    }

    pub(super) fn crash_and_restart(
        &mut self,
        second: RunningChecksum,
        volume: &Identity,
        backup: &Identity,
        sum: u64,
    ) -> Result<()> {
        self.checks
            .step(10, "the target is killed with -9 and started again")?;
        let target = self.target.take().context("the target is not running")?;
        target.into_process().kill()?;
        // The host is killed with its I/O under way; its ledger knows what was written and what may have been.
        self.host.take().context("the host is not running")?.kill()?;
        let unanswered = matches!(second.answer()?, Err(CallError::Connection { .. }));
        self.checks
            .check("10.crash", unanswered, "the crash cut the second checksum off");
        self.start_target(true)?;
        let now = self.identity(VOLUME)?;
        self.checks
            .same("10.volume", "the volume's bdev", show(now.as_ref()), volume);
        let now = self.identity(BACKUP)?;
        self.checks
            .same("10.backup", "the backup's bdev", show(now.as_ref()), backup);
        let namespaces = self.target()?.namespaces(NQN)?;
        let uuids = format!("1 = {}, 2 = {}", volume.uuid, backup.uuid);
        self.checks
            .same("10.namespaces", "namespaces", describe(&namespaces), uuids);
        let stored = self.stored_checksum()?;
        let stored = stored.map(hex);
        self.checks.same(
            "10.sum",
            "S is still stored",
            or_none(stored.as_deref()),
            hex(sum),
        );
        self.start_host()?;
        for namespace in [1, 2] {
            if namespace == 2 {
                self.ask_host("host_open_backup", json!({}))?;
            }
            let seen = self.ask_host("host_verify", json!({"namespace": namespace}))?;
            let name = if namespace == 1 { "10.data-1" } else { "10.data-2" };
            self.checks.same(
                name,
                format_args!("blocks of namespace {namespace} that differ"),
                &seen["wrong"],
                0,
            );
        }
        Ok(())
    }

    pub(super) fn granted_delete(&mut self, sum: u64) -> Result<u64> {
        self.checks.step(
            11,
            "a third checksum; a fourth is stopped; now the delete succeeds",
        )?;
        let third = self.checksum()?;
        self.checks
            .same("11.sum", "the third checksum is S", hex(third), hex(sum));
        self.ask_host("host_start", json!({}))?;

        self.set_read_delay(SLOW_READ_US)?;
        let fourth = RunningChecksum::start(self.target()?)?;
        thread::sleep(Duration::from_millis(500));
        self.checks
            .check("11.running", fourth.is_running(), "a fourth, slow one runs");
        let stopped = self.call("bdev_lvol_stop_snapshot_checksum", json!({"name": BACKUP}))?;
        self.checks.same("11.stopped", "it is stopped", &stopped, true);
        let answer = fourth.answer()?;
        let said = answer
            .err()
            .as_ref()
            .and_then(CallError::rpc)
            .map(|error| error.message.clone());
        let said = or_none(said.as_deref());
        self.checks.same(
            "11.interrupted",
            "and its caller hears",
            said,
            "Interrupted system call",
        );
        self.set_read_delay(0)?;

        let before = self.host_status()?;
        let connections = self.target()?.connections()?;
        let free = self.free_clusters()?;
        self.ask_host("host_expect_removal", json!({}))?;
        let gone = self.call("bdev_lvol_delete", json!({"name": BACKUP}))?;
        self.checks.same("11.deleted", "the delete answers", &gone, true);
        let left = self.ask_host("host_wait_removed", json!({}))?;
        self.checks
            .same("11.left", "namespace 2 has left the host", &left, true);
        let now = self.identity(BACKUP)?;
        self.checks
            .same("11.gone", "the backup's bdev", show(now.as_ref()), NONE);
        let namespaces = self.target()?.namespaces(NQN)?;
        self.checks
            .equal("11.namespaces", "namespaces", &namespaces.len(), &1);
        let volume = self.must_exist(VOLUME)?;
        let parent = or_none(volume.base_snapshot.as_deref());
        self.checks
            .same("11.parent", "the volume's parent is now", parent, "older");
        let now = self.target()?.connections()?;
        self.checks.equal(
            "11.connections",
            "connections ever made (admin, I/O)",
            &now,
            &connections,
        );
        thread::sleep(Duration::from_millis(500));
        let now = self.host_status()?;
        self.checks.same(
            "11.host-errors",
            "host errors on namespace 1",
            list(&now.volume.errors),
            NONE,
        );
        let more = now.volume.done() - before.volume.done();
        self.checks.check(
            "11.host-io",
            more > 0,
            format_args!("host I/O on namespace 1 went on: {more} more, verified"),
        );
        let back = self.free_clusters()?.saturating_sub(free);
        self.checks.equal(
            "11.space",
            "clusters freed: those that the volume had written anew",
            &back,
            &HOT_CLUSTERS,
        );
        Ok(free + HOT_CLUSTERS)
    }

    pub(super) fn final_restart(&mut self, free: u64) -> Result<()> {
        self.checks
            .step(12, "a last restart: the backup stays gone, its space is back")?;
        self.made
            .retain(|(_, call)| call["params"]["namespace"]["nsid"] != 2);
        self.write_config()?;
        self.ask_host("host_stop", json!({}))?;
        let status = self.host.take().context("the host is not running")?.stop()?;
        self.checks.check(
            "12.host-exit",
            status.success(),
            format_args!("the host stops: {status}"),
        );
        let target = self.target.take().context("the target is not running")?;
        let status = target.into_process().stop()?;
        self.checks.check(
            "12.exit",
            status.success(),
            format_args!("the target stops on SIGTERM: {status}"),
        );
        self.start_target(true)?;
        let now = self.identity(BACKUP)?;
        self.checks
            .same("12.gone", "the backup's bdev", show(now.as_ref()), NONE);
        let now = self.free_clusters()?;
        self.checks.equal("12.space", "free clusters", &now, &free);
        self.start_host()?;
        let seen = self.ask_host("host_verify", json!({"namespace": 1}))?;
        self.checks
            .same("12.data", "blocks of the volume that differ", &seen["wrong"], 0);
        let status = self.host.take().context("the host is not running")?.stop()?;
        self.checks.check(
            "12.host-exit-2",
            status.success(),
            format_args!("the host stops: {status}"),
        );
        let target = self.target.take().context("the target is not running")?;
        let status = target.into_process().stop()?;
        self.checks.check(
            "12.exit-2",
            status.success(),
            format_args!("the target stops: {status}"),
        );
        Ok(())
    }
}
