//! What a start finds of the copies it kept: records in the journal, promises in files.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use velum_protocol::{
    format::{
        promise::{PROMISE_BYTES, Promise, PromiseError},
        record::{HEADER_BYTES, RecordHeader, chain},
    },
    id::{BootId, ClusterId, Epoch, Hash, Jseq, NodeId, VolumeId},
    peer::ensemble::{Condition, Life, Point},
};

use super::super::{boot::Unsynced, files, start::StartError};
use crate::{
    ensemble::{
        batch::Held,
        member::{Found, Noted},
    },
    env::{Env, Instant},
    journal::{Loss, Position, Replay, StreamId, Tail},
};

/// What is known of this start.
pub(in crate::node) struct Known<'a> {
    pub(in crate::node) cluster: ClusterId,
    pub(in crate::node) node: NodeId,
    /// The folder of the promises.
    pub(in crate::node) promises: PathBuf,
    /// What became of what was not synced.
    pub(in crate::node) unsynced: Unsynced,
    /// What the journal holds.
    pub(in crate::node) replay: &'a Replay,
    /// The epochs of volumes whose journal this node has kept alone: no promise was asked of it.
    pub(in crate::node) alone: BTreeMap<VolumeId, Epoch>,
    /// Up to where the sequence holds volumes, at least: nobody needs records of that any more.
    pub(in crate::node) sequenced: BTreeMap<VolumeId, Jseq>,
}

/// All that was found.
pub(in crate::node) struct FoundCopies {
    pub(super) promises: PathBuf,
    pub(super) life: Life,
    /// When nothing was running any more that the process before had begun.
    pub(super) started: Instant,
    pub(super) copies: BTreeMap<VolumeId, Found>,
}

impl FoundCopies {
    /// Looks at what there is; changes nothing but that the folder of the promises exists.
    ///
    /// # Errors
    /// When a promise cannot be read: without it the copy must not be answered for.
    pub(in crate::node) async fn look(env: &Env, known: Known<'_>) -> Result<Self, StartError> {
        let (dir, started) = (&known.promises, env.clock.now());
        let boot = env.disk.boot().await.map_err(|error| StartError::disk(dir, error))?;
        let life = Life { process: env.entropy.fresh16(), boot };
        env.disk.create_dir_all(dir).await.map_err(|error| StartError::disk(dir, error))?;
        let promises = read_promises(env, &known).await?;
        let streams = known.replay.records.keys().filter_map(|stream| match stream {
            StreamId::Volume(volume) => Some(*volume),
            StreamId::Raft => None,
        });
        // Of a copy that is lost as a whole the promise is left, or what the cluster knows of a volume that was kept here alone.
        let volumes = streams.chain(promises.keys().copied()).chain(known.alone.keys().copied());
        let copies = volumes.collect::<BTreeSet<VolumeId>>().into_iter().map(|volume| {
            let promise = promises.get(&volume).map(|promise| {
                let Promise { epoch, whole_in, is_damaged, .. } = *promise;
                Noted { epoch, whole_in, is_damaged }
            });
            (volume, find(&known, life, volume, promise))
        });
        let copies = copies.collect();
        Ok(Self { life, started, copies, promises: known.promises })
    }
}

/// A copy that was never kept.
pub(super) fn nothing(volume: VolumeId, life: Life) -> Found {
    let base = Point { at: Jseq(0), chain: Hash::ZERO };
    Found { volume, life, promise: None, stopped_cleanly: true, reads: Condition::Whole, base, held: Vec::new() }
}

/// Where the promise for a volume stands.
pub(super) fn path(promises: &Path, volume: VolumeId) -> PathBuf {
    promises.join(volume.to_string())
}

/// The file of a promise.
pub(super) fn promise((cluster, node, volume): (ClusterId, NodeId, VolumeId), noted: Noted) -> Promise {
    let Noted { epoch, whole_in, is_damaged } = noted;
    Promise { cluster, node, volume, epoch, whole_in, is_damaged }
}

/// Stores that a copy is not whole: a later start, in this boot or after a clean stop, would find nothing wrong with what is left.
pub(super) async fn note(
    env: &Env,
    promises: &Path,
    of: (ClusterId, NodeId, VolumeId),
    found: &Found,
) -> Result<(), StartError> {
    let Some(noted) = found.promise.filter(|noted| noted.whole_in == BootId::ZERO) else { return Ok(()) };
    let path = path(promises, found.volume);
    if noted.is_damaged {
        tracing::warn!(volume = %found.volume, "the copy of the journal may lack what was synced; it counts for nothing until it is filled");
    }
    files::replace(&*env.disk, &path, &promise(of, noted).encode())
        .await
        .map_err(|error| StartError::disk(&path, error))
}

