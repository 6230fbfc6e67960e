//! Destroying a volume that somebody holds, as soon as nobody does.

use std::time::{Duration, Instant};

use super::{DestroyError, Lvol, on_metadata_thread, stop_checksum};
use crate::reactor::{sleep, timeout};

/// Between two attempts: an operation on a volume takes milliseconds at least.
const PAUSE: Duration = Duration::from_millis(5);

impl Lvol {
    /// As [`destroy`](Self::destroy), but waits for those who hold the volume, for `limit` at most.
    ///
    /// Nothing is disturbed while it waits: the volume is whole, and can be used.
    ///
    /// # Errors
    /// See [`DestroyError`]. [`Busy`](DestroyError::Busy) if it is held still;
    /// [`Deleting`](DestroyError::Deleting) if it is nobody's any more, but somebody has its bdev
    /// open and does not let go: it will go when they do.
    pub async fn destroy_when_idle(self, limit: Duration) -> Result<(), DestroyError> {
        let lvol = self.clone();
        let answer = on_metadata_thread(move || async move { Ok(try_until(lvol, limit).await) }).await;
        match answer {
            Ok(result) => result,
            Err(source) => Err(DestroyError::Failed { lvol: self, source }),
        }
    }

    /// As [`destroy_when_idle`](Self::destroy_when_idle), and stops this crate's own job on the
    /// volume first, if there is one: a checksum.
    ///
    /// # Errors
    /// As [`destroy_when_idle`](Self::destroy_when_idle).
    pub async fn destroy_stopping_jobs(self, limit: Duration) -> Result<(), DestroyError> {
        match stop_checksum(&self).await {
            Ok(()) => {}
            // There is none, or it has just ended.
            Err(error) if error.errno() == libc::ESRCH => {}
            Err(source) => return Err(DestroyError::Failed { lvol: self, source }),
        }
        self.destroy_when_idle(limit).await
    }
}

async fn try_until(lvol: Lvol, limit: Duration) -> Result<(), DestroyError> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Where the time is up, the destruction goes on by itself.
        let Ok(result) = timeout(left.max(PAUSE), lvol.clone().destroy()).await else {
            return Err(DestroyError::Deleting { lvol });
        };
        match result {
            Err(DestroyError::Busy { .. }) if left > PAUSE => sleep(PAUSE).await,
            result => return result,
        }
    }
}
