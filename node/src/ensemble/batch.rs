//! Records of a peer's, judged before any of them is kept: contiguous, linked, and of epochs that can be.

use bytes::Bytes;
use velum_protocol::{
    format::record::{HEADER_BYTES, RecordError, RecordHeader, chain},
    id::{Epoch, Hash, Jseq},
    peer::ensemble::{Point, RECORDS_MAX},
};

/// Bytes of the records that an owner sends in a frame: beyond that more in a frame saves nothing, and keeps what else is on the link
/// waiting.
pub(super) const FRAME_BYTES: usize = 256 << 10;

/// The same of a tail, each part of which is asked for: the volume is served when all are there.
pub(super) const TAIL_BYTES: usize = 1 << 20;

/// A record that is held, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The epoch of the owner that made it.
    pub epoch: Epoch,
    /// The chain at it.
    pub chain: Hash,
    /// The d1 mark that it tells.
    pub durable: Jseq,
    /// It, sealed.
    pub record: Bytes,
}

/// Why records are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// Not even a record.
    #[error("the peer sent what is no journal record: {0}")]
    Record(#[from] RecordError),
    /// It does not follow.
    #[error("the peer's record at {0} does not follow the one before it")]
    Order(Jseq),
    /// Of an epoch that its place cannot be of.
    #[error("the peer's record at {0} is of an epoch that does not fit")]
    Epoch(Jseq),
}

/// What the records that follow `prev` are, of `epoch` or earlier ones.
///
/// # Errors
/// When one of them is no record, or is not to be where it is.
pub fn judge(prev: Point, epoch: Epoch, records: &[Bytes]) -> Result<Vec<Held>, BatchFault> {
    let (mut before, mut earliest) = (prev, Epoch(0));
    let mut judged = Vec::with_capacity(records.len());
    for record in records {
        let held = judge_one(before, (earliest, epoch), record.clone())?;
        (before, earliest) = (Point { at: before.at.next(), chain: held.chain }, held.epoch);
        judged.push(held);
    }
    Ok(judged)
}

/// What the record that follows `prev` is, of an epoch within bounds.
///
/// # Errors
/// When it is no record, or is not to be there.
pub(super) fn judge_one(prev: Point, (earliest, latest): (Epoch, Epoch), record: Bytes) -> Result<Held, BatchFault> {
    let (header, sealed) = RecordHeader::decode(&record)?;
    let RecordHeader { jseq, epoch, durable, .. } = header;
    if prev.at.0.checked_add(1) != Some(jseq.0) || header.prev != prev.chain {
        return Err(BatchFault::Order(jseq));
    }
    if epoch > latest || epoch < earliest || epoch.0 == 0 {
        return Err(BatchFault::Epoch(jseq));
    }
    let bytes = record.first_chunk::<HEADER_BYTES>().expect("a decoded record begins with its header");
    Ok(Held { epoch, chain: chain(bytes, sealed), durable, record })
}

/// As many of `records`, from the first, as one frame of about so many bytes is to carry: at least one.
pub(super) fn fitting<'a>(
    records: impl Iterator<Item = &'a Bytes>,
    bytes_max: usize,
) -> impl Iterator<Item = &'a Bytes> {
    let mut bytes = 0;
    let is_within = move |(count, record): &(usize, &Bytes)| {
        bytes += record.len();
        *count == 0 || (bytes <= bytes_max && *count < RECORDS_MAX)
    };
    records.enumerate().take_while(is_within).map(|(_, record)| record)
}

/// True when an owner's frame is not to carry more than these.
pub(super) fn is_full(records: &[Bytes]) -> bool {
    // The next one would not have fit, or hardly anything would.
    records.len() >= RECORDS_MAX || records.iter().map(Bytes::len).sum::<usize>() >= FRAME_BYTES / 2
}

/// The position so many records behind another.
pub(super) fn position(from: Jseq, records: usize) -> Jseq {
    let records = u64::try_from(records).expect("a length in memory fits 64 bits");
    Jseq(from.0.checked_add(records).expect("positions outlive the hardware"))
}
