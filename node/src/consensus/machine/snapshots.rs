//! Snapshots of this member's own state: when one is due, which records of the journal it still needs, and what it frees.

use bytes::Bytes;
use velum_protocol::format::raft as format;

use super::{Effect, Machine, convert};

/// Entries in the log that call for a snapshot.
const LOG_ENTRIES_MAX: usize = 4096;

/// Bytes in the journal that call for a snapshot. Less in a small journal; more when the last snapshot was larger, so that
/// snapshots cost less than the log they replace.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Ticks to wait after a snapshot could not be written: ten seconds.
pub(super) const RETRY_TICKS: u32 = 200;

/// A snapshot that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) index: u64,
    from_record: u64,
}

impl Machine {
    /// Asks for a snapshot when the log is long or the journal needs its room, and at the very first start: from then on a
    /// journal without raft records is known to be a lost one.
    pub(super) fn maybe_snapshot(&mut self, effects: &mut Vec<Effect>) {
        let bytes_max = LOG_BYTES_MAX.max(self.snapshot_bytes).min(self.journal.bytes_max / 8);
        let is_long = self.raft.store().entries_behind() >= LOG_ENTRIES_MAX || self.records_bytes >= bytes_max;
        let is_first = self.first_start && self.caught_up_at.is_none();
        let is_busy = self.pending.is_some() || self.install.is_some();
        if is_busy || !(is_long || is_first || self.crowded) || self.retry_ticks > 0 {
            return;
        }
        let index = self.applied;
        let Some(term) = self.raft.store().term_at(index).filter(|_| index > self.raft.store().snapshot_index()) else {
            return;
        };
        // Replay begins with the first record that holds an entry behind the snapshot; one durable record always stays, so
        // that an empty stream can only be a lost one.
        let needed = self.records.iter().find(|kept| kept.last > index).map_or(self.record_last, |kept| kept.at.number);
        let from_record = needed.min(self.record_synced);
        if from_record == 0 {
            return;
        }
        self.pending = Some(Pending { index, from_record });
        let store = self.raft.store();
        // What is known to be committed beyond the snapshot may not be durable here yet.
        let hard_state = format::HardState { commit: index, ..convert::hard_state(store.hard_state()) };
        let snapshot = Box::new(format::Snapshot {
            hard_state,
            from_record,
            membership: convert::membership(store.members()),
            state: Bytes::new(),
        });
        effects.push(Effect::Snapshot { index, term, snapshot });
    }

    /// Another tick has gone by since a snapshot could not be written.
    pub(super) fn retry_snapshot(&mut self, effects: &mut Vec<Effect>) {
        if self.retry_ticks > 0 {
            self.retry_ticks -= 1;
            self.maybe_snapshot(effects);
        }
    }

    pub(super) fn snapshotted(&mut self, index: u64, bytes: u64, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take().filter(|pending| pending.index == index) else { return };
        self.first_start = false;
        self.crowded = false;
        self.snapshot_bytes = bytes;
        // The leader's snapshot may have come meanwhile.
        if index > self.raft.store().snapshot_index() {
            self.raft.mut_store().compact(index);
        }
        self.trim(pending.from_record, effects);
    }

    /// Lets the journal drop the records before `from_record`.
    pub(super) fn trim(&mut self, from_record: u64, effects: &mut Vec<Effect>) {
        let mut through = None;
        while let Some(kept) = self.records.pop_front_if(|kept| kept.at.number < from_record) {
            self.records_bytes -= kept.bytes;
            through = Some(kept.at);
        }
        if let Some(through) = through {
            effects.push(Effect::Trim { through });
        }
    }
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
mod tests;
