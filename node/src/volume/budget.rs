//! The dirty budget: how many bytes of dirty extents one node may hold, over all its volumes.
//!
//! A volume takes from the budget before it takes a write in, and gives back when a window leaves its buffer. What does
//! not fit waits; volumes wait in the order they ran short, and nobody passes the one that has waited longest, or a large
//! write would starve behind small ones. Whoever gives back wakes the first in line.
//!
//! One write larger than the whole budget is let in when nothing else is dirty: it must get through some time.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use velum_protocol::id::VolumeId;

/// How a volume is told something.
pub type Wake = Rc<dyn Fn()>;

/// What a volume is told.
#[derive(Clone)]
pub struct Wakes {
    /// It is first in line and may try again.
    pub room: Wake,
    /// Some volume waits: whoever has dirty bytes should flush them.
    pub pressure: Wake,
}

/// The budget; one per node, shared by its volumes.
#[derive(Default)]
pub struct DirtyBudget {
    bytes_max: Cell<u64>,
    bytes_used: Cell<u64>,
    waiting: RefCell<VecDeque<VolumeId>>,
    wakes: RefCell<BTreeMap<VolumeId, Wakes>>,
}

impl DirtyBudget {
    /// A budget of `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: u64) -> Rc<Self> {
        Rc::new(Self { bytes_max: Cell::new(bytes_max), ..Self::default() })
    }

    /// Takes `bytes` for `volume` if they fit and nobody waits before it.
    #[must_use]
    pub fn take(&self, volume: VolumeId, bytes: u64) -> bool {
        let first = self.waiting.borrow().front().is_none_or(|&front| front == volume);
        let used = self.bytes_used.get();
        let after = used.saturating_add(bytes);
        let fits = first && (after <= self.bytes_max.get() || used == 0);
        if fits {
            self.bytes_used.set(after);
        }
        fits
    }

    /// Takes `bytes` whatever the bound says: for dirty extents that exist already, found in the journal at start.
    pub fn take_anyway(&self, bytes: u64) {
        self.bytes_used.set(self.bytes_used.get().saturating_add(bytes));
    }

    /// Gives `bytes` back. Wakes nobody by itself: see [`Self::wake_first`].
    pub fn give(&self, bytes: u64) {
        let used = self.bytes_used.get();
        debug_assert!(bytes <= used, "a volume gives back what it took");
        self.bytes_used.set(used.saturating_sub(bytes));
    }

    /// Puts `volume` at the end of the line unless it stands in it.
    pub fn wait(&self, volume: VolumeId) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.contains(&volume) {
            waiting.push_back(volume);
        }
    }

    /// Takes `volume` out of the line: none of its writes waits any more.
    pub fn leave(&self, volume: VolumeId) {
        self.waiting.borrow_mut().retain(|&other| other != volume);
    }

    /// How `volume` is told.
    pub fn register(&self, volume: VolumeId, wakes: Wakes) {
        self.wakes.borrow_mut().insert(volume, wakes);
    }

    /// Forgets `volume`.
    pub fn unregister(&self, volume: VolumeId) {
        self.wakes.borrow_mut().remove(&volume);
        self.leave(volume);
    }

    /// Tells the first in line that it may try again.
    pub fn wake_first(&self) {
        let first = self.waiting.borrow().front().copied();
        let wake = first.and_then(|volume| self.wakes.borrow().get(&volume).map(|wakes| Rc::clone(&wakes.room)));
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Tells every volume that one waits: the dirty bytes in its way may be anybody's.
    pub fn press(&self) {
        let wakes: Vec<Wake> = self.wakes.borrow().values().map(|wakes| Rc::clone(&wakes.pressure)).collect();
        wakes.iter().for_each(|wake| wake());
    }

    /// Bytes taken now.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.bytes_used.get()
    }

    /// The bound.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.get()
    }

    /// True when some volume waits.
    #[must_use]
    pub fn is_short(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VolumeId = VolumeId([1; 16]);
    const B: VolumeId = VolumeId([2; 16]);

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let budget = DirtyBudget::new(10);
        assert!(budget.take(A, 6));
        assert!(!budget.take(A, 5));
        assert!(budget.take(B, 4));
        budget.give(10);
        assert_eq!(budget.bytes_used(), 0);
    }

    #[test]
    fn nobody_passes_the_first_in_line() {
        let budget = DirtyBudget::new(10);
        assert!(budget.take(A, 8));
        assert!(!budget.take(B, 5));
        budget.wait(B);
        budget.wait(B);
        assert!(!budget.take(A, 1), "A may not starve B");
        let woken = Rc::new(Cell::new(0));
        let count = Rc::clone(&woken);
        let room: Wake = Rc::new(move || count.set(count.get() + 1));
        budget.register(B, Wakes { room, pressure: Rc::new(|| ()) });
        budget.give(4);
        budget.wake_first();
        assert_eq!(woken.get(), 1);
        assert!(budget.take(B, 5));
        budget.leave(B);
        assert!(budget.take(A, 1), "B stood in line once");
    }

    #[test]
    fn a_write_larger_than_the_budget_gets_through_when_nothing_is_dirty() {
        let budget = DirtyBudget::new(10);
        assert!(budget.take(A, 1));
        assert!(!budget.take(A, 11));
        budget.give(1);
        assert!(budget.take(A, 11));
    }
}
