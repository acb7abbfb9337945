//! Writes, trims and zeroes: from a guest's bytes to records of whole blocks.
//!
//! A write first needs room, in the dirty budget and in the journal; without, it waits in line, and every later write of the
//! volume waits behind it. Once let in, it waits for earlier writes to the same blocks that are still under way: those
//! change part of a block and must first learn what the rest of it holds. Then it gets its positions, all at once, and is
//! out of here. The common case, whole blocks and nobody waiting, goes through without ever being stored.
//!
//! A request becomes records of at most 1 MiB; one of at most 64 KiB on block bounds is exactly one record, hence atomic
//! across crashes. Zeros written as data come in steps of one record each, and each step needs its own room: a guest may ask
//! for gigabytes of them in one request.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use velum_protocol::{
    format::{
        metadata::Right,
        record::{ATOMIC_BLOCKS_MAX, HEADER_BYTES, RecordKind, SEAL_BYTES, WRITE_BLOCKS_MAX, ZERO_DATA_BLOCKS_MAX},
    },
    id::{BLOCK_BYTES, BLOCK_LEN, BlockCount, BlockIndex, Hash, Jseq, SessionId},
};

use super::{
    blocks::Blocks,
    buffer::RUN_BYTES,
    machine::{Effect, Record, VolumeMachine},
    messages::{Origin, Refusal},
};
use crate::{audit::ByteRange, env::Instant};

/// What a write may cost the buffer beyond its blocks: the runs it may split.
const SPLIT_BYTES: u64 = 3 * RUN_BYTES;

/// What a record takes in the journal beyond its contents: header, seal, and the journal's own frame, rounded up.
const RECORD_OVERHEAD_BYTES: u64 = HEADER_BYTES as u64 + SEAL_BYTES + 120;

/// A block of zeros.
pub(super) static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// One request that changes the volume.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) origin: Origin,
    bytes: ByteRange,
    what: What,
    fua: bool,
}

#[derive(Debug)]
enum What {
    Payload(Bytes),
    Unmap,
    /// Zeros as data; `done` blocks of the middle are written.
    Zeros {
        done: u64,
    },
}

/// A block at an end of a write that changes only partly.
#[derive(Debug)]
pub(super) struct Edge {
    block: u64,
    contents: Bytes,
}

/// Writes that wait.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// In the order they came.
    pending: BTreeMap<u64, Pending>,
    /// Of these, the ones that have no room.
    stalled: BTreeSet<u64>,
    next_ticket: u64,
    /// Bytes reserved for writes that have room and no position yet.
    reserved: u64,
    /// Something pending is gone: what waited behind it may go on.
    freed: bool,
    /// The journal was asked to tell when it has room.
    awaiting_room: bool,
    /// Bytes of records made in this step, which the journal does not know of yet.
    pub(super) unappended_bytes: u64,
}

#[derive(Debug)]
struct Pending {
    write: Write,
    reserved: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Has no room yet.
    Stalled,
    /// Waits for an earlier write to the same blocks.
    Blocked,
    /// Waits for the contents of its edges.
    Filling,
}

impl Writes {
    /// Writes that wait for room.
    pub(super) fn stalled(&self) -> usize {
        self.stalled.len()
    }

    /// Bytes reserved for writes that have room and no position yet.
    pub(super) const fn reserved(&self) -> u64 {
        self.reserved
    }

    fn overlapped_before(&self, ticket: u64, blocks: Blocks) -> bool {
        self.pending.range(..ticket).any(|(_, earlier)| earlier.write.blocks().overlaps(blocks))
    }
}

impl Write {
    pub(super) const fn end(&self) -> u64 {
        self.bytes.offset + self.bytes.length
    }

    /// Every block touched, also partly.
    const fn blocks(&self) -> Blocks {
        Blocks::of(self.bytes)
    }

    /// The blocks at the ends that change only partly, at most two.
    fn edge_blocks(&self) -> impl Iterator<Item = u64> + use<> {
        let head = (!self.bytes.offset.is_multiple_of(BLOCK_BYTES)).then_some(self.bytes.offset / BLOCK_BYTES);
        let tail = (!self.end().is_multiple_of(BLOCK_BYTES)).then_some(self.end() / BLOCK_BYTES);
        head.into_iter().chain(tail.filter(|tail| head != Some(*tail)))
    }

