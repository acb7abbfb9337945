//! Commands of the write path: owners, object numbers, flush grants, sequence records, cursors.

use velum_protocol::{
    format::metadata::{CloudName, Command},
    id::{Epoch, Incarnation, ObjectNumber, Seq, VolumeId},
};

use super::{
    apply::{Answer, Rejection},
    state::{GrantedRange, Head, RECORD_BYTES_MAX, RecordEntry, State, VolumeState},
};

/// The most object numbers one grant hands out: a restart gives up the rest of a range, and orphans are looked for in it.
const OBJECTS_PER_GRANT_MAX: u64 = 65_536;

impl State {
    pub(super) fn apply_to_sequence(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::GrantOwner { volume, node, after } => {
                let is_gone = self.nodes.get(node).is_some_and(|entry| entry.retired) || self.leaving.contains(node);
                if is_gone {
                    return Err(Rejection::NoSuchNode(*node));
                }
                if self.ensembles.contains_key(volume) {
                    return Err(Rejection::HasEnsemble);
                }
                let volume = self.live_volume_mut(*volume)?;
                volume.expect_epoch(*after)?;
                volume.begin_epoch(after.next(), *node);
                Ok(Answer::Epoch(volume.epoch))
            }
            Command::GrantObjects { volume, epoch, count } => {
                let volume = self.live_volume_mut(*volume)?;
                volume.expect_epoch(*epoch)?;
                if !(1..=OBJECTS_PER_GRANT_MAX).contains(count) {
                    return Err(Rejection::BadCount);
                }
                let first = volume.next_object;
                volume.next_object = ObjectNumber(first.0.checked_add(*count).ok_or(Rejection::BadCount)?);
                volume.ranges.insert(first, GrantedRange { epoch: *epoch, count: *count });
                Ok(Answer::Objects(first, *count))
            }
            Command::GrantFlush { volume, epoch, key_epoch } => {
                let volume = self.live_volume_mut(*volume)?;
                volume.expect_epoch(*epoch)?;
                if volume.keys.last().map(|keys| keys.key_epoch) != Some(*key_epoch) {
                    return Err(Rejection::StaleKeyEpoch);
                }
                let grant = volume.next_grant;
                volume.next_grant += 1;
                volume.grants.insert(grant);
                Ok(Answer::Grant(grant))
            }
            Command::RevokeFlush { volume } => {
                self.live_volume_mut(*volume)?.grants.clear();
                Ok(Answer::Done)
            }
            Command::AppendSequence { volume, epoch, record, .. } => {
                self.expect_open(*volume, *epoch)?;
                if self.record_bytes().saturating_add(record.len()) > RECORD_BYTES_MAX {
                    return Err(Rejection::RecordsFull);
                }
                let incarnation = self.incarnation;
                self.live_volume_mut(*volume)?.append(command, incarnation)
            }
            Command::ChangeLineage { volume: id, epoch } => {
                let volume = self.live_volume_mut(*id)?;
                volume.expect_epoch(*epoch)?;
                volume.lineage = volume.lineage.next();
                self.end_attachments(*id);
                Ok(Answer::Done)
            }
            Command::MoveCursor { volume, cloud, seq } => self.move_cursor(*volume, cloud, *seq),
            Command::AdvanceCursor { volume, epoch, cloud, beginning, seq } => {
                self.expect_seen(*volume, *epoch, cloud, *beginning)?;
                self.move_cursor(*volume, cloud, *seq)
            }
            _ => unreachable!("apply_command routes sequence commands only"),
        }
    }

    fn move_cursor(&mut self, volume_id: VolumeId, cloud: &CloudName, seq: Seq) -> Result<Answer, Rejection> {
        let clouds: Vec<_> = self.clouds.iter().map(|entry| entry.name.clone()).collect();
        let volume = self.volume_mut(volume_id)?;
        if !clouds.contains(cloud) || seq > volume.head.seq {
            return Err(Rejection::CursorUnfit);
        }
        let cursor = volume.cursors.entry(cloud.clone()).or_insert(Seq(0));
        *cursor = (*cursor).max(seq);
        let reached = *cursor;
        volume.drop_records(&clouds);
        self.left.retain(|at, left| *at != (volume_id, cloud.clone()) || *left > reached);
        Ok(Answer::Done)
    }

    /// Refuses to be told of a cloud by a node that does not own the volume any more, or has not seen the cloud begin anew.
    pub(super) fn expect_seen(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        cloud: &CloudName,
        beginning: u64,
    ) -> Result<(), Rejection> {
        self.volumes.get(&volume).ok_or(Rejection::NoSuchVolume)?.expect_epoch(epoch)?;
        if self.beginning(cloud) == beginning { Ok(()) } else { Err(Rejection::BegunAnew) }
    }

    /// Nothing is believed to be in a cloud any more.
    pub(super) fn resync_cloud(&mut self, cloud: &CloudName) -> Result<Answer, Rejection> {
        if !self.clouds.iter().any(|entry| entry.name == *cloud) {
            return Err(Rejection::CursorUnfit);
        }
        *self.beginnings.entry(cloud.clone()).or_insert(0) += 1;
        for (id, volume) in &mut self.volumes {
            // Not removed: a cloud that begins anew may hold what one that never began cannot.
            if let Some(reached) = volume.cursors.insert(cloud.clone(), Seq(0)) {
                let left = self.left.entry((*id, cloud.clone())).or_default();
                *left = (*left).max(reached);
            }
            volume.checkpoint_cursors.remove(cloud);
        }
        Ok(Answer::Done)
    }
}

impl VolumeState {
    /// Gate 3 once more, at the moment that counts: only the owner, under a standing grant, may add the next link.
    fn append(&mut self, command: &Command, incarnation: Incarnation) -> Result<Answer, Rejection> {
        let Command::AppendSequence {
            epoch,
            grant,
            seq,
            prev_hash,
            hash,
            first,
            last,
            journal_chain,
            record,
            objects,
            ..
        } = command
        else {
            unreachable!("called for AppendSequence only")
        };
        self.expect_epoch(*epoch)?;
        if !self.grants.contains(grant) {
            return Err(Rejection::NoGrant);
        }
        let follows = *seq == self.head.seq.next() && *prev_hash == self.head.chain;
        // An empty window is that of a relocation, which leaves the journal where it is.
        let stays = *last == self.head.last && *journal_chain == self.head.journal_chain;
        let contiguous = *first == self.head.last.next() && (*last >= *first || stays);
        if !follows || !contiguous {
            return Err(Rejection::NotNext(self.head.seq));
        }
        self.grants.remove(grant);
        self.head = Head { seq: *seq, chain: *hash, last: *last, journal_chain: *journal_chain, epoch: *epoch };
        self.records.insert(
            *seq,
            RecordEntry {
                incarnation,
                record: record.clone(),
                hash: *hash,
                objects: objects.clone(),
                first: *first,
                last: *last,
                epoch: *epoch,
            },
        );
        Ok(Answer::Done)
    }
}
