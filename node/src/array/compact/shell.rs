//! Performs what the compaction machine decides: reads, seals and stores, and has the flush append the record.

use std::{cell::Cell, collections::BTreeSet, rc::Rc};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use velum_protocol::{
    format::{location::Frame, metadata::ObjectRef, page::UsageIndex},
    id::{BLOCK_BYTES, BLOCK_LEN, Seq},
};

use super::machine::{Effect, Holdings, Input, Machine, Mark, Name, Outcome, Survey};
use crate::{
    actor::{Handle, Shell},
    array::{
        closure::{self, ClosureError},
        context::VolumeContext,
        copies::CopyError,
        flush::{
            grant,
            machine::{self as flush, Granted, StoredSegment},
            shell::seal_segment,
        },
    },
    env::compute,
    extent::{ExtentMap, MapError, PageNeeded},
    keyring::{KeySet, ObjectFault, ObjectKind},
    metadata::Rejection,
    metrics::WorkOutcome,
};

/// Segments on their way here at once: the next one is fetched while one is opened.
const SEGMENTS_AT_ONCE: usize = 2;

/// Frames looked up in one go, so that a step never keeps guests waiting: half a millisecond.
const FRAMES_AT_ONCE: usize = 256;

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// A page of the map could not be read.
    #[error(transparent)]
    Page(#[from] ClosureError),
    /// A page does not fit the map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A segment could not be read.
    #[error("segment {} cannot be read: {error}", .segment.number)]
    Copy {
        /// Which.
        segment: ObjectRef,
        /// Why.
        error: CopyError,
    },
    /// A segment has the right hash and does not open.
    #[error("segment {} has the bytes that were stored and does not open: {fault}", .segment.number)]
    Fault {
        /// Which.
        segment: ObjectRef,
        /// What is wrong.
        fault: ObjectFault,
    },
    /// No object number any more.
    #[error(transparent)]
    Number(#[from] Rejection),
    /// Gate 3 said no.
    #[error("gate 3 does not let the volume be flushed now")]
    Refused,
    /// The flush could not append the record.
    #[error("what was moved was overwritten, or its grant was taken back")]
    GivenUp,
    /// The volume, or this node's right to it, is gone.
    #[error("the volume is not flushed by this node any more")]
    Over,
}

/// Tells the volume's flush something.
pub(crate) type TellFlush = Rc<dyn Fn(flush::Input)>;

/// The shell of one volume's compaction.
pub(crate) struct CompactShell {
    context: VolumeContext,
    tell_flush: TellFlush,
    /// What the last survey found.
    holdings: Rc<Cell<Option<Holdings>>>,
}

impl CompactShell {
    pub(crate) fn new(context: VolumeContext, tell_flush: TellFlush, holdings: Rc<Cell<Option<Holdings>>>) -> Self {
        Self { context, tell_flush, holdings }
    }

    fn mark(&self) -> Mark {
        let mark = self.context.state(|state| Mark {
            seq: state.head.seq,
            checkpoint: state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number),
        });
        mark.unwrap_or(Mark { seq: Seq(0), checkpoint: 0 })
    }
}

impl Shell<Machine> for CompactShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let context = self.context.clone();
        match effect {
            Effect::Look => own.call(Input::Looked(self.mark())),
            Effect::Survey(except) => {
                let holdings = Rc::clone(&self.holdings);
                own.spawn(async move {
                    let survey = survey(&context, &except).await;
                    match &survey {
                        Ok(survey) => holdings.set(Some(survey.holdings)),
                        Err(error) => tracing::debug!(volume = %context.volume, %error, "no look at the segments"),
                    }
                    Input::Surveyed(survey.ok())
                });
            }
            Effect::Step(segments) => {
                let tell_flush = Rc::clone(&self.tell_flush);
                own.spawn(async move {
                    let outcome = step(&context, &*tell_flush, segments).await;
                    Input::Stepped { outcome, pressed: context.port.dirty().short }
                });
            }
            Effect::Arm(_) if context.is_over() => {}
            Effect::Arm(pause) => own.after(&*context.array.env.clock, pause, Input::Tick),
        }
    }
}