    /// The blocks between the edges, which change wholly.
    fn middle(&self) -> Blocks {
        let first = self.bytes.offset.div_ceil(BLOCK_BYTES);
        Blocks { first, count: (self.end() / BLOCK_BYTES).saturating_sub(first) }
    }

    /// Blocks of contents that the next step puts into the buffer.
    fn step_blocks(&self) -> u64 {
        match self.what {
            What::Payload(_) => self.blocks().count,
            What::Unmap => self.edge_blocks().count() as u64,
            What::Zeros { done } => {
                let edges = if done == 0 { self.edge_blocks().count() as u64 } else { 0 };
                edges + (self.middle().count - done).min(ZERO_DATA_BLOCKS_MAX)
            }
        }
    }

    /// At most what the next step adds to the buffer.
    fn charge(&self) -> u64 {
        self.step_blocks() * BLOCK_BYTES + SPLIT_BYTES
    }

    /// At most what the next step adds to the journal: an edge each, a record per full one, and one for the rest.
    fn journal_bytes(&self, record_blocks_max: u64) -> u64 {
        let blocks = self.step_blocks();
        blocks * BLOCK_BYTES + (blocks / record_blocks_max + 3) * RECORD_OVERHEAD_BYTES
    }

    /// An edge's new contents when this write makes zeros: the old ones with zeros over its part.
    fn zeroed(&self, edge: &Edge) -> Bytes {
        let start = edge.block * BLOCK_BYTES;
        let from = in_block(self.bytes.offset.max(start) - start);
        let to = in_block(self.end().min(start + BLOCK_BYTES) - start);
        let mut contents = BytesMut::from(edge.contents.as_ref());
        if let Some(part) = contents.get_mut(from..to) {
            part.fill(0);
        }
        contents.freeze()
    }

    /// A payload's whole blocks: its edges filled up with what stands there.
    fn whole(&self, payload: &Bytes, edges: &[Edge]) -> Bytes {
        if edges.is_empty() {
            return payload.clone();
        }
        let blocks = self.blocks();
        let mut whole = BytesMut::with_capacity(payload.len() + 2 * BLOCK_LEN);
        let contents =
            |block: u64| edges.iter().find(|edge| edge.block == block).map_or(&ZEROS[..], |edge| &edge.contents);
        let head = in_block(self.bytes.offset - blocks.first * BLOCK_BYTES);
        whole.extend_from_slice(contents(blocks.first).get(..head).unwrap_or_default());
        whole.extend_from_slice(payload);
        let tail = whole.len() % BLOCK_LEN;
        if tail > 0 {
            whole.extend_from_slice(contents(blocks.end() - 1).get(tail..).unwrap_or_default());
        }
        whole.freeze()
    }
}

/// An offset within a block as an index.
fn in_block(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(BLOCK_LEN).min(BLOCK_LEN)
}

impl VolumeMachine {
    pub(super) fn write_payload(
        &mut self,
        now: Instant,
        origin: Origin,
        offset: u64,
        payload: Bytes,
        fua: bool,
        effects: &mut Vec<Effect>,
    ) {
        let bytes = ByteRange { offset, length: payload.len() as u64 };
        self.change(now, Write { origin, bytes, what: What::Payload(payload), fua }, effects);
    }

    pub(super) fn unmap(
        &mut self,
        now: Instant,
        origin: Origin,
        offset: u64,
        length: u64,
        fua: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.change(now, Write { origin, bytes: ByteRange { offset, length }, what: What::Unmap, fua }, effects);
    }

    pub(super) fn zero(
        &mut self,
        now: Instant,
        origin: Origin,
        offset: u64,
        length: u64,
        fua: bool,
        effects: &mut Vec<Effect>,
    ) {
        let what = What::Zeros { done: 0 };
        self.change(now, Write { origin, bytes: ByteRange { offset, length }, what, fua }, effects);
    }

    fn change(&mut self, now: Instant, mut write: Write, effects: &mut Vec<Effect>) {
        if self.journaled.poisoned {
            return self.refuse(write.origin, Refusal::Failed, effects);
        }
        if self.admit_range(write.origin, write.bytes, Right::Write, effects).is_none() {
            return;
        }
        let whole_blocks = write.edge_blocks().next().is_none();
        if whole_blocks && self.writes.pending.is_empty() && self.take_room(&write) {
            let reserved = write.charge();
            self.writes.reserved += reserved;
            if self.apply(now, &mut write, &[], reserved, effects) {
                return;
            }
        }
        let ticket = self.writes.next_ticket;
        self.writes.next_ticket += 1;
        self.writes.pending.insert(ticket, Pending { write, reserved: 0, state: State::Stalled });
        self.writes.stalled.insert(ticket);
        if self.writes.stalled() == 1 {
            self.admit_waiting(now, effects);
        }
        if self.writes.pending.get(&ticket).is_some_and(|pending| pending.state == State::Stalled) {
            self.stats.stalls += 1;
        }
    }

