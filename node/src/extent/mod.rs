//! The extent map: where each block of a volume lies in the clouds.
//!
//! A radix tree of fixed coverage. A leaf maps 4,096 blocks to frames by sorted disjoint runs; an inner page has 256
//! children; the root stands on the level that the volume's size asks for. Pages are shared by reference count and copied
//! when changed, so the tree of one instant can be written out while the volume goes on changing its own, and a snapshot
//! would be one more root.
//!
//! States of a page: *vacant* (nothing mapped), *resident*, or *away* (in the clouds, known by object number and hash).
//! A resident page is *changed* or equal to its object; only equal ones are evicted. An update never waits for a page that
//! is away: it is kept beside it as pending and merged when the page comes in.
//!
//! Invariants:
//! * A look-up answers from the newest update of each block, or says which page it needs; it never answers from a page
//!   whose pending updates are not merged.
//! * Live counts of segments never fall short: a mapping counts from the moment it is applied, what it displaces stops
//!   counting when the displaced run is known. So a segment counted at zero is referred to by nothing.
//! * A page that is not changed stands in the clouds as it is; what a checkpoint no longer names is listed exactly once.
//!
//! Cost, with every block in a frame of its own: a look-up takes 0.2 us in a map of 1 GiB and 0.9 us in one of 16 GiB, an
//! update 0.5 us and 1.4 us; planning a checkpoint of 1,000 pages less than a millisecond, encoding a page 0.13 ms.
//!
//! The map does no I/O and knows neither keys nor clouds nor the dirty buffer. After a crash it is rebuilt from a root and
//! the sequence records after it. Shrinking drops mappings here at once, but records replayed later may bring them back:
//! whoever shrinks a volume has the dropped range trimmed in its sequence first.

mod checkpoint;
mod leaf;
mod overlay;
mod residency;
#[cfg(test)]
mod tests;
mod tree;
mod usage;

use std::rc::Rc;

use velum_protocol::{
    format::{
        location::{FRAME_BLOCKS_MAX, Frame, RunUpdate},
        metadata::ObjectRef,
        page::{
            LEVEL_MAX, PageError, Payload, RootPayload, SegmentUsage, UsageIndex, VOLUME_BLOCKS_MAX, level_blocks,
            root_level,
        },
    },
    id::{BlockIndex, Incarnation, ObjectNumber},
};

pub use checkpoint::{CheckpointPlan, CheckpointRefused, PagePlan};

use self::{
    residency::Residency,
    tree::{Context, Inner, Place, Slot, Span},
    usage::UsageTable,
};

/// A run of blocks and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First block.
    pub start: BlockIndex,
    /// Blocks in the run, at least 1.
    pub count: u64,
    /// The frame that holds all of the run; `None` when nothing is mapped there and it reads as zeros.
    pub location: Option<Frame>,
}

/// A page that must be fetched and handed to [`ExtentMap::page_loaded`] before the answer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageNeeded(pub ObjectRef);

/// Why the map did not take what it was given. It is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The bytes are not a page.
    #[error("object {number} is not a page of an extent map: {error}")]
    Page {
        /// The object's number.
        number: ObjectNumber,
        /// What is wrong.
        error: PageError,
    },
    /// The page is a root, which nothing in a map names.
    #[error("object {0} is a root where a page below one is expected")]
    Place(ObjectNumber),
    /// The update is empty, leaves the largest volume, or its run does not lie in its frame.
    #[error("{count} blocks at {start} cannot be mapped so")]
    Update {
        /// First block.
        start: BlockIndex,
        /// Blocks.
        count: u64,
    },
}

/// What the map holds in memory and refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapStats {
    /// Pages in memory.
    pub resident_pages: usize,
    /// What they take, about.
    pub resident_bytes: u64,
    /// Pages changed since the last checkpoint, which stay in memory until the next one; the root not counted.
    pub changed_pages: usize,
    /// Updates that wait for pages that are away.
    pub pending_updates: usize,
    /// Blocks mapped; too many while updates are pending on pages that are away, exact at each checkpoint.
    pub mapped_blocks: u64,
    /// Segments whose live count turned out impossible and which are therefore kept for ever. Never but for a defect.
    pub usage_faults: u64,
}

/// Where each block of one volume lies.
#[derive(Debug)]
pub struct ExtentMap {
    size_blocks: u64,
    /// Nothing is mapped from here on; beyond the size when updates went there.
    mapped_end: u64,
    /// Level of `top`: 1 to [`LEVEL_MAX`].
    level: u8,
    /// The part of the root that names pages.
    top: Rc<Inner>,
    /// Counts checkpoints begun, from 1; a page is stamped with it when it changes.
    generation: u64,
    /// The root object of the newest checkpoint.
    root: Option<ObjectRef>,
    usage: UsageTable,
    residency: Residency,
    /// A plan is out and neither finished nor abandoned.
    checkpointing: bool,
    /// Pages written for checkpoints that were abandoned.
    orphans: Vec<ObjectRef>,
}

