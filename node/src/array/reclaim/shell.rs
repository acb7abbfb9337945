//! Performs what the reclaim machine decides.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use futures_util::{StreamExt, stream};
use velum_protocol::{
    format::metadata::{CloudName, Command, CondemnedObject, NumberedKind},
    id::{Hash, Incarnation, Seq},
};

use super::{
    AT_ONCE,
    lives::{self, Progress, Referred},
    machine::{Effect, Input, Machine, Survey},
    records::{self, GAP_OLDER, GAP_UNKNOWN, Start},
    roots,
};
use crate::{
    actor::{Handle, Shell},
    array::{
        closure::{self, ClosureError},
        context::VolumeContext,
        copies::CopyError,
        life::{self, Life},
    },
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
    metadata::state::LEAVINGS,
};

/// Asks for a checkpoint.
pub(crate) type AskCheckpoint = Rc<dyn Fn()>;

/// The shell of one volume's reclaim.
pub(crate) struct ReclaimShell {
    context: VolumeContext,
    ask_checkpoint: AskCheckpoint,
    older: Rc<Older>,
}

/// What this process knows of what earlier lives left.
#[derive(Default)]
pub(crate) struct Older {
    /// Clouds that were rid of their records and roots.
    settled: RefCell<BTreeSet<CloudName>>,
    /// What must stay of the rest, once it was looked for.
    referred: RefCell<Option<Rc<Referred>>>,
    /// How far each cloud was rid of the rest.
    progress: RefCell<BTreeMap<CloudName, Progress>>,
}

impl Older {
    /// A cloud begins anew: what it holds is not known any more.
    pub(crate) fn forget(&self, cloud: &CloudName) {
        self.settled.borrow_mut().remove(cloud);
        self.progress.borrow_mut().remove(cloud);
    }
}

impl ReclaimShell {
    pub(crate) fn new(context: VolumeContext, ask_checkpoint: AskCheckpoint, older: Rc<Older>) -> Self {
        Self { context, ask_checkpoint, older }
    }

    fn survey(&self) -> Survey {
        let mut dead = false;
        self.context.port.with_map(&mut |map| dead = !map.dead_segments().is_empty());
        let quorum = self.context.array.copies.clouds().quorum;
        let life = self.context.array.incarnation();
        let survey = self.context.state(|state| Survey::of(state, quorum, life, dead)).unwrap_or_default();
        let waiting = i64::try_from(survey.condemned.len()).unwrap_or(i64::MAX);
        self.context.array.metrics.upkeep.condemned.set(waiting);
        survey
    }
}

impl Shell<Machine> for ReclaimShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let context = self.context.clone();
        match effect {
            Effect::Survey => own.call(Input::Surveyed(self.survey())),
            // A deleted volume is retired as a whole, elsewhere.
            Effect::Arm(_) if context.is_over() => {}
            Effect::Arm(pause) => own.after(&*context.array.env.clock, pause, Input::Tick),
            Effect::Approve(numbers) => own.spawn(async move {
                let command = Command::CommitReclaim { volume: context.volume, epoch: context.epoch, numbers };
                // A refusal leaves everything as it is; the next survey starts over.
                drop(context.array.agree(command).await);
                Input::Approved
            }),
            Effect::Sweep { cloud, floor, records, objects } => {
                let older = Rc::clone(&self.older);
                own.spawn(async move {
                    let records_gone = match settle(&context, &cloud, (floor, records.1), &older.settled).await {
                        Some(()) => sweep(&context, &cloud, records, &objects, &older).await,
                        None => records.0,
                    };
                    Input::Swept { cloud, records_gone }
                });
            }
            Effect::Checkpoint => (self.ask_checkpoint)(),
        }
    }
}

