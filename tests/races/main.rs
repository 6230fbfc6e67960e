//! Deletes that meet something else: another delete, a change, a job, the end of the store, of its device or of the
//! target.
//!
//! Whatever meets: every call is answered, and truly; the target lives on or ends as asked; what is left is whole, is
//! usable, and is the same after a restart. Two calls meet for sure when they come in one packet, or when the disk is
//! slow enough for the first to be under way.

#[path = "../common/mod.rs"]
mod common;

mod end;
mod names;
mod namespaces;
mod stand;
mod store;
mod volume;
