//! Entries on their way into the log: of this node when it leads, else through the leader.
//!
//! A follower's proposal goes to the leader, who answers with the place it has given it. When the follower applies the entry
//! of that place, it has the state machine's answer itself: nothing but the entry travels. Whoever hears nothing in time
//! cannot know whether the entry will be agreed, and is told so.

use bytes::Bytes;
use raft::{StateRole, eraftpb::Entry};
use velum_protocol::{
    format::raft::ENTRY_BYTES_MAX,
    id::NodeId,
    peer::{Frame, Placed, Placement, Propose},
};

use super::{Effect, Machine, OVERHEAD_BYTES, PROPOSED_BYTES_MAX, ProposeError, u64_of};

/// Ticks that a leader has to place a proposal: 5 s, longer than an election takes.
const PLACE_TICKS_MAX: u32 = 100;

/// A proposal with a place in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposal {
    /// The term it was proposed in.
    pub(super) term: u64,
    /// Whom to answer, when it is somebody on this node.
    pub(super) ticket: Option<u64>,
    /// Bytes it takes here, roughly.
    pub(super) bytes: u64,
}

/// A proposal that is with the leader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forwarded {
    leader: u64,
    ticks: u32,
}

impl Machine {
    /// The longest entry that fits a record.
    pub(in crate::consensus) fn entry_bytes_max(record_bytes_max: usize) -> usize {
        record_bytes_max.saturating_sub(64).min(ENTRY_BYTES_MAX)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    pub(super) fn leader(&self) -> Option<u64> {
        Some(self.raft.raft.leader_id).filter(|leader| *leader != 0)
    }

    pub(super) fn propose(&mut self, ticket: u64, entry: Bytes, effects: &mut Vec<Effect>) {
        let refuse = |error| Effect::Refuse { ticket, error };
        if entry.is_empty() || entry.len() > Self::entry_bytes_max(self.journal.record_bytes_max) {
            return effects.push(refuse(ProposeError::Length(entry.len())));
        }
        if self.is_leader() {
            if self.place(&entry, Some(ticket), effects).is_none() {
                effects.push(refuse(ProposeError::Busy));
            }
            return;
        }
        let leader = self.leader();
        match leader.filter(|leader| *leader != self.raft.raft.id && self.install.is_none()) {
            Some(leader) => {
                self.forwarded.insert(ticket, Forwarded { leader, ticks: 0 });
                effects.push(Effect::Send { to: NodeId(leader), frame: Frame::Propose(Propose { ticket, entry }) });
            }
            None => effects.push(refuse(ProposeError::NotLeader { leader })),
        }
    }

    /// As the leader, puts an entry behind the others; `None` when there is no room.
    fn place(&mut self, entry: &Bytes, ticket: Option<u64>, effects: &mut Vec<Effect>) -> Option<Placement> {
        let bytes = u64_of(entry.len()) + OVERHEAD_BYTES;
        let has_room = self.proposed_bytes + bytes <= PROPOSED_BYTES_MAX.min(self.journal.bytes_max / 8);
        if !self.proposals.is_empty() && !has_room {
            return None;
        }
        // One copy, into the vector raft-rs asks for.
        self.raft.propose(Vec::new(), entry.to_vec()).ok()?;
        let (index, term) = (self.raft.raft.raft_log.last_index(), self.raft.raft.term);
        self.clear_place(index, effects);
        self.keep(index, Proposal { term, ticket, bytes });
        Some(Placement::At { index, term })
    }

    pub(super) fn keep(&mut self, index: u64, proposal: Proposal) {
        self.proposed_bytes += proposal.bytes;
        let before = self.proposals.insert(index, proposal);
        assert!(before.is_none(), "a place is cleared before it is given again");
    }

    /// A peer wants an entry proposed.
    pub(super) fn propose_for(&mut self, from: NodeId, Propose { ticket, entry }: Propose, effects: &mut Vec<Effect>) {
        let fits = !entry.is_empty() && entry.len() <= Self::entry_bytes_max(self.journal.record_bytes_max);
        let placement = if !self.is_leader() {
            Placement::NotLeader(self.leader().map(NodeId))
        } else if fits {
            self.place(&entry, None, effects).unwrap_or(Placement::Busy)
        } else {
            Placement::Busy
        };
        // Before the entry itself, so that the proposer knows its place when it comes.
        effects.push(Effect::Send { to: from, frame: Frame::Placed(Placed { ticket, placement }) });
    }

    /// The leader says what became of a proposal. Whoever else says so is not heard; the leader may be one that the group as
    /// this member knows it does not have yet.
    pub(super) fn placed(&mut self, from: NodeId, Placed { ticket, placement }: Placed, effects: &mut Vec<Effect>) {
        if self.forwarded.get(&ticket).is_none_or(|forwarded| forwarded.leader != from.0) {
            self.refused_messages += 1;
            return;
        }
        self.forwarded.remove(&ticket);
        let error = match placement {
            Placement::At { index, term } => {
                let standing = self.proposals.get(&index).map(|proposal| proposal.term);
                if index <= self.applied {
                    // Applied before its place was known: the answer went by.
                    ProposeError::Lost
                } else if standing.is_some_and(|standing| standing >= term) {
                    // A later leader has given the place away.
                    ProposeError::Lost
                } else {
                    self.clear_place(index, effects);
                    return self.keep(index, Proposal { term, ticket: Some(ticket), bytes: 0 });
                }
            }
            Placement::NotLeader(leader) => ProposeError::NotLeader { leader: leader.map(|leader| leader.0) },
            Placement::Busy => ProposeError::Busy,
        };
        effects.push(Effect::Refuse { ticket, error });
    }

    /// A leader of a later term gives the place to another entry. What stood there may still be agreed, should that leader be
    /// followed by one that has it: nobody can say.
    pub(super) fn clear_place(&mut self, index: u64, effects: &mut Vec<Effect>) {
        if let Some(Proposal { ticket, bytes, .. }) = self.proposals.remove(&index) {
            self.proposed_bytes -= bytes;
            effects.extend(ticket.map(|ticket| Effect::Refuse { ticket, error: ProposeError::Lost }));
        }
    }

    /// Takes back the ticket of the proposal that stood at a committed entry's place, if it is that entry.
    pub(super) fn settle(&mut self, entry: &Entry, effects: &mut Vec<Effect>) -> Option<u64> {
        let Proposal { term, ticket, bytes } = self.proposals.remove(&entry.index)?;
        self.proposed_bytes -= bytes;
        if term == entry.term {
            return ticket;
        }
        effects.extend(ticket.map(|ticket| Effect::Refuse { ticket, error: ProposeError::Superseded }));
        None
    }

    /// A snapshot covers the places up to `index`: whose entry it holds cannot be told any more.
    pub(super) fn lose_proposals(&mut self, index: u64, effects: &mut Vec<Effect>) {
        let left = self.proposals.split_off(&(index + 1));
        for Proposal { ticket, bytes, .. } in std::mem::replace(&mut self.proposals, left).into_values() {
            self.proposed_bytes -= bytes;
            effects.extend(ticket.map(|ticket| Effect::Refuse { ticket, error: ProposeError::Lost }));
        }
    }

    /// Gives up on proposals that the leader has not placed in time.
    pub(super) fn forget_forwarded(&mut self, effects: &mut Vec<Effect>) {
        self.forwarded.values_mut().for_each(|forwarded| forwarded.ticks += 1);
        self.lose_forwarded(|forwarded| forwarded.ticks > PLACE_TICKS_MAX, effects);
    }

    /// Gives up on proposals that are with a node whose link broke.
    pub(super) fn lose_forwarded_to(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        self.lose_forwarded(|forwarded| forwarded.leader == node.0, effects);
    }

    /// Gives up on proposals that are with somebody who leads no more: whoever waits asks again, and sooner.
    pub(super) fn lose_forwarded_to_old_leaders(&mut self, effects: &mut Vec<Effect>) {
        let leader = self.leader();
        self.lose_forwarded(|forwarded| Some(forwarded.leader) != leader, effects);
    }

    fn lose_forwarded(&mut self, is_lost: impl Fn(&Forwarded) -> bool, effects: &mut Vec<Effect>) {
        self.forwarded.retain(|ticket, forwarded| {
            let is_lost = is_lost(forwarded);
            effects.extend(is_lost.then_some(Effect::Refuse { ticket: *ticket, error: ProposeError::Lost }));
            !is_lost
        });
    }
}
