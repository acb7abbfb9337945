//! Notes beside the ring how far it was written and how far it was synced.
//!
//! A record says what was durable when it was made, so of the last sync before a crash no record tells, and of the writes
//! behind it nothing does. This file tells of both. It is written after each write of the ring and after each sync, a copy
//! of some bytes into the page cache, and never synced for a barrier: after a crash of the process it is there as it was
//! written, after a loss of power an older one claims less. Only what has happened is ever noted, so it never claims more.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use velum_protocol::{
    format::reach::{Durable, REACH_FILE_BYTES, REACH_PLACE_BYTES, Reach, ReachPlaces},
    id::BootId,
    version::LeadError,
};

use super::{JournalError, JournalIdentity, Mark, scan::read_head};
use crate::env::{Disk, Env, File, OpenMode};

/// The file's name beside those of the ring.
const NAME: &str = "reach";

/// What the life before noted, and in which boot this one begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    /// The farthest note that can be read.
    newest: Option<Reach>,
    /// All notes can be read.
    whole: bool,
    boot: BootId,
}

impl Reached {
    /// Reads the notes in `dir` and changes nothing.
    pub(super) async fn read(env: &Env, dir: &Path, identity: JournalIdentity) -> Result<Self, JournalError> {
        let path = dir.join(NAME);
        let boot = env.disk.boot().await.map_err(JournalError::io("learn the boot of the machine for", &path))?;
        let file = match env.disk.open(&path, OpenMode::Read).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { newest: None, whole: false, boot });
            }
            opened => opened.map_err(JournalError::io("open", &path))?,
        };
        let bytes =
            read_head(&*env.clock, &*file, REACH_FILE_BYTES).await.map_err(JournalError::io("measure", &path))?;
        let places = ReachPlaces::decode(&bytes);
        let ReachPlaces { newest, whole } =
            places.map_err(|source: LeadError| JournalError::Newer { path: path.clone(), source: source.into() })?;
        match newest {
            Some(found) if (found.cluster, found.node) != (identity.cluster, identity.node) => {
                Err(JournalError::Foreign { path, found_cluster: found.cluster, found_node: found.node })
            }
            newest => Ok(Self { newest, whole, boot }),
        }
    }

    /// What was durable, at least.
    pub(super) fn durable(&self) -> Option<Durable> {
        self.newest.map(|reach| reach.durable)
    }

    /// Where the last record ends that was written in this boot; `None` when nobody can say.
    pub(super) fn written(&self) -> Option<Mark> {
        self.newest.filter(|reach| self.whole && reach.boot == self.boot).map(|reach| reach.written)
    }
}

/// The open file.
pub(super) struct ReachFile {
    file: Rc<dyn File>,
    path: PathBuf,
    identity: JournalIdentity,
    boot: BootId,
    /// Which place is written next.
    place: u64,
}

impl ReachFile {
    /// Opens the file, or makes it. Notes of the life before stay until both places are written.
    pub(super) async fn open(
        disk: &dyn Disk,
        dir: &Path,
        identity: JournalIdentity,
        reached: &Reached,
    ) -> Result<Self, JournalError> {
        let path = dir.join(NAME);
        let file = match disk.open(&path, OpenMode::ReadWrite).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.open(&path, OpenMode::CreateNew).await.map_err(JournalError::io("create", &path))?
            }
            opened => opened.map_err(JournalError::io("open", &path))?,
        };
        let size = file.size().map_err(JournalError::io("measure", &path))?;
        let missing = usize::try_from((PLACE_BYTES * 2).saturating_sub(size)).expect("the file is small");
        if missing > 0 {
            // Its bytes are taken from the disk now, so that a note can never find the disk full.
            file.write_at(size, &vec![0; missing]).map_err(JournalError::io("write", &path))?;
            file.sync().await.map_err(JournalError::io("sync", &path))?;
        }
        Ok(Self { file, path, identity, boot: reached.boot, place: 0 })
    }

    /// Notes how far the ring reaches now.
    pub(super) fn note(&mut self, written: Mark, durable: Durable) -> io::Result<()> {
        let JournalIdentity { cluster, node } = self.identity;
        let reach = Reach { cluster, node, boot: self.boot, written, durable };
        self.file.write_at(self.place * PLACE_BYTES, &reach.encode())?;
        self.place = 1 - self.place;
        Ok(())
    }

    /// What a failure is about.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be synced.
    pub(super) fn file(&self) -> Rc<dyn File> {
        Rc::clone(&self.file)
    }
}

/// [`REACH_PLACE_BYTES`] for offsets.
const PLACE_BYTES: u64 = 4096;
const _: () = assert!(PLACE_BYTES == REACH_PLACE_BYTES as u64);
