//! Where SPDK's memory is.

mod common;

use common::{builder, isolated};
use spdk_rs::buf::DmaBuf;

/// SPDK's own framework parses --base-virtaddr and then forgets it: this fails without the patch.
#[test]
fn memory_lies_where_base_virtaddr_says() {
    isolated("memory_lies_where_base_virtaddr_says", || {
        const BASE: u64 = 0x3000_0000_0000;
        let runtime = builder().base_virtaddr(BASE).build().expect("options");
        let address = runtime
            .run(async { DmaBuf::new(4096).expect("memory").as_ptr() as u64 })
            .expect("it starts");
        // DPDK may go to a higher address if that one is taken, but not to its default, 0x2000_0000_0000.
        assert!((BASE..BASE + (1 << 40)).contains(&address), "{address:#x}");
    });
}
