//! The dirty buffer of one volume: what is journaled and not yet in the extent map.
//!
//! It is a stack of layers. The newest, the active window, takes writes; below it lie windows that were cut off, the newest
//! first, which never change again: a flush reads them while guests go on. A look-up asks from the top down, so the newest
//! version of a block wins; what no layer holds, the extent map knows.
//!
//! Within a layer the changes are disjoint: a block with contents, or a run that is unmapped. Contents are owned block by
//! block, never slices of a request's payload, so that the bytes counted are the bytes held.
//!
//! The buffer knows positions but no journal: who cuts a window says what the chain is at its last position, and sees to it
//! that everything in it is at d0.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use velum_protocol::id::{BLOCK_BYTES, BlockCount, BlockIndex, Epoch, Hash, Jseq, VolumeId};

use super::messages::{Change, Window};
use crate::env::Instant;

/// What an unmapped run is charged to the budget: its place in the tree and in a window.
pub const RUN_BYTES: u64 = 128;

/// A part of a block range as a look-up finds it, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// One block's contents.
    Data(Bytes),
    /// Blocks that read as zeros and are a hole.
    Zero(u64),
    /// Blocks the buffer knows nothing of.
    Ask {
        /// First block.
        start: u64,
        /// Number of blocks.
        count: u64,
    },
}

/// Dirty extents of one volume.
#[derive(Debug)]
pub struct Buffer {
    volume: VolumeId,
    epoch: Epoch,
    active: Layer,
    /// Oldest first.
    cut: VecDeque<Cut>,
    /// What the windows in `cut` are charged.
    cut_bytes: u64,
}

/// A window cut off, and whether a flush has it.
#[derive(Debug)]
struct Cut {
    window: Arc<Window>,
    bytes: u64,
    since: Instant,
    taken: bool,
}

/// The active window.
#[derive(Debug)]
struct Layer {
    /// By first block, disjoint.
    changes: BTreeMap<u64, Held>,
    bytes: u64,
    first: Jseq,
    last: Jseq,
    /// When the first record came in.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    jseq: Jseq,
    what: What,
}

#[derive(Debug)]
enum What {
    Data(Bytes),
    Unmapped(u64),
}

impl Held {
    const fn count(&self) -> u64 {
        match self.what {
            What::Data(_) => 1,
            What::Unmapped(count) => count,
        }
    }

    const fn bytes(&self) -> u64 {
        match self.what {
            What::Data(_) => BLOCK_BYTES,
            What::Unmapped(_) => RUN_BYTES,
        }
    }
}

impl Buffer {
    /// An empty buffer of a volume whose positions up to `last` are in the map.
    #[must_use]
    pub const fn new(volume: VolumeId, epoch: Epoch, last: Jseq) -> Self {
        Self { volume, epoch, active: Layer::after(last), cut: VecDeque::new(), cut_bytes: 0 }
    }

    /// Opens position `jseq`, the next one; what it changes follows by [`Self::write`] and [`Self::unmap`].
    pub fn begin(&mut self, jseq: Jseq, now: Instant) {
        assert_eq!(jseq, self.active.last.next(), "positions are contiguous");
        self.active.last = jseq;
        self.active.since.get_or_insert(now);
    }

    /// Gives a block new contents at the position begun last.
    pub fn write(&mut self, block: u64, contents: Bytes) {
        self.active.write(block, contents);
    }

    /// Unmaps a run at the position begun last.
    pub fn unmap(&mut self, start: u64, count: u64) {
        self.active.unmap(start, count);
    }

    /// Appends what is known of `count` blocks from `start`, in order and without gaps, and gives a position up to which all lies that
    /// it rests on, if anything: of a window that was cut off its last one, since a window is cut off before it is at d0.
    pub fn look_up(&self, start: u64, count: u64, out: &mut Vec<Piece>) -> Option<Jseq> {
        let (mut next, end) = (start, start + count);
        let mut newest = None;
        for (first, held) in self.active.overlapping(start, end) {
            newest = newest.max(self.look_below(self.cut.len(), next, first.max(next), out));
            let until = (first + held.count()).min(end);
            out.push(match &held.what {
                What::Data(contents) => Piece::Data(contents.clone()),
                What::Unmapped(_) => Piece::Zero(until - first.max(next)),
            });
            newest = newest.max(Some(held.jseq));
            next = until;
        }
        newest.max(self.look_below(self.cut.len(), next, end, out))
    }

    /// Looks in the `layers` oldest windows.
    fn look_below(&self, layers: usize, start: u64, end: u64, out: &mut Vec<Piece>) -> Option<Jseq> {
        if start >= end {
            return None;
        }
        let Some((below, cut)) = layers.checked_sub(1).and_then(|below| Some((below, self.cut.get(below)?))) else {
            out.push(Piece::Ask { start, count: end - start });
            return None;
        };
        let changes = &cut.window.changes;
        let at = changes.partition_point(|change| change.end() <= start);
        let (mut next, mut newest) = (start, None);
        for change in changes.get(at..).unwrap_or_default() {
            let first = change.start();
            if first >= end {
                break;
            }
            newest = newest.max(self.look_below(below, next, first, out)).max(Some(cut.window.last));
            let until = change.end().min(end);
            out.push(match change {
                Change::Data { contents, .. } => Piece::Data(contents.clone()),
                Change::Unmap { .. } => Piece::Zero(until - first.max(next)),
            });
            next = until;
        }
        newest.max(self.look_below(below, next, end, out))
    }

