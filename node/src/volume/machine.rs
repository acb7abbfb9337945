//! The machine of one volume: takes what guests ask and what comes back from journal and clouds, and says what is to be
//! done about it.
//!
//! A write passes gate 2, waits for room if there is none, waits behind earlier writes to the same blocks if those wait,
//! gets its positions, goes into the buffer and to the journal, and is acked once the journal has it (d0); from there on it
//! is never lost, only superseded. A read takes the newest version of each block from the buffer, else asks the extent map
//! where it lies, and takes it from the memory cache or has the frame fetched.
//!
//! The parts, one file each: `write` (order, room, partial blocks), `journaled` (positions, acks, barriers, poison),
//! `read` (reads, status, prefetch), `judged` (gate 2), `gather` (where a block's contents come from), `ahead` (sequential read-ahead),
//! `flush` (windows and what becomes of them). They are methods of one struct, because they are one state.
//!
//! Invariants:
//! * Nothing is acked that is not journaled as its ack promises; nothing is shown to a reader that is not at d0.
//! * A request that is refused changes nothing. A request of a session that is gone takes effect only if it has its
//!   position already.
//! * What the budget is charged is what the buffer holds plus what admitted writes have reserved.
//!
//! The machine knows no keys, files or clouds. After a crash the shell builds a new one from the metadata and the journal.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use bytes::Bytes;
use velum_protocol::{
    format::{
        location::Frame,
        metadata::{AclEntry, ObjectRef, Right},
        record::RecordKind,
    },
    id::{BLOCK_BYTES, BlockCount, BlockIndex, Epoch, Handle, Hash, Jseq, SessionId, VolumeId},
};

use super::{
    ahead::Streams,
    budget::DirtyBudget,
    buffer::Buffer,
    gather::Gathering,
    journaled::Journaled,
    messages::{Committed, Operation, Origin, Outcome, Refusal, Relocated, Reply, Request},
    write::Writes,
};
use crate::{
    actor::Machine,
    audit::ByteRange,
    cache::{BlockLocation, MemoryCache, gate::Gate, permits::Permits},
    env::Instant,
    extent::ExtentMap,
};

/// What an operator may tune about a volume.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Dirty bytes at which the flusher is woken.
    pub flush_bytes: u64,
    /// How far a sequential reader is read ahead of.
    pub read_ahead_bytes: u64,
    /// Bytes of the extent map's clean pages kept in memory.
    pub map_bytes: u64,
    /// The most blocks with contents that a record may hold and the journal takes; fewer than
    /// [`ATOMIC_BLOCKS_MAX`](velum_protocol::format::record::ATOMIC_BLOCKS_MAX) count as that many.
    pub record_blocks_max: u64,
    /// Another node may become the owner: what is read is answered when enough members say that none has.
    pub confirm_reads: bool,
}

/// What the machine takes in.
#[derive(Debug)]
pub enum Input {
    /// A session begins.
    Attach {
        /// Its id.
        session: SessionId,
        /// Whom gate 2 judges it as.
        principal: Box<str>,
        /// By which attachment it is there.
        attachment: Option<Handle>,
    },
    /// A session is gone.
    Detach {
        /// Its id.
        session: SessionId,
    },
    /// A guest asks.
    Request(Request),
    /// No more requests are at hand: the journal is written now.
    EndBurst,
    /// The journal has taken every record up to a position (d0).
    Submitted {
        /// The position.
        through: Jseq,
        /// The journal's chain there.
        chain: Hash,
    },
    /// A sync of the journal is done: every record up to a position is at d1.
    Synced {
        /// The position.
        through: Jseq,
    },
    /// The journal failed; it is poisoned.
    JournalFailed,
    /// A frame was fetched, or not.
    Fetched {
        /// The frame.
        frame: Frame,
        /// What came.
        result: Result<Fetched, FetchFailure>,
    },
    /// A page of the extent map was fetched and opened, or not.
    PageFetched {
        /// The page.
        page: ObjectRef,
        /// Its payload.
        result: Result<Bytes, FetchFailure>,
    },
    /// The oldest frozen window is in the sequence.
    Committed(Committed),
    /// A compaction's record is in the sequence.
    Relocated(Relocated),
    /// Everything up to a position is at d2.
    Durable(Jseq),
    /// There may be room for writes that wait.
    Room,
    /// A write waits for dirty bytes to be flushed, of whatever volume.
    Pressure,
    /// The ACL changed.
    SetAcl {
        /// The new list.
        entries: Vec<AclEntry>,
        /// Its version.
        version: u64,
    },
    /// Who shares the volume changed, or who may write where among them.
    SetPermits {
        /// As it is now.
        permits: Permits,
    },
    /// The size changed.
    SetSize {
        /// The new size in blocks.
        blocks: u64,
    },
    /// The size may grow soon.
    ClearBeyond {
        /// The size it may grow to, in blocks.
        blocks: u64,
    },
    /// This node is the owner still.
    Confirmed,
    /// Records are sealed and on their way to d0.
    Sealed {
        /// The position of the last one.
        through: Jseq,
        /// The chain there.
        chain: Hash,
    },
    /// The volume is going away: no more requests are taken.
    Close,
    /// Somebody else owns the volume: nothing is answered any more.
    Abandon,
}

