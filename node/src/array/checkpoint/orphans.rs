//! Objects that nothing refers to because their writer's epoch ended before it could: found by number, not by listing.
//!
//! Every object has a number from a range that Raft gave to one epoch. Once that epoch is over nothing more is written under
//! the range, so each of its numbers is referred to, condemned already, or an orphan (or never was used). The whole range is
//! settled at once and forgotten.

use std::collections::BTreeSet;

use velum_protocol::{
    format::metadata::{CondemnedObject, NumberedKind, ObjectRef},
    id::{Hash, Incarnation, ObjectNumber},
};

use crate::{
    array::{
        closure::{self, ClosureError},
        context::VolumeContext,
    },
    keyring::KeySet,
    metadata::state::VolumeState,
};

/// Numbers settled by one checkpoint at most.
const NUMBERS_MAX: usize = 4096;

/// What the ranges of epochs that are over hold and nothing refers to.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// Numbers without an object that anything refers to. What they are is not known: the hash is zero.
    pub(crate) objects: Vec<CondemnedObject>,
    /// First numbers of the ranges settled by that.
    pub(crate) ranges: Vec<ObjectNumber>,
}

/// Settles ranges of epochs that are over, against a checkpoint whose pages are stored: what neither it nor a record kept in
/// the metadata refers to is an orphan.
pub(crate) async fn find(
    context: &VolumeContext,
    keys: &KeySet,
    root: &ObjectRef,
    condemned: &[CondemnedObject],
) -> Result<Orphans, ClosureError> {
    let over = context.state(ranges_over).unwrap_or_default();
    if over.is_empty() {
        return Ok(Orphans::default());
    }
    let payload = closure::read_root(&context.array.copies, keys, root).await?.payload;
    let closure = closure::walk(&context.array.copies, keys, &payload, &|_| false).await?;
    let mut referred: BTreeSet<(Incarnation, ObjectNumber)> = closure
        .pages
        .iter()
        .chain(&closure.segments)
        .chain([root])
        .chain(condemned.iter().map(|condemned| &condemned.object))
        .map(|object| (object.incarnation, object.number))
        .collect();
    context.state(|state| referred.extend(held_by_metadata(state)));
    let incarnation = context.array.incarnation();
    let mut orphans = Orphans::default();
    for (first, count) in over {
        let numbers = (first.0..first.0.saturating_add(count)).map(ObjectNumber);
        let lost = numbers.filter(|number| !referred.contains(&(incarnation, *number)));
        orphans.objects.extend(lost.map(|number| CondemnedObject {
            kind: NumberedKind::Segment,
            object: ObjectRef { incarnation, number, bytes: 0, hash: Hash::ZERO },
        }));
        orphans.ranges.push(first);
        if orphans.objects.len() >= NUMBERS_MAX {
            break;
        }
    }
    Ok(orphans)
}

/// Ranges of epochs that are over, oldest first.
fn ranges_over(state: &VolumeState) -> Vec<(ObjectNumber, u64)> {
    let over = state.ranges.iter().filter(|(_, range)| range.epoch < state.epoch);
    over.map(|(first, range)| (*first, range.count)).collect()
}

/// What records, checkpoints and the ledger of condemned objects name.
fn held_by_metadata(state: &VolumeState) -> Vec<(Incarnation, ObjectNumber)> {
    let records = state.records.values().flat_map(|record| &record.objects);
    let roots = [&state.checkpoint, &state.previous_checkpoint].into_iter().flatten().map(|known| &known.root);
    let named = records.chain(roots).map(|object| (object.incarnation, object.number));
    named.chain(state.condemned.keys().copied()).collect()
}
