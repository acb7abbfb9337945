//! Who is in the group: one step at a time, a newcomer as learner first, votes given and taken with both majorities asked.

use std::collections::BTreeMap;

use raft::{
    StateRole,
    eraftpb::{ConfChangeV2, Entry},
};
use velum_protocol::{
    format::raft::{MemberChange, Membership, MembershipChange, Transition},
    id::NodeId,
};

use super::{Change, Effect, Machine, Proposal, ProposeError, convert};
use crate::consensus::conf_change;

/// Entries that a learner may lack and still be given a vote: less than comes in a heartbeat's time.
const LAG_ENTRIES_MAX: u64 = 64;

impl Machine {
    /// The group as the log has it.
    pub(in crate::consensus) fn members(&self) -> Membership {
        convert::membership(self.raft.store().members())
    }

    /// As the leader, proposes another membership.
    pub(super) fn change(&mut self, ticket: u64, change: Change, effects: &mut Vec<Effect>) {
        match self.propose_change(change) {
            Ok(index) => {
                self.clear_place(index, effects);
                self.keep(index, Proposal { term: self.raft.raft.term, ticket: Some(ticket), bytes: 0 });
            }
            Err(error) => effects.push(Effect::Refuse { ticket, error }),
        }
    }

    fn propose_change(&mut self, change: Change) -> Result<u64, ProposeError> {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        let members = self.raft.store().members();
        if raft.has_pending_conf() || !members.voters_outgoing.is_empty() {
            return Err(ProposeError::NotPossible("another change of the membership is under way"));
        }
        let step = |transition, change, node: NodeId| MembershipChange { transition, changes: vec![(change, node.0)] };
        let change = match change {
            Change::AddLearner(node) if node.0 == 0 || self.removed.contains(&node.0) => {
                return Err(ProposeError::NotPossible("a node's number is never used again"));
            }
            Change::AddLearner(node) if raft.prs().get(node.0).is_some() => {
                return Err(ProposeError::NotPossible("the node is a member already"));
            }
            Change::AddLearner(node) => step(Transition::Auto, MemberChange::Learner, node),
            Change::Promote(node) if !members.learners.contains(&node.0) => {
                return Err(ProposeError::NotPossible("the node is no learner"));
            }
            Change::Promote(node) if !self.has_caught_up(node) => {
                return Err(ProposeError::NotPossible("the learner has not caught up yet; try again later"));
            }
            Change::Promote(node) => step(Transition::Implicit, MemberChange::Voter, node),
            Change::Demote(node) if node.0 == raft.id => {
                return Err(ProposeError::NotPossible("the leader keeps its vote; transfer leadership first"));
            }
            Change::Demote(node) if !members.voters.contains(&node.0) => {
                return Err(ProposeError::NotPossible("the node has no vote"));
            }
            Change::Demote(node) => step(Transition::Implicit, MemberChange::Learner, node),
            Change::Remove(node) if node.0 == raft.id => {
                return Err(ProposeError::NotPossible("the leader stays a member; transfer leadership first"));
            }
            Change::Remove(node) if !members.learners.contains(&node.0) => {
                return Err(ProposeError::NotPossible("only a learner is removed; take its vote first"));
            }
            Change::Remove(node) => step(Transition::Auto, MemberChange::Remove, node),
        };
        let proposed = self.raft.propose_conf_change(Vec::new(), conf_change::to_raft(&change));
        proposed.map_err(|_| ProposeError::Busy)?;
        Ok(self.raft.raft.raft_log.last_index())
    }

    fn has_caught_up(&self, node: NodeId) -> bool {
        let raft = &self.raft.raft;
        let progress = raft.prs().get(node.0);
        progress.is_some_and(|progress| {
            progress.recent_active && progress.matched + LAG_ENTRIES_MAX >= raft.raft_log.last_index()
        })
    }

    /// Tells how far behind the others are, when that is another than before.
    pub(super) fn report_lags(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.raft.raft;
        let is_leader = raft.state == StateRole::Leader;
        let others = raft.prs().iter().filter(|(node, _)| is_leader && **node != raft.id);
        let lags: BTreeMap<u64, u64> =
            others.map(|(node, progress)| (*node, raft.raft_log.committed.saturating_sub(progress.matched))).collect();
        if lags != self.reported_lags {
            self.reported_lags.clone_from(&lags);
            effects.push(Effect::ReportLags(lags));
        }
    }

    /// Applies a membership entry.
    pub(super) fn change_members(&mut self, entry: &Entry, effects: &mut Vec<Effect>) {
        let change = conf_change::from_entry(&entry.data).expect("entries hold what this process put there");
        let before = convert::membership(self.raft.store().members());
        match self.raft.apply_conf_change(&conf_change::to_raft(&change)) {
            Ok(members) => {
                let left = |node: &u64| {
                    ![&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next]
                        .into_iter()
                        .any(|kind| kind.contains(node))
                };
                self.removed.extend(before.voters.iter().chain(&before.learners).copied().filter(left));
                effects.push(Effect::Members(convert::membership(&members)));
                self.raft.mut_store().set_members(members);
                self.step_down_without_a_vote();
            }
            // The leader checks what it proposes; every member would come here alike.
            Err(_) => self.halt("the log changes the membership in a way that cannot be", effects),
        }
    }

    /// A leader whose vote was taken leads no more: raft-rs would let it go on, and panics once it is no member.
    fn step_down_without_a_vote(&mut self) {
        let raft = &mut self.raft.raft;
        if raft.state == StateRole::Leader && !raft.prs().conf().voters().contains(raft.id) {
            raft.become_follower(raft.term, 0);
        }
    }

    /// Leaves a membership of two majorities that nobody else leaves: its leader may have gone before it could.
    pub(super) fn leave_joint(&mut self) {
        let is_joint = !self.raft.store().members().voters_outgoing.is_empty();
        if is_joint && self.is_leader() && !self.raft.raft.has_pending_conf() {
            // What is refused now is tried again with the next tick.
            drop(self.raft.propose_conf_change(Vec::new(), ConfChangeV2::default()));
        }
    }

    /// As the leader, hands over to another voter that has everything.
    pub(super) fn transfer(&mut self, ticket: u64, to: NodeId, effects: &mut Vec<Effect>) {
        let members = self.raft.store().members();
        let error = if !self.is_leader() {
            ProposeError::NotLeader { leader: self.leader() }
        } else if to.0 == self.raft.raft.id {
            return effects.push(Effect::Answer { ticket });
        } else if !members.voters.contains(&to.0) {
            ProposeError::NotPossible("the node has no vote")
        } else if self.raft.raft.has_pending_conf() || !members.voters_outgoing.is_empty() {
            ProposeError::NotPossible("a change of the membership is under way")
        } else if !self.has_caught_up(to) {
            ProposeError::NotPossible("the node has not caught up; try again later")
        } else {
            self.raft.transfer_leader(to.0);
            return effects.push(Effect::Answer { ticket });
        };
        effects.push(Effect::Refuse { ticket, error });
    }
}
