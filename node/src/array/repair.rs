//! Repairs copies that a read found missing or damaged while another cloud had the object.
//!
//! The bytes come from another cloud and are opened, or compared with their hash, before they are stored again; so damage is
//! never spread, and the repaired copy is the very bytes that were stored first. An object may always come to a cloud before
//! what names it, so a cloud that lags loses nothing by it.
//!
//! What was condemned meanwhile is left alone, and deleted again if it came back behind its deletion: a reader may have gone
//! by a map that is over.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    checksum,
    format::{checkpoint::ROOT_OBJECT_BYTES_MAX, segment::SEGMENT_BYTES_MAX},
    id::ObjectNumber,
};

use super::{
    context::ArrayContext,
    copies::{CopyError, fits_in},
};
use crate::{
    actor,
    cloud::fetch::holes::{Hole, Holes},
    keyring::{KeySet, ObjectKind},
};

/// Rest between two repairs: they are nobody's hurry, and reads and flushes go on meanwhile.
const REST: Duration = Duration::from_millis(100);

/// Starts repairing what is reported. Runs as long as the `LocalSet` it was started on.
pub fn start(array: &ArrayContext, holes: Rc<Holes>) {
    let array = array.clone();
    actor::spawn(async move {
        loop {
            let hole = holes.next().await;
            match repair(&array, &hole).await {
                Ok(false) => {}
                Ok(true) => {
                    array.metrics.cloud(&hole.cloud.0).repaired.inc();
                    tracing::warn!(cloud = hole.cloud.0, object = ?hole.id, "a lost or damaged copy was stored again");
                }
                Err(error) => {
                    tracing::warn!(cloud = hole.cloud.0, object = ?hole.id, %error, "a copy could not be repaired");
                }
            }
            array.env.clock.sleep(REST).await;
        }
    });
}

/// Stores an object in a cloud again; `false` when there is nothing to repair.
async fn repair(array: &ArrayContext, hole: &Hole) -> Result<bool, CopyError> {
    let (Some(Ok(keys)), true) = (array.keys(hole.id.volume), is_needed(array, hole)) else { return Ok(false) };
    let Some((_visit, cloud)) = array.copies.enter(&hole.cloud) else { return Ok(false) };
    let bytes_max = fits_in(SEGMENT_BYTES_MAX.max(ROOT_OBJECT_BYTES_MAX));
    let fits = |stored: &Bytes| is_whole(&keys, hole, stored);
    let stored = match array.copies.read_where(&hole.id, bytes_max, Some(&hole.cloud), fits).await {
        Err(CopyError::Gone) => return Ok(false),
        read => read?,
    };
    if !is_needed(array, hole) {
        return Ok(false);
    }
    array.copies.put(&cloud, &hole.id, stored).await?;
    if is_needed(array, hole) {
        return Ok(true);
    }
    array.copies.delete(&cloud, &hole.id).await?;
    Ok(false)
}

/// True when the bytes are the object.
fn is_whole(keys: &KeySet, hole: &Hole, stored: &Bytes) -> bool {
    let number = (hole.id.incarnation, ObjectNumber(hole.id.number));
    match (hole.hash, hole.id.kind) {
        (Some(hash), _) => checksum::hash(stored) == hash,
        (None, ObjectKind::Segment) => keys.verify_segment(number, stored).is_ok(),
        (None, _) => false,
    }
}

/// False for what is condemned, or belongs to a volume that is deleted.
fn is_needed(array: &ArrayContext, hole: &Hole) -> bool {
    let name = (hole.id.incarnation, ObjectNumber(hole.id.number));
    array
        .with_volume(hole.id.volume, |volume| !volume.deleted && !volume.condemned.contains_key(&name))
        .unwrap_or_default()
}
