//! Raw bindings to SPDK.

mod bindings {
    // Made by a machine from C headers: C's names, no documentation, no SAFETY comments.
    #![allow(
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        missing_docs,
        unnecessary_transmutes,
        clippy::all,
        clippy::missing_safety_doc,
        clippy::undocumented_unsafe_blocks
    )]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
