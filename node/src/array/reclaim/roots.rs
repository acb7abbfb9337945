//! Deletes the roots that earlier lives of the cluster left in one cloud.
//!
//! The ledger of condemned objects ends with the life that kept it. A new life knows the checkpoint that it began with and
//! those it makes; older roots, and those of checkpoints that the recovery did not see, it finds through their stubs, which
//! are never deleted. They must go before anything that they name does, so every checkpoint is looked at: a cloud that was
//! away now and then has roots of checkpoints that lie far apart.

use futures_util::{TryStreamExt, stream};
use velum_protocol::{
    format::{checkpoint::STUB_BYTES_MAX, metadata::ObjectRef},
    id::Incarnation,
};

use super::AT_ONCE;
use crate::{
    array::{
        context::ArrayContext,
        copies::{CopyError, fits_in},
    },
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
};

/// Checkpoints in a row without a stub before the search for the newest one ends.
const GAP: u64 = 64;

/// How far beyond the floor a life may have come whose end the recovery did not see: it makes a checkpoint only when the one
/// before is committed.
const AHEAD: u64 = 2;

/// Deletes the roots of earlier lives from a cloud whose floor is checkpoint `floor` with the root `kept`.
pub(crate) async fn sweep(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (floor, kept): (u64, &ObjectRef),
) -> Result<(), CopyError> {
    let lives = (1..array.incarnation().0).rev().map(Incarnation);
    let made = lives.flat_map(|life| (1..=floor.saturating_add(AHEAD)).rev().map(move |number| (life, number)));
    stream::iter(made.map(Ok))
        .try_for_each_concurrent(AT_ONCE, |(life, number)| async move {
            let Some(root) = root(array, keys, life, number).await?.filter(|root| root != kept) else { return Ok(()) };
            // Not asked first: the cloud may only be withholding it, and what it names goes next.
            array.copies.delete(cloud, &keys.id(ObjectKind::Root, root.incarnation, root.number.0)).await
        })
        .await
}

/// The root of the newest checkpoint of a life whose stub some cloud has, looked for from `last` downwards.
pub(crate) async fn newest(
    array: &ArrayContext,
    keys: &KeySet,
    life: Incarnation,
    last: u64,
) -> Result<Option<ObjectRef>, CopyError> {
    for number in (1..=last.saturating_add(AHEAD)).rev().take(usize::try_from(GAP).unwrap_or(usize::MAX)) {
        if let Some(root) = root(array, keys, life, number).await? {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

/// The root of a checkpoint that a life may have made, if any cloud has its stub.
async fn root(
    array: &ArrayContext,
    keys: &KeySet,
    life: Incarnation,
    number: u64,
) -> Result<Option<ObjectRef>, CopyError> {
    let id = keys.id(ObjectKind::Stub, life, number);
    let opens = |stored: &bytes::Bytes| keys.open_stub(life, number, stored).is_ok();
    match array.copies.read_where(&id, fits_in(STUB_BYTES_MAX), None, opens).await {
        Ok(stored) => Ok(keys.open_stub(life, number, &stored).ok().map(|stub| stub.checkpoint.root)),
        Err(CopyError::Gone) => Ok(None),
        Err(error) => Err(error),
    }
}
