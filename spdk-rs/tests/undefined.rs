//! That `ci/sanitize undefined` sees what C leaves undefined, in SPDK.

#![cfg(spdk_ubsan)]

mod common;

use common::{is_child, run_child};
// It stands for all of SPDK's code: looks into the value before it does anything else.
use spdk_sys::{spdk_json_number_to_int32, spdk_json_val};

#[test]
fn c_reads_a_struct_that_is_not_aligned() {
    if is_child() {
        let memory = [0u64; 8];
        let mut number = 0;
        let value = memory.as_ptr().cast::<spdk_json_val>().wrapping_byte_add(1);
        // SAFETY: none, on purpose. (It is long enough.)
        unsafe { spdk_json_number_to_int32(value, &raw mut number) };
        return;
    }
    let output = run_child("c_reads_a_struct_that_is_not_aligned", &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "nothing was seen");
    assert!(
        text.contains("runtime error: member access within misaligned address"),
        "{text}"
    );
}
