//! Reading blocks back: adjacent slots in one read, opened where it holds up the node least.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future;
use velum_protocol::format::{
    bind,
    cache_file::{SLOT_BYTES, slot_offset},
};

use super::{DiskCache, Shared};
use crate::{
    cache::BlockLocation,
    env::{Local, compute},
    keyring::SealKey,
};

/// Adjacent slots read at once, about 256 KiB.
const RUN_SLOTS_MAX: usize = 64;

/// Blocks opened on the node's own thread; more go to the compute pool. Opening takes about 2 us a block (4 KiB at 2.2 GB/s),
/// the way to another thread and back 30 us to 50 us.
const OPEN_HERE_MAX: usize = 8;

/// A block that was found in the index.
struct Found {
    /// Its place in the request.
    place: usize,
    slot: u32,
    at: BlockLocation,
}

impl DiskCache {
    /// The block at a location, if it is here undamaged.
    pub fn get(&self, at: &BlockLocation, key: &SealKey) -> Local<Option<Bytes>> {
        let blocks = self.get_run(vec![*at], key);
        Box::pin(async move { blocks.await.pop().flatten() })
    }

    /// The blocks of one request, in order; those that lie in adjacent slots are read together. All are of the volume that
    /// `key` belongs to.
    pub fn get_run(&self, locations: Vec<BlockLocation>, key: &SealKey) -> Local<Vec<Option<Bytes>>> {
        let shared = Rc::clone(&self.0);
        let key = key.clone();
        let mut found = Vec::new();
        let mut slots = shared.slots.borrow_mut();
        for (place, at) in locations.iter().enumerate() {
            if let Some(slot) = slots.read(at.fingerprint()) {
                found.push(Found { place, slot, at: *at });
            }
        }
        drop(slots);
        Box::pin(async move {
            let mut blocks = vec![None; locations.len()];
            let runs = runs(found, shared.slots_per_file);
            let reads = runs.into_iter().map(|run| shared.read(run, &key));
            for (place, block) in future::join_all(reads).await.into_iter().flatten() {
                if let Some(answer) = blocks.get_mut(place) {
                    *answer = block;
                }
            }
            let hits = blocks.iter().flatten().count() as u64;
            shared.count(|stats| {
                stats.hits += hits;
                stats.misses += blocks.len() as u64 - hits;
            });
            blocks
        })
    }
}

impl Shared {
    /// Reads and opens blocks in adjacent slots of one file.
    async fn read(&self, run: Vec<Found>, key: &SealKey) -> Vec<(usize, Option<Bytes>)> {
        let blocks = match self.read_slots(&run, key).await {
            Some(blocks) => blocks,
            // A cut file or a bad sector spoils the read of all; one by one those are lost that it touches.
            None if run.len() > 1 => {
                let mut blocks = Vec::with_capacity(run.len());
                for found in &run {
                    let block = self.read_slots(std::slice::from_ref(found), key).await;
                    blocks.push(block.and_then(|mut block| block.pop()).flatten());
                }
                blocks
            }
            None => vec![None],
        };
        for (found, _) in run.iter().zip(&blocks).filter(|(_, block)| block.is_none()) {
            self.slots.borrow_mut().forget(found.slot, found.at.fingerprint());
            self.count(|stats| stats.discarded += 1);
        }
        run.into_iter().map(|found| found.place).zip(blocks).collect()
    }

    /// The blocks of adjacent slots; `None` when the file cannot be read there.
    async fn read_slots(&self, run: &[Found], key: &SealKey) -> Option<Vec<Option<Bytes>>> {
        let first = run.first()?.slot;
        let (number, within) = (first / self.slots_per_file, first % self.slots_per_file);
        let file = self.files.borrow().get(number)?;
        let sealed = file.read_at(slot_offset(self.slots_per_file, within), run.len() * SLOT_BYTES).await.ok()?;
        let binds = run.iter().map(|found| self.bind(found.slot, &found.at)).collect();
        Some(self.open_blocks(sealed, binds, key).await)
    }

    async fn open_blocks(&self, sealed: Bytes, binds: Vec<bind::CacheSlot>, key: &SealKey) -> Vec<Option<Bytes>> {
        let here = binds.len() <= OPEN_HERE_MAX;
        let key = key.clone();
        let open = move || -> Vec<Option<Bytes>> {
            let (slots, _) = sealed.as_chunks::<SLOT_BYTES>();
            let each = slots.iter().zip(&binds);
            each.map(|(slot, bind)| key.open(&bind.aad(), slot).ok().map(Bytes::from)).collect()
        };
        if here { open() } else { compute::call(&*self.env.compute, open).await }
    }
}

/// Divides found blocks into runs of adjacent slots in one file.
fn runs(found: Vec<Found>, slots_per_file: u32) -> Vec<Vec<Found>> {
    let mut runs: Vec<Vec<Found>> = Vec::new();
    for next in found {
        let adjacent = |last: &Found| last.slot + 1 == next.slot && next.slot % slots_per_file != 0;
        match runs.last_mut() {
            Some(run) if run.len() < RUN_SLOTS_MAX && run.last().is_some_and(adjacent) => run.push(next),
            Some(_) | None => runs.push(vec![next]),
        }
    }
    runs
}
