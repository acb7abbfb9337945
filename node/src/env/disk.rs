//! Local files, with the durability of POSIX and no more: a write is in the page cache until a sync of its file, a name
//! is durable after a sync of its directory.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use velum_protocol::id::BootId;

use super::Local;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reads only.
    Read,
    /// Existing file, reads and writes.
    ReadWrite,
    /// A file that must not exist yet; mode 0600.
    CreateNew,
}

/// Local file system.
pub trait Disk {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>>;
    /// Names (not paths) in a directory, sorted. Missing directory: `NotFound`.
    fn list(&self, dir: &Path) -> Local<io::Result<Vec<String>>>;
    /// Makes a directory and its parents (mode 0700); no error when it exists.
    fn create_dir_all(&self, dir: &Path) -> Local<io::Result<()>>;
    /// Renames within one file system, replacing `to`. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> Local<io::Result<()>>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> Local<io::Result<()>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Local<io::Result<()>>;
    /// Takes the exclusive lock of a directory by a lock file in it; held until the value is dropped or the process
    /// ends. `WouldBlock` when another holds it.
    fn lock(&self, path: PathBuf) -> Local<io::Result<Box<dyn std::any::Any>>>;
    /// Names the life of the page cache: another one after whatever may have lost unsynced writes, the same one after a
    /// crash of the process alone.
    fn boot(&self) -> Local<io::Result<BootId>>;
}

/// An open file.
pub trait File {
    /// Writes all of `bytes` at `offset` into the page cache. Synchronous: a copy in memory, no disk I/O is waited for.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Like [`File::write_at`], away from the caller's thread where there is another one: for what nobody waits for, since a file system
    /// that must find room takes its time. Of two writes that are under way at once either may be the first.
    fn write_behind(&self, offset: u64, bytes: Bytes) -> Local<io::Result<()>> {
        let written = self.write_at(offset, &bytes);
        Box::pin(async move { written })
    }
    /// Reads exactly `len` bytes at `offset`; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>>;
    /// Like `fdatasync`: on success everything written before the call is durable, with the length needed to read it.
    /// After an error the file must not be trusted again.
    fn sync(&self) -> Local<io::Result<()>>;
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Grows or cuts the file; new bytes read as zeros.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
}
