//! Whether the page cache that acked writes were in is still there.
//!
//! A write is acked when it is in the page cache (d0). After a crash of the process it is there still; after a loss of power
//! the end of the journal may be gone, and a journal that ends earlier than it did looks like one that never got further. So
//! the node's directory names the boot of the machine in which the node last started, and a start in another boot takes it
//! that every volume may have lost acked writes, unless the node had stopped cleanly. Within one boot the journal says
//! whether all of them are there.
//!
//! Order: that acked writes may be lost is stored before the journal drops its unreadable end, and with it what told of
//! the loss; then the lineages change, then the present boot is stored, then guests are let in. A crash in between changes
//! lineages once more, which is a nuisance to guests and never a lie.

use std::{cell::Cell, io, path::PathBuf};

use tokio::sync::Mutex;
use velum_protocol::{
    format::{
        boot::{BOOT_BYTES, BootError, BootFile, BootState},
        metadata::Command,
    },
    id::{Epoch, VolumeId},
    peer::Verdict,
    version::LeadError,
};

use super::{Assembly, files, layout::Layout, opening::RETRY, start::StartError};
use crate::{
    env::{Disk, Env},
    journal::{JournalIdentity, Replay, Tail},
    metadata::MetadataError,
};

/// The boot file of a running node.
pub(super) struct Boot {
    path: PathBuf,
    file: BootFile,
    ended: Cell<bool>,
    /// One write at a time: a node may hear of its end while it starts.
    writing: Mutex<()>,
}

/// What became of writes that were acked and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsynced {
    /// There were none: the node had stopped cleanly.
    Synced,
    /// They were in the page cache, and that is still there.
    InPageCache,
    /// They may be lost.
    Doubtful,
}

impl Unsynced {
    /// True when acked writes may be lost, by the boot file or by what the journal says of its end.
    pub(super) const fn may_be_lost(self, replay: &Replay) -> bool {
        if replay.created {
            return false;
        }
        match (self, replay.tail) {
            (Self::Doubtful, _) | (_, Tail::Cut) | (Self::InPageCache, Tail::Unknown) => true,
            (Self::Synced, Tail::Whole | Tail::Unknown) | (Self::InPageCache, Tail::Whole) => false,
        }
    }
}

impl Boot {
    /// Compares the boot in which the node last started with the present one. Changes nothing.
    pub(super) async fn find(
        env: &Env,
        layout: &Layout,
        JournalIdentity { cluster, node }: JournalIdentity,
    ) -> Result<(Self, Unsynced), StartError> {
        let path = layout.boot();
        let boot = env.disk.boot().await.map_err(|error| StartError::disk(&path, error))?;
        let file = BootFile { cluster, node, boot, state: BootState::InUse };
        let found = match files::read(&*env.disk, &path, BOOT_BYTES as u64).await {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(StartError::disk(&path, error)),
            Ok(bytes) => bytes,
        };
        let unsynced = match found.map(|bytes| BootFile::decode(&bytes)) {
            Some(Err(BootError::Lead(source @ LeadError::Newer { .. }))) => {
                return Err(StartError::Newer { path, source });
            }
            Some(Ok(last)) if last == (BootFile { boot: last.boot, state: BootState::Removed, ..file }) => {
                return Err(StartError::Removed { node, dir: layout.dir().to_owned() });
            }
            Some(Ok(last)) if last == (BootFile { boot: last.boot, state: BootState::Outlived, ..file }) => {
                return Err(StartError::Outlived { node, dir: layout.dir().to_owned() });
            }
            Some(Ok(last)) if last == file => Unsynced::InPageCache,
            Some(Ok(last)) if last == (BootFile { boot: last.boot, state: BootState::Stopped, ..file }) => {
                Unsynced::Synced
            }
            Some(Ok(_) | Err(_)) | None => Unsynced::Doubtful,
        };
        Ok((Self { path, file, ended: Cell::new(false), writing: Mutex::default() }, unsynced))
    }

    /// Stores, durably, that acked writes may be lost: the next start knows it too, should this one be broken off.
    pub(super) async fn doubt(&self, disk: &dyn Disk) -> Result<(), StartError> {
        self.store(disk, BootState::Doubtful).await.map_err(|error| StartError::disk(&self.path, error))
    }

    /// Stores the present boot, durably: from here on writes may be acked.
    pub(super) async fn started(&self, disk: &dyn Disk) -> Result<(), StartError> {
        self.store(disk, BootState::InUse).await.map_err(|error| StartError::disk(&self.path, error))
    }

    /// Says that everything acked is synced and nothing more will be acked.
    pub(super) async fn stopped(&self, disk: &dyn Disk) -> io::Result<()> {
        self.store(disk, BootState::Stopped).await
    }

    /// Says, for ever, that the node is no part of the cluster any more. What is no such verdict changes nothing.
    pub(super) async fn ended(&self, disk: &dyn Disk, verdict: Verdict) -> io::Result<()> {
        let state = match verdict {
            Verdict::Removed => BootState::Removed,
            Verdict::Outlived => BootState::Outlived,
            Verdict::NoPlace | Verdict::Welcome => return Ok(()),
        };
        self.ended.set(true);
        self.store(disk, state).await
    }

    async fn store(&self, disk: &dyn Disk, state: BootState) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        // What has ended stays so, whatever was on its way.
        if self.ended.get() && !matches!(state, BootState::Removed | BootState::Outlived) {
            return Ok(());
        }
        files::replace(disk, &self.path, &BootFile { state, ..self.file }.encode()).await
    }
}

impl Assembly {
    /// Changes the lineage of every volume of a node that is alone: any of them may have had writes acked last.
    pub(super) async fn change_lineages(&self) -> Result<(), StartError> {
        let volumes = self.metadata.with(|state| {
            let opened = state.volumes.iter().filter(|(_, volume)| !volume.deleted && volume.epoch > Epoch(0));
            opened.map(|(id, volume)| (*id, volume.epoch)).collect::<Vec<_>>()
        });
        tracing::warn!(volumes = volumes.len(), "writes that were acked but not synced may be lost; lineages change");
        for (volume, epoch) in volumes {
            self.change_lineage(volume, epoch).await?;
        }
        Ok(())
    }

    async fn change_lineage(&self, volume: VolumeId, epoch: Epoch) -> Result<(), StartError> {
        loop {
            match self.metadata.propose(Command::ChangeLineage { volume, epoch }).await {
                Ok(_) => return Ok(()),
                Err(MetadataError::Rejected(rejection)) => return Err(StartError::Lineage { volume, rejection }),
                Err(MetadataError::Unknown(unknown)) => {
                    tracing::warn!(%volume, %unknown, "it is not known whether the lineage has changed; asking again");
                }
            }
            self.env.clock.sleep(RETRY).await;
        }
    }
}
