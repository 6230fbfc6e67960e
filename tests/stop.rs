//! Stopping the target while something does not end.

mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::{Place, TargetOptions};
use serde_json::json;

/// A store is being made on a device that answers in a minute: the first signal waits for that, as SPDK does; the
/// second ends it.
#[test]
fn a_second_signal_ends_a_stop_that_takes_too_long() -> Result<()> {
    let mut place = Place::new()?;
    let options = TargetOptions::in_place(&place);
    let disk = place.file("disk");
    File::create(&disk)?.set_len(64 << 20)?;
    let mut target = options.start(None)?;
    target.call(
        "bdev_aio_create",
        json!({"name": "aio0", "filename": disk, "block_size": 4096}),
    )?;
    let minute = 60_000_000;
    target.create_delay("aio0", minute, minute)?;
    let mut other = target.connect()?;
    let caller = std::thread::spawn(move || {
        let params = json!({"bdev_name": "slow0", "lvs_name": "lvs"});
        other.call("bdev_lvol_create_lvstore", params).is_err()
    });
    std::thread::sleep(Duration::from_millis(500));

    let mut process = target.into_process();
    process.signal(libc::SIGTERM);
    assert!(
        process.wait(Duration::from_secs(2)).is_err(),
        "the first signal waits for the device"
    );
    let begun = Instant::now();
    process.signal(libc::SIGTERM);
    let status = process.wait(Duration::from_secs(10))?;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!status.success(), "it was not a clean stop: {status}");
    assert!(caller.join().expect("the caller"));
    place.discard();
    Ok(())
}
