//! Clean blocks on the node's disk, sealed: more than memory holds, and there after a restart.
//!
//! Nothing depends on it. Every block here lies in the clouds too, so damage of any kind is a miss: a file that is deleted,
//! cut, overwritten or swapped while the node runs, a table that lies, a disk that is full. A block is only given out when
//! its seal opens, and the seal is bound to the cluster, the node, the file, the place in it and the block's location.
//! Writes are never synced; after a power loss a table entry may stand beside a slot that was not written, which is one
//! more miss.
//!
//! A fill is queued and done in small batches: slots taken from the hand, blocks sealed on the compute pool, one write per
//! run of adjacent slots and one for their table entries, both behind the guests' thread, then the index. While the queue is full, further fills are
//! dropped; a slow disk costs hits, not memory or latency. After a failed write fills pause for a minute; reads go on.

mod files;
mod index;
mod read;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use velum_protocol::{
    format::{
        bind,
        cache_file::{SLOT_BYTES, SlotEntry, entry_offset, slot_offset},
    },
    id::{BLOCK_LEN, ClusterId, NodeId},
};

use self::{files::Files, slots::Slots};
use super::BlockLocation;
use crate::{
    actor,
    env::{Env, Instant, compute},
    keyring::SealKey,
};

/// Bytes of one file: large enough that 4 GiB are 64 of them, small enough that a fresh node takes little.
const FILE_BYTES: u64 = 64 << 20;

/// Blocks sealed and written at a time: what is lost when the process ends meanwhile, and few enough hops to other threads.
const FILL_BLOCKS: usize = 64;

/// Blocks that wait to be filled in, at most 16 MiB; further ones are dropped.
const QUEUE_BLOCKS_MAX: usize = 4096;

/// How long fills rest after a failed one: the disk is full or broken, and neither passes within a request.
const PAUSE: Duration = Duration::from_secs(60);

/// Where the cache is and how much it may take.
#[derive(Clone, Debug)]
pub struct DiskCacheSettings {
    /// Its directory, which holds nothing else.
    pub dir: PathBuf,
    /// Bytes of all its files; 0 keeps none.
    pub bytes_max: u64,
    /// Whose cache it is.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Clean blocks on disk. Clones share the cache.
#[derive(Clone)]
pub struct DiskCache(Rc<Shared>);

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Blocks given out.
    pub hits: u64,
    /// Blocks asked for and not had.
    pub misses: u64,
    /// Blocks written.
    pub filled: u64,
    /// Fills dropped because the queue was full or fills paused.
    pub dropped: u64,
    /// Blocks that gave way to others.
    pub evicted: u64,
    /// Slots that did not hold what the table said: damage, and traces of an unclean end.
    pub discarded: u64,
    /// Failed writes and files that could not be made; each pauses fills for a minute.
    pub failures: u64,
    /// Blocks held.
    pub blocks: usize,
    /// Bytes of the slots they are in.
    pub bytes: u64,
}

struct Shared {
    env: Env,
    cluster: ClusterId,
    node: NodeId,
    slots: RefCell<Slots>,
    files: RefCell<Files>,
    queue: RefCell<VecDeque<Fill>>,
    filling: Cell<bool>,
    paused_until: Cell<Instant>,
    stats: Cell<DiskStats>,
    slots_per_file: u32,
}

/// A block to be filled in.
struct Fill {
    at: BlockLocation,
    contents: Bytes,
    key: SealKey,
}

