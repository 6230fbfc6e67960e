//! Steps 1 to 6: a volume in use by a host, and its backup, exported too.

use anyhow::{Context, Result};
use serde_json::json;

use crate::layout::{CLUSTER, VOLUME_SIZE};
use crate::scenario::{BACKUP, NQN, OLDER, Scenario, VOLUME};
use crate::seen::{Identity, mib, or_none};

/// The sparse file beneath everything.
const FILE_SIZE: u64 = 2 << 30;

impl Scenario<'_> {
    pub(super) fn device(&mut self) -> Result<()> {
        self.checks
            .step(1, "an AIO bdev on a sparse file, a delay bdev over it")?;
        self.start_target(false)?;
        let file = self.place.file("disk");
        std::fs::File::create(&file)?.set_len(FILE_SIZE)?;
        self.configure(
            "bdev",
            "bdev_aio_create",
            json!({"name": "aio0", "filename": file, "block_size": 4096}),
        )?;
        self.configure(
            "bdev",
            "bdev_delay_create",
            json!({"base_bdev_name": "aio0", "name": "slow0", "avg_read_latency": 0, "p99_read_latency": 0,
                   "avg_write_latency": 0, "p99_write_latency": 0}),
        )?;
        let bdev = self.target()?.bdev("slow0")?.context("slow0 is not there")?;
        let bytes = bdev["num_blocks"]
            .as_u64()
            .zip(bdev["block_size"].as_u64())
            .map(|(n, size)| n * size);
        self.checks.equal(
            "1.size",
            "slow0 has as many bytes as the file",
            &bytes.unwrap_or_default(),
            &FILE_SIZE,
        );
        Ok(())
    }

    pub(super) fn store(&mut self) -> Result<()> {
        self.checks.step(2, "an lvstore on it")?;
        let uuid = self.call(
            "bdev_lvol_create_lvstore",
            json!({"bdev_name": "slow0", "lvs_name": "lvs", "cluster_sz": CLUSTER}),
        )?;
        let store = self.target()?.lvstore("lvs")?;
        self.checks.same("2.uuid", "lvstore lvs", &store["uuid"], &uuid);
        self.checks.note(format_args!(
            "{} clusters of {CLUSTER} bytes free",
            store["free_clusters"]
        ));
        Ok(())
    }

    pub(super) fn volume(&mut self) -> Result<Identity> {
        self.checks.step(3, "a thin lvol of 512 MiB")?;
        let before = self.free_clusters()?;
        self.call(
            "bdev_lvol_create",
            json!({"lvs_name": "lvs", "lvol_name": "vol", "size": VOLUME_SIZE, "thin_provision": true}),
        )?;
        let volume = self.must_exist(VOLUME)?;
        self.checks.note(format_args!("{VOLUME}: {}", volume.uuid));
        let after = self.free_clusters()?;
        self.checks
            .equal("3.thin", "a thin lvol takes no cluster: free", &after, &before);
        Ok(volume)
    }

    pub(super) fn export(&mut self) -> Result<()> {
        self.checks.step(4, "exported over NVMe/TCP")?;
        self.configure("nvmf", "nvmf_create_transport", json!({"trtype": "TCP"}))?;
        self.configure(
            "nvmf", "nvmf_create_subsystem",
            json!({"nqn": NQN, "allow_any_host": true, "serial_number": "SPDKRS0000000001", "max_namespaces": 8}),
        )?;
        self.add_namespace(1, VOLUME)?;
        self.configure(
            "nvmf",
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
                   "trsvcid": self.host_options.port.to_string()}}),
        )?;
        let namespaces = self.target()?.namespaces(NQN)?;
        self.checks
            .equal("4.namespace", "namespaces", &namespaces.len(), &1);
        Ok(())
    }

    pub(super) fn write_and_verify(&mut self) -> Result<()> {
        self.checks.step(5, "a host connects, writes and verifies")?;
        self.start_host()?;
        let written = self.ask_host("host_write", json!({"part": "older"}))?;
        self.checks.note(format_args!(
            "written before the older snapshot: {} MiB",
            mib(&written["bytes"])
        ));
        self.call(
            "bdev_lvol_snapshot",
            json!({"lvol_name": VOLUME, "snapshot_name": "older"}),
        )?;
        let older = self.must_exist(OLDER)?;
        self.checks.check(
            "5.older",
            older.snapshot,
            format_args!("an older snapshot beneath: {OLDER} {}", older.uuid),
        );
        let written = self.ask_host("host_write", json!({"part": "main"}))?;
        let bytes = written["bytes"].as_u64().unwrap_or_default();
        self.checks.check(
            "5.written",
            bytes >= 256 << 20,
            format_args!("written with holes: {} MiB, at least 256", bytes >> 20),
        );
        let seen = self.ask_host("host_verify", json!({"namespace": 1}))?;
        self.checks
            .same("5.verified", "blocks that differ", &seen["wrong"], 0);
        self.checks.note(format_args!(
            "verified: {} MiB of data and {} MiB of holes",
            mib(&seen["data_bytes"]),
            mib(&seen["zero_bytes"])
        ));
        let hot = self.ask_host("host_start", json!({}))?;
        self.checks.note(format_args!(
            "the host goes on reading, writing and verifying, {hot} tasks"
        ));
        Ok(())
    }

    pub(super) fn snapshot(&mut self, volume: &Identity) -> Result<Identity> {
        self.checks.step(
            6,
            "a snapshot, the backup, exported as namespace 2 while the host is busy",
        )?;
        self.ask_host("host_snapshot_begins", json!({}))?;
        self.call(
            "bdev_lvol_snapshot",
            json!({"lvol_name": VOLUME, "snapshot_name": "backup"}),
        )?;
        self.ask_host("host_snapshot_done", json!({}))?;
        let backup = self.must_exist(BACKUP)?;
        self.checks.note(&backup);
        self.checks.same(
            "6.clones",
            "its clone is the volume",
            backup.clones.join(", "),
            "vol",
        );
        let parent = or_none(backup.base_snapshot.as_deref());
        self.checks
            .same("6.parent", "its parent is the older one", parent, "older");
        let now = self.must_exist(VOLUME)?;
        self.checks
            .same("6.volume", "the volume's UUID stays", &now.uuid, &volume.uuid);
        self.add_namespace(2, BACKUP)?;
        let name = self.ask_host("host_open_backup", json!({}))?;
        self.checks.check(
            "6.namespace",
            name.is_string(),
            format_args!("the host sees namespace 2 as {name}"),
        );
        let seen = self.ask_host("host_verify", json!({"namespace": 2}))?;
        self.checks.same(
            "6.verified",
            "blocks of the backup that differ",
            &seen["wrong"],
            0,
        );
        self.write_config()?;
        Ok(backup)
    }
}
