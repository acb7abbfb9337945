//! Repairs copies of segments that a read found missing or damaged while another cloud had them.
//!
//! The bytes come from another cloud and are opened before they are stored again; so damage is never spread, and the repaired
//! copy is the very bytes that were stored first. A segment names nothing and may always come to a cloud before what names it,
//! so a cloud that lags stays closed. A page or a root may not: those a cloud gets with its checkpoints alone.
//!
//! What was condemned meanwhile is left alone, and deleted again if it came back behind its deletion: a reader may have gone
//! by a map that is over.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    format::segment::SEGMENT_BYTES_MAX,
    id::{Incarnation, ObjectNumber},
};

use super::{
    context::ArrayContext,
    copies::{CopyError, fits_in},
};
use crate::{
    actor,
    cloud::fetch::holes::{Hole, Holes},
    metadata::state::VolumeState,
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

/// Stores a segment in a cloud again; `false` when there is nothing to repair.
async fn repair(array: &ArrayContext, hole: &Hole) -> Result<bool, CopyError> {
    let (Some(Ok(keys)), true) = (array.keys(hole.id.volume), is_needed(array, hole)) else { return Ok(false) };
    let Some((_visit, cloud)) = array.copies.enter(&hole.cloud) else { return Ok(false) };
    let opens = |stored: &Bytes| keys.verify_segment(number(hole), stored).is_ok();
    let stored = match array.copies.read_where(&hole.id, fits_in(SEGMENT_BYTES_MAX), Some(&hole.cloud), opens).await {
        Err(CopyError::Gone) => return Ok(false),
        read => read?,
    };
    if !is_needed(array, hole) {
        return Ok(false);
    }
    array.copies.put(&cloud, &hole.id, stored).await?;
    if is_gone(array, hole) {
        array.copies.delete(&cloud, &hole.id).await?;
        return Ok(false);
    }
    Ok(true)
}

fn number(hole: &Hole) -> (Incarnation, ObjectNumber) {
    (hole.id.incarnation, ObjectNumber(hole.id.number))
}

/// False for what is condemned, or belongs to a volume that is deleted.
fn is_needed(array: &ArrayContext, hole: &Hole) -> bool {
    let needed = |volume: &VolumeState| !volume.deleted && !volume.condemned.contains_key(&number(hole));
    array.with_volume(hole.id.volume, needed).unwrap_or_default()
}

/// True for what has been deleted from the cloud because nothing refers to it.
fn is_gone(array: &ArrayContext, hole: &Hole) -> bool {
    let gone = |volume: &VolumeState| {
        let condemned = volume.condemned.get(&number(hole));
        volume.deleted || condemned.is_some_and(|condemned| condemned.gone_from.contains(&hole.cloud))
    };
    array.with_volume(hole.id.volume, gone).unwrap_or(true)
}
