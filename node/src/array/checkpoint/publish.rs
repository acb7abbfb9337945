//! Gives one cloud a checkpoint with everything it names, in the order that keeps the cloud closed at every instant:
//! pages and segments, then the root, then the stubs the cloud missed, then the checkpoint's own stub.

use std::rc::Rc;

use futures_util::{TryStreamExt, stream};
use velum_protocol::{
    format::{
        checkpoint::{STUB_BYTES_MAX, Stub},
        metadata::{CheckpointRef, CloudName, Command, ObjectRef},
    },
    id::{Incarnation, Seq},
};

use crate::{
    array::{
        closure::{self, ClosureError, Root},
        context::VolumeContext,
        copies::{Copies, CopyError, fits_in},
        life::{self, Life},
        reclaim::records::{self, GAP, GAP_UNKNOWN, Start},
        sequence::machine::RECORDS_PER_STEP,
    },
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
};

/// Pages and segments on their way to one cloud side by side.
const OBJECTS_AT_ONCE: usize = 8;

/// Why a cloud does not have the checkpoint yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// A cloud failed, or nobody could give an object.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The cloud still lacks records that the checkpoint includes.
    #[error("the cloud's sequence does not reach the checkpoint yet")]
    Behind,
    /// Nothing may be deleted from the cloud, and what it leaves behind must be before its cursor moves.
    #[error("too few clouds say that no later life of the cluster has begun")]
    LifeUnknown,
    /// The volume, the cloud or the checkpoint is gone.
    #[error("there is nothing to publish any more")]
    Nothing,
}

impl From<CopyError> for PublishError {
    fn from(error: CopyError) -> Self {
        Self::Closure(error.into())
    }
}

/// Gives a cloud the newest committed checkpoint; returns its number and seq once Raft knows that the cloud has it.
pub(crate) async fn publish(context: &VolumeContext, target: &Cloud, jump: bool) -> Result<(u64, Seq), PublishError> {
    if context.is_over() {
        return Err(PublishError::Nothing);
    }
    let beginning = context.array.beginning(target.name());
    let checkpoint = context.state(|state| state.checkpoint.clone()).flatten().ok_or(PublishError::Nothing)?;
    let keys = context.keys().ok_or(PublishError::Nothing)?;
    life::tell(&context.array, target).await?;
    let root = bring_closure(context, &keys, target, &checkpoint, jump).await?;
    bring_root(&context.array.copies, &keys, target, &checkpoint.root).await?;
    put_stubs(context, &keys, target, &checkpoint, &root).await?;
    if jump {
        leave_behind(context, &keys, target, &checkpoint).await?;
    }
    // All this counts only if it went to the cluster's own place.
    context.array.copies.confirm(target).await?;
    let (number, cloud) = (checkpoint.number, target.name());
    let (volume, epoch, seq) = (context.volume, context.epoch, checkpoint.seq);
    let moves = [
        Command::AdvanceCheckpointCursor { volume, epoch, cloud: cloud.clone(), beginning, number },
        Command::AdvanceCursor { volume, epoch, cloud: cloud.clone(), beginning, seq },
    ];
    for command in moves {
        context.array.agree(command).await.map_err(|_| PublishError::Nothing)?;
    }
    Ok((number, checkpoint.seq))
}

/// Deletes the records of a cloud that jumps. They end far below the checkpoint, and once the cursor has moved nobody knows
/// where: what they name would be deleted and they would stay. A cloud without a cursor has those of a first step that broke
/// off at most; one that began anew those up to where it had come before.
async fn leave_behind(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    checkpoint: &CheckpointRef,
) -> Result<(), PublishError> {
    let known = context.state(|state| state.cursors.get(cloud.name()).copied()).flatten();
    let cursor = known.unwrap_or_default();
    let at = (context.volume, cloud.name().clone());
    let left = context.array.metadata.with(|state| state.left.get(&at).copied()).unwrap_or_default();
    let reached = cursor.max(left);
    // After a recovery no cursor is known, and what the cloud has may be all that leads to the newest state.
    if reached == Seq(0) && context.array.incarnation() > Incarnation(1) {
        return Ok(());
    }
    if life::ask(&context.array).await != Life::Newest {
        return Err(PublishError::LifeUnknown);
    }
    // Some more may be there of a step that broke off.
    let (start, through) = match known {
        Some(Seq(0)) if left == Seq(0) => (Start::Search(GAP_UNKNOWN), checkpoint.seq),
        _ => (Start::Search(GAP), checkpoint.seq.min(Seq(reached.0.saturating_add(RECORDS_PER_STEP)))),
    };
    Ok(records::sweep(&context.array, keys, cloud, (Incarnation(1), start), through).await?)
}

/// Brings the pages that the cloud may lack, and with `jump` the segments. Without, the cloud's own sequence brings those,
/// and the checkpoint waits until it has.
pub(crate) async fn bring_closure(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    checkpoint: &CheckpointRef,
    jump: bool,
) -> Result<Root, PublishError> {
    let copies = &context.array.copies;
    if !jump && cursor(context, cloud.name()) < checkpoint.seq {
        return Err(PublishError::Behind);
    }
    let base = base(context, cloud.name(), checkpoint);
    let known = |page: &ObjectRef| base.as_ref().is_some_and(|root| is_older(page, root));
    let root = closure::read_root(copies, keys, &checkpoint.root).await?;
    let closure = closure::walk(copies, keys, &root.payload, &known).await?;
    if jump {
        bring(copies, keys, cloud, ObjectKind::Segment, &closure.segments).await?;
    }
    bring(copies, keys, cloud, ObjectKind::Page, &closure.pages).await?;
    Ok(root)
}

