//! A small disk that crashes, and an environment around it, for tests of the journal and of consensus.
//!
//! A write that no completed sync covers may be lost, kept or torn at every 512 bytes, in any subset, when the disk loses
//! power. Operations are counted; at a chosen one the disk stops answering, as if the machine were gone.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future};
use velum_node::env::{
    Clock, CloudStore, CloudStoreError, Clouds, Compute, Disk, Entropy, Env, File, Instant, Listener, Local, Network,
    OpenMode, Urgency, WallTime, network::Address,
};
use velum_protocol::id::BootId;

const SECTOR: usize = 512;

/// A small generator; the same seed gives the same run.
pub(crate) struct Rng(Cell<u64>);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }
}

/// How the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Only the process: the page cache outlives it.
    Process,
    /// The machine: every unsynced sector may be old, new or anything written in between.
    Power,
    /// The machine, and nothing unsynced arrives.
    LoseAll,
    /// The machine, but everything unsynced had arrived.
    KeepAll,
}

#[derive(Clone, Default)]
struct Content {
    durable: Vec<u8>,
    /// Unsynced writes, in order. A write that a failed sync dropped is in `cached` alone.
    pending: Vec<(usize, Vec<u8>)>,
    /// What reads see.
    cached: Vec<u8>,
}

impl Content {
    fn write(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        if target.len() < offset + bytes.len() {
            target.resize(offset + bytes.len(), 0);
        }
        target[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, Rc<RefCell<Content>>>,
    /// Names that are durable.
    names: BTreeMap<PathBuf, Rc<RefCell<Content>>>,
}

/// The disk. Cloning it gives another handle to the same disk.
#[derive(Clone)]
pub(crate) struct CrashDisk {
    /// The machine's boot.
    boot: BootId,
    state: Rc<RefCell<State>>,
    operations: Rc<Cell<u64>>,
    /// The disk stops at this operation.
    stop_at: Rc<Cell<u64>>,
    stopped: Rc<tokio::sync::Notify>,
    /// The sync with this number fails.
    pub(crate) fail_sync_at: Rc<Cell<u64>>,
    syncs: Rc<Cell<u64>>,
    reads: Rc<Cell<u64>>,
    pub(crate) fail_writes: Rc<Cell<bool>>,
    /// Reads of this byte of any file fail so many times more.
    pub(crate) fail_reads_of: Rc<Cell<(usize, u64)>>,
    /// Creating files fails, as on a full disk.
    pub(crate) full: Rc<Cell<bool>>,
}

impl CrashDisk {
    pub(crate) fn new() -> Self {
        Self {
            boot: BootId([1; 16]),
            state: Rc::default(),
            operations: Rc::default(),
            stop_at: Rc::new(Cell::new(u64::MAX)),
            stopped: Rc::default(),
            fail_sync_at: Rc::new(Cell::new(u64::MAX)),
            syncs: Rc::default(),
            reads: Rc::default(),
            fail_writes: Rc::default(),
            fail_reads_of: Rc::default(),
            full: Rc::default(),
        }
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations.get()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.get()
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Stops the disk `count` operations from now.
    pub(crate) fn stop_after(&self, count: u64) {
        self.stop_at.set(self.operations.get() + count);
    }

    /// Completes when the disk has stopped.
    pub(crate) fn stopped(&self) -> Rc<tokio::sync::Notify> {
        Rc::clone(&self.stopped)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.operations.get() >= self.stop_at.get()
    }

    /// Counts an operation; false when the machine is gone.
    fn goes_on(&self) -> bool {
        if self.is_stopped() {
            return false;
        }
        self.operations.set(self.operations.get() + 1);
        if self.is_stopped() {
            self.stopped.notify_one();
            return false;
        }
        true
    }

    /// The disk as the next process finds it.
    pub(crate) fn after(&self, crash: Crash, rng: &Rng) -> Self {
        let mut next = Self::new();
        next.boot = match crash {
            Crash::Process => self.boot,
            Crash::Power | Crash::LoseAll | Crash::KeepAll => BootId(self.boot.0.map(|byte| byte.wrapping_add(1))),
        };
        let state = self.state.borrow();
        let names = match crash {
            Crash::Process | Crash::KeepAll => state.files.clone(),
            Crash::LoseAll => state.names.clone(),
            Crash::Power => {
                let mut names = state.names.clone();
                for (path, content) in &state.files {
                    if rng.below(2) == 0 {
                        names.insert(path.clone(), Rc::clone(content));
                    }
                }
                names
            }
        };
        for (path, content) in names {
            let content = content.borrow();
            let survived = match crash {
                Crash::Process => content.clone(),
                Crash::KeepAll => Self::settle(&content, &|versions| Some(versions - 1)),
                Crash::LoseAll => Self::settle(&content, &|_| Some(0)),
                Crash::Power => Self::settle(&content, &|versions| (rng.below(12) != 0).then(|| rng.index(versions))),
            };
            let survived = Rc::new(RefCell::new(survived));
            next.state.borrow_mut().files.insert(path.clone(), Rc::clone(&survived));
            next.state.borrow_mut().names.insert(path, survived);
        }
        next
    }

    /// Chooses for each sector which of its versions is on the disk; `None` leaves garbage where power failed in its middle.
    fn settle(content: &Content, choose: &dyn Fn(usize) -> Option<usize>) -> Content {
        let length = content.pending.iter().map(|(at, bytes)| at + bytes.len()).max().unwrap_or(0);
        let length = length.max(content.durable.len());
        let mut durable = content.durable.clone();
        durable.resize(length.next_multiple_of(SECTOR), 0);
        let mut result = durable.clone();
        let touched: std::collections::BTreeSet<usize> =
            content.pending.iter().flat_map(|(at, bytes)| at / SECTOR..(at + bytes.len()).div_ceil(SECTOR)).collect();
        for sector in touched {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let mut versions = vec![durable[range.clone()].to_vec()];
            for (at, bytes) in &content.pending {
                let (from, to) = ((*at).max(range.start), (at + bytes.len()).min(range.end));
                if from < to {
                    let mut version = versions.last().unwrap().clone();
                    version[from - range.start..to - range.start].copy_from_slice(&bytes[from - at..to - at]);
                    versions.push(version);
                }
            }
            match choose(versions.len()) {
                Some(chosen) => result[range].copy_from_slice(&versions[chosen]),
                None => result[range].fill(0xa7),
            }
        }
        result.truncate(length);
        Content { cached: result.clone(), durable: result, pending: Vec::new() }
    }

    /// Changes the durable bytes of a file at rest.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let state = self.state.borrow();
        let mut content = state.files.get(path).unwrap().borrow_mut();
        let mut bytes = content.cached.clone();
        change(&mut bytes);
        *content = Content { durable: bytes.clone(), cached: bytes, pending: Vec::new() };
    }

    pub(crate) fn remove_file(&self, path: &Path) {
        self.state.borrow_mut().files.remove(path);
        self.state.borrow_mut().names.remove(path);
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.state.borrow().files.keys().cloned().collect()
    }

    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        self.state.borrow().files.get(path).unwrap().borrow().cached.clone()
    }

    /// Everything on the disk, to see that nothing was changed.
    pub(crate) fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.paths().into_iter().map(|path| (path.clone(), self.bytes(&path))).collect()
    }
}

