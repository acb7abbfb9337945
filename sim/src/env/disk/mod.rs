//! A node's disk: the image of its machine seen through one life of its process, with the faults that the plan asks for.
//!
//! Every call counts as one I/O, so that a plan can crash the process, or cut the machine's power, at any of them.

mod image;
mod inode;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use velum_node::env::{Disk, File, Local, OpenMode};

use velum_protocol::id::{BootId, Hash};

pub use image::Image;
pub use inode::{Loss, PAGE, SECTOR};

use crate::{
    rng::Rng,
    runtime::{Life, Sim, sleep},
    trace::checksum,
};
use image::InodeId;

/// Sees every byte written to a disk.
pub type WriteWitness = Rc<dyn Fn(&Path, &[u8])>;

/// What goes wrong with a disk, and how fast it is. The plan changes these while the node runs.
#[derive(Debug)]
pub struct DiskFaults {
    /// A sync takes one to this many milliseconds.
    pub sync_ms_max: Cell<u64>,
    /// Syncs in a million that take a hundred times as long.
    pub slow_sync_ppm: Cell<u32>,
    /// Reads in a million that fail.
    pub read_error_ppm: Cell<u32>,
    /// The sync after this many more fails; `None` for never.
    pub sync_error_after: Cell<Option<u64>>,
    /// The write after this many more fails; `None` for never.
    pub write_error_after: Cell<Option<u64>>,
    /// Bytes that fit.
    pub capacity_bytes: Cell<u64>,
    /// The process ends at the I/O after this many more; `None` for never.
    pub end_after: Cell<Option<u64>>,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self {
            sync_ms_max: Cell::new(3),
            slow_sync_ppm: Cell::new(0),
            read_error_ppm: Cell::new(0),
            sync_error_after: Cell::new(None),
            write_error_after: Cell::new(None),
            capacity_bytes: Cell::new(u64::MAX),
            end_after: Cell::new(None),
        }
    }
}

/// The disk of one machine; it outlives the processes that use it.
#[derive(Default)]
pub struct Medium {
    /// Names and files.
    pub image: RefCell<Image>,
    /// What goes wrong.
    pub faults: DiskFaults,
    locks: RefCell<BTreeMap<PathBuf, Rc<Life>>>,
    witness: RefCell<Option<WriteWitness>>,
}

impl Medium {
    /// Shows every byte written from now on to `witness`.
    pub fn watch(&self, witness: WriteWitness) {
        *self.witness.borrow_mut() = Some(witness);
    }
}

/// True when a countdown has reached its end, which takes it away.
fn due(countdown: &Cell<Option<u64>>) -> bool {
    match countdown.get() {
        None => false,
        Some(0) => {
            countdown.set(None);
            true
        }
        Some(more) => {
            countdown.set(Some(more - 1));
            false
        }
    }
}

/// One life's view of a disk.
#[derive(Clone)]
pub struct NodeDisk {
    sim: Rc<Sim>,
    place: Rc<str>,
    medium: Rc<Medium>,
    life: Rc<Life>,
    rng: Rc<Rng>,
}

impl NodeDisk {
    /// The disk `medium` as the process of `life` sees it; `place` names it in the trace.
    #[must_use]
    pub fn new(sim: Rc<Sim>, place: Rc<str>, medium: Rc<Medium>, life: Rc<Life>, rng: Rc<Rng>) -> Self {
        Self { sim, place, medium, life, rng }
    }

    /// Counts an I/O; an error when the process has ended, perhaps at this very one.
    fn io(&self, kind: &'static str, numbers: &[u64]) -> io::Result<()> {
        if !self.life.is_alive() {
            return Err(io::Error::other("the process has ended"));
        }
        self.sim.event(kind, &self.place, numbers);
        self.sim.count("disk i/o", 1);
        if due(&self.medium.faults.end_after) {
            self.sim.event("end at i/o", &self.place, &[]);
            self.sim.count("ends at an i/o", 1);
            self.life.end();
        }
        Ok(())
    }

    /// Waits like the disk would; for ever when the process has ended.
    async fn wait(&self, ms: u64) {
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        if !self.life.is_alive() {
            std::future::pending::<()>().await;
        }
    }

    fn read_ms(&self) -> u64 {
        u64::from(self.rng.chance(100_000))
    }

