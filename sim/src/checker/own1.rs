//! OWN1: each epoch of a volume is one node's, and epochs rise. Every node that knows of an epoch says the same owner, none goes
//! back to an earlier one while it runs, and a node that serves guests alone is the owner of the epoch that it serves in.

use std::collections::BTreeMap;

use velum_protocol::id::{Epoch, NodeId, VolumeId};

use super::Verdict;

/// A node knows whose the epoch of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Which volume.
    pub volume: VolumeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its owner.
    pub owner: NodeId,
}

/// Whose each epoch was that any node ever knew of.
#[derive(Debug, Default)]
pub struct Epochs {
    owners: BTreeMap<(VolumeId, Epoch), NodeId>,
}

impl Epochs {
    /// Judges what node `by` knows now, which knew of the epoch `before` when it was last looked at in this life.
    ///
    /// # Errors
    /// When another node knows another owner of the same epoch, or this one has gone back.
    pub fn check(&mut self, by: NodeId, before: Epoch, granted: Granted) -> Verdict {
        let Granted { volume, epoch, owner } = granted;
        if epoch < before {
            return Err(format!("node {by} was in epoch {before} of volume {volume} and is in {epoch}"));
        }
        let first = *self.owners.entry((volume, epoch)).or_insert(owner);
        if first == owner {
            return Ok(());
        }
        Err(format!("epoch {epoch} of volume {volume} is node {first}'s, and node {by} calls it node {owner}'s"))
    }

    /// How often each volume came to another owner, as far as was seen.
    #[must_use]
    pub fn owner_changes(&self) -> BTreeMap<VolumeId, u64> {
        let mut changes = BTreeMap::new();
        for (((volume, _), owner), ((next, _), next_owner)) in self.owners.iter().zip(self.owners.iter().skip(1)) {
            *changes.entry(*volume).or_default() += u64::from(volume == next && owner != next_owner);
        }
        changes
    }
}

/// Judges that `node` serves a volume to guests by itself, as it knows the volume's epoch.
///
/// # Errors
/// When the epoch is another node's.
pub fn check_serving(node: NodeId, granted: Granted) -> Verdict {
    if granted.owner == node {
        return Ok(());
    }
    let Granted { volume, epoch, owner } = granted;
    Err(format!("node {node} serves volume {volume} by itself, whose epoch {epoch} is node {owner}'s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);

    fn granted(epoch: u64, owner: u64) -> Granted {
        Granted { volume: VOLUME, epoch: Epoch(epoch), owner: NodeId(owner) }
    }

    #[test]
    fn two_owners_of_an_epoch_are_rejected() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.check(NodeId(1), Epoch(0), granted(1, 1)), Ok(()));
        assert_eq!(epochs.check(NodeId(2), Epoch(0), granted(1, 1)), Ok(()));
        assert_eq!(epochs.check(NodeId(1), Epoch(1), granted(2, 3)), Ok(()));
        assert!(epochs.check(NodeId(2), Epoch(1), granted(2, 2)).is_err());
    }

    #[test]
    fn an_epoch_that_falls_is_rejected() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.check(NodeId(1), Epoch(2), granted(2, 3)), Ok(()));
        assert!(epochs.check(NodeId(1), Epoch(3), granted(2, 3)).is_err());
    }

    #[test]
    fn changes_of_owner_are_counted() {
        let mut epochs = Epochs::default();
        for (epoch, owner) in [(1, 1), (2, 1), (3, 2), (5, 1)] {
            assert_eq!(epochs.check(NodeId(1), Epoch(0), granted(epoch, owner)), Ok(()));
        }
        assert_eq!(epochs.owner_changes(), BTreeMap::from([(VOLUME, 2)]));
    }

    #[test]
    fn serving_in_anothers_epoch_is_rejected() {
        assert_eq!(check_serving(NodeId(2), granted(4, 2)), Ok(()));
        assert!(check_serving(NodeId(1), granted(4, 2)).is_err());
    }
}
