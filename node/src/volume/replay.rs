//! From what the journal kept to the buffer of a new life.
//!
//! Only records above the head's last position count: the map has the others. They must follow each other without a gap,
//! each must open under the volume's keys, and each must name the chain link of the one before it, from the head's own link
//! on. A later epoch's first record voids what an earlier epoch left at its position and above: an owner goes on from where
//! it could replay to, and what lay beyond had been given up.
//!
//! What does not fit is told apart. A record that is there and does not open, or does not join the chain, is damage or an
//! attack, never a torn write, for the journal checks its own frames: the volume must not start. A gap is damage too if any
//! record says that positions at or above it were at d1, or if the journal says that it lost something there. Otherwise the crash took the end, which had been acked at d0 at
//! most; the volume starts without it and the loss is told, so that its lineage can change.

use bytes::Bytes;
use velum_protocol::{
    format::record::{self, HEADER_BYTES, RecordError, RecordHeader},
    id::{Epoch, Hash, Jseq, Lineage},
};

use super::{
    blocks::Blocks,
    machine::VolumeMachine,
    sealing::{self, Owner, RecordOpenError},
};
use crate::{env::Instant, keyring::KeySet};

/// A record as the journal replays it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The epoch it stands under.
    pub epoch: Epoch,
    /// The position it stands under.
    pub jseq: Jseq,
    /// Its bytes.
    pub record: Bytes,
}

/// Where the sequence stands, hence where replay begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The last position in the map.
    pub last: Jseq,
    /// The journal's chain there.
    pub chain: Hash,
}

/// What the journal lacks of the volume, or may lack, although it had been durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that are damaged.
    pub records: Vec<(Epoch, Jseq)>,
    /// A gap may be damage.
    pub gaps: bool,
    /// The end may be missing.
    pub end: bool,
}

/// Why a volume must not start from this journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Bytes that are no record.
    #[error("journal record {jseq} of epoch {epoch} cannot be read: {cause}")]
    Unreadable {
        /// The epoch it stands under.
        epoch: Epoch,
        /// The position it stands under.
        jseq: Jseq,
        /// What is wrong.
        cause: RecordError,
    },
    /// A record that says it is another than it stands under, or of a time to come.
    #[error("journal record {jseq} of epoch {epoch} does not belong there")]
    Misplaced {
        /// The epoch it stands under.
        epoch: Epoch,
        /// The position it stands under.
        jseq: Jseq,
    },
    /// Records that were durable are missing.
    #[error("journal records from {first} on are missing though everything up to {durable} had been durable")]
    Missing {
        /// The first position that is not there.
        first: Jseq,
        /// The last position known to have been durable.
        durable: Jseq,
    },
    /// The journal is damaged where it had been durable.
    #[error("journal records from {first} on are damaged, or may be, though they had been durable")]
    Damaged {
        /// The first position concerned.
        first: Jseq,
    },
    /// A record does not join the chain of those before it.
    #[error("journal record {0} does not follow the record before it")]
    Chain(Jseq),
    /// A record does not open.
    #[error("journal record {jseq} does not open: {cause}")]
    Closed {
        /// Its position.
        jseq: Jseq,
        /// Why.
        cause: RecordOpenError,
    },
}

/// What is to be replayed, checked as far as it can be without keys.
#[derive(Debug)]
pub struct Replay {
    start: Start,
    records: Vec<(RecordHeader, Bytes)>,
    /// Where the positions of each epoch begin, oldest first; of all records there are.
    pub epochs: Vec<(Epoch, Jseq)>,
    /// Records beyond a gap that were given up: writes acked at d0 may be lost.
    pub given_up: usize,
}

impl Replay {
    /// Sorts out what the journal holds of a volume; `stored` is in order of epoch and position. `lost` tells apart an end
    /// that a crash took, which was at d0 at most, from one that damage took.
    ///
    /// # Errors
    /// When the volume must not start from it.
    pub fn plan(start: Start, owner: Owner, stored: Vec<Stored>, lost: &Lost) -> Result<Self, ReplayError> {
        let mut records: Vec<(RecordHeader, Bytes)> = Vec::new();
        let mut epochs: Vec<(Epoch, Jseq)> = Vec::new();
        let mut durable = start.last;
        for Stored { epoch, jseq, record } in stored {
            let (header, _) =
                RecordHeader::decode(&record).map_err(|cause| ReplayError::Unreadable { epoch, jseq, cause })?;
            let placed = (header.epoch, header.jseq) == (epoch, jseq);
            if !placed || epoch >= owner.epoch || header.lineage > owner.lineage {
                return Err(ReplayError::Misplaced { epoch, jseq });
            }
            if epochs.last().is_none_or(|(last, _)| *last < epoch) {
                epochs.push((epoch, jseq));
                while records.pop_if(|(earlier, _)| earlier.jseq >= jseq).is_some() {}
            }
            durable = durable.max(header.durable);
            if jseq > start.last {
                records.push((header, record));
            }
        }
        let joined =
            records.iter().zip(start.last.0 + 1..).take_while(|((header, _), at)| header.jseq.0 == *at).count();
        let given_up = records.len() - joined;
        records.truncate(joined);
        let last = records.last().map_or(start.last, |(header, _)| header.jseq);
        if durable > last {
            return Err(ReplayError::Missing { first: last.next(), durable });
        }
        let given_up_by_later =
            |epoch: Epoch, jseq: Jseq| epochs.iter().any(|(at, first)| *at > epoch && *first <= jseq);
        let needed = |(epoch, jseq): &&(Epoch, Jseq)| *jseq > start.last && !given_up_by_later(*epoch, *jseq);
        if let Some(first) = lost.records.iter().filter(needed).map(|(_, jseq)| *jseq).min() {
            return Err(ReplayError::Damaged { first });
        }
        if lost.end || (lost.gaps && given_up > 0) {
            return Err(ReplayError::Damaged { first: last.next() });
        }
        Ok(Self { start, records, epochs, given_up })
    }

    /// Opens the records in order and puts them into `volume`, which knows everything up to the start.
    /// Gives the chain at the last one.
    ///
    /// # Errors
    /// When a record does not open or does not join the chain; the volume must not start then.
    pub fn run(&self, now: Instant, keys: &KeySet, volume: &mut VolumeMachine) -> Result<Hash, ReplayError> {
        let mut chain = self.start.chain;
        let mut lineage = Lineage(0);
        for (header, record) in &self.records {
            let jseq = header.jseq;
            if header.prev != chain || header.lineage < lineage {
                return Err(ReplayError::Chain(jseq));
            }
            lineage = header.lineage;
            let Some((lead, body)) = record.split_first_chunk::<HEADER_BYTES>() else {
                return Err(ReplayError::Chain(jseq));
            };
            let contents = sealing::open(keys, header, body).map_err(|cause| ReplayError::Closed { jseq, cause })?;
            chain = record::chain(lead, body);
            let blocks = Blocks { first: header.start.0, count: header.count.0 };
            volume.restore(now, header.kind, blocks, &contents, chain);
        }
        Ok(chain)
    }

    /// Records to be replayed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True when the map has everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}