impl ExtentMap {
    /// The map of a volume that was never written.
    #[must_use]
    pub fn empty(size_blocks: u64) -> Self {
        Self {
            size_blocks,
            mapped_end: size_blocks,
            level: root_level(size_blocks),
            top: Rc::new(Inner::vacant()),
            generation: 1,
            root: None,
            usage: UsageTable::default(),
            residency: Residency::default(),
            checkpointing: false,
            orphans: Vec::new(),
        }
    }

    /// The map of a checkpoint, all of whose pages are away. `object` is the root's own object, which the next checkpoint
    /// supersedes.
    #[must_use]
    pub fn from_root(object: ObjectRef, root: &RootPayload) -> Self {
        Self {
            level: root.level,
            top: Rc::new(Inner::of_children(&root.children)),
            root: Some(object),
            usage: UsageTable::from_root(&root.usage, root.mapped_blocks),
            ..Self::empty(root.size_blocks)
        }
    }

    /// The volume's size.
    #[must_use]
    pub const fn size_blocks(&self) -> u64 {
        self.size_blocks
    }

    /// Figures for metrics and for the caller's budget.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        MapStats {
            resident_pages: self.residency.pages(),
            resident_bytes: self.residency.bytes(),
            changed_pages: self.residency.changed_pages,
            pending_updates: self.residency.pending_updates,
            mapped_blocks: self.usage.mapped_blocks(),
            usage_faults: self.usage.faults(),
        }
    }

    /// Tells of a segment that updates will name, with the length and hash that reclaim and resync need later. To be
    /// called before the updates of its sequence record; a segment no update names is dead at once.
    pub fn add_segment(&mut self, segment: &ObjectRef) {
        self.usage.name(segment, self.generation, &mut self.residency);
    }

    /// Changes where a run lies. Never needs a page: what is displaced on a page that is away is settled when it comes in.
    ///
    /// # Errors
    /// When the update makes no sense; the map is unchanged.
    pub fn apply(&mut self, update: &RunUpdate) -> Result<(), MapError> {
        let span = checked_span(update).ok_or(MapError::Update { start: update.start, count: update.count })?;
        self.cover(span.end);
        self.mapped_end = self.mapped_end.max(span.end);
        if let Some(frame) = &update.frame {
            self.usage.add(frame, update.count, self.generation, &mut self.residency);
        }
        self.replace(span, update.frame.as_ref());
        Ok(())
    }

    /// Appends where `start..start + count` lies to `out`, in order and without gaps.
    ///
    /// # Errors
    /// Names the first page that must be loaded first; `out` is as it was then.
    pub fn lookup(&mut self, start: BlockIndex, count: u64, out: &mut Vec<Mapped>) -> Result<(), PageNeeded> {
        if !out.is_empty() {
            let mut answer = Vec::new();
            self.lookup(start, count, &mut answer)?;
            out.append(&mut answer);
            return Ok(());
        }
        let end = start.0.saturating_add(count);
        let covered = end.min(level_blocks(self.level)).max(start.0);
        if start.0 < covered {
            let span = Span { start: start.0, end: covered };
            if let Err(needed) = self.top.lookup(Place::top(self.level), span, out) {
                out.clear();
                return Err(needed);
            }
        }
        if covered < end {
            tree::push(out, Mapped { start: BlockIndex(covered), count: end - covered, location: None });
        }
        Ok(())
    }

    /// Takes a page that was asked for. A page that is no longer wanted is ignored.
    ///
    /// # Errors
    /// When `payload` is not that page; fetch it from another cloud.
    pub fn page_loaded(&mut self, page: &ObjectRef, payload: &[u8]) -> Result<(), MapError> {
        let decoded = Payload::decode(payload).map_err(|error| MapError::Page { number: page.number, error })?;
        let place = match &decoded {
            Payload::Leaf(leaf) => Place::of(0, leaf.first.0),
            Payload::Inner(inner) => Place::of(inner.level, inner.first.0),
            Payload::Root(_) => return Err(MapError::Place(page.number)),
            Payload::Usage(usage) => {
                self.usage.page_loaded(page, usage, &mut self.residency);
                return Ok(());
            }
        };
        let level = self.level;
        let (mut context, top) = self.context();
        if let Some(slot) = Inner::slot_mut(top, place, level) {
            slot.page_loaded(place, page, decoded, &mut context);
        }
        Ok(())
    }

    /// Pages to load before a checkpoint can begin: those that are away with updates pending. Bounded: load them and ask
    /// again until there are none.
    #[must_use]
    pub fn pages_needed_for_checkpoint(&self) -> Vec<ObjectRef> {
        let mut needed = Vec::new();
        self.top.pages_pending(&mut needed);
        self.usage.pages_pending(&mut needed);
        needed
    }

    /// Pages changed since the last checkpoint, the root not counted: what the next one will write at most.
    #[must_use]
    pub const fn changed_pages(&self) -> usize {
        self.residency.changed_pages
    }

    /// Whether a checkpoint is wanted for the memory it frees, however few records there are since the last one: writes all
    /// over a large volume change many pages, which cannot be evicted, with few records.
    #[must_use]
    pub const fn wants_checkpoint(&self) -> bool {
        /// At most 128 MiB of leaves when every block lies in a frame of its own; 8 MiB when written in sequence.
        const CHANGED_PAGES_MAX: usize = 2048;
        /// Small themselves, but a checkpoint may have to load a leaf for each. Overwriting in sequence makes one per 64 KiB:
        /// a checkpoint per 512 MiB at most.
        const PENDING_UPDATES_MAX: usize = 8192;
        self.residency.changed_pages > CHANGED_PAGES_MAX || self.residency.pending_updates > PENDING_UPDATES_MAX
    }

    /// Evicts resident pages that are not changed until they take at most `bytes_max`. Works in small steps: called
    /// once per loaded page it keeps the budget; one call does not walk the whole map, and spares what was used since the
    /// call before, so that a look-up is never robbed of the page it has just waited for.
    pub fn evict(&mut self, bytes_max: u64) {
        /// Pages looked at in one call: enough to find a victim among changed and recently used ones in the long run.
        const STEPS_MAX: usize = 64;
        for _ in 0..STEPS_MAX.min(self.residency.pages()) {
            if self.residency.bytes() <= bytes_max {
                return;
            }
            match self.residency.advance() {
                None => return,
                Some(residency::PageKey::Usage(index)) => self.usage.evict(index, &mut self.residency),
                Some(residency::PageKey::Tree(place)) => {
                    if let Some(slot) = Inner::slot_mut(&mut self.top, place, self.level) {
                        slot.evict(place, &mut self.residency);
                    }
                }
            }
        }
    }

    /// Segments that nothing refers to any more. Those whose last displaced run lies on a page that is away are not yet
    /// among them. A checkpoint condemns them (see [`CheckpointPlan::condemned`]); once it is finished they are gone from here.
    #[must_use]
    pub fn dead_segments(&self) -> Vec<(Incarnation, ObjectNumber)> {
        self.usage.dead().collect()
    }

    /// The usage pages there are: each tells of the segments of one range of numbers.
    pub fn usage_pages(&self) -> impl Iterator<Item = UsageIndex> {
        self.usage.slots().map(|(index, _)| index)
    }

    /// The segments of one usage page that something refers to, with their live blocks. A count that is not known is left
    /// out; one is too high, never too low, while updates are pending on pages that are away.
    ///
    /// # Errors
    /// Names the page when it must be loaded first.
    pub fn segments_in(&self, page: UsageIndex) -> Result<Vec<SegmentUsage>, PageNeeded> {
        self.usage.segments(page)
    }

    /// Live blocks of a segment; `None` when it is not known or its count is away.
    #[must_use]
    pub fn live_blocks(&self, incarnation: Incarnation, segment: ObjectNumber) -> Option<u32> {
        self.usage.live_blocks(incarnation, segment)
    }

    /// Changes the volume's size. What a smaller size cuts off is unmapped; what a larger size adds reads as zeros.
    pub fn resize(&mut self, size_blocks: u64) {
        if size_blocks < self.mapped_end {
            self.replace(Span { start: size_blocks, end: self.mapped_end }, None);
        }
        self.mapped_end = size_blocks;
        self.size_blocks = size_blocks;
        self.cover(size_blocks);
    }

    /// Raises the tree until it covers `end` blocks: the old top becomes the first child of a new one.
    fn cover(&mut self, end: u64) {
        while self.level < LEVEL_MAX && level_blocks(self.level) < end {
            let below = std::mem::replace(&mut self.top, Rc::new(Inner::vacant()));
            if !below.is_vacant() {
                let place = Place { level: self.level, index: 0 };
                let slot = Slot::unwritten(below, self.generation, place, &mut self.residency);
                Rc::make_mut(&mut self.top).set_first(slot);
            }
            self.level += 1;
        }
    }

    fn replace(&mut self, span: Span, frame: Option<&Frame>) {
        let place = Place::top(self.level);
        let (mut context, top) = self.context();
        Rc::make_mut(top).replace(place, span, frame, &mut context);
    }

    fn context(&mut self) -> (Context<'_>, &mut Rc<Inner>) {
        let context = Context { generation: self.generation, usage: &mut self.usage, residency: &mut self.residency };
        (context, &mut self.top)
    }
}

/// The blocks of an update that makes sense.
fn checked_span(update: &RunUpdate) -> Option<Span> {
    let start = update.start.0;
    let end = start.checked_add(update.count)?;
    if update.count == 0 || end > VOLUME_BLOCKS_MAX {
        return None;
    }
    if let Some(frame) = &update.frame {
        let frame_end = frame.start.0.checked_add(u64::from(frame.blocks))?;
        if frame.blocks > FRAME_BLOCKS_MAX || start < frame.start.0 || end > frame_end {
            return None;
        }
    }
    Some(Span { start, end })
}
