//! The examples with logical volumes come to their end: they check what they show.

mod common;
#[allow(dead_code)] // its main
#[path = "../examples/hello_lvol.rs"]
mod hello_lvol;
#[allow(dead_code)] // its main
#[path = "../examples/lvol_backup.rs"]
mod lvol_backup;

use std::fs::File;

use common::lvol::scenario;

#[test]
fn hello() {
    scenario("hello", |disk| async move {
        File::create(&disk)?.set_len(64 << 20)?;
        hello_lvol::hello(disk).await
    });
}

#[test]
fn backup() {
    scenario("backup", |disk| async move {
        File::create(&disk)?.set_len(64 << 20)?;
        lvol_backup::example(disk).await
    });
}
