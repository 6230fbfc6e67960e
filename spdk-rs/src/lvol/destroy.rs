//! Destroying a volume: wholly or not at all, and who was in the way.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;

use spdk_sys::shim_lvol_busy;

use super::{Lvol, lookup, on_metadata_thread};
use crate::op::{self, Submitted};
use crate::{Error, ErrorKind, guard};

const WHAT: &str = "destroy lvol";

/// Who holds a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holders {
    /// The operation that has the lock of the volume or of its clone: `"checksum"`, `"inflate"`,
    /// `"decouple"`, `"snapshot"`, `"clone"`, `"resize"`, `"delete"`.
    pub operation: Option<String>,
    /// Name of the volume whose lock that is: this one, or its clone.
    pub holder: Option<String>,
    /// Open references to the volume's blob that neither the volume's own bdev nor its open
    /// clones explain. A running operation on the volume has one.
    pub open_refs: u32,
    /// Names of its clones.
    pub clones: Vec<String>,
}

/// For people: what holds it.
impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(operation) = &self.operation {
            write!(f, "{operation} in progress")?;
            if let Some(holder) = &self.holder {
                write!(f, " on {holder}")?;
            }
            separator = ", ";
        }
        if self.open_refs > 0 {
            write!(f, "{separator}open {} time(s) besides its bdev", self.open_refs)?;
            separator = ", ";
        }
        if !self.clones.is_empty() {
            write!(f, "{separator}clones: {}", self.clones.join(", "))?;
        } else if separator.is_empty() {
            f.write_str("unknown")?;
        }
        Ok(())
    }
}

/// Why a volume was not destroyed. Except where it says otherwise, the volume is whole, and the
/// handle as usable as before: see [`DestroyError::into_lvol`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DestroyError {
    /// Somebody holds it. Nothing has changed.
    Busy {
        /// The volume.
        lvol: Lvol,
        /// By whom.
        holders: Box<Holders>,
    },
    /// It has more than one clone. Nothing has changed.
    HasClones {
        /// The volume.
        lvol: Lvol,
        /// Names of the clones.
        clones: Vec<String>,
    },
    /// There is no such volume (any more).
    NotFound {
        /// Which one was meant.
        lvol: Lvol,
    },
    /// It is being destroyed, and waits for those who have its bdev open; it will go when they let
    /// go. Only calls with a limit answer so.
    Deleting {
        /// The volume.
        lvol: Lvol,
    },
    /// Its lvstore, or the device beneath, is being let go, and the volume's bdev with it. Nothing
    /// has changed on disk: the volume is there when the lvstore is loaded again, unless it is the
    /// lvstore that is being destroyed.
    StoreClosing {
        /// The volume.
        lvol: Lvol,
    },
    /// The device failed. Nothing has changed: the volume's bdev and what stands on it were not
    /// touched.
    Io {
        /// The volume.
        lvol: Lvol,
        /// What went wrong.
        source: Error,
    },
    /// There was no memory for it. Nothing has changed.
    NoMemory {
        /// The volume.
        lvol: Lvol,
        /// What went wrong.
        source: Error,
    },
    /// Another error. Nothing has changed.
    Failed {
        /// The volume.
        lvol: Lvol,
        /// What went wrong.
        source: Error,
    },
    /// The error is real, and the volume has disappeared from memory all the same; it is still on
    /// disk. Only an SPDK without the patches does that.
    Vanished {
        /// Which one was meant. It can be found again when the lvstore has been loaded anew.
        lvol: Lvol,
        /// What went wrong.
        source: Error,
    },
}

impl DestroyError {
    /// The volume.
    pub fn lvol(&self) -> &Lvol {
        match self {
            Self::Busy { lvol, .. }
            | Self::HasClones { lvol, .. }
            | Self::NotFound { lvol }
            | Self::Deleting { lvol }
            | Self::StoreClosing { lvol }
            | Self::Io { lvol, .. }
            | Self::NoMemory { lvol, .. }
            | Self::Failed { lvol, .. }
            | Self::Vanished { lvol, .. } => lvol,
        }
    }

    /// The volume's handle, to go on with.
    pub fn into_lvol(self) -> Lvol {
        self.lvol().clone()
    }

