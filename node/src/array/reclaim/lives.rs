//! Deletes from one cloud what an earlier life of the cluster left there and nothing refers to.
//!
//! The ledger of condemned objects and the ranges of numbers end with the life that kept them: what it had condemned and not
//! yet deleted, and what it had stored and nothing came to refer to, no ledger of a later life lists. So the first checkpoint
//! of a life condemns, for each life before it, everything with one entry of the ledger (number [`LEAVINGS`]), which waits,
//! is approved and is ticked off cloud by cloud like any other. When its turn comes in a cloud, the numbers of that life are
//! gone through from the highest down, and of those that the cloud's floor does not refer to whatever is there goes.
//!
//! That is safe because the floor is then a checkpoint of this life: the records behind it, and all that comes later, name
//! objects of this life and what the floor names. Nothing is written any more under the numbers of a life that is over, and
//! nothing is found by listing: names follow from life and number. How far the numbers of a life went is not known exactly:
//! its last checkpoint says how far they had come by then, and from there on they are looked for until so many in a row are
//! missing. What lies beyond is passed over, which costs its space and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{TryStreamExt, stream};
use velum_protocol::{
    format::claim::CLAIM_BYTES_MAX,
    id::{Incarnation, ObjectNumber, Seq},
};

use super::{AT_ONCE, last_there, records, roots};
use crate::{
    array::{
        context::ArrayContext,
        copies::{CopyError, fits_in},
        numbers::RANGE,
    },
    cloud::Cloud,
    keyring::{KeySet, Keyring, ObjectKind},
};

/// Numbers in a row under which nothing is there before the search for higher ones ends: what owners give up that start and
/// crash this often without storing anything.
const GAP: u64 = 4 * RANGE;

/// Numbers gone through in one go; then other things that wait in the cloud have their turn.
const NUMBERS_PER_SWEEP: u64 = 4096;

/// Kinds of numbered objects, those that refer to others first.
const KINDS: [ObjectKind; 3] = [ObjectKind::Root, ObjectKind::Page, ObjectKind::Segment];

/// Objects that must stay, by life and number.
pub(crate) type Referred = BTreeSet<(Incarnation, ObjectNumber)>;

/// How far the sweeps of earlier lives have come in this process, by life: numbers above this one are done.
pub(crate) type Progress = BTreeMap<Incarnation, u64>;

/// Goes on with the sweep of one life in one cloud whose records up to `floor` are gone, and the roots below it. True when
/// there is nothing left to do.
pub(crate) async fn sweep(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (life, floor): (Incarnation, Seq),
    referred: &Referred,
    progress: &mut Progress,
) -> Result<bool, CopyError> {
    let next = match progress.get(&life) {
        Some(next) => *next,
        None => {
            // The floor is of this life, so records of another one behind it are void; they may name what goes next.
            // They came to the cloud in order, so a short gap is their end.
            records::delete_void(array, keys, cloud, life, floor, records::GAP).await?;
            let known = referred.range((life, ObjectNumber(0))..(life.next(), ObjectNumber(0))).next_back();
            let known = known.map_or(0, |(_, number)| number.0).max(last_root(array, keys, life).await?);
            last_number(array, keys, cloud, life, known).await?
        }
    };
    let down_to = next.saturating_sub(NUMBERS_PER_SWEEP);
    delete_unreferred(array, keys, cloud, (life, down_to.saturating_add(1), next), referred).await?;
    progress.insert(life, down_to);
    Ok(down_to == 0)
}

/// Deletes what is there under the numbers `first..=last` of a life and must not stay, from the highest down.
async fn delete_unreferred(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (life, first, last): (Incarnation, u64, u64),
    referred: &Referred,
) -> Result<(), CopyError> {
    let numbers = (first..=last).rev().filter(|number| !referred.contains(&(life, ObjectNumber(*number))));
    let ids = numbers.flat_map(|number| KINDS.map(|kind| keys.id(kind, life, number)));
    stream::iter(ids.map(Ok))
        .try_for_each_concurrent(AT_ONCE, |id| async move {
            // Asked first: where a store keeps versions, deleting what was never there leaves a mark for each name.
            if array.copies.is_there(cloud, &id).await? {
                array.copies.delete(cloud, &id).await?;
                array.metrics.cloud(&cloud.name().0).reclaimed_objects.inc();
            }
            Ok(())
        })
        .await
}

/// The highest number of a life under which a cloud has anything, looked for from `known` upwards.
async fn last_number(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    life: Incarnation,
    known: u64,
) -> Result<u64, CopyError> {
    let is_there = async |number| {
        for kind in KINDS {
            if array.copies.is_there(cloud, &keys.id(kind, life, number)).await? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    last_there(known, GAP, is_there).await
}

/// The number of the last root that a life is known to have made; zero when it made none. The claim of the next life says
/// which checkpoint was the last, and stubs are never deleted while the volume lives.
pub(crate) async fn last_root(array: &ArrayContext, keys: &KeySet, life: Incarnation) -> Result<u64, CopyError> {
    let id = Keyring::claim_id(life.next());
    let opens = |stored: &bytes::Bytes| array.keyring.open_claim(life.next(), stored).is_ok();
    let claim = match array.copies.read_where(&id, fits_in(CLAIM_BYTES_MAX), None, opens).await {
        Ok(stored) => array.keyring.open_claim(life.next(), &stored).ok(),
        Err(CopyError::Gone) => None,
        Err(error) => return Err(error),
    };
    let last = claim.and_then(|claim| claim.head(keys.volume()).map(|head| head.checkpoint)).unwrap_or_default();
    Ok(roots::newest(array, keys, life, last).await?.map_or(0, |root| root.number.0))
}

/// Deletes everything that a life left of a volume that is over, given the last root it made.
pub(crate) async fn delete_all_of(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (life, last_root): (Incarnation, u64),
) -> Result<(), CopyError> {
    let last = last_number(array, keys, cloud, life, last_root).await?;
    delete_unreferred(array, keys, cloud, (life, 1, last), &Referred::new()).await
}
