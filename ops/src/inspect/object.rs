//! Objects of the clouds: segments, sequence records, checkpoint pages, roots and stubs.

use velum_node::keyring::{Examined, KeySet, ObjectFault, ObjectId, ObjectKind};
use velum_protocol::{
    checksum,
    format::{
        bind::ObjectHeader,
        checkpoint::{PAGE_OBJECT_BYTES_MAX, ROOT_OBJECT_BYTES_MAX, RootLink, STUB_BYTES_MAX},
        metadata::ObjectRef,
        object::{self, Header, METADATA_STEP_BYTES, SEGMENT_STEP_BYTES},
        page::Payload,
        segment::{Outline, SEGMENT_BYTES_MAX},
        sequence::{Link, RECORD_BYTES_MAX},
    },
    id::{ObjectNumber, Seq},
    version::LeadError,
};

use super::{Found, Proof, What, keys::Keys};
use crate::error::Failure;

/// Examines an object of one of the kinds that `what` may be.
pub(super) fn examine(what: What, place: &str, bytes: &[u8], keys: Option<&Keys>) -> Result<Found, Failure> {
    let kinds: &[(ObjectKind, usize)] = match what {
        What::Journal => &[],
        What::Segment => &[(ObjectKind::Segment, SEGMENT_BYTES_MAX)],
        What::Sequence => &[(ObjectKind::Record, RECORD_BYTES_MAX)],
        What::Checkpoint => &[
            (ObjectKind::Page, PAGE_OBJECT_BYTES_MAX),
            (ObjectKind::Root, ROOT_OBJECT_BYTES_MAX),
            (ObjectKind::Stub, STUB_BYTES_MAX),
        ],
    };
    for (kind, bytes_max) in kinds {
        match kind.format().check(bytes) {
            Err(LeadError::OtherKind { .. }) => {}
            checked => {
                let mut found = Found::of(place);
                found.fact(Proof::None, "kind", format!("{kind:?}").to_lowercase());
                if let Ok((version, _)) = checked {
                    found.fact(Proof::None, "format version", version);
                }
                found.fact(Proof::Measured, "length", bytes.len());
                found.fact(Proof::Measured, "BLAKE3", checksum::hash(bytes));
                of_kind(*kind, *bytes_max, bytes, keys, &mut found);
                return Ok(found);
            }
        }
    }
    let lead: String = bytes.iter().take(4).map(|byte| std::ascii::escape_default(*byte).to_string()).collect();
    let word = format!("{what:?}").to_lowercase();
    let remedy =
        "name the kind it is (journal, segment, sequence or checkpoint); if it was this one, its start is damaged";
    Err(Failure::new(format!("{place} begins with `{lead}`, not as a {word} object does"), remedy))
}

fn of_kind(kind: ObjectKind, bytes_max: usize, bytes: &[u8], keys: Option<&Keys>, found: &mut Found) {
    let parts = match object::split(kind.format(), bytes, bytes_max) {
        Ok(parts) => parts,
        Err(error) => return found.damage.push(format!("bytes 0..{}: {error}", bytes.len())),
    };
    let step = if kind == ObjectKind::Segment { SEGMENT_STEP_BYTES } else { METADATA_STEP_BYTES };
    if !bytes.len().is_multiple_of(step) {
        let what = format!("its {} bytes are no multiple of {step}: it was cut off or added to", bytes.len());
        found.damage.push(what);
    }
    let Some(keys) = keys else {
        found.unchecked.push("the sealed header and body; give a node's settings with --config".to_owned());
        return;
    };
    let aad = ObjectHeader { cluster: keys.keyring.cluster(), magic: kind.format().magic }.aad();
    let header = keys.keyring.state().open(&aad, parts.sealed_header).map_err(|error| error.to_string());
    let header = header.and_then(|plain| Header::decode(&plain).map_err(|error| error.to_string()));
    let header = match header {
        Ok(header) => header,
        Err(error) => {
            let range = format!("bytes 8..{}", 8 + parts.sealed_header.len());
            found.damage.push(format!("{range}, the sealed header: {error}; or it is another cluster's object"));
            found.unchecked.push("the body, for only the header says which key opens it".to_owned());
            return;
        }
    };
    said(keys, kind, &header, found);
    match keys.volume(header.volume) {
        Ok(volume) => body(volume, kind, &header, bytes, found),
        Err(why) => found.unchecked.push(format!("the body: {why}")),
    }
}

