//! The files of a cache: made when the hand reaches them, scanned when the node starts.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use velum_protocol::{
    format::cache_file::{ENTRY_BYTES, HEADER_BYTES, Header, SlotEntry, TABLE_OFFSET, slots_in},
    id::{ClusterId, NodeId},
};

use super::slots::Slots;
use crate::{
    cache::BlockLocation,
    env::{Disk, File, OpenMode},
};

/// Table entries read at a time when a file is scanned: 64 KiB, so that the node's thread is let go in between.
const SCAN_ENTRIES: u32 = 1365;

/// The open files of a cache, by number.
pub(super) struct Files {
    dir: PathBuf,
    disk: Rc<dyn Disk>,
    cluster: ClusterId,
    node: NodeId,
    file_bytes: u64,
    open: Vec<Option<Rc<dyn File>>>,
}

impl Files {
    pub(super) fn new(
        disk: Rc<dyn Disk>,
        dir: PathBuf,
        owner: (ClusterId, NodeId),
        file_bytes: u64,
        count: u32,
    ) -> Self {
        let open = (0..count).map(|_| None).collect();
        Self { dir, disk, cluster: owner.0, node: owner.1, file_bytes, open }
    }

    pub(super) fn slots_per_file(&self) -> u32 {
        slots_in(self.file_bytes)
    }

    pub(super) fn get(&self, number: u32) -> Option<Rc<dyn File>> {
        self.open.get(number as usize).cloned().flatten()
    }

    pub(super) fn put(&mut self, number: u32, file: Rc<dyn File>) {
        if let Some(place) = self.open.get_mut(number as usize) {
            *place = Some(file);
        }
    }

    /// How to make file `number`; separate from doing it, so that nothing is borrowed while the disk works.
    pub(super) fn creation(&self, number: u32) -> Creation {
        Creation {
            disk: Rc::clone(&self.disk),
            path: self.path(number),
            bytes: self.file_bytes,
            header: self.header(number),
        }
    }

    /// Opens what earlier runs left and notes the blocks it holds. What cannot be used is removed.
    pub(super) async fn scan(&mut self, slots: &mut Slots) -> io::Result<()> {
        self.disk.create_dir_all(&self.dir).await?;
        for name in self.disk.list(&self.dir).await? {
            let Some(number) = file_number(&name) else { continue };
            let path = self.dir.join(&name);
            match self.open_file(number, &path).await {
                Some(file) => {
                    scan_file(number, &*file, self.slots_per_file(), slots).await;
                    self.put(number, file);
                }
                None => self.disk.remove(&path).await?,
            }
        }
        slots.seek_empty();
        Ok(())
    }

    /// Opens a file that is what this cache would write.
    async fn open_file(&self, number: u32, path: &Path) -> Option<Rc<dyn File>> {
        if number as usize >= self.open.len() {
            return None;
        }
        let file = self.disk.open(path, OpenMode::ReadWrite).await.ok()?;
        let header = file.read_at(0, HEADER_BYTES).await.ok()?;
        (Header::decode(&header) == Ok(self.header(number))).then_some(file)
    }

    fn header(&self, number: u32) -> Header {
        Header { cluster: self.cluster, node: self.node, file: u64::from(number), slots: self.slots_per_file() }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:05}.cache"))
    }
}

/// A file to be made.
pub(super) struct Creation {
    disk: Rc<dyn Disk>,
    path: PathBuf,
    bytes: u64,
    header: Header,
}

impl Creation {
    /// Makes the file. One of the same name, which could not be opened or was made behind our back, is removed first.
    pub(super) async fn perform(self) -> io::Result<Rc<dyn File>> {
        if let Err(error) = self.disk.remove(&self.path).await
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = self.disk.open(&self.path, OpenMode::CreateNew).await?;
        file.set_size(self.bytes)?;
        file.write_at(0, &self.header.encode())?;
        Ok(file)
    }
}

/// Notes what the table of a file says. An unreadable part of the table is a part without blocks.
async fn scan_file(number: u32, file: &dyn File, slots_per_file: u32, slots: &mut Slots) {
    let mut first = 0;
    while first < slots_per_file {
        let count = SCAN_ENTRIES.min(slots_per_file - first);
        let offset = TABLE_OFFSET + u64::from(first) * ENTRY_BYTES as u64;
        if let Ok(table) = file.read_at(offset, count as usize * ENTRY_BYTES).await {
            let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
            for (slot, bytes) in (first..).zip(entries) {
                if let Some(entry) = SlotEntry::decode(u64::from(number), slot, bytes) {
                    slots.hold(number * slots_per_file + slot, BlockLocation::from(&entry).fingerprint());
                }
            }
        }
        first += count;
    }
}

/// The number in a cache file's name; `None` for other files, which are left alone.
fn file_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".cache")?;
    (digits.len() == 5).then(|| digits.parse().ok())?
}
