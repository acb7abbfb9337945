//! Gate 2 as every request meets it: bounds, the ACL's rights and the permits, for each block.

use std::rc::Rc;

use velum_protocol::{
    format::metadata::Right,
    id::{BlockCount, BlockIndex, SessionId},
};

use super::{
    blocks::Blocks,
    machine::{Effect, Session, VolumeMachine},
    messages::{Origin, Outcome, Refusal, Reply},
};
use crate::{
    audit::ByteRange,
    cache::gate::{Access, Decision},
};

impl VolumeMachine {
    /// Bounds and gate 2, for every request alike: `Some(range)` of blocks to go on with, `None` when it was answered here.
    pub(super) fn admit_range(
        &mut self,
        origin: Origin,
        bytes: ByteRange,
        right: Right,
        effects: &mut Vec<Effect>,
    ) -> Option<Blocks> {
        let end = bytes.offset.checked_add(bytes.length).filter(|end| *end <= self.size_bytes());
        if end.is_none() {
            self.deny(origin, Refusal::OutOfRange, effects);
            return None;
        }
        if bytes.length == 0 {
            self.reply(origin, Outcome::Done, effects);
            return None;
        }
        let blocks = Blocks::of(bytes);
        if !self.judge(origin.session, blocks, bytes, right, effects) {
            self.deny(origin, Refusal::NotAllowed, effects);
            return None;
        }
        self.passed += 1;
        Some(blocks)
    }

    /// Says no for a reason that another owner may not have any more: as a read, it is answered when it is known that nobody owns the
    /// volume after this node.
    pub(super) fn deny(&mut self, origin: Origin, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.answer_confirmed(Reply { origin, outcome: Outcome::Refused(refusal) }, effects);
    }

    /// Asks gate 2; a refusal leaves its one audit record here.
    pub(super) fn judge(
        &self,
        session: SessionId,
        blocks: Blocks,
        bytes: ByteRange,
        right: Right,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(Session { principal, attachment, .. }) = self.sessions.get(&session) else { return false };
        let access = Access { first: BlockIndex(blocks.first), count: BlockCount(blocks.count), right };
        match (self.gate.judge(principal, access), self.permits.judge(*attachment, access)) {
            (Decision::Allowed, Decision::Allowed) => true,
            _ => {
                effects.push(Effect::Refused { principal: Rc::clone(principal), right, range: bytes });
                false
            }
        }
    }
}
