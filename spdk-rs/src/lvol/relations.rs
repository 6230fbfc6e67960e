//! What lies beneath a volume, and what lies on it.

use super::{Lvol, on_metadata_thread};
use crate::Result;

impl Lvol {
    /// The snapshot directly beneath; `None` if there is none.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone.
    #[doc(alias = "spdk_blob_get_parent_snapshot")]
    pub async fn parent(&self) -> Result<Option<Self>> {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            match lvol.info().await?.parent {
                Some(parent) => lvol.store().lvol(&parent).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    /// The snapshots beneath, the nearest first.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone.
    pub async fn ancestors(&self) -> Result<Vec<Self>> {
        let mut lvol = self.clone();
        on_metadata_thread(move || async move {
            let mut ancestors = Vec::new();
            while let Some(parent) = lvol.parent().await? {
                ancestors.push(parent.clone());
                lvol = parent;
            }
            Ok(ancestors)
        })
        .await
    }

    /// The volumes that lie directly on this one, in the order in which they came to.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): the volume is gone.
    #[doc(alias = "spdk_blob_get_clones")]
    pub async fn clones(&self) -> Result<Vec<Self>> {
        let lvol = self.clone();
        on_metadata_thread(move || async move {
            let mut clones = Vec::new();
            for name in lvol.info().await?.clones {
                clones.push(lvol.store().lvol(&name).await?);
            }
            Ok(clones)
        })
        .await
    }
}
