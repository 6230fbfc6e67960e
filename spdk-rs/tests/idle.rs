//! Reactors that sleep when there is nothing to do, and what wakes them.

mod common;

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{builder, isolated};
use futures_util::FutureExt;
use spdk_rs::bdev::{self, Bdev, Mode, delay};
use spdk_rs::bdev_module::{self, BlockDevice, Io, Kind, Properties, Status};
use spdk_rs::buf::DmaBuf;
use spdk_rs::lvol::{LvolStore, StoreOptions};
use spdk_rs::reactor::{Thread, interval, sleep};
use spdk_rs::runtime::{Builder, Handle, Idle};
use spdk_rs::{ErrorKind, Runtime};

const CORES: [u32; 2] = [0, 1];

/// Sleeps that end by themselves only after twice the pause: who is not woken is late by what can
/// be told from a machine that is slow.
const LONG: Idle = Idle::Sleep {
    after: Duration::from_micros(50),
    at_most: Duration::from_secs(60),
};

/// SPDK's target looks for new hosts each 10 ms by default, which would wake core 0.
const SELDOM: &str = r#"{"subsystems": [{"subsystem": "nvmf", "config": [
    {"method": "nvmf_set_config", "params": {"acceptor_poll_rate": 60000000}}]}]}"#;

/// Runs `body` with SPDK on two cores beside it.
fn beside<F: Future>(name: &str, idle: Idle, body: impl FnOnce(Handle) -> F) {
    isolated(name, || {
        let options = builder().core_mask("0x3").idle(idle);
        beside_with(options.json_config_text(SELDOM), body);
    });
}

fn beside_with<F: Future>(options: Builder, body: impl FnOnce(Handle) -> F) {
    let spdk = options.build().expect("options").spawn().expect("SPDK starts");
    let tokio = tokio::runtime::Runtime::new().expect("Tokio starts");
    tokio.block_on(async {
        let result = AssertUnwindSafe(body(spdk.clone())).catch_unwind().await;
        spdk.stop().await.expect("it stops in order");
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    });
}

/// CPU time of the current thread so far.
fn cpu_time() -> Duration {
    // SAFETY: the kernel fills a plain C struct.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time), 0);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The part of its core that each reactor takes while nothing happens.
async fn shares(spdk: &Handle) -> [f64; 2] {
    let tasks = CORES.map(|core| {
        let task = spdk.spawn_on(core, || async {
            let (begun, used) = (Instant::now(), cpu_time());
            sleep(Duration::from_secs(2)).await;
            (cpu_time() - used).as_secs_f64() / begun.elapsed().as_secs_f64()
        });
        task.expect("it runs")
    });
    let [one, two] = tasks;
    [one.await.expect("no panic"), two.await.expect("no panic")]
}

/// Does it after pauses of all lengths between 0.4 and 0.8 s, 3.4 s in all, so that a sleep that
/// nobody ends would make them late by almost half of that. Returns by how much they are.
async fn pauses<F: Future>(mut each: impl FnMut(usize) -> F) -> Duration {
    let mut late = Duration::ZERO;
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(400).mul_f64(2_f64.powf(round as f64 / 6.0))).await;
        let begun = Instant::now();
        each(round).await;
        late += begun.elapsed();
    }
    late
}

#[test]
fn spinning_takes_a_core() {
    // The other tests' control: it can be seen.
    beside("spinning_takes_a_core", Idle::Spin, |spdk| async move {
        for share in shares(&spdk).await {
            assert!(share > 0.1, "{share} of a core that spins"); // others may want it, too
        }
    });
}

#[test]
fn sleeping_takes_almost_nothing() {
    isolated("sleeping_takes_almost_nothing", || {
        let place = tempfile::tempdir().expect("a place");
        let socket = place.path().join("rpc.sock").display().to_string();
        // Timers of SPDK's that run often: for RPC clients each 4 ms, for NVMe-oF hosts each 10 ms.
        let options = builder().core_mask("0x3").rpc_socket(socket).idle(Idle::sleep());
        beside_with(options, |spdk| async move {
            // Each wake-up takes longer on a machine that has other things to do: the best of three.
            let mut least = [1.0; 2];
            for _ in 0..3 {
                if least.iter().any(|share| *share >= 0.03) {
                    let now = shares(&spdk).await;
                    least = [0, 1].map(|core| now[core].min(least[core]));
                }
            }
            println!("{least:?} of the cores");
            assert!(least.iter().all(|share| *share < 0.03), "{least:?} of the cores");
        });
    });
}

#[test]
fn messages_from_other_threads_wake() {
    beside("messages_from_other_threads_wake", LONG, |spdk| async move {
        let late = pauses(async |round| {
            let task = spdk.spawn_on(CORES[round % 2], || async {}).expect("it runs");
            task.await.expect("no panic");
        });
        let late = late.await;
        assert!(late < Duration::from_millis(500), "late by {late:?} in all");
    });
}

#[test]
fn one_core_wakes_the_other() {
    beside("one_core_wakes_the_other", LONG, |spdk| async move {
        let there = spdk.clone();
        let late = pauses(async |_| {
            // Core 1 has slept when the message comes, and core 0 when the answer does.
            let there = there.clone();
            let task = spdk.spawn_on(0, move || async move {
                let task = there.spawn_on(1, || async {}).expect("it runs");
                task.await.expect("no panic");
            });
            task.expect("it runs").await.expect("no panic");
        });
        let late = late.await;
        assert!(late < Duration::from_millis(500), "late by {late:?} in all");
    });
}

