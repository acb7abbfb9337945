//! Whether the objects a recovered volume names are there.
//!
//! The pages above the leaves and the usage pages are read in any case: they name everything else by length and hash.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt, future::join, stream};
use velum_protocol::{
    checksum,
    format::{checkpoint::PAGE_OBJECT_BYTES_MAX, metadata::ObjectRef, page::Payload, segment::SEGMENT_BYTES_MAX},
};

use super::{
    Plan, Verify,
    source::{Sources, kind_name},
    volume::FoundVolume,
};
use crate::keyring::{KeySet, Keyring, ObjectFault, ObjectKind};

/// Objects read at the same time, each in every cloud: bounds memory to this many segments per cloud.
const READ_AT_ONCE: usize = 8;

/// Objects asked after at the same time, each in every cloud.
const ASKED_AT_ONCE: usize = 64;

/// Looks at everything the volume's state names; gives the objects that no cloud can give.
pub(super) async fn check(sources: &Sources, keyring: &Keyring, found: &FoundVolume, plan: &Plan) -> Vec<String> {
    let at_once = match plan.verify {
        Verify::Chain => return Vec::new(),
        Verify::Present if sources.used().all(|source| !source.is_to_be_read(plan)) => ASKED_AT_ONCE,
        Verify::Present | Verify::Full => READ_AT_ONCE,
    };
    let mut lost = Vec::new();
    let mut objects: BTreeMap<(ObjectKind, ObjectOrder), ObjectRef> = BTreeMap::new();
    for (_, record, _) in found.records.values() {
        objects.extend(record.body.segments.iter().map(|object| (key(ObjectKind::Segment, object), object.clone())));
    }
    if let Some((_, root)) = &found.checkpoint {
        let mut levels: Vec<(u8, ObjectRef)> = Vec::new();
        levels.extend(root.children.iter().map(|child| (root.level - 1, child.page.clone())));
        // A usage page names segments; it counts as standing above them.
        levels.extend(root.usage.iter().map(|usage| (1, usage.page.clone())));
        while let Some((level, page)) = levels.pop() {
            if level == 0 {
                objects.insert(key(ObjectKind::Page, &page), page);
                continue;
            }
            match read_page(sources, keyring, &found.keys, &page).await {
                Some(Payload::Inner(inner)) => {
                    levels.extend(inner.children.into_iter().map(|child| (inner.level - 1, child.page)));
                }
                Some(Payload::Usage(usage)) => objects.extend(
                    usage.segments.into_iter().map(|live| (key(ObjectKind::Segment, &live.object), live.object)),
                ),
                Some(Payload::Leaf(_) | Payload::Root(_)) | None => lost.push(name(ObjectKind::Page, &page)),
            }
        }
    }
    let looked_at = stream::iter(objects).map(|((kind, _), object)| async move {
        let there = match plan.verify {
            Verify::Chain | Verify::Present => is_there(sources, keyring, &found.keys, (kind, &object), plan).await,
            Verify::Full => is_whole(sources, keyring, &found.keys, kind, &object).await,
        };
        (!there).then(|| name(kind, &object))
    });
    lost.extend(looked_at.buffered(at_once).filter_map(std::future::ready).collect::<Vec<_>>().await);
    lost
}

type ObjectOrder = (u32, u64);

fn key(kind: ObjectKind, object: &ObjectRef) -> (ObjectKind, ObjectOrder) {
    (kind, (object.incarnation.0, object.number.0))
}

fn name(kind: ObjectKind, object: &ObjectRef) -> String {
    format!("{} {} of incarnation {}", kind_name(kind), object.number, object.incarnation)
}

async fn read_page(sources: &Sources, keyring: &Keyring, keys: &KeySet, page: &ObjectRef) -> Option<Payload> {
    let id = keys.id(ObjectKind::Page, page.incarnation, page.number.0);
    let open = |stored: &Bytes| keys.open_page(page, stored);
    let answers = sources.ask(keyring, id, PAGE_OBJECT_BYTES_MAX, open).await;
    answers.into_iter().find_map(|(_, found)| found.authentic()).and_then(|payload| Payload::decode(&payload).ok())
}

/// Asks after an object, and reads it where nearly everything is damaged: a length tells nothing there.
async fn is_there(
    sources: &Sources,
    keyring: &Keyring,
    keys: &KeySet,
    (kind, object): (ObjectKind, &ObjectRef),
    plan: &Plan,
) -> bool {
    let id = keys.id(kind, object.incarnation, object.number.0);
    let (lengths, read) = join(
        sources.lengths(keyring, id),
        sources.read_where(&|source| source.is_to_be_read(plan), keyring, id, SEGMENT_BYTES_MAX, object.hash),
    )
    .await;
    let stored_name = keyring.object_name(&id);
    for (source, length) in &lengths {
        if length.is_some_and(|length| length != object.bytes) {
            source.count_corrupt(kind, &stored_name, "it has another length");
            source.note_hurt(&stored_name, object.hash);
        }
    }
    read || lengths.iter().any(|(_, length)| *length == Some(object.bytes))
}

async fn is_whole(sources: &Sources, keyring: &Keyring, keys: &KeySet, kind: ObjectKind, object: &ObjectRef) -> bool {
    let id = keys.id(kind, object.incarnation, object.number.0);
    // The hash comes from a sealed record or page, so bytes that have it are the ones that were stored.
    let open = |stored: &Bytes| {
        if checksum::hash(stored) == object.hash { Ok(()) } else { Err(ObjectFault::Unfit("hash")) }
    };
    let answers = sources.ask(keyring, id, SEGMENT_BYTES_MAX, open).await;
    answers.into_iter().any(|(_, found)| found.authentic().is_some())
}
