//! Checkpoint pages and cache files: released bytes stay readable, decoders are total, and bytes are canonical.

use proptest::prelude::*;
use velum_protocol::{
    checksum,
    format::{
        cache_file::{Header, SlotEntry},
        metadata::ObjectRef,
        page::{
            Child, Cut, InnerPayload, LEVEL_MAX, LeafPayload, PageError, Payload, RootPayload, Run, SegmentId,
            SegmentUsage, UsageIndex, UsagePayload, UsageRef, VOLUME_BLOCKS_MAX, level_blocks, root_level, summarise,
        },
    },
    id::{BlockIndex, ClusterId, Epoch, Hash, Incarnation, Jseq, KeyEpoch, NodeId, ObjectNumber, Seq, VolumeId},
};

fn object(number: u64) -> ObjectRef {
    ObjectRef {
        incarnation: Incarnation(2),
        number: ObjectNumber(number),
        bytes: 8_000_000 + number,
        hash: checksum::hash(&number.to_le_bytes()),
    }
}

fn leaf() -> LeafPayload {
    let segment =
        |number| SegmentId { incarnation: Incarnation(1), number: ObjectNumber(number), key_epoch: KeyEpoch(3) };
    LeafPayload {
        first: BlockIndex(3 * 4096),
        segments: vec![segment(10), segment(11)],
        runs: vec![
            Run { start: 0, count: 2, skip: 14, blocks: 16, segment: 1, frame: 4, offset: 136 },
            Run { start: 7, count: 1, skip: 0, blocks: 1, segment: 0, frame: 9, offset: 70_000 },
            Run { start: 4080, count: 16, skip: 0, blocks: 16, segment: 1, frame: 5, offset: 4_294_967_295 },
        ],
    }
}

fn inner() -> InnerPayload {
    let child = |slot: u8| Child { slot, page: object(u64::from(slot)) };
    InnerPayload { level: 1, first: BlockIndex(5 << 20), children: vec![child(0), child(17), child(255)] }
}

fn usage() -> UsagePayload {
    let segment = |number, live_blocks| SegmentUsage { object: object(number), live_blocks };
    UsagePayload {
        index: UsageIndex { incarnation: Incarnation(2), index: 7 },
        segments: vec![segment(7 * 1024, 1), segment(7 * 1024 + 1023, u32::MAX)],
    }
}

fn root() -> RootPayload {
    RootPayload {
        cut: Cut {
            seq: Seq(9000),
            chain: Hash([0xaa; 32]),
            epoch: Epoch(4),
            last: Jseq(123_456),
            journal_chain: Hash([0xbb; 32]),
        },
        size_blocks: 1 << 28,
        mapped_blocks: 5_000_000,
        level: 2,
        children: vec![Child { slot: 3, page: object(70) }],
        usage: vec![
            UsageRef { index: UsageIndex { incarnation: Incarnation(1), index: 9 }, page: object(71) },
            UsageRef { index: UsageIndex { incarnation: Incarnation(2), index: 0 }, page: object(72) },
        ],
    }
}

fn samples() -> [(Payload, Vec<u8>); 4] {
    [
        (Payload::Leaf(leaf()), leaf().encode()),
        (Payload::Inner(inner()), inner().encode()),
        (Payload::Root(root()), root().encode()),
        (Payload::Usage(usage()), usage().encode()),
    ]
}

fn encode(payload: &Payload) -> Vec<u8> {
    match payload {
        Payload::Leaf(leaf) => leaf.encode(),
        Payload::Inner(inner) => inner.encode(),
        Payload::Root(root) => root.encode(),
        Payload::Usage(usage) => usage.encode(),
    }
}

#[test]
fn version_1_is_written_and_read_as_it_was_released() {
    let golden: [&[u8]; 4] = [
        include_bytes!("golden/page-leaf-1.bin"),
        include_bytes!("golden/page-inner-1.bin"),
        include_bytes!("golden/page-root-1.bin"),
        include_bytes!("golden/page-usage-1.bin"),
    ];
    for ((payload, bytes), golden) in samples().into_iter().zip(golden) {
        assert_eq!(bytes, golden);
        assert_eq!(Payload::decode(golden).as_ref(), Ok(&payload));
    }
    let header = Header { cluster: ClusterId([0xc1; 16]), node: NodeId(2), file: 3, slots: 16_038 };
    assert_eq!(header.encode(), *include_bytes!("golden/cache-header-1.bin"));
    let entry = SlotEntry {
        volume: VolumeId([0xf0; 16]),
        incarnation: Incarnation(4),
        segment: ObjectNumber(5),
        frame: 6,
        block: 7,
    };
    assert_eq!(entry.encode(3, 9), *include_bytes!("golden/cache-entry-1.bin"));
}

