//! The node's write-ahead log: one per node, in which the records of all volumes and of raft stand packed in the order of
//! their appending, so that one sync makes all of them durable.
//!
//! A ring of files, written through before they are used. Appending copies into a buffer, [`Journal::submit`] writes the
//! buffer with one call (d0), [`Journal::sync`] is a group commit (d1). Streams are trimmed by their owners; a file without
//! live records is used again under a higher lap; live records of a nearly dead file are copied forward, so that one
//! stalled stream cannot hold the ring.
//!
//! Crash behaviour: what a completed sync covered is replayed, in order; of what came later, a prefix. A failed write or
//! sync poisons the journal for the rest of this life. Damage to what was durable is reported and never cut away; writes that
//! were acked and are lost although the page cache is not are told ([`Tail`]).
//!
//! A start has two parts: [`Journal::examine`] changes nothing, [`Examined::begin`] sets up the ring again.
//!
//! It does not know what bodies hold; they are sealed by their owners.

mod error;
mod inspect;
mod machine;
mod reach;
mod recover;
mod replay;
mod scan;
mod shell;

use std::{path::Path, rc::Rc};

use velum_protocol::{
    format::journal::FILES_MAX,
    id::{ClusterId, NodeId},
};

pub use error::JournalError;
pub use inspect::{InspectedFile, InspectedRecord, RecordState, inspect};
pub use replay::{Damage, DamageKind, Loss, Replay, Tail, Torn};
pub use velum_protocol::format::journal::{Mark, Position, RecordKind, StreamId};

use crate::{
    env::{Env, Local},
    metrics::JournalMetrics,
};
use shell::Shared;

/// Sizes of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// Length of one file. Files made under another setting keep theirs.
    pub file_bytes: u64,
    /// Files made at the first start.
    pub files_at_start: usize,
    /// The ring grows up to this.
    pub bytes_max: u64,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, files_at_start: 4, bytes_max: 2 << 30 }
    }
}

impl JournalSettings {
    /// Fewer files leave no room beside the reserve.
    const FILES_MIN: usize = 4;

    /// The most files the ring may have.
    #[must_use]
    pub fn files_max(&self) -> usize {
        let files = usize::try_from(self.bytes_max / self.file_bytes.max(1)).unwrap_or(FILES_MAX);
        // A start after a crash may add a file or two, and a ring record names lost ones too.
        files.clamp(Self::FILES_MIN, FILES_MAX - 8)
    }

    fn check(&self) -> Result<(), JournalError> {
        if !(64 << 10..=1 << 30).contains(&self.file_bytes) || !self.file_bytes.is_multiple_of(4096) {
            return Err(JournalError::Settings("a file has 64 KiB to 1 GiB, in multiples of 4 KiB"));
        }
        let files_max = usize::try_from(self.bytes_max / self.file_bytes).unwrap_or(usize::MAX);
        if files_max < Self::FILES_MIN || self.files_at_start > files_max {
            return Err(JournalError::Settings("the ring holds at least four files and all that it starts with"));
        }
        Ok(())
    }
}

/// Whose journal it is; stands in every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// What the journal says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalStatus {
    /// Upper bound of the bytes of records that are still needed.
    pub bytes_live: u64,
    /// How long the files may become together.
    pub bytes_max: u64,
    /// Files there are.
    pub files: usize,
    /// Syncs done since the start.
    pub syncs: u64,
    /// Bytes written since the start.
    pub bytes_written: u64,
    /// The first failure, when the journal is poisoned.
    pub poisoned: Option<String>,
}

/// The node's journal. Calls are direct: sessions, volumes and the journal share a thread.
pub struct Journal {
    shared: Shared,
    settings: JournalSettings,
}

/// A journal that was looked at and not changed. Nothing of it is lost or decided when this is dropped.
pub struct Examined(recover::Examined);

impl Examined {
    /// The longest body that fits every file.
    #[must_use]
    pub fn body_bytes_max(&self) -> usize {
        self.0.body_bytes_max()
    }

    /// How long the files may become together.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.0.settings().bytes_max
    }

    /// Makes everything replayed durable and lets the journal be appended to. An unreadable end is dropped by this, so
    /// whoever has to remember what was lost with it does so first.
    ///
    /// # Errors
    /// When files cannot be made, read or written. The next start finds what this one found.
    pub async fn begin(self) -> Result<Rc<Journal>, JournalError> {
        let settings = self.0.settings();
        let shared = recover::begin_anew(self.0).await?;
        Ok(Rc::new(Journal { shared, settings }))
    }
}

impl Journal {
    /// Looks at the journal in `dir` and changes nothing. In an empty directory one will be made ([`Replay::created`] says
    /// so). Only one process may have it open; the caller holds the node directory's lock.
    ///
    /// # Errors
    /// When the directory is another node's or a newer version's, when the settings do not do for what it holds, or when
    /// files cannot be read. Damage is no error here: it is reported with what could be read.
    pub async fn examine(
        env: &Env,
        dir: &Path,
        settings: JournalSettings,
        identity: JournalIdentity,
    ) -> Result<(Examined, Replay), JournalError> {
        let (examined, replay) = recover::examine(env, dir, settings, identity).await?;
        Ok((Examined(examined), replay))
    }

