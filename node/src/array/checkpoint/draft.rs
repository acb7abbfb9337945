//! Makes a checkpoint: the changed pages of one instant of the map, sealed and stored, and the root that names them.
//!
//! Pages stream: a few are sealed or on their way at any time, however many changed. The root goes to a cloud only when that
//! cloud has every record up to the checkpoint's seq and every page.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use velum_protocol::{
    format::{
        checkpoint::RootLink,
        metadata::{CheckpointRef, CloudName, Command, CondemnedObject, NumberedKind, ObjectRef},
        page::{Cut, RootPayload},
    },
    id::{Hash, Incarnation, ObjectNumber},
};

use super::{
    orphans::{self, Orphans},
    publish::{self, PublishError, is_older},
};
use crate::{
    array::{
        closure::{self, ClosureError},
        context::VolumeContext,
    },
    cloud::Cloud,
    env::compute,
    extent::{CheckpointPlan, CheckpointRefused, ExtentMap, MapError, PagePlan},
    keyring::{KeySet, ObjectKind},
    metadata::{
        Rejection,
        state::{Head, LEAVINGS},
    },
};

/// Pages sealed and on their way at once.
const PAGES_AT_ONCE: usize = 8;

/// Pause before a cloud that could not take the root yet is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Objects condemned by one checkpoint at most, so that its command fits a raft entry. What is left over is found again: by
/// the next checkpoint, or as orphans once the epoch is over.
const CONDEMNED_MAX: usize = 12_000;

