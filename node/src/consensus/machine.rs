//! raft-rs as a machine: inputs go in, what must be stored, synced, sent, applied and answered comes out, in that order.
//!
//! The order that everything rests on: entries, votes and the term are appended to the journal; messages that promise them
//! leave only after the sync that covers them; committed entries are applied after that. A sync that is under way covers
//! what was appended before it began; the next one covers all that came meanwhile. A snapshot from the leader is in place
//! on disk before anything of it is believed; until then this member hears and says nothing.
//!
//! It does not know what a command means, nor what a disk is, nor how frames travel.

mod install;
mod judge;
mod members;
mod proposals;
mod reads;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::{
    Config, RawNode, SnapshotStatus, StateRole,
    eraftpb::{Entry, EntryType, HardState, Message},
};
use velum_protocol::{
    format::raft as format,
    id::NodeId,
    peer::{Frame, agreement as peer},
};

use super::{Change, ProposeError, RaftStatus, convert, log::Log};
use crate::{actor, env::Instant, journal::Position};
use install::Install;
use proposals::{Forwarded, Proposal};
use reads::Reads;
use snapshots::{Pending, RETRY_TICKS};

/// Ticks without a leader before an election at the earliest; twice that at the latest. A tick is 50 ms.
const ELECTION_TICKS: usize = 20;

/// Ticks between a leader's heartbeats.
const HEARTBEAT_TICKS: usize = 2;

/// Bytes of entries in one message to a peer.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Messages to one peer that wait for its answer.
const MESSAGES_IN_FLIGHT_MAX: usize = 256;

/// Proposed bytes that are not applied yet; more is refused. Less in a small journal.
const PROPOSED_BYTES_MAX: u64 = 64 << 20;

/// What a record in the journal, or an entry in memory, costs beside its data. Roughly, and not too little.
const OVERHEAD_BYTES: u64 = 256;

/// Bytes of committed entries handed out at once.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// What the machine is told.
#[derive(Debug)]
pub(super) enum Input {
    /// The first one.
    Begin,
    /// 50 ms went by.
    Tick,
    /// A peer says something. With a snapshot comes its state.
    Receive { from: NodeId, frame: Frame, state: Bytes },
    /// What was sent to a peer may be lost.
    Unreachable(NodeId),
    /// A snapshot was sent, or could not be.
    SnapshotSent { to: NodeId, whole: bool },
    /// Somebody wants an entry agreed.
    Propose { ticket: u64, entry: Bytes },
    /// Somebody wants to read what is agreed by now.
    Read { ticket: u64 },
    /// Somebody wants another membership.
    Change { ticket: u64, change: Change },
    /// Somebody wants another leader.
    Transfer { ticket: u64, to: NodeId },
    /// The journal has no room for others while it keeps raft's records.
    Crowded,
    /// Records up to this number are durable.
    Synced { through: u64 },
    /// The journal cannot be trusted any more.
    JournalFailed,
    /// A snapshot is in place.
    Snapshotted { index: u64, bytes: u64 },
    /// A snapshot could not be written; the one before stands.
    SnapshotFailed,
    /// The leader's snapshot is in place.
    Installed { bytes: u64 },
    /// The leader's snapshot could not be put in place.
    InstallFailed,
}

