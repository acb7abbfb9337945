//! Sees to it that the metadata does not fill up with sequence records.
//!
//! Records stay in the metadata until a checkpoint covers them, and a volume asks for one by what it has itself appended. Many
//! volumes with few records each may fill the metadata all the same, and then it takes no record of any of them. Before it
//! comes to that every volume that has records makes a checkpoint.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use super::Assembly;
use crate::{actor, metadata::state::RECORD_BYTES_MAX};

/// How often the records are added up.
const INTERVAL: Duration = Duration::from_secs(5);

/// Bytes of records from which on checkpoints are made, whatever each volume has.
const CROWDED_BYTES: usize = RECORD_BYTES_MAX / 2;

/// Looks after the records from now on, for as long as the node lives.
pub(super) fn watch(node: &Rc<Assembly>) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        while look(&weak) {
            clock.sleep(INTERVAL).await;
        }
    });
}

fn look(node: &Weak<Assembly>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    if node.metadata.with(|state| state.record_bytes()) > CROWDED_BYTES {
        for (id, open) in node.open.all() {
            let has_records = |state: &crate::metadata::State| {
                state.volumes.get(&id).is_some_and(|volume| !volume.records.is_empty())
            };
            if node.metadata.with(has_records) {
                open.array.ask_checkpoint();
            }
        }
    }
    true
}
