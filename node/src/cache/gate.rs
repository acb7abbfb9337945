//! Gate 2: may this principal do this to these blocks?
//!
//! The cache's own decision point, apart from gate 1 in the server: it judges every request by every region it touches,
//! not by the volume as a whole. An ACL is a list in which the last matching entry decides; here it is compiled into one
//! interval map per principal it names, and one for everybody else, so that a judgement is a look-up. Each compiled gate
//! carries the ACL's version: whoever judged by an older one asks again before the request takes effect.
//!
//! The gate decides and nothing more. Whoever asks writes the audit record of a refusal and sees to it that a refused
//! request changes nothing.

use std::collections::BTreeMap;

use velum_protocol::{
    format::metadata::{AclEntry, Right},
    id::{BlockCount, BlockIndex},
};

/// The name in an ACL entry that stands for everyone.
const EVERYONE: &str = "*";

/// What a request would do to which blocks: the region part of an authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First block touched, also partly.
    pub first: BlockIndex,
    /// Blocks touched.
    pub count: BlockCount,
    /// The right it takes.
    pub right: Right,
}

/// What gate 2 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every region touched may be used so.
    Allowed,
    /// At least one may not; nothing of the request is done.
    Refused,
}

/// A volume's ACL, compiled.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    version: u64,
    named: BTreeMap<Box<str>, Rights>,
    others: Rights,
}

impl Gate {
    /// Compiles `entries`. `version` rises with every change of the ACL.
    #[must_use]
    pub fn compile(entries: &[AclEntry], version: u64) -> Self {
        let mut named: BTreeMap<Box<str>, Rights> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.principal != EVERYONE) {
            named.entry(entry.principal.as_str().into()).or_default();
        }
        let mut others = Rights::default();
        for entry in entries {
            if entry.principal == EVERYONE {
                others.paint(entry);
                named.values_mut().for_each(|rights| rights.paint(entry));
            } else if let Some(rights) = named.get_mut(entry.principal.as_str()) {
                rights.paint(entry);
            }
        }
        Self { version, named, others }
    }

    /// The version of the ACL this gate judges by.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Judges one request. A request that touches no block is allowed.
    #[must_use]
    pub fn judge(&self, principal: &str, access: Access) -> Decision {
        let rights = self.named.get(principal).unwrap_or(&self.others);
        if rights.allow(access) { Decision::Allowed } else { Decision::Refused }
    }
}

/// One principal's rights over the blocks of a volume: disjoint intervals, first block to (one past the last, right).
/// What no interval covers is not allowed.
#[derive(Clone, Debug, Default)]
struct Rights {
    intervals: BTreeMap<u64, (u64, Right)>,
}

impl Rights {
    /// Lets `entry` decide over its range, whatever stood there before.
    fn paint(&mut self, entry: &AclEntry) {
        let (first, end) = entry.range.map_or((0, u64::MAX), |(first, end)| (first.0, end.0));
        if first >= end {
            return;
        }
        self.cut(first);
        self.cut(end);
        let covered: Vec<u64> = self.intervals.range(first..end).map(|(&start, _)| start).collect();
        for start in covered {
            self.intervals.remove(&start);
        }
        self.intervals.insert(first, (end, entry.right));
    }

    /// Makes `at` a bound between intervals.
    fn cut(&mut self, at: u64) {
        if let Some((_, interval)) = self.intervals.range_mut(..at).next_back()
            && interval.0 > at
        {
            let (end, right) = *interval;
            interval.0 = at;
            self.intervals.insert(at, (end, right));
        }
    }

    fn allow(&self, access: Access) -> bool {
        let mut next = access.first.0;
        let Some(end) = next.checked_add(access.count.0) else { return false };
        while next < end {
            match self.intervals.range(..=next).next_back() {
                Some((_, &(until, right))) if until > next && right >= access.right => next = until,
                _ => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(principal: &str, range: Option<(u64, u64)>, right: Right) -> AclEntry {
        let range = range.map(|(first, end)| (BlockIndex(first), BlockIndex(end)));
        AclEntry { principal: principal.to_owned(), range, right }
    }

    fn judge(gate: &Gate, principal: &str, first: u64, count: u64, right: Right) -> bool {
        let access = Access { first: BlockIndex(first), count: BlockCount(count), right };
        gate.judge(principal, access) == Decision::Allowed
    }

    #[test]
    fn without_an_entry_nothing_is_allowed() {
        let gate = Gate::compile(&[entry("uid:1", None, Right::Write)], 1);
        assert!(judge(&gate, "uid:1", 0, 10, Right::Write));
        assert!(!judge(&gate, "uid:2", 0, 1, Right::Read));
        assert!(!judge(&Gate::default(), "uid:1", 0, 1, Right::Read));
    }

    #[test]
    fn every_region_touched_is_checked() {
        let gate = Gate::compile(&[entry("a", None, Right::Write), entry("a", Some((100, 200)), Right::Read)], 1);
        assert!(judge(&gate, "a", 0, 100, Right::Write));
        assert!(!judge(&gate, "a", 0, 101, Right::Write), "the last block lies in a region that may only be read");
        assert!(!judge(&gate, "a", 50, 1000, Right::Write), "a forbidden region in the middle");
        assert!(judge(&gate, "a", 50, 1000, Right::Read));
        assert!(judge(&gate, "a", 200, 1 << 40, Right::Write));
    }

    #[test]
    fn the_last_matching_entry_decides_and_everyone_includes_the_named() {
        let gate = Gate::compile(
            &[
                entry("a", None, Right::Write),
                entry("*", Some((0, 10)), Right::None),
                entry("a", Some((0, 5)), Right::Read),
            ],
            1,
        );
        assert!(judge(&gate, "a", 0, 5, Right::Read));
        assert!(!judge(&gate, "a", 5, 1, Right::Read));
        assert!(judge(&gate, "a", 10, 1, Right::Write));
        assert!(!judge(&gate, "b", 10, 1, Right::Read));
    }

    #[test]
    fn ranges_beyond_the_address_space_are_refused() {
        let gate = Gate::compile(&[entry("*", None, Right::Write)], 1);
        assert!(!judge(&gate, "a", u64::MAX, 2, Right::Read));
    }

    fn any_entry() -> impl Strategy<Value = AclEntry> {
        let principal = prop_oneof![Just("a"), Just("b"), Just("*")];
        let range = prop_oneof![Just(None), (0..20u64, 0..20u64).prop_map(Some)];
        let right = prop_oneof![Just(Right::None), Just(Right::Read), Just(Right::Write)];
        (principal, range, right).prop_map(|(principal, range, right)| entry(principal, range, right))
    }

    proptest! {
        #[test]
        fn the_compiled_gate_agrees_with_reading_the_list(
            entries in prop::collection::vec(any_entry(), 0..12),
            first in 0..22u64,
            count in 0..22u64,
        ) {
            let gate = Gate::compile(&entries, 3);
            for principal in ["a", "b", "c"] {
                for right in [Right::Read, Right::Write] {
                    let expected = (first..first + count).all(|block| {
                        let decides = entries.iter().rev().find(|entry| {
                            (entry.principal == "*" || entry.principal == principal)
                                && entry.range.is_none_or(|(from, to)| from.0 <= block && block < to.0)
                        });
                        decides.is_some_and(|entry| entry.right >= right)
                    });
                    prop_assert_eq!(judge(&gate, principal, first, count, right), expected);
                }
            }
        }
    }
}