#[test]
fn a_new_thread_wakes_its_core() {
    beside("a_new_thread_wakes_its_core", LONG, |_spdk| async move {
        let late = pauses(async |round| {
            let thread = Thread::create("new", CORES[round % 2]).expect("a thread");
            let task = thread.spawn_on(|| async {}).expect("it runs");
            task.await.expect("no panic");
            thread.exit().await;
        });
        let late = late.await;
        assert!(late < Duration::from_millis(500), "late by {late:?} in all");
    });
}

#[test]
fn timers_are_not_slept_through() {
    beside("timers_are_not_slept_through", LONG, |spdk| async move {
        let task = spdk.spawn_on(1, || async {
            let begun = Instant::now();
            // Beginning with short ones, for sleeps of all lengths.
            let mut asked = Duration::from_micros(100);
            let mut sum = Duration::ZERO;
            for _ in 0..14 {
                sleep(asked).await;
                sum += asked;
                asked *= 2;
            }
            let late = begun.elapsed().checked_sub(sum).expect("not early");
            let begun = Instant::now();
            let mut clock = interval(Duration::from_millis(50)).expect("a clock");
            let mut ticks = 0;
            while ticks < 20 {
                ticks += clock.tick().await;
            }
            (late, begun.elapsed())
        });
        let (late, second) = task.expect("it runs").await.expect("no panic");
        // Unwatched, the sleep that is under way when one of 1 s ends would go on for 1 s more.
        assert!(late < Duration::from_millis(400), "late by {late:?} in all");
        assert!(
            second < Duration::from_millis(1500),
            "20 ticks of 50 ms in {second:?}"
        );
    });
}

#[test]
fn a_stop_wakes_all() {
    beside("a_stop_wakes_all", LONG, |spdk| async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = Instant::now();
        spdk.stop().await.expect("in order");
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(1500), "it took {took:?}");
    });
}

#[test]
fn io_is_waited_for_awake() {
    beside("io_is_waited_for_awake", LONG, |spdk| async move {
        let task = spdk.spawn(|| async {
            bdev::malloc::create("ram0", 4096, 512)?;
            let slow = delay::Latency {
                read: Duration::from_millis(300),
                read_p99: Duration::from_millis(300),
                ..delay::Latency::default()
            };
            delay::create("slow0", "ram0", slow)?;
            let descriptor = Bdev::find("slow0")?.open(Mode::ReadOnly)?;
            let channel = descriptor.channel()?;
            let used = cpu_time();
            let begun = Instant::now();
            for _ in 0..5 {
                channel.read(DmaBuf::zeroed(4096)?, 0).await.ok()?;
            }
            let times = (begun.elapsed(), cpu_time() - used);
            drop(channel);
            descriptor.close().await?;
            delay::delete("slow0").await?;
            bdev::malloc::delete("ram0").await?;
            Ok::<_, spdk_rs::Error>(times)
        });
        let (took, used) = task.expect("it runs").await.expect("no panic").expect("I/O");
        // The delay has a timer for each I/O's end, but looks at it from a poller without one.
        assert!(
            took < Duration::from_millis(1900),
            "5 reads of 300 ms took {took:?}"
        );
        assert!(used > took / 10, "{used:?} of {took:?}: it slept");
    });
}

/// A disk in memory whose I/O is done, one after the other, by a thread of the program's.
struct Elsewhere(mpsc::Sender<Io>);

impl BlockDevice for Elsewhere {
    type Channel = ();

    fn properties(&self) -> Properties {
        Properties::new(4096, 4096).supports(Kind::Unmap)
    }

    fn channel(&self) -> spdk_rs::Result<()> {
        Ok(())
    }

    fn submit(&self, (): &mut (), io: Io) {
        let _ = self.0.send(io);
    }
}

/// Takes its time over each I/O, as [`pauses`] does. Returns how much in all.
fn serve(work: &mpsc::Receiver<Io>, data: &mut [u8]) -> Duration {
    let mut sum = Duration::ZERO;
    for round in 0.. {
        let Ok(mut io) = work.recv() else { break };
        let pause = Duration::from_millis(200).mul_f64(2_f64.powf(f64::from(round % 6) / 6.0));
        std::thread::sleep(pause);
        sum += pause;
        let range = io.offset() as usize..(io.offset() + io.num_bytes()) as usize;
        match io.kind() {
            Kind::Read => {
                io.fill_from(&data[range]);
            }
            Kind::Write => {
                io.copy_to(&mut data[range]);
            }
            _ => {}
        }
        io.complete(Status::Success);
    }
    sum
}

#[test]
fn io_that_ends_on_another_thread_wakes() {
    beside("io_that_ends_on_another_thread_wakes", LONG, |spdk| async move {
        let (sender, work) = mpsc::channel();
        let server = std::thread::spawn(move || serve(&work, &mut vec![0; 4096 * 4096]));
        let begun = Instant::now();
        // The I/O is SPDK's own, which this crate does not know of.
        let task = spdk.spawn(|| async {
            let disk = bdev_module::register("far0", Elsewhere(sender))?;
            let options = StoreOptions::default().cluster_size(1 << 20);
            let store = LvolStore::create("far0", "lvs", options).await?;
            store.destroy().await?;
            disk.unregister().await
        });
        task.expect("it runs").await.expect("no panic").expect("a store");
        let took = begun.elapsed();
        let sum = server.join().expect("no panic");
        let late = took.saturating_sub(sum);
        // Unrung it would be late by almost half of the sum.
        println!("late by {late:?} over {sum:?}");
        assert!(sum > Duration::from_secs(1), "{sum:?}");
        assert!(late < sum / 5, "late by {late:?} over {sum:?}");
    });
}

#[test]
fn a_sleep_without_length_is_refused() {
    let idle = Idle::Sleep {
        after: Duration::ZERO,
        at_most: Duration::ZERO,
    };
    let error = Runtime::builder().no_huge(true).idle(idle).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}
