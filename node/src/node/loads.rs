//! How much a node holds of what it must never hold without bound.

use super::Node;

/// Bytes that a node holds for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What for.
    pub what: &'static str,
    /// Held now.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
}

impl Node {
    /// Bytes of dirty extents over all volumes. Those that a start or a takeover found may exceed the budget that writes wait
    /// for; they were in the journal, so never by more than that holds.
    #[must_use]
    pub fn dirty(&self) -> Load {
        let journal = self.0.journal.status();
        let bytes_max = self.0.budget.bytes_max().saturating_add(journal.bytes_max);
        Load { what: "dirty extents", bytes: self.0.budget.bytes_used(), bytes_max }
    }

    /// Everything that has a bound of its own.
    #[must_use]
    pub fn loads(&self) -> [Load; 3] {
        let (journal, memory) = (self.0.journal.status(), self.0.memory.borrow());
        [
            self.dirty(),
            Load { what: "journal", bytes: journal.bytes_live, bytes_max: journal.bytes_max },
            Load { what: "clean extents in memory", bytes: memory.stats().bytes, bytes_max: memory.budget_bytes() },
        ]
    }
}