    /// Takes room for a write's next step, in the journal and in the budget.
    fn take_room(&self, write: &Write) -> bool {
        self.journal_has(write.journal_bytes(self.record_blocks_max())) && self.budget.take(self.id, write.charge())
    }

    /// The most blocks with contents in one record: what the format allows, and what a file of the journal takes; never so
    /// few that a request which must be atomic would be cut.
    fn record_blocks_max(&self) -> u64 {
        self.settings.record_blocks_max.clamp(ATOMIC_BLOCKS_MAX, WRITE_BLOCKS_MAX)
    }

    fn journal_has(&self, bytes: u64) -> bool {
        self.room.has_room(self.writes.unappended_bytes + bytes)
    }

    /// Somebody says that there may be room now.
    pub(super) fn room_may_be(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.writes.awaiting_room = false;
        self.admit_waiting(now, effects);
    }

    /// Lets waiting writes in, in order, until one does not fit.
    pub(super) fn admit_waiting(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(ticket) = self.writes.stalled.first().copied() {
            let Some(pending) = self.writes.pending.get(&ticket) else {
                self.writes.stalled.remove(&ticket);
                continue;
            };
            let charge = pending.write.charge();
            if !self.take_room(&pending.write) {
                let bytes = pending.write.journal_bytes(self.record_blocks_max());
                self.budget.wait(self.id);
                effects.push(Effect::Press);
                if !self.journal_has(bytes) && !std::mem::replace(&mut self.writes.awaiting_room, true) {
                    effects.push(Effect::AwaitRoom { bytes });
                }
                return;
            }
            self.writes.stalled.remove(&ticket);
            self.writes.reserved += charge;
            if let Some(pending) = self.writes.pending.get_mut(&ticket) {
                pending.reserved = charge;
                pending.state = State::Blocked;
            }
            self.start_unless_blocked(now, ticket, effects);
        }
        self.leave_line();
    }

    /// Nothing of this volume waits any more: the next one in line may try.
    fn leave_line(&mut self) {
        if self.budget.is_short() {
            self.budget.leave(self.id);
            self.wake_waiting = true;
        }
    }

    /// Starts what waited behind a write that is gone now.
    pub(super) fn release_blocked(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while std::mem::take(&mut self.writes.freed) {
            let blocked = |(ticket, pending): (&u64, &Pending)| (pending.state == State::Blocked).then_some(*ticket);
            let tickets: Vec<u64> = self.writes.pending.iter().filter_map(blocked).collect();
            for ticket in tickets {
                self.start_unless_blocked(now, ticket, effects);
            }
        }
    }

    /// Goes on with a write that has room: at once, or when its edges are filled; or not yet.
    fn start_unless_blocked(&mut self, now: Instant, ticket: u64, effects: &mut Vec<Effect>) {
        let Some(pending) = self.writes.pending.get_mut(&ticket) else { return };
        let blocks = pending.write.blocks();
        let edges: Vec<u64> = pending.write.edge_blocks().collect();
        let (origin, first_step) = (pending.write.origin, !matches!(pending.write.what, What::Zeros { done: 1.. }));
        if self.writes.overlapped_before(ticket, blocks) {
            return;
        }
        if let Some(pending) = self.writes.pending.get_mut(&ticket) {
            pending.state = State::Filling;
        }
        if edges.is_empty() || !first_step {
            self.finish(now, ticket, &[], effects);
        } else {
            self.fill(now, origin, ticket, edges, effects);
        }
    }

    /// The contents of a write's edges are known.
    pub(super) fn filled(
        &mut self,
        now: Instant,
        ticket: u64,
        blocks: &[u64],
        contents: Vec<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let edges: Vec<Edge> = blocks.iter().zip(contents).map(|(&block, contents)| Edge { block, contents }).collect();
        self.finish(now, ticket, &edges, effects);
    }