/// What a fetch brought.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The frame's whole plaintext.
    Frame(Bytes),
    /// Some of its blocks, by place in the frame.
    Blocks(Vec<(u16, Bytes)>),
}

/// Why a fetch brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchFailure {
    /// No cloud that may have it can be reached; try again later.
    #[error("no cloud that holds it can be reached now")]
    Unavailable,
    /// Every cloud was asked and none has an authentic copy.
    #[error("no cloud holds an authentic copy")]
    Lost,
}

/// What the shell is to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Seal a record and append it to the journal's batch.
    Append(Record),
    /// Write the journal's batch; answer [`Input::Submitted`] with `through`.
    Submit {
        /// The last position appended.
        through: Jseq,
    },
    /// Sync the journal; answer [`Input::Synced`] with `through`.
    Sync {
        /// The last position submitted.
        through: Jseq,
    },
    /// Look whether this node is the owner still; then [`Input::Confirmed`].
    Confirm {
        /// So many answers wait for it.
        reads: u64,
    },
    /// Answer a guest.
    Reply(Reply),
    /// Fetch a frame, or at least the blocks wanted of it.
    FetchFrame {
        /// The frame.
        frame: Frame,
        /// Bit i: the frame's block i is wanted.
        wanted: u16,
        /// Failed attempts before; wait accordingly.
        attempt: u32,
    },
    /// Fetch and open a page of the extent map.
    FetchPage {
        /// The page.
        page: ObjectRef,
        /// Failed attempts before; wait accordingly.
        attempt: u32,
    },
    /// Blocks became clean: the disk cache may keep them.
    Keep(Vec<(BlockLocation, Bytes)>),
    /// Blocks lie elsewhere now (from, to): what the disk cache has of them it may keep.
    Moved(Vec<(BlockLocation, BlockLocation, Bytes)>),
    /// Tell the flusher that there is something to do.
    WakeFlush,
    /// Room was given back: tell the first volume that waits.
    WakeWaiting,
    /// A write waits: tell every volume of the node.
    Press,
    /// The journal is too full: answer [`Input::Room`] when it may have room again.
    AwaitRoom {
        /// For how many bytes.
        bytes: u64,
    },
    /// The journal may forget everything up to a position.
    TrimJournal {
        /// The epoch its record was written in.
        epoch: Epoch,
        /// The position.
        through: Jseq,
    },
    /// Gate 2 let requests pass.
    Passed {
        /// How many.
        requests: u64,
    },
    /// Gate 2 refused a request.
    Refused {
        /// Who asked.
        principal: Rc<str>,
        /// For which right.
        right: Right,
        /// On which bytes.
        range: ByteRange,
    },
}

/// A journal record before it is sealed.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it does.
    pub kind: RecordKind,
    /// Its position.
    pub jseq: Jseq,
    /// First block.
    pub start: BlockIndex,
    /// Blocks.
    pub count: BlockCount,
    /// Everything up to here is at d1.
    pub durable: Jseq,
    /// The blocks' contents for a write, else empty.
    pub contents: Bytes,
}

/// Whether the journal can take more; asked before a write is let in.
pub trait Room {
    /// True when `bytes` of records fit.
    fn has_room(&self, bytes: u64) -> bool;
}

/// One volume.
pub struct VolumeMachine {
    pub(super) id: VolumeId,
    pub(super) settings: Settings,
    pub(super) size_blocks: u64,
    pub(super) gate: Gate,
    pub(super) permits: Permits,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) closing: bool,
    pub(super) buffer: Buffer,
    pub(super) map: ExtentMap,
    pub(super) memory: Rc<RefCell<MemoryCache>>,
    pub(super) journaled: Journaled,
    pub(super) writes: Writes,
    pub(super) gathering: Gathering,
    pub(super) budget: Rc<DirtyBudget>,
    pub(super) room: Rc<dyn Room>,
    /// Last position and age of every window cut off that is not at d2 yet, oldest first.
    pub(super) exposed: VecDeque<(Jseq, Instant)>,
    pub(super) durable: Jseq,
    /// The flusher was told and has not come yet.
    pub(super) flush_woken: bool,
    /// This step gave back what others may wait for.
    pub(super) wake_waiting: bool,
    /// Requests that passed gate 2 since this was last reported.
    pub(super) passed: u64,
    pub(super) stats: Stats,
}

