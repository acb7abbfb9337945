//! Between raft-rs's types and the ones that are stored and sent.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata};
use velum_protocol::{
    format::raft as format,
    id::{Hash, NodeId},
    peer::agreement::{self as peer, MessageKind},
};

use super::conf_change;

/// To store.
pub(super) fn hard_state(from: &HardState) -> format::HardState {
    format::HardState { term: from.term, vote: from.vote, commit: from.commit }
}

/// To use.
pub(super) fn raft_hard_state(from: format::HardState) -> HardState {
    let format::HardState { term, vote, commit } = from;
    HardState { term, vote, commit, ..HardState::default() }
}

/// To store or send. Nothing in this project sets an entry's context.
pub(super) fn entry(from: &Entry) -> format::Entry {
    let (kind, data) = match from.get_entry_type() {
        EntryType::EntryNormal => (format::EntryKind::Normal, from.data.clone()),
        EntryType::EntryConfChange => (format::EntryKind::Membership, from.data.clone()),
        EntryType::EntryConfChangeV2 => {
            let change = conf_change::from_entry(&from.data).expect("entries hold what this process put there");
            (format::EntryKind::MembershipV2, change.encode().into())
        }
    };
    format::Entry { term: from.term, kind, data }
}

/// To use; `None` when an entry holds a membership change that is none.
pub(super) fn raft_entries(first: u64, from: Vec<format::Entry>) -> Option<Vec<Entry>> {
    (first..).zip(from).map(|(index, from)| raft_entry(index, from)).collect()
}

fn raft_entry(index: u64, from: format::Entry) -> Option<Entry> {
    let format::Entry { term, kind, data } = from;
    let (entry_type, data) = match kind {
        format::EntryKind::Normal => (EntryType::EntryNormal, data),
        // No version ever wrote one.
        format::EntryKind::Membership => return None,
        format::EntryKind::MembershipV2 => {
            let change = format::MembershipChange::decode(&data).ok()?;
            (EntryType::EntryConfChangeV2, conf_change::to_entry(&change).into())
        }
    };
    Some(Entry { entry_type, term, index, data, ..Entry::default() })
}

/// To store.
pub(super) fn membership(from: &ConfState) -> format::Membership {
    format::Membership {
        voters: from.voters.clone(),
        learners: from.learners.clone(),
        voters_outgoing: from.voters_outgoing.clone(),
        learners_next: from.learners_next.clone(),
        auto_leave: from.auto_leave,
    }
}

/// To use.
pub(super) fn raft_members(from: format::Membership) -> ConfState {
    let format::Membership { voters, learners, voters_outgoing, learners_next, auto_leave } = from;
    ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default() }
}

/// To send; `None` for what stays on a node. The state of a snapshot is left to whoever sends it.
pub(super) fn message(from: &Message) -> Option<peer::Message> {
    let kind = kind(from.get_msg_type())?;
    let snapshot = (kind == MessageKind::Snapshot).then(|| {
        let metadata = from.get_snapshot().get_metadata();
        peer::SnapshotHead {
            index: metadata.index,
            term: metadata.term,
            membership: membership(metadata.get_conf_state()),
            state_bytes: 0,
            state_hash: Hash::ZERO,
        }
    });
    Some(peer::Message {
        kind,
        to: NodeId(from.to),
        from: NodeId(from.from),
        term: from.term,
        log_term: from.log_term,
        index: from.index,
        commit: from.commit,
        commit_term: from.commit_term,
        reject: from.reject,
        reject_hint: from.reject_hint,
        context: from.context.clone(),
        entries: from.entries.iter().map(entry).collect(),
        snapshot,
    })
}

/// To use; `state` is a snapshot's. `None` when an entry is none.
pub(super) fn raft_message(from: peer::Message, state: Bytes) -> Option<Message> {
    let msg_type = raft_kind(from.kind);
    // Only entries of an append have places; a read's entry holds its name.
    let first = if from.kind == MessageKind::Append { from.index.checked_add(1)? } else { 0 };
    let entries = raft_entries(first, from.entries)?;
    let mut message = Message {
        msg_type,
        to: from.to.0,
        from: from.from.0,
        term: from.term,
        log_term: from.log_term,
        index: from.index,
        entries: entries.into(),
        commit: from.commit,
        commit_term: from.commit_term,
        reject: from.reject,
        reject_hint: from.reject_hint,
        context: from.context,
        ..Message::default()
    };
    if let Some(head) = from.snapshot {
        message.set_snapshot(snapshot(head.index, head.term, raft_members(head.membership), state));
    }
    Some(message)
}

/// A snapshot as raft-rs has it.
pub(super) fn snapshot(index: u64, term: u64, members: ConfState, state: Bytes) -> Snapshot {
    let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
    metadata.set_conf_state(members);
    let mut snapshot = Snapshot { data: state, ..Snapshot::default() };
    snapshot.set_metadata(metadata);
    snapshot
}

/// The kinds that travel.
const KINDS: [(MessageType, MessageKind); 12] = [
    (MessageType::MsgAppend, MessageKind::Append),
    (MessageType::MsgAppendResponse, MessageKind::AppendResponse),
    (MessageType::MsgRequestVote, MessageKind::RequestVote),
    (MessageType::MsgRequestVoteResponse, MessageKind::RequestVoteResponse),
    (MessageType::MsgSnapshot, MessageKind::Snapshot),
    (MessageType::MsgHeartbeat, MessageKind::Heartbeat),
    (MessageType::MsgHeartbeatResponse, MessageKind::HeartbeatResponse),
    (MessageType::MsgTimeoutNow, MessageKind::TimeoutNow),
    (MessageType::MsgReadIndex, MessageKind::ReadIndex),
    (MessageType::MsgReadIndexResp, MessageKind::ReadIndexResponse),
    (MessageType::MsgRequestPreVote, MessageKind::RequestPreVote),
    (MessageType::MsgRequestPreVoteResponse, MessageKind::RequestPreVoteResponse),
];

fn kind(from: MessageType) -> Option<MessageKind> {
    KINDS.iter().find(|(raft, _)| *raft == from).map(|(_, kind)| *kind)
}

fn raft_kind(from: MessageKind) -> MessageType {
    let found = KINDS.iter().find(|(_, kind)| *kind == from);
    found.map(|(raft, _)| *raft).expect("every kind that travels is raft's")
}
