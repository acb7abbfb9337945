//! Finds slots by the fingerprint of what they hold, in sixteen bytes a slot: a full cache of 4 GiB has a million slots, and
//! a general map keyed by the 40 bytes of a location would take several times as much. A search takes 40 ns in an index of
//! that size, replacing what a slot holds 110 ns.
//!
//! Open addressing with linear probing and deletion by shifting back. Two locations with one fingerprint (2^-64 a pair)
//! take each other's place; the seal of the slot tells them apart.

/// Slots by fingerprint.
#[derive(Debug)]
pub(super) struct Index {
    /// Slot number + 1; 0 is a free cell. At least twice as many cells as slots, a power of two.
    cells: Vec<u32>,
    /// What each slot holds, or held last.
    fingerprints: Vec<u64>,
    len: usize,
}

impl Index {
    pub(super) fn new(slots: usize) -> Self {
        // Zeroed memory is not touched before it is used: a young cache takes little.
        Self { cells: vec![0; (slots * 2).next_power_of_two()], fingerprints: vec![0; slots], len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find(&self, fingerprint: u64) -> Option<u32> {
        let cell = self.cells.get(self.cell_of(fingerprint))?;
        cell.checked_sub(1)
    }

    /// Says that `slot`, which is not in the index, holds `fingerprint`. A slot that held it before is forgotten.
    pub(super) fn insert(&mut self, fingerprint: u64, slot: u32) {
        *self.fingerprints.get_mut(slot as usize).expect(SLOTS) = fingerprint;
        let at = self.cell_of(fingerprint);
        let cell = self.cells.get_mut(at).expect(CELLS);
        if *cell == 0 {
            self.len += 1;
        }
        *cell = slot + 1;
    }

    /// Forgets `slot`, if it is what is found for the fingerprint it holds.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(fingerprint) = self.fingerprints.get(slot as usize).copied() else { return };
        let mut hole = self.cell_of(fingerprint);
        if self.cells.get(hole).copied() != Some(slot + 1) {
            return;
        }
        self.len -= 1;
        // Cells after the hole move up unless that would put them before the cell their search begins at.
        let mut at = hole;
        loop {
            at = self.after(at);
            let Some(next) = self.cells.get(at).and_then(|cell| cell.checked_sub(1)) else { break };
            let home = self.home(*self.fingerprints.get(next as usize).expect(SLOTS));
            if self.distance(home, at) >= self.distance(hole, at) {
                *self.cells.get_mut(hole).expect(CELLS) = next + 1;
                hole = at;
            }
        }
        *self.cells.get_mut(hole).expect(CELLS) = 0;
    }

    /// The cell that holds a slot of this fingerprint, or the free cell where the search for it ends.
    fn cell_of(&self, fingerprint: u64) -> usize {
        let mut at = self.home(fingerprint);
        loop {
            match self.cells.get(at).and_then(|cell| cell.checked_sub(1)) {
                Some(slot) if self.fingerprints.get(slot as usize) != Some(&fingerprint) => at = self.after(at),
                Some(_) | None => return at,
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps what is below the number of cells")]
    fn home(&self, fingerprint: u64) -> usize {
        fingerprint as usize & (self.cells.len() - 1)
    }

    fn after(&self, cell: usize) -> usize {
        (cell + 1) & (self.cells.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }
}

const CELLS: &str = "cells are walked modulo their number";
const SLOTS: &str = "slots are numbered below what the index was made for";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few fingerprints with equal low bits, so that searches run into each other and around the end.
        #[test]
        fn any_calls_answer_as_a_map_does(calls in prop::collection::vec((any::<bool>(), 0_u32..12, 0_u64..40), 1..300)) {
            let mut index = Index::new(12);
            let mut model: BTreeMap<u64, u32> = BTreeMap::new();
            for (insert, slot, number) in calls {
                let fingerprint = (number << 40) | 30 | (number & 1);
                index.remove(slot);
                model.retain(|_, held| *held != slot);
                if insert {
                    index.insert(fingerprint, slot);
                    model.insert(fingerprint, slot);
                }
                for number in 0..40_u64 {
                    let fingerprint = (number << 40) | 30 | (number & 1);
                    prop_assert_eq!(index.find(fingerprint), model.get(&fingerprint).copied());
                }
                prop_assert_eq!(index.len(), model.len());
            }
        }
    }
}
