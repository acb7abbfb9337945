//! Where the contents of blocks come from: buffer, extent map, memory cache, and what has to be fetched.
//!
//! What the buffer and the memory cache have is taken at once. A block that lies in the clouds is pinned by its location,
//! whose contents never change, so it may arrive later without being looked up again. Where a page of the map is away, the
//! gathering stops, has the page fetched, and goes on from that block; so it needs one page at a time to be in memory, and
//! each block is taken whole at some instant within the request's time, which is all that is promised.
//!
//! One fetch of a frame is under way at a time, whoever waits for it, and what it brings is cached before it is handed out.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_protocol::{
    format::{
        location::{FRAME_BLOCKS_MAX, Frame},
        metadata::{ObjectRef, Right},
        page::LEAF_BLOCKS,
    },
    id::{BLOCK_LEN, BlockIndex, Incarnation, Jseq, ObjectNumber, SessionId},
};

use super::{
    blocks::Blocks,
    buffer::Piece,
    machine::{Effect, FetchFailure, Fetched, VolumeMachine},
    messages::{Moved, Origin, Outcome, Refusal},
    write::ZEROS,
};
use crate::{
    audit::ByteRange,
    cache::BlockLocation,
    env::{FixedMap, Instant},
    extent::{Mapped, PageNeeded},
};

/// A piece of zeros in a reply is at most this long.
static ZERO_RUN: [u8; 16 * BLOCK_LEN] = [0; 16 * BLOCK_LEN];

/// Gatherings and fetches under way.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    /// By frame; for look-ups only.
    flights: FixedMap<FrameKey, Flight>,
    /// Who waits for which page of the map.
    pages: BTreeMap<(Incarnation, ObjectNumber), PageFlight>,
    /// Fetches under way that nobody waits for.
    pub(super) ahead_flights: usize,
    pieces: Vec<Piece>,
    mapped: Vec<Mapped>,
}

/// The map's pages may always take this much: some full paths from root to leaf.
const MAP_BYTES_MIN: u64 = 4 << 20;

type FrameKey = (u32, u64, u32);

const fn key(frame: &Frame) -> FrameKey {
    (frame.incarnation.0, frame.segment.0, frame.frame)
}

/// Something that needs blocks and waits for some of them.
#[derive(Debug)]
struct Task {
    origin: Origin,
    purpose: Purpose,
    /// Runs not looked at yet, the next one last.
    left: Vec<Blocks>,
    gathered: Gathered,
    /// Pieces that are on their way.
    missing: usize,
}

/// What the blocks are for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// To be read.
    Read(ByteRange),
    /// To be in the cache.
    Prefetch(ByteRange),
    /// Only to be told about.
    Status(ByteRange, usize),
    /// To fill up the edges of a write.
    Fill {
        /// The write.
        ticket: u64,
        /// Its edges.
        blocks: Vec<u64>,
    },
}

/// The blocks found so far, in order, and what is missing.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Pieces in order; a missing block has an empty one.
    pub(super) pieces: Vec<Bytes>,
    missing: Vec<Missing>,
    /// Up to here lies all that the pieces rest on, of what the buffer holds.
    pub(super) newest: Option<Jseq>,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    piece: usize,
    frame: Frame,
    block: u16,
}

/// A fetch of a frame.
#[derive(Debug)]
struct Flight {
    frame: Frame,
    /// Bit i: block i was asked for.
    wanted: u16,
    waiters: Vec<Waiter>,
    attempt: u32,
    ahead: bool,
}

/// A fetch of a page.
#[derive(Debug, Default)]
struct PageFlight {
    waiters: Vec<u64>,
    attempt: u32,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    task: u64,
    piece: usize,
    block: u16,
}

impl Gathered {
    fn push_zeros(&mut self, blocks: u64) {
        let mut rest = blocks;
        while rest > 0 {
            let count = rest.min(u64::from(FRAME_BLOCKS_MAX));
            let len = usize::try_from(count).unwrap_or(1) * BLOCK_LEN;
            self.pieces.push(Bytes::from_static(ZERO_RUN.get(..len).unwrap_or(&ZEROS)));
            rest -= count;
        }
    }
}

