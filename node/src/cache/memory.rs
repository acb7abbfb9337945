//! Clean blocks in memory: S3-FIFO within an exact budget of bytes.
//!
//! A new block enters a small queue that takes a tenth of the budget. If it is read again there, it moves to the main
//! queue; if not, it leaves and only a mark of it stays, and a block that comes back while its mark is there enters the
//! main queue at once. So a scan passes through a tenth of the cache and leaves the rest alone. A read only raises a
//! two-bit counter: no list is touched, nothing is locked, every operation is O(1) (eviction amortised, as a counter is at
//! most 3). A hit takes 70 ns, an insertion with eviction 0.9 us, most of it for the copy. The order depends on the calls
//! alone, never on addresses or time.

use std::collections::VecDeque;

use bytes::Bytes;

use super::BlockLocation;
use crate::env::FixedMap;

/// Bytes charged for a block besides its contents: its entry, its index entry, its place in a queue, the mark it leaves,
/// the room that growing tables keep free and what the allocator adds. Measured: 281 bytes of resident memory per block.
const ENTRY_BYTES: u64 = 288;

/// The small queue's part of the budget, as a divisor.
const SMALL_PART: u64 = 10;

/// Reads that are counted per block; one more does not tell more.
const READS_MAX: u8 = 3;

/// Reads in the small queue that show a block is more than passing through. One read is what every fill is followed by.
const READS_TO_STAY: u8 = 2;

/// Clean blocks in memory.
#[derive(Debug, Default)]
pub struct MemoryCache {
    budget_bytes: u64,
    index: FixedMap<BlockLocation, u32>,
    entries: Vec<Entry>,
    /// Entries not in use.
    free: Vec<u32>,
    small: Queue,
    main: Queue,
    ghost: Ghost,
    stats: MemoryStats,
}

#[derive(Debug)]
struct Entry {
    at: BlockLocation,
    contents: Bytes,
    reads: u8,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<u32>,
    bytes: u64,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Blocks asked for and found.
    pub hits: u64,
    /// Blocks asked for and not found.
    pub misses: u64,
    /// Blocks taken in.
    pub inserted: u64,
    /// Blocks dropped for others or for a smaller budget.
    pub evicted: u64,
    /// Bytes held, with what holding them costs.
    pub bytes: u64,
    /// Blocks held.
    pub blocks: usize,
}

