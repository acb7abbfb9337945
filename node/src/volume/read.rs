//! Reads, prefetches and status requests.
//!
//! A read is answered with pieces that are never copied: blocks of the buffer and of the cache, and stretches of zeros. Each
//! block is taken whole at one instant, so that no reply mixes two versions within a block, whatever is written meanwhile.

use bytes::Bytes;
use velum_protocol::{
    format::metadata::Right,
    id::{BLOCK_BYTES, BlockIndex, Jseq},
};

use super::{
    blocks::Blocks,
    buffer::Piece,
    gather::{Gathered, Purpose},
    machine::{Effect, VolumeMachine},
    messages::{Origin, Outcome, StatusExtent},
};
use crate::{audit::ByteRange, env::Instant, extent::PageNeeded};

/// Blocks looked at for one status request (256 MiB); the reply ends there, as the protocol allows.
const STATUS_BLOCKS_MAX: u64 = 65_536;

/// Blocks looked up at a time for a status: one leaf of the map.
const STATUS_STEP_BLOCKS: u64 = 4096;

impl VolumeMachine {
    pub(super) fn read(&mut self, now: Instant, origin: Origin, offset: u64, length: u32, effects: &mut Vec<Effect>) {
        let bytes = ByteRange { offset, length: u64::from(length) };
        if self.admit_range(origin, bytes, Right::Read, effects).is_some() {
            self.start_task(now, origin, Purpose::Read(bytes), effects);
            self.read_ahead(origin.session, bytes, effects);
        }
    }

    pub(super) fn prefetch(
        &mut self,
        now: Instant,
        origin: Origin,
        offset: u64,
        length: u32,
        effects: &mut Vec<Effect>,
    ) {
        let bytes = ByteRange { offset, length: u64::from(length) };
        if self.admit_range(origin, bytes, Right::Read, effects).is_some() {
            self.start_task(now, origin, Purpose::Prefetch(bytes), effects);
        }
    }

    pub(super) fn status(&mut self, origin: Origin, bytes: ByteRange, extents_max: usize, effects: &mut Vec<Effect>) {
        if self.admit_range(origin, bytes, Right::Read, effects).is_some() {
            self.answer_status(origin, bytes, extents_max, effects);
        }
    }

    pub(super) fn answer_read(
        &mut self,
        origin: Origin,
        bytes: ByteRange,
        gathered: Gathered,
        effects: &mut Vec<Effect>,
    ) {
        let Gathered { mut pieces, newest, .. } = gathered;
        trim_to(&mut pieces, bytes);
        self.ack_read(newest, origin, Outcome::Data(pieces), effects);
    }

    /// Answers with what can be told now; fetches a page only when nothing can.
    pub(super) fn answer_status(
        &mut self,
        origin: Origin,
        bytes: ByteRange,
        extents_max: usize,
        effects: &mut Vec<Effect>,
    ) {
        let mut runs = Runs { extents: Vec::new(), extents_max: extents_max.max(1), left: bytes.length };
        let mut next = Blocks::of(bytes);
        next.count = next.count.min(STATUS_BLOCKS_MAX);
        // The first block may belong to the range only in part.
        let skip = bytes.offset % BLOCK_BYTES;
        let end = next.end();
        let mut newest = None;
        while next.first < end && runs.goes_on() {
            next.count = (end - next.first).min(STATUS_STEP_BLOCKS);
            match self.status_of(next, if runs.extents.is_empty() { skip } else { 0 }, &mut runs) {
                Ok(position) => newest = newest.max(position),
                Err(_) if !runs.extents.is_empty() => break,
                Err(PageNeeded(page)) => {
                    return self.await_page_for_status(origin, Purpose::Status(bytes, extents_max), page, effects);
                }
            }
            next.first = next.end();
        }
        self.ack_read(newest, origin, Outcome::Status(runs.extents), effects);
    }

    /// Appends the runs of `blocks`, less the first `skip` bytes. Nothing is appended on an error.
    fn status_of(&mut self, blocks: Blocks, skip: u64, runs: &mut Runs) -> Result<Option<Jseq>, PageNeeded> {
        let mut pieces = Vec::new();
        let newest = self.buffer.look_up(blocks.first, blocks.count, &mut pieces);
        let mut found: Vec<(u64, bool)> = Vec::with_capacity(pieces.len());
        let mut mapped = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Data(_) => found.push((1, false)),
                Piece::Zero(count) => found.push((count, true)),
                Piece::Ask { start, count } => {
                    mapped.clear();
                    self.map.lookup(BlockIndex(start), count, &mut mapped)?;
                    found.extend(mapped.iter().map(|run| (run.count, run.location.is_none())));
                }
            }
        }
        let mut skip = skip;
        for (count, hole) in found {
            runs.push(count * BLOCK_BYTES - skip, hole);
            skip = 0;
        }
        Ok(newest)
    }
}

/// The extents of a status reply as they grow.
struct Runs {
    extents: Vec<StatusExtent>,
    extents_max: usize,
    /// Bytes of the request not answered yet.
    left: u64,
}

impl Runs {
    fn goes_on(&self) -> bool {
        self.left > 0
    }

    fn push(&mut self, length: u64, hole: bool) {
        let length = length.min(self.left);
        let full = self.extents.len() >= self.extents_max;
        match self.extents.last_mut() {
            _ if length == 0 => return,
            Some(last) if last.hole == hole => last.length += length,
            _ if full => {
                self.left = 0;
                return;
            }
            _ => self.extents.push(StatusExtent { length, hole }),
        }
        self.left -= length;
    }
}

/// Cuts the pieces of whole blocks down to the bytes asked for.
fn trim_to(pieces: &mut [Bytes], bytes: ByteRange) {
    let skip = bytes.offset % BLOCK_BYTES;
    if skip > 0
        && let Some(first) = pieces.first_mut()
    {
        drop(first.split_to(usize::try_from(skip).unwrap_or(0).min(first.len())));
    }
    let tail = (bytes.offset + bytes.length) % BLOCK_BYTES;
    if tail > 0
        && let Some(last) = pieces.last_mut()
    {
        let excess = usize::try_from(BLOCK_BYTES - tail).unwrap_or(0);
        last.truncate(last.len().saturating_sub(excess));
    }
}
