//! Where SPDK's memory is.

mod common;

use common::{builder, isolated};
use spdk_rs::ErrorKind;
use spdk_rs::buf::DmaBuf;
use spdk_rs::reactor::{cores, numa_node};

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

#[test]
fn memory_of_a_node() {
    isolated("memory_of_a_node", || {
        let ended = builder().build().expect("options").run(async {
            let core = cores().expect("running")[0];
            let node = numa_node(core).expect("running").expect("a reactor's core");
            let buf = DmaBuf::on_node(8192, 4096, node).expect("memory");
            assert_eq!((buf.capacity(), buf.as_ptr() as usize % 4096), (8192, 0));
            assert_eq!(numa_node(1 << 20).expect("running"), None);
            let error = DmaBuf::on_node(4096, 4096, u32::MAX).expect_err("no such node");
            assert_eq!(error.kind(), ErrorKind::NoMemory);
            assert!(error.to_string().contains("on NUMA node 4294967295"), "{error}");
        });
        ended.expect("it starts");
        assert_eq!(numa_node(0).expect_err("stopped").kind(), ErrorKind::NotRunning);
    });
}
