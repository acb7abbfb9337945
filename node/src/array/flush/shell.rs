//! Performs what the flush machine decides: asks, seals, stores, proposes.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;
use velum_protocol::{
    format::{
        metadata::Command,
        sequence::{Body, Link, RECORD_BYTES_MAX},
    },
    id::{Hash, ObjectNumber, Seq},
};

use super::{
    cut, grant,
    machine::{self, Appended, Demand, Effect, Input, Job, LOOK_INTERVAL, Machine, Phase, StoredSegment},
    relocate,
};
use crate::{
    actor::{Handle, Shell},
    array::context::VolumeContext,
    env::{self, compute},
    keyring::{FramePlan, KeySet, ObjectKind, SealedRecord, SealedSegment},
    metadata::{Rejection, state::Head},
    metrics::{FlushPhase, WorkOutcome},
    volume::messages::{Committed, Window},
};

/// Segments of one window that are sealed and not yet stored: bounds what sealing takes beside the window itself.
const SEGMENTS_AT_ONCE: usize = 4;

/// Pause before gate 3 is asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Pause before the dirty status is looked at again when there was something that could not be cut off yet.
const SOON: Duration = Duration::from_millis(10);

/// Who waits for d2.
#[derive(Default)]
pub(crate) struct Demands {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<Demand, oneshot::Sender<bool>>>,
}

impl Demands {
    /// A place to wait.
    pub(crate) fn enter(&self) -> (Demand, oneshot::Receiver<bool>) {
        let demand = Demand(self.next.replace(self.next.get() + 1));
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(demand, sender);
        (demand, receiver)
    }

    fn answer(&self, demand: Demand, durable: bool) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&demand) {
            // Who has gone meanwhile does not need the answer.
            let _ = sender.send(durable);
        }
    }
}

/// What becomes of a record that is in the sequence.
pub(crate) type OnAppended = Rc<dyn Fn(Seq)>;

/// Told where the windows stand whenever that changes, and whether this owner is fenced.
pub(crate) type OnPhases = Rc<dyn Fn(Vec<Phase>, bool)>;

/// The shell of one volume's flush.
pub(crate) struct FlushShell {
    context: VolumeContext,
    demands: Rc<Demands>,
    on_appended: OnAppended,
    on_phases: OnPhases,
}

impl FlushShell {
    pub(crate) fn new(
        context: VolumeContext,
        demands: Rc<Demands>,
        on_appended: OnAppended,
        on_phases: OnPhases,
    ) -> Self {
        Self { context, demands, on_appended, on_phases }
    }

    fn store(&self, job: Job, window: Arc<Window>, own: &Handle<Input>) {
        let context = self.context.clone();
        own.spawn(async move {
            match store(&context, &window).await {
                Some(segments) => Input::Stored { job, segments },
                None => Input::Granted { job, outcome: machine::Granted::Fenced },
            }
        });
    }

    fn append(&self, append: Append, own: &Handle<Input>) {
        let (context, on_appended) = (self.context.clone(), Rc::clone(&self.on_appended));
        let told = own.clone();
        own.spawn(async move {
            let job = append.job;
            let outcome = append.run(&context, &told).await;
            if let Appended::Done { seq } = outcome {
                on_appended(seq);
            }
            Input::Appended { job, outcome }
        });
    }
}

impl Shell<Machine> for FlushShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let clock = &*self.context.array.env.clock;
        match effect {
            Effect::Look => own.call(Input::Looked(self.context.port.dirty())),
            Effect::LookSoon => own.after(clock, SOON, Input::LookSoon),
            Effect::Freeze => own.call(Input::Frozen(self.context.port.freeze())),
            Effect::Ask { job } => {
                let context = self.context.clone();
                own.spawn(async move {
                    let began = context.array.env.clock.now();
                    let outcome = grant::ask(&context).await;
                    observe(&context, FlushPhase::Grant, began);
                    Input::Granted { job, outcome }
                });
            }
            Effect::Pause { job } => own.after(clock, REFUSED_PAUSE, Input::AskAgain { job }),
            Effect::Store { job, window } => self.store(job, window, own),
            Effect::Append { job, window, segments, record, grant } => {
                self.append(Append { job, window, segments, record, grant }, own);
            }
            Effect::Relocate => {
                let (context, on_appended) = (self.context.clone(), Rc::clone(&self.on_appended));
                own.spawn(async move { Input::Relocated { outcome: relocate::run(&context, &*on_appended).await } });
            }
            Effect::DropRelocation => self.context.relocation.drop_offer(),
            Effect::Answer { demand, durable } => self.demands.answer(demand, durable),
            Effect::Show { phases, fenced } => (self.on_phases)(phases, fenced),
            Effect::ArmTick if self.context.is_over() => {}
            Effect::ArmTick => own.after(clock, LOOK_INTERVAL, Input::Tick),
        }
    }
}

fn observe(context: &VolumeContext, phase: FlushPhase, began: env::Instant) {
    let took = context.array.env.clock.now().since(began);
    context.array.metrics.flush.seconds.of(phase).observe(took.as_secs_f64());
}

/// Seals a window into segments and stores them; `None` when this owner may not have object numbers any more.
async fn store(context: &VolumeContext, window: &Window) -> Option<Vec<StoredSegment>> {
    let keys = context.keys()?;
    let plans = cut::segments(window);
    let count = u64::try_from(plans.len()).ok()?;
    let numbers = context.numbers.take(&context.array, count).await.ok()?;
    let mut segments = stream::iter(plans.into_iter().zip(numbers))
        .map(|(plan, number)| store_segment(context, keys.clone(), plan, number))
        .buffered(SEGMENTS_AT_ONCE);
    let mut stored = Vec::new();
    while let Some(segment) = segments.next().await {
        stored.push(segment?);
    }
    Some(stored)
}

