//! The segment that a flush would store which takes a failed upload for one that had no effect: sealed anew, with new uids and
//! under a new number, while the record names what was sealed first.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_node::keyring::{FramePlan, ObjectKind};
use velum_protocol::{
    checksum,
    id::{BLOCK_BYTES, Epoch, ObjectNumber},
};

use super::keys;
use crate::ledger::meaning;

/// Numbers that no grant comes to.
const UNUSED: u64 = 1 << 40;

/// `segment` sealed anew, and its name.
pub(super) fn seal_anew(secret: [u8; 32], segment: &Bytes, held: &BTreeMap<String, Bytes>) -> Option<(String, Bytes)> {
    let ledger = keys::learn(secret, held)?;
    let keyring = ledger.keyring()?;
    let id = meaning::identify(keyring, segment).ok()?;
    let keys = ledger.keys(id.volume)?;
    let frames = keys.segment_frames((id.incarnation, ObjectNumber(id.number)), segment).ok()?;
    let plan = frames.iter().map(|(frame, _)| {
        let contents = Bytes::from(keys.open_frame(frame, segment).ok()?);
        let blocks = contents.chunks_exact(BLOCK_BYTES as usize).map(|block| contents.slice_ref(block)).collect();
        Some(FramePlan { start: frame.start, blocks })
    });
    let plan = plan.collect::<Option<Vec<_>>>()?;
    let (fresh, number) = (checksum::hash(segment).0, ObjectNumber(UNUSED + id.number));
    let sealed = keys.seal_segment(&fresh, keys.newest()?, Epoch(1), (id.incarnation, number), &plan);
    let name = keyring.object_name(&keys.id(ObjectKind::Segment, id.incarnation, number.0));
    Some((name, sealed.stored))
}
