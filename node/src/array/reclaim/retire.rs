//! Deletes what a deleted volume left in the clouds.
//!
//! It begins only when enough clouds show a catalogue without the volume, for a recovery must never find a volume listed
//! whose objects are gone; and not before the grace. Then, cloud by cloud: records, stubs and roots, so that nothing refers
//! to anything any more, then everything else. Objects of this life of the cluster are enumerated by number, which needs no
//! object to be read and starts over after a crash without harm. So are those of earlier lives, as far as their last
//! checkpoints tell how many there were, and by walking the newest checkpoint while it is still there.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use futures_util::future::join_all;
use velum_protocol::{
    format::metadata::{Command, ObjectRef},
    id::{Incarnation, VolumeId},
};

use super::{
    delete_all, lives,
    records::{self, GAP_UNKNOWN, Start},
};
use crate::{
    actor,
    array::{
        Catalogue, closure,
        context::ArrayContext,
        copies::CopyError,
        life::{self, Life},
    },
    cloud::Cloud,
    env::Instant,
    keyring::{KeySet, ObjectId, ObjectKind},
    metadata::state::VolumeState,
};

/// How often deleted volumes are looked for, and the pause after a cloud failed.
const INTERVAL: Duration = Duration::from_secs(10);

/// Starts deleting what deleted volumes left. Runs as long as the `LocalSet` it was started on.
pub fn start(array: &ArrayContext, catalogue: &Catalogue) {
    let (array, catalogue) = (array.clone(), catalogue.clone());
    actor::spawn(async move {
        let mut seen: BTreeMap<VolumeId, Instant> = BTreeMap::new();
        loop {
            // Another node's volume is deleted here, too; that it is done twice while the keeper changes does no harm.
            for volume in deleted(&array).into_iter().filter(|_| array.is_keeper()) {
                catalogue.published().await;
                let now = array.env.clock.now();
                let since = *seen.entry(volume).or_insert(now);
                let due = now.since(since) >= array.settings.reclaim_grace;
                if due && life::ask(&array).await == Life::Newest && retire(&array, volume).await.is_ok() {
                    seen.remove(&volume);
                }
            }
            array.env.clock.sleep(INTERVAL).await;
        }
    });
}

fn deleted(array: &ArrayContext) -> Vec<VolumeId> {
    array
        .metadata
        .with(|state| state.volumes.iter().filter(|(_, volume)| volume.deleted).map(|(volume, _)| *volume).collect())
}

/// Deletes everything of one volume from every cloud and forgets it.
async fn retire(array: &ArrayContext, volume: VolumeId) -> Result<(), CopyError> {
    let Some(state) = array.with_volume(volume, VolumeState::clone) else { return Ok(()) };
    let Some(Ok(keys)) = array.keys(volume) else {
        tracing::error!(%volume, "the keys of a deleted volume do not open; its objects stay in the clouds");
        return Err(CopyError::Source);
    };
    let older = Older::find(array, &keys, &state).await?;
    let clouds = &array.copies.clouds().clouds;
    let sweeps = join_all(clouds.iter().map(|cloud| sweep(array, cloud, &keys, &state, &older))).await;
    for swept in sweeps {
        swept.inspect_err(|error| tracing::debug!(%volume, %error, "a deleted volume is not gone from a cloud yet"))?;
    }
    // Refused only when the volume is forgotten already.
    drop(array.agree(Command::ForgetVolume { volume }).await);
    tracing::info!(%volume, "a deleted volume is gone from every cloud");
    Ok(())
}

/// What earlier lives of the cluster left of a volume.
struct Older {
    /// What the newest state names of it.
    named: Vec<ObjectId>,
    /// By life the number of its last root.
    last_roots: BTreeMap<Incarnation, u64>,
}

impl Older {
    /// Looks while stubs and checkpoints are still there.
    async fn find(array: &ArrayContext, keys: &KeySet, state: &VolumeState) -> Result<Self, CopyError> {
        let named = older_objects(array, keys, state).await;
        let mut last_roots = BTreeMap::new();
        let life = array.incarnation();
        for life in (1..life.0).map(Incarnation).filter(|_| state.was_recovered(life)) {
            last_roots.insert(life, lives::last_root(array, keys, life).await?);
        }
        Ok(Self { named, last_roots })
    }
}

/// Objects of earlier lives that the newest checkpoint and the records behind it name. What cannot be read cannot be found.
async fn older_objects(array: &ArrayContext, keys: &KeySet, state: &VolumeState) -> Vec<ObjectId> {
    let life = array.incarnation();
    let id = |kind| move |object: &ObjectRef| keys.id(kind, object.incarnation, object.number.0);
    let mut objects: Vec<ObjectId> =
        state.records.values().flat_map(|record| &record.objects).map(id(ObjectKind::Segment)).collect();
    if let Some(checkpoint) = &state.checkpoint {
        objects.push(id(ObjectKind::Root)(&checkpoint.root));
        if let Ok(root) = closure::read_root(&array.copies, keys, &checkpoint.root).await
            && let Ok(closure) = closure::walk(&array.copies, keys, &root.payload, &|_| false).await
        {
            objects.extend(closure.pages.iter().map(id(ObjectKind::Page)));
            objects.extend(closure.segments.iter().map(id(ObjectKind::Segment)));
        }
    }
    objects.retain(|object| object.incarnation < life);
    objects
}

async fn sweep(
    array: &ArrayContext,
    cloud: &Rc<Cloud>,
    keys: &KeySet,
    state: &VolumeState,
    older: &Older,
) -> Result<(), CopyError> {
    let life = array.incarnation();
    records::sweep(array, keys, cloud, (Incarnation(1), Start::Search(GAP_UNKNOWN)), state.head.seq).await?;
    let checkpoints = state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
    let stubs = (1..=life.0).map(Incarnation).flat_map(|life| (1..=checkpoints).map(move |number| (life, number)));
    delete_all(&array.copies, cloud, stubs.map(|(life, number)| keys.id(ObjectKind::Stub, life, number))).await?;
    for kind in [ObjectKind::Root, ObjectKind::Page, ObjectKind::Segment] {
        delete_all(&array.copies, cloud, older.named.iter().copied().filter(|object| object.kind == kind)).await?;
        delete_all(&array.copies, cloud, (1..state.next_object.0).map(|number| keys.id(kind, life, number))).await?;
    }
    for (life, last_root) in &older.last_roots {
        lives::delete_all_of(array, keys, cloud, (*life, *last_root)).await?;
    }
    // All this counts only if it was done in the cluster's own place.
    array.copies.confirm(cloud).await
}