    /// Who holds the volume, if that is the reason.
    pub fn holders(&self) -> Option<&Holders> {
        match self {
            Self::Busy { holders, .. } => Some(holders),
            _ => None,
        }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } | Self::StoreClosing { .. } => ErrorKind::Busy,
            Self::Deleting { .. } => ErrorKind::TimedOut,
            Self::HasClones { .. } => ErrorKind::PermissionDenied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Io { source, .. }
            | Self::NoMemory { source, .. }
            | Self::Failed { source, .. }
            | Self::Vanished { source, .. } => source.kind(),
        }
    }
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WHAT} {}: ", self.lvol())?;
        match self {
            Self::Busy { holders, .. } => write!(f, "it is kept whole, because it is busy ({holders})"),
            Self::HasClones { clones, .. } => write!(
                f,
                "it is kept whole, because it has {} clones ({}); destroy or inflate all but one first",
                clones.len(),
                clones.join(", ")
            ),
            Self::NotFound { .. } => f.write_str("the logical volume does not exist"),
            Self::Deleting { .. } => {
                f.write_str("it is being destroyed, and goes when those who have it open close it")
            }
            Self::StoreClosing { .. } => f.write_str("its lvstore, or the device beneath, is being let go"),
            Self::Io { source, .. } | Self::NoMemory { source, .. } | Self::Failed { source, .. } => {
                write!(f, "it is kept whole: {source}")
            }
            Self::Vanished { source, .. } => write!(
                f,
                "{source}, but this SPDK, which lacks the patches, has dropped the volume from memory; \
                 it is still on disk, and is back when the lvstore is loaded again"
            ),
        }
    }
}

