//! Between raft-rs's types and the ones that are stored.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use velum_protocol::format::raft as format;

/// To store.
pub(super) fn hard_state(from: &HardState) -> format::HardState {
    format::HardState { term: from.term, vote: from.vote, commit: from.commit }
}

/// To use.
pub(super) fn raft_hard_state(from: format::HardState) -> HardState {
    let format::HardState { term, vote, commit } = from;
    HardState { term, vote, commit, ..HardState::default() }
}

/// To store. Nothing in this project sets an entry's context.
pub(super) fn entry(from: &Entry) -> format::Entry {
    let kind = match from.get_entry_type() {
        EntryType::EntryNormal => format::EntryKind::Normal,
        EntryType::EntryConfChange => format::EntryKind::Membership,
        EntryType::EntryConfChangeV2 => format::EntryKind::MembershipV2,
    };
    format::Entry { term: from.term, kind, data: from.data.clone() }
}

/// To use.
pub(super) fn raft_entries(first: u64, from: Vec<format::Entry>) -> Vec<Entry> {
    let with_index = (first..).zip(from);
    let convert = with_index.map(|(index, from)| {
        let entry_type = match from.kind {
            format::EntryKind::Normal => EntryType::EntryNormal,
            format::EntryKind::Membership => EntryType::EntryConfChange,
            format::EntryKind::MembershipV2 => EntryType::EntryConfChangeV2,
        };
        Entry { entry_type, term: from.term, index, data: from.data, ..Entry::default() }
    });
    convert.collect()
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
