//! Commands about checkpoints and what they make reclaimable.

use velum_protocol::{
    format::metadata::{CheckpointRef, CloudName, Command, CondemnedObject},
    id::{Epoch, Seq, VolumeId},
};

use super::{
    apply::{Answer, Rejection},
    state::{Condemned, State, VolumeState},
};

impl State {
    pub(super) fn apply_to_checkpoints(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::CommitCheckpoint { volume, epoch, checkpoint, condemned } => {
                self.commit_checkpoint(*volume, *epoch, checkpoint, condemned)?;
            }
            Command::MoveCheckpointCursor { volume, cloud, number } => {
                self.move_checkpoint_cursor(*volume, cloud, *number)?;
            }
            Command::AdvanceCheckpointCursor { volume, epoch, cloud, beginning, number } => {
                self.expect_seen(*volume, *epoch, cloud, *beginning)?;
                self.move_checkpoint_cursor(*volume, cloud, *number)?;
            }
            Command::CommitReclaim { volume, epoch, numbers } => {
                let quorum = usize::try_from(self.quorum).unwrap_or(usize::MAX);
                let volume = self.volume_mut(*volume)?;
                volume.expect_epoch(*epoch)?;
                for number in numbers {
                    let condemned = volume.condemned.get(number).ok_or(Rejection::NotReclaimable)?;
                    let holders =
                        volume.checkpoint_cursors.values().filter(|held| **held >= condemned.checkpoint).count();
                    if holders < quorum && !volume.deleted {
                        return Err(Rejection::NotReclaimable);
                    }
                }
                for number in numbers {
                    if let Some(condemned) = volume.condemned.get_mut(number) {
                        condemned.committed = true;
                    }
                }
            }
            Command::FinishReclaim { volume, cloud, numbers } => {
                let clouds: Vec<_> = self.clouds.iter().map(|entry| entry.name.clone()).collect();
                let volume = self.volume_mut(*volume)?;
                for number in numbers {
                    let Some(condemned) = volume.condemned.get_mut(number).filter(|condemned| condemned.committed)
                    else {
                        continue;
                    };
                    condemned.gone_from.insert(cloud.clone());
                    if clouds.iter().all(|name| condemned.gone_from.contains(name)) {
                        volume.condemned.remove(number);
                    }
                }
            }
            Command::ForgetRange { volume, first } => {
                let volume = self.volume_mut(*volume)?;
                let over = volume.ranges.get(first).is_some_and(|range| range.epoch < volume.epoch);
                if !over {
                    return Err(Rejection::NotReclaimable);
                }
                volume.ranges.remove(first);
            }
            _ => unreachable!("apply_command routes checkpoint commands only"),
        }
        Ok(Answer::Done)
    }

    fn move_checkpoint_cursor(&mut self, volume: VolumeId, cloud: &CloudName, number: u64) -> Result<(), Rejection> {
        let known = self.clouds.iter().any(|entry| entry.name == *cloud);
        let volume = self.volume_mut(volume)?;
        let newest = volume.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
        // A cloud may hold the checkpoint that is being committed one step before the commit.
        if !known || number > newest + 1 {
            return Err(Rejection::CursorUnfit);
        }
        let cursor = volume.checkpoint_cursors.entry(cloud.clone()).or_insert(0);
        *cursor = (*cursor).max(number);
        Ok(())
    }

    fn commit_checkpoint(
        &mut self,
        volume: VolumeId,
        epoch: Epoch,
        checkpoint: &CheckpointRef,
        condemned: &[CondemnedObject],
    ) -> Result<(), Rejection> {
        let clouds: Vec<_> = self.clouds.iter().map(|entry| entry.name.clone()).collect();
        let volume = self.live_volume_mut(volume)?;
        volume.expect_epoch(epoch)?;
        let (number, seq) = volume.checkpoint.as_ref().map_or((0, None), |old| (old.number, Some(old.seq)));
        let chain = if checkpoint.seq == volume.head.seq {
            Some(volume.head.chain)
        } else {
            let same = volume.checkpoint.as_ref().filter(|old| old.seq == checkpoint.seq).map(|old| old.chain);
            volume.records.get(&checkpoint.seq).map(|record| record.hash).or(same)
        };
        let fits = checkpoint.number == number + 1 && seq.is_none_or(|seq| checkpoint.seq >= seq);
        if !fits || chain != Some(checkpoint.chain) {
            return Err(Rejection::CheckpointUnfit);
        }
        for object in condemned {
            let entry = Condemned {
                object: object.clone(),
                checkpoint: checkpoint.number,
                at: checkpoint.seq,
                committed: false,
                gone_from: std::collections::BTreeSet::new(),
            };
            volume.condemned.entry((object.object.incarnation, object.object.number)).or_insert(entry);
        }
        volume.previous_checkpoint = volume.checkpoint.replace(checkpoint.clone());
        volume.drop_records(&clouds);
        Ok(())
    }
}

impl VolumeState {
    /// Drops records that the newest checkpoint covers: those that every cloud has, and those that the checkpoint before
    /// covers too. A cloud that lags a little is so spared from being given a whole checkpoint.
    pub(super) fn drop_records(&mut self, clouds: &[CloudName]) {
        let Some(covered) = self.checkpoint.as_ref().map(|checkpoint| checkpoint.seq) else { return };
        let before = self.previous_checkpoint.as_ref().map_or(Seq(0), |checkpoint| checkpoint.seq);
        let everywhere = clouds.iter().map(|cloud| self.cursors.get(cloud).copied().unwrap_or_default()).min();
        let through = covered.min(everywhere.unwrap_or_default().max(before));
        self.records = self.records.split_off(&through.next());
    }
}