impl Purpose {
    /// The request's bytes, when a reader waits.
    const fn read_bytes(&self) -> Option<ByteRange> {
        match self {
            Self::Read(bytes) | Self::Prefetch(bytes) | Self::Status(bytes, _) => Some(*bytes),
            Self::Fill { .. } => None,
        }
    }
}

impl Gathering {
    /// Forgets what a session waits for.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.tasks.retain(|_, task| task.origin.session != session);
    }
}

impl VolumeMachine {
    /// Gathers the edges of a write.
    pub(super) fn fill(
        &mut self,
        now: Instant,
        origin: Origin,
        ticket: u64,
        blocks: Vec<u64>,
        effects: &mut Vec<Effect>,
    ) {
        self.start_task(now, origin, Purpose::Fill { ticket, blocks }, effects);
    }

    /// Serves a purpose now, or once what it needs was fetched.
    pub(super) fn start_task(&mut self, now: Instant, origin: Origin, purpose: Purpose, effects: &mut Vec<Effect>) {
        let left = match &purpose {
            Purpose::Read(bytes) | Purpose::Prefetch(bytes) => vec![Blocks::of(*bytes)],
            Purpose::Fill { blocks, .. } => {
                blocks.iter().rev().map(|&block| Blocks { first: block, count: 1 }).collect()
            }
            Purpose::Status(..) => Vec::new(),
        };
        let task = Task { origin, purpose, left, gathered: Gathered::default(), missing: 0 };
        self.go_on(now, None, task, effects);
    }

    /// Gathers as far as it goes; then serves the task, or has it wait under its number.
    fn go_on(&mut self, now: Instant, number: Option<u64>, mut task: Task, effects: &mut Vec<Effect>) {
        let mut needed = None;
        while needed.is_none()
            && let Some(blocks) = task.left.pop()
        {
            needed = self.gather(blocks, &mut task.left, &mut task.gathered).err();
        }
        let missing = std::mem::take(&mut task.gathered.missing);
        task.missing += missing.len();
        if needed.is_none() && task.missing == 0 {
            return self.serve(now, task.origin, task.purpose, task.gathered, effects);
        }
        let number = number.unwrap_or_else(|| {
            self.gathering.next_task += 1;
            self.gathering.next_task
        });
        self.gathering.tasks.insert(number, task);
        self.await_frames(&missing, number, effects);
        if let Some(PageNeeded(page)) = needed {
            self.await_page(page, number, effects);
        }
    }

    /// Takes what is here of `blocks` and notes what is not. What lies behind a page that is away goes back to `left`.
    fn gather(&mut self, blocks: Blocks, left: &mut Vec<Blocks>, gathered: &mut Gathered) -> Result<(), PageNeeded> {
        let mut pieces = std::mem::take(&mut self.gathering.pieces);
        pieces.clear();
        let newest = self.buffer.look_up(blocks.first, blocks.count, &mut pieces);
        gathered.newest = gathered.newest.max(newest);
        let mut result = Ok(());
        for piece in pieces.drain(..) {
            match piece {
                Piece::Data(contents) => {
                    self.stats.buffer_hits += 1;
                    gathered.pieces.push(contents);
                }
                Piece::Zero(count) => {
                    self.stats.zero_blocks += count;
                    gathered.push_zeros(count);
                }
                Piece::Ask { start, count } => {
                    if let Err((stopped, needed)) = self.gather_clean(start, count, gathered) {
                        left.push(Blocks { first: stopped, count: blocks.end() - stopped });
                        result = Err(needed);
                        break;
                    }
                }
            }
        }
        self.gathering.pieces = pieces;
        result
    }

