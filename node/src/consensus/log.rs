//! The raft log in memory, as raft-rs reads it. What is durable of it stands in the journal; it is kept short by snapshots.

use std::collections::VecDeque;

use raft::{
    Error, GetEntriesContext, RaftState, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

/// Entries behind the last snapshot.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Index and term of the last entry that the snapshot covers.
    base: (u64, u64),
    members: ConfState,
    hard_state: HardState,
    entries: VecDeque<Entry>,
}

impl Log {
    /// A log that begins behind a snapshot.
    pub(super) fn new(base: (u64, u64), members: ConfState, hard_state: HardState) -> Self {
        Self { base, members, hard_state, entries: VecDeque::new() }
    }

    /// Index of the last entry.
    pub(super) fn last(&self) -> u64 {
        self.base.0 + u64::try_from(self.entries.len()).expect("a log in memory fits 64 bits")
    }

    /// Index of the last entry that the snapshot covers.
    pub(super) fn base(&self) -> u64 {
        self.base.0
    }

    /// How many entries there are.
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The hard state to start from or last set.
    pub(super) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The group.
    pub(super) fn members(&self) -> &ConfState {
        &self.members
    }

    /// Puts entries in place of everything from the first one's index on. False when they do not join up.
    #[must_use]
    pub(super) fn append(&mut self, entries: &[Entry]) -> bool {
        // What the snapshot covers is settled.
        let new = entries.iter().position(|entry| entry.index > self.base.0).and_then(|start| entries.get(start..));
        let Some((first, new)) = new.and_then(|new| Some((new.first()?.index, new))) else { return true };
        if first > self.last() + 1 {
            return false;
        }
        let kept = usize::try_from(first - self.base.0 - 1).expect("a log in memory fits memory");
        self.entries.truncate(kept);
        self.entries.extend(new.iter().cloned());
        true
    }

    /// Drops the entries up to `index`, which a snapshot covers now.
    pub(super) fn compact(&mut self, index: u64) {
        assert!(index >= self.base.0 && index <= self.last(), "snapshots move forward, inside the log");
        let term = self.term_at(index).expect("the entry is in the log");
        let count = usize::try_from(index - self.base.0).expect("a log in memory fits memory");
        self.entries.drain(..count);
        self.base = (index, term);
    }

    /// The term of an entry, or of the snapshot's last one.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let place = usize::try_from(index.checked_sub(self.base.0 + 1)?).ok()?;
        self.entries.get(place).map(|entry| entry.term)
    }
}

/// raft-rs reads the log through this; it panics on any error but those named here, so nothing else is ever returned.
impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.members.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let place = |index: u64| usize::try_from(index - self.base.0 - 1).expect("a log in memory fits memory");
        let mut entries: Vec<Entry> = self.entries.range(place(low)..place(high)).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.base.0 { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_at(index).ok_or(Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Peers get snapshots on a channel of their own once there are peers; raft-rs asks again until then.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