/// Once per process rids a cloud of what earlier lives left below its floor; `None` when that must be tried again.
async fn settle(
    context: &VolumeContext,
    cloud: &CloudName,
    (floor, floor_seq): (u64, Seq),
    settled: &RefCell<BTreeSet<CloudName>>,
) -> Option<()> {
    if context.array.incarnation() == Incarnation(1) || settled.borrow().contains(cloud) {
        return Some(());
    }
    let (keys, target) = (context.keys()?, context.array.copies.cloud(cloud)?);
    let kept = context.state(|state| state.previous_checkpoint.clone())?.filter(|known| known.number == floor)?;
    if life::ask(&context.array).await != Life::Newest {
        return None;
    }
    let array = &context.array;
    let oldest = oldest_life(context, cloud)?;
    let is_rid = oldest == array.incarnation();
    let start = Start::Search(if is_rid { GAP_UNKNOWN } else { GAP_OLDER });
    let swept = async {
        records::sweep(array, &keys, &target, (oldest, start), floor_seq).await?;
        // All that is left of earlier lives is gone only after their roots.
        if !is_rid {
            roots::sweep(array, &keys, &target, (floor, &kept.root)).await?;
        }
        // All this counts only if it was done in the cluster's own place.
        array.copies.confirm(&target).await
    };
    match swept.await {
        Ok(()) => {
            settled.borrow_mut().insert(cloud.clone());
            Some(())
        }
        Err(error) => {
            tracing::debug!(volume = %context.volume, cloud = cloud.0, %error, "what an earlier life left could not be deleted");
            None
        }
    }
}

/// The oldest life of which a cloud may hold records and roots: this one, once all that earlier ones left is gone from it.
fn oldest_life(context: &VolumeContext, cloud: &CloudName) -> Option<Incarnation> {
    let life = context.array.incarnation();
    let is_rid = context.state(|state| !state.lacks_checkpoint_of(life) && !state.has_leavings_in(cloud))?;
    Some(if is_rid { life } else { Incarnation(1) })
}

/// Deletes from one cloud, in order, as far as the cloud lets; then tells Raft what is gone. Returns up to where the cloud's
/// records are gone.
async fn sweep(
    context: &VolumeContext,
    cloud: &CloudName,
    (gone, through): (Seq, Seq),
    objects: &[CondemnedObject],
    older: &Older,
) -> Seq {
    let (Some(keys), Some(target)) = (context.keys(), context.array.copies.cloud(cloud)) else { return gone };
    // A later life may need what this one has condemned.
    if life::ask(&context.array).await != Life::Newest {
        return gone;
    }
    // What a process that died had under way may have come to a cloud since, far below what it was given afterwards.
    let start = if gone == Seq(0) { Start::Search(GAP_UNKNOWN) } else { Start::Behind(gone) };
    let Some(oldest) = oldest_life(context, cloud) else { return gone };
    match records::sweep(&context.array, &keys, &target, (oldest, start), through).await {
        // Objects may go only when no record that names them is left.
        Err(error) => {
            tracing::debug!(volume = %context.volume, cloud = cloud.0, %error, "old records could not be deleted");
            return gone;
        }
        Ok(()) if objects.is_empty() => return through,
        Ok(()) => {}
    }
    let (leavings, objects): (Vec<_>, Vec<_>) = objects.iter().partition(|condemned| is_leavings(condemned));
    let mut gone_objects = delete_objects(context, &keys, &target, &objects).await;
    if gone_objects.len() == objects.len() {
        for condemned in leavings {
            let life = condemned.object.incarnation;
            match sweep_life(context, &keys, &target, (life, through), older).await {
                Ok(true) => gone_objects.push(condemned),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(volume = %context.volume, cloud = cloud.0, %life, %error, "what an earlier life left is not gone yet");
                }
            }
        }
    }
    if let Err(error) = context.array.copies.confirm(&target).await {
        tracing::debug!(volume = %context.volume, cloud = cloud.0, %error, "what was deleted was perhaps deleted elsewhere");
        return gone;
    }
    let numbers =
        gone_objects.iter().map(|condemned| (condemned.object.incarnation, condemned.object.number)).collect();
    let metrics = context.array.metrics.cloud(&cloud.0);
    metrics.reclaimed_objects.inc_by(u64::try_from(gone_objects.len()).unwrap_or_default());
    metrics.reclaimed_bytes.inc_by(gone_objects.iter().map(|condemned| condemned.object.bytes).sum());
    let command = Command::FinishReclaim { volume: context.volume, cloud: cloud.clone(), numbers };
    // A refusal means that the volume is gone, and with it the ledger.
    drop(context.array.agree(command).await);
    through
}

