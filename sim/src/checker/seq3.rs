//! SEQ3: each cloud is closed at every instant: what a record or a checkpoint in it names lies in the same cloud, and
//! records follow without a gap from its newest complete checkpoint or from the first. GC1 with it: nothing that a record
//! or checkpoint in a cloud names is deleted there.

use std::collections::BTreeSet;

use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::id::Seq;

use super::Verdict;
use crate::ledger::{Holding, Ledger, Meaning};

/// Judges an object that `cloud` has just stored.
///
/// # Errors
/// The first thing it names that the cloud lacks.
pub fn check_stored(ledger: &Ledger, cloud: &str, id: &ObjectId) -> Verdict {
    let is_link = matches!(id.kind, ObjectKind::Record | ObjectKind::Root | ObjectKind::Stub);
    if !is_link || ledger.holdings[cloud].came_back(id) {
        return Ok(());
    }
    match ledger.check_whole(cloud, *id) {
        Err(why) if !is_overtaken(ledger, cloud, id) => return Err(why),
        _ => {}
    }
    // What a node of an earlier life had under way when it died is void and bound to nothing.
    if id.kind == ObjectKind::Record && id.incarnation >= ledger.newest_life(cloud) {
        let (head, _) = ledger.head(cloud, id.volume);
        if head.0 < id.number {
            return Err(format!("cloud {cloud} got record {} and has none of {}", id.number, head.next()));
        }
    }
    Ok(())
}

/// True of a checkpoint when the cloud has a newer one, whole but for its own stub. A cloud that was away gets the stubs it
/// missed after that, lowest first, so that there is no gap among them; their roots may be gone everywhere by then. And an
/// owner that was frozen over its draft may store the root of that before it hears that another one has gone on: nobody comes
/// to agree on it, and what it names may be reclaimed.
fn is_overtaken(ledger: &Ledger, cloud: &str, id: &ObjectId) -> bool {
    let (seq, old) = match ledger.held(cloud, id).map(|known| &*known.meaning) {
        Some(Meaning::Stub(missed)) => {
            let root = &missed.checkpoint.root;
            (missed.checkpoint.seq, (root.incarnation, root.number.0))
        }
        Some(Meaning::Root { link, .. }) => (link.seq, (id.incarnation, id.number)),
        _ => return false,
    };
    let roots = ledger.holdings[cloud].of(ObjectKind::Root, id.volume);
    roots.rev().any(|(root, hash)| {
        let known = ledger.known(hash).map(|known| &*known.meaning);
        // Two checkpoints may stand at one seq, when the later was made to free what the earlier still names.
        let stands_later = matches!(known, Some(Meaning::Root { link, .. }) if link.seq >= seq);
        let is_newer = stands_later && (root.incarnation, root.number) > old;
        is_newer && ledger.holdings[cloud].is_whole(root)
    })
}

/// Judges a deletion of `gone` in `cloud`, which has already happened; `before` is where the volume's chain in the cloud ended
/// until then.
///
/// # Errors
/// The object left in the cloud that still names it, or that the chain is shorter for it.
pub fn check_deleted(ledger: &Ledger, cloud: &str, gone: &ObjectId, before: Seq) -> Verdict {
    if matches!(gone.kind, ObjectKind::Catalogue | ObjectKind::Claim) {
        return Ok(());
    }
    // Nothing else is part of the chain but by being named.
    let is_link = matches!(gone.kind, ObjectKind::Record | ObjectKind::Root | ObjectKind::Stub);
    if is_link && ledger.head(cloud, gone.volume).0 < before {
        let (after, _) = ledger.head(cloud, gone.volume);
        return Err(format!(
            "{gone:?} was deleted in cloud {cloud}, whose chain ended at {before} and now ends at {after}"
        ));
    }
    let holding = &ledger.holdings[cloud];
    let mut records = holding.named_by(gone).filter(|id| id.kind == ObjectKind::Record && !holding.came_back(id));
    if let Some(id) = records.next() {
        return Err(format!("{gone:?} was deleted in cloud {cloud}, where {id:?} still names it"));
    }
    match checkpoint_that_names(holding, gone) {
        None => Ok(()),
        Some(root) => Err(format!("{gone:?} was deleted in cloud {cloud}, where checkpoint {root:?} still names it")),
    }
}