    fn room_for(&self, bytes: u64) -> io::Result<()> {
        let used = self.medium.image.borrow().used_bytes();
        if used.saturating_add(bytes) > self.medium.faults.capacity_bytes.get() {
            self.sim.count("disk full", 1);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// A change of names, done after a moment.
    fn change<T: 'static>(
        &self,
        kind: &'static str,
        act: impl FnOnce(&Self) -> io::Result<T> + 'static,
    ) -> Local<io::Result<T>> {
        let disk = self.clone();
        Box::pin(async move {
            disk.wait(disk.read_ms()).await;
            disk.io(kind, &[])?;
            let done = act(&disk);
            disk.wait(0).await;
            done
        })
    }
}

impl Disk for NodeDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        let path = path.to_owned();
        self.change("open", move |disk| {
            let mut image = disk.medium.image.borrow_mut();
            let inode = match mode {
                OpenMode::Read | OpenMode::ReadWrite => image.find(&path)?,
                OpenMode::CreateNew => image.create(&path)?,
            };
            let file: Rc<dyn File> =
                Rc::new(NodeFile { disk: disk.clone(), inode, path, writable: mode != OpenMode::Read });
            Ok(file)
        })
    }

    fn list(&self, dir: &Path) -> Local<io::Result<Vec<String>>> {
        let dir = dir.to_owned();
        self.change("list", move |disk| disk.medium.image.borrow().list(&dir))
    }

    fn create_dir_all(&self, dir: &Path) -> Local<io::Result<()>> {
        let dir = dir.to_owned();
        self.change("mkdir", move |disk| {
            disk.medium.image.borrow_mut().create_dir_all(&dir);
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Local<io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.change("rename", move |disk| disk.medium.image.borrow_mut().rename(&from, &to))
    }

    fn remove(&self, path: &Path) -> Local<io::Result<()>> {
        let path = path.to_owned();
        self.change("remove", move |disk| disk.medium.image.borrow_mut().remove(&path))
    }

    fn sync_dir(&self, dir: &Path) -> Local<io::Result<()>> {
        let dir = dir.to_owned();
        let disk = self.clone();
        Box::pin(async move {
            disk.io("sync dir", &[])?;
            disk.wait(disk.rng.between(1, disk.medium.faults.sync_ms_max.get().max(1))).await;
            if due(&disk.medium.faults.sync_error_after) {
                disk.sim.count("failed sync", 1);
                return Err(io::Error::other("simulated failure of a directory sync"));
            }
            disk.medium.image.borrow_mut().sync_dir(&dir)
        })
    }

    fn boot(&self) -> Local<io::Result<BootId>> {
        self.change("boot", |disk| {
            // Two machines are never in the same boot.
            let text = format!("{} {}", disk.place, disk.medium.image.borrow().boots());
            let Hash(hash) = velum_protocol::checksum::hash(text.as_bytes());
            Ok(BootId(std::array::from_fn(|place| hash[place])))
        })
    }

    fn lock(&self, path: PathBuf) -> Local<io::Result<Box<dyn std::any::Any>>> {
        self.change("lock", move |disk| {
            let mut locks = disk.medium.locks.borrow_mut();
            if locks.get(&path).is_some_and(|holder| holder.is_alive()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            locks.insert(path.clone(), Rc::clone(&disk.life));
            let lock: Box<dyn std::any::Any> =
                Box::new(Lock { medium: Rc::clone(&disk.medium), path, life: Rc::clone(&disk.life) });
            Ok(lock)
        })
    }
}

/// A held directory lock.
struct Lock {
    medium: Rc<Medium>,
    path: PathBuf,
    life: Rc<Life>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut locks = self.medium.locks.borrow_mut();
        if locks.get(&self.path).is_some_and(|holder| Rc::ptr_eq(holder, &self.life)) {
            locks.remove(&self.path);
        }
    }
}

/// An open file of one life.
struct NodeFile {
    disk: NodeDisk,
    inode: InodeId,
    path: PathBuf,
    writable: bool,
}

impl File for NodeFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let faults = &self.disk.medium.faults;
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened for reading"));
        }
        self.disk.io("write", &[self.inode, offset, bytes.len() as u64, checksum(bytes)])?;
        if due(&faults.write_error_after) {
            self.disk.sim.count("failed write", 1);
            return Err(io::Error::other("simulated failure of a write"));
        }
        if !self.disk.life.is_alive() && self.disk.rng.chance(500_000) {
            // The process ended just before this write; the other half of the time just after it.
            return Err(io::Error::other("the process has ended"));
        }
        self.disk.room_for(0)?;
        self.disk.medium.image.borrow_mut().write(self.inode, offset, bytes);
        if let Some(witness) = &*self.disk.medium.witness.borrow() {
            witness(&self.path, bytes);
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>> {
        let (disk, inode) = (self.disk.clone(), self.inode);
        Box::pin(async move {
            disk.wait(disk.read_ms()).await;
            disk.io("read", &[inode, offset, len as u64])?;
            if disk.rng.chance(disk.medium.faults.read_error_ppm.get()) {
                disk.sim.count("failed read", 1);
                return Err(io::Error::other("simulated failure of a read"));
            }
            let bytes = disk.medium.image.borrow().read(inode, offset, len);
            disk.wait(0).await;
            bytes.map(Bytes::from).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        })
    }

    fn sync(&self) -> Local<io::Result<()>> {
        let (disk, inode) = (self.disk.clone(), self.inode);
        let point = disk.medium.image.borrow().sync_point(inode);
        Box::pin(async move {
            disk.io("sync", &[inode])?;
            let faults = &disk.medium.faults;
            let slow = if disk.rng.chance(faults.slow_sync_ppm.get()) { 100 } else { 1 };
            disk.wait(disk.rng.between(1, faults.sync_ms_max.get().max(1)) * slow).await;
            let failed = due(&faults.sync_error_after);
            disk.medium.image.borrow_mut().synced(inode, point, failed.then_some(&disk.rng));
            if failed {
                disk.sim.count("failed sync", 1);
                disk.sim.event("sync failed", &disk.place, &[inode]);
                return Err(io::Error::other("simulated failure of a sync"));
            }
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.medium.image.borrow().size(self.inode))
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.disk.io("set size", &[self.inode, bytes])?;
        self.disk.room_for(bytes.saturating_sub(self.size()?))?;
        self.disk.medium.image.borrow_mut().set_size(self.inode, bytes);
        Ok(())
    }
}
