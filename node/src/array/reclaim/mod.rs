//! Reclaim: deleting what nothing refers to any more.
//!
//! [`machine`] decides by the ledger that Raft keeps, [`shell`] deletes. What earlier [`lives`] of the cluster left is found by
//! number. Volumes that are deleted as a whole are [`retire`]d.

mod lives;
pub mod machine;
pub(crate) mod records;
pub mod retire;
mod roots;
pub(crate) mod shell;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::copies::{Copies, CopyError};
use crate::{cloud::Cloud, keyring::ObjectId};

/// Requests under way at once in one cloud. A cloud that answers slowly must be rid of things faster than flushes bring them.
const AT_ONCE: usize = 16;

/// Deletes objects of which none refers to another, several at a time; started in the order given.
async fn delete_all(copies: &Copies, cloud: &Cloud, ids: impl Iterator<Item = ObjectId>) -> Result<(), CopyError> {
    stream::iter(ids.map(Ok))
        .try_for_each_concurrent(AT_ONCE, |id| async move { copies.delete(cloud, &id).await })
        .await
}

/// The highest number at which something `is_there`, looked for upwards from `known` until `gap` in a row are missing.
async fn last_there(
    known: u64,
    gap: u64,
    is_there: impl AsyncFn(u64) -> Result<bool, CopyError>,
) -> Result<u64, CopyError> {
    let mut last = known;
    let asked = stream::iter(known.saturating_add(1)..);
    let mut asked = asked.map(async |number| Ok((number, is_there(number).await?))).buffered(AT_ONCE);
    while let Some(answer) = asked.next().await {
        match answer? {
            (number, true) => last = number,
            (number, false) if number - last >= gap => break,
            (_, false) => {}
        }
    }
    Ok(last)
}
