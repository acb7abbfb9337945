//! OWN7: one leader per term at most; every member applies the same entries in the same order and comes to the same state;
//! what was answered is applied, once, and what was refused is not.

use std::collections::BTreeMap;

use super::Verdict;

/// A member leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// In which term.
    pub term: u64,
    /// Which member.
    pub node: u64,
}

/// Judges a leader against all that were seen before.
///
/// # Errors
/// When another member led in the same term.
pub fn check_leader(leaders: &mut BTreeMap<u64, u64>, led: Led) -> Verdict {
    let first = *leaders.entry(led.term).or_insert(led.node);
    if first == led.node {
        return Ok(());
    }
    Err(format!("nodes {first} and {} both led in term {}", led.node, led.term))
}

/// A member has applied an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which member.
    pub node: u64,
    /// The entry's index.
    pub index: u64,
    /// The state after it, which contains all entries up to here in their order.
    pub state: u64,
}

/// Judges what a member applied against what others did at the same index, and against what it stood at before.
///
/// # Errors
/// When two members came to different states, or one went back or applied an entry twice.
pub fn check_applied(agreed: &mut BTreeMap<u64, (u64, u64)>, before: u64, applied: Applied) -> Verdict {
    let Applied { node, index, state } = applied;
    if index <= before {
        return Err(format!("node {node} applied entry {index} after it stood at {before}"));
    }
    let (first, agreed) = *agreed.entry(index).or_insert((node, state));
    if agreed == state {
        return Ok(());
    }
    Err(format!("nodes {first} and {node} came to different states at entry {index}: {agreed:x} and {state:x}"))
}

/// Judges a member's state in the end: it holds every answered proposal once, and none that was refused.
///
/// # Errors
/// Which proposal is missing, doubled, or there against its refusal.
pub fn check_end(node: u64, held: &[u64], answered: &[u64], refused: &[u64]) -> Verdict {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    held.iter().for_each(|number| *counts.entry(*number).or_default() += 1);
    if let Some((number, times)) = counts.iter().find(|(_, times)| **times > 1) {
        return Err(format!("node {node} applied proposal {number} {times} times"));
    }
    if let Some(number) = answered.iter().find(|number| !counts.contains_key(number)) {
        return Err(format!("proposal {number} was answered and node {node} does not hold it"));
    }
    if let Some(number) = refused.iter().find(|number| counts.contains_key(number)) {
        return Err(format!("proposal {number} was refused and node {node} applied it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_a_term_are_rejected() {
        let mut leaders = BTreeMap::new();
        for (term, node, is_kept) in [(1, 1, true), (2, 2, true), (2, 2, true), (2, 3, false), (3, 3, true)] {
            assert_eq!(check_leader(&mut leaders, Led { term, node }).is_ok(), is_kept, "term {term} node {node}");
        }
    }

    #[test]
    fn different_states_and_steps_back_are_rejected() {
        let mut agreed = BTreeMap::new();
        let mut check = |before, node, index, state| check_applied(&mut agreed, before, Applied { node, index, state });
        assert_eq!(check(0, 1, 1, 10), Ok(()));
        assert_eq!(check(0, 2, 1, 10), Ok(()));
        assert_eq!(check(1, 1, 3, 30), Ok(()), "entries of raft's own are not shown");
        assert!(check(1, 2, 3, 31).is_err(), "another state");
        assert!(check(3, 1, 3, 30).is_err(), "twice");
        assert!(check(3, 1, 2, 20).is_err(), "back");
    }

    #[test]
    fn lost_doubled_and_refused_proposals_are_rejected() {
        assert_eq!(check_end(1, &[1, 2, 3], &[1, 3], &[4]), Ok(()));
        assert!(check_end(1, &[1, 2], &[1, 3], &[]).is_err(), "lost");
        assert!(check_end(1, &[1, 2, 1], &[1], &[]).is_err(), "doubled");
        assert!(check_end(1, &[1, 4], &[1], &[4]).is_err(), "refused");
    }
}
