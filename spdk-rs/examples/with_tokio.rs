//! SPDK beside Tokio: a small server whose requests are answered from a block device.
//!
//! Tokio's threads take the connections; SPDK's reactor, on a core of its own, does the I/O. Each
//! line that a client sends is the number of a block; the answer says what the block begins with.
//! It asks itself for a few blocks, and stops. Needs neither root nor hugepages:
//!
//! ```text
//! cargo run --example with_tokio
//! ```

use std::rc::Rc;

use anyhow::{Context, Result};
use spdk_rs::Runtime;
use spdk_rs::bdev::{self, Channel, Mode};
use spdk_rs::buf::DmaBuf;
use spdk_rs::runtime::Handle;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const BLOCKS: u64 = 4096;
const BLOCK: usize = 4096;

/// A block that somebody wants to know, and where to answer.
type Request = (u64, oneshot::Sender<spdk_rs::Result<u64>>);

fn main() -> Result<()> {
    // SPDK first: starting it blocks.
    let spdk = Runtime::builder()
        .name("with_tokio")
        .no_huge(true)
        .memory_mb(512)
        .build()?
        .spawn()?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        let result = serve_and_ask(&spdk).await;
        spdk.stop().await?;
        result
    })
}

async fn serve_and_ask(spdk: &Handle) -> Result<()> {
    let (requests, inbox) = mpsc::channel(64);
    // The closure goes to SPDK's thread; what it makes there (the channel) never leaves it.
    let device = spdk.spawn(move || device(inbox))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, requests.clone()));
        }
    });
    let mut client = BufReader::new(TcpStream::connect(address).await?);
    for block in [0, 1, 17, BLOCKS - 1, BLOCKS] {
        client.write_all(format!("{block}\n").as_bytes()).await?;
        let mut answer = String::new();
        client.read_line(&mut answer).await?;
        print!("block {block}: {answer}");
    }
    drop(client);
    server.abort();
    // With the last sender of requests gone, the device's task ends.
    device.await?
}

/// On SPDK's thread: makes the device, and reads what is asked for, many at a time.
async fn device(mut requests: mpsc::Receiver<Request>) -> Result<()> {
    let disk = bdev::malloc::create("ram0", BLOCKS, BLOCK as u32)?;
    let descriptor = disk.open(Mode::ReadWrite)?;
    let channel = Rc::new(descriptor.channel()?);
    for block in 0..BLOCKS {
        let mut data = [0; BLOCK];
        data[..8].copy_from_slice(&(block * block).to_le_bytes());
        let (result, _) = channel
            .write(DmaBuf::copy_of(&data)?, block * BLOCK as u64)
            .await
            .into_parts();
        result?;
    }
    let mut readers = Vec::new();
    while let Some((block, answer)) = requests.recv().await {
        let channel = Rc::clone(&channel);
        readers.retain(|reader: &spdk_rs::JoinHandle<()>| !reader.is_finished());
        readers.push(spdk_rs::spawn(async move {
            let _ = answer.send(first_word(&channel, block).await);
        }));
    }
    for reader in readers {
        reader.await?;
    }
    descriptor.close().await?;
    bdev::malloc::delete("ram0").await?;
    Ok(())
}

async fn first_word(channel: &Channel, block: u64) -> spdk_rs::Result<u64> {
    let (result, data) = channel
        .read(DmaBuf::new(BLOCK)?, block * BLOCK as u64)
        .await
        .into_parts();
    result?;
    let mut word = [0; 8];
    word.copy_from_slice(&data.as_slice()[..8]);
    Ok(u64::from_le_bytes(word))
}

/// On one of Tokio's threads.
async fn serve(mut client: TcpStream, requests: mpsc::Sender<Request>) -> Result<()> {
    let (reader, mut writer) = client.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match line.parse() {
            Ok(block) => {
                let (answer, answered) = oneshot::channel();
                requests
                    .send((block, answer))
                    .await
                    .context("the device is gone")?;
                match answered.await? {
                    Ok(word) => word.to_string(),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => format!("{line:?} is no block: {error}"),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}
