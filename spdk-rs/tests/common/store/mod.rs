//! A store on a disk that tests rule, and what its volumes should be. For the tests that work on
//! volumes at random (`crash`, `lvol_model`); not part of what all tests share, which is above.

#![allow(dead_code)] // each of them uses its own part of this

pub mod cache;
pub mod disk;
pub mod place;
pub mod volumes;