/// What an opened header says.
fn said(keys: &Keys, kind: ObjectKind, header: &Header, found: &mut Found) {
    let Header { volume, incarnation, key_epoch, number, detail } = header;
    found.facts.iter_mut().filter(|fact| fact.proof == Proof::None).for_each(|fact| fact.proof = Proof::Seal);
    found.fact(Proof::Seal, "cluster", keys.keyring.cluster());
    found.fact(Proof::Seal, "volume", volume);
    found.fact(Proof::Seal, "incarnation", incarnation);
    found.fact(Proof::Seal, "key epoch", key_epoch);
    found.fact(Proof::Seal, "number", number);
    let name =
        keys.keyring.object_name(&ObjectId { kind, volume: *volume, incarnation: *incarnation, number: *number });
    if name.rsplit('/').next() == found.place.rsplit('/').next() {
        found.fact(Proof::Seal, "name", "its own");
    } else {
        found.fact(Proof::None, "name", format!("another one; in a cloud it is {name}"));
    }
    let details = match kind {
        ObjectKind::Segment => Outline::from_detail(detail).map(|outline| {
            found.fact(Proof::Seal, "epoch", outline.epoch);
            found.fact(Proof::Seal, "frames", outline.frames);
        }),
        ObjectKind::Record => Link::from_detail(detail).map(|link| {
            found.fact(Proof::Seal, "epoch", link.epoch);
            found.fact(Proof::Seal, "journal window", format!("{}..={}", link.first, link.last));
            found.fact(Proof::Seal, "record before", link.prev_hash);
        }),
        ObjectKind::Root => RootLink::from_detail(detail).map(|link| {
            found.fact(Proof::Seal, "seq", link.seq);
            found.fact(Proof::Seal, "chain hash", link.chain);
        }),
        ObjectKind::Page | ObjectKind::Stub | ObjectKind::Catalogue | ObjectKind::Claim => Ok(()),
    };
    if let Err(error) = details {
        found.damage.push(format!("the detail of the header: {error}"));
    }
}

/// Opens the body, and says what is in it without showing it.
fn body(keys: &KeySet, kind: ObjectKind, header: &Header, bytes: &[u8], found: &mut Found) {
    let object = ObjectRef {
        incarnation: header.incarnation,
        number: ObjectNumber(header.number),
        bytes: bytes.len() as u64,
        hash: checksum::hash(bytes),
    };
    let place = (object.incarnation, object.number);
    let opened = match kind {
        ObjectKind::Segment => keys.examine_segment(place, bytes).map(|Examined { entries, faults }| {
            let blocks: u64 = entries.iter().map(|entry| u64::from(entry.blocks)).sum();
            found.fact(Proof::Seal, "blocks", blocks);
            for (frame, fault) in faults {
                let (offset, end) = (frame.offset, frame.offset + frame.sealed_bytes());
                let blocks = format!("blocks {}..{}", frame.start, frame.start.0 + u64::from(frame.blocks));
                found
                    .damage
                    .push(format!("bytes {offset}..{end}, frame {}, {blocks} of the volume: {fault}", frame.frame));
            }
        }),
        ObjectKind::Record => keys.open_record((object.incarnation, Seq(header.number)), bytes).map(|record| {
            found.fact(Proof::Seal, "chain hash", record.hash);
            found.fact(Proof::Seal, "segments", record.body.segments.len());
            found.fact(Proof::Seal, "updates", record.body.updates.len());
        }),
        ObjectKind::Page => keys.open_page(&object, bytes).and_then(|payload| page(&payload, found)),
        ObjectKind::Root => keys.open_root(&object, bytes).and_then(|(_, payload)| page(&payload, found)),
        ObjectKind::Stub => keys.open_stub(object.incarnation, header.number, bytes).map(|stub| {
            found.fact(Proof::Seal, "seq", stub.checkpoint.seq);
            found.fact(Proof::Seal, "chain hash", stub.checkpoint.chain);
            found.fact(Proof::Seal, "root", format!("number {}", stub.checkpoint.root.number));
        }),
        ObjectKind::Catalogue | ObjectKind::Claim => Ok(()),
    };
    if let Err(fault) = opened {
        let part = if kind == ObjectKind::Segment { "the directory at the end" } else { "the body" };
        found.damage.push(format!("bytes 136..{}, {part}: {fault}", bytes.len()));
    }
}

fn page(payload: &[u8], found: &mut Found) -> Result<(), ObjectFault> {
    match Payload::decode(payload)? {
        Payload::Leaf(leaf) => {
            found.fact(Proof::Seal, "page", format!("leaf from block {}, {} runs", leaf.first, leaf.runs.len()));
        }
        Payload::Inner(inner) => {
            let children = inner.children.len();
            found.fact(
                Proof::Seal,
                "page",
                format!("level {} from block {}, {children} children", inner.level, inner.first),
            );
        }
        Payload::Root(root) => {
            found.fact(Proof::Seal, "volume blocks", root.size_blocks);
            found.fact(Proof::Seal, "mapped blocks", root.mapped_blocks);
            found.fact(Proof::Seal, "pages below", root.children.len() + root.usage.len());
        }
        Payload::Usage(usage) => found.fact(Proof::Seal, "page", format!("usage of {} segments", usage.segments.len())),
    }
    Ok(())
}
