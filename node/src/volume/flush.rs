//! What a flush sees of a volume: windows going out, coming back as mapped and clean, and becoming durable.
//!
//! A window is cut only where every record is at d0, so nothing is flushed that could still vanish. It stays in the buffer,
//! readable, until its sequence record is committed; then the map knows its blocks, the memory cache takes them over, and
//! the window's bytes go back to the budget. The journal keeps its records until the clouds have them (d2).

use std::{iter::Peekable, slice, sync::Arc};

use bytes::Bytes;
use velum_protocol::{
    format::location::{Frame, RunUpdate},
    id::{BlockIndex, Jseq, VolumeId},
};

use super::{
    machine::{Effect, VolumeMachine},
    messages::{Change, Committed, DirtyStatus, Moved, Relocated, Window},
};
use crate::{cache::BlockLocation, env::Instant};

impl VolumeMachine {
    /// What there is to flush.
    #[must_use]
    pub fn dirty(&self) -> DirtyStatus {
        let (bytes, oldest) = self.buffer.waiting();
        DirtyStatus {
            bytes,
            oldest,
            buffered_bytes: self.buffer.bytes(),
            exposed_since: self.exposed.front().map(|(_, since)| *since).or_else(|| self.buffer.active_since()),
            last: self.journaled.submitted,
            durable: self.durable,
            short: self.waiting_writes() > 0 || self.budget.is_short(),
        }
    }

    /// The oldest window that no flush has; cuts the active one off if need be. `None` when nothing is dirty, when it is not
    /// at d0 yet (the flusher is woken when it is), or when the journal is poisoned.
    pub fn freeze(&mut self) -> Option<Arc<Window>> {
        if self.journaled.poisoned {
            return None;
        }
        self.flush_woken = false;
        if let Some(window) = self.take_window() {
            return Some(window);
        }
        self.cut_window();
        self.take_window()
    }

    pub(super) fn committed(&mut self, committed: &Committed, effects: &mut Vec<Effect>) {
        // A window that is not the oldest is not ours: told twice, or of an owner that is no more.
        let Some((window, bytes)) = self.buffer.drop_oldest(committed.last) else { return };
        committed.segments.iter().for_each(|segment| self.map.add_segment(segment));
        for update in &committed.updates {
            self.map.apply(update).expect("a flush maps runs that lie in their frames");
        }
        self.evict_pages();
        let clean = locate(self.id, &window.changes, &committed.updates);
        for (at, contents) in &clean {
            self.memory.borrow_mut().insert_owned(*at, contents.clone());
        }
        effects.push(Effect::Keep(clean));
        self.give_back(bytes);
    }

    /// Blocks lie elsewhere now. Who waits for one at its old place gets it from here, for that place will be gone one day.
    pub(super) fn relocated(&mut self, now: Instant, relocated: Relocated, effects: &mut Vec<Effect>) {
        let Relocated { segment, updates, moved } = relocated;
        self.map.add_segment(&segment);
        for update in &updates {
            self.map.apply(update).expect("a compaction maps runs that lie in their frames");
        }
        self.evict_pages();
        let mut places = Places(updates.iter().peekable());
        let mut kept = Vec::with_capacity(moved.len());
        for Moved { block, from, contents } in &moved {
            let from = BlockLocation::of(self.id, from, *block);
            let to = places.of(*block).and_then(|frame| BlockLocation::of(self.id, &frame, *block));
            let (Some(from), Some(to)) = (from, to) else { continue };
            let memory = &mut *self.memory.borrow_mut();
            if memory.contains(&from) {
                memory.insert_owned(to, contents.clone());
            }
            kept.push((from, to, contents.clone()));
        }
        effects.push(Effect::Moved(kept));
        moved.into_iter().for_each(|moved| self.deliver_moved(now, moved, effects));
    }

    pub(super) fn become_durable(&mut self, last: Jseq, effects: &mut Vec<Effect>) {
        if last <= self.durable {
            return;
        }
        self.durable = last;
        while self.exposed.pop_front_if(|(until, _)| *until <= last).is_some() {}
        if let Some(epoch) = self.journaled.epoch_of(last) {
            effects.push(Effect::TrimJournal { epoch, through: last });
        }
        // Whoever waits may wait for the journal.
        self.wake_waiting |= self.budget.is_short();
    }

    /// Tells the flusher, once until it comes.
    pub(super) fn wake_flush(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.flush_woken, true) {
            effects.push(Effect::WakeFlush);
        }
    }

    /// Somebody waits, and what is dirty here is in the way.
    pub(super) fn under_pressure(&mut self, effects: &mut Vec<Effect>) {
        if self.buffer.waiting().0 > 0 {
            self.wake_flush(effects);
        }
    }

    pub(super) fn wake_flush_when_due(&mut self, effects: &mut Vec<Effect>) {
        if !self.flush_woken && self.buffer.waiting().0 >= self.settings.flush_bytes {
            self.wake_flush(effects);
        }
    }
}

/// Where the blocks of a window lie now. Both lists are in block order.
fn locate(volume: VolumeId, changes: &[Change], updates: &[RunUpdate]) -> Vec<(BlockLocation, Bytes)> {
    let mut clean = Vec::with_capacity(changes.len());
    let mut places = Places(updates.iter().peekable());
    for change in changes {
        let Change::Data { block, contents } = change else { continue };
        let at = places.of(*block).and_then(|frame| BlockLocation::of(volume, &frame, *block));
        clean.extend(at.map(|at| (at, contents.clone())));
    }
    clean
}

/// Updates, to be asked for one block after another in rising order.
struct Places<'a>(Peekable<slice::Iter<'a, RunUpdate>>);

impl Places<'_> {
    /// The frame that holds a block now.
    fn of(&mut self, block: BlockIndex) -> Option<Frame> {
        while self.0.next_if(|update| update.start.0 + update.count <= block.0).is_some() {}
        self.0.peek().filter(|update| update.start <= block)?.frame
    }
}
