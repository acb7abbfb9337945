//! From the group as raft has it towards the nodes that the metadata names: what the keeper may do next.
//!
//! A newcomer learns first and gets a vote when it has caught up. A node that leaves loses its vote, then its membership, and is
//! retired last: until it is out, its word may be needed to get it out. A leader hands over before it leaves, and so does one that
//! keeps journals.

use velum_protocol::{format::raft::Membership, id::NodeId};

use crate::{consensus::Change, metadata::State};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Of the group.
    Change(Change),
    /// Another node leads.
    Transfer(NodeId),
    /// A node is not listened to any more.
    Retire(NodeId),
}

/// The steps that the leader `own` may take now, the most urgent first. Any of them may not be possible yet; the others do not
/// wait for it.
pub(super) fn next(state: &State, members: &Membership, own: NodeId, is_live: &dyn Fn(NodeId) -> bool) -> Vec<Step> {
    if !members.voters_outgoing.is_empty() {
        return Vec::new();
    }
    let (votes, learns) =
        (|node: NodeId| members.voters.contains(&node.0), |node: NodeId| members.learners.contains(&node.0));
    let leave = state.leaving.iter().filter(|node| !state.keeps(**node)).filter_map(|node| {
        if *node == own {
            let heir =
                members.voters.iter().map(|voter| NodeId(*voter)).find(|voter| state.stays(*voter) && is_live(*voter));
            return heir.map(Step::Transfer);
        }
        if votes(*node) {
            // With a majority of those who stay away nothing could be agreed on any more, not even this.
            let stay = || members.voters.iter().map(|voter| NodeId(*voter)).filter(|voter| voter != node);
            let live = stay().filter(|voter| is_live(*voter)).count();
            return (live * 2 > stay().count()).then_some(Step::Change(Change::Demote(*node)));
        }
        Some(if learns(*node) { Step::Change(Change::Remove(*node)) } else { Step::Retire(*node) })
    });
    let nodes = || state.nodes.keys().copied().filter(|node| state.stays(*node));
    let come =
        nodes().filter(|node| !votes(*node) && !learns(*node)).map(|node| Step::Change(Change::AddLearner(node)));
    let rise = nodes().filter(|node| learns(*node)).map(|node| Step::Change(Change::Promote(node)));
    leave.chain(come).chain(rise).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use velum_protocol::{
        format::metadata::{Command, Proposal, RequestId, WrappedKey, WrappedVolumeKeys},
        id::{ClusterId, Epoch, Hash, KeyEpoch, VolumeId},
    };

    use super::*;
    use crate::metadata::state::NodeEntry;

    fn state(nodes: &[u64], leaving: &[u64]) -> State {
        let mut state = State::new(ClusterId([1; 16]), Vec::new(), 2);
        let entry = |node: &u64| (NodeId(*node), NodeEntry { address: "h:1".into(), retired: false });
        state.nodes = nodes.iter().map(entry).collect();
        state.leaving = leaving.iter().copied().map(NodeId).collect();
        state
    }

    fn group(voters: &[u64], learners: &[u64]) -> Membership {
        Membership { voters: voters.to_vec(), learners: learners.to_vec(), ..Membership::default() }
    }

    fn all_live(_: NodeId) -> bool {
        true
    }

    #[test]
    fn a_newcomer_learns_then_votes() {
        let state = state(&[1, 2, 3], &[]);
        let next = |members| next(&state, &members, NodeId(1), &all_live);
        let (learn, rise) =
            (|node| Step::Change(Change::AddLearner(NodeId(node))), |node| Step::Change(Change::Promote(NodeId(node))));
        assert_eq!(next(group(&[1], &[])), [learn(2), learn(3)]);
        assert_eq!(next(group(&[1], &[2])), [learn(3), rise(2)]);
        assert_eq!(next(group(&[1, 2], &[3])), [rise(3)]);
        assert_eq!(next(group(&[1, 2, 3], &[])), []);
    }

    #[test]
    fn a_node_that_leaves_is_heard_until_it_is_out() {
        let state = state(&[1, 2, 3], &[3]);
        let next = |members| next(&state, &members, NodeId(1), &all_live);
        assert_eq!(next(group(&[1, 2, 3], &[])), [Step::Change(Change::Demote(NodeId(3)))]);
        assert_eq!(next(group(&[1, 2], &[3])), [Step::Change(Change::Remove(NodeId(3)))]);
        assert_eq!(next(group(&[1, 2], &[])), [Step::Retire(NodeId(3))]);
        let joint = Membership { voters_outgoing: vec![1, 2, 3], ..group(&[1, 2], &[]) };
        assert_eq!(next(joint), [], "one change at a time");
    }

    /// With a member gone an ensemble bears no other loss, so its volumes have others keep their journals first.
    #[test]
    fn a_node_that_keeps_journals_stays_until_others_do() {
        let mut state = state(&[1, 2, 3], &[3]);
        let (volume, members) = (VolumeId([7; 16]), vec![NodeId(1), NodeId(2), NodeId(3)]);
        let run = |state: &mut State, request, command| {
            state.apply(&Proposal { request: RequestId([request; 16]), command }).unwrap();
        };
        let key = WrappedKey { sealed: Bytes::from_static(b"wrapped"), commitment: Hash::ZERO };
        let keys = WrappedVolumeKeys { key_epoch: KeyEpoch(1), data: key.clone(), metadata: key.clone(), journal: key };
        run(&mut state, 1, Command::CreateVolume { volume, name: "a".into(), size_bytes: 4096, keys, acl: Vec::new() });
        run(&mut state, 2, Command::GrantEnsemble { volume, node: NodeId(1), after: Epoch(0), members });
        let next = |state: &State| next(state, &group(&[1, 2, 3], &[]), NodeId(1), &all_live);
        assert_eq!(next(&state), []);
        run(&mut state, 3, Command::DeleteVolume { volume });
        assert_eq!(next(&state), [Step::Change(Change::Demote(NodeId(3)))]);
    }

    #[test]
    fn a_leader_that_leaves_hands_over_to_one_that_lives() {
        let state = state(&[1, 2, 3], &[1]);
        let next = |is_live: &dyn Fn(NodeId) -> bool| next(&state, &group(&[1, 2, 3], &[]), NodeId(1), is_live);
        assert_eq!(next(&|node| node != NodeId(2)), [Step::Transfer(NodeId(3))]);
        assert_eq!(next(&|node| node == NodeId(1)), []);
    }

    /// With one of three dead, a living one that leaves would leave two of which one is dead.
    #[test]
    fn nobody_leaves_when_the_others_could_not_agree_without_him() {
        let is_live = |node| node != NodeId(3);
        let next = |leaving: &[u64]| next(&state(&[1, 2, 3], leaving), &group(&[1, 2, 3], &[]), NodeId(1), &is_live);
        assert_eq!(next(&[2]), []);
        assert_eq!(next(&[3]), [Step::Change(Change::Demote(NodeId(3)))]);
        assert_eq!(next(&[2, 3]), [Step::Change(Change::Demote(NodeId(3)))], "the dead one first");
    }
}