/// Brings the root, once all that it names is there.
pub(crate) async fn bring_root(
    copies: &Rc<Copies>,
    keys: &KeySet,
    cloud: &Cloud,
    root: &ObjectRef,
) -> Result<(), CopyError> {
    copies.bring(cloud, &keys.id(ObjectKind::Root, root.incarnation, root.number.0), root).await
}

/// Brings objects of one kind, several at a time.
pub(crate) async fn bring(
    copies: &Rc<Copies>,
    keys: &KeySet,
    cloud: &Cloud,
    kind: ObjectKind,
    objects: &[ObjectRef],
) -> Result<(), CopyError> {
    stream::iter(objects.iter().map(Ok))
        .try_for_each_concurrent(OBJECTS_AT_ONCE, |object: &ObjectRef| async move {
            copies.bring(cloud, &keys.id(kind, object.incarnation, object.number.0), object).await
        })
        .await
}

/// How far the cloud's sequence reaches.
pub(crate) fn cursor(context: &VolumeContext, cloud: &CloudName) -> Seq {
    context.state(|state| state.cursors.get(cloud).copied()).flatten().unwrap_or_default()
}

/// The root of the checkpoint that a cloud holds already, if the metadata still knows it. What is older than that root and
/// named by a newer one was named by that root too, for pages are never named again once they are superseded.
pub(crate) fn base(context: &VolumeContext, cloud: &CloudName, checkpoint: &CheckpointRef) -> Option<ObjectRef> {
    context
        .state(|state| {
            let held = state.checkpoint_cursors.get(cloud).copied().unwrap_or_default();
            let known = [&state.previous_checkpoint, &state.checkpoint].into_iter().flatten();
            let mut known = known.filter(|known| known.number == held && known.number < checkpoint.number);
            known.next().map(|known| known.root.clone())
        })
        .flatten()
}

/// True when `object` got its number before `root` did.
pub(crate) fn is_older(object: &ObjectRef, root: &ObjectRef) -> bool {
    (object.incarnation, object.number) < (root.incarnation, root.number)
}

/// Stores the stubs that the cloud missed, lowest first, and the checkpoint's own at last: a gallop finds no gap. One that no
/// cloud can give now is passed over, and so it is by a recovery: an old stub in a cloud that is away must not keep the
/// newest one from the others.
async fn put_stubs(
    context: &VolumeContext,
    keys: &KeySet,
    cloud: &Cloud,
    checkpoint: &CheckpointRef,
    root: &Root,
) -> Result<(), PublishError> {
    let copies = &context.array.copies;
    let held = context.state(|state| state.checkpoint_cursors.get(cloud.name()).copied()).flatten();
    for number in held.unwrap_or_default() + 1..checkpoint.number {
        let life = checkpoint.root.incarnation;
        if copies.is_there(cloud, &keys.id(ObjectKind::Stub, life, number)).await? {
            continue;
        }
        match find_stub(copies, keys, cloud, life, number).await {
            Ok((incarnation, stored)) => {
                copies.put(cloud, &keys.id(ObjectKind::Stub, incarnation, number), stored).await?;
            }
            Err(CopyError::Gone | CopyError::Source) => {
                tracing::warn!(volume = %context.volume, number, "no cloud can give a checkpoint's stub");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stub = Stub {
        checkpoint: checkpoint.clone(),
        last: root.payload.cut.last,
        journal_chain: root.payload.cut.journal_chain,
        epoch: root.payload.cut.epoch,
    };
    // Under the root's key epoch, not the newest: the same stub has the same bytes in every cloud, whenever it gets there.
    let sealing = keys.epoch(root.key_epoch).ok_or(PublishError::Nothing)?;
    let id = keys.id(ObjectKind::Stub, checkpoint.root.incarnation, checkpoint.number);
    Ok(copies.put(cloud, &id, keys.seal_stub(sealing, &stub)).await?)
}

/// Finds a stub in another cloud. Numbers go on from life to life, so the life that wrote it is looked for downwards.
async fn find_stub(
    copies: &Rc<Copies>,
    keys: &KeySet,
    cloud: &Cloud,
    newest: Incarnation,
    number: u64,
) -> Result<(Incarnation, bytes::Bytes), CopyError> {
    for life in (1..=newest.0).rev().map(Incarnation) {
        let id = keys.id(ObjectKind::Stub, life, number);
        let opens = |stored: &bytes::Bytes| keys.open_stub(life, number, stored).is_ok();
        match copies.read_where(&id, fits_in(STUB_BYTES_MAX), Some(cloud.name()), opens).await {
            Err(CopyError::Gone) => {}
            found => return found.map(|stored| (life, stored)),
        }
    }
    Err(CopyError::Gone)
}