/// What the shell is to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Append a record to the journal.
    Append { at: Position, record: Vec<u8> },
    /// Sync the journal; then [`Input::Synced`] with this number.
    Sync { through: u64 },
    /// Send to a peer; may be lost.
    Send { to: NodeId, frame: Frame },
    /// Send the state machine as it is now to a peer, behind this head; then [`Input::SnapshotSent`].
    SendSnapshot { to: NodeId, head: Box<peer::Message> },
    /// Apply a committed entry, and answer the proposer if it is ours.
    Apply { index: u64, entry: Bytes, ticket: Option<u64> },
    /// What was asked for is done.
    Answer { ticket: u64 },
    /// Tell a proposer that its entry will not be applied by this proposal, or that nobody can say.
    Refuse { ticket: u64, error: ProposeError },
    /// Store the state machine as it is now; then [`Input::Snapshotted`].
    Snapshot { index: u64, term: u64, snapshot: Box<format::Snapshot> },
    /// Store the leader's snapshot in place of the own; then [`Input::Installed`].
    Install { index: u64, term: u64, snapshot: Box<format::Snapshot> },
    /// Let the state machine take on a snapshot that is in place.
    Restore { state: Bytes },
    /// The journal's records of raft up to here are not needed any more.
    Trim { through: Position },
    /// Call again in a tick.
    ArmTick,
    /// Say [`Input::Crowded`] when it is so.
    WatchJournal,
    /// Everything committed before this life began has been applied.
    CaughtUp,
    /// The group is another one.
    Members(format::Membership),
    /// The state of affairs has changed.
    Report(RaftStatus),
    /// How many agreed entries each other member is not known to have; nothing is told by one that does not lead.
    ReportLags(BTreeMap<u64, u64>),
    /// Nothing goes on: the reason is in the status.
    Halt(&'static str),
}

/// A record in the journal.
#[derive(Clone, Copy, Debug)]
struct Kept {
    at: Position,
    /// Index of its last entry; zero without entries.
    last: u64,
    /// Bytes it takes, roughly.
    bytes: u64,
}

/// A batch of raft's that waits for a sync.
#[derive(Debug)]
struct Unsynced {
    ready: u64,
    /// The last record that belongs to it or to one before.
    record: u64,
    /// Promises to peers, to be sent when it is durable.
    messages: Vec<Message>,
}

/// What a machine starts from.
pub(super) struct Start {
    pub(super) node: u64,
    /// A number that no life of this node had before.
    pub(super) nonce: u64,
    /// The log with the hard state merged from snapshot and records.
    pub(super) log: Log,
    /// The index the state machine stands at.
    pub(super) applied: u64,
    /// Records found in the journal: position, index of the last entry or zero, length.
    pub(super) records: Vec<(Position, u64, usize)>,
    /// True when the snapshot has never been started from.
    pub(super) first_start: bool,
    /// What the journal holds.
    pub(super) journal: JournalBounds,
}

/// What the journal holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct JournalBounds {
    /// The longest record.
    pub(super) record_bytes_max: usize,
    /// All records together.
    pub(super) bytes_max: u64,
}

/// The machine.
pub(super) struct Machine {
    raft: RawNode<Log>,
    records: VecDeque<Kept>,
    records_bytes: u64,
    record_last: u64,
    record_synced: u64,
    unsynced: VecDeque<Unsynced>,
    wants_sync: bool,
    syncing: bool,
    /// Proposals by the index of their entry.
    proposals: BTreeMap<u64, Proposal>,
    proposed_bytes: u64,
    /// Proposals of this node that the leader has and has not placed yet.
    forwarded: BTreeMap<u64, Forwarded>,
    reads: Reads,
    /// Members that were removed in this life.
    removed: BTreeSet<u64>,
    /// The leader's snapshot, on its way to the disk.
    install: Option<Install>,
    refused_messages: u64,
    applied: u64,
    /// Applied this far, everything from before this life is.
    caught_up_at: Option<u64>,
    first_start: bool,
    pending: Option<Pending>,
    snapshot_bytes: u64,
    /// Ticks until a snapshot is tried again that could not be written.
    retry_ticks: u32,
    /// The journal needs the room that raft's records take.
    crowded: bool,
    journal: JournalBounds,
    reported: RaftStatus,
    reported_lags: BTreeMap<u64, u64>,
    halted: Option<&'static str>,
}