#[test]
fn cut_or_longer_pages_are_refused() {
    for (_, bytes) in samples() {
        for length in 0..bytes.len() {
            assert!(Payload::decode(&bytes[..length]).is_err(), "length {length}");
        }
        assert!(Payload::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn unknown_kinds_and_versions_are_told_apart() {
    let mut bytes = leaf().encode();
    bytes[1] = 2;
    assert_eq!(Payload::decode(&bytes), Err(PageError::Version(2)));
    bytes[0] = 9;
    assert_eq!(Payload::decode(&bytes), Err(PageError::Kind(9)));
}

#[test]
fn counts_are_bounded_before_anything_is_allocated() {
    let mut bytes = root().encode();
    bytes[116 - 4..116].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Payload::decode(&bytes), Err(PageError::Length));
}

type Change = fn(&mut LeafPayload);

#[test]
fn a_leaf_that_contradicts_itself_is_refused() {
    let cases: [(&str, Change); 9] = [
        ("runs overlap", |leaf| leaf.runs[1].start = 1),
        ("runs are out of order", |leaf| leaf.runs.swap(0, 1)),
        ("a run is empty", |leaf| leaf.runs[0].count = 0),
        ("a run leaves its frame", |leaf| leaf.runs[0].skip = 15),
        ("a frame is too long", |leaf| leaf.runs[0].blocks = 17),
        ("a run leaves the leaf", |leaf| leaf.runs[2].start = 4081),
        ("a run names no segment", |leaf| leaf.runs[0].segment = 2),
        ("a segment is not used", |leaf| leaf.runs[1].segment = 1),
        ("segments are out of order", |leaf| leaf.segments.swap(0, 1)),
    ];
    for (what, change) in cases {
        let mut leaf = leaf();
        change(&mut leaf);
        assert!(LeafPayload::decode(&leaf.encode()).is_err(), "{what}");
    }
    let mut first = leaf();
    first.first = BlockIndex(0);
    assert!(LeafPayload::decode(&first.encode()).is_err(), "a frame begins before the volume");
}

#[test]
fn pages_in_places_that_do_not_exist_are_refused() {
    for (level, first) in [(0, 0), (3, 0), (1, 4096), (2, 1 << 20), (1, VOLUME_BLOCKS_MAX)] {
        let page = InnerPayload { level, first: BlockIndex(first), children: Vec::new() };
        assert!(InnerPayload::decode(&page.encode()).is_err(), "level {level}, block {first}");
    }
    let mut root = root();
    root.size_blocks = level_blocks(root.level) + 1;
    assert!(RootPayload::decode(&root.encode()).is_err(), "a root covers its volume");
}

#[test]
fn a_root_stands_as_high_as_its_volume_needs() {
    for (size, level) in [(0, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (1 << 28, 2), (VOLUME_BLOCKS_MAX, LEVEL_MAX)] {
        assert_eq!(root_level(size), level, "{size} blocks");
        assert!(level_blocks(level) >= size);
    }
}

#[test]
fn summaries_say_what_a_page_holds() {
    let said = summarise(&leaf().encode()).unwrap();
    assert!(said.to_string().contains("19 mapped in 3 runs over 2 segments"), "{said}");
    assert!(said.to_string().contains("12295..12296: segment 1/10 frame 9 at byte 70000"), "{said}");
    assert_eq!(format!("{said:#}").lines().count(), 1);
    let said = summarise(&root().encode()).unwrap().to_string();
    assert!(said.contains("sequence record 9000") && said.contains("slot 3: object 2/70"), "{said}");
    let said = summarise(&usage().encode()).unwrap().to_string();
    assert!(said.contains("usage page 2/7: 2 segments"), "{said}");
    let said = summarise(&inner().encode()).unwrap().to_string();
    assert!(said.contains("inner page of level 1, blocks 5242880..6291456: 3 pages"), "{said}");
}

proptest! {
    #[test]
    fn any_bytes_decode_to_what_encodes_to_them_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..6) {
        let mut bytes = bytes;
        if let [first, version, ..] = &mut bytes[..] {
            (*first, *version) = (kind, 1);
        }
        if let Ok(payload) = Payload::decode(&bytes) {
            prop_assert_eq!(encode(&payload), bytes);
        }
    }

    #[test]
    fn changed_pages_decode_to_what_encodes_to_them_or_not_at_all(
        sample in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = samples()[sample].1.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(payload) = Payload::decode(&bytes) {
            prop_assert_eq!(encode(&payload), bytes);
        }
    }
}