    /// The contents of a write's edges cannot be had: it changes nothing.
    pub(super) fn fill_failed(&mut self, ticket: u64, effects: &mut Vec<Effect>) {
        if let Some(origin) = self.forget_write(ticket) {
            self.refuse(origin, Refusal::Failed, effects);
        }
    }

    /// Applies a write that waited, or the next step of it.
    fn finish(&mut self, now: Instant, ticket: u64, edges: &[Edge], effects: &mut Vec<Effect>) {
        let Some(mut pending) = self.writes.pending.remove(&ticket) else { return };
        let room = self.journal_has(pending.write.journal_bytes(self.record_blocks_max()));
        if !room {
            // Others took what the journal had while this one waited for its edges: it asks anew.
            self.writes.reserved -= pending.reserved;
            self.give_back(pending.reserved);
        } else if self.apply(now, &mut pending.write, edges, pending.reserved, effects) {
            self.writes.freed = true;
            return;
        }
        // It stays where it was in the order, for room or for its next step.
        (pending.reserved, pending.state) = (0, State::Stalled);
        self.writes.pending.insert(ticket, pending);
        self.writes.stalled.insert(ticket);
        if !room {
            self.admit_waiting(now, effects);
        }
    }

    /// Gives a write its positions and puts it into buffer and journal; from here on it takes effect. False when only a
    /// step of it was done.
    fn apply(
        &mut self,
        now: Instant,
        write: &mut Write,
        edges: &[Edge],
        reserved: u64,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let before = self.buffer.bytes();
        let blocks = write.blocks();
        let mut done = true;
        match &mut write.what {
            What::Payload(payload) => {
                let payload = payload.clone();
                let whole = write.whole(&payload, edges);
                self.append_contents(now, blocks.first, whole, effects);
            }
            What::Unmap => {
                self.append_edges(now, write, edges, effects);
                let middle = write.middle();
                if middle.count > 0 {
                    self.append_unmap(now, middle, effects);
                }
            }
            What::Zeros { done: before } => {
                let before = *before;
                if before == 0 {
                    self.append_edges(now, write, edges, effects);
                }
                let middle = write.middle();
                let count = (middle.count - before).min(ZERO_DATA_BLOCKS_MAX);
                if count > 0 {
                    self.append_zeros(now, Blocks { first: middle.first + before, count }, effects);
                }
                write.what = What::Zeros { done: before + count };
                done = before + count == middle.count;
            }
        }
        self.writes.reserved -= reserved;
        let held = self.buffer.bytes();
        assert!(held <= before + reserved, "a write adds no more than was reserved for it");
        self.give_back(before + reserved - held);
        if done {
            self.ack_write(self.buffer.last(), write.origin, write.fua);
        }
        self.wake_flush_when_due(effects);
        done
    }

    fn append_contents(&mut self, now: Instant, first: u64, whole: Bytes, effects: &mut Vec<Effect>) {
        let chunk_len = BLOCK_LEN * usize::try_from(self.record_blocks_max()).expect("a record has few blocks");
        let mut start = first;
        let mut rest = whole;
        while !rest.is_empty() {
            let contents = rest.split_to(chunk_len.min(rest.len()));
            let jseq = self.begin(now);
            let mut block = start;
            for piece in contents.chunks_exact(BLOCK_LEN) {
                // Copied, so that the buffer does not keep a whole request alive for one of its blocks.
                self.buffer.write(block, Bytes::copy_from_slice(piece));
                block += 1;
            }
            let blocks = Blocks { first: start, count: block - start };
            self.append(RecordKind::Write, jseq, blocks, contents, effects);
            start = block;
        }
    }

    fn append_edges(&mut self, now: Instant, write: &Write, edges: &[Edge], effects: &mut Vec<Effect>) {
        for edge in edges {
            self.append_contents(now, edge.block, write.zeroed(edge), effects);
        }
    }

    fn append_unmap(&mut self, now: Instant, blocks: Blocks, effects: &mut Vec<Effect>) {
        let jseq = self.begin(now);
        self.buffer.unmap(blocks.first, blocks.count);
        self.append(RecordKind::Unmap, jseq, blocks, Bytes::new(), effects);
    }

    fn append_zeros(&mut self, now: Instant, blocks: Blocks, effects: &mut Vec<Effect>) {
        let jseq = self.begin(now);
        for block in blocks.first..blocks.end() {
            self.buffer.write(block, Bytes::from_static(&ZEROS));
        }
        self.append(RecordKind::ZeroData, jseq, blocks, Bytes::new(), effects);
    }

