//! A machine's file system as it stands: names and files, volatile and durable. Pure; no time, no faults.
//!
//! A file's bytes are durable after a sync of the file, its name after a sync of its directory. Changes of one directory
//! reach the medium in their order, so that a crash leaves a prefix of them; changes of two directories are independent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::inode::{Inode, Loss, PAGE, SyncPoint};
use crate::rng::Rng;

/// Names one file, whatever it is called.
pub(super) type InodeId = u64;

/// A change of a directory that its next sync makes durable.
#[derive(Clone, Debug)]
enum NameChange {
    Link { name: PathBuf, inode: InodeId },
    Rename { from: PathBuf, to: PathBuf },
    Unlink { name: PathBuf },
}

/// The file system of one machine.
#[derive(Clone, Debug, Default)]
pub struct Image {
    inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
    names: BTreeMap<PathBuf, InodeId>,
    durable_names: BTreeMap<PathBuf, InodeId>,
    changes: BTreeMap<PathBuf, Vec<NameChange>>,
    dirs: BTreeSet<PathBuf>,
    boots: u64,
}

fn apply(names: &mut BTreeMap<PathBuf, InodeId>, change: &NameChange) {
    match change {
        NameChange::Link { name, inode } => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Unlink { name } => {
            names.remove(name);
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl Image {
    fn change(&mut self, dir: &Path, change: NameChange) {
        apply(&mut self.names, &change);
        self.changes.entry(dir.to_owned()).or_default().push(change);
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<InodeId> {
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let dir = self.parent(path)?;
        self.next_inode += 1;
        let inode = self.next_inode;
        self.inodes.insert(inode, Inode::default());
        self.change(&dir, NameChange::Link { name: path.to_owned(), inode });
        Ok(inode)
    }

    fn parent(&self, path: &Path) -> io::Result<PathBuf> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.dirs.contains(dir) { Ok(dir.to_owned()) } else { Err(not_found(dir)) }
    }

    pub(super) fn create_dir_all(&mut self, dir: &Path) {
        self.dirs.extend(dir.ancestors().map(Path::to_owned));
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        if !self.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let children = self.names.keys().chain(&self.dirs).filter(|path| path.parent() == Some(dir));
        let mut names: Vec<_> =
            children.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.find(from)?;
        let dir = self.parent(to)?;
        self.change(&dir, NameChange::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        let dir = self.parent(path)?;
        self.change(&dir, NameChange::Unlink { name: path.to_owned() });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        if !self.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        for change in self.changes.remove(dir).unwrap_or_default() {
            apply(&mut self.durable_names, &change);
        }
        Ok(())
    }

    fn inode(&self, inode: InodeId) -> &Inode {
        self.inodes.get(&inode).expect("an open file's inode lives until the machine crashes")
    }

    fn inode_mut(&mut self, inode: InodeId) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("an open file's inode lives until the machine crashes")
    }

    pub(super) fn write(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) {
        self.inode_mut(inode).write(offset, bytes);
    }

    pub(super) fn read(&self, inode: InodeId, offset: u64, len: usize) -> Option<Vec<u8>> {
        self.inode(inode).read(offset, len)
    }

    pub(super) fn size(&self, inode: InodeId) -> u64 {
        self.inode(inode).size()
    }

    pub(super) fn set_size(&mut self, inode: InodeId, size: u64) {
        self.inode_mut(inode).set_size(size);
    }

    pub(super) fn sync_point(&self, inode: InodeId) -> SyncPoint {
        self.inode(inode).sync_point()
    }

    pub(super) fn synced(&mut self, inode: InodeId, point: SyncPoint, failed: Option<&Rng>) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.synced(point, failed);
        }
    }

    /// Losses of power so far: each begins another life of the page cache.
    #[must_use]
    pub const fn boots(&self) -> u64 {
        self.boots
    }

    /// Bytes in use by all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.inodes.values().map(Inode::allocated).sum()
    }

    /// The machine lost power: each directory keeps a prefix of its unsynced changes, each file what `loss` says.
    pub fn crash(&mut self, loss: Loss, rng: &Rng) {
        self.boots += 1;
        for (_, changes) in std::mem::take(&mut self.changes) {
            let kept = match loss {
                Loss::KeepAll => changes.len(),
                Loss::LoseAll => 0,
                Loss::Pages | Loss::Torn => rng.below(changes.len() as u64 + 1) as usize,
            };
            for change in &changes[..kept] {
                apply(&mut self.durable_names, change);
            }
        }
        self.names.clone_from(&self.durable_names);
        self.drop_nameless();
        for inode in self.inodes.values_mut() {
            inode.crash(loss, rng);
        }
    }

    /// The process was killed: the page cache stays; files that were removed while open go, unless a crash may still bring
    /// back a name of theirs.
    pub fn drop_nameless(&mut self) {
        let pending = self.changes.values().flatten().filter_map(|change| match change {
            NameChange::Link { inode, .. } => Some(inode),
            NameChange::Rename { .. } | NameChange::Unlink { .. } => None,
        });
        let named: BTreeSet<_> =
            self.names.values().chain(self.durable_names.values()).chain(pending).copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    /// Flips one bit in a file under `dir` that `wanted` picks by name; `false` when there is none.
    pub fn rot(&mut self, dir: &Path, rng: &Rng) -> bool {
        let files: Vec<_> =
            self.names.iter().filter(|(name, _)| name.starts_with(dir)).map(|(_, inode)| *inode).collect();
        !files.is_empty() && self.inode_mut(*rng.pick(&files)).rot(rng)
    }

    /// Flips one bit among those that were written to a file in `dir` named `*.ending`, from the byte `from` of it on, and that
    /// no sync has brought to the medium. `false` when there is none.
    pub fn rot_unsynced(&mut self, (dir, ending): (&Path, &str), from: u64, rng: &Rng) -> bool {
        let is_meant =
            |name: &Path| name.parent() == Some(dir) && name.extension().is_some_and(|found| found == ending);
        let files = self.names.iter().filter(|(name, _)| is_meant(name)).map(|(_, inode)| *inode);
        let places: Vec<_> = files
            .flat_map(|inode| self.inode(inode).unsynced().filter(|at| *at >= from).map(move |at| (inode, at)))
            .collect();
        if places.is_empty() {
            return false;
        }
        let (inode, at) = *rng.pick(&places);
        let byte = self.read(inode, at, 1).expect("what differs is there")[0];
        self.write(inode, at, &[byte ^ 1 << rng.below(8)]);
        true
    }

    /// All files under `dir` vanish, as if an operator had deleted them.
    pub fn remove_all(&mut self, dir: &Path) {
        self.names.retain(|name, _| !name.starts_with(dir));
        self.durable_names.retain(|name, _| !name.starts_with(dir));
        self.changes.retain(|name, _| !name.starts_with(dir));
        self.drop_nameless();
    }

    /// Names and current pages of all files.
    pub fn files(&self) -> impl Iterator<Item = (&Path, impl Iterator<Item = &[u8; PAGE]>)> {
        self.names.iter().map(|(name, inode)| (name.as_path(), self.inode(*inode).pages()))
    }

    /// A file's current contents.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.inode(*self.names.get(path)?);
        inode.read(0, usize::try_from(inode.size()).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::env::disk::SECTOR;

    fn with_file() -> (Image, InodeId) {
        let mut image = Image::default();
        image.create_dir_all(Path::new("/d"));
        let inode = image.create(Path::new("/d/f")).unwrap();
        image.sync_dir(Path::new("/d")).unwrap();
        (image, inode)
    }

    #[test]
    fn synced_bytes_survive_and_later_ones_are_lost() {
        let (mut image, inode) = with_file();
        image.write(inode, 0, b"first");
        let point = image.sync_point(inode);
        image.write(inode, 0, b"later");
        image.synced(inode, point, None);
        assert_eq!(image.read(inode, 0, 5).unwrap(), b"later");
        image.crash(Loss::LoseAll, &Rng::new(1, ""));
        let inode = image.find(Path::new("/d/f")).unwrap();
        assert_eq!(image.read(inode, 0, 5).unwrap(), b"first");
    }

    #[test]
    fn a_name_needs_a_sync_of_its_directory() {
        let (mut image, _) = with_file();
        let inode = image.create(Path::new("/d/g")).unwrap();
        image.write(inode, 0, b"bytes");
        let point = image.sync_point(inode);
        image.synced(inode, point, None);
        image.crash(Loss::LoseAll, &Rng::new(1, ""));
        assert!(image.find(Path::new("/d/f")).is_ok());
        assert!(image.find(Path::new("/d/g")).is_err());
    }

    /// Seed 500069: a file was made and removed, the process killed, and power failed before the directory was synced. The
    /// name came back, and what it named was no more.
    #[test]
    fn a_removed_name_that_a_crash_brings_back_names_its_file() {
        let back = (0..100).filter(|seed| {
            let (mut image, _) = with_file();
            let inode = image.create(Path::new("/d/g")).unwrap();
            image.write(inode, 0, b"bytes");
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            image.remove(Path::new("/d/g")).unwrap();
            image.drop_nameless();
            image.crash(Loss::Pages, &Rng::new(*seed, ""));
            let contents = image.contents(Path::new("/d/g"));
            assert!(contents.as_deref().is_none_or(|bytes| bytes == b"bytes"));
            contents.is_some()
        });
        assert!((10..90).contains(&back.count()));
    }

    #[test]
    fn a_crash_may_tear_a_page_at_sector_bounds_only() {
        let mut torn = 0;
        for seed in 0..200 {
            let (mut image, inode) = with_file();
            image.write(inode, 0, &[1; PAGE]);
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            image.write(inode, 0, &[2; PAGE]);
            image.crash(Loss::Torn, &Rng::new(seed, ""));
            let page = image.contents(Path::new("/d/f")).unwrap();
            let sectors: Vec<_> = page
                .chunks(SECTOR)
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside a sector");
                    sector[0]
                })
                .collect();
            torn += u32::from(sectors.contains(&1) && sectors.contains(&2));
        }
        assert!(torn > 10, "{torn} of 200 crashes tore the page");
    }

    #[test]
    fn only_what_was_not_synced_rots_at_the_end() {
        for seed in 0..50 {
            let (mut image, inode) = with_file();
            let rng = Rng::new(seed, "");
            let rot = |image: &mut Image| image.rot_unsynced((Path::new("/d"), "journal"), 100, &rng);
            image.rename(Path::new("/d/f"), Path::new("/d/f.journal")).unwrap();
            image.write(inode, 0, &[1; 300]);
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            assert!(!rot(&mut image), "all is synced");
            image.write(inode, 50, &[2; 60]);
            image.write(inode, 300, &[2; 10]);
            assert!(rot(&mut image));
            let bytes = image.read(inode, 0, 310).unwrap();
            let changed = bytes.iter().enumerate().filter(|(_, byte)| !matches!(byte, 1 | 2)).map(|(at, _)| at);
            let changed: Vec<_> = changed.collect();
            assert!(matches!(changed[..], [100..110 | 300..310]), "{changed:?}");
        }
    }

    #[test]
    fn a_failed_sync_leaves_pages_clean_and_lost() {
        let lost = (0..100).filter(|seed| {
            let (mut image, inode) = with_file();
            image.set_size(inode, 4096);
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            image.write(inode, 0, b"bytes");
            let point = image.sync_point(inode);
            image.synced(inode, point, Some(&Rng::new(*seed, "")));
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            assert_eq!(image.read(inode, 0, 5).unwrap(), b"bytes", "the page cache still shows them");
            image.crash(Loss::KeepAll, &Rng::new(*seed, ""));
            image.contents(Path::new("/d/f")).unwrap()[..5] != *b"bytes"
        });
        assert!((20..80).contains(&lost.count()));
    }

    #[test]
    fn a_cut_file_grows_back_with_zeros() {
        let (mut image, inode) = with_file();
        image.write(inode, 0, &[7; 6000]);
        image.set_size(inode, 100);
        image.set_size(inode, 6000);
        let bytes = image.read(inode, 0, 6000).unwrap();
        assert!(bytes[..100].iter().all(|byte| *byte == 7) && bytes[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one() {
        for seed in 0..50 {
            let (mut image, inode) = with_file();
            image.write(inode, 0, b"old");
            let point = image.sync_point(inode);
            image.synced(inode, point, None);
            let new = image.create(Path::new("/d/f.new")).unwrap();
            image.write(new, 0, b"new");
            let point = image.sync_point(new);
            image.synced(new, point, None);
            image.rename(Path::new("/d/f.new"), Path::new("/d/f")).unwrap();
            image.crash(Loss::Torn, &Rng::new(seed, ""));
            let contents = image.contents(Path::new("/d/f")).unwrap();
            assert!(contents == b"old" || contents == b"new");
        }
    }
}
