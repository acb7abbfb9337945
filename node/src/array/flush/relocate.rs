//! Puts a compaction's step into the sequence: a record of its own with an empty window.
//!
//! The flush appends one record at a time, so while this one is on its way nothing strikes out what it moves.

use std::cell::RefCell;

use tokio::sync::oneshot;
use velum_protocol::{
    format::{
        metadata::{Command, ObjectRef},
        sequence::{Body, Link},
    },
    id::Seq,
};

use super::{
    machine::{Relocated, StoredSegment},
    shell::seal_record,
};
use crate::{
    array::{compact::moves::Moves, context::VolumeContext},
    metadata::{Rejection, state::Head},
    volume::messages,
};

/// What compaction and flush share of one step.
#[derive(Default)]
pub(crate) struct Relocation {
    /// What is to be moved; every record that is appended strikes out what it changes.
    pub(crate) moves: RefCell<Moves>,
    ready: RefCell<Option<Ready>>,
}

/// A step whose segment enough clouds hold.
struct Ready {
    segment: StoredSegment,
    grant: u64,
    answer: oneshot::Sender<bool>,
}

impl Relocation {
    /// Hands a stored segment over. The answer is true when the record is in the sequence; there is none when this owner is
    /// fenced.
    pub(crate) fn offer(&self, segment: StoredSegment, grant: u64) -> oneshot::Receiver<bool> {
        let (answer, outcome) = oneshot::channel();
        *self.ready.borrow_mut() = Some(Ready { segment, grant, answer });
        outcome
    }

    /// This owner is fenced: nobody takes what was offered.
    pub(crate) fn drop_offer(&self) {
        *self.ready.borrow_mut() = None;
    }
}

/// Appends the record of the step that was offered.
pub(crate) async fn run(context: &VolumeContext, on_appended: &dyn Fn(Seq)) -> Relocated {
    let offered = context.relocation.ready.borrow_mut().take();
    let Some(Ready { segment, grant, answer }) = offered else { return Relocated::GivenUp };
    let outcome = append(context, &segment, grant).await;
    match outcome {
        Relocated::Done { seq } => on_appended(seq),
        Relocated::GivenUp => give_up(context, &segment.object),
        Relocated::Fenced => {}
    }
    // Who has gone meanwhile does not need the answer.
    let _ = answer.send(matches!(outcome, Relocated::Done { .. }));
    outcome
}

/// Nothing refers to the segment and nothing ever will: known to the map without a run it is dead, and the next checkpoint
/// condemns it.
fn give_up(context: &VolumeContext, segment: &ObjectRef) {
    context.relocation.moves.take();
    context.port.with_map(&mut |map| map.add_segment(segment));
}

async fn append(context: &VolumeContext, segment: &StoredSegment, grant: u64) -> Relocated {
    let Some(head) = context.state(|state| state.head) else { return Relocated::Fenced };
    let updates = context.relocation.moves.borrow().updates(&segment.frames);
    if updates.is_empty() {
        return Relocated::GivenUp;
    }
    let body = Body { journal_chain: head.journal_chain, segments: vec![segment.object.clone()], updates };
    let link = Link { epoch: context.epoch, first: head.last.next(), last: head.last, prev_hash: head.chain };
    let seq = head.seq.next();
    let Some(record) = seal_record(context, link, seq, &body).await else { return Relocated::Fenced };
    let chain = record.hash;
    let command = Command::AppendSequence {
        volume: context.volume,
        epoch: context.epoch,
        grant,
        seq,
        prev_hash: head.chain,
        hash: chain,
        first: link.first,
        last: link.last,
        journal_chain: head.journal_chain,
        record: record.stored,
        objects: body.segments.clone(),
    };
    match context.array.agree(command).await {
        Ok(_) => {
            committed(context, segment.object.clone(), body);
            context.mapped.set(Head { seq, chain, epoch: context.epoch, ..head });
            Relocated::Done { seq }
        }
        Err(Rejection::NoGrant | Rejection::RecordsFull) => Relocated::GivenUp,
        Err(rejection) => {
            tracing::error!(volume = %context.volume, %seq, %rejection, "the volume's sequence is closed to this node");
            Relocated::Fenced
        }
    }
}

/// The volume takes the record in, at once and in order.
fn committed(context: &VolumeContext, segment: ObjectRef, body: Body) {
    let moved = context.relocation.moves.take().into_moved().collect();
    context.port.relocated(messages::Relocated { segment, updates: body.updates, moved });
}
