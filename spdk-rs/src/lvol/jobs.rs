//! The checksums that are being computed, so that they can be found and stopped.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::{Lvol, Uuid, on_metadata_thread};
use crate::{Error, Result};

thread_local! {
    /// By the volume's UUID. Only the metadata thread's copy is ever used.
    static JOBS: RefCell<HashMap<Uuid, Rc<Job>>> = RefCell::default();
}

/// A checksum that is being computed.
#[derive(Default)]
pub(super) struct Job {
    stopped: Cell<bool>,
    ended: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Job {
    /// Registers the job of a volume.
    ///
    /// # Errors
    /// `EBUSY`: it has one already.
    pub(super) fn begin(lvol: &Lvol) -> Result<Registered> {
        JOBS.with_borrow_mut(|jobs| {
            if jobs.contains_key(&lvol.uuid()) {
                return Err(Error::from_errno("checksum", lvol.to_string(), libc::EBUSY)
                    .with_detail("its checksum is being computed already"));
            }
            let job = Rc::new(Self::default());
            jobs.insert(lvol.uuid(), Rc::clone(&job));
            Ok(Registered {
                uuid: lvol.uuid(),
                job,
            })
        })
    }

    /// Whether somebody asked it to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Asks it to stop. It does after the reads that are in flight.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// Waits for its end: the volume is unlocked then.
    async fn end(&self) {
        poll_fn(|cx| {
            if self.ended.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A job's entry in the list. Dropped when the volume has been let go.
pub(super) struct Registered {
    uuid: Uuid,
    job: Rc<Job>,
}

impl Registered {
    pub(super) fn job(&self) -> &Rc<Job> {
        &self.job
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        JOBS.with_borrow_mut(|jobs| jobs.remove(&self.uuid));
        self.job.ended.set(true);
        for waker in self.job.waiting.take() {
            waker.wake();
        }
    }
}

/// Stops the checksum that is being computed for a volume, and waits until the volume is let go.
/// [`Lvol::checksum`] ends with `EINTR` then.
///
/// # Errors
/// Errno `ESRCH`: none is being computed for it.
pub async fn stop_checksum(lvol: &Lvol) -> Result<()> {
    let lvol = lvol.clone();
    on_metadata_thread(move || async move {
        let job = JOBS.with_borrow(|jobs| jobs.get(&lvol.uuid()).cloned());
        let Some(job) = job else {
            return Err(Error::from_errno("stop checksum", lvol.to_string(), libc::ESRCH)
                .with_detail("no checksum of this volume is being computed"));
        };
        job.stop();
        job.end().await;
        Ok(())
    })
    .await
}
