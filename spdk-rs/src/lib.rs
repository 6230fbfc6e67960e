//! Safe, asynchronous SPDK.