/// A guest's connection as the volume sees it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) principal: Rc<str>,
    pub(super) attachment: Option<Handle>,
    pub(super) streams: Streams,
}

/// What a volume is made of at start.
pub struct Parts {
    /// The volume.
    pub id: VolumeId,
    /// Settings.
    pub settings: Settings,
    /// Size in blocks.
    pub size_blocks: u64,
    /// The compiled ACL.
    pub gate: Gate,
    /// The extent map at the head of the sequence.
    pub map: ExtentMap,
    /// The owner's epoch, newer than that of any record.
    pub epoch: Epoch,
    /// The last position in the map.
    pub last: Jseq,
    /// The journal's chain at `last`.
    pub chain: Hash,
    /// The last position known to be at d2.
    pub durable: Jseq,
    /// Where each epoch's positions begin, from the journal, oldest first.
    pub epochs: Vec<(Epoch, Jseq)>,
    /// The node's cache of clean blocks.
    pub memory: Rc<RefCell<MemoryCache>>,
    /// The node's budget.
    pub budget: Rc<DirtyBudget>,
    /// The journal's room.
    pub room: Rc<dyn Room>,
}

/// Counters of a volume since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks read from the buffer.
    pub buffer_hits: u64,
    /// Blocks read from the memory cache.
    pub memory_hits: u64,
    /// Blocks read that had to be fetched.
    pub misses: u64,
    /// Blocks read that nothing is stored for.
    pub zero_blocks: u64,
    /// Writes that had to wait for room.
    pub stalls: u64,
}

impl VolumeMachine {
    /// A volume whose journal holds nothing above `last`; what it does hold is put in with [`VolumeMachine::restore`].
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            id: parts.id,
            settings: parts.settings,
            size_blocks: parts.size_blocks,
            gate: parts.gate,
            permits: Permits::default(),
            sessions: BTreeMap::new(),
            closing: false,
            buffer: Buffer::new(parts.id, parts.epoch, parts.last),
            map: parts.map,
            memory: parts.memory,
            journaled: Journaled::new(parts.epoch, parts.last, parts.chain, parts.epochs),
            writes: Writes::default(),
            gathering: Gathering::default(),
            budget: parts.budget,
            room: parts.room,
            exposed: VecDeque::new(),
            durable: parts.durable,
            flush_woken: false,
            wake_waiting: false,
            passed: 0,
            stats: Stats::default(),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_blocks * BLOCK_BYTES
    }

    /// Counters since start.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// The version of the ACL that gate 2 judges by.
    #[must_use]
    pub const fn acl_version(&self) -> u64 {
        self.gate.version()
    }

    /// True once the journal failed: nothing is acked any more.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.journaled.poisoned
    }

    /// Writes that wait for room now.
    #[must_use]
    pub fn waiting_writes(&self) -> usize {
        self.writes.stalled()
    }

    /// The extent map, for a checkpoint.
    pub const fn map_mut(&mut self) -> &mut ExtentMap {
        &mut self.map
    }

    fn request(&mut self, now: Instant, request: Request, effects: &mut Vec<Effect>) {
        let Request { origin, operation } = request;
        if !self.sessions.contains_key(&origin.session) {
            return;
        }
        if self.closing {
            return self.refuse(origin, Refusal::Closing, effects);
        }
        match operation {
            Operation::Read { offset, length } => self.read(now, origin, offset, length, effects),
            Operation::Prefetch { offset, length } => self.prefetch(now, origin, offset, length, effects),
            Operation::Status { offset, length, extents_max } => {
                let bytes = ByteRange { offset, length: u64::from(length) };
                self.status(origin, bytes, extents_max, effects);
            }
            Operation::Write { offset, payload, fua } => self.write_payload(now, origin, offset, payload, fua, effects),
            Operation::Trim { offset, length, fua } => self.unmap(now, origin, offset, length, fua, effects),
            Operation::WriteZeroes { offset, length, no_hole: false, fua } => {
                self.unmap(now, origin, offset, length, fua, effects);
            }
            Operation::WriteZeroes { offset, length, no_hole: true, fua } => {
                self.zero(now, origin, offset, length, fua, effects);
            }
            Operation::Barrier => self.barrier(origin, effects),
        }
    }

    /// Answers a guest; what a session that is gone asked is not answered.
    pub(super) fn reply(&self, origin: Origin, outcome: Outcome, effects: &mut Vec<Effect>) {
        if self.sessions.contains_key(&origin.session) {
            effects.push(Effect::Reply(Reply { origin, outcome }));
        }
    }

    pub(super) fn refuse(&self, origin: Origin, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.reply(origin, Outcome::Refused(refusal), effects);
    }

    fn attach(&mut self, session: SessionId, principal: &str, attachment: Option<Handle>) {
        let principal = Rc::from(principal);
        self.sessions.insert(session, Session { principal, attachment, streams: Streams::default() });
    }

    /// Forgets a session first, so that nothing below answers it, and then what it asked and has no position.
    fn detach(&mut self, now: Instant, session: SessionId, effects: &mut Vec<Effect>) {
        self.sessions.remove(&session);
        self.gathering.forget_session(session);
        self.drop_writes(now, effects, |write| (write.origin.session == session).then_some(Refusal::Closing));
    }

    /// Judges everything that waits by the new ACL: a revocation holds for all that has no position yet.
    fn set_acl(&mut self, now: Instant, entries: &[AclEntry], version: u64, effects: &mut Vec<Effect>) {
        // Who read the metadata first need not be heard first.
        if version <= self.gate.version() {
            return;
        }
        self.gate = Gate::compile(entries, version);
        self.rejudge_reads(effects);
        self.rejudge_writes(now, effects);
    }

    /// The same for permits.
    fn set_permits(&mut self, now: Instant, permits: Permits, effects: &mut Vec<Effect>) {
        // It is told with every change of the metadata, and most are of something else.
        if self.permits != permits {
            self.permits = permits;
            self.rejudge_writes(now, effects);
        }
    }

    fn set_size(&mut self, now: Instant, blocks: u64, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.size_blocks, blocks);
        self.refuse_reads_beyond_end(effects);
        let end = self.size_bytes();
        self.drop_writes(now, effects, |write| (write.end() > end).then_some(Refusal::OutOfRange));
        if blocks < before && !self.journaled.poisoned {
            self.unmap_resized(now, blocks, before - blocks, effects);
        }
        self.map.resize(blocks);
    }

    /// What a smaller size cut off must not be there when the volume grows again. The record of the cut says so, but a
    /// recovery from the clouds may have gone back behind it: the part that comes is given up once more, by a record that
    /// can be made to last before the larger size does.
    fn clear_beyond(&mut self, now: Instant, blocks: u64, effects: &mut Vec<Effect>) {
        let size = self.size_blocks;
        if size < blocks && !self.journaled.poisoned {
            self.unmap_resized(now, size, blocks - size, effects);
        }
    }

    fn close(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.closing = true;
        self.drop_writes(now, effects, |_| Some(Refusal::Closing));
    }
}

