//! `spdk_tgt`: SPDK's storage target, patched.

fn main() {
    println!("spdk_tgt {}", env!("CARGO_PKG_VERSION"));
}
