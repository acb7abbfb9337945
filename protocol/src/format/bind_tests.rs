//! Golden bytes of every binding, and that no field is forgotten.

use super::*;

const CLUSTER: ClusterId = ClusterId([0x11; 16]);
const VOLUME: VolumeId = VolumeId([0x22; 16]);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Label (with its closing zero), then fields, as in `docs/format.md`.
fn golden(label: &str, fields: &[&str]) -> String {
    hex(label.as_bytes()) + "00" + &fields.concat()
}

const C: &str = "11111111111111111111111111111111";
const V: &str = "22222222222222222222222222222222";
const H: &str = "3333333333333333333333333333333333333333333333333333333333333333";

fn block_frame() -> BlockFrame {
    BlockFrame {
        cluster: CLUSTER,
        volume: VOLUME,
        key_epoch: KeyEpoch(1),
        incarnation: Incarnation(2),
        segment: ObjectNumber(3),
        frame: 4,
        start: BlockIndex(5),
        blocks: 16,
        codec: FrameCodec::Stored,
    }
}

#[test]
fn block_frame_golden() {
    let fields = [C, V, "01000000", "02000000", "0300000000000000", "04000000", "0500000000000000", "1000", "00"];
    assert_eq!(hex(&block_frame().aad()), golden("ca1.blk", &fields));
}

#[test]
fn every_field_of_a_block_frame_is_bound() {
    let base = block_frame();
    let others = [
        BlockFrame { cluster: ClusterId([0; 16]), ..base },
        BlockFrame { volume: VolumeId([0; 16]), ..base },
        BlockFrame { key_epoch: KeyEpoch(9), ..base },
        BlockFrame { incarnation: Incarnation(9), ..base },
        BlockFrame { segment: ObjectNumber(9), ..base },
        BlockFrame { frame: 9, ..base },
        BlockFrame { start: BlockIndex(9), ..base },
        BlockFrame { blocks: 9, ..base },
    ];
    for other in others {
        assert_ne!(base.aad(), other.aad(), "{other:?}");
    }
}

#[test]
fn segment_directory_golden() {
    let binding = SegmentDirectory {
        cluster: CLUSTER,
        volume: VOLUME,
        key_epoch: KeyEpoch(1),
        incarnation: Incarnation(2),
        segment: ObjectNumber(3),
        frames: 4,
        object_bytes: 5,
    };
    let fields = [C, V, "01000000", "02000000", "0300000000000000", "04000000", "0500000000000000"];
    assert_eq!(hex(&binding.aad()), golden("ca1.seg", &fields));
}

#[test]
fn sequence_record_golden() {
    let binding = SequenceRecord {
        cluster: CLUSTER,
        volume: VOLUME,
        key_epoch: KeyEpoch(1),
        incarnation: Incarnation(2),
        seq: Seq(3),
        epoch: Epoch(4),
        first: Jseq(5),
        last: Jseq(6),
        prev_hash: Hash([0x33; 32]),
    };
    let numbers =
        ["01000000", "02000000", "0300000000000000", "0400000000000000", "0500000000000000", "0600000000000000"];
    assert_eq!(hex(&binding.aad()), golden("ca1.seq", &[&[C, V], &numbers[..], &[H]].concat()));
}

#[test]
fn checkpoint_goldens() {
    let (key_epoch, incarnation) = (KeyEpoch(1), Incarnation(2));
    let head = [C, V, "01000000", "02000000", "0300000000000000"];
    let page = CheckpointPage { cluster: CLUSTER, volume: VOLUME, key_epoch, incarnation, number: ObjectNumber(3) };
    assert_eq!(hex(&page.aad()), golden("ca1.ckp", &head));
    let stub = CheckpointStub { cluster: CLUSTER, volume: VOLUME, key_epoch, incarnation, checkpoint: 3 };
    assert_eq!(hex(&stub.aad()), golden("ca1.cks", &head));
    let root = CheckpointRoot {
        cluster: CLUSTER,
        volume: VOLUME,
        key_epoch,
        incarnation,
        number: ObjectNumber(3),
        seq: Seq(4),
        chain: Hash([0x33; 32]),
    };
    assert_eq!(hex(&root.aad()), golden("ca1.ckr", &[&head[..], &["0400000000000000", H]].concat()));
}

#[test]
fn journal_record_golden() {
    let binding = JournalRecord {
        cluster: CLUSTER,
        volume: VOLUME,
        lineage: Lineage(1),
        epoch: Epoch(2),
        jseq: Jseq(3),
        start: BlockIndex(4),
        length: 5,
        kind: 6,
        key_epoch: KeyEpoch(7),
        durable: Jseq(8),
    };
    let numbers = [
        "0100000000000000",
        "0200000000000000",
        "0300000000000000",
        "0400000000000000",
        "0500000000000000",
        "06",
        "07000000",
        "0800000000000000",
    ];
    assert_eq!(hex(&binding.aad()), golden("ca1.jnl", &[&[C, V], &numbers[..]].concat()));
}

#[test]
fn cache_slot_golden() {
    let binding = CacheSlot {
        cluster: CLUSTER,
        node: NodeId(1),
        file: 2,
        offset: 3,
        volume: VOLUME,
        incarnation: Incarnation(4),
        segment: ObjectNumber(5),
        frame: 6,
        block: 7,
    };
    let fields = [
        C,
        "0100000000000000",
        "0200000000000000",
        "0300000000000000",
        V,
        "04000000",
        "0500000000000000",
        "06000000",
        "0700",
    ];
    assert_eq!(hex(&binding.aad()), golden("ca1.cch", &fields));
}

#[test]
fn cluster_state_goldens() {
    let raft = RaftRecord { cluster: CLUSTER, node: NodeId(1), kind: RaftKind::Entry, term: 2, index: 3 };
    let fields = [C, "0100000000000000", "01", "0200000000000000", "0300000000000000"];
    assert_eq!(hex(&raft.aad()), golden("ca1.rft", &fields));

    let catalogue = Catalogue { cluster: CLUSTER, incarnation: Incarnation(1), number: 2, prev_hash: Hash([0x33; 32]) };
    assert_eq!(hex(&catalogue.aad()), golden("ca1.cat", &[C, "01000000", "0200000000000000", H]));

    let claim = Claim { cluster: CLUSTER, incarnation: Incarnation(1) };
    assert_eq!(hex(&claim.aad()), golden("ca1.clm", &[C, "01000000"]));

    let header = ObjectHeader { cluster: CLUSTER, magic: *b"VLsg" };
    assert_eq!(hex(&header.aad()), golden("ca1.hdr", &[C, "564c7367"]));
}

#[test]
fn key_goldens() {
    let wrapped = WrappedKey { cluster: CLUSTER, volume: VOLUME, kind: WrappedKind::Metadata, key_epoch: KeyEpoch(7) };
    assert_eq!(hex(&wrapped.aad()), golden("ca1.key", &[C, V, "02", "07000000"]));

    let slot = SlotKey { cluster: CLUSTER, parameters: &[0x44; 48] };
    assert_eq!(hex(&slot.aad()), golden("ca1.slt", &[C, &"44".repeat(48)]));
}