    /// Cuts the active window off; `chain` is the journal's chain at its last position. False when it holds no record.
    pub fn cut(&mut self, chain: Hash) -> bool {
        let last = self.active.last;
        let Some(since) = self.active.since else { return false };
        let layer = std::mem::replace(&mut self.active, Layer::after(last));
        let bytes = layer.bytes;
        let window = Arc::new(Window {
            volume: self.volume,
            epoch: self.epoch,
            first: layer.first,
            last,
            chain,
            changes: layer.changes.into_iter().map(|(start, held)| held.into_change(start)).collect(),
        });
        self.cut.push_back(Cut { window, bytes, since, taken: false });
        self.cut_bytes += bytes;
        true
    }

    /// True when a window that ends at `through` or before was cut off and no flush has it.
    #[must_use]
    pub fn has_cut(&self, through: Jseq) -> bool {
        self.cut.iter().find(|cut| !cut.taken).is_some_and(|cut| cut.window.last <= through)
    }

    /// Lets everything go; gives the bytes it was charged.
    pub fn forget(&mut self) -> u64 {
        let bytes = self.bytes();
        *self = Self::new(self.volume, self.epoch, self.active.last);
        bytes
    }

    /// The oldest window that was cut off and that no flush has yet, when it ends at `through` or before; now one has it.
    pub fn take_cut(&mut self, through: Jseq) -> Option<Arc<Window>> {
        let cut = self.cut.iter_mut().find(|cut| !cut.taken).filter(|cut| cut.window.last <= through)?;
        cut.taken = true;
        Some(Arc::clone(&cut.window))
    }

    /// Lets the oldest window go, which ends at `last` and whose changes are in the map now. Gives it with the bytes it
    /// was charged; `None` when the oldest window is another.
    pub fn drop_oldest(&mut self, last: Jseq) -> Option<(Arc<Window>, u64)> {
        if self.cut.front()?.window.last != last {
            return None;
        }
        let cut = self.cut.pop_front()?;
        self.cut_bytes -= cut.bytes;
        Some((cut.window, cut.bytes))
    }

    /// Bytes charged for all layers.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.active.bytes + self.cut_bytes
    }

    /// Bytes charged for the active window.
    #[must_use]
    pub const fn active_bytes(&self) -> u64 {
        self.active.bytes
    }

    /// Changes in the active window.
    #[must_use]
    pub fn active_changes(&self) -> usize {
        self.active.changes.len()
    }

    /// Bytes charged for what no flush has yet, and since when the oldest of it is dirty.
    #[must_use]
    pub fn waiting(&self) -> (u64, Option<Instant>) {
        let untaken = || self.cut.iter().filter(|cut| !cut.taken);
        let bytes = self.active.bytes + untaken().map(|cut| cut.bytes).sum::<u64>();
        (bytes, untaken().map(|cut| cut.since).next().or(self.active.since))
    }

    /// Since when the oldest change of the active window is dirty.
    #[must_use]
    pub const fn active_since(&self) -> Option<Instant> {
        self.active.since
    }

    /// The last position begun.
    #[must_use]
    pub const fn last(&self) -> Jseq {
        self.active.last
    }
}

impl Layer {
    const fn after(last: Jseq) -> Self {
        Self { changes: BTreeMap::new(), bytes: 0, first: last.next(), last, since: None }
    }

    /// The changes that overlap `start..end`, in order.
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Held)> {
        let before = self.changes.range(..start).next_back().filter(|(first, held)| **first + held.count() > start);
        before.into_iter().chain(self.changes.range(start..end)).map(|(&first, held)| (first, held))
    }

    fn write(&mut self, block: u64, contents: Bytes) {
        assert_eq!(contents.len() as u64, BLOCK_BYTES, "the buffer holds whole blocks");
        let held = Held { jseq: self.last, what: What::Data(contents) };
        if let Some(before) = self.changes.get_mut(&block)
            && matches!(before.what, What::Data(_))
        {
            *before = held;
            return;
        }
        self.clear(block, block + 1);
        self.put(block, held);
    }

    /// Joins the run with those it touches: a guest that trims block after block holds one run, not thousands.
    fn unmap(&mut self, start: u64, count: u64) {
        let (mut start, mut end) = (start, start + count);
        self.clear(start, end);
        if let Some((&first, held)) = self.changes.range(..start).next_back()
            && let What::Unmapped(count) = held.what
            && first + count == start
        {
            self.clear(first, start);
            start = first;
        }
        if let Some(Held { what: What::Unmapped(count), .. }) = self.changes.get(&end) {
            let until = end + count;
            self.clear(end, until);
            end = until;
        }
        self.put(start, Held { jseq: self.last, what: What::Unmapped(end - start) });
    }

    fn put(&mut self, start: u64, held: Held) {
        self.bytes += held.bytes();
        let replaced = self.changes.insert(start, held);
        assert!(replaced.is_none(), "a range is cleared before it is filled");
    }

    /// Takes everything out of `start..end`, cutting runs that reach beyond it.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((&first, held)) = self.changes.range_mut(..start).next_back()
            && let What::Unmapped(count) = held.what
            && first + count > start
        {
            held.what = What::Unmapped(start - first);
            let jseq = held.jseq;
            self.put(start, Held { jseq, what: What::Unmapped(first + count - start) });
        }
        while let Some((&first, _)) = self.changes.range(start..end).next() {
            let held = self.changes.remove(&first).expect("the key was just found");
            self.bytes -= held.bytes();
            let until = first + held.count();
            if until > end {
                self.put(end, Held { jseq: held.jseq, what: What::Unmapped(until - end) });
            }
        }
    }
}

impl Held {
    fn into_change(self, start: u64) -> Change {
        match self.what {
            What::Data(contents) => Change::Data { block: BlockIndex(start), contents },
            What::Unmapped(count) => Change::Unmap { start: BlockIndex(start), count: BlockCount(count) },
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small block numbers index the model")]
#[path = "buffer_tests.rs"]
mod tests;