impl std::error::Error for DestroyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. }
            | Self::NoMemory { source, .. }
            | Self::Failed { source, .. }
            | Self::Vanished { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<DestroyError> for Error {
    fn from(error: DestroyError) -> Self {
        let device = error.lvol().to_string();
        match error {
            DestroyError::Io { source, .. }
            | DestroyError::NoMemory { source, .. }
            | DestroyError::Failed { source, .. } => source,
            other => Error::new(other.kind(), WHAT, device, other.to_string()),
        }
    }
}

impl Lvol {
    /// Destroys the volume: it is gone afterwards, from memory and from disk, or it is whole.
    ///
    /// It is deleted on disk first, which can fail and then has changed nothing. After that the
    /// delete is certain, also if there is a crash, and all I/O to the volume fails.
    ///
    /// A volume that is exported or open otherwise is no obstacle: its bdev tells those who have
    /// it open that it is going, and the call waits until they have let go. (SPDK's NVMe-oF
    /// target does at once.) A snapshot with one clone is merged into the clone.
    ///
    /// # Errors
    /// See [`DestroyError`]; it gives the handle back.
    #[doc(alias = "vbdev_lvol_destroy")]
    #[doc(alias = "bdev_lvol_delete")]
    pub async fn destroy(self) -> Result<(), DestroyError> {
        let lvol = self.clone();
        let answer = on_metadata_thread(move || async move { Ok(destroy(lvol).await) }).await;
        match answer {
            Ok(result) => result,
            Err(source) => Err(DestroyError::Failed { lvol: self, source }),
        }
    }
}

type Answer = (c_int, Option<Holders>);

async fn destroy(lvol: Lvol) -> Result<(), DestroyError> {
    let Ok(raw) = lookup::find_lvol(WHAT, &lvol) else {
        return Err(DestroyError::NotFound { lvol });
    };
    // If the future is dropped C goes on, and the volume is destroyed or kept all the same.
    let ((rc, holders), ()) = op::start((), op::discard::<Answer, ()>, |_: &mut (), cb_arg| {
        // SAFETY: the lvol was found in this very step, on the metadata thread. The function
        // calls back exactly once.
        unsafe { spdk_sys::shim_lvol_destroy(raw.as_ptr(), Some(destroyed), cb_arg) };
        Submitted::Pending
    })
    .await;
    if rc == 0 {
        return Ok(());
    }
    let source = Error::from_errno(WHAT, lvol.to_string(), rc);
    if lookup::find_lvol(WHAT, &lvol).is_err() {
        return Err(match source.kind() {
            ErrorKind::NotFound => DestroyError::NotFound { lvol },
            _ => DestroyError::Vanished { lvol, source },
        });
    }
    Err(kept(lvol, source, holders))
}

/// Why a volume is still there.
fn kept(lvol: Lvol, source: Error, holders: Option<Holders>) -> DestroyError {
    match (holders, source.kind()) {
        (Some(holders), ErrorKind::PermissionDenied) => DestroyError::HasClones {
            lvol,
            clones: holders.clones,
        },
        (Some(holders), _) if holders.operation.as_deref() == Some("remove") => {
            DestroyError::StoreClosing { lvol }
        }
        (Some(holders), _) => DestroyError::Busy {
            lvol,
            holders: Box::new(holders),
        },
        (None, ErrorKind::Io) => DestroyError::Io { lvol, source },
        (None, ErrorKind::NoMemory) => DestroyError::NoMemory { lvol, source },
        (None, _) => DestroyError::Failed { lvol, source },
    }
}

unsafe extern "C" fn destroyed(cb_arg: *mut c_void, rc: c_int, busy: *const shim_lvol_busy) {
    guard::ffi((), || {
        // SAFETY: null, or valid during this call.
        let holders = unsafe { busy.as_ref() }.map(|busy| {
            // SAFETY: its strings are null or C strings, valid during this call; `clones` has
            // `num_clones` of them.
            unsafe {
                let mut clones = Vec::with_capacity(busy.num_clones as usize);
                for i in 0..busy.num_clones as usize {
                    let name = CStr::from_ptr(*busy.clones.add(i));
                    clones.push(name.to_string_lossy().into_owned());
                }
                Holders {
                    operation: lookup::text_of(busy.operation),
                    holder: lookup::text_of(busy.holder),
                    open_refs: busy.open_refs,
                    clones,
                }
            }
        });
        // SAFETY: C passes on the cb_arg of `start` above, once; the types are those.
        unsafe { op::complete::<Answer, ()>(cb_arg, (rc, holders)) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvol::{LvolStore, Uuid};

    fn lvol() -> Lvol {
        let store = LvolStore::identity(Uuid::nil(), "lvs".into());
        Lvol::identity(store, Uuid::nil(), "backup".into())
    }

    #[test]
    fn the_error_says_who_and_that_nothing_changed() {
        let holders = Holders {
            operation: Some("checksum".into()),
            holder: Some("backup".into()),
            open_refs: 1,
            clones: vec!["vol".into()],
        };
        let error = DestroyError::Busy {
            lvol: lvol(),
            holders: holders.into(),
        };
        assert_eq!(
            error.to_string(),
            "destroy lvol lvs/backup: it is kept whole, because it is busy (checksum in progress \
             on backup, open 1 time(s) besides its bdev, clones: vol)"
        );
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(error.into_lvol(), lvol());
        assert_eq!(Holders::default().to_string(), "unknown");
    }

    #[test]
    fn each_reason_is_told_from_the_others() {
        let kept = |errno, holders| kept(lvol(), Error::from_errno(WHAT, "lvs/backup", errno), holders);
        let by = |operation: &str| {
            let operation = Some(operation.to_owned());
            Some(Holders {
                operation,
                ..Holders::default()
            })
        };
        assert!(matches!(kept(libc::EIO, None), DestroyError::Io { .. }));
        assert!(matches!(kept(libc::ENOMEM, None), DestroyError::NoMemory { .. }));
        assert!(matches!(kept(libc::EINVAL, None), DestroyError::Failed { .. }));
        assert!(matches!(
            kept(libc::EBUSY, by("checksum")),
            DestroyError::Busy { .. }
        ));
        assert!(matches!(
            kept(libc::EPERM, by("")),
            DestroyError::HasClones { .. }
        ));
        let closing = kept(libc::EBUSY, by("remove"));
        assert!(matches!(closing, DestroyError::StoreClosing { .. }));
        assert_eq!((closing.kind(), closing.into_lvol()), (ErrorKind::Busy, lvol()));
    }
}
