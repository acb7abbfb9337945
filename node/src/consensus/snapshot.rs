//! The snapshot file: read at a start, replaced as a whole.
//!
//! A new one is written beside the old one, synced, and renamed over it; the directory is synced before anything that the
//! old one needed is trimmed. A crash leaves one or the other, and perhaps a leftover that the next start removes.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use velum_protocol::{
    checksum::crc32c,
    format::{
        bind::{RaftKind, RaftRecord},
        raft::{SNAPSHOT_BYTES_MAX, SNAPSHOT_HEADER_BYTES, Snapshot, SnapshotHeader, SnapshotHeaderError},
    },
    id::{ClusterId, NodeId},
    version::LeadError,
};

use super::ConsensusError;
use crate::{
    env::{Disk, OpenMode},
    keyring::SealKey,
};

/// The file's name in the raft directory.
const NAME: &str = "snapshot";

/// The name it has while it is written.
const NEW_NAME: &str = "snapshot.new";

/// Bytes written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Whose snapshot, and the key that seals it.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) seal: SealKey,
}

impl Owner {
    fn binding(&self, index: u64, term: u64) -> [u8; 49] {
        let Self { cluster, node, .. } = *self;
        RaftRecord { cluster, node, kind: RaftKind::Snapshot, term, index }.aad()
    }
}

/// A snapshot with the place it was taken at.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) snapshot: Snapshot,
}

/// True when there is a snapshot, and so a raft group.
pub(super) async fn exists(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    match disk.list(dir).await {
        Ok(names) => Ok(names.iter().any(|name| name == NAME)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bytes of a snapshot file.
pub(super) fn encode(owner: &Owner, fresh: &[u8; 32], placed: &Placed) -> Bytes {
    let Placed { index, term, ref snapshot } = *placed;
    let body = owner.seal.seal(fresh, &owner.binding(index, term), &snapshot.encode());
    let header = SnapshotHeader {
        cluster: owner.cluster,
        node: owner.node,
        index,
        term,
        body_bytes: u64::try_from(body.len()).expect("a body in memory fits 64 bits"),
        body_crc: crc32c(&body),
    };
    let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES + body.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&body);
    out.into()
}

/// Puts a snapshot file in place.
pub(super) async fn replace(disk: Rc<dyn Disk>, dir: PathBuf, bytes: Bytes) -> io::Result<()> {
    let (path, new) = (dir.join(NAME), dir.join(NEW_NAME));
    remove_leftover(&*disk, &dir).await?;
    let file = disk.open(&new, OpenMode::CreateNew).await?;
    let mut at = 0;
    for piece in bytes.chunks(WRITE_BYTES) {
        file.write_at(at, piece)?;
        at += u64::try_from(piece.len()).expect("a piece is small");
    }
    file.sync().await?;
    disk.rename(&new, &path).await?;
    disk.sync_dir(&dir).await
}

/// Removes what a snapshot that was not finished left behind.
pub(super) async fn remove_leftover(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    match disk.remove(&dir.join(NEW_NAME)).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads and verifies the snapshot.
pub(super) async fn read(disk: &dyn Disk, dir: &Path, owner: &Owner) -> Result<Placed, ConsensusError> {
    let path = dir.join(NAME);
    let damaged = |what: &'static str| ConsensusError::SnapshotDamaged { path: path.clone(), what };
    let failed = |source: io::Error| ConsensusError::Io { path: path.clone(), source };
    let file = match disk.open(&path, OpenMode::Read).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ConsensusError::NoGroup { path }),
        opened => opened.map_err(failed)?,
    };
    let bytes = file.size().map_err(failed)?;
    if bytes > SNAPSHOT_BYTES_MAX {
        return Err(damaged("it is longer than any snapshot"));
    }
    let length = usize::try_from(bytes).map_err(|_| damaged("it is longer than memory"))?;
    let bytes = file.read_at(0, length).await.map_err(failed)?;
    let header = match SnapshotHeader::decode(&bytes) {
        Ok(header) => header,
        Err(SnapshotHeaderError::Lead(source @ LeadError::Newer { .. })) => {
            return Err(ConsensusError::Newer { path, source });
        }
        Err(_) => return Err(damaged("its header is not readable")),
    };
    if (header.cluster, header.node) != (owner.cluster, owner.node) {
        return Err(ConsensusError::Foreign { path, found_cluster: header.cluster, found_node: header.node });
    }
    let body = bytes.slice(SNAPSHOT_HEADER_BYTES..);
    if u64::try_from(body.len()) != Ok(header.body_bytes) || crc32c(&body) != header.body_crc {
        return Err(damaged("its checksum does not match"));
    }
    let opened = owner.seal.open(&owner.binding(header.index, header.term), &body);
    let opened = opened.map_err(|_| damaged("it is not authentic under the cluster's key"))?;
    let snapshot = Snapshot::decode(opened.into()).map_err(|_| damaged("its contents do not decode"))?;
    // A newcomer's is empty altogether.
    let is_newcomer = (header.index, header.term) == (0, 0) && snapshot == Snapshot::default();
    let is_whole = header.index > 0 && snapshot.hard_state.commit >= header.index && snapshot.membership.is_possible();
    if !is_newcomer && !is_whole {
        return Err(damaged("its contents contradict each other"));
    }
    Ok(Placed { index: header.index, term: header.term, snapshot })
}
