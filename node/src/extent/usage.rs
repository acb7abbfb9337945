//! How many blocks of each segment the map refers to.
//!
//! Kept in pages of 1,024 segment numbers, which come and go like the tree's. A page that is away keeps differences
//! until it is loaded. A count that would fall below zero betrays a defect: the segment is then never declared dead, for
//! a leaked segment costs money and a reclaimed live one costs data.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use velum_protocol::{
    format::{
        location::Frame,
        metadata::ObjectRef,
        page::{SegmentUsage, UsageIndex, UsagePayload, UsageRef},
    },
    id::{Incarnation, ObjectNumber},
};

use super::{
    PageNeeded,
    residency::{PageKey, Residency},
    tree::PAGES_NEEDED_MAX,
};

/// Live counts of a volume's segments.
#[derive(Debug, Default)]
pub(super) struct UsageTable {
    pages: BTreeMap<UsageIndex, UsageSlot>,
    /// Segments of resident pages counted at zero.
    dead: BTreeSet<(Incarnation, ObjectNumber)>,
    mapped_blocks: u64,
    faults: u64,
}

/// One usage page.
#[derive(Debug)]
pub(super) struct UsageSlot {
    /// Its object in the newest checkpoint.
    pub(super) stored: Option<Rc<ObjectRef>>,
    /// The generation it last changed in since it was stored; 0 when it is as stored.
    pub(super) changed: u64,
    pub(super) table: Table,
}

/// Where a usage page is.
#[derive(Debug)]
pub(super) enum Table {
    /// In the clouds as stored, with differences pending.
    Away(BTreeMap<ObjectNumber, Difference>),
    /// Resident.
    Here(Rc<UsagePage>),
}

/// What a page that is away does not know yet of one segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Difference {
    blocks: i64,
    object: Option<ObjectRef>,
}

/// A usage page in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct UsagePage {
    segments: BTreeMap<ObjectNumber, Live>,
    /// Used since the clock hand came by.
    touched: Cell<bool>,
}

#[derive(Clone, Debug, Default)]
struct Live {
    /// `u32::MAX` when it is not known.
    blocks: u32,
    /// `None` until the segment is named.
    object: Option<ObjectRef>,
}

impl UsagePage {
    /// What one segment takes in memory, about: two words of tree for the number, a count and an object.
    const SEGMENT_WEIGHT: u64 = 112;

    fn weight(&self) -> u64 {
        (self.segments.len() as u64 + 1) * Self::SEGMENT_WEIGHT
    }

    /// The page as it is written: segments that are referred to.
    pub(super) fn payload(&self, index: UsageIndex) -> UsagePayload {
        let live = self.segments.values().filter(|live| live.blocks > 0);
        let usage = |live: &Live| {
            let object = live.object.clone().expect("a checkpoint does not begin while a live segment has no name");
            SegmentUsage { object, live_blocks: live.blocks }
        };
        UsagePayload { index, segments: live.map(usage).collect() }
    }

    /// Nothing would be written.
    pub(super) fn is_vacant(&self) -> bool {
        self.segments.values().all(|live| live.blocks == 0)
    }

    /// A live segment that was never named.
    pub(super) fn unnamed(&self) -> Option<ObjectNumber> {
        self.segments.iter().find(|(_, live)| live.blocks > 0 && live.object.is_none()).map(|(number, _)| *number)
    }

    /// Segments counted at zero.
    pub(super) fn dead_numbers(&self) -> impl Iterator<Item = ObjectNumber> {
        self.segments.iter().filter(|(_, live)| live.blocks == 0).map(|(number, _)| *number)
    }

    /// Objects of the segments counted at zero; a segment that was never named has nothing to delete it by.
    pub(super) fn dead_objects(&self) -> impl Iterator<Item = &ObjectRef> {
        self.segments.values().filter(|live| live.blocks == 0).filter_map(|live| live.object.as_ref())
    }
}

impl UsageTable {
    pub(super) fn from_root(pages: &[UsageRef], mapped_blocks: u64) -> Self {
        let slot = |usage: &UsageRef| {
            let away = Table::Away(BTreeMap::new());
            (usage.index, UsageSlot { stored: Some(Rc::new(usage.page.clone())), changed: 0, table: away })
        };
        Self { pages: pages.iter().map(slot).collect(), mapped_blocks, ..Self::default() }
    }

    pub(super) const fn mapped_blocks(&self) -> u64 {
        self.mapped_blocks
    }

