//! Which slot holds what, and which gives way: a clock with counters over all slots of all files.
//!
//! The hand takes slots in their order on disk. So blocks filled together lie together and are read together, and the disk
//! sees long writes. A slot that was read since the hand came by is spared, up to three times; blocks of a scan are not
//! read again and go at the hand's next turn, so a scan costs the working set at most one of its lives. The queues of
//! S3-FIFO would keep a little more, at eight bytes a slot and with every run of slots broken up.

use super::index::Index;

/// Reads that are counted per slot.
const READS_MAX: u8 = 3;

/// Slots the hand passes over before it takes one that was read: bounds the work of one fill.
const STEPS_MAX: u32 = 64;

/// State of a slot: empty, being filled, or held with its number of reads.
const EMPTY: u8 = 0;
const FILLING: u8 = u8::MAX;
const HELD: u8 = 1;

/// All slots of a cache.
#[derive(Debug)]
pub(super) struct Slots {
    states: Vec<u8>,
    index: Index,
    slots_per_file: u32,
    hand: u32,
    evicted: u64,
}

impl Slots {
    pub(super) fn new(files: u32, slots_per_file: u32) -> Self {
        let slots = files as usize * slots_per_file as usize;
        Self { states: vec![EMPTY; slots], index: Index::new(slots), slots_per_file, hand: 0, evicted: 0 }
    }

    /// Blocks held.
    pub(super) const fn len(&self) -> usize {
        self.index.len()
    }

    /// Blocks that gave way to others so far.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn contains(&self, fingerprint: u64) -> bool {
        self.index.find(fingerprint).is_some()
    }

    /// The slot that holds a block; counts as a read.
    pub(super) fn read(&mut self, fingerprint: u64) -> Option<u32> {
        let slot = self.index.find(fingerprint)?;
        let state = self.state_mut(slot);
        *state = (*state + 1).min(HELD + READS_MAX);
        Some(slot)
    }

    /// The file the next slots will be in.
    pub(super) const fn file_at_hand(&self) -> u32 {
        self.hand / self.slots_per_file
    }

    /// Takes the next slot for filling; it holds nothing from now on. `None` when the hand has come round to a slot that
    /// is still being filled.
    pub(super) fn take(&mut self) -> Option<u32> {
        for step in 0..=STEPS_MAX {
            let slot = self.hand;
            let state = self.state_mut(slot);
            if *state == FILLING {
                return None;
            }
            if *state > HELD && step < STEPS_MAX {
                *state -= 1;
                self.advance();
                continue;
            }
            let held = *state != EMPTY;
            *state = FILLING;
            self.evicted += u64::from(held);
            self.index.remove(slot);
            self.advance();
            return Some(slot);
        }
        None
    }

    /// A slot that was taken, or found at start, holds a block.
    pub(super) fn hold(&mut self, slot: u32, fingerprint: u64) {
        self.index.remove(slot);
        self.index.insert(fingerprint, slot);
        *self.state_mut(slot) = HELD;
    }

    /// A slot that was taken could not be filled.
    pub(super) fn release(&mut self, slot: u32) {
        *self.state_mut(slot) = EMPTY;
    }

    /// A slot turned out not to hold a block. A slot that holds another one by now is left alone.
    pub(super) fn forget(&mut self, slot: u32, fingerprint: u64) {
        if self.index.find(fingerprint) == Some(slot) {
            self.index.remove(slot);
            self.release(slot);
        }
    }

    /// Puts the hand on the first empty slot: after a restart the cache goes on growing where it stopped.
    pub(super) fn seek_empty(&mut self) {
        let empty = self.states.iter().position(|state| *state == EMPTY).unwrap_or(0);
        self.hand = u32::try_from(empty).expect("slots are counted in 32 bits");
    }

    fn advance(&mut self) {
        let next = self.hand as usize + 1;
        self.hand = if next < self.states.len() { self.hand + 1 } else { 0 };
    }

    fn state_mut(&mut self, slot: u32) -> &mut u8 {
        self.states.get_mut(slot as usize).expect("slots are numbered below their number")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Slots {
        let mut slots = Slots::new(2, 5);
        for fingerprint in 100..110 {
            let slot = slots.take().unwrap();
            slots.hold(slot, fingerprint);
        }
        slots
    }

    #[test]
    fn slots_are_taken_in_disk_order_and_what_they_held_is_gone() {
        let mut slots = filled();
        assert_eq!((slots.len(), slots.evicted()), (10, 0));
        assert_eq!([slots.take(), slots.take(), slots.take()], [Some(0), Some(1), Some(2)]);
        assert_eq!((slots.contains(101), slots.contains(103)), (false, true));
        assert_eq!((slots.len(), slots.evicted()), (7, 3));
    }

    #[test]
    fn a_slot_that_was_read_is_spared_once_per_read() {
        let mut slots = filled();
        (0..2).for_each(|_| assert_eq!(slots.read(100), Some(0)));
        let mut rounds_survived = 0;
        for fingerprint in 1000.. {
            if !slots.contains(100) {
                break;
            }
            let slot = slots.take().unwrap();
            slots.hold(slot, fingerprint);
            rounds_survived += u32::from(slot == 9);
        }
        assert_eq!(rounds_survived, 2);
    }

    #[test]
    fn the_hand_does_not_search_for_ever() {
        let mut slots = Slots::new(1, 1000);
        for fingerprint in 0..1000 {
            let slot = slots.take().unwrap();
            slots.hold(slot, fingerprint);
            (0..5).for_each(|_| assert!(slots.read(fingerprint).is_some()));
        }
        assert_eq!(slots.take(), Some(STEPS_MAX));
    }

    #[test]
    fn a_slot_being_filled_is_not_taken_twice() {
        let mut slots = Slots::new(1, 3);
        assert_eq!([slots.take(), slots.take(), slots.take(), slots.take()], [Some(0), Some(1), Some(2), None]);
        slots.hold(0, 7);
        assert_eq!(slots.take(), Some(0));
    }

    #[test]
    fn forgetting_leaves_a_slot_alone_that_holds_something_else_by_now() {
        let mut slots = filled();
        let slot = slots.take().unwrap();
        slots.hold(slot, 500);
        slots.forget(slot, 100);
        assert!(slots.contains(500));
        slots.forget(slot, 500);
        assert!(!slots.contains(500));
        slots.seek_empty();
        assert_eq!(slots.take(), Some(slot));
    }
}
