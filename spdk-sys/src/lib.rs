//! Raw bindings to SPDK.
