//! The raft log in memory, as raft-rs reads it. What is durable of it stands in the journal; it is kept short by snapshots.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{
    Error, GetEntriesContext, RaftState, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use super::convert;

/// Entries kept before the snapshot: a member that lags less needs no snapshot.
const TAIL_ENTRIES_MAX: usize = 1024;

/// Bytes of those.
const TAIL_BYTES_MAX: usize = 4 << 20;

/// Entries in memory: those behind the last snapshot, and a tail before it for members that lag a little.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Index and term of the entry before the first one here; the snapshot covers it.
    base: (u64, u64),
    /// Index of the last entry that the snapshot covers.
    snapshot: u64,
    /// Index up to which the state machine, and `members`, are.
    settled: u64,
    members: ConfState,
    hard_state: HardState,
    entries: VecDeque<Entry>,
}

impl Log {
    /// A log that begins behind a snapshot.
    pub(super) fn new(base: (u64, u64), members: ConfState, hard_state: HardState) -> Self {
        Self { base, snapshot: base.0, settled: base.0, members, hard_state, entries: VecDeque::new() }
    }

    /// Puts a snapshot in place of everything.
    pub(super) fn restore(&mut self, base: (u64, u64), members: ConfState) {
        *self = Self::new(base, members, self.hard_state.clone());
    }

    /// Index of the last entry.
    pub(super) fn last(&self) -> u64 {
        self.base.0 + u64::try_from(self.entries.len()).expect("a log in memory fits 64 bits")
    }

    /// Index of the last entry that the snapshot covers.
    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot
    }

    /// How many entries there are behind the snapshot.
    pub(super) fn entries_behind(&self) -> usize {
        usize::try_from(self.last() - self.snapshot).expect("a log in memory fits memory")
    }

    /// The state machine has come to `index`.
    pub(super) fn settle(&mut self, index: u64) {
        self.settled = index;
    }

    /// The group as the entry before the settled one left it.
    pub(super) fn set_members(&mut self, members: ConfState) {
        self.members = members;
    }

    /// What a snapshot of the state machine as it is now says of itself.
    pub(super) fn settled(&self) -> (u64, u64, ConfState) {
        let term = self.term_at(self.settled).expect("what is settled is in the log or is its base");
        (self.settled, term, self.members.clone())
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

    /// A snapshot covers the entries up to `index` now. All of them but a tail are dropped, and without others in the group
    /// the tail too.
    pub(super) fn compact(&mut self, index: u64) {
        assert!(index >= self.snapshot && index <= self.last(), "snapshots move forward, inside the log");
        self.snapshot = index;
        let covered = usize::try_from(index - self.base.0).expect("a log in memory fits memory");
        let has_others = self.members.voters.len() + self.members.learners.len() > 1;
        let mut bytes = 0;
        let tail = self.entries.range(..covered).rev().take(if has_others { TAIL_ENTRIES_MAX } else { 0 });
        let tail = tail.take_while(|entry| {
            bytes += entry.data.len();
            bytes <= TAIL_BYTES_MAX
        });
        let count = covered - tail.count();
        let first_left = index - u64::try_from(covered - count).expect("a log in memory fits 64 bits");
        let term = self.term_at(first_left).expect("the entry is in the log");
        self.entries.drain(..count);
        self.base = (first_left, term);
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
        let (index, term, members) = self.settled();
        if index == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        // The state is put in by whoever sends it.
        Ok(convert::snapshot(index, term, members, Bytes::new()))
    }
}
