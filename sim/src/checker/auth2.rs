//! AUTH2: no guest's data leaves a node that does not own the volume, or that gate 3 has not let through.
//!
//! What is sent for the first time is judged when it is sent, by what the node that sends it has applied of what was agreed on. A node
//! that has just heard of its successor may have a segment on its way: it is void, and SEQ1 sees to it that no record names it.

use velum_node::metadata::state::VolumeState;
use velum_protocol::id::{NodeId, ObjectNumber};

use super::Verdict;

/// Judges a segment that `node`, which knows the volume so, sends.
///
/// # Errors
/// When its number was granted to nobody, or its flush.
pub fn check(node: NodeId, number: ObjectNumber, known: &VolumeState) -> Verdict {
    let place = format!("segment {} from node {}", number.0, node.0);
    if number >= known.next_object {
        return Err(format!("{place}: numbers are granted up to {} only", known.next_object.0));
    }
    let granted = known.ranges.range(..=number).next_back();
    let granted = granted.filter(|(first, range)| number.0 - first.0 < range.count).map(|(_, range)| range.epoch);
    if granted != Some(known.epoch) {
        return Ok(());
    }
    if known.owner != Some(node) {
        return Err(format!("{place}: epoch {} belongs to {:?}", known.epoch.0, known.owner));
    }
    if known.grants.is_empty() {
        return Err(format!("{place}: no flush is granted in epoch {}", known.epoch.0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use velum_node::metadata::state::GrantedRange;
    use velum_protocol::{
        format::metadata::{WrappedKey, WrappedVolumeKeys},
        id::{Epoch, Hash, KeyEpoch},
    };

    use super::*;

    fn known() -> VolumeState {
        let key = WrappedKey { sealed: Bytes::new(), commitment: Hash::ZERO };
        let keys = WrappedVolumeKeys { key_epoch: KeyEpoch(1), data: key.clone(), metadata: key.clone(), journal: key };
        let mut known = VolumeState::new("told".to_owned(), 4096, keys, Vec::new(), 0);
        (known.epoch, known.owner, known.next_object) = (Epoch(3), Some(NodeId(1)), ObjectNumber(20));
        known.ranges.insert(ObjectNumber(1), GrantedRange { epoch: Epoch(2), count: 9 });
        known.ranges.insert(ObjectNumber(10), GrantedRange { epoch: Epoch(3), count: 10 });
        known.grants.insert(4);
        known
    }

    #[test]
    fn the_owner_sends_what_it_was_granted() {
        assert_eq!(check(NodeId(1), ObjectNumber(12), &known()), Ok(()));
        assert_eq!(check(NodeId(2), ObjectNumber(5), &known()), Ok(()), "of an epoch that is over");
    }

    #[test]
    fn a_segment_without_a_grant_is_rejected() {
        let mut known = known();
        known.grants.clear();
        assert!(check(NodeId(1), ObjectNumber(12), &known).unwrap_err().contains("no flush is granted"));
    }

    #[test]
    fn a_segment_from_another_node_or_with_a_number_of_nobody_is_rejected() {
        assert!(check(NodeId(2), ObjectNumber(12), &known()).unwrap_err().contains("belongs to"));
        assert!(check(NodeId(1), ObjectNumber(20), &known()).unwrap_err().contains("up to 20 only"));
    }
}
