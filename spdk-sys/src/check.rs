//! Is the library that runs the one that was compiled for?

use std::fmt;

use crate::stamp;

/// The library that was linked is not the one whose headers were compiled against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongSpdk {
    /// The patch level of the headers.
    pub compiled: u32,
    /// The patch level that the library says.
    pub running: u32,
}

impl fmt::Display for WrongSpdk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this program was compiled for SPDK patch level {}, but runs with patch level {}: build it again \
             (cargo clean -p spdk-sys) with one SPDK",
            self.compiled, self.running
        )
    }
}

impl std::error::Error for WrongSpdk {}

/// Compares the patch level of the headers with the library's. Quick; needs no running SPDK.
///
/// # Errors
///
/// They differ: SPDK was exchanged after this crate was compiled.
pub fn check() -> Result<(), WrongSpdk> {
    match running_level() {
        running if running == stamp::PATCHLEVEL => Ok(()),
        running => Err(WrongSpdk {
            compiled: stamp::PATCHLEVEL,
            running,
        }),
    }
}

#[cfg(spdk_patched)]
fn running_level() -> u32 {
    // SAFETY: takes nothing, reads a constant.
    let said = unsafe { crate::bindings::spdk_rs_patchlevel() };
    // SAFETY: a constant integer of the library. Reading it is what makes the linker look for it.
    let linked = unsafe { stamp::LINKED_PATCHLEVEL };
    if said == linked {
        u32::try_from(said).unwrap_or(u32::MAX)
    } else {
        u32::MAX
    }
}

#[cfg(not(spdk_patched))]
fn running_level() -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_library_is_the_one_compiled_for() {
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn the_message_has_both_levels() {
        let text = WrongSpdk {
            compiled: 2,
            running: 1,
        }
        .to_string();
        assert!(text.contains("level 2,") && text.contains("level 1:"), "{text}");
    }
}
