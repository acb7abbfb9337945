//! GC4: at rest nothing is left in a cloud of what earlier lives of the cluster stored there, whatever of it a recovery has seen,
//! but what the volume's two newest checkpoints and the records behind them name.
//!
//! Stubs, claims and the catalogue are kept for ever and are not litter. Of the life that goes on nothing is judged: what it
//! has stored last waits for its next checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::id::{Incarnation, VolumeId};

use super::Verdict;
use crate::ledger::{Holding, Ledger, Meaning};

/// Kinds that are deleted once nothing needs them.
const KINDS: [ObjectKind; 4] = [ObjectKind::Record, ObjectKind::Root, ObjectKind::Page, ObjectKind::Segment];

/// Judges what `cloud` still holds that earlier lives stored of a volume at rest.
///
/// # Errors
/// Some of what nothing needs, and how much there is of it.
pub fn check(ledger: &Ledger, cloud: &str, volume: VolumeId) -> Verdict {
    let holding = &ledger.holdings[cloud];
    let mut needed: BTreeSet<ObjectId> = BTreeSet::new();
    let mut checkpoints: BTreeMap<(Incarnation, u64), (&str, ObjectId, u64)> = BTreeMap::new();
    for (name, holding) in &ledger.holdings {
        checkpoints.extend(
            whole_checkpoints(ledger, holding, volume)
                .map(|(life, number, root, seq)| ((life, number), (name.as_str(), root, seq))),
        );
    }
    let newest: Vec<_> = checkpoints.iter().rev().take(2).collect();
    for (_, (holder, root, _)) in &newest {
        needed.extend(ledger.closure(holder, *root)?);
    }
    let (life, floor) = newest.last().map_or((Incarnation(0), 0), |((life, _), (.., seq))| (*life, *seq));
    for (record, _) in holding.of(ObjectKind::Record, volume) {
        // Behind a checkpoint of one life, records of those before it are void.
        if record.number > floor && record.incarnation >= life {
            needed.insert(*record);
            needed.extend(holding.names(record).iter().map(|(named, _)| *named));
        }
    }
    let current = ledger.holdings.keys().map(|cloud| ledger.newest_life(cloud)).max().unwrap_or_default();
    let all = KINDS.iter().flat_map(|kind| holding.of(*kind, volume));
    let is_litter = |id: &&ObjectId| id.incarnation < current && !needed.contains(id) && !holding.came_back(id);
    let litter: Vec<_> = all.map(|(id, _)| id).filter(is_litter).collect();
    match litter.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            let (count, last) = (litter.len(), litter.last().unwrap_or(first));
            Err(format!("cloud {cloud} holds {count} objects that nothing needs, from {first:?} to {last:?}"))
        }
    }
}

/// The checkpoints that a cloud holds whole: the life that made it, its number, its root and its seq.
fn whole_checkpoints<'a>(
    ledger: &'a Ledger,
    holding: &'a Holding,
    volume: VolumeId,
) -> impl Iterator<Item = (Incarnation, u64, ObjectId, u64)> + 'a {
    holding.of(ObjectKind::Stub, volume).filter_map(move |(id, hash)| {
        let Some(Meaning::Stub(stub)) = ledger.known(hash).map(|known| &*known.meaning) else { return None };
        let root = &stub.checkpoint.root;
        let root = ObjectId { kind: ObjectKind::Root, volume, incarnation: root.incarnation, number: root.number.0 };
        holding.is_whole(&root).then_some((id.incarnation, id.number, root, stub.checkpoint.seq.0))
    })
}

#[cfg(test)]
mod tests {
    use velum_node::keyring::ObjectKind::{Page, Record, Root, Segment, Stub};

    use super::*;
    use crate::ledger::example::{VOLUME, id, page, record, root, segment, stub};

    /// Checkpoints 2 and 3 at records 2 and 3, and record 4; then a life begins.
    fn cloud() -> Ledger {
        let mut ledger = Ledger::default();
        for (number, pages, roots) in [(2, 20, 21), (3, 30, 31)] {
            ledger.tell("a", Segment, number, segment());
            ledger.tell("a", Page, pages, page(&[number]));
            ledger.tell("a", Root, roots, root(number, pages));
            ledger.tell("a", Stub, number, stub(number, number, roots));
        }
        ledger.tell("a", Record, 3, record(&[3]));
        ledger.tell("a", Segment, 4, segment());
        ledger.tell("a", Record, 4, record(&[4]));
        ledger.tell_claim("a", 2);
        ledger
    }

    #[test]
    fn what_the_last_two_checkpoints_and_later_records_name_is_needed() {
        assert_eq!(check(&cloud(), "a", VOLUME), Ok(()));
        let mut ledger = Ledger::default();
        ledger.tell("a", Segment, 1, segment());
        ledger.tell("a", Record, 1, record(&[1]));
        ledger.tell_claim("a", 2);
        assert_eq!(check(&ledger, "a", VOLUME), Ok(()), "before the first checkpoint");
    }

    #[test]
    fn the_life_that_goes_on_is_not_judged() {
        let mut ledger = Ledger::default();
        ledger.tell("a", Segment, 9, segment());
        assert_eq!(check(&ledger, "a", VOLUME), Ok(()));
        ledger.tell_claim("a", 2);
        assert!(check(&ledger, "a", VOLUME).is_err());
    }

    #[test]
    fn one_object_of_any_kind_that_nothing_needs_is_rejected() {
        for (kind, number, meaning) in
            [(Segment, 9, segment()), (Page, 9, page(&[])), (Root, 9, root(1, 20)), (Record, 2, record(&[2]))]
        {
            let mut ledger = cloud();
            ledger.tell("a", kind, number, meaning);
            assert!(check(&ledger, "a", VOLUME).is_err(), "{kind:?}");
            ledger.tell_gone("a", &id(kind, number));
            assert_eq!(check(&ledger, "a", VOLUME), Ok(()));
        }
    }

    #[test]
    fn what_came_back_after_it_was_deleted_is_nobodys_fault() {
        let mut ledger = cloud();
        ledger.tell("a", Segment, 9, segment());
        ledger.tell_gone("a", &id(Segment, 9));
        ledger.tell("a", Segment, 9, segment());
        assert_eq!(check(&ledger, "a", VOLUME), Ok(()));
    }
}