impl DiskCache {
    /// Opens the cache and reads its tables, 12 MiB per GiB of cache, in small steps. Never fails: what cannot be read is not there, and
    /// without a usable directory nothing is kept.
    pub async fn open(env: &Env, settings: DiskCacheSettings) -> Self {
        let DiskCacheSettings { dir, bytes_max, cluster, node } = settings;
        let file_bytes = bytes_max.min(FILE_BYTES);
        let count = bytes_max.checked_div(file_bytes).unwrap_or(0);
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(FILES_MAX);
        let mut files = Files::new(Rc::clone(&env.disk), dir, (cluster, node), file_bytes, count);
        let slots_per_file = files.slots_per_file();
        let mut slots = Slots::new(count, slots_per_file);
        let mut stats = DiskStats::default();
        if let Err(_unusable) = files.scan(&mut slots).await {
            stats.failures += 1;
        }
        Self(Rc::new(Shared {
            env: env.clone(),
            cluster,
            node,
            slots: RefCell::new(slots),
            files: RefCell::new(files),
            queue: RefCell::default(),
            filling: Cell::new(false),
            paused_until: Cell::default(),
            stats: Cell::new(stats),
            slots_per_file,
        }))
    }

    /// Whether a block is probably here: what it takes to prefer the disk to a cloud.
    #[must_use]
    pub fn contains(&self, at: &BlockLocation) -> bool {
        self.0.slots.borrow().contains(at.fingerprint())
    }

    /// Queues a block for filling in, sealed under its volume's cache key. A block that is here already, or not of the
    /// length of a block, is ignored.
    pub fn insert(&self, at: BlockLocation, contents: Bytes, key: &SealKey) {
        let shared = &self.0;
        if contents.len() != BLOCK_LEN || shared.slots_per_file == 0 || self.contains(&at) {
            return;
        }
        let mut queue = shared.queue.borrow_mut();
        if queue.len() >= QUEUE_BLOCKS_MAX || shared.env.clock.now() < shared.paused_until.get() {
            shared.count(|stats| stats.dropped += 1);
            return;
        }
        queue.push_back(Fill { at, contents, key: key.clone() });
        if !shared.filling.replace(true) {
            let shared = Rc::clone(shared);
            actor::spawn(async move { shared.fill_all().await });
        }
    }

    /// True when no fill is queued or under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.0.filling.get()
    }

    /// Figures so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let slots = self.0.slots.borrow();
        let bytes = (slots.len() * SLOT_BYTES) as u64;
        DiskStats { evicted: slots.evicted(), blocks: slots.len(), bytes, ..self.0.stats.get() }
    }
}

/// Bounds the slot tables in memory: 4,096 files of 64 MiB are 256 GiB of cache.
const FILES_MAX: u32 = 4096;

impl Shared {
    /// Fills until the queue is empty.
    async fn fill_all(self: Rc<Self>) {
        loop {
            let batch: Vec<Fill> = {
                let mut queue = self.queue.borrow_mut();
                let count = queue.len().min(FILL_BLOCKS);
                queue.drain(..count).collect()
            };
            if batch.is_empty() {
                self.filling.set(false);
                return;
            }
            if self.fill(batch).await.is_err() {
                self.count(|stats| stats.failures += 1);
                self.paused_until.set(self.env.clock.now() + PAUSE);
                let dropped = self.queue.borrow_mut().drain(..).count() as u64;
                self.count(|stats| stats.dropped += dropped);
            }
        }
    }

    /// Fills one batch into slots of one file or, where the hand crosses files, of several.
    async fn fill(&self, batch: Vec<Fill>) -> io::Result<()> {
        let mut batch = VecDeque::from(batch);
        while !batch.is_empty() {
            let number = self.slots.borrow().file_at_hand();
            let file = self.file(number).await?;
            let taken = self.take_slots(number, &mut batch);
            let slots: Vec<u32> = taken.iter().map(|(slot, _)| *slot).collect();
            let fingerprints: Vec<u64> = taken.iter().map(|(_, fill)| fill.at.fingerprint()).collect();
            let entries: Vec<SlotEntry> = taken.iter().map(|(_, fill)| SlotEntry::from(&fill.at)).collect();
            let sealed = self.seal(taken).await;
            let written = self.write(number, &*file, &slots, &entries, &sealed.into()).await;
            let mut all = self.slots.borrow_mut();
            for (slot, fingerprint) in slots.into_iter().zip(fingerprints) {
                if written.is_ok() {
                    all.hold(slot, fingerprint);
                } else {
                    all.release(slot);
                }
            }
            drop(all);
            written?;
        }
        Ok(())
    }