    /// Takes what is here of blocks that are not in the buffer, leaf by leaf. On an error also says where it stopped.
    fn gather_clean(&mut self, start: u64, count: u64, gathered: &mut Gathered) -> Result<(), (u64, PageNeeded)> {
        let (mut next, end) = (start, start + count);
        let mut mapped = std::mem::take(&mut self.gathering.mapped);
        let mut result = Ok(());
        while next < end && result.is_ok() {
            mapped.clear();
            let until = (next / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
            let count = until.min(end) - next;
            match self.map.lookup(BlockIndex(next), count, &mut mapped) {
                Ok(()) => self.gather_mapped(&mapped, gathered),
                Err(needed) => result = Err((next, needed)),
            }
            next += count;
        }
        self.gathering.mapped = mapped;
        result
    }

    fn gather_mapped(&mut self, mapped: &[Mapped], gathered: &mut Gathered) {
        let memory = &mut *self.memory.borrow_mut();
        for run in mapped {
            let Some(frame) = run.location else {
                self.stats.zero_blocks += run.count;
                gathered.push_zeros(run.count);
                continue;
            };
            for block in run.start.0..run.start.0 + run.count {
                let at = BlockLocation::of(self.id, &frame, BlockIndex(block));
                let at = at.expect("the map takes no run that does not lie in its frame");
                if let Some(contents) = memory.get(&at) {
                    self.stats.memory_hits += 1;
                    gathered.pieces.push(contents);
                } else {
                    self.stats.misses += 1;
                    gathered.missing.push(Missing { piece: gathered.pieces.len(), frame, block: at.block });
                    gathered.pieces.push(Bytes::new());
                }
            }
        }
    }

    /// Everything a purpose needs is here.
    fn serve(&mut self, now: Instant, origin: Origin, purpose: Purpose, gathered: Gathered, effects: &mut Vec<Effect>) {
        match purpose {
            Purpose::Read(bytes) => self.answer_read(origin, bytes, gathered, effects),
            Purpose::Prefetch(_) => self.reply(origin, Outcome::Done, effects),
            Purpose::Status(bytes, extents_max) => self.answer_status(origin, bytes, extents_max, effects),
            Purpose::Fill { ticket, blocks } => self.filled(now, ticket, &blocks, gathered.pieces, effects),
        }
    }

    /// A purpose cannot be served.
    fn fail(&mut self, task: u64, effects: &mut Vec<Effect>) {
        let Some(task) = self.gathering.tasks.remove(&task) else { return };
        match task.purpose {
            Purpose::Fill { ticket, .. } => self.fill_failed(ticket, effects),
            _ => self.refuse(task.origin, Refusal::Failed, effects),
        }
    }

    /// Has a task wait for a page of the map.
    fn await_page(&mut self, page: ObjectRef, task: u64, effects: &mut Vec<Effect>) {
        let place = (page.incarnation, page.number);
        self.fetch_page_ahead(page, effects);
        self.gathering.pages.entry(place).or_default().waiters.push(task);
    }

    /// Has a status request wait for a page of the map; it starts over then.
    pub(super) fn await_page_for_status(
        &mut self,
        origin: Origin,
        purpose: Purpose,
        page: ObjectRef,
        effects: &mut Vec<Effect>,
    ) {
        self.gathering.next_task += 1;
        let number = self.gathering.next_task;
        let task = Task { origin, purpose, left: Vec::new(), gathered: Gathered::default(), missing: 0 };
        self.gathering.tasks.insert(number, task);
        self.await_page(page, number, effects);
    }

    /// Has a page fetched that nobody waits for yet.
    pub(super) fn fetch_page_ahead(&mut self, page: ObjectRef, effects: &mut Vec<Effect>) {
        self.gathering.pages.entry((page.incarnation, page.number)).or_insert_with(|| {
            effects.push(Effect::FetchPage { page, attempt: 0 });
            PageFlight::default()
        });
    }

    pub(super) fn page_fetched(
        &mut self,
        now: Instant,
        page: ObjectRef,
        result: Result<Bytes, FetchFailure>,
        effects: &mut Vec<Effect>,
    ) {
        let place = (page.incarnation, page.number);
        let Some(mut flight) = self.gathering.pages.remove(&place) else { return };
        let loaded = result.and_then(|payload| self.map.page_loaded(&page, &payload).map_err(|_| FetchFailure::Lost));
        match loaded {
            Ok(()) => flight.waiters.into_iter().for_each(|task| self.resume(now, task, effects)),
            Err(FetchFailure::Lost) => flight.waiters.into_iter().for_each(|task| self.fail(task, effects)),
            Err(FetchFailure::Unavailable) => {
                flight.waiters.retain(|task| self.gathering.tasks.contains_key(task));
                flight.attempt += 1;
                if !flight.waiters.is_empty() {
                    effects.push(Effect::FetchPage { page, attempt: flight.attempt });
                    self.gathering.pages.insert(place, flight);
                }
            }
        }
        self.evict_pages();
    }

    /// Keeps the map's pages within their budget, but lets a whole path of pages stay: one that is loaded page by page would
    /// never be complete otherwise.
    pub(super) fn evict_pages(&mut self) {
        self.map.evict(self.settings.map_bytes.max(MAP_BYTES_MIN));
    }

    /// The page a task waits for is here.
    fn resume(&mut self, now: Instant, number: u64, effects: &mut Vec<Effect>) {
        if let Some(task) = self.gathering.tasks.remove(&number) {
            self.go_on(now, Some(number), task, effects);
        }
    }

    fn await_frames(&mut self, missing: &[Missing], task: u64, effects: &mut Vec<Effect>) {
        let mut fresh = Vec::new();
        for &Missing { piece, frame, block } in missing {
            let flight = self.gathering.flights.entry(key(&frame)).or_insert_with(|| {
                fresh.push(key(&frame));
                Flight { frame, wanted: 0, waiters: Vec::new(), attempt: 0, ahead: false }
            });
            flight.wanted |= 1 << block;
            flight.waiters.push(Waiter { task, piece, block });
        }
        self.send_flights(&fresh, effects);
    }

    fn send_flights(&self, fresh: &[FrameKey], effects: &mut Vec<Effect>) {
        for flight in fresh.iter().filter_map(|key| self.gathering.flights.get(key)) {
            let Flight { frame, wanted, attempt, .. } = *flight;
            effects.push(Effect::FetchFrame { frame, wanted, attempt });
        }
    }

    /// Has blocks of a frame fetched that nobody waits for. False when a fetch of the frame is under way.
    pub(super) fn fetch_frame_ahead(&mut self, frame: Frame, wanted: u16, effects: &mut Vec<Effect>) -> bool {
        if self.gathering.flights.contains_key(&key(&frame)) {
            return false;
        }
        let flight = Flight { frame, wanted, waiters: Vec::new(), attempt: 0, ahead: true };
        self.gathering.flights.insert(key(&frame), flight);
        self.gathering.ahead_flights += 1;
        effects.push(Effect::FetchFrame { frame, wanted, attempt: 0 });
        true
    }

    pub(super) fn fetched(
        &mut self,
        now: Instant,
        frame: &Frame,
        result: Result<Fetched, FetchFailure>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut flight) = self.gathering.flights.remove(&key(frame)) else { return };
        if std::mem::take(&mut flight.ahead) {
            self.gathering.ahead_flights -= 1;
        }
        match result.and_then(|fetched| self.take_in(frame, fetched)) {
            Ok(blocks) => {
                let mut left = Vec::new();
                for waiter in flight.waiters {
                    match blocks.get(usize::from(waiter.block)).and_then(Option::as_ref) {
                        Some(contents) => self.deliver(now, waiter, contents.clone(), effects),
                        None => left.push(waiter),
                    }
                }
                // Blocks somebody asked for after the fetch had left.
                self.send_again(Flight { waiters: left, attempt: 0, ..flight }, effects);
            }
            Err(FetchFailure::Unavailable) => {
                let attempt = flight.attempt + 1;
                self.send_again(Flight { attempt, ..flight }, effects);
            }
            Err(FetchFailure::Lost) => flight.waiters.iter().for_each(|waiter| self.fail(waiter.task, effects)),
        }
    }

