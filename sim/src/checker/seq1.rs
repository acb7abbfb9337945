//! SEQ1: a volume's records are contiguous, each names the hash of the one before, and their windows of the journal follow
//! one another without a gap or an overlap; a relocation's window is empty. SEQ7 with it: no two authentic records for one place.

use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::id::{Hash, Incarnation, Seq};

use super::Verdict;
use crate::ledger::{Ledger, Meaning, Record};

/// Judges `next` as the record after `before`, or as a volume's first.
///
/// # Errors
/// What does not fit.
pub fn check_link(before: Option<&Record>, next: &Record) -> Verdict {
    let (chain, last) = before.map_or((Hash::ZERO, None), |before| (before.chain, Some(before.link.last)));
    if next.link.prev_hash != chain {
        return Err(format!("it names {} as the record before it, which has {chain}", next.link.prev_hash));
    }
    if last.is_some_and(|last| next.link.first != last.next()) {
        return Err(format!("its window begins at {} and the one before ends at {last:?}", next.link.first));
    }
    if next.link.first > next.link.last.next() {
        return Err(format!("its window {}..={} is inverted", next.link.first, next.link.last));
    }
    Ok(())
}

/// Judges a record that a cloud has just stored against all records ever seen. `lives` are the lives of the cluster up to
/// now, newest last.
///
/// # Errors
/// When another record for its place was seen, or it does not follow the one before.
pub fn check(ledger: &Ledger, cloud: &str, id: &ObjectId, record: &Record) -> Verdict {
    let wrong = |why: String| Err(format!("record {} of volume {} in cloud {cloud}: {why}", id.number, id.volume));
    let is_fork = |(at, other): (ObjectId, &Record)| at.incarnation == id.incarnation && other.chain != record.chain;
    if records_at(ledger, id, Seq(id.number)).any(is_fork) {
        return wrong("another record has the same place (SEQ7)".to_owned());
    }
    if id.number == 1 {
        return check_link(None, record).or_else(wrong);
    }
    // The record before may belong to an earlier life; then there may be several, and one of them must fit.
    let verdicts: Vec<_> =
        records_at(ledger, id, Seq(id.number - 1)).map(|(_, before)| check_link(Some(before), record)).collect();
    if verdicts.is_empty() {
        return wrong("no cloud ever held the record before it".to_owned());
    }
    if verdicts.iter().any(Result::is_ok) {
        Ok(())
    } else {
        verdicts.into_iter().next().unwrap_or(Ok(())).or_else(wrong)
    }
}

/// Records of `id`'s volume at `seq` that any cloud was ever given, in its life and those before.
fn records_at<'a>(ledger: &'a Ledger, id: &ObjectId, seq: Seq) -> impl Iterator<Item = (ObjectId, &'a Record)> {
    let (volume, life) = (id.volume, id.incarnation);
    (0..=life.0).rev().filter_map(move |life| {
        let id = ObjectId { kind: ObjectKind::Record, volume, incarnation: Incarnation(life), number: seq.0 };
        match &*ledger.ever(&id)?.meaning {
            Meaning::Record(record) => Some((id, record)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use velum_protocol::{
        format::sequence::{Body, Link},
        id::{Epoch, Jseq},
    };

    use super::*;

    fn record(prev: u8, window: (u64, u64), chain: u8) -> Record {
        Record {
            link: Link { epoch: Epoch(1), first: Jseq(window.0), last: Jseq(window.1), prev_hash: Hash([prev; 32]) },
            body: Body { journal_chain: Hash::ZERO, segments: Vec::new(), updates: Vec::new() },
            chain: Hash([chain; 32]),
        }
    }

    #[test]
    fn a_chain_with_adjacent_windows_is_kept() {
        assert_eq!(check_link(None, &record(0, (1, 5), 1)), Ok(()));
        assert_eq!(check_link(Some(&record(0, (1, 5), 1)), &record(1, (6, 6), 2)), Ok(()));
    }

    #[test]
    fn an_empty_window_stands_between_two_others() {
        let empty = record(1, (6, 5), 2);
        assert_eq!(check_link(Some(&record(0, (1, 5), 1)), &empty), Ok(()));
        assert_eq!(check_link(Some(&empty), &record(2, (6, 9), 3)), Ok(()));
    }

    #[test]
    fn a_record_on_another_chain_is_rejected() {
        assert!(check_link(Some(&record(0, (1, 5), 1)), &record(3, (6, 6), 2)).is_err());
        assert!(check_link(None, &record(3, (1, 6), 2)).is_err());
    }

    #[test]
    fn gaps_overlaps_and_inverted_windows_are_rejected() {
        for window in [(7, 8), (5, 8), (6, 4), (7, 6)] {
            assert!(check_link(Some(&record(0, (1, 5), 1)), &record(1, window, 2)).is_err(), "{window:?}");
        }
    }
}
