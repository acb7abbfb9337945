//! A snapshot from the leader takes the place of log and state.
//!
//! Its file names a record of the journal with which a replay begins. That record is written and synced first, then the
//! file replaces the one before: a crash leaves either the old snapshot with its log, or the new one with at least that
//! record, never a log that does not join. Only then does the state machine take it on, and only then does the leader hear
//! of it. Until then time stands still for raft on this node: it neither listens nor campaigns.

use bytes::Bytes;
use raft::{Ready, eraftpb::Message};
use velum_protocol::format::raft as format;

use super::{Effect, Machine, convert};

/// A snapshot on its way to the disk.
#[derive(Debug)]
pub(super) struct Install {
    ready: u64,
    index: u64,
    term: u64,
    /// The record that a replay begins with.
    from_record: u64,
    /// It is being written.
    is_begun: bool,
    /// What the leader will hear.
    messages: Vec<Message>,
    state: Bytes,
}

impl Machine {
    /// Raft has taken a snapshot: `ready` brings it.
    pub(super) fn begin_install(&mut self, mut ready: Ready, effects: &mut Vec<Effect>) {
        if !ready.entries().is_empty() || !ready.committed_entries().is_empty() {
            return self.halt("raft handed out entries behind a snapshot that is not in place", effects);
        }
        let snapshot = ready.snapshot().clone();
        let metadata = snapshot.get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let before = convert::hard_state(self.raft.store().hard_state());
        let after = ready.hs().unwrap_or_else(|| self.raft.store().hard_state()).clone();
        // Should the snapshot be lost, the old log goes on, and its commit is what it was.
        let record = format::Record {
            hard_state: format::HardState { commit: before.commit, ..convert::hard_state(&after) },
            first: 0,
            entries: Vec::new(),
        };
        self.put(&record, effects);
        self.wants_sync = true;
        let store = self.raft.mut_store();
        store.restore((index, term), metadata.get_conf_state().clone());
        store.set_hard_state(after);
        self.install = Some(Install {
            ready: ready.number(),
            index,
            term,
            from_record: self.record_last,
            is_begun: false,
            messages: ready.take_persisted_messages(),
            state: snapshot.data,
        });
        self.raft.advance_append_async(ready);
    }

    /// Writes the snapshot once its record is durable and no other snapshot is being written.
    pub(super) fn go_on_installing(&mut self, effects: &mut Vec<Effect>) {
        let store = self.raft.store();
        let (hard_state, members) = (convert::hard_state(store.hard_state()), convert::membership(store.members()));
        let Some(install) = self.install.as_mut().filter(|install| !install.is_begun) else { return };
        if self.record_synced < install.from_record || self.pending.is_some() {
            return;
        }
        install.is_begun = true;
        let snapshot = Box::new(format::Snapshot {
            hard_state: format::HardState { commit: hard_state.commit.max(install.index), ..hard_state },
            from_record: install.from_record,
            membership: members,
            state: install.state.clone(),
        });
        effects.push(Effect::Install { index: install.index, term: install.term, snapshot });
    }

    /// The snapshot is in place.
    pub(super) fn installed(&mut self, bytes: u64, effects: &mut Vec<Effect>) {
        let Some(Install { ready, index, from_record, messages, state, .. }) = self.install.take() else { return };
        self.first_start = false;
        self.snapshot_bytes = bytes;
        self.applied = index;
        effects.push(Effect::Restore { state });
        effects.push(Effect::Members(convert::membership(self.raft.store().members())));
        self.lose_proposals(index, effects);
        self.raft.on_persist_ready(ready);
        // In this form of the loop raft-rs leaves that to us; else a campaign would look for entries that are gone.
        self.raft.advance_apply_to(index);
        self.trim(from_record, effects);
        self.send(messages, effects);
    }
}