async fn read_promises(env: &Env, known: &Known<'_>) -> Result<BTreeMap<VolumeId, Promise>, StartError> {
    let dir = &known.promises;
    let names = env.disk.list(dir).await.map_err(|error| StartError::disk(dir, error))?;
    let mut promises = BTreeMap::new();
    // One that was being written when the node ended has the old one beside it, or was never answered for.
    for name in names.iter().filter(|name| !name.ends_with(".new")) {
        let path = dir.join(name);
        let bytes = files::read(&*env.disk, &path, PROMISE_BYTES as u64).await;
        let Some(bytes) = bytes.map_err(|error| StartError::disk(&path, error))? else { continue };
        let promise = Promise::decode(&bytes).map_err(|error| match error {
            PromiseError::Lead(source @ velum_protocol::version::LeadError::Newer { .. }) => {
                StartError::Newer { path: path.clone(), source }
            }
            error => StartError::disk(&path, io::Error::new(io::ErrorKind::InvalidData, error)),
        })?;
        if (promise.cluster, promise.node) != (known.cluster, known.node) || promise.volume.to_string() != *name {
            let error = io::Error::new(io::ErrorKind::InvalidData, "the promise is another node's or volume's");
            return Err(StartError::disk(&path, error));
        }
        promises.insert(promise.volume, promise);
    }
    Ok(promises)
}

fn find(known: &Known<'_>, life: Life, volume: VolumeId, promise: Option<Noted>) -> Found {
    let stored = known.replay.records.get(&StreamId::Volume(volume)).map(Vec::as_slice).unwrap_or_default();
    let sequenced = known.sequenced.get(&volume).copied().unwrap_or_default();
    let run = Run::of(stored);
    let reads = if is_damaged(known.replay.loss(StreamId::Volume(volume)), &run, sequenced) {
        Condition::Damaged
    } else {
        reads_at_end(known.unsynced, known.replay.tail)
    };
    // Kept alone: its boot is what the boot file says, and no other promise than its epoch was ever asked for.
    let alone =
        || known.alone.get(&volume).map(|epoch| Noted { epoch: *epoch, whole_in: life.boot, is_damaged: false });
    let (promise, stopped_cleanly) = (promise.or_else(alone), known.unsynced == Unsynced::Synced);
    let Run { base, held, .. } = run;
    let mut found = Found { volume, life, promise, stopped_cleanly, reads, base, held };
    found.note_condition();
    found
}

/// True when records that had been synced may be missing. What a loss of power takes the journal does not call lost: that was not
/// synced. What is missing below the beginning of the run may also have been trimmed, or never been there, when the copy began anew.
fn is_damaged(loss: Loss, run: &Run, sequenced: Jseq) -> bool {
    let is_needed = |at: &Position| at.number > sequenced.0;
    let begins_in_doubt = run.base.at > sequenced && (loss.gaps || run.breaks);
    loss.end || loss.records.iter().any(is_needed) || run.misfits.iter().any(is_needed) || begins_in_doubt
}

/// What the end of the journal says of all copies in it. What it lacks there had not been synced, also after a clean stop: a start that
/// was broken off may have left such an end behind the one that the stop had synced.
const fn reads_at_end(unsynced: Unsynced, tail: Tail) -> Condition {
    match (unsynced, tail) {
        (Unsynced::Synced, Tail::Whole | Tail::Unknown) | (Unsynced::InPageCache, Tail::Whole) => Condition::Whole,
        (Unsynced::Synced, Tail::Cut)
        | (Unsynced::InPageCache, Tail::Cut | Tail::Unknown)
        | (Unsynced::Doubtful, _) => Condition::Amnesic,
    }
}

/// The records of a stream that follow each other up to the newest one.
struct Run {
    /// What the first of them follows.
    base: Point,
    held: Vec<Held>,
    /// Some record does not follow the one before it, although it stands right behind.
    breaks: bool,
    /// Where records stand that are none, or others'.
    misfits: Vec<Position>,
}

impl Run {
    /// A later epoch's first record voids what earlier ones left at its position and above.
    fn of(stored: &[(Position, Bytes)]) -> Self {
        let base = Point { at: Jseq(0), chain: Hash::ZERO };
        let mut own = Self { base, held: Vec::new(), breaks: false, misfits: Vec::new() };
        let (mut following, mut void_from) = (Vec::with_capacity(stored.len()), Jseq(u64::MAX));
        for (at, record) in stored.iter().rev() {
            let decoded = RecordHeader::decode(record).ok();
            let fits = decoded.filter(|(header, _)| (header.epoch.0, header.jseq.0) == (at.epoch, at.number));
            let Some(((header, sealed), lead)) =
                fits.filter(|_| at.number > 0).zip(record.first_chunk::<HEADER_BYTES>())
            else {
                own.misfits.push(*at);
                continue;
            };
            if header.jseq < void_from {
                void_from = header.jseq;
                let (epoch, durable) = (header.epoch, header.durable);
                let held = Held { epoch, chain: chain(lead, sealed), durable, record: record.clone() };
                following.push((Point { at: Jseq(header.jseq.0 - 1), chain: header.prev }, held));
            }
        }
        for (prev, held) in following.into_iter().rev() {
            own.push(prev, held);
        }
        own
    }

    /// Takes the next record. One that does not follow begins the run anew: what lies before is missing, or needed no more.
    fn push(&mut self, prev: Point, held: Held) {
        let records = u64::try_from(self.held.len()).expect("a length in memory fits 64 bits");
        let end = Point {
            at: Jseq(self.base.at.0 + records),
            chain: self.held.last().map_or(self.base.chain, |last| last.chain),
        };
        if self.held.is_empty() || prev != end {
            self.breaks |= !self.held.is_empty() && prev.at == end.at;
            (self.base, self.held) = (prev, Vec::new());
        }
        self.held.push(held);
    }
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