/// Why no draft was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DraftError {
    /// A page that is needed could not be read.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// A page does not fit the map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The map does not allow one now.
    #[error(transparent)]
    Refused(#[from] CheckpointRefused),
    /// No object numbers any more.
    #[error(transparent)]
    Numbers(#[from] Rejection),
    /// The volume or its keys are gone.
    #[error("the volume is gone")]
    Gone,
    /// Another owner goes on with the volume: what is stored now would be litter, for its sweep may have been here.
    #[error("the epoch is over")]
    Over,
}

/// A checkpoint that is stored on enough clouds and not yet committed.
pub(crate) struct Draft {
    plan: CheckpointPlan,
    checkpoint: CheckpointRef,
    condemned: Vec<CondemnedObject>,
    orphans: Orphans,
}

impl Draft {
    /// Pages written.
    pub(crate) fn pages(&self) -> u64 {
        u64::try_from(self.plan.page_count()).unwrap_or(u64::MAX)
    }

    /// Commits the checkpoint through Raft and tells the map.
    pub(crate) async fn commit(self, context: &VolumeContext) -> Result<u64, Rejection> {
        let Self { plan, checkpoint, mut condemned, orphans } = self;
        condemned.truncate(CONDEMNED_MAX);
        // A range is settled with all its orphans or not at all.
        let fits = condemned.len() + orphans.objects.len() <= CONDEMNED_MAX;
        let orphans = if fits { orphans } else { Orphans::default() };
        condemned.extend(orphans.objects);
        let (number, root) = (checkpoint.number, checkpoint.root.clone());
        let command = Command::CommitCheckpoint { volume: context.volume, epoch: context.epoch, checkpoint, condemned };
        match context.array.agree(command).await {
            Ok(_) => with_map(context, |map| map.finish_checkpoint(plan, root)),
            Err(rejection) => {
                with_map(context, |map| map.abandon_checkpoint(plan, Some(root)));
                return Err(rejection);
            }
        }
        for first in orphans.ranges {
            // Refused only when the volume is gone, and the range with it.
            let forget = Command::ForgetRange { volume: context.volume, first };
            drop(context.array.agree(forget).await);
        }
        Ok(number)
    }
}

/// Runs a closure once with the volume's map.
fn with_map<T>(context: &VolumeContext, read: impl FnOnce(&mut ExtentMap) -> T) -> T {
    let (mut read, mut answer) = (Some(read), None);
    context.port.with_map(&mut |map| answer = read.take().map(|read| read(map)));
    answer.expect("a port lends the map once per call")
}

/// Makes and stores a draft of what the map holds now.
pub(crate) async fn write(context: &VolumeContext) -> Result<Draft, DraftError> {
    context.described().await;
    let keys = context.keys().ok_or(DraftError::Gone)?;
    let (head, mut plan, dead) = begin(context, &keys).await?;
    match store(context, &keys, head, &mut plan).await {
        Ok(checkpoint) => finish(context, &keys, plan, checkpoint, &dead).await,
        Err(error) => {
            with_map(context, |map| map.abandon_checkpoint(plan, None));
            Err(error)
        }
    }
}

type Dead = BTreeSet<(Incarnation, ObjectNumber)>;

/// Loads what the map lacks and takes its plan, together with the head it is a plan of.
async fn begin(context: &VolumeContext, keys: &KeySet) -> Result<(Head, CheckpointPlan, Dead), DraftError> {
    loop {
        for page in with_map(context, |map| map.pages_needed_for_checkpoint()) {
            let payload = closure::read_page_bytes(&context.array.copies, keys, &page).await?;
            with_map(context, |map| map.page_loaded(&page, &payload))?;
        }
        let pages = with_map(context, |map| map.changed_pages());
        let count = u64::try_from(pages).map_err(|_| DraftError::Gone)? + 1;
        let numbers = context.numbers.take(&context.array, count).await?;
        let incarnation = context.array.incarnation();
        let begun = with_map(context, |map| {
            // More may have changed while numbers were asked for.
            if map.changed_pages() > pages {
                return Err(CheckpointRefused::PagesNeeded);
            }
            let dead = map.dead_segments().into_iter().collect();
            let mut numbers = numbers.into_iter();
            let mut next = || numbers.next().expect("a number was taken for each changed page and the root");
            map.begin_checkpoint(&mut next, incarnation).map(|plan| (plan, dead))
        });
        match begun {
            Ok((plan, dead)) => return Ok((context.mapped.get(), plan, dead)),
            Err(CheckpointRefused::PagesNeeded) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// Seals and stores the pages, then the root.
async fn store(
    context: &VolumeContext,
    keys: &KeySet,
    head: Head,
    plan: &mut CheckpointPlan,
) -> Result<CheckpointRef, DraftError> {
    let number = context
        .state(|state| state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number) + 1)
        .ok_or(DraftError::Gone)?;
    let mut stores = FuturesUnordered::new();
    let mut pages = Vec::new();
    while let Some(page) = plan.next_page() {
        expect_epoch(context)?;
        let (object, stored) = seal_page(context, keys, page).await.ok_or(DraftError::Gone)?;
        plan.page_sealed(object.bytes, object.hash);
        context.array.metrics.upkeep.stored_bytes.inc_by(object.bytes);
        let id = keys.id(ObjectKind::Page, object.incarnation, object.number.0);
        pages.push(object);
        stores.push(context.array.copies.store(id, stored));
        if stores.len() >= PAGES_AT_ONCE {
            stores.next().await;
        }
    }
    while stores.next().await.is_some() {}
    let cut =
        Cut { seq: head.seq, chain: head.chain, epoch: head.epoch, last: head.last, journal_chain: head.journal_chain };
    let payload = plan.root(&cut);
    let root = seal_root(context, keys, &cut, &payload).await.ok_or(DraftError::Gone)?;
    let checkpoint = CheckpointRef { number, seq: head.seq, chain: head.chain, root };
    let decoded = RootPayload::decode(&payload.payload).expect("a root that was just encoded decodes");
    place_root(context, keys, &checkpoint, &decoded, &pages).await?;
    Ok(checkpoint)
}

fn expect_epoch(context: &VolumeContext) -> Result<(), DraftError> {
    if context.is_over() { Err(DraftError::Over) } else { Ok(()) }
}

async fn seal_page(context: &VolumeContext, keys: &KeySet, page: PagePlan) -> Option<(ObjectRef, Bytes)> {
    let (fresh, incarnation) = (context.array.env.entropy.fresh32(), context.array.incarnation());
    let keys = keys.clone();
    compute::call_background(&*context.array.env.compute, move || {
        let newest = keys.newest()?;
        Some(keys.seal_page(&fresh, newest, (incarnation, page.number), &page.payload))
    })
    .await
}

/// Seals the root and keeps its bytes at hand; it goes nowhere yet.
async fn seal_root(context: &VolumeContext, keys: &KeySet, cut: &Cut, root: &PagePlan) -> Option<ObjectRef> {
    let (fresh, incarnation) = (context.array.env.entropy.fresh32(), context.array.incarnation());
    let link = RootLink { seq: cut.seq, chain: cut.chain };
    let newest = keys.newest()?;
    let (object, stored) = keys.seal_root(&fresh, newest, (incarnation, root.number), &link, &root.payload);
    context.array.metrics.upkeep.stored_bytes.inc_by(object.bytes);
    context.roots.borrow_mut().insert((object.incarnation, object.number));
    context.array.copies.hold(keys.id(ObjectKind::Root, incarnation, root.number.0), stored);
    Some(object)
}

/// Stores the root on enough clouds, each as soon as it has all that the root names. Takes as long as it takes, or until the
/// epoch is over.
async fn place_root(
    context: &VolumeContext,
    keys: &KeySet,
    checkpoint: &CheckpointRef,
    root: &RootPayload,
    pages: &[ObjectRef],
) -> Result<(), DraftError> {
    let copies = &context.array.copies;
    let mut clouds: FuturesUnordered<_> = copies
        .clouds()
        .clouds
        .iter()
        .map(|cloud| async move {
            loop {
                expect_epoch(context)?;
                if place_root_in(context, keys, cloud, checkpoint, root, pages).await.is_ok() {
                    return Ok::<_, DraftError>(());
                }
                context.array.env.clock.sleep(PAUSE).await;
            }
        })
        .collect();
    for _ in 0..copies.clouds().quorum {
        clouds.next().await.unwrap_or(Ok(()))?;
    }
    Ok(())
}

async fn place_root_in(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Rc<Cloud>,
    checkpoint: &CheckpointRef,
    root: &RootPayload,
    pages: &[ObjectRef],
) -> Result<(), PublishError> {
    let copies = &context.array.copies;
    let Some(_visit) = cloud.enter() else { return Err(PublishError::Behind) };
    if publish::cursor(context, cloud.name()) < checkpoint.seq {
        return Err(PublishError::Behind);
    }
    if holds_previous(context, cloud.name()) {
        publish::bring(copies, keys, cloud, ObjectKind::Page, pages).await?;
    } else {
        let base = publish::base(context, cloud.name(), checkpoint);
        let known = |page: &ObjectRef| base.as_ref().is_some_and(|base| is_older(page, base));
        let closure = closure::walk(copies, keys, root, &known).await?;
        publish::bring(copies, keys, cloud, ObjectKind::Page, &closure.pages).await?;
    }
    publish::bring_root(copies, keys, cloud, &checkpoint.root).await?;
    // A checkpoint is committed on the strength of this.
    Ok(copies.confirm(cloud).await?)
}

/// True when the cloud holds the checkpoint before this one, and so all pages but the new ones.
fn holds_previous(context: &VolumeContext, cloud: &CloudName) -> bool {
    let held = |state: &crate::metadata::state::VolumeState| {
        let newest = state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
        state.checkpoint_cursors.get(cloud).copied().unwrap_or_default() >= newest
    };
    context.state(held).unwrap_or_default()
}

/// Says what the checkpoint condemns.
async fn finish(
    context: &VolumeContext,
    keys: &KeySet,
    plan: CheckpointPlan,
    checkpoint: CheckpointRef,
    dead: &Dead,
) -> Result<Draft, DraftError> {
    let mut condemned = leavings(context);
    condemned.extend(plan.condemned().iter().map(|object| {
        let name = (object.incarnation, object.number);
        let kind = if dead.contains(&name) {
            NumberedKind::Segment
        } else if is_root(context, object) {
            NumberedKind::Root
        } else {
            NumberedKind::Page
        };
        CondemnedObject { kind, object: object.clone() }
    }));
    // Nothing is lost when orphans cannot be looked for now: the next checkpoint looks again.
    let orphans = orphans::find(context, keys, &checkpoint.root, &condemned).await.unwrap_or_default();
    Ok(Draft { plan, checkpoint, condemned, orphans })
}

/// What earlier lives left, once in the life of a volume that was recovered: with its first checkpoint. An entry for each life;
/// which objects those are is found out when they may go.
fn leavings(context: &VolumeContext) -> Vec<CondemnedObject> {
    let life = context.array.incarnation();
    let is_first = context.state(|state| state.was_recovered(life) && state.lacks_checkpoint_of(life));
    let lives = (1..life.0).map(Incarnation).filter(|_| is_first.unwrap_or_default());
    let all_of = |incarnation| CondemnedObject {
        kind: NumberedKind::Segment,
        object: ObjectRef { incarnation, number: LEAVINGS, bytes: 0, hash: Hash::ZERO },
    };
    lives.map(all_of).collect()
}

fn is_root(context: &VolumeContext, object: &ObjectRef) -> bool {
    let name = (object.incarnation, object.number);
    let newest = context.state(|state| {
        let root = state.checkpoint.as_ref().map(|checkpoint| &checkpoint.root);
        root.is_some_and(|root| (root.incarnation, root.number) == name)
    });
    newest.unwrap_or_default() || context.roots.borrow().contains(&name)
}