impl Machine {
    /// A raft node as it was left.
    pub(super) fn new(start: Start) -> Result<Self, raft::Error> {
        let Start { node, nonce, log, applied, records, first_start, journal } = start;
        let config = Config {
            id: node,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: PROPOSED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let committed = log.hard_state().commit;
        let raft = RawNode::new(&config, log, &super::logger::logger())?;
        let records: VecDeque<_> = records.into_iter().map(|(at, last, length)| kept(at, last, length)).collect();
        let record_last = records.back().map_or(0, |kept| kept.at.number);
        Ok(Self {
            raft,
            records_bytes: records.iter().map(|kept| kept.bytes).sum(),
            records,
            record_last,
            // The journal makes everything it replays durable before it opens.
            record_synced: record_last,
            unsynced: VecDeque::new(),
            wants_sync: false,
            syncing: false,
            proposals: BTreeMap::new(),
            proposed_bytes: 0,
            forwarded: BTreeMap::new(),
            reads: Reads::new(node, nonce),
            removed: BTreeSet::new(),
            install: None,
            refused_messages: 0,
            applied,
            // Whoever joins has to hear of the group first.
            caught_up_at: Some(committed.max(1)),
            first_start,
            pending: None,
            snapshot_bytes: 0,
            retry_ticks: 0,
            crowded: false,
            journal,
            reported: RaftStatus::default(),
            reported_lags: BTreeMap::new(),
            halted: None,
        })
    }

    /// Begins: alone in the group, it leads at once, and what it finds in its log is committed by its own first entry.
    fn begin(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::ArmTick);
        effects.push(Effect::WatchJournal);
        effects.push(Effect::Members(convert::membership(self.raft.store().members())));
        // What is known to be committed comes first, for it may change the group. It is not all that may be.
        let caught_up_at = self.caught_up_at.take();
        self.pump(effects);
        self.caught_up_at = caught_up_at;
        if self.is_alone() {
            // It cannot fail: nobody else can lead.
            let _ = self.raft.campaign();
            self.caught_up_at = Some(self.raft.raft.raft_log.last_index());
        }
    }