impl MemoryCache {
    /// A cache that holds up to `budget_bytes`, the cost of holding them included.
    #[must_use]
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, ..Self::default() }
    }

    /// The block at a location, if it is here.
    pub fn get(&mut self, at: &BlockLocation) -> Option<Bytes> {
        let Some(number) = self.index.get(at) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        let entry = entry_mut(&mut self.entries, *number);
        entry.reads = (entry.reads + 1).min(READS_MAX);
        Some(entry.contents.clone())
    }

    /// Whether a block is here; counts as no read.
    #[must_use]
    pub fn contains(&self, at: &BlockLocation) -> bool {
        self.index.contains_key(at)
    }

    /// Takes a block in, making room by evicting others. The contents are copied: a slice of a larger buffer would keep
    /// all of it alive, and the budget would be a fiction.
    pub fn insert(&mut self, at: BlockLocation, contents: &[u8]) {
        self.insert_owned(at, Bytes::copy_from_slice(contents));
    }

    /// Takes a block in without copying it: `contents` must be a buffer of its own, no slice of a larger one.
    pub fn insert_owned(&mut self, at: BlockLocation, contents: Bytes) {
        let charge = charge(contents.len());
        if charge > self.budget_bytes || self.index.contains_key(&at) {
            return;
        }
        self.make_room(self.budget_bytes - charge);
        let stays = self.ghost.take(&at);
        let number = self.occupy(Entry { at, contents, reads: 0 });
        self.index.insert(at, number);
        let queue = if stays { &mut self.main } else { &mut self.small };
        queue.push(number, charge);
        self.stats.inserted += 1;
    }

    /// Held at most, the cost of holding included.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Changes the budget; a smaller one evicts at once.
    pub fn set_budget(&mut self, budget_bytes: u64) {
        self.budget_bytes = budget_bytes;
        self.make_room(budget_bytes);
        self.ghost.bound(self.marks_max());
    }

    /// Figures so far.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        MemoryStats { bytes: self.bytes(), blocks: self.index.len(), ..self.stats }
    }

    fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    /// Evicts until at most `bytes_max` are held.
    fn make_room(&mut self, bytes_max: u64) {
        while self.bytes() > bytes_max {
            if self.small.bytes > self.budget_bytes / SMALL_PART || self.main.entries.is_empty() {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
    }

    /// Takes the oldest block of the small queue: it moves on or leaves its mark.
    fn evict_small(&mut self) {
        let Some(number) = self.small.entries.pop_front() else { return };
        let marks_max = self.marks_max();
        let entry = entry_mut(&mut self.entries, number);
        let charge = charge(entry.contents.len());
        self.small.bytes -= charge;
        if entry.reads >= READS_TO_STAY {
            entry.reads = 0;
            self.main.push(number, charge);
        } else {
            self.ghost.mark(&entry.at, marks_max);
            self.drop_entry(number);
        }
    }

    /// Takes the oldest block of the main queue: one that was read goes round again with one read less.
    fn evict_main(&mut self) {
        let Some(number) = self.main.entries.pop_front() else { return };
        let entry = entry_mut(&mut self.entries, number);
        if entry.reads > 0 {
            entry.reads -= 1;
            self.main.entries.push_back(number);
        } else {
            self.main.bytes -= charge(entry.contents.len());
            self.drop_entry(number);
        }
    }

    fn occupy(&mut self, entry: Entry) -> u32 {
        if let Some(number) = self.free.pop() {
            *entry_mut(&mut self.entries, number) = entry;
            number
        } else {
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("blocks in memory are counted in 32 bits")
        }
    }

    fn drop_entry(&mut self, number: u32) {
        let entry = entry_mut(&mut self.entries, number);
        entry.contents = Bytes::new();
        self.index.remove(&entry.at);
        self.free.push(number);
        self.stats.evicted += 1;
    }

    /// As many marks as the main queue has room for blocks.
    fn marks_max(&self) -> usize {
        usize::try_from(self.budget_bytes / charge(4096)).unwrap_or(usize::MAX)
    }
}

impl Queue {
    fn push(&mut self, number: u32, charge: u64) {
        self.entries.push_back(number);
        self.bytes += charge;
    }
}

const fn charge(contents_len: usize) -> u64 {
    contents_len as u64 + ENTRY_BYTES
}

fn entry_mut(entries: &mut [Entry], number: u32) -> &mut Entry {
    entries.get_mut(number as usize).expect("queues and index hold numbers of entries")
}

/// Marks of blocks that left the small queue, oldest first. Hashes stand for the blocks: a false mark costs nothing but a
/// better place than deserved.
#[derive(Debug, Default)]
struct Ghost {
    order: VecDeque<(u64, u32)>,
    /// The mark's ticket: a mark taken and set anew has another one, so that its older place in `order` means nothing.
    marks: FixedMap<u64, u32>,
    ticket: u32,
}

impl Ghost {
    fn mark(&mut self, at: &BlockLocation, marks_max: usize) {
        self.ticket = self.ticket.wrapping_add(1);
        let hash = at.fingerprint();
        self.marks.insert(hash, self.ticket);
        self.order.push_back((hash, self.ticket));
        self.bound(marks_max);
    }

    /// Whether a block is marked; the mark is gone then.
    fn take(&mut self, at: &BlockLocation) -> bool {
        self.marks.remove(&at.fingerprint()).is_some()
    }

    fn bound(&mut self, marks_max: usize) {
        while self.order.len() > marks_max {
            let Some((hash, ticket)) = self.order.pop_front() else { return };
            if self.marks.get(&hash) == Some(&ticket) {
                self.marks.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;
    use velum_protocol::id::{Incarnation, ObjectNumber, VolumeId};

    use super::*;

    fn at(number: u64) -> BlockLocation {
        BlockLocation {
            volume: VolumeId([3; 16]),
            incarnation: Incarnation(1),
            segment: ObjectNumber(number / 64),
            frame: u32::try_from(number % 64).unwrap(),
            block: 0,
        }
    }

    fn contents(number: u64) -> Vec<u8> {
        let mut contents = vec![0; 4096];
        contents[..8].copy_from_slice(&number.to_le_bytes());
        contents
    }

    fn room_for(blocks: u64) -> u64 {
        blocks * charge(4096)
    }

    /// Reads through the cache; true for a hit.
    fn read(cache: &mut MemoryCache, number: u64) -> bool {
        match cache.get(&at(number)) {
            Some(found) => {
                assert_eq!(found, contents(number));
                true
            }
            None => {
                cache.insert(at(number), &contents(number));
                false
            }
        }
    }

    fn read_all(cache: &mut MemoryCache, numbers: Range<u64>) {
        for number in numbers {
            read(cache, number);
        }
    }

    #[test]
    fn a_block_taken_in_is_found() {
        let mut cache = MemoryCache::new(room_for(4));
        cache.insert(at(1), &contents(1));
        assert_eq!(cache.get(&at(1)).unwrap(), contents(1));
        assert_eq!(cache.get(&at(2)), None);
        assert_eq!((cache.stats().hits, cache.stats().misses), (1, 1));
    }

    #[test]
    fn volumes_with_equal_segment_numbers_do_not_meet() {
        let mut cache = MemoryCache::new(room_for(4));
        let other = BlockLocation { volume: VolumeId([4; 16]), ..at(1) };
        cache.insert(at(1), &contents(1));
        assert_eq!(cache.get(&other), None);
    }

    #[test]
    fn the_budget_is_exact_and_counts_what_holding_costs() {
        let mut cache = MemoryCache::new(room_for(100));
        for number in 0..1000 {
            cache.insert(at(number), &contents(number));
            assert!(cache.stats().bytes <= room_for(100));
        }
        assert_eq!(cache.stats().blocks, 100);
        cache.set_budget(room_for(10) + 1);
        assert_eq!(cache.stats().blocks, 10);
        cache.set_budget(0);
        assert_eq!((cache.stats().blocks, cache.stats().bytes), (0, 0));
        cache.insert(at(1), &contents(1));
        assert!(!cache.contains(&at(1)));
    }

    #[test]
    fn a_slice_of_a_large_buffer_does_not_keep_the_buffer() {
        let buffer = Bytes::from(vec![7; 1 << 20]);
        let mut cache = MemoryCache::new(room_for(4));
        cache.insert(at(1), &buffer.slice(4096..8192));
        assert!(buffer.try_into_mut().is_ok(), "the cache holds no reference to the buffer");
    }

    #[test]
    fn a_scan_leaves_the_working_set_alone() {
        let mut cache = MemoryCache::new(room_for(1000));
        for _ in 0..4 {
            read_all(&mut cache, 0..800);
        }
        read_all(&mut cache, 10_000..30_000);
        let kept = (0..800).filter(|number| cache.contains(&at(*number))).count();
        assert!(kept >= 790, "{kept} of 800 blocks of the working set outlive a scan of 20,000");
    }

    #[test]
    fn a_block_that_comes_back_soon_stays() {
        let mut cache = MemoryCache::new(room_for(100));
        read_all(&mut cache, 0..150);
        assert!(!cache.contains(&at(5)), "it has left through the small queue");
        read(&mut cache, 5);
        read_all(&mut cache, 1000..1500);
        assert!(cache.contains(&at(5)), "its mark brought it into the main queue");
    }

    #[test]
    fn equal_calls_leave_equal_caches() {
        let run = || {
            let mut cache = MemoryCache::new(room_for(50));
            let mut state = 1_u64;
            let mut hits = Vec::new();
            for _ in 0..5000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                hits.push(read(&mut cache, (state >> 33) % 120));
            }
            (hits, cache.stats())
        };
        assert_eq!(run(), run());
    }

    proptest! {
        #[test]
        fn any_calls_keep_the_accounts(calls in prop::collection::vec((0_u64..60, 0_u8..12), 1..400)) {
            let mut cache = MemoryCache::new(room_for(20));
            for (number, call) in calls {
                match call {
                    0 => cache.set_budget(room_for(number / 2)),
                    1..8 => read_all(&mut cache, number..number + 1),
                    _ => cache.insert(at(number), &contents(number)),
                }
                let listed = cache.small.entries.len() + cache.main.entries.len();
                prop_assert_eq!(listed, cache.index.len());
                prop_assert_eq!(listed + cache.free.len(), cache.entries.len());
                prop_assert_eq!(cache.bytes(), room_for(listed as u64));
                prop_assert!(cache.bytes() <= cache.budget_bytes);
                prop_assert!(cache.ghost.order.len() <= cache.marks_max());
                prop_assert!(cache.ghost.marks.len() <= cache.ghost.order.len());
            }
        }
    }
}
