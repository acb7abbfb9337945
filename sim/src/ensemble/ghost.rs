//! What is true of the volume whatever nodes believe: its history, what was acked, where epochs were closed. Each promise is
//! judged at the moment that could break it.

use std::collections::BTreeMap;

use velum_protocol::{
    format::sequence::Link,
    id::{Epoch, Hash, Jseq, NodeId},
    peer::ensemble::Point,
};

use crate::{checker::seq1, ledger::Record};

/// The truth.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Ghost {
    /// The chain at each position of the history that counts; the first is that before any record.
    history: Vec<Hash>,
    /// The open epoch, and the lineage since it was opened.
    open: Epoch,
    lineage: u64,
    /// The highest acked at d0 in this lineage, and at d1 in any.
    d0: Jseq,
    d1: Jseq,
    /// Where each epoch ended, and the lineage it was of.
    closed: BTreeMap<Epoch, (Jseq, u64)>,
    /// Which node acked in an epoch.
    acked_by: BTreeMap<Epoch, NodeId>,
    /// The last record of the sequence.
    head: Option<Record>,
}

type Verdict = Result<(), String>;

impl Ghost {
    pub(crate) fn new() -> Self {
        Self {
            history: vec![Hash::ZERO],
            open: Epoch(0),
            lineage: 1,
            d0: Jseq(0),
            d1: Jseq(0),
            closed: BTreeMap::new(),
            acked_by: BTreeMap::new(),
            head: None,
        }
    }

    pub(crate) fn open(&self) -> Epoch {
        self.open
    }

    pub(crate) fn d1(&self) -> Jseq {
        self.d1
    }

    pub(crate) fn chain(&self, at: Jseq) -> Option<Hash> {
        self.history.get(at.0 as usize).copied()
    }

    /// An owner has made a record. Only the open epoch's count.
    pub(crate) fn made(&mut self, epoch: Epoch, end: Point) -> Verdict {
        if epoch == self.open {
            self.history.push(end.chain);
            if self.history.len() as u64 != end.at.0 + 1 {
                return Err(format!("VIS6: the owner of {epoch:?} goes on at {:?}, not behind its opening", end.at));
            }
        }
        Ok(())
    }

    /// Raft has closed the open epoch at `last` and opened `epoch`.
    pub(crate) fn close(&mut self, epoch: Epoch, last: Point, lineage_changes: bool) -> Verdict {
        if self.chain(last.at) != Some(last.chain) {
            return Err(format!("VIS6: epoch {} was closed at {last:?}, which is not of its history", self.open.0));
        }
        if let Some((closed, (end, _))) = self.closed.last_key_value().filter(|(_, (end, _))| *end > last.at) {
            return Err(format!("OWN3: {closed:?} was closed at {end:?}, and what followed it at {:?}", last.at));
        }
        if self.d1 > last.at {
            return Err(format!("VIS4: d1 was acked up to {:?} and the epoch closed at {:?}", self.d1, last.at));
        }
        if !lineage_changes && self.d0 > last.at {
            return Err(format!(
                "VIS3, VIS5: d0 was acked up to {:?}, the epoch closed at {:?}, and the lineage stays",
                self.d0, last.at
            ));
        }
        self.closed.insert(self.open, (last.at, self.lineage));
        self.history.truncate(last.at.0 as usize + 1);
        self.lineage += u64::from(lineage_changes);
        (self.open, self.d0) = (epoch, self.d0.min(last.at));
        Ok(())
    }

    /// A guest was told that records of an owner up to `point` are written.
    pub(crate) fn acked(&mut self, epoch: Epoch, node: NodeId, point: Point) -> Verdict {
        self.one_writer(epoch, node)?;
        if epoch == self.open {
            self.d0 = self.d0.max(point.at);
        } else if let Some((end, lineage)) = self.closed.get(&epoch)
            && *lineage == self.lineage
            && point.at > *end
        {
            // A session of an earlier lineage breaks when it hears of it; what it was told before is lost aloud.
            return Err(format!("OWN4: {point:?} was acked in {epoch:?}, which was closed at {end:?}"));
        }
        if epoch == self.open && self.chain(point.at) != Some(point.chain) {
            return Err(format!("VIS6: {point:?} was acked in {epoch:?} and is not of its history"));
        }
        Ok(())
    }

    /// As [`Self::acked`], for barriers.
    pub(crate) fn synced(&mut self, epoch: Epoch, node: NodeId, at: Jseq) -> Verdict {
        self.one_writer(epoch, node)?;
        if epoch == self.open {
            self.d1 = self.d1.max(at);
            self.d0 = self.d0.max(at);
        } else if let Some((end, _)) = self.closed.get(&epoch)
            && at > *end
        {
            return Err(format!("OWN4: {at:?} was synced in {epoch:?}, which was closed at {end:?}"));
        }
        Ok(())
    }

