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

use futures_util::{TryStreamExt, stream};

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
