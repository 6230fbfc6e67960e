//! Writes to a block device and reads it back.
//!
//! Makes a block device of the file given (or of a temporary one of 16 MiB), writes a block, and
//! reads it again. Needs neither root nor huge pages:
//!
//! ```text
//! cargo run --example hello_bdev [FILE]
//! ```

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use spdk_rs::Runtime;
use spdk_rs::bdev::{self, Mode};
use spdk_rs::buf::DmaBuf;

fn main() -> Result<()> {
    let temporary = tempfile::NamedTempFile::new()?;
    let file = match std::env::args_os().nth(1) {
        Some(file) => PathBuf::from(file),
        None => {
            temporary.as_file().set_len(16 << 20)?;
            temporary.path().to_owned()
        }
    };
    let runtime = Runtime::builder()
        .name("hello_bdev")
        .no_huge(true)
        .memory_mb(512)
        .build()?;
    runtime.run(hello(file))?
}

async fn hello(file: PathBuf) -> Result<()> {
    let disk = bdev::aio::create("hello", &file, 4096).context("no block device")?;
    println!(
        "{}: {} of {} blocks of {} bytes, on {}",
        disk.name(),
        disk.product(),
        disk.num_blocks(),
        disk.block_size(),
        file.display()
    );

    let descriptor = disk.open(Mode::ReadWrite)?;
    let channel = descriptor.channel()?;

    let mut greeting = b"Hello from spdk-rs!".to_vec();
    greeting.resize(4096, 0);
    // I/O takes the buffer and gives it back, whether it succeeded or not.
    let (result, buf) = channel
        .write(DmaBuf::copy_of(&greeting)?, 8192)
        .await
        .into_parts();
    result?;
    println!("wrote {} bytes at 8192", buf.len());

    let ((), buf) = channel.read(DmaBuf::new(4096)?, 8192).await.ok()?;
    ensure!(
        buf.as_slice() == greeting,
        "what was read is not what was written"
    );
    println!("read: {}", String::from_utf8_lossy(&buf.as_slice()[..19]));

    drop(channel);
    descriptor.close().await?;
    bdev::aio::delete("hello").await?;
    Ok(())
}
