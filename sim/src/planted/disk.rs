//! Disks as a node with a bug in its journal, or in its files, would use them.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use velum_node::env::{Clock, Disk, File, Local, OpenMode};
use velum_protocol::{
    format::journal::{RecordHeader, RecordKind, StreamId},
    id::BootId,
    version::{JOURNAL_REACH, JOURNAL_RECORD},
};

use super::Planted;

/// How much too late what should be done before an ack is done.
const TOO_LATE: Duration = Duration::from_millis(60);

/// How much too late raft's records are synced.
const MUCH_TOO_LATE: Duration = Duration::from_millis(1_000);

/// The name under which a snapshot of raft is written, and the one it is put in place under.
const SNAPSHOT_NEW: &str = "snapshot.new";
const SNAPSHOT: &str = "snapshot";

/// How often the journal notes how far it reaches before it is open.
const NOTES_AT_START: u32 = 2;

/// A disk with a bug above it.
pub(super) struct BuggyDisk {
    bug: Planted,
    disk: Rc<dyn Disk>,
    clock: Rc<dyn Clock>,
}

impl BuggyDisk {
    pub(super) fn new(bug: Planted, disk: Rc<dyn Disk>, clock: Rc<dyn Clock>) -> Self {
        Self { bug, disk, clock }
    }
}

impl BuggyDisk {
    /// An empty file in the place of what is there.
    fn open_over(&self, path: PathBuf) -> Local<io::Result<Rc<dyn File>>> {
        let disk = Rc::clone(&self.disk);
        Box::pin(async move {
            match disk.open(&path, OpenMode::ReadWrite).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(&path, OpenMode::CreateNew).await,
                opened => {
                    let file = opened?;
                    file.set_size(0)?;
                    Ok(file)
                }
            }
        })
    }
}

impl Disk for BuggyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        if self.bug == Planted::SnapshotInPlace && path.ends_with(SNAPSHOT_NEW) {
            return self.open_over(path.with_file_name(SNAPSHOT));
        }
        let opened = self.disk.open(path, mode);
        let is_journal = path.components().any(|part| part.as_os_str() == "journal");
        let (bug, clock) = (self.bug, Rc::clone(&self.clock));
        Box::pin(async move {
            let file = opened.await?;
            let buggy = |file| BuggyFile {
                bug,
                file,
                clock,
                late: Rc::default(),
                notes: Cell::new(0),
                is_rafts: Cell::new(false),
            };
            let file: Rc<dyn File> = if is_journal { Rc::new(buggy(file)) } else { file };
            Ok(file)
        })
    }

    fn list(&self, dir: &Path) -> Local<io::Result<Vec<String>>> {
        self.disk.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> Local<io::Result<()>> {
        self.disk.create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Local<io::Result<()>> {
        if self.bug == Planted::SnapshotInPlace && from.ends_with(SNAPSHOT_NEW) {
            return Box::pin(async { Ok(()) });
        }
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Local<io::Result<()>> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Local<io::Result<()>> {
        match self.bug {
            Planted::UnsyncedNames => Box::pin(async { Ok(()) }),
            _ => self.disk.sync_dir(dir),
        }
    }

    fn boot(&self) -> Local<io::Result<BootId>> {
        match self.bug {
            Planted::KeptLineage => Box::pin(async { Ok(BootId([0; 16])) }),
            _ => self.disk.boot(),
        }
    }

    fn lock(&self, path: PathBuf) -> Local<io::Result<Box<dyn Any>>> {
        self.disk.lock(path)
    }
}

/// Writes to come: offset and bytes.
type Late = RefCell<Vec<(u64, Vec<u8>)>>;

/// A journal file with a bug above it.
struct BuggyFile {
    bug: Planted,
    file: Rc<dyn File>,
    clock: Rc<dyn Clock>,
    /// Writes that were acked and are not done.
    late: Rc<Late>,
    /// How often was noted in this file how far the journal reaches.
    notes: Cell<u32>,
    /// The last record written is one of raft's.
    is_rafts: Cell<bool>,
}

fn catch_up(file: &Rc<dyn File>, late: &Late) -> io::Result<()> {
    late.take().into_iter().try_for_each(|(offset, bytes)| file.write_at(offset, &bytes))
}

impl BuggyFile {
    /// Says that all is synced, and syncs it later.
    fn sync_later(&self, wait: Duration) -> Local<io::Result<()>> {
        let (file, sleep) = (Rc::clone(&self.file), self.clock.sleep(wait));
        velum_node::actor::spawn(async move {
            sleep.await;
            drop(file.sync().await);
        });
        Box::pin(async { Ok(()) })
    }
}

impl File for BuggyFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.bug {
            Planted::AckBeforeAppend => {
                self.late.borrow_mut().push((offset, bytes.to_vec()));
                let (file, late, sleep) = (Rc::clone(&self.file), Rc::clone(&self.late), self.clock.sleep(TOO_LATE));
                velum_node::actor::spawn(async move {
                    sleep.await;
                    drop(catch_up(&file, &late));
                });
                Ok(())
            }
            Planted::IgnoredWriteError => {
                drop(self.file.write_at(offset, bytes));
                Ok(())
            }
            Planted::UnnotedWrites if bytes.starts_with(&JOURNAL_REACH.magic) => {
                self.notes.set(self.notes.get() + 1);
                if self.notes.get() > NOTES_AT_START { Ok(()) } else { self.file.write_at(offset, bytes) }
            }
            Planted::ReusedNonce => {
                if let Some(changed) = sealed_again(bytes) {
                    self.file.write_at(offset, &changed)?;
                }
                self.file.write_at(offset, bytes)
            }
            Planted::AppliedBeforeStored => {
                self.is_rafts.set(ends_with_rafts(bytes));
                self.file.write_at(offset, bytes)
            }
            _ => self.file.write_at(offset, bytes),
        }
    }

    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>> {
        self.file.read_at(offset, len)
    }

    fn sync(&self) -> Local<io::Result<()>> {
        if let Err(error) = catch_up(&self.file, &self.late) {
            return Box::pin(async move { Err(error) });
        }
        match self.bug {
            Planted::BarrierWithoutSync => Box::pin(async { Ok(()) }),
            Planted::BarrierBeforeSync => self.sync_later(TOO_LATE),
            Planted::AppliedBeforeStored if self.is_rafts.take() => self.sync_later(MUCH_TOO_LATE),
            Planted::RetriedSync => {
                let file = Rc::clone(&self.file);
                Box::pin(async move {
                    match file.sync().await {
                        Ok(()) => Ok(()),
                        Err(_) => file.sync().await,
                    }
                })
            }
            _ => self.file.sync(),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_size(bytes)
    }
}

/// The same bytes with the last record's ciphertext changed under its nonce.
fn sealed_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let lead = JOURNAL_RECORD.lead();
    let at = bytes.windows(lead.len()).rposition(|window| window == lead)?;
    let mut changed = bytes.to_vec();
    *changed.get_mut(at + velum_protocol::format::record::HEADER_BYTES + 30)? ^= 1;
    Some(changed)
}

/// True when the last of the records that a write begins with is one of raft's.
fn ends_with_rafts(mut bytes: &[u8]) -> bool {
    let mut is_rafts = false;
    while let Ok((header, _)) = RecordHeader::decode(bytes) {
        is_rafts = matches!(header.kind, RecordKind::Stream(StreamId::Raft, _));
        bytes = bytes.get(header.record_bytes() as usize..).unwrap_or_default();
    }
    is_rafts
}
