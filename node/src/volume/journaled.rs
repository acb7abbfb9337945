//! Positions and the durability they have reached: who is acked when, barriers, and the end of it all when the journal fails.
//!
//! Three marks move up the positions of a volume: the last one given, the last one submitted (d0), the last one synced (d1).
//! A write is acked when the submitted mark has passed it, with FUA when the synced one has. A barrier waits for the synced
//! mark to reach where the submitted mark stood when the barrier came: every write acked before it, on whatever session,
//! lies below. A read that saw a record above the submitted mark waits for the mark too, or a crash could take back what a
//! guest has already seen.
//!
//! At most one sync of a volume is under way; whoever comes meanwhile shares the next one.

use std::collections::VecDeque;

use velum_protocol::id::{Epoch, Hash, Jseq};

use super::{
    machine::{Effect, VolumeMachine},
    messages::{Origin, Outcome, Refusal, Reply},
};
use crate::env::Instant;

/// Appended bytes at which the batch is submitted although the burst goes on: bounds the journal's batch in memory.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Changes at which the active window is cut off by itself (16 MiB of blocks). Keeps a window's sequence record within its
/// 512 KiB when the flusher cannot keep up.
const WINDOW_CHANGES_MAX: usize = 4096;

/// Marks and who waits for them.
#[derive(Debug)]
pub(super) struct Journaled {
    pub(super) submitted: Jseq,
    pub(super) synced: Jseq,
    pub(super) poisoned: bool,
    /// The last record sealed; what follows it in the buffer is still to be.
    sealed: Jseq,
    /// The chain at `sealed`.
    chain: Hash,
    /// A flush came for a window that is not at d0 yet.
    flush_waits: bool,
    /// Answers to reads that wait for the next look whether this node is the owner still.
    unconfirmed: Vec<Reply>,
    /// Those that the look under way is for.
    confirming: Vec<Reply>,
    /// Where each epoch's positions begin; the last is the owner's.
    epochs: Vec<(Epoch, Jseq)>,
    /// The last position a submit was asked for.
    asked: Jseq,
    /// Bytes appended since.
    appended_bytes: u64,
    /// In the order they came.
    acks: VecDeque<Ack>,
    /// Wait for the synced mark, in rising order.
    barriers: VecDeque<(Jseq, Origin)>,
    syncing: bool,
}

/// A reply that waits for the submitted mark.
#[derive(Debug)]
struct Ack {
    jseq: Jseq,
    what: Acked,
}

#[derive(Debug)]
enum Acked {
    Write { origin: Origin, fua: bool },
    Read(Reply),
}

impl Journaled {
    pub(super) fn new(epoch: Epoch, last: Jseq, chain: Hash, mut epochs: Vec<(Epoch, Jseq)>) -> Self {
        epochs.push((epoch, last.next()));
        Self {
            submitted: last,
            synced: last,
            poisoned: false,
            sealed: last,
            chain,
            flush_waits: false,
            unconfirmed: Vec::new(),
            confirming: Vec::new(),
            epochs,
            asked: last,
            appended_bytes: 0,
            acks: VecDeque::new(),
            barriers: VecDeque::new(),
            syncing: false,
        }
    }

    /// Records up to `last` were found in the journal at start: at d0, and not known to be at d1.
    pub(super) fn found(&mut self, last: Jseq, chain: Hash) {
        (self.submitted, self.asked, self.sealed, self.chain) = (last, last, last, chain);
        if let Some(own) = self.epochs.last_mut() {
            own.1 = last.next();
        }
    }

    /// The epoch the record at `jseq` was written in.
    pub(super) fn epoch_of(&self, jseq: Jseq) -> Option<Epoch> {
        self.epochs.iter().rev().find(|(_, first)| *first <= jseq).map(|(epoch, _)| *epoch)
    }

    pub(super) fn appended(&mut self, bytes: u64) {
        self.appended_bytes += bytes;
    }
}

impl VolumeMachine {
    /// A write has its last position and is acked when that is journaled as it asks.
    pub(super) fn ack_write(&mut self, jseq: Jseq, origin: Origin, fua: bool) {
        self.journaled.acks.push_back(Ack { jseq, what: Acked::Write { origin, fua } });
    }

    /// A read is answered, now or when what it saw of the buffer is at d0.
    pub(super) fn ack_read(
        &mut self,
        newest: Option<Jseq>,
        origin: Origin,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        match newest {
            Some(jseq) if jseq > self.journaled.submitted => {
                if self.journaled.poisoned {
                    return self.refuse(origin, Refusal::Failed, effects);
                }
                self.journaled.acks.push_back(Ack { jseq, what: Acked::Read(Reply { origin, outcome }) });
            }
            Some(_) | None => self.answer_confirmed(Reply { origin, outcome }, effects),
        }
    }

    /// Answers what is true of its owner only: at once where nobody else can own the volume, else when it is known that nobody does.
    pub(super) fn answer_confirmed(&mut self, reply: Reply, effects: &mut Vec<Effect>) {
        if self.settings.confirm_reads {
            self.journaled.unconfirmed.push(reply);
        } else {
            self.reply(reply.origin, reply.outcome, effects);
        }
    }

    /// This node was the owner at some time after the look began.
    pub(super) fn confirmed(&mut self, effects: &mut Vec<Effect>) {
        for Reply { origin, outcome } in std::mem::take(&mut self.journaled.confirming) {
            self.reply(origin, outcome, effects);
        }
    }