    /// Gives a block that was moved to whoever waits for it at its old place.
    pub(super) fn deliver_moved(&mut self, now: Instant, moved: Moved, effects: &mut Vec<Effect>) {
        let Moved { block, from, contents } = moved;
        let place = block.0.checked_sub(from.start.0);
        let Some(flight) = self.gathering.flights.get_mut(&key(&from)) else { return };
        let here = |waiter: &mut Waiter| Some(u64::from(waiter.block)) == place;
        let waiters: Vec<Waiter> = flight.waiters.extract_if(.., here).collect();
        for waiter in waiters {
            self.deliver(now, waiter, contents.clone(), effects);
        }
    }

    /// Sends a fetch again for those who still wait, if any.
    fn send_again(&mut self, mut flight: Flight, effects: &mut Vec<Effect>) {
        flight.waiters.retain(|waiter| self.gathering.tasks.contains_key(&waiter.task));
        flight.wanted = flight.waiters.iter().fold(0, |wanted, waiter| wanted | 1 << waiter.block);
        if !flight.waiters.is_empty() {
            let key = key(&flight.frame);
            self.gathering.flights.insert(key, flight);
            self.send_flights(&[key], effects);
        }
    }

    /// Puts what a fetch brought into the memory cache and gives it by place in the frame. Blocks are copied out of the
    /// frame, so that one of them does not keep all of it alive.
    fn take_in(&self, frame: &Frame, fetched: Fetched) -> Result<Vec<Option<Bytes>>, FetchFailure> {
        let mut blocks = vec![None; usize::from(frame.blocks)];
        match fetched {
            Fetched::Frame(plaintext) => {
                if plaintext.len() != blocks.len() * BLOCK_LEN {
                    return Err(FetchFailure::Lost);
                }
                for (place, contents) in blocks.iter_mut().zip(plaintext.chunks_exact(BLOCK_LEN)) {
                    *place = Some(Bytes::copy_from_slice(contents));
                }
            }
            Fetched::Blocks(some) => {
                for (block, contents) in some {
                    if let Some(place) = blocks.get_mut(usize::from(block)).filter(|_| contents.len() == BLOCK_LEN) {
                        *place = Some(contents);
                    }
                }
            }
        }
        let memory = &mut *self.memory.borrow_mut();
        for (block, contents) in (0..frame.blocks).zip(&blocks) {
            if let Some(contents) = contents
                && let Some(at) = BlockLocation::of(self.id, frame, BlockIndex(frame.start.0 + u64::from(block)))
            {
                memory.insert_owned(at, contents.clone());
            }
        }
        Ok(blocks)
    }