/// A root in the cloud whose checkpoint names `gone`. Only roots that a stub names count: a reader starts from stubs, and a
/// root without one was never agreed on. A stub outlives its root, for what it says of the chain stays true; that the newest
/// root stays follows from the chain.
fn checkpoint_that_names(holding: &Holding, gone: &ObjectId) -> Option<ObjectId> {
    let mut left = vec![*gone];
    let mut reached = BTreeSet::new();
    while let Some(at) = left.pop() {
        let is_agreed = || holding.named_by(&at).any(|id| id.kind == ObjectKind::Stub);
        if at.kind == ObjectKind::Root && at != *gone && !holding.came_back(&at) && is_agreed() {
            return Some(at);
        }
        if reached.insert(at) {
            left.extend(holding.named_by(&at).filter(|id| matches!(id.kind, ObjectKind::Page | ObjectKind::Root)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use velum_node::keyring::ObjectKind::{Page, Record, Root, Segment, Stub};

    use super::*;
    use crate::ledger::example::{page, record, root, segment, stub};

    /// Cloud a with records 1 and 2, segments 10 and 11, and checkpoint 1 at the first record.
    fn cloud() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.tell("a", Segment, 10, segment());
        ledger.tell("a", Record, 1, record(&[10]));
        ledger.tell("a", Page, 20, page(&[10]));
        ledger.tell("a", Root, 21, root(1, 20));
        ledger.tell("a", Stub, 1, stub(1, 1, 21));
        ledger.tell("a", Segment, 11, segment());
        ledger.tell("a", Record, 2, record(&[11]));
        ledger
    }

    fn gone(ledger: &mut Ledger, kind: ObjectKind, number: u64) -> Verdict {
        let id = crate::ledger::example::id(kind, number);
        let (before, _) = ledger.head("a", id.volume);
        ledger.tell_gone("a", &id);
        check_deleted(ledger, "a", &id, before)
    }

    #[test]
    fn a_closed_cloud_is_kept() {
        let ledger = cloud();
        for kind in [Segment, Record, Page, Root, Stub] {
            for (id, _) in ledger.holdings["a"].of(kind, crate::ledger::example::VOLUME) {
                assert_eq!(check_stored(&ledger, "a", id), Ok(()), "{id:?}");
            }
        }
    }

    #[test]
    fn what_is_stored_before_what_it_names_is_rejected() {
        for (missing, parent) in [
            ((Segment, 11), (Record, 2)),
            ((Segment, 10), (Root, 21)),
            ((Page, 20), (Root, 21)),
            ((Page, 20), (Stub, 1)),
            ((Root, 21), (Stub, 1)),
        ] {
            let mut ledger = cloud();
            ledger.tell_gone("a", &crate::ledger::example::id(missing.0, missing.1));
            let parent = crate::ledger::example::id(parent.0, parent.1);
            assert!(check_stored(&ledger, "a", &parent).is_err(), "{missing:?} {parent:?}");
        }
    }

    #[test]
    fn what_lies_only_in_another_cloud_counts_as_missing() {
        let mut ledger = cloud();
        ledger.tell("b", Segment, 12, segment());
        let id = ledger.tell("a", Record, 3, record(&[12]));
        assert!(check_stored(&ledger, "a", &id).is_err());
    }

    #[test]
    fn a_record_behind_a_gap_is_rejected() {
        let mut ledger = cloud();
        let id = ledger.tell("a", Record, 4, record(&[]));
        assert!(check_stored(&ledger, "a", &id).is_err());
    }

    #[test]
    fn nothing_that_a_record_or_checkpoint_names_may_be_deleted() {
        for (kind, number) in [(Segment, 11), (Segment, 10), (Page, 20)] {
            assert!(gone(&mut cloud(), kind, number).is_err(), "{kind:?} {number}");
        }
    }

    #[test]
    fn nothing_that_the_chain_needs_may_be_deleted() {
        for (kind, number) in [(Record, 2), (Root, 21), (Stub, 1)] {
            let mut ledger = cloud();
            if kind != Record {
                gone(&mut ledger, Record, 1).unwrap();
            }
            assert!(gone(&mut ledger, kind, number).is_err(), "{kind:?} {number}");
        }
    }

    #[test]
    fn a_deleted_record_that_a_late_request_brings_back_binds_nobody() {
        let mut ledger = cloud();
        gone(&mut ledger, Record, 1).unwrap();
        gone(&mut ledger, Record, 1).unwrap();
        let back = ledger.tell("a", Record, 1, record(&[9]));
        assert_eq!(check_stored(&ledger, "a", &back), Ok(()));
        ledger.tell("a", Segment, 9, segment());
        assert_eq!(gone(&mut ledger, Segment, 9), Ok(()));
        let other = ledger.tell("a", Record, 3, record(&[9]));
        assert!(check_stored(&ledger, "a", &other).is_err());
    }

    #[test]
    fn what_only_the_root_of_no_checkpoint_names_may_be_deleted() {
        let mut ledger = cloud();
        ledger.tell("a", Segment, 13, segment());
        ledger.tell("a", Page, 30, page(&[13]));
        ledger.tell("a", Root, 31, root(2, 30));
        assert_eq!(gone(&mut ledger, Segment, 13), Ok(()));
        ledger.tell("a", Segment, 13, segment());
        ledger.tell("a", Stub, 2, stub(2, 2, 31));
        assert!(gone(&mut ledger, Segment, 13).is_err());
    }

    #[test]
    fn a_root_that_comes_late_binds_nobody_when_a_newer_one_is_whole() {
        let mut ledger = cloud();
        ledger.tell("a", Page, 25, page(&[12]));
        let late = ledger.tell("a", Root, 26, root(1, 25));
        assert!(check_stored(&ledger, "a", &late).is_err(), "it is the newest");
        ledger.tell("a", Page, 30, page(&[11]));
        ledger.tell("a", Root, 31, root(2, 30));
        assert_eq!(check_stored(&ledger, "a", &late), Ok(()));
        ledger.tell_gone("a", &crate::ledger::example::id(Page, 30));
        assert!(check_stored(&ledger, "a", &late).is_err(), "the newer one is not whole");
    }

    #[test]
    fn an_old_root_and_then_what_it_named_may_go() {
        let mut ledger = cloud();
        ledger.tell("a", Page, 30, page(&[11]));
        ledger.tell("a", Root, 31, root(2, 30));
        ledger.tell("a", Stub, 2, stub(2, 2, 31));
        for (kind, number) in [(Record, 1), (Root, 21), (Page, 20), (Segment, 10)] {
            assert_eq!(gone(&mut ledger, kind, number), Ok(()), "{kind:?} {number}");
        }
        assert!(gone(&mut ledger, Segment, 11).is_err());
    }
}
