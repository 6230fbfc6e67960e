//! What a store is read from: a file, or a block device of SPDK.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_util::FutureExt;

use crate::bdev::{Bdev, Channel, Descriptor, Mode};
use crate::buf::DmaBuf;
use crate::{Error, ErrorKind, Result};

/// Bytes, in their places. Offsets and lengths are whole pages of 4 KiB.
pub(super) trait Disk {
    /// For messages.
    fn name(&self) -> &str;

    /// In bytes.
    fn size(&self) -> u64;

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// Writes, and waits until it is stored.
    async fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
}

/// A file, or a block device of the system. No SPDK needs to run for it.
pub(super) struct FileDisk {
    file: File,
    name: String,
    size: u64,
}

impl FileDisk {
    pub(super) fn open(what: &'static str, path: &Path, write: bool) -> Result<Self> {
        let name = path.display().to_string();
        let failed =
            |error: std::io::Error| Error::from_errno(what, &name, error.raw_os_error().unwrap_or(libc::EIO));
        let mut file = File::options()
            .read(true)
            .write(write)
            .open(path)
            .map_err(failed)?;
        // (The metadata of a block device say 0.)
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, name, size })
    }
}

impl Disk for FileDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        let read = self.file.read_exact_at(&mut data, offset);
        read.map_err(|error| self.failed("read", offset, len, &error))?;
        Ok(data)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(data, offset);
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|error| self.failed("write", offset, data.len(), &error))
    }
}

impl FileDisk {
    fn failed(&self, what: &'static str, offset: u64, len: usize, error: &std::io::Error) -> Error {
        Error::from_errno(what, &self.name, error.raw_os_error().unwrap_or(libc::EIO))
            .with_detail(format!("{len} bytes at {offset}: {error}"))
    }
}

/// The result of a future that reads files only: it never waits for anything.
pub(super) fn at_once<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let waits = || {
        Err(Error::new(
            ErrorKind::Other,
            "check lvstore",
            "",
            "a file has kept it waiting",
        ))
    };
    future.now_or_never().unwrap_or_else(waits)
}

/// A block device of SPDK.
pub(super) struct BdevDisk {
    channel: Channel,
    descriptor: Descriptor,
    /// Used again and again: everything is read one after the other.
    buf: RefCell<Option<DmaBuf>>,
}

impl BdevDisk {
    pub(super) fn open(bdev: &Bdev, mode: Mode) -> Result<Self> {
        let descriptor = bdev.open(mode)?;
        Ok(Self {
            channel: descriptor.channel()?,
            descriptor,
            buf: RefCell::new(None),
        })
    }

    pub(super) async fn close(self) -> Result<()> {
        drop(self.channel);
        self.descriptor.close().await
    }
}

impl Disk for BdevDisk {
    fn name(&self) -> &str {
        self.descriptor.name()
    }

    fn size(&self) -> u64 {
        self.descriptor.size()
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let buf = match self.buf.take() {
            Some(buf) if buf.capacity() == len => buf,
            _ => DmaBuf::new(len)?,
        };
        let ((), buf) = self.channel.read(buf, offset).await.ok()?;
        let data = buf.as_slice().to_vec();
        self.buf.replace(Some(buf));
        Ok(data)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.channel
            .write(DmaBuf::copy_of(data)?, offset)
            .await
            .into_result()?;
        match self.channel.flush().await {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            flushed => flushed,
        }
    }
}
