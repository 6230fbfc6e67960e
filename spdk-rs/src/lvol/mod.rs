//! Logical volumes: stores, volumes, snapshots, clones, checksums, and deletes that tell the truth.
//!
//! # The model
//!
//! An *lvstore* ([`LvolStore`]) lies on a bdev and is divided into clusters. A *logical volume*
//! ([`Lvol`]) is a bdev made of clusters of its store: *thick* (all of them its own from the
//! start) or *thin* (allocated when first written). A *snapshot* takes over the clusters that a
//! volume has at that moment, and the volume becomes a thin *clone* on top of it.
//!
//! [`LvolStore`] and [`Lvol`] are *identities*: a UUID, and the name it had. They can be cloned
//! and sent anywhere, hold nothing open, and are looked up anew at each use, so that none can
//! expose a volume that is gone. SPDK wants all of these calls on the thread of the store's
//! metadata, which is the app thread; they go there by themselves.
//!
//! # Destroying
//!
//! [`Lvol::destroy`] ends in one of two ways: the volume is gone, from memory and from disk, or
//! it is whole, with its bdev, its name, its NVMe-oF namespace and its data, and the error gives
//! the handle back and says who holds it:
//!
//! ```no_run
//! # use spdk_rs::lvol::{DestroyError, Lvol};
//! # async fn example(backup: Lvol) {
//! match backup.destroy().await {
//!     Ok(()) => println!("gone"),
//!     Err(DestroyError::Busy { lvol, holders }) => {
//!         println!("{lvol} is kept: {holders}"); // and can be tried again later
//!     }
//!     Err(error) => println!("{error}"),
//! }
//! # }
//! ```
//!
//! That is the promise of SPDK *with this project's patches*. On an SPDK without them
//! ([`destroy_keeps_busy_volumes`] is false) a busy volume is thrown away in memory and comes
//! back with the next load; the error says so then ([`DestroyError::Vanished`]).
//!
//! # Checking
//!
//! [`check`] reads what lies on a store's disk, and says what is wrong with it.
//!
//! What may not be done here: hold a pointer to a C lvol across an `await`.

mod blob;
mod change;
pub mod check;
mod checksum;
mod destroy;
mod destroy_when_idle;
mod jobs;
mod lookup;
mod relations;
pub mod rpc;
mod store;
mod volume;
mod xattr;

use std::future::Future;

pub use checksum::CHECKSUM_XATTR;
pub use destroy::{DestroyError, Holders};
pub use jobs::stop_checksum;
pub use store::{ClearMethod, LvolStore, StoreOptions, StoreStats};
pub use uuid::Uuid;
pub use volume::{Lvol, LvolInfo, Provisioning};
pub use xattr::XATTR_MAX;

use crate::Result;
use crate::reactor::Thread;

/// Whether the SPDK that this program is linked with keeps a busy volume whole when it is to be
/// destroyed.
pub fn destroy_keeps_busy_volumes() -> bool {
    // SAFETY: the function returns a constant.
    unsafe { spdk_sys::shim_lvol_destroy_is_reserved() }
}

/// Runs a future where the metadata of every lvstore is worked on: on the app thread.
async fn on_metadata_thread<M, F, T>(make: M) -> Result<T>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<T>> + 'static,
    T: Send + 'static,
{
    let app = Thread::app()?;
    if app.is_current() {
        return make().await;
    }
    app.spawn_on(make)?.await?
}
