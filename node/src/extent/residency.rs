//! Which pages are in memory, whose turn it is to leave, and what must stay until the next checkpoint.

use std::{collections::BTreeSet, ops::Bound};

use velum_protocol::format::page::UsageIndex;

use super::tree::Place;

/// A page that can be resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PageKey {
    /// A leaf or an inner page.
    Tree(Place),
    /// A usage page.
    Usage(UsageIndex),
}

/// The resident pages as a clock: the hand goes round in key order and a page used since it last came by is spared once.
#[derive(Debug, Default)]
pub(super) struct Residency {
    pages: BTreeSet<PageKey>,
    bytes: u64,
    hand: Option<PageKey>,
    /// Pages changed since they were stored, resident or away.
    pub(super) changed_pages: usize,
    /// Updates that wait for pages that are away.
    pub(super) pending_updates: usize,
}

impl Residency {
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A page of `weight` bytes is resident from now on.
    pub(super) fn enter(&mut self, key: PageKey, weight: u64) {
        let new = self.pages.insert(key);
        debug_assert!(new, "a page enters once");
        self.bytes += weight;
    }

    /// A page of `weight` bytes is resident no longer.
    pub(super) fn leave(&mut self, key: PageKey, weight: u64) {
        let known = self.pages.remove(&key);
        debug_assert!(known, "a page leaves once");
        self.bytes = self.bytes.checked_sub(weight).expect("a page leaves with the weight it has been given");
    }

    /// A resident page has changed its weight.
    pub(super) fn reweigh(&mut self, before: u64, after: u64) {
        self.bytes = (self.bytes + after).checked_sub(before).expect("a page had the weight it has been given");
    }

    /// Stamps a page that changes in `generation`.
    pub(super) fn stamp(&mut self, changed: &mut u64, generation: u64) {
        self.changed_pages += usize::from(*changed == 0);
        *changed = generation;
    }

    /// Takes the stamp of a page that stands in the clouds as it is.
    pub(super) fn unstamp(&mut self, changed: &mut u64) {
        self.changed_pages -= usize::from(*changed != 0);
        *changed = 0;
    }

    /// Moves the hand on to the next page; `None` when there is none.
    pub(super) fn advance(&mut self) -> Option<PageKey> {
        let after = self.hand.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.pages.range((after, Bound::Unbounded)).next().or_else(|| self.pages.first()).copied();
        self.hand = next;
        next
    }
}
