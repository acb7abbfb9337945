//! Deletes sequence records from one cloud.

use futures_util::future::try_join_all;
use velum_protocol::id::{Incarnation, Seq};

use super::{AT_ONCE, delete_all, last_there};
use crate::{
    array::{context::ArrayContext, copies::CopyError},
    cloud::Cloud,
    keyring::{KeySet, ObjectKind},
};

/// Records in a row that are not there before the search for older ones ends. Recovery probes as far past a gap.
pub(crate) const GAP: u64 = 64;

/// The same in a cloud of which nothing is known, as after a recovery: it may have lagged far behind the checkpoint that it
/// was given since.
pub(crate) const GAP_UNKNOWN: u64 = 1024;

/// The same once after a recovery, with which all was forgotten that was known of a cloud: also where a record came late to a
/// place that had been emptied, long before. A minute's worth of requests, in the background.
pub(crate) const GAP_OLDER: u64 = 1 << 16;

/// Which records there are to delete.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// Those behind this one; the others are gone.
    Behind(Seq),
    /// The lowest that is there, looked for downwards until so many in a row are missing.
    Search(u64),
}

/// Deletes the records up to `through` of the lives from `oldest` on, lowest first and a few at a time, so that what a broken off run leaves has no gap that
/// a later search would take for the end. What the cloud says it does not have is deleted too: it may only be withholding it,
/// and what it names goes next.
pub(crate) async fn sweep(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (oldest, start): (Incarnation, Start),
    through: Seq,
) -> Result<(), CopyError> {
    let lowest = match start {
        Start::Behind(gone) => gone.next(),
        Start::Search(gap) => search(array, keys, cloud, (oldest, through), gap).await?,
    };
    // Those of other lives are void, and so is what they say.
    let lives = || (oldest.0..=array.incarnation().0).map(Incarnation);
    let records = (lowest.0..=through.0).flat_map(|seq| lives().map(move |life| (life, seq)));
    delete_all(&array.copies, cloud, records.map(|(life, seq)| keys.id(ObjectKind::Record, life, seq))).await
}

/// Deletes the records of a life that is over above `floor`, highest first, so that what a broken off run leaves is found by the
/// next: they are looked for upwards until `gap` in a row are missing.
pub(crate) async fn delete_void(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    life: Incarnation,
    floor: Seq,
    gap: u64,
) -> Result<(), CopyError> {
    let is_there = async |seq| array.copies.is_there(cloud, &keys.id(ObjectKind::Record, life, seq)).await;
    let last = last_there(floor.0, gap, is_there).await?;
    let void = (floor.0.saturating_add(1)..=last).rev();
    delete_all(&array.copies, cloud, void.map(|seq| keys.id(ObjectKind::Record, life, seq))).await
}

/// The lowest record that may be there.
async fn search(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (oldest, through): (Incarnation, Seq),
    gap: u64,
) -> Result<Seq, CopyError> {
    let (mut missing, mut life) = (0, array.incarnation());
    let mut lowest = through.next();
    while lowest > Seq(1) && missing < gap {
        let above = lowest.0;
        lowest = Seq(above.saturating_sub(AT_ONCE as u64).max(1));
        let asked = (lowest.0..above).rev().map(|seq| find(array, keys, cloud, (oldest, life), Seq(seq)));
        for found in try_join_all(asked).await? {
            match found {
                Some(found) => (life, missing) = (found, 0),
                None => missing += 1,
            }
        }
    }
    Ok(lowest)
}

/// The life whose record a cloud has: this one or an earlier one, but older records not in later lives.
async fn find(
    array: &ArrayContext,
    keys: &KeySet,
    cloud: &Cloud,
    (oldest, newest): (Incarnation, Incarnation),
    seq: Seq,
) -> Result<Option<Incarnation>, CopyError> {
    for life in (oldest.0..=newest.0).rev().map(Incarnation) {
        let id = keys.id(ObjectKind::Record, life, seq.0);
        if array.copies.is_there(cloud, &id).await? {
            return Ok(Some(life));
        }
    }
    Ok(None)
}