    /// The next position.
    fn begin(&mut self, now: Instant) -> Jseq {
        let jseq = self.buffer.last().next();
        self.buffer.begin(jseq, now);
        jseq
    }

    fn append(&mut self, kind: RecordKind, jseq: Jseq, blocks: Blocks, contents: Bytes, effects: &mut Vec<Effect>) {
        let bytes = contents.len() as u64 + RECORD_OVERHEAD_BYTES;
        self.journaled.appended(bytes);
        self.writes.unappended_bytes += bytes;
        effects.push(Effect::Append(Record {
            kind,
            jseq,
            start: BlockIndex(blocks.first),
            count: BlockCount(blocks.count),
            durable: self.journaled.synced,
            contents,
        }));
    }

    /// A resize gives up a range by a record of its own, whatever the budget says: it is one run.
    pub(super) fn unmap_resized(&mut self, now: Instant, first: u64, count: u64, effects: &mut Vec<Effect>) {
        let before = self.buffer.bytes();
        self.budget.take_anyway(SPLIT_BYTES);
        self.append_unmap(now, Blocks { first, count }, effects);
        self.budget.give(before + SPLIT_BYTES - self.buffer.bytes());
    }

    /// Puts a record found in the journal at start back into the buffer, at the position it had; `chain` is the journal's
    /// chain there.
    pub(super) fn restore(&mut self, now: Instant, kind: RecordKind, blocks: Blocks, contents: &Bytes, chain: Hash) {
        let before = self.buffer.bytes();
        self.begin(now);
        match kind {
            RecordKind::Unmap => self.buffer.unmap(blocks.first, blocks.count),
            RecordKind::ZeroData => {
                for block in blocks.first..blocks.end() {
                    self.buffer.write(block, Bytes::from_static(&ZEROS));
                }
            }
            RecordKind::Write => {
                for (block, piece) in (blocks.first..blocks.end()).zip(contents.chunks_exact(BLOCK_LEN)) {
                    self.buffer.write(block, Bytes::copy_from_slice(piece));
                }
            }
        }
        let after = self.buffer.bytes();
        self.budget.take_anyway(after.saturating_sub(before));
        self.budget.give(before.saturating_sub(after));
        self.journaled.found(self.buffer.last(), chain);
        self.cut_when_full();
    }

    /// Refuses the pending writes that `judge` names a reason for; they change nothing (more).
    pub(super) fn drop_writes(
        &mut self,
        now: Instant,
        effects: &mut Vec<Effect>,
        judge: impl Fn(&Write) -> Option<Refusal>,
    ) {
        let verdict = |(ticket, pending): (&u64, &Pending)| Some((*ticket, judge(&pending.write)?));
        let refused: Vec<(u64, Refusal)> = self.writes.pending.iter().filter_map(verdict).collect();
        for (ticket, refusal) in &refused {
            if let Some(origin) = self.forget_write(*ticket) {
                self.refuse(origin, *refusal, effects);
            }
        }
        if !refused.is_empty() {
            self.admit_waiting(now, effects);
        }
    }

    /// Judges pending writes by a new ACL.
    pub(super) fn rejudge_writes(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let pending: Vec<(SessionId, ByteRange, Blocks, u64)> = self
            .writes
            .pending
            .iter()
            .map(|(ticket, pending)| {
                (pending.write.origin.session, pending.write.bytes, pending.write.blocks(), *ticket)
            })
            .collect();
        let mut refused = false;
        for (session, bytes, blocks, ticket) in pending {
            if !self.judge(session, blocks, bytes, Right::Write, effects)
                && let Some(origin) = self.forget_write(ticket)
            {
                self.deny(origin, Refusal::NotAllowed, effects);
                refused = true;
            }
        }
        if refused {
            self.admit_waiting(now, effects);
        }
    }

    /// Takes a pending write out and gives back what it had reserved.
    fn forget_write(&mut self, ticket: u64) -> Option<Origin> {
        let pending = self.writes.pending.remove(&ticket)?;
        self.writes.stalled.remove(&ticket);
        self.writes.reserved -= pending.reserved;
        self.writes.freed = true;
        self.give_back(pending.reserved);
        Some(pending.write.origin)
    }

    /// Gives bytes back to the budget and has whoever waits for them told.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.budget.give(bytes);
        self.wake_waiting |= bytes > 0 && self.budget.is_short();
    }
}
