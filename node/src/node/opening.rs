//! A volume opened on this node: owner epoch granted, map read, journal replayed, flusher started.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    format::{
        metadata::{CheckpointRef, Command},
        page::RootPayload,
        record::{self, RecordHeader},
    },
    id::{BLOCK_BYTES, Epoch, Jseq, Seq, VolumeId},
};

use super::{
    Assembly, attachments::GuardedDoor, copies::Copies, exports::OpenVolume, frames::VolumeFrames, owning::Owning,
    records::VolumeRecords, takeover::TakenOver,
};
use crate::{
    actor,
    array::{Fenced, VolumeArray},
    cloud::FetchError,
    extent::{ExtentMap, MapError},
    journal::{Journal, Loss, Position, Replay, StreamId},
    keyring::{KeyError, KeySet, ObjectFault, ObjectKind},
    metadata::{Answer, MetadataError, state::VolumeState},
    volume::{
        OpenVolumeError, Opening, Records, Volume,
        machine::Settings,
        replay::{Lost, Start, Stored},
        sealing::Owner,
    },
};

/// How far a sequential reader is read ahead of: several round trips of a far cloud at its bandwidth.
const READ_AHEAD_BYTES: u64 = 8 << 20;
/// Clean pages of one volume's extent map kept in memory: the map of some 100 GiB written at random.
const MAP_BYTES: u64 = 32 << 20;
/// Pause before a volume that does not open is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What the journal holds of a volume, and what it lost of it.
#[derive(Clone, Default)]
pub(super) struct Found {
    records: Vec<(Position, Bytes)>,
    loss: Loss,
}

/// What is kept of a volume beyond the sequence, and where its next records go.
struct Kept {
    stored: Vec<Stored>,
    lost: Lost,
    records: Rc<dyn Records>,
    owning: Option<Owning>,
}