    /// True for the only one that votes.
    fn is_alone(&self) -> bool {
        let members = self.raft.store().members();
        members.voters.len() == 1
            && members.voters.first() == Some(&self.raft.raft.id)
            && members.voters_outgoing.is_empty()
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::ArmTick);
        if self.install.is_some() {
            return;
        }
        self.raft.tick();
        self.forget_forwarded(effects);
        self.repeat_reads(effects);
        self.leave_joint();
        self.retry_snapshot(effects);
    }

    /// Raft draws its election timeout from the system's chance; this gives it one that the same history gives again. A
    /// function of state alone: raft-rs draws anew at moments that cannot be seen from outside.
    fn set_election_timeout(&mut self) {
        let raft = &mut self.raft.raft;
        let role = match raft.state {
            StateRole::Follower => 1,
            StateRole::Candidate => 2,
            StateRole::Leader => 3,
            StateRole::PreCandidate => 4,
        };
        let mut mixed = raft.id ^ raft.term.rotate_left(17) ^ (role << 60);
        for _ in 0..3 {
            mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let spread = usize::try_from(mixed >> 40).expect("24 bits") % ELECTION_TICKS;
        raft.set_randomized_election_timeout(ELECTION_TICKS + spread);
    }

    /// Takes everything raft has ready.
    fn pump(&mut self, effects: &mut Vec<Effect>) {
        while self.halted.is_none() && self.install.is_none() && self.raft.has_ready() {
            let mut ready = self.raft.ready();
            self.send(ready.take_messages(), effects);
            self.take_read_states(ready.take_read_states());
            if !ready.snapshot().is_empty() {
                self.begin_install(ready, effects);
                break;
            }
            let committed = ready.take_committed_entries();
            let entries = ready.take_entries();
            if !self.raft.mut_store().append(&entries) {
                return self.halt("raft handed out entries that do not join its log", effects);
            }
            if ready.hs().is_some() || !entries.is_empty() {
                let hard_state = ready.hs().unwrap_or_else(|| self.raft.store().hard_state()).clone();
                self.raft.mut_store().set_hard_state(hard_state.clone());
                self.store(&entries, &hard_state, effects);
            }
            self.wants_sync |= ready.must_sync();
            let messages = ready.take_persisted_messages();
            self.unsynced.push_back(Unsynced { ready: ready.number(), record: self.record_last, messages });
            let must_sync = ready.must_sync();
            self.raft.advance_append_async(ready);
            if !must_sync && !self.wants_sync && !self.syncing {
                // Nothing in it has to be durable before others hear of it, and nothing before it waits.
                self.persisted(self.record_last, effects);
            }
            self.apply(committed, effects);
        }
        if self.halted.is_some() {
            return;
        }
        self.answer_reads(effects);
        if self.caught_up_at.is_some_and(|index| self.applied >= index) {
            self.caught_up_at = None;
            effects.push(Effect::CaughtUp);
            self.maybe_snapshot(effects);
        }
        if self.wants_sync && !self.syncing {
            self.wants_sync = false;
            self.syncing = true;
            effects.push(Effect::Sync { through: self.record_last });
        }
    }

    /// Appends entries and hard state to the journal, in records of bounded length.
    fn store(&mut self, entries: &[Entry], hard_state: &HardState, effects: &mut Vec<Effect>) {
        let hard_state = convert::hard_state(hard_state);
        let mut batch = format::Record { hard_state, first: 0, entries: Vec::new() };
        let mut bytes = 0;
        for entry in entries {
            let entry_bytes = entry.data.len() + 64;
            if !batch.entries.is_empty()
                && bytes + entry_bytes > self.journal.record_bytes_max.min(format::RECORD_ENTRIES_BYTES)
            {
                let full = std::mem::replace(&mut batch, format::Record { hard_state, first: 0, entries: Vec::new() });
                self.put(&full, effects);
                bytes = 0;
            }
            if batch.entries.is_empty() {
                batch.first = entry.index;
            }
            batch.entries.push(convert::entry(entry));
            bytes += entry_bytes;
        }
        self.put(&batch, effects);
    }

    fn put(&mut self, record: &format::Record, effects: &mut Vec<Effect>) {
        self.record_last += 1;
        let at = Position { epoch: record.hard_state.term, number: self.record_last };
        let count = u64_of(record.entries.len());
        let last = if count == 0 { 0 } else { record.first + count - 1 };
        let record = record.encode();
        let kept = kept(at, last, record.len());
        self.records_bytes += kept.bytes;
        self.records.push_back(kept);
        effects.push(Effect::Append { at, record });
    }

    /// Records up to `record` are durable: promises may leave, and raft may count this node's own vote for them.
    fn persisted(&mut self, record: u64, effects: &mut Vec<Effect>) {
        let mut last = None;
        while let Some(batch) = self.unsynced.pop_front_if(|batch| batch.record <= record) {
            last = Some(batch.ready);
            self.send(batch.messages, effects);
        }
        if let Some(ready) = last {
            self.raft.on_persist_ready(ready);
        }
    }

    fn apply(&mut self, committed: Vec<Entry>, effects: &mut Vec<Effect>) {
        for entry in committed {
            assert!(entry.index > self.applied, "entries are applied once, in order");
            let ticket = self.settle(&entry, effects);
            self.applied = entry.index;
            self.raft.mut_store().settle(entry.index);
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.change_members(&entry, effects);
                effects.extend(ticket.map(|ticket| Effect::Answer { ticket }));
            } else if !entry.data.is_empty() {
                effects.push(Effect::Apply { index: entry.index, entry: entry.data, ticket });
            }
            if self.halted.is_some() {
                return;
            }
        }
        self.raft.advance_apply_to(self.applied);
        self.maybe_snapshot(effects);
    }

    /// Sends what raft says. A snapshot is of the state machine as it is when it is sent.
    fn send(&mut self, messages: Vec<Message>, effects: &mut Vec<Effect>) {
        for message in messages {
            // What has no form for others is meant for this node alone.
            let Some(mut message) = convert::message(&message) else { continue };
            let to = message.to;
            if let Some(head) = &mut message.snapshot {
                let (index, term, members) = self.raft.store().settled();
                (head.index, head.term, head.membership) = (index, term, convert::membership(&members));
                effects.push(Effect::SendSnapshot { to, head: Box::new(message) });
            } else {
                effects.push(Effect::Send { to, frame: Frame::Raft(Box::new(message)) });
            }
        }
    }

    fn halt(&mut self, reason: &'static str, effects: &mut Vec<Effect>) {
        self.halted = Some(reason);
        effects.push(Effect::Halt(reason));
        let placed = std::mem::take(&mut self.proposals).into_values().filter_map(|proposal| proposal.ticket);
        let forwarded = std::mem::take(&mut self.forwarded).into_keys();
        let waiting: Vec<u64> = placed.chain(forwarded).chain(self.reads.take()).collect();
        effects.extend(waiting.into_iter().map(|ticket| Effect::Refuse { ticket, error: ProposeError::Stopped }));
    }

    fn report(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.raft.raft;
        let status = RaftStatus {
            term: raft.term,
            leader: Some(raft.leader_id).filter(|leader| *leader != 0),
            is_leader: raft.state == StateRole::Leader,
            commit: raft.raft_log.committed,
            applied: self.applied,
            persisted: raft.raft_log.persisted,
            log_entries: self.raft.store().entries_behind(),
            refused_messages: self.refused_messages,
            halted: self.halted,
        };
        if status != self.reported {
            self.reported = status;
            effects.push(Effect::Report(status));
        }
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        if self.halted.is_some() {
            if let Input::Propose { ticket, .. }
            | Input::Read { ticket }
            | Input::Change { ticket, .. }
            | Input::Transfer { ticket, .. } = input
            {
                effects.push(Effect::Refuse { ticket, error: ProposeError::Stopped });
            }
            return;
        }
        self.set_election_timeout();
        match input {
            Input::Begin => self.begin(effects),
            Input::Tick => {
                self.tick(effects);
                self.report_lags(effects);
            }
            Input::Receive { from, frame, state } => self.receive(from, frame, state, effects),
            Input::Unreachable(node) => {
                self.raft.report_unreachable(node.0);
                self.lose_forwarded_to(node, effects);
            }
            Input::SnapshotSent { to, whole } => {
                let status = if whole { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raft.report_snapshot(to.0, status);
            }
            Input::Propose { ticket, entry } => self.propose(ticket, entry, effects),
            Input::Read { ticket } => self.read(ticket),
            Input::Change { ticket, change } => self.change(ticket, change, effects),
            Input::Transfer { ticket, to } => self.transfer(ticket, to, effects),
            Input::Synced { through } => {
                self.syncing = false;
                self.record_synced = self.record_synced.max(through);
                // What came since and needs no sync of its own only waited for its turn.
                let through = if self.wants_sync { through } else { self.record_last };
                self.persisted(through, effects);
                self.go_on_installing(effects);
            }
            Input::Crowded => {
                effects.push(Effect::WatchJournal);
                self.crowded = true;
                self.maybe_snapshot(effects);
            }
            Input::JournalFailed => self.halt("the journal failed", effects),
            Input::Snapshotted { index, bytes } => {
                self.snapshotted(index, bytes, effects);
                self.go_on_installing(effects);
            }
            Input::SnapshotFailed => {
                self.pending = None;
                self.retry_ticks = RETRY_TICKS;
                self.go_on_installing(effects);
            }
            Input::Installed { bytes } => self.installed(bytes, effects),
            Input::InstallFailed => self.halt("the leader's snapshot cannot be stored; make room and restart", effects),
        }
        self.pump(effects);
        self.lose_forwarded_to_old_leaders(effects);
        self.report(effects);
    }
}

fn kept(at: Position, last: u64, length: usize) -> Kept {
    Kept { at, last, bytes: u64_of(length) + OVERHEAD_BYTES }
}

fn u64_of(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
