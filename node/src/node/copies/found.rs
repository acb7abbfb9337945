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
    peer::ensemble::{Life, Point},
};

use super::super::{boot::Unsynced, files, start::StartError};
use crate::{
    ensemble::{batch::Held, member::Found},
    env::Env,
    journal::{Position, Replay, StreamId, Tail},
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
}

/// All that was found.
pub(in crate::node) struct FoundCopies {
    pub(super) promises: PathBuf,
    pub(super) life: Life,
    pub(super) copies: BTreeMap<VolumeId, Found>,
}

impl FoundCopies {
    /// Looks at what there is; changes nothing but that the folder of the promises exists.
    ///
    /// # Errors
    /// When a promise cannot be read: without it the copy must not be answered for.
    pub(in crate::node) async fn look(env: &Env, known: Known<'_>) -> Result<Self, StartError> {
        let dir = &known.promises;
        let boot = env.disk.boot().await.map_err(|error| StartError::disk(dir, error))?;
        let life = Life { process: env.entropy.fresh16(), boot };
        env.disk.create_dir_all(dir).await.map_err(|error| StartError::disk(dir, error))?;
        let promises = read_promises(env, &known).await?;
        let streams = known.replay.records.keys().filter_map(|stream| match stream {
            StreamId::Volume(volume) => Some(*volume),
            StreamId::Raft => None,
        });
        let volumes: BTreeSet<VolumeId> = streams.chain(promises.keys().copied()).collect();
        let copies = volumes.into_iter().map(|volume| {
            let promise = promises.get(&volume).map(|promise| (promise.epoch, promise.whole_in));
            (volume, find(&known, life, volume, promise))
        });
        let copies = copies.collect();
        Ok(Self { life, copies, promises: known.promises })
    }
}

/// A copy that was never kept.
pub(super) fn nothing(volume: VolumeId, life: Life) -> Found {
    let base = Point { at: Jseq(0), chain: Hash::ZERO };
    Found { volume, life, promise: None, stopped_cleanly: true, verifies: true, base, held: Vec::new() }
}

/// Where the promise for a volume stands.
pub(super) fn path(promises: &Path, volume: VolumeId) -> PathBuf {
    promises.join(volume.to_string())
}

/// Stores that a copy is not whole: a later start, in this boot or after a clean stop, would find nothing wrong with what is left.
pub(super) async fn note(
    env: &Env,
    promises: &Path,
    (cluster, node, volume): (ClusterId, NodeId, VolumeId),
    found: &Found,
) -> Result<(), StartError> {
    let Some((epoch, whole_in)) = found.promise.filter(|(_, boot)| *boot == BootId::ZERO) else { return Ok(()) };
    let path = path(promises, volume);
    let promise = Promise { cluster, node, volume, epoch, whole_in };
    files::replace(&*env.disk, &path, &promise.encode()).await.map_err(|error| StartError::disk(&path, error))
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

fn find(known: &Known<'_>, life: Life, volume: VolumeId, promise: Option<(Epoch, BootId)>) -> Found {
    let stream = StreamId::Volume(volume);
    let loss = known.replay.loss(stream);
    let stored = known.replay.records.get(&stream).map(Vec::as_slice).unwrap_or_default();
    let (base, held, joins) = join(stored);
    let has_losses = !loss.records.is_empty() || loss.gaps || loss.end;
    let is_cut = match known.unsynced {
        Unsynced::Synced => known.replay.tail == Tail::Cut,
        Unsynced::InPageCache => known.replay.tail != Tail::Whole,
        Unsynced::Doubtful => true,
    };
    let verifies = joins && !has_losses && !is_cut;
    // Kept alone: its boot is what the boot file says, and no other promise than its epoch was ever asked for.
    let promise = promise.or_else(|| known.alone.get(&volume).map(|epoch| (*epoch, life.boot)));
    let stopped_cleanly = known.unsynced == Unsynced::Synced;
    let mut found = Found { volume, life, promise, stopped_cleanly, verifies, base, held };
    found.note_amnesia();
    found
}

/// The records that follow each other up to the newest one, what the first of them follows, and whether nothing is missing
/// between any two. A later epoch's first record voids what an earlier one left at its position and above.
fn join(stored: &[(Position, Bytes)]) -> (Point, Vec<Held>, bool) {
    let mut base = Point { at: Jseq(0), chain: Hash::ZERO };
    let (mut held, mut joins): (Vec<Held>, bool) = (Vec::new(), true);
    for (at, record) in stored {
        let decoded = RecordHeader::decode(record).ok().filter(|(header, _)| header.jseq.0 > 0);
        let Some(((header, sealed), lead)) = decoded.zip(record.first_chunk::<HEADER_BYTES>()) else {
            joins = false;
            continue;
        };
        let is_placed = (header.epoch.0, header.jseq.0) == (at.epoch, at.number);
        joins &= is_placed;
        let place = usize::try_from(header.jseq.0.saturating_sub(base.at.0 + 1)).unwrap_or(usize::MAX);
        if header.jseq > base.at && place < held.len() {
            held.truncate(place);
        }
        let end = held.last().map_or(base.chain, |last| last.chain);
        if held.is_empty() || header.jseq <= base.at || place > held.len() || header.prev != end {
            // A copy that began anew, or the first record. What lies before is not needed, or it is missing.
            joins &= held.is_empty() || place > held.len();
            held.clear();
            base = Point { at: Jseq(header.jseq.0 - 1), chain: header.prev };
        }
        held.push(Held {
            epoch: header.epoch,
            chain: chain(lead, sealed),
            durable: header.durable,
            record: record.clone(),
        });
    }
    (base, held, joins)
}