async fn store_segment(
    context: &VolumeContext,
    keys: KeySet,
    plan: Vec<FramePlan>,
    number: ObjectNumber,
) -> Option<StoredSegment> {
    let array = &context.array;
    let bytes: u64 = plan.iter().flat_map(|frame| &frame.blocks).map(|block| block.len() as u64).sum();
    let began = array.env.clock.now();
    let sealed = seal_segment(context, keys.clone(), plan, number).await?;
    observe(context, FlushPhase::Seal, began);
    let began = array.env.clock.now();
    array.copies.store(keys.id(ObjectKind::Segment, array.incarnation(), number.0), sealed.stored).await;
    observe(context, FlushPhase::Put, began);
    array.metrics.flush.bytes.inc_by(bytes);
    array.metrics.flush.stored_bytes.inc_by(sealed.object.bytes);
    Some(StoredSegment { object: sealed.object, frames: sealed.frames })
}

/// Seals frames into a segment on the compute pool; `None` when the volume has no keys.
pub(crate) async fn seal_segment(
    context: &VolumeContext,
    keys: KeySet,
    plan: Vec<FramePlan>,
    number: ObjectNumber,
) -> Option<SealedSegment> {
    let array = &context.array;
    let (name, epoch) = ((array.incarnation(), number), context.epoch);
    let fresh = array.env.entropy.fresh32();
    let sealing = compute::call_background(&*array.env.compute, move || {
        keys.newest().map(|newest| keys.seal_segment(&fresh, newest, epoch, name, &plan))
    });
    sealing.await
}

/// One attempt to put a stored window into the sequence.
struct Append {
    job: Job,
    window: Arc<Window>,
    segments: Vec<StoredSegment>,
    record: Option<SealedRecord>,
    grant: u64,
}

impl Append {
    async fn run(self, context: &VolumeContext, own: &Handle<Input>) -> Appended {
        let began = context.array.env.clock.now();
        let Some(head) = context.state(|state| state.head) else { return Appended::Fenced };
        let frames = self.segments.iter().flat_map(|segment| segment.frames.iter().copied());
        let body = Body {
            journal_chain: self.window.chain,
            segments: self.segments.iter().map(|segment| segment.object.clone()).collect(),
            updates: cut::updates(&self.window, frames),
        };
        let seq = head.seq.next();
        let (first, last) = (self.window.first, self.window.last);
        let link = Link { epoch: context.epoch, first, last, prev_hash: head.chain };
        let record = match self.record {
            Some(record) => record,
            None => match seal_record(context, link, seq, &body).await {
                Some(record) => record,
                None => return Appended::Fenced,
            },
        };
        // The bytes are fixed before they are proposed: another attempt proposes the same ones.
        own.call(Input::RecordSealed { job: self.job, record: record.clone() });
        let hash = record.hash;
        let command = Command::AppendSequence {
            volume: context.volume,
            epoch: context.epoch,
            grant: self.grant,
            seq,
            prev_hash: head.chain,
            hash,
            first,
            last,
            journal_chain: self.window.chain,
            record: record.stored,
            objects: body.segments.clone(),
        };
        let agreed = context.array.agree(command).await;
        observe(context, FlushPhase::Commit, began);
        match agreed {
            Ok(_) => {
                let chain = hash;
                let journal_chain = self.window.chain;
                committed(context, Head { seq, chain, last, journal_chain, epoch: context.epoch }, body);
                Appended::Done { seq }
            }
            Err(Rejection::NoGrant) => Appended::GrantGone,
            Err(Rejection::RecordsFull) => {
                tracing::warn!(volume = %context.volume, %seq, "the metadata has no room for the record until checkpoints are made");
                Appended::NoRoom
            }
            Err(rejection) => fenced(context, seq, hash, &rejection),
        }
    }
}

/// Seals a record on the compute pool; `None` when the volume is gone.
pub(crate) async fn seal_record(context: &VolumeContext, link: Link, seq: Seq, body: &Body) -> Option<SealedRecord> {
    let keys = context.keys()?;
    let place = (context.array.incarnation(), seq);
    let fresh = context.array.env.entropy.fresh32();
    let body = body.clone();
    let sealing = compute::call_background(&*context.array.env.compute, move || {
        keys.newest().map(|newest| keys.seal_record(&fresh, newest, place, &link, &body))
    });
    let record = sealing.await?;
    assert!(record.stored.len() <= RECORD_BYTES_MAX, "the volume cuts windows whose records are short enough");
    Some(record)
}

/// The volume takes the record in, at once and in order.
fn committed(context: &VolumeContext, head: Head, body: Body) {
    let Body { segments, updates, .. } = body;
    context.relocation.moves.borrow_mut().strike(&updates);
    context.port.committed(Committed { seq: head.seq, last: head.last, segments, updates });
    context.mapped.set(head);
    context.array.metrics.flush.windows.of(WorkOutcome::Done).inc();
}

/// Somebody else owns the volume, or it is deleted.
fn fenced(context: &VolumeContext, seq: Seq, hash: Hash, rejection: &Rejection) -> Appended {
    context.array.metrics.flush.windows.of(WorkOutcome::Failed).inc();
    tracing::error!(volume = %context.volume, %seq, %hash, %rejection, "the volume's sequence is closed to this node");
    Appended::Fenced
}