    /// The file of a number, made if there is none.
    async fn file(&self, number: u32) -> io::Result<Rc<dyn crate::env::File>> {
        let existing = self.files.borrow().get(number);
        if let Some(file) = existing {
            return Ok(file);
        }
        let creation = self.files.borrow().creation(number);
        let file = creation.perform().await?;
        self.files.borrow_mut().put(number, Rc::clone(&file));
        Ok(file)
    }

    /// Takes slots for blocks from the front of `batch` while they are in the file `number`.
    fn take_slots(&self, number: u32, batch: &mut VecDeque<Fill>) -> Vec<(u32, Fill)> {
        let mut slots = self.slots.borrow_mut();
        let mut taken = Vec::with_capacity(batch.len());
        while slots.file_at_hand() == number
            && let Some(fill) = batch.pop_front()
        {
            if slots.contains(fill.at.fingerprint()) {
                continue;
            }
            let Some(slot) = slots.take() else {
                batch.push_front(fill);
                break;
            };
            taken.push((slot, fill));
        }
        taken
    }

    /// Seals blocks for their slots, one after the other, on the compute pool.
    async fn seal(&self, taken: Vec<(u32, Fill)>) -> Vec<u8> {
        let jobs: Vec<_> = taken
            .into_iter()
            .map(|(slot, fill)| (self.bind(slot, &fill.at), self.env.entropy.fresh32(), fill))
            .collect();
        compute::call_background(&*self.env.compute, move || {
            let mut sealed = Vec::with_capacity(jobs.len() * SLOT_BYTES);
            for (bind, fresh, fill) in jobs {
                fill.key.seal_into(&fresh, &bind.aad(), &fill.contents, &mut sealed);
            }
            sealed
        })
        .await
    }

    /// Writes sealed blocks and their table entries, runs of adjacent slots at once. The entry comes second, but nothing
    /// rests on that: what a torn pair says is told by the seal.
    async fn write(
        &self,
        number: u32,
        file: &dyn crate::env::File,
        slots: &[u32],
        entries: &[SlotEntry],
        sealed: &Bytes,
    ) -> io::Result<()> {
        let mut from = 0;
        for run in slots.chunk_by(|left, right| left + 1 == *right) {
            let to = from + run.len();
            let first = run.first().map_or(0, |slot| slot % self.slots_per_file);
            let blocks = sealed.slice(from * SLOT_BYTES..to * SLOT_BYTES);
            file.write_behind(slot_offset(self.slots_per_file, first), blocks).await?;
            let table: Vec<u8> = (first..)
                .zip(entries.get(from..to).expect("an entry per slot"))
                .flat_map(|(slot, entry)| entry.encode(u64::from(number), slot))
                .collect();
            file.write_behind(entry_offset(first), table.into()).await?;
            from = to;
        }
        self.count(|stats| stats.filled += slots.len() as u64);
        Ok(())
    }

    fn bind(&self, slot: u32, at: &BlockLocation) -> bind::CacheSlot {
        let (file, within) = (slot / self.slots_per_file, slot % self.slots_per_file);
        bind::CacheSlot {
            cluster: self.cluster,
            node: self.node,
            file: u64::from(file),
            offset: slot_offset(self.slots_per_file, within),
            volume: at.volume,
            incarnation: at.incarnation,
            segment: at.segment,
            frame: at.frame,
            block: at.block,
        }
    }

    fn count(&self, change: impl FnOnce(&mut DiskStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

impl From<&SlotEntry> for BlockLocation {
    fn from(entry: &SlotEntry) -> Self {
        let SlotEntry { volume, incarnation, segment, frame, block } = *entry;
        Self { volume, incarnation, segment, frame, block }
    }
}

impl From<&BlockLocation> for SlotEntry {
    fn from(at: &BlockLocation) -> Self {
        let BlockLocation { volume, incarnation, segment, frame, block } = *at;
        Self { volume, incarnation, segment, frame, block }
    }
}
