//! Reads of what is agreed: the leader names an index after it has made sure that it still leads, and the read may look
//! once this node has applied that far.
//!
//! raft-rs drops the question silently when there is no leader, or when the leader has not committed anything in its term.
//! So each question is asked again under a new name, until it is answered or given up.

use std::collections::BTreeMap;

use raft::ReadState;

use super::{Effect, Machine, ProposeError};

/// Ticks before a question is asked again: half a second.
const REPEAT_TICKS: u32 = 10;

/// How often it is asked.
const TRIES_MAX: u32 = 20;

#[derive(Clone, Copy, Debug)]
struct Asked {
    ticket: u64,
    ticks: u32,
    tries: u32,
}

/// Reads under way.
#[derive(Debug)]
pub(super) struct Reads {
    /// Node and life: answers to the questions of another life are not ours.
    prefix: [u8; 16],
    next: u64,
    asked: BTreeMap<u64, Asked>,
    /// By the index that has to be applied.
    waiting: BTreeMap<(u64, u64), u64>,
}

impl Reads {
    pub(super) fn new(node: u64, nonce: u64) -> Self {
        let mut prefix = [0; 16];
        let bytes = node.to_le_bytes().into_iter().chain(nonce.to_le_bytes());
        prefix.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Self { prefix, next: 0, asked: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    fn name(&self, number: u64) -> Vec<u8> {
        [&self.prefix[..], &number.to_le_bytes()].concat()
    }

    fn number(&self, name: &[u8]) -> Option<u64> {
        let number = name.strip_prefix(&self.prefix[..])?;
        number.try_into().ok().map(u64::from_le_bytes)
    }

    /// Everybody who waits.
    pub(super) fn take(&mut self) -> Vec<u64> {
        let asked = std::mem::take(&mut self.asked).into_values().map(|asked| asked.ticket);
        asked.chain(std::mem::take(&mut self.waiting).into_values()).collect()
    }
}

impl Machine {
    pub(super) fn read(&mut self, ticket: u64) {
        self.ask(Asked { ticket, ticks: 0, tries: 1 });
    }

    fn ask(&mut self, asked: Asked) {
        self.reads.next += 1;
        let number = self.reads.next;
        self.reads.asked.insert(number, asked);
        if self.install.is_none() {
            self.raft.read_index(self.reads.name(number));
        }
    }

    /// Raft has made sure of some reads' indexes.
    pub(super) fn take_read_states(&mut self, states: Vec<ReadState>) {
        for ReadState { index, request_ctx } in states {
            let number = self.reads.number(&request_ctx);
            if let Some(asked) = number.and_then(|number| self.reads.asked.remove(&number)) {
                self.reads.waiting.insert((index, asked.ticket), asked.ticket);
            }
        }
    }

    /// Answers the reads whose index is applied.
    pub(super) fn answer_reads(&mut self, effects: &mut Vec<Effect>) {
        let later = self.reads.waiting.split_off(&(self.applied + 1, 0));
        let answered = std::mem::replace(&mut self.reads.waiting, later);
        effects.extend(answered.into_values().map(|ticket| Effect::Answer { ticket }));
    }

    /// Asks again what was not answered in time.
    pub(super) fn repeat_reads(&mut self, effects: &mut Vec<Effect>) {
        let mut late = Vec::new();
        self.reads.asked.retain(|_, asked| {
            asked.ticks += 1;
            let is_late = asked.ticks >= REPEAT_TICKS;
            late.extend(is_late.then_some(*asked));
            !is_late
        });
        for Asked { ticket, tries, .. } in late {
            if tries < TRIES_MAX {
                self.ask(Asked { ticket, ticks: 0, tries: tries + 1 });
            } else {
                let leader = self.leader();
                effects.push(Effect::Refuse { ticket, error: ProposeError::NotLeader { leader } });
            }
        }
    }
}
