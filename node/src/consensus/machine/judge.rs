//! What of a peer's messages raft gets to see. raft-rs panics on messages that cannot be; nothing such gets through.
//!
//! That a message comes from the node it names is the link's business and certain here. A member that was removed is not
//! heard. A node that this one does not know yet is heard when it leads or wants to: the membership here may lag.

use bytes::Bytes;
use velum_protocol::{
    format::raft::EntryKind,
    id::NodeId,
    peer::{
        Frame,
        agreement::{Message, MessageKind},
    },
};

use super::{Effect, Machine, convert};

/// Terms and indexes beyond this are nonsense, and adding to them would overflow one day.
const NUMBER_MAX: u64 = u64::MAX / 4;

impl Machine {
    /// A peer says something.
    pub(super) fn receive(&mut self, from: NodeId, frame: Frame, state: Bytes, effects: &mut Vec<Effect>) {
        let is_member = self.raft.raft.prs().get(from.0).is_some();
        match frame {
            Frame::Raft(message) if self.install.is_none() && message.from == from => {
                self.receive_raft(*message, state, effects);
            }
            Frame::Propose(propose) if is_member => self.propose_for(from, propose, effects),
            Frame::Placed(placed) => self.placed(from, placed, effects),
            _ => self.refused_messages += 1,
        }
    }

    fn receive_raft(&mut self, message: Message, state: Bytes, effects: &mut Vec<Effect>) {
        if !self.accepts(&message) || self.raft.raft.id != message.to.0 {
            self.refused_messages += 1;
            return;
        }
        let last = self.raft.raft.raft_log.last_index();
        if message.kind == MessageKind::Heartbeat && message.commit > last {
            // The leader has been told by this node that it holds more. It does not, so it may have forgotten votes too.
            let reason = "the leader knows this node to hold entries that it lacks: its log was lost; replace the node";
            return self.halt(reason, effects);
        }
        let Some(message) = convert::raft_message(message, state) else {
            self.refused_messages += 1;
            return;
        };
        // An error says that the message is of no use now; raft repeats what matters.
        let _ = self.raft.step(message);
    }

    fn accepts(&self, message: &Message) -> bool {
        let raft = &self.raft.raft;
        let Message { from, term, log_term, index, commit, commit_term, reject_hint, .. } = *message;
        let from_member = raft.prs().get(from.0).is_some();
        let from_stranger = from.0 != 0 && !self.removed.contains(&from.0);
        let last = raft.raft_log.last_index();
        if from.0 == raft.id
            || [term, log_term, index, commit, commit_term, reject_hint].iter().any(|n| *n > NUMBER_MAX)
        {
            return false;
        }
        let has_term = term > 0;
        match message.kind {
            MessageKind::Append => has_term && from_stranger && entries_are_in_order(message),
            // Old news is none; a commit beyond the log, by this term's leader, is judged by the caller.
            MessageKind::Heartbeat => has_term && from_stranger && (commit <= last || term >= raft.term),
            MessageKind::Snapshot => has_term && from_stranger && self.snapshot_can_be(message),
            MessageKind::RequestVote | MessageKind::RequestPreVote => has_term && from_stranger,
            MessageKind::TimeoutNow => from_member && term == raft.term && raft.leader_id == from.0,
            // Nobody can hold more of this term than its leader.
            MessageKind::AppendResponse => {
                has_term && from_member && (index <= last || message.reject || term != raft.term)
            }
            MessageKind::HeartbeatResponse | MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse => {
                has_term && from_member
            }
            MessageKind::ReadIndex => term == 0 && from_member && names_one_read(message),
            MessageKind::ReadIndexResponse => has_term && from_member && names_one_read(message),
        }
    }

    fn snapshot_can_be(&self, message: &Message) -> bool {
        let Some(head) = &message.snapshot else { return false };
        // Terms never fall, and what is committed here is older than what a leader's snapshot ends with.
        head.index > 0
            && head.index < NUMBER_MAX
            && head.term > 0
            && head.term <= message.term
            && head.membership.is_possible()
    }
}

/// Terms never fall from entry to entry, and none is of a later term than the leader's.
fn entries_are_in_order(message: &Message) -> bool {
    let terms = std::iter::once(message.log_term).chain(message.entries.iter().map(|entry| entry.term));
    let last = terms.clone().last().unwrap_or_default();
    terms.clone().zip(terms.skip(1)).all(|(before, after)| before <= after)
        && last <= message.term
        && message.entries.iter().all(|entry| entry.term > 0)
}

fn names_one_read(message: &Message) -> bool {
    matches!(&message.entries[..], [entry] if entry.kind == EntryKind::Normal && entry.data.len() <= 64)
}