fn forever<T: 'static>() -> Local<T> {
    future::pending().boxed_local()
}

fn now<T: 'static>(value: T) -> Local<T> {
    future::ready(value).boxed_local()
}

impl Disk for CrashDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        if !self.goes_on() {
            return forever();
        }
        let mut state = self.state.borrow_mut();
        let content = match (state.files.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return now(Err(io::ErrorKind::AlreadyExists.into())),
            (Some(content), _) => Rc::clone(content),
            (None, OpenMode::CreateNew) if self.full.get() => return now(Err(io::ErrorKind::StorageFull.into())),
            (None, OpenMode::CreateNew) => {
                let content = Rc::new(RefCell::new(Content::default()));
                state.files.insert(path.to_path_buf(), Rc::clone(&content));
                content
            }
            (None, _) => return now(Err(io::ErrorKind::NotFound.into())),
        };
        let file: Rc<dyn File> = Rc::new(CrashFile { disk: self.clone(), content, generation: Rc::default() });
        now(Ok(file))
    }

    fn list(&self, dir: &Path) -> Local<io::Result<Vec<String>>> {
        if !self.goes_on() {
            return forever();
        }
        let state = self.state.borrow();
        let names = state.files.keys().filter(|path| path.parent() == Some(dir));
        now(Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()))
    }

    fn create_dir_all(&self, _dir: &Path) -> Local<io::Result<()>> {
        if self.goes_on() { now(Ok(())) } else { forever() }
    }

    fn rename(&self, from: &Path, to: &Path) -> Local<io::Result<()>> {
        if !self.goes_on() {
            return forever();
        }
        let mut state = self.state.borrow_mut();
        let Some(content) = state.files.remove(from) else { return now(Err(io::ErrorKind::NotFound.into())) };
        state.files.insert(to.to_path_buf(), content);
        now(Ok(()))
    }

    fn remove(&self, path: &Path) -> Local<io::Result<()>> {
        if !self.goes_on() {
            return forever();
        }
        let removed = self.state.borrow_mut().files.remove(path);
        now(removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn sync_dir(&self, dir: &Path) -> Local<io::Result<()>> {
        if !self.goes_on() {
            return forever();
        }
        let mut state = self.state.borrow_mut();
        let State { files, names } = &mut *state;
        names.retain(|path, _| path.parent() != Some(dir));
        names.extend(
            files.iter().filter(|(path, _)| path.parent() == Some(dir)).map(|(p, c)| (p.clone(), Rc::clone(c))),
        );
        now(Ok(()))
    }

    fn boot(&self) -> Local<io::Result<BootId>> {
        if self.goes_on() { now(Ok(self.boot)) } else { forever() }
    }

    fn lock(&self, _path: PathBuf) -> Local<io::Result<Box<dyn std::any::Any>>> {
        now(Ok(Box::new(())))
    }
}

struct CrashFile {
    disk: CrashDisk,
    content: Rc<RefCell<Content>>,
    generation: Rc<Cell<u64>>,
}

impl File for CrashFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.disk.fail_writes.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if !self.disk.goes_on() {
            // Nobody is left to hear of it.
            return Ok(());
        }
        let offset = usize::try_from(offset).unwrap();
        let mut content = self.content.borrow_mut();
        Content::write(&mut content.cached, offset, bytes);
        content.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>> {
        self.disk.reads.set(self.disk.reads.get() + 1);
        let content = self.content.borrow();
        let offset = usize::try_from(offset).unwrap();
        let (bad, times) = self.disk.fail_reads_of.get();
        if times > 0 && (offset..offset + len).contains(&bad) {
            self.disk.fail_reads_of.set((bad, times - 1));
            return now(Err(io::Error::other("the device did not give it")));
        }
        let bytes = content.cached.get(offset..offset + len).map(Bytes::copy_from_slice);
        now(bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
    }

    fn sync(&self) -> Local<io::Result<()>> {
        if !self.disk.goes_on() {
            return forever();
        }
        let covered = self.content.borrow().pending.len();
        let (disk, content) = (self.disk.clone(), Rc::clone(&self.content));
        self.generation.set(self.generation.get() + 1);
        let turns = 1 + self.generation.get() % 3;
        async move {
            // Takes a while, so that others append meanwhile.
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            if !disk.goes_on() {
                return future::pending().await;
            }
            disk.syncs.set(disk.syncs.get() + 1);
            let mut content = content.borrow_mut();
            let covered = covered.min(content.pending.len());
            let writes: Vec<_> = content.pending.drain(..covered).collect();
            if disk.syncs.get() == disk.fail_sync_at.get() {
                // The kernel forgets that the pages are dirty: reads go on seeing what the disk never got.
                return Err(io::Error::other("the device did not take it"));
            }
            for (offset, bytes) in writes {
                Content::write(&mut content.durable, offset, &bytes);
            }
            Ok(())
        }
        .boxed_local()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.content.borrow().cached.len() as u64)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        let mut content = self.content.borrow_mut();
        let bytes = usize::try_from(bytes).unwrap();
        content.cached.resize(bytes, 0);
        content.durable.resize(bytes, 0);
        Ok(())
    }
}

