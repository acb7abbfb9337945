//! Commands about who keeps a volume's journal: an epoch is granted with an ensemble, and opens when the open one is closed.
//!
//! Between the two nobody appends to the sequence: until an epoch is open it is not known what the one before it left.

use velum_protocol::{
    format::metadata::Command,
    id::{Epoch, Hash, Jseq, NodeId, VolumeId},
};

use super::{
    apply::{Answer, Rejection},
    state::{EnsembleState, State, VolumeState},
};

/// Nodes that keep one volume's journal.
pub(super) const MEMBERS_MAX: usize = 7;

impl State {
    pub(super) fn apply_to_ensembles(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::GrantEnsemble { volume, node, after, members } => {
                self.check_members(*node, members)?;
                let state = self.live_volume_mut(*volume)?;
                state.expect_epoch(*after)?;
                let epoch = after.next();
                let owner = state.owner;
                let (opened, opened_members, base) = match self.ensembles.get(volume) {
                    Some(before) => (before.opened, before.opened_members.clone(), before.base),
                    // A volume without an owner, new or recovered from clouds alone, has nobody to fence.
                    None if owner.is_none() => (Epoch(0), Vec::new(), (Jseq(0), Hash::ZERO)),
                    // What its owner kept alone is in that node's journal only, and it knows of no fence.
                    None if owner == Some(*node) => (*after, vec![*node], (Jseq(0), Hash::ZERO)),
                    None => return Err(Rejection::KeptAlone),
                };
                let granted = EnsembleState { members: members.clone(), opened, opened_members, base };
                self.ensembles.insert(*volume, granted);
                self.live_volume_mut(*volume)?.begin_epoch(epoch, *node);
                Ok(Answer::Epoch(epoch))
            }
            Command::CloseEpoch { volume, epoch, closes, last, chain, lineage_changes } => {
                let state = self.live_volume_mut(*volume)?;
                state.expect_epoch(*epoch)?;
                let head = state.head;
                let ensemble = self.ensembles.get_mut(volume).ok_or(Rejection::KeptAlone)?;
                // Once: an epoch that is open has nothing to close any more.
                if ensemble.opened != *closes || ensemble.opened >= *epoch {
                    return Err(Rejection::NotOpen(ensemble.opened));
                }
                let follows = *last >= ensemble.base.0.max(head.last);
                let (base, base_chain) = ensemble.base;
                let agrees =
                    (*last != head.last || *chain == head.journal_chain) && (*last != base || *chain == base_chain);
                if !follows || !agrees {
                    return Err(Rejection::CloseUnfit);
                }
                ensemble.opened = *epoch;
                ensemble.opened_members.clone_from(&ensemble.members);
                ensemble.base = (*last, *chain);
                if *lineage_changes {
                    let state = self.live_volume_mut(*volume)?;
                    state.lineage = state.lineage.next();
                    self.end_attachments(*volume);
                }
                Ok(Answer::Done)
            }
            _ => unreachable!("apply_command routes commands about ensembles only"),
        }
    }

    /// Refuses an ensemble that cannot be: empty, too large, not rising, without its owner, or with a node that is gone.
    fn check_members(&self, owner: NodeId, members: &[NodeId]) -> Result<(), Rejection> {
        let rises = members.is_sorted_by(|left, right| left < right);
        let fits = (1..=MEMBERS_MAX).contains(&members.len()) && members.iter().all(|member| member.0 > 0);
        if !rises || !fits || !members.contains(&owner) {
            return Err(Rejection::BadEnsemble);
        }
        members.iter().find(|member| !self.hears(**member)).map_or(Ok(()), |gone| Err(Rejection::NoSuchNode(*gone)))
    }

    /// Refuses what only the owner of an open epoch may do, where epochs open at all.
    pub(super) fn expect_open(&self, volume: VolumeId, epoch: Epoch) -> Result<(), Rejection> {
        match self.ensembles.get(&volume) {
            Some(ensemble) if ensemble.opened != epoch => Err(Rejection::NotOpen(ensemble.opened)),
            _ => Ok(()),
        }
    }
}

impl VolumeState {
    /// A new owner. Flush grants belong to the epoch they were given in.
    pub(super) fn begin_epoch(&mut self, epoch: Epoch, owner: NodeId) {
        self.epoch = epoch;
        self.owner = Some(owner);
        self.grants.clear();
    }
}