    pub(super) const fn faults(&self) -> u64 {
        self.faults
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = (Incarnation, ObjectNumber)> {
        self.dead.iter().copied()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (UsageIndex, &UsageSlot)> {
        self.pages.iter().map(|(index, slot)| (*index, slot))
    }

    /// The segments of one page that something refers to, their counts being known.
    pub(super) fn segments(&self, index: UsageIndex) -> Result<Vec<SegmentUsage>, PageNeeded> {
        let Some(slot) = self.pages.get(&index) else { return Ok(Vec::new()) };
        let Table::Here(page) = &slot.table else {
            return Err(PageNeeded(slot.stored.as_deref().expect(STORED).clone()));
        };
        page.touched.set(true);
        let known = page.segments.values().filter(|live| live.blocks > 0 && live.blocks < u32::MAX);
        Ok(known
            .filter_map(|live| Some(SegmentUsage { object: live.object.clone()?, live_blocks: live.blocks }))
            .collect())
    }

    pub(super) fn live_blocks(&self, incarnation: Incarnation, segment: ObjectNumber) -> Option<u32> {
        match &self.pages.get(&UsageIndex::of(incarnation, segment))?.table {
            Table::Here(page) => page.segments.get(&segment).map(|live| live.blocks),
            Table::Away(_) => None,
        }
    }

    /// Notes a segment's object.
    pub(super) fn name(&mut self, object: &ObjectRef, generation: u64, residency: &mut Residency) {
        let change = Difference { blocks: 0, object: Some(object.clone()) };
        self.change(object.incarnation, object.number, change, generation, residency);
    }

    /// `blocks` more are mapped to `frame`.
    pub(super) fn add(&mut self, frame: &Frame, blocks: u64, generation: u64, residency: &mut Residency) {
        self.mapped_blocks = self.mapped_blocks.saturating_add(blocks);
        let change = Difference { blocks: signed(blocks), object: None };
        self.change(frame.incarnation, frame.segment, change, generation, residency);
    }

    /// `blocks` fewer are mapped to a segment.
    pub(super) fn remove(
        &mut self,
        incarnation: Incarnation,
        segment: ObjectNumber,
        blocks: u64,
        generation: u64,
        residency: &mut Residency,
    ) {
        self.mapped_blocks = self.mapped_blocks.saturating_sub(blocks);
        let change = Difference { blocks: -signed(blocks), object: None };
        self.change(incarnation, segment, change, generation, residency);
    }

    /// Takes a page if it is one that is waited for.
    pub(super) fn page_loaded(&mut self, object: &ObjectRef, payload: &UsagePayload, residency: &mut Residency) {
        let Some(slot) = self.pages.get_mut(&payload.index) else { return };
        let Table::Away(differences) = &mut slot.table else { return };
        if slot.stored.as_deref() != Some(object) {
            return;
        }
        let differences = std::mem::take(differences);
        let generation = slot.changed;
        let segment = |usage: &SegmentUsage| {
            (usage.object.number, Live { blocks: usage.live_blocks, object: Some(usage.object.clone()) })
        };
        let page = UsagePage { segments: payload.segments.iter().map(segment).collect(), touched: Cell::new(true) };
        residency.enter(PageKey::Usage(payload.index), page.weight());
        slot.table = Table::Here(Rc::new(page));
        for (number, difference) in differences {
            self.change(payload.index.incarnation, number, difference, generation, residency);
        }
    }

    /// Names pages that are away with differences pending.
    pub(super) fn pages_pending(&self, needed: &mut Vec<ObjectRef>) {
        let pending = self.pages.values().filter(|slot| slot.changed != 0 && matches!(slot.table, Table::Away(_)));
        let room = PAGES_NEEDED_MAX.saturating_sub(needed.len());
        needed.extend(pending.take(room).map(|slot| slot.stored.as_deref().expect(STORED).clone()));
    }

    /// Lets go of a page that is as stored and was not used lately.
    pub(super) fn evict(&mut self, index: UsageIndex, residency: &mut Residency) {
        let Some(slot) = self.pages.get_mut(&index) else { return };
        let Table::Here(page) = &slot.table else { return };
        if slot.changed == 0 && slot.stored.is_some() && !page.touched.replace(false) {
            residency.leave(PageKey::Usage(index), page.weight());
            slot.table = Table::Away(BTreeMap::new());
        }
    }

    /// A checkpoint of `generation` has written the page as `written`, `None` when nothing was left to write, and has
    /// condemned `dead`.
    pub(super) fn finish(
        &mut self,
        index: UsageIndex,
        generation: u64,
        written: Option<ObjectRef>,
        dead: &[ObjectNumber],
        residency: &mut Residency,
    ) {
        let slot = self.pages.get_mut(&index).expect("a page that a checkpoint writes is known");
        slot.stored = written.map(Rc::new);
        if slot.changed <= generation {
            residency.unstamp(&mut slot.changed);
        }
        let Table::Here(page) = &mut slot.table else { return };
        let before = page.weight();
        let page = Rc::make_mut(page);
        for number in dead {
            page.segments.remove(number);
            self.dead.remove(&(index.incarnation, *number));
        }
        residency.reweigh(before, page.weight());
        if page.segments.is_empty() && slot.stored.is_none() && slot.changed == 0 {
            residency.leave(PageKey::Usage(index), page.weight());
            self.pages.remove(&index);
        }
    }

    fn change(
        &mut self,
        incarnation: Incarnation,
        number: ObjectNumber,
        change: Difference,
        generation: u64,
        residency: &mut Residency,
    ) {
        let index = UsageIndex::of(incarnation, number);
        let slot = self.pages.entry(index).or_insert_with(|| {
            let page = UsagePage::default();
            residency.enter(PageKey::Usage(index), page.weight());
            UsageSlot { stored: None, changed: 0, table: Table::Here(Rc::new(page)) }
        });
        residency.stamp(&mut slot.changed, generation);
        let page = match &mut slot.table {
            Table::Away(differences) => {
                let difference = differences.entry(number).or_default();
                difference.blocks = difference.blocks.saturating_add(change.blocks);
                difference.object = change.object.or_else(|| difference.object.take());
                return;
            }
            Table::Here(page) => Rc::make_mut(page),
        };
        page.touched.set(true);
        let before = page.weight();
        let live = page.segments.entry(number).or_default();
        if change.object.is_some() {
            live.object = change.object;
        }
        if live.blocks != u32::MAX {
            let blocks = i64::from(live.blocks).saturating_add(change.blocks);
            live.blocks = u32::try_from(blocks).unwrap_or_else(|_| {
                self.faults += 1;
                u32::MAX
            });
        }
        if live.blocks == 0 {
            self.dead.insert((incarnation, number));
        } else {
            self.dead.remove(&(incarnation, number));
        }
        residency.reweigh(before, page.weight());
    }
}

const STORED: &str = "a page that is away is stored";

/// Blocks as a difference; a volume has fewer than 2^35.
fn signed(blocks: u64) -> i64 {
    i64::try_from(blocks).expect("a run is not longer than the largest volume")
}