/// Time that moves when nothing else does (the runtime's clock is paused).
struct TestClock;

impl Clock for TestClock {
    #[allow(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
    fn now(&self) -> Instant {
        thread_local!(static START: tokio::time::Instant = tokio::time::Instant::now());
        let passed = START.with(|start| tokio::time::Instant::now().saturating_duration_since(*start));
        Instant(u64::try_from(passed.as_micros()).unwrap())
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    #[allow(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
    fn sleep(&self, duration: Duration) -> Local<()> {
        tokio::time::sleep(duration).boxed_local()
    }
}

struct TestEntropy(Rng);

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = u8::try_from(self.0.below(256)).unwrap();
        }
    }
}

struct Nothing;

impl Network for Nothing {
    fn listen(&self, _address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        now(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl Clouds for Nothing {
    fn open(&self, _: &str, _: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        Err(CloudStoreError::NotFound)
    }
}

impl Compute for Nothing {
    fn run(&self, _: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        job();
        now(())
    }
}

/// An environment around a disk.
pub(crate) fn env(disk: &CrashDisk, seed: u64) -> Env {
    Env {
        clock: Rc::new(TestClock),
        entropy: Rc::new(TestEntropy(Rng::new(seed))),
        disk: Rc::new(disk.clone()),
        network: Rc::new(Nothing),
        clouds: Rc::new(Nothing),
        compute: Rc::new(Nothing),
    }
}

/// Runs one life of a process: until `work` ends or the disk stops, whichever is first. Dropping the `LocalSet` is the
/// crash. `None` when the disk stopped first.
pub(crate) fn life<T: 'static>(disk: &CrashDisk, work: impl Future<Output = T> + 'static) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let stopped = disk.stopped();
    let local = tokio::task::LocalSet::new();
    let work = local.run_until(async move {
        let work = work.boxed_local();
        let stop = Box::pin(async move { stopped.notified().await });
        match future::select(stop, work).await {
            future::Either::Left(_) => None,
            future::Either::Right((result, _)) => Some(result),
        }
    });
    let result = runtime.block_on(work);
    drop(local);
    result
}