/// Looks at every segment of the volume but some, a page of their counts at a time.
async fn survey(context: &VolumeContext, except: &BTreeSet<Name>) -> Result<Survey, StepError> {
    let mut survey = Survey::default();
    let mut pages: Vec<UsageIndex> = Vec::new();
    context.port.with_map(&mut |map| pages.extend(map.usage_pages()));
    for page in pages {
        for segment in look(context, &mut |map| map.segments_in(page)).await? {
            if !except.contains(&(segment.object.incarnation, segment.object.number)) {
                survey.add(segment);
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(survey)
}

/// Asks the map until it has every page that the answer needs.
async fn look<T>(
    context: &VolumeContext,
    ask: &mut dyn FnMut(&mut ExtentMap) -> Result<T, PageNeeded>,
) -> Result<T, StepError> {
    loop {
        let mut answer = None;
        context.port.with_map(&mut |map| answer = Some(ask(map)));
        match answer.expect("a port lends the map once per call") {
            Ok(answer) => return Ok(answer),
            Err(PageNeeded(page)) => {
                let keys = context.keys().ok_or(StepError::Over)?;
                let payload = closure::read_page_bytes(&context.array.copies, &keys, &page).await?;
                let mut loaded = Ok(());
                context.port.with_map(&mut |map| loaded = map.page_loaded(&page, &payload));
                loaded?;
            }
        }
    }
}

/// Empties segments, one volume of the node at a time.
async fn step(context: &VolumeContext, tell_flush: &dyn Fn(flush::Input), segments: Vec<ObjectRef>) -> Outcome {
    let _turn = context.array.compacting.lock().await;
    let metrics = &context.array.metrics.compact;
    let moved = move_out(context, tell_flush, segments).await;
    context.relocation.moves.take();
    match moved {
        Ok(()) => {
            metrics.steps.of(WorkOutcome::Done).inc();
            Outcome::Done
        }
        Err(error) => {
            metrics.steps.of(WorkOutcome::Failed).inc();
            tracing::debug!(volume = %context.volume, %error, "nothing was compacted; it is tried again");
            Outcome::Failed
        }
    }
}

/// Moves what is live in `segments` into a new one.
async fn move_out(
    context: &VolumeContext,
    tell_flush: &dyn Fn(flush::Input),
    segments: Vec<ObjectRef>,
) -> Result<(), StepError> {
    let keys = context.keys().ok_or(StepError::Over)?;
    read(context, &keys, segments).await?;
    if context.relocation.moves.borrow().is_empty() {
        return Ok(());
    }
    // Nothing leaves the node before gate 3 has let it through.
    let Granted::Allowed(grant) = grant::ask(context).await else { return Err(StepError::Refused) };
    let plan = context.relocation.moves.borrow().plan();
    let blocks: usize = plan.iter().map(|frame| frame.blocks.len()).sum();
    if blocks == 0 {
        return Ok(());
    }
    let number = context.numbers.take(&context.array, 1).await?.pop().ok_or(StepError::Over)?;
    // The keys may be of a newer epoch by now.
    let keys = context.keys().ok_or(StepError::Over)?;
    let sealed = seal_segment(context, keys.clone(), plan, number).await.ok_or(StepError::Over)?;
    let id = keys.id(ObjectKind::Segment, sealed.object.incarnation, number.0);
    context.array.copies.store(id, sealed.stored).await;
    let metrics = &context.array.metrics.compact;
    metrics.moved_bytes.inc_by(u64::try_from(blocks).unwrap_or(u64::MAX).saturating_mul(BLOCK_BYTES));
    metrics.stored_bytes.inc_by(sealed.object.bytes);
    let segment = StoredSegment { object: sealed.object, frames: sealed.frames };
    let appended = context.relocation.offer(segment, grant);
    tell_flush(flush::Input::RelocationOffered);
    match appended.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(StepError::GivenUp),
        Err(_) => Err(StepError::Over),
    }
}

/// Reads what is live in `segments` and notes where it was found. No request is left alone while something else is waited for:
/// it would keep its place in the cloud's window, which is a single one when the cloud is away, and what is waited for
/// may need that very place.
async fn read(context: &VolumeContext, keys: &KeySet, segments: Vec<ObjectRef>) -> Result<(), StepError> {
    stream::iter(segments.into_iter().map(Ok))
        .try_for_each_concurrent(SEGMENTS_AT_ONCE, |segment| async move {
            let id = keys.id(ObjectKind::Segment, segment.incarnation, segment.number.0);
            match context.array.copies.read(&id, &segment, None).await {
                Ok(stored) => {
                    context.array.metrics.compact.read_bytes.inc_by(segment.bytes);
                    read_segment(context, keys, &segment, stored).await
                }
                Err(error) => Err(StepError::Copy { segment, error }),
            }
        })
        .await
}

async fn read_segment(
    context: &VolumeContext,
    keys: &KeySet,
    segment: &ObjectRef,
    stored: Bytes,
) -> Result<(), StepError> {
    let failed = |fault| StepError::Fault { segment: segment.clone(), fault };
    let name = (segment.incarnation, segment.number);
    let opening = compute::call_background(&*context.array.env.compute, {
        let (keys, stored) = (keys.clone(), stored.clone());
        move || keys.segment_frames(name, &stored)
    });
    let frames: Vec<Frame> = opening.await.map_err(failed)?.into_iter().map(|(frame, _)| frame).collect();
    let live = note_live(context, frames).await?;
    let opening = compute::call_background(&*context.array.env.compute, {
        let keys = keys.clone();
        move || live.into_iter().map(|frame| open(&keys, frame, &stored)).collect::<Result<Vec<_>, _>>()
    });
    let opened = opening.await.map_err(failed)?;
    let mut moves = context.relocation.moves.borrow_mut();
    opened.into_iter().for_each(|(frame, blocks)| moves.read(&frame, blocks));
    Ok(())
}

/// The blocks of a frame, each in a buffer of its own: most are dropped soon, and one must not keep the others alive.
fn open(keys: &KeySet, frame: Frame, stored: &[u8]) -> Result<(Frame, Vec<Bytes>), ObjectFault> {
    let plaintext = keys.open_frame(&frame, stored)?;
    Ok((frame, plaintext.chunks_exact(BLOCK_LEN).map(Bytes::copy_from_slice).collect()))
}

/// Notes the blocks of `frames` that lie there, each in the instant in which the map says so; gives the frames that have any.
async fn note_live(context: &VolumeContext, frames: Vec<Frame>) -> Result<Vec<Frame>, StepError> {
    let mut live = Vec::new();
    let mut mapped = Vec::new();
    for (place, frame) in frames.into_iter().enumerate() {
        let mut note = |map: &mut ExtentMap| {
            mapped.clear();
            map.lookup(frame.start, u64::from(frame.blocks), &mut mapped)?;
            Ok(context.relocation.moves.borrow_mut().note(&frame, &mapped))
        };
        if look(context, &mut note).await? {
            live.push(frame);
        }
        if place % FRAMES_AT_ONCE == FRAMES_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(live)
}