fn is_leavings(condemned: &CondemnedObject) -> bool {
    condemned.object.number == LEAVINGS
}

/// Goes on ridding a cloud of what an earlier life left; true when that is done. What the floor refers to when this process
/// first looks is all that ever must stay: nothing later refers to anything else of an earlier life.
async fn sweep_life(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    (life, through): (Incarnation, Seq),
    older: &Older,
) -> Result<bool, ClosureError> {
    let known = older.referred.borrow().clone();
    let referred = match known {
        Some(referred) => referred,
        None => Rc::new(find_referred(context, keys).await?),
    };
    *older.referred.borrow_mut() = Some(Rc::clone(&referred));
    let mut progress = older.progress.borrow().get(cloud.name()).cloned().unwrap_or_default();
    let swept = lives::sweep(&context.array, keys, cloud, (life, through), &referred, &mut progress).await;
    older.progress.borrow_mut().insert(cloud.name().clone(), progress);
    Ok(swept?)
}

/// What the floor and the metadata refer to. What is condemned one by one is left to its own entry.
async fn find_referred(context: &VolumeContext, keys: &KeySet) -> Result<Referred, ClosureError> {
    let copies = &context.array.copies;
    let Some(floor) = context.state(|state| state.previous_checkpoint.clone()).flatten() else {
        return Err(CopyError::Source.into());
    };
    assert_eq!(floor.root.incarnation, context.array.incarnation(), "lives are condemned by a checkpoint of this one");
    let root = closure::read_root(copies, keys, &floor.root).await?.payload;
    let closure = closure::walk(copies, keys, &root, &|_| false).await?;
    let named = closure.pages.iter().chain(&closure.segments).map(|object| (object.incarnation, object.number));
    let mut referred: Referred = named.collect();
    context.state(|state| referred.extend(state.condemned.keys().filter(|(_, number)| *number != LEAVINGS)));
    Ok(referred)
}

/// Deletes condemned objects as far as the cloud lets: roots and orphans first and one by one, for they may refer to what
/// follows, then the rest several at a time. Returns those that are gone.
async fn delete_objects<'a>(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    objects: &[&'a CondemnedObject],
) -> Vec<&'a CondemnedObject> {
    let refers =
        |condemned: &&CondemnedObject| condemned.kind == NumberedKind::Root || condemned.object.hash == Hash::ZERO;
    let (first, others): (Vec<_>, Vec<_>) = objects.iter().copied().partition(refers);
    let mut gone = Vec::new();
    for condemned in first {
        match delete(context, keys, cloud, condemned).await {
            Some(()) => gone.push(condemned),
            None => return gone,
        }
    }
    let rest = stream::iter(others)
        .map(|condemned| async move { delete(context, keys, cloud, condemned).await.map(|()| condemned) });
    gone.extend(rest.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect::<Vec<_>>().await);
    gone
}

/// Deletes one object. An orphan's kind is not known, so it is deleted under each name it may have.
async fn delete(context: &VolumeContext, keys: &KeySet, cloud: &Cloud, condemned: &CondemnedObject) -> Option<()> {
    let object = &condemned.object;
    let kinds = match condemned.kind {
        _ if object.hash == Hash::ZERO => &[ObjectKind::Root, ObjectKind::Page, ObjectKind::Segment][..],
        NumberedKind::Root => &[ObjectKind::Root],
        NumberedKind::Page => &[ObjectKind::Page],
        NumberedKind::Segment => &[ObjectKind::Segment],
    };
    for kind in kinds {
        let id = keys.id(*kind, object.incarnation, object.number.0);
        if let Err(error) = context.array.copies.delete(cloud, &id).await {
            tracing::debug!(volume = %context.volume, %error, "an object could not be deleted");
            return None;
        }
    }
    Some(())
}