    /// Opens the journal in `dir` in one go, for those who have nothing to judge in between.
    ///
    /// # Errors
    /// As [`Self::examine`] and [`Examined::begin`].
    pub async fn open(
        env: &Env,
        dir: &Path,
        settings: JournalSettings,
        identity: JournalIdentity,
    ) -> Result<(Rc<Self>, Replay), JournalError> {
        let (examined, replay) = Self::examine(env, dir, settings, identity).await?;
        Ok((examined.begin().await?, replay))
    }

    /// Puts a record into the buffer. Positions of a stream rise; their numbers need not be contiguous.
    ///
    /// # Errors
    /// `Full` when trimming must make room first (see [`Self::room`]); `Poisoned` for ever after a failure.
    pub fn append(&self, stream: StreamId, at: Position, body: &[u8]) -> Result<(), JournalError> {
        self.shared.append(stream, at, body)
    }

    /// The same for a copy of another node's journal, which may take some of what volumes leave alone. What had room at the owner
    /// must have room here, where trims come a little later and files are packed otherwise: with records that nobody takes nothing
    /// comes to d0, hence nothing to the clouds, and nothing is trimmed anywhere any more.
    ///
    /// A copy that was damaged is filled again where records are missing, so positions need not rise. What stands there already is
    /// the same record.
    ///
    /// # Errors
    /// As [`Self::append`], but for the order.
    pub fn append_foreign(&self, stream: StreamId, at: Position, body: &[u8]) -> Result<(), JournalError> {
        self.shared.append_foreign(stream, at, body)
    }

    /// True when bodies of `bytes` in all can be appended as copies now.
    #[must_use]
    pub fn has_room_for_foreign(&self, bytes: u64) -> bool {
        self.shared.0.borrow().machine.has_room_for_foreign(bytes)
    }

    /// The longest body that fits every file.
    #[must_use]
    pub fn body_bytes_max(&self) -> usize {
        self.shared.0.borrow().machine.body_bytes_max()
    }

    /// The longest body for which [`Self::has_room`] is right however many there are: what is left at the end of a file
    /// because the next record does not fit is no more than it allows for.
    #[must_use]
    pub fn body_bytes_handy(&self) -> usize {
        self.shared.0.borrow().machine.body_bytes_handy()
    }

    /// Writes everything appended, with one call: it is in the page cache when this returns (d0).
    ///
    /// # Errors
    /// `Poisoned`.
    pub fn submit(&self) -> Result<(), JournalError> {
        self.shared.0.borrow_mut().submit()
    }

    /// Completes when everything appended before the call is durable (d1). Calls that come while a sync is in flight
    /// share the next one.
    pub fn sync(&self) -> Local<Result<(), JournalError>> {
        self.shared.sync()
    }

    /// Says that the records of a stream up to `through` are needed no more.
    pub fn trim(&self, stream: StreamId, through: Position) {
        self.shared.trim(stream, through);
    }

    /// Says that all that a stream lost to damage was appended again, or is known not to be missing. Until then files that tell of
    /// such a loss are kept.
    pub fn made_up(&self, stream: StreamId) {
        self.shared.0.borrow_mut().machine.made_up(stream);
    }

    /// Says that a stream is needed no more, now and ever.
    pub fn remove(&self, stream: StreamId) {
        self.shared.trim(stream, machine::REMOVED);
    }

    /// Upper bound of what volumes' records may take: all but what raft and starts need, and a file that is nearly dead.
    #[must_use]
    pub fn bytes_for_volumes(&self) -> u64 {
        let files = u64::try_from(self.settings.files_max().saturating_sub(machine::RESERVE_FILES + 1)).unwrap_or(0);
        self.settings.file_bytes * files.max(1)
    }

    /// True when bodies of `bytes` in all can be appended for volumes now.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.shared.0.borrow().machine.has_room(bytes)
    }

    /// Completes when [`Self::has_room`] says yes, or with the error when the journal is poisoned.
    pub fn room(&self, bytes: u64) -> Local<Result<(), JournalError>> {
        self.shared.room(bytes)
    }

    /// Completes when there is no room for volumes and part of what takes it is raft's. Trims of raft's stream help then.
    pub fn crowded(&self) -> Local<()> {
        self.shared.crowded()
    }

    /// Notes what is durable and trimmed, and syncs: after this a start has no unsynced end to judge.
    ///
    /// # Errors
    /// `Poisoned`.
    pub async fn close(&self) -> Result<(), JournalError> {
        self.shared.sync().await?;
        self.shared.0.borrow_mut().append_ring()?;
        self.shared.sync().await?;
        self.shared.sync_notes().await
    }

    /// Counts what happens from now on in `metrics`.
    pub fn count_in(&self, metrics: JournalMetrics) {
        self.shared.0.borrow_mut().metrics = Some(metrics);
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self) -> JournalStatus {
        let inner = self.shared.0.borrow();
        JournalStatus {
            bytes_live: inner.machine.live_bytes_total(),
            bytes_max: self.settings.bytes_max,
            files: inner.machine.files().count(),
            syncs: inner.syncs,
            bytes_written: inner.bytes_written,
            poisoned: inner.poison().map(|cause| cause.to_string()),
        }
    }
}