/// Why a volume is not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("there is no such volume")]
    Gone,
    #[error("the volume was granted to somebody else meanwhile")]
    Over,
    #[error("too few nodes answered in time; it opens when they do")]
    Late,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the checkpoint's root cannot be read: {0}")]
    Root(#[from] FetchError),
    #[error("the checkpoint's root does not open: {0}")]
    RootFault(#[from] ObjectFault),
    #[error("the checkpoint's root is malformed: {0}")]
    RootPage(#[from] velum_protocol::format::page::PageError),
    #[error("sequence record {seq} does not open: {fault}")]
    Record { seq: u64, fault: ObjectFault },
    #[error("the sequence does not fit the map: {0}")]
    Map(#[from] MapError),
    #[error(transparent)]
    Volume(#[from] OpenVolumeError),
    #[error(transparent)]
    Fenced(#[from] Fenced),
}

impl OpenError {
    /// Clouds come back and proposals find their leader; damage stays.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Root(_) | Self::Metadata(MetadataError::Unknown(_)))
    }
}

impl Assembly {
    /// Opens every volume of a node that is alone. Those whose map is at hand are open when this returns; the others follow when their clouds
    /// answer.
    pub(super) async fn open_volumes(self: &Rc<Self>, mut replay: Replay) {
        let mut journal = streams(std::mem::take(&mut replay.records));
        let volumes = self.metadata.with(|state| {
            let live = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
            live.map(|(id, volume)| (*id, volume.checkpoint.is_some())).collect::<Vec<_>>()
        });
        for (id, needs_cloud) in volumes {
            let records = journal.remove(&id).unwrap_or_default();
            let found = Found { records, loss: replay.loss(StreamId::Volume(id)) };
            let own = Rc::clone(self);
            let opening = async move { own.open_patiently(id, found).await };
            if needs_cloud { actor::spawn(opening) } else { opening.await }
        }
        for id in journal.into_keys() {
            // Records of a volume that is deleted: nobody will ask for them.
            self.journal.remove(StreamId::Volume(id));
        }
    }

    async fn open_patiently(self: Rc<Self>, id: VolumeId, found: Found) {
        loop {
            match self.open_volume(id, found.clone()).await {
                Ok(()) | Err(OpenError::Gone) => return,
                Err(error) if error.is_passing() => {
                    tracing::warn!(volume = %id, %error, "the volume does not open yet; trying again");
                }
                Err(error) => {
                    tracing::error!(volume = %id, %error, "the volume does not open; nothing of it was changed");
                    return;
                }
            }
            self.env.clock.sleep(RETRY).await;
        }
    }

    /// Opens one volume of a node that is alone, with what the journal holds of it.
    pub(super) async fn open_volume(self: &Rc<Self>, id: VolumeId, mut found: Found) -> Result<(), OpenError> {
        let (keys, map, covered) = self.read_map(id).await?;
        if self.with_volume(id, |volume| volume.epoch)? == Epoch(0) {
            // It was never open, so nothing can have been lost of it.
            found.loss = Loss::default();
        }
        let epoch = self.become_owner(id).await?;
        let needless = last_needless(&found.records, self.durable(id)?);
        let place = |at: Position| (Epoch(at.epoch), Jseq(at.number));
        let stored = found.records.into_iter().map(|(at, record)| {
            let (epoch, jseq) = place(at);
            Stored { epoch, jseq, record }
        });
        let Loss { records, gaps, end } = found.loss;
        let kept = Kept {
            stored: stored.collect(),
            lost: Lost { records: records.into_iter().map(place).collect(), gaps, end },
            records: VolumeRecords::new(Rc::clone(&self.journal), id),
            owning: None,
        };
        let given_up = self.open_at(id, epoch, (keys, map, covered), kept).await?;
        if let Some(needless) = needless {
            self.journal.trim(StreamId::Volume(id), needless);
        }
        if given_up > 0 {
            tracing::warn!(
                volume = %id,
                records = given_up,
                "the journal ends in a gap: writes that were acked but not synced are lost; the lineage changes"
            );
            self.metadata.propose(Command::ChangeLineage { volume: id, epoch }).await?;
        }
        Ok(())
    }

    /// Takes a volume over in an epoch that was granted to this node, and opens it.
    pub(super) async fn open_in_ensemble(
        self: &Rc<Self>,
        copies: &Copies,
        id: VolumeId,
        epoch: Epoch,
    ) -> Result<(), OpenError> {
        let map = self.until_over(id, epoch, self.read_map(id)).await??;
        let TakenOver { owning, records } = self.take_over(copies, id, epoch).await?;
        let stored = records.into_iter().filter_map(|record| {
            let (header, _) = RecordHeader::decode(&record).ok()?;
            Some(Stored { epoch: header.epoch, jseq: header.jseq, record })
        });
        let (stored, lost) = (stored.collect(), Lost::default());
        let kept = Kept { stored, lost, records: Rc::new(owning.clone()), owning: Some(owning.clone()) };
        let opened = self.open_at(id, epoch, map, kept).await;
        if opened.is_err() {
            owning.stop();
        }
        opened.map(drop)
    }

    /// A volume's keys, its map as of the checkpoint, and how far that reaches in the sequence.
    async fn read_map(&self, id: VolumeId) -> Result<(KeySet, ExtentMap, Seq), OpenError> {
        let checkpoint = self.with_volume(id, |volume| volume.checkpoint.clone())?;
        let keys = self.with_volume(id, |volume| self.keyring.key_set(id, &volume.keys))??;
        let map = match &checkpoint {
            Some(checkpoint) => self.read_root(&keys, checkpoint).await?,
            None => ExtentMap::empty(self.with_volume(id, |volume| volume.size_bytes / BLOCK_BYTES)?),
        };
        Ok((keys, map, checkpoint.map_or(Seq(0), |checkpoint| checkpoint.seq)))
    }

    /// Opens a volume in an epoch of this node's. Gives how many records were given up.
    async fn open_at(
        self: &Rc<Self>,
        id: VolumeId,
        epoch: Epoch,
        (keys, mut map, covered): (KeySet, ExtentMap, Seq),
        kept: Kept,
    ) -> Result<usize, OpenError> {
        self.follow_records(id, &keys, covered, &mut map)?;
        let durable = self.durable(id)?;
        let owning = kept.owning.clone();
        let opening = self.with_volume(id, |volume| self.opening(volume, &keys, epoch, map, durable, kept))?;
        let (volume, replayed) = Volume::open(&self.env, opening.ok_or(OpenVolumeError::NoKeys)?)?;
        let array = VolumeArray::start(&self.array, id, epoch, volume.port())?;
        let owner = Owner { epoch, lineage: self.with_volume(id, |volume| volume.lineage)? };
        self.enforcer().enforce(id, &volume);
        let guarded = GuardedDoor { id, volume: volume.clone(), enforcer: self.enforcer() };
        self.open.insert(id, OpenVolume { door: Rc::new(guarded), volume, array, owner, owning });
        if let Some(switches) = &self.switches {
            switches.look_at(id);
        }
        Ok(replayed.given_up)
    }

    fn with_volume<T>(&self, id: VolumeId, read: impl FnOnce(&VolumeState) -> T) -> Result<T, OpenError> {
        self.metadata
            .with(|state| state.volumes.get(&id).filter(|volume| !volume.deleted).map(read).ok_or(OpenError::Gone))
    }

    /// The last position of a volume that is known to be at d2.
    fn durable(&self, id: VolumeId) -> Result<Jseq, OpenError> {
        let quorum = self.metadata.with(|state| state.quorum);
        self.with_volume(id, |volume| volume.durable_jseq(quorum))
    }

    async fn read_root(&self, keys: &KeySet, checkpoint: &CheckpointRef) -> Result<ExtentMap, OpenError> {
        let stored = self.fetcher.object(ObjectKind::Root, keys.volume(), &checkpoint.root).await?;
        let (_, payload) = keys.open_root(&checkpoint.root, &stored)?;
        Ok(ExtentMap::from_root(checkpoint.root.clone(), &RootPayload::decode(&payload)?))
    }

    async fn become_owner(&self, id: VolumeId) -> Result<Epoch, OpenError> {
        let after = self.with_volume(id, |volume| volume.epoch)?;
        let command = Command::GrantOwner { volume: id, node: self.node, after };
        match self.metadata.propose(command).await? {
            Answer::Epoch(epoch) => Ok(epoch),
            Answer::Done | Answer::Objects(..) | Answer::Grant(_) | Answer::Connection(_) => Err(OpenError::Gone),
        }
    }

    /// Brings the map from the checkpoint, which includes everything up to `covered`, to the head of the sequence. Older
    /// records may still be kept for a cloud that lacks them; taking one in again would undo what came after it.
    fn follow_records(&self, id: VolumeId, keys: &KeySet, covered: Seq, map: &mut ExtentMap) -> Result<(), OpenError> {
        let records = self.with_volume(id, |volume| volume.records.clone())?.split_off(&covered.next());
        for (seq, entry) in records {
            let opened = keys
                .open_record((entry.incarnation, seq), &entry.record)
                .map_err(|fault| OpenError::Record { seq: seq.0, fault })?;
            for segment in &opened.body.segments {
                map.add_segment(segment);
            }
            for update in &opened.body.updates {
                map.apply(update)?;
            }
        }
        map.resize(self.with_volume(id, |volume| volume.size_bytes / BLOCK_BYTES)?);
        Ok(())
    }

    fn opening(
        &self,
        volume: &VolumeState,
        keys: &KeySet,
        epoch: Epoch,
        map: ExtentMap,
        durable: Jseq,
        kept: Kept,
    ) -> Option<Opening> {
        Some(Opening {
            frames: VolumeFrames::new(keys, &self.disk_cache, &self.fetcher)?,
            records: kept.records,
            keys: keys.clone(),
            settings: Settings {
                flush_bytes: self.config.flush.bytes.bytes(),
                read_ahead_bytes: READ_AHEAD_BYTES,
                map_bytes: MAP_BYTES,
                record_blocks_max: record_blocks_max(&self.journal),
                confirm_reads: kept.owning.is_some(),
            },
            size_bytes: volume.size_bytes,
            acl: (volume.acl.clone(), volume.acl_version),
            owner: Owner { epoch, lineage: volume.lineage },
            head: Start { last: volume.head.last, chain: volume.head.journal_chain },
            durable,
            map,
            stored: kept.stored,
            lost: kept.lost,
            memory: Rc::clone(&self.memory),
            budget: Rc::clone(&self.budget),
            audit: Rc::clone(&self.audit),
        })
    }
}

/// How many blocks a record may hold for the journal to take it wherever it has room.
fn record_blocks_max(journal: &Journal) -> u64 {
    let bytes = u64::try_from(journal.body_bytes_handy()).expect("a body is bounded");
    bytes.saturating_sub(record::HEADER_BYTES as u64 + record::SEAL_BYTES) / BLOCK_BYTES
}

/// The last record in the journal that is at d2. The process before may have ended before its trim was durable; without
/// another one, a ring full of such records never has room for the write that would bring the next trim.
fn last_needless(records: &[(Position, Bytes)], durable: Jseq) -> Option<Position> {
    records.iter().map(|(at, _)| *at).filter(|at| at.number <= durable.0).max()
}

/// What the journal holds, volume by volume.
fn streams(records: BTreeMap<StreamId, Vec<(Position, Bytes)>>) -> BTreeMap<VolumeId, Vec<(Position, Bytes)>> {
    let volume = |(stream, records)| match stream {
        StreamId::Volume(volume) => Some((volume, records)),
        StreamId::Raft => None,
    };
    records.into_iter().filter_map(volume).collect()
}