    fn deliver(&mut self, now: Instant, waiter: Waiter, contents: Bytes, effects: &mut Vec<Effect>) {
        let Some(task) = self.gathering.tasks.get_mut(&waiter.task) else { return };
        if let Some(piece) = task.gathered.pieces.get_mut(waiter.piece) {
            *piece = contents;
        }
        task.missing -= 1;
        if task.missing == 0
            && task.left.is_empty()
            && let Some(task) = self.gathering.tasks.remove(&waiter.task)
        {
            self.serve(now, task.origin, task.purpose, task.gathered, effects);
        }
    }

    /// Judges waiting reads by a new ACL.
    pub(super) fn rejudge_reads(&mut self, effects: &mut Vec<Effect>) {
        self.drop_reads(effects, |volume, origin, bytes, effects| {
            let allowed = volume.judge(origin.session, Blocks::of(bytes), bytes, Right::Read, effects);
            (!allowed).then_some(Refusal::NotAllowed)
        });
    }

    /// Refuses waiting reads that end beyond the volume's new end.
    pub(super) fn refuse_reads_beyond_end(&mut self, effects: &mut Vec<Effect>) {
        let end = self.size_bytes();
        self.drop_reads(effects, |_, _, bytes, _| (bytes.offset + bytes.length > end).then_some(Refusal::OutOfRange));
    }

    fn drop_reads(
        &mut self,
        effects: &mut Vec<Effect>,
        judge: impl Fn(&Self, Origin, ByteRange, &mut Vec<Effect>) -> Option<Refusal>,
    ) {
        let mut refused = Vec::new();
        for (number, task) in &self.gathering.tasks {
            if let Some(bytes) = task.purpose.read_bytes()
                && let Some(refusal) = judge(self, task.origin, bytes, effects)
            {
                refused.push((*number, task.origin, refusal));
            }
        }
        for (number, origin, refusal) in refused {
            self.gathering.tasks.remove(&number);
            self.deny(origin, refusal, effects);
        }
    }
}