    pub(super) fn barrier(&mut self, origin: Origin, effects: &mut Vec<Effect>) {
        let needed = self.journaled.submitted;
        if self.journaled.poisoned {
            self.refuse(origin, Refusal::Failed, effects);
        } else if needed <= self.journaled.synced {
            self.reply(origin, Outcome::Done, effects);
        } else {
            self.journaled.barriers.push_back((needed, origin));
        }
    }

    pub(super) fn submitted(&mut self, through: Jseq, chain: Hash, effects: &mut Vec<Effect>) {
        if self.journaled.poisoned || through <= self.journaled.submitted {
            return;
        }
        self.journaled.submitted = through;
        if through >= self.journaled.sealed {
            (self.journaled.sealed, self.journaled.chain) = (through, chain);
        }
        while let Some(ack) = self.journaled.acks.pop_front_if(|ack| ack.jseq <= through) {
            match ack.what {
                Acked::Write { origin, fua: false } => self.reply(origin, Outcome::Done, effects),
                Acked::Write { origin, fua: true } => self.journaled.barriers.push_back((ack.jseq, origin)),
                Acked::Read(reply) => self.answer_confirmed(reply, effects),
            }
        }
        self.cut_when_full();
        if self.journaled.flush_waits && self.buffer.has_cut(through) {
            self.journaled.flush_waits = false;
            self.wake_flush(effects);
        }
    }

    /// Records are sealed and on their way to d0; the chain at the last of them is known.
    pub(super) fn sealed(&mut self, through: Jseq, chain: Hash) {
        (self.journaled.sealed, self.journaled.chain) = (through, chain);
        self.cut_when_full();
    }

    /// The oldest window that was cut off, all of it is at d0, and no flush has it.
    pub(super) fn take_window(&mut self) -> Option<std::sync::Arc<super::messages::Window>> {
        let window = self.buffer.take_cut(self.journaled.submitted);
        self.journaled.flush_waits = window.is_none();
        window
    }

    /// Cuts the active window off when it has grown to what one flush should carry.
    pub(super) fn cut_when_full(&mut self) {
        if self.buffer.active_changes() >= WINDOW_CHANGES_MAX {
            self.cut_window();
        }
    }

    pub(super) fn synced(&mut self, through: Jseq, effects: &mut Vec<Effect>) {
        self.journaled.syncing = false;
        if self.journaled.poisoned {
            return;
        }
        self.journaled.synced = self.journaled.synced.max(through);
        let synced = self.journaled.synced;
        while let Some((_, origin)) = self.journaled.barriers.pop_front_if(|(needed, _)| *needed <= synced) {
            self.reply(origin, Outcome::Done, effects);
        }
    }

    /// The journal failed: what was acked stays true, nothing more is acked, and whatever waits hears so.
    pub(super) fn poison(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.journaled.poisoned, true) {
            return;
        }
        for ack in std::mem::take(&mut self.journaled.acks) {
            let (Acked::Write { origin, .. } | Acked::Read(Reply { origin, .. })) = ack.what;
            self.refuse(origin, Refusal::Failed, effects);
        }
        for (_, origin) in std::mem::take(&mut self.journaled.barriers) {
            self.refuse(origin, Refusal::Failed, effects);
        }
        self.drop_writes(now, effects, |_| Some(Refusal::Failed));
    }

    /// Somebody else owns the volume: nothing is answered, acked or flushed here any more, and what was held is let go.
    pub(super) fn abandon(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        (self.closing, self.journaled.poisoned) = (true, true);
        self.journaled.acks.clear();
        self.journaled.barriers.clear();
        self.journaled.unconfirmed.clear();
        self.journaled.confirming.clear();
        // Sessions first, so that nothing below answers them.
        for session in std::mem::take(&mut self.sessions).into_keys() {
            self.gathering.forget_session(session);
        }
        self.drop_writes(now, effects, |_| Some(Refusal::Closing));
        let bytes = self.buffer.forget();
        self.exposed.clear();
        self.give_back(bytes);
    }

    /// The end of a step: asks for the submit and the sync that somebody waits for. Within a burst both wait for its end,
    /// so that one write of the journal carries all of it.
    pub(super) fn settle(&mut self, in_burst: bool, effects: &mut Vec<Effect>) {
        let last = self.buffer.last();
        let journaled = &mut self.journaled;
        if !in_burst && journaled.confirming.is_empty() && !journaled.unconfirmed.is_empty() {
            journaled.confirming = std::mem::take(&mut journaled.unconfirmed);
            let reads = u64::try_from(journaled.confirming.len()).expect("a length in memory fits 64 bits");
            effects.push(Effect::Confirm { reads });
        }
        if journaled.poisoned || (in_burst && journaled.appended_bytes < BATCH_BYTES_MAX) {
            return;
        }
        if last > journaled.asked {
            (journaled.asked, journaled.appended_bytes) = (last, 0);
            effects.push(Effect::Submit { through: last });
        }
        if !in_burst && !journaled.syncing && !journaled.barriers.is_empty() {
            journaled.syncing = true;
            effects.push(Effect::Sync { through: last });
        }
        if !in_burst && self.passed > 0 {
            effects.push(Effect::Passed { requests: std::mem::take(&mut self.passed) });
        }
    }

    /// Cuts the active window off, if all of it is sealed. It is handed out when it is at d0.
    pub(super) fn cut_window(&mut self) {
        let (last, since) = (self.buffer.last(), self.buffer.active_since());
        if self.journaled.sealed == last
            && let Some(since) = since
            && self.buffer.cut(self.journaled.chain)
        {
            self.exposed.push_back((last, since));
        }
    }
}
