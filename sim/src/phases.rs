//! Which faults came in which phases of the protocol: a table without an empty cell says that a soak has tried each kind in each.

use std::{collections::BTreeMap, fmt};

/// What a world may be at. Several at once is the rule.
pub const PHASES: [&str; 10] = [
    "guests work",
    "host attaches, permit goes",
    "node starts",
    "no leader",
    "takeover",
    "segments on their way",
    "record on its way",
    "checkpoint on its way",
    "reclaim",
    "cloud lags",
];

/// The phases that a world is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases(u16);

impl Phases {
    /// Those of which it is true, in the order of [`PHASES`].
    #[must_use]
    pub fn of(is_in: [bool; PHASES.len()]) -> Self {
        Self(is_in.iter().enumerate().map(|(at, is_in)| u16::from(*is_in) << at).sum())
    }

    fn each(self) -> impl Iterator<Item = usize> {
        (0..PHASES.len()).filter(move |at| self.0 & 1 << at != 0)
    }
}

/// Kinds of fault, and what belongs to each.
const KINDS: [(&str, &[&str]); 13] = [
    ("a process ends", &["kills", "ends at an i/o", "leaders and owners lost"]),
    (
        "power is lost",
        &["power losses, all kept", "power losses, nothing kept", "power losses, pages", "power losses, torn"],
    ),
    ("a disk is lost", &["lost machines", "lost machines with a cloud", "nodes replaced"]),
    ("the disk fails", &["failed sync", "failed write", "failed read", "poisoned journals"]),
    ("the disk is full or slow", &["disk full", "slow disk"]),
    ("bytes rot", &["rot in the cache", "rot in the journal's end"]),
    ("a cloud refuses", &["cloud away", "cloud stalls", "cloud denies", "cloud throttles"]),
    ("an answer is lost", &["cloud failure before effect", "cloud failure after effect", "cloud answer lost"]),
    ("a cloud lies or forgets", &["lies", "emptied clouds", "exchanged clouds"]),
    ("connections end", &["cut connections", "links reset", "stalled network"]),
    ("ways are blocked or slow", &["isolated nodes", "split clusters", "ways blocked", "flapping ways", "slow ways"]),
    ("a node stands still", &["paused nodes"]),
    ("as an operator wants", &["clean restarts", "volumes moved", "leads handed over"]),
];

/// How often each kind of fault did something in each phase.
#[derive(Clone, Debug, Default)]
pub struct Crossings(BTreeMap<(usize, usize), u64>);

impl Crossings {
    /// A fault, named as runs tally it, did something; whatever is no fault is let pass.
    pub fn note(&mut self, what: &str, phases: Phases) {
        if let Some(kind) = KINDS.iter().position(|(_, faults)| faults.contains(&what)) {
            phases.each().for_each(|phase| *self.0.entry((kind, phase)).or_default() += 1);
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: Self) {
        for (cell, times) in other.0 {
            *self.0.entry(cell).or_default() += times;
        }
    }

    /// True when nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Crossings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| fault | {} |", PHASES.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(PHASES.len()))?;
        for (at, (kind, _)) in KINDS.iter().enumerate() {
            let times = |phase| self.0.get(&(at, phase)).copied().unwrap_or_default().to_string();
            writeln!(f, "| {kind} | {} |", (0..PHASES.len()).map(times).collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::FAULTS;

    #[test]
    fn every_fault_is_of_one_kind() {
        for fault in FAULTS {
            let kinds = KINDS.iter().filter(|(_, faults)| faults.contains(&fault)).count();
            assert_eq!(kinds, 1, "{fault}");
        }
    }

    #[test]
    fn a_fault_is_noted_in_every_phase_that_the_world_is_in() {
        let mut is_in = [false; PHASES.len()];
        (is_in[0], is_in[4]) = (true, true);
        let mut crossings = Crossings::default();
        crossings.note("kills", Phases::of(is_in));
        crossings.note("barriers", Phases::of(is_in));
        crossings.merge(crossings.clone());
        let table = crossings.to_string();
        assert!(table.contains("| a process ends | 2 | 0 | 0 | 0 | 2 |"), "{table}");
    }
}