impl Machine for VolumeMachine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        let in_burst = matches!(input, Input::Request(_));
        self.writes.unappended_bytes = 0;
        match input {
            Input::Attach { session, principal, attachment } => self.attach(session, &principal, attachment),
            Input::Detach { session } => self.detach(now, session, effects),
            Input::Request(request) => self.request(now, request, effects),
            Input::EndBurst => {}
            Input::Submitted { through, chain } => self.submitted(through, chain, effects),
            Input::Sealed { through, chain } => self.sealed(through, chain),
            Input::Synced { through } => self.synced(through, effects),
            Input::JournalFailed => self.poison(now, effects),
            Input::Fetched { frame, result } => self.fetched(now, &frame, result, effects),
            Input::PageFetched { page, result } => self.page_fetched(now, page, result, effects),
            Input::Committed(committed) => self.committed(&committed, effects),
            Input::Relocated(relocated) => self.relocated(now, relocated, effects),
            Input::Durable(last) => self.become_durable(last, effects),
            Input::Room => self.room_may_be(now, effects),
            Input::Pressure => self.under_pressure(effects),
            Input::SetAcl { entries, version } => self.set_acl(now, &entries, version, effects),
            Input::SetPermits { permits } => self.set_permits(now, permits, effects),
            Input::SetSize { blocks } => self.set_size(now, blocks, effects),
            Input::ClearBeyond { blocks } => self.clear_beyond(now, blocks, effects),
            Input::Confirmed => self.confirmed(effects),
            Input::Close => self.close(now, effects),
            Input::Abandon => self.abandon(now, effects),
        }
        self.release_blocked(now, effects);
        self.settle(in_burst, effects);
        if std::mem::take(&mut self.wake_waiting) {
            // Last, for it leads to other volumes, which append records of their own.
            effects.push(Effect::WakeWaiting);
        }
        self.check();
    }
}

impl VolumeMachine {
    /// What holds after every step.
    fn check(&self) {
        debug_assert!(self.journaled.synced <= self.journaled.submitted, "d1 implies d0");
        debug_assert!(
            self.journaled.submitted <= self.buffer.last(),
            "no record is journaled before it has a position"
        );
        debug_assert!(
            self.budget.bytes_used() >= self.buffer.bytes() + self.writes.reserved(),
            "the budget is charged for all that is held"
        );
    }
}
