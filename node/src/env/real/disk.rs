//! Local files.
//!
//! Writes and size changes are done at once, for they only fill the page cache. Reads are tried at once without waiting
//! (`RWF_NOWAIT`) and go to a thread when the page cache does not hold the bytes. Syncs have threads of their own, so that
//! none waits behind a read, and so have writes that nobody waits for.

use std::{
    any::Any,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::FlockOperation,
    io::{Errno, ReadWriteFlags},
};

use velum_protocol::id::BootId;

use super::{pool::Pool, priority};
use crate::env::{Disk, File, Local, OpenMode};

/// Where Linux says which boot this is: a random UUID, drawn anew whenever the kernel starts.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Threads for reads that miss the page cache and for operations on names.
const IO_THREADS: usize = 4;
/// Threads for syncs: the journal's must not wait for the cache's.
const SYNC_THREADS: usize = 2;
/// Threads for writes that nobody waits for.
const BEHIND_THREADS: usize = 1;
/// Operations waiting for a thread.
const JOBS_MAX: usize = 1024;

pub(super) struct RealDisk {
    io: Rc<Pool>,
    sync: Rc<Pool>,
    behind: Rc<Pool>,
}

impl RealDisk {
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self {
            io: Rc::new(Pool::start("disk", IO_THREADS, JOBS_MAX, || ())?),
            sync: Rc::new(Pool::start("sync", SYNC_THREADS, JOBS_MAX, || ())?),
            behind: Rc::new(Pool::start("behind", BEHIND_THREADS, JOBS_MAX, priority::yield_to_guests)?),
        })
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        let path = path.to_owned();
        let opened = self.io.call(move || open(&path, mode));
        let (io, sync, behind) = (Rc::clone(&self.io), Rc::clone(&self.sync), Rc::clone(&self.behind));
        Box::pin(async move {
            let file: Rc<dyn File> = Rc::new(RealFile { file: Arc::new(opened.await?), io, sync, behind });
            Ok(file)
        })
    }

    fn list(&self, dir: &Path) -> Local<io::Result<Vec<String>>> {
        let dir = dir.to_owned();
        self.io.call(move || {
            let mut names = fs::read_dir(dir)?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            Ok(names)
        })
    }

    fn create_dir_all(&self, dir: &Path) -> Local<io::Result<()>> {
        let dir = dir.to_owned();
        self.io.call(move || DirBuilder::new().recursive(true).mode(0o700).create(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> Local<io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.io.call(move || fs::rename(from, to))
    }

    fn remove(&self, path: &Path) -> Local<io::Result<()>> {
        let path = path.to_owned();
        self.io.call(move || fs::remove_file(path))
    }

    fn sync_dir(&self, dir: &Path) -> Local<io::Result<()>> {
        let dir = dir.to_owned();
        self.sync.call(move || OpenOptions::new().read(true).open(dir)?.sync_all())
    }

    fn lock(&self, path: PathBuf) -> Local<io::Result<Box<dyn Any>>> {
        let locked = self.io.call(move || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            // The lock goes with the open file: also when the process is killed.
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            io::Result::Ok(file)
        });
        Box::pin(async move {
            let held: Box<dyn Any> = Box::new(locked.await?);
            Ok(held)
        })
    }

    fn boot(&self) -> Local<io::Result<BootId>> {
        self.io.call(|| parse_boot(&fs::read_to_string(BOOT_ID)?).ok_or_else(|| io::ErrorKind::InvalidData.into()))
    }
}

/// The UUID that a boot is named by: 32 digits, with hyphens between.
fn parse_boot(text: &str) -> Option<BootId> {
    let digits: String = text.trim_end().chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(BootId(number.to_be_bytes()))
}

fn open(path: &Path, mode: OpenMode) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    match mode {
        OpenMode::Read => options.read(true),
        OpenMode::ReadWrite => options.read(true).write(true),
        OpenMode::CreateNew => options.read(true).write(true).create_new(true).mode(0o600),
    };
    let file = options.open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

struct RealFile {
    file: Arc<fs::File>,
    io: Rc<Pool>,
    sync: Rc<Pool>,
    behind: Rc<Pool>,
}

impl File for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_behind(&self, offset: u64, bytes: Bytes) -> Local<io::Result<()>> {
        let file = Arc::clone(&self.file);
        self.behind.call(move || file.write_all_at(&bytes, offset))
    }

    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>> {
        if let Some(bytes) = read_cached(&self.file, offset, len) {
            return Box::pin(async move { Ok(bytes) });
        }
        let file = Arc::clone(&self.file);
        self.io.call(move || {
            // A length that only the caller vouches for must not become memory before the file is known to be as long.
            let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
            if end.is_none_or(|end| file.metadata().is_ok_and(|metadata| metadata.len() < end)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(Bytes::from(buffer))
        })
    }

    fn sync(&self) -> Local<io::Result<()>> {
        let file = Arc::clone(&self.file);
        self.sync.call(move || file.sync_data())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// Longest read that is tried on the node's thread; copying more would hold up the data path.
const CACHED_READ_BYTES_MAX: usize = 256 << 10;

/// Reads what the page cache holds, without waiting; `None` when it does not hold all of it, or on any error (the thread
/// that tries again will report it).
fn read_cached(file: &fs::File, offset: u64, len: usize) -> Option<Bytes> {
    // `preadv2` takes an offset of all ones for "where the file stands".
    let within = |end: u64| i64::try_from(end).is_ok();
    if len > CACHED_READ_BYTES_MAX || !offset.checked_add(u64::try_from(len).ok()?).is_some_and(within) {
        return None;
    }
    let mut buffer = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let at = offset.checked_add(u64::try_from(filled).ok()?)?;
        let (_, rest) = buffer.split_at_mut(filled);
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(rest)], at, ReadWriteFlags::NOWAIT) {
            Ok(0) => return None,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(Bytes::from(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_read_as_the_kernel_writes_it() {
        let boot = parse_boot("00010203-0405-0607-0809-0a0b0c0d0e0f\n");
        assert_eq!(boot, Some(BootId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])));
        for wrong in ["", "00010203-0405-0607-0809-0a0b0c0d0e", "00010203-0405-0607-0809-0a0b0c0d0e0g"] {
            assert_eq!(parse_boot(wrong), None, "{wrong}");
        }
    }
}
