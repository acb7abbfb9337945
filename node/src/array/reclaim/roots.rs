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

use super::{AT_ONCE, last_there};
use crate::{
    array::{
        context::ArrayContext,
        copies::{CopyError, fits_in},
    },
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
};

/// Checkpoints in a row without a stub before the search for the newest one ends. A life may have come far beyond what the
/// recovery saw: a cloud is given the stubs that it missed lowest first, and until then shows none of the newer ones.
const GAP: u64 = 64;

/// Deletes the roots of earlier lives from a cloud whose floor is checkpoint `floor` with the root `kept`.
pub(crate) async fn sweep(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (floor, kept): (u64, &ObjectRef),
) -> Result<(), CopyError> {
    for life in (1..array.incarnation().0).rev().map(Incarnation) {
        let newest = last(array, keys, life, floor).await?;
        stream::iter((1..=newest).rev().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |number| async move {
                let root = root(array, keys, life, number).await?.filter(|root| root != kept);
                let Some(root) = root else { return Ok(()) };
                // Not asked first: the cloud may only be withholding it, and what it names goes next.
                array.copies.delete(cloud, &keys.id(ObjectKind::Root, root.incarnation, root.number.0)).await
            })
            .await?;
    }
    Ok(())
}

/// The highest checkpoint of a life whose stub some cloud has, `known` or above.
async fn last(array: &ArrayContext, keys: &KeySet, life: Incarnation, known: u64) -> Result<u64, CopyError> {
    last_there(known, GAP, async |number| Ok(root(array, keys, life, number).await?.is_some())).await
}

/// The root of the newest checkpoint of a life whose stub some cloud has; it came as far as `known` at least.
pub(crate) async fn newest(
    array: &ArrayContext,
    keys: &KeySet,
    life: Incarnation,
    known: u64,
) -> Result<Option<ObjectRef>, CopyError> {
    let last = last(array, keys, life, known).await?;
    for number in (1..=last).rev().take(usize::try_from(GAP).unwrap_or(usize::MAX)) {
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