    /// Raft has taken a record of the sequence.
    pub(crate) fn sequenced(&mut self, record: Record) -> Verdict {
        let Link { epoch, last, .. } = record.link;
        if epoch != self.open {
            return Err(format!("SEQ1: a record of {epoch:?} joins the sequence while {:?} is open", self.open));
        }
        if self.chain(last) != Some(record.body.journal_chain) {
            return Err(format!("SEQ1: a record's window ends at {last:?} with what is not of the history"));
        }
        let verdict = seq1::check_link(self.head.as_ref(), &record);
        self.head = Some(record);
        verdict.map_err(|why| format!("SEQ1: a record up to {last:?}: {why}"))
    }

    /// Whether anything was acked in an epoch after this one: what its owner holds may miss it.
    pub(crate) fn is_superseded(&self, epoch: Epoch) -> bool {
        self.acked_by.keys().next_back().is_some_and(|last| *last > epoch)
    }

    fn one_writer(&mut self, epoch: Epoch, node: NodeId) -> Verdict {
        let first = *self.acked_by.entry(epoch).or_insert(node);
        if first == node { Ok(()) } else { Err(format!("OWN1: nodes {first} and {node} both acked in {epoch:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::format::sequence::Body;

    use super::*;

    fn point(at: u64) -> Point {
        Point { at: Jseq(at), chain: if at == 0 { Hash::ZERO } else { Hash([at as u8; 32]) } }
    }

    /// Epoch 1 with records 1 to 4, acked up to 3 and synced up to 2.
    fn ghost() -> Ghost {
        let mut ghost = Ghost::new();
        ghost.close(Epoch(1), point(0), false).unwrap();
        (1..=4).for_each(|at| ghost.made(Epoch(1), point(at)).unwrap());
        ghost.acked(Epoch(1), NodeId(1), point(3)).unwrap();
        ghost.synced(Epoch(1), NodeId(1), Jseq(2)).unwrap();
        ghost
    }

    #[test]
    fn what_breaks_a_promise_is_told() {
        assert!(ghost().close(Epoch(2), point(3), false).is_ok());
        assert!(ghost().close(Epoch(2), point(4), false).is_ok());
        assert!(ghost().close(Epoch(2), point(2), true).is_ok());
        assert!(ghost().close(Epoch(2), point(2), false).unwrap_err().starts_with("VIS3"));
        assert!(ghost().close(Epoch(2), point(1), true).unwrap_err().starts_with("VIS4"));
        let other = Point { at: Jseq(3), chain: Hash([9; 32]) };
        assert!(ghost().close(Epoch(2), other, false).unwrap_err().starts_with("VIS6"));
        assert!(ghost().acked(Epoch(1), NodeId(2), point(3)).unwrap_err().starts_with("OWN1"));
        let mut ghost = ghost();
        ghost.close(Epoch(2), point(3), false).unwrap();
        assert!(ghost.acked(Epoch(1), NodeId(1), point(3)).is_ok(), "an answer that comes late");
        assert!(ghost.acked(Epoch(1), NodeId(1), point(4)).unwrap_err().starts_with("OWN4"));
        assert!(ghost.synced(Epoch(1), NodeId(1), Jseq(4)).unwrap_err().starts_with("OWN4"));
        assert!(ghost.made(Epoch(2), point(5)).unwrap_err().starts_with("VIS6"));
        assert!(!ghost.is_superseded(Epoch(1)), "open, and nothing acked");
        ghost.acked(Epoch(2), NodeId(2), point(3)).unwrap();
        assert!(ghost.is_superseded(Epoch(1)) && !ghost.is_superseded(Epoch(2)));
        assert!(ghost.close(Epoch(3), point(2), true).unwrap_err().starts_with("OWN3"), "a closed end stays");
    }

    #[test]
    fn a_record_that_does_not_belong_to_the_sequence_is_told() {
        let record = |epoch, window: (u64, u64), prev: u8, chain| Record {
            link: Link { epoch, first: Jseq(window.0), last: Jseq(window.1), prev_hash: Hash([prev; 32]) },
            body: Body { journal_chain: Hash([chain; 32]), segments: Vec::new(), updates: Vec::new() },
            chain: Hash([window.1 as u8 + 100; 32]),
        };
        let mut ghost = ghost();
        assert_eq!(ghost.sequenced(record(Epoch(1), (1, 2), 0, 2)), Ok(()));
        assert!(ghost.sequenced(record(Epoch(0), (3, 3), 102, 3)).is_err(), "another epoch");
        assert!(ghost.sequenced(record(Epoch(1), (3, 3), 102, 9)).is_err(), "another history");
        assert!(ghost.sequenced(record(Epoch(1), (3, 3), 101, 3)).is_err(), "another record before it");
    }
}
