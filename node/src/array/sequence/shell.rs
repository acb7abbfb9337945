//! Performs what the sequence machine decides: objects first, then records in order, then the cursor.

use std::rc::Rc;

use futures_util::{TryStreamExt, stream};
use velum_protocol::{
    format::metadata::{CloudName, Command, ObjectRef},
    id::Seq,
};

use super::machine::{Effect, Input, Machine, Outcome};
use crate::{
    actor::{Handle, Shell},
    array::{context::VolumeContext, copies::CopyError, life},
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
    metadata::state::RecordEntry,
};

/// Objects on their way to one cloud side by side while it catches up.
const OBJECTS_AT_ONCE: usize = 4;

/// Called with the cloud that must be given a checkpoint.
pub(crate) type OnJump = Rc<dyn Fn(&CloudName)>;

/// Called with the last record at d2.
pub(crate) type OnDurable = Rc<dyn Fn(Seq)>;

/// The shell of one volume's sequence.
pub(crate) struct SequenceShell {
    context: VolumeContext,
    on_jump: OnJump,
    on_durable: OnDurable,
}

impl SequenceShell {
    pub(crate) fn new(context: VolumeContext, on_jump: OnJump, on_durable: OnDurable) -> Self {
        Self { context, on_jump, on_durable }
    }
}

impl Shell<Machine> for SequenceShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let context = self.context.clone();
        match effect {
            // Entered at once: what began before a cloud was closed ends before it starts over.
            Effect::Step { cloud, from, through } => match context.array.copies.enter(&cloud) {
                Some((visit, target)) => own.spawn(async move {
                    let outcome = step(&context, &target, from, through).await;
                    drop(visit);
                    Input::Stepped { cloud, outcome }
                }),
                None => own.call(Input::Stepped { cloud, outcome: Outcome::Failed { through: before(from) } }),
            },
            Effect::Move { cloud, seq } => match context.array.copies.enter(&cloud) {
                Some((visit, _)) => own.spawn(async move {
                    // While a cloud is visited it does not begin anew here.
                    let beginning = context.array.beginning(&cloud);
                    let (volume, epoch) = (context.volume, context.epoch);
                    let command = Command::AdvanceCursor { volume, epoch, cloud: cloud.clone(), beginning, seq };
                    let agreed = context.array.agree(command).await;
                    drop(visit);
                    match agreed {
                        Ok(_) => Input::Moved { cloud, seq },
                        Err(_) => Input::NotMoved { cloud },
                    }
                }),
                None => own.call(Input::NotMoved { cloud }),
            },
            Effect::Pause { cloud, pause } => own.after(&*context.array.env.clock, pause, Input::Retry { cloud }),
            Effect::Jump { cloud } => (self.on_jump)(&cloud),
            Effect::Durable(seq) => (self.on_durable)(seq),
        }
    }
}

/// What a cloud has when it lacks everything from `from` on.
fn before(from: Seq) -> Seq {
    Seq(from.0.saturating_sub(1))
}

/// Brings records `from..=through` to a cloud: first everything they name, then they themselves, one after the other. In the
/// end the place is looked at: what was stored in one that is not the cluster's any more does not count.
async fn step(context: &VolumeContext, cloud: &Cloud, from: Seq, through: Seq) -> Outcome {
    let nothing = before(from);
    // What is brought to a cloud for a volume that is over could come behind the sweep that retires it.
    let (false, Some(keys)) = (context.is_over(), context.keys()) else {
        return Outcome::Failed { through: nothing };
    };
    let Some(records) = records(context, from, through) else { return Outcome::Unreachable };
    let objects: Vec<ObjectRef> = records.iter().flat_map(|(_, record)| record.objects.clone()).collect();
    let brought = async {
        life::tell(&context.array, cloud).await?;
        bring_segments(context, &keys, cloud, &objects).await
    };
    if let Err(error) = brought.await {
        tracing::debug!(volume = %context.volume, cloud = cloud.name().0, %error, "the cloud lags");
        return if matches!(error, CopyError::Gone) {
            Outcome::Unreachable
        } else {
            Outcome::Failed { through: nothing }
        };
    }
    // What was brought there before may be gone.
    if context.array.is_behind(cloud.name()) {
        return Outcome::Failed { through: nothing };
    }
    let mut reached = nothing;
    for (seq, record) in records {
        if put_record(context, &keys, cloud, seq, &record).await.is_none() {
            break;
        }
        reached = seq;
    }
    if reached == nothing || context.array.copies.confirm(cloud).await.is_err() {
        return Outcome::Failed { through: nothing };
    }
    if reached == through { Outcome::Through(reached) } else { Outcome::Failed { through: reached } }
}

/// The records, or none when Raft does not keep the first of them any more.
fn records(context: &VolumeContext, from: Seq, through: Seq) -> Option<Vec<(Seq, RecordEntry)>> {
    let kept = context.state(|state| {
        let range = state.records.range(from..=through);
        range.map(|(seq, record)| (*seq, record.clone())).collect::<Vec<_>>()
    })?;
    let contiguous = kept.first().is_some_and(|(seq, _)| *seq == from)
        && kept.iter().zip(kept.iter().skip(1)).all(|((seq, _), (next, _))| seq.next() == *next);
    contiguous.then_some(kept)
}

async fn bring_segments(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    objects: &[ObjectRef],
) -> Result<(), CopyError> {
    stream::iter(objects.iter().map(Ok))
        .try_for_each_concurrent(OBJECTS_AT_ONCE, |object: &ObjectRef| async move {
            let id = keys.id(ObjectKind::Segment, object.incarnation, object.number.0);
            context.array.copies.bring(cloud, &id, object).await
        })
        .await
}

/// Stores one record; every attempt stores the same bytes.
async fn put_record(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    seq: Seq,
    record: &RecordEntry,
) -> Option<()> {
    let incarnation = keys.record_incarnation(seq, &record.record).or_else(|| {
        tracing::error!(volume = %context.volume, %seq, "a record in the metadata does not open");
        None
    })?;
    let id = keys.id(ObjectKind::Record, incarnation, seq.0);
    context.array.copies.put(cloud, &id, record.record.clone()).await.ok()
}
