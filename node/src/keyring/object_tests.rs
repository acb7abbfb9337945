//! Whole objects: what is sealed opens as itself and as nothing else, and their sizes tell a cloud little.

use bytes::Bytes;
use velum_protocol::{
    format::{
        catalogue::Catalogue,
        checkpoint::{RootLink, Stub},
        claim::Claim,
        location::RunUpdate,
        metadata::{CheckpointRef, ObjectRef},
        object::{METADATA_STEP_BYTES, SEGMENT_STEP_BYTES},
        sequence::{Body, Link},
    },
    id::{BlockIndex, Epoch, Hash, Incarnation, Jseq, KeyEpoch, ObjectNumber, Seq, VolumeId},
};

use super::{tests::Counting, *};
use crate::env::Entropy;

const LIFE: Incarnation = Incarnation(1);
const FRESH: [u8; 32] = [6; 32];

struct Fixture {
    keyring: Keyring,
    keys: KeySet,
    other: KeySet,
}

fn fixture() -> Fixture {
    let entropy = Counting::default();
    let secret = ProviderSecret::from_keyfile(0o600, entropy.fresh32().to_vec()).unwrap();
    let keyring = create_cluster(&entropy, &secret).unwrap().keyring;
    let set = |byte| {
        let volume = VolumeId([byte; 16]);
        let wrapped = [1, 2].map(|epoch| keyring.new_volume_keys(&entropy, volume, KeyEpoch(epoch)));
        keyring.key_set(volume, &wrapped).unwrap()
    };
    Fixture { keys: set(1), other: set(2), keyring }
}

fn plan(blocks: u64) -> Vec<FramePlan> {
    (0..blocks)
        .map(|place| FramePlan {
            start: BlockIndex(place * 1000),
            blocks: vec![Bytes::from(vec![u8::try_from(place % 251).unwrap(); 4096])],
        })
        .collect()
}

fn segment(keys: &KeySet, number: u64, blocks: u64) -> SealedSegment {
    let newest = keys.newest().unwrap();
    keys.seal_segment(&FRESH, newest, Epoch(4), (LIFE, ObjectNumber(number)), &plan(blocks))
}

fn record(keys: &KeySet, segment: &SealedSegment) -> SealedRecord {
    let updates = segment
        .frames
        .iter()
        .map(|frame| RunUpdate { start: frame.start, count: u64::from(frame.blocks), frame: Some(*frame) })
        .collect();
    let body = Body { journal_chain: Hash([8; 32]), segments: vec![segment.object.clone()], updates };
    keys.seal_record(&FRESH, keys.newest().unwrap(), (LIFE, Seq(7)), &link(), &body)
}

fn link() -> Link {
    Link { epoch: Epoch(4), first: Jseq(10), last: Jseq(20), prev_hash: Hash([9; 32]) }
}

fn stub() -> Stub {
    let root = ObjectRef { incarnation: LIFE, number: ObjectNumber(3), bytes: 1024, hash: Hash([2; 32]) };
    let checkpoint = CheckpointRef { number: 5, seq: Seq(7), chain: Hash([3; 32]), root };
    Stub { checkpoint, last: Jseq(20), journal_chain: Hash([8; 32]), epoch: Epoch(4) }
}

#[test]
fn a_segment_opens_whole_and_its_frames_one_by_one() {
    let Fixture { keys, .. } = fixture();
    let sealed = segment(&keys, 11, 3);
    let entries = keys.verify_segment((LIFE, ObjectNumber(11)), &sealed.stored).unwrap();
    assert_eq!(entries.len(), 3);
    let frame = sealed.frames[2];
    let start = usize::try_from(frame.offset).unwrap();
    let end = start + usize::try_from(frame.sealed_bytes()).unwrap();
    let binding = velum_protocol::format::bind::BlockFrame {
        cluster: keys.cluster(),
        volume: keys.volume(),
        key_epoch: frame.key_epoch,
        incarnation: frame.incarnation,
        segment: frame.segment,
        frame: frame.frame,
        start: frame.start,
        blocks: frame.blocks,
        codec: velum_protocol::format::bind::FrameCodec::Stored,
    };
    let opened = keys.newest().unwrap().block.open(&binding.aad(), &sealed.stored[start..end]).unwrap();
    assert_eq!(opened, vec![2; 4096]);
}

#[test]
fn objects_have_sizes_of_their_padding_class() {
    let Fixture { keyring, keys, .. } = fixture();
    let sealed = segment(&keys, 11, 3);
    assert_eq!(sealed.stored.len() % SEGMENT_STEP_BYTES, 0);
    assert_eq!(record(&keys, &sealed).stored.len() % METADATA_STEP_BYTES, 0);
    assert_eq!(keys.seal_stub(keys.newest().unwrap(), &stub()).len() % METADATA_STEP_BYTES, 0);
    assert_eq!(keyring.seal_claim(&FRESH, &claim(&keyring)).len() % METADATA_STEP_BYTES, 0);
}

#[test]
fn a_flush_of_random_single_blocks_costs_less_than_five_per_cent() {
    let Fixture { keys, .. } = fixture();
    let sealed = segment(&keys, 11, 2048);
    let stored = sealed.stored.len() + record(&keys, &sealed).stored.len();
    assert!(stored * 100 < 2048 * 4096 * 105, "{stored} bytes for 8 MiB");
}

#[test]
fn every_damaged_byte_of_a_segment_and_a_record_is_found() {
    let Fixture { keys, .. } = fixture();
    let sealed = segment(&keys, 11, 2);
    let sequence = record(&keys, &sealed);
    for at in (0..sealed.stored.len()).step_by(97).chain(0..200) {
        let mut bad = sealed.stored.to_vec();
        bad[at] ^= 4;
        assert!(keys.verify_segment((LIFE, ObjectNumber(11)), &bad).is_err(), "byte {at}");
    }
    for at in 0..sequence.stored.len() {
        let mut bad = sequence.stored.to_vec();
        bad[at] ^= 4;
        assert!(keys.open_record((LIFE, Seq(7)), &bad).is_err(), "byte {at}");
        assert!(keys.open_record((LIFE, Seq(7)), &sequence.stored[..at]).is_err(), "length {at}");
    }
}

#[test]
fn an_object_under_another_name_is_foreign() {
    let Fixture { keys, other, .. } = fixture();
    let sealed = segment(&keys, 11, 1);
    let found = keys.verify_segment((LIFE, ObjectNumber(12)), &sealed.stored);
    assert_eq!(found, Err(ObjectFault::Foreign { volume: keys.volume(), incarnation: LIFE, number: 11 }));
    let found = other.verify_segment((LIFE, ObjectNumber(11)), &sealed.stored);
    assert!(matches!(found, Err(ObjectFault::Foreign { volume, .. }) if volume == keys.volume()));
    let found = other.verify_segment((Incarnation(2), ObjectNumber(11)), &sealed.stored);
    assert!(matches!(found, Err(ObjectFault::Foreign { .. })));
}

#[test]
fn an_object_of_another_cluster_does_not_open() {
    let Fixture { keys, .. } = fixture();
    let entropy = Counting::default();
    // The same volume id and numbers, another root key.
    let secret = ProviderSecret::from_keyfile(0o600, (100..132).collect()).unwrap();
    entropy.fresh32();
    let keyring = create_cluster(&entropy, &secret).unwrap().keyring;
    let wrapped = keyring.new_volume_keys(&entropy, keys.volume(), KeyEpoch(2));
    let stranger = keyring.key_set(keys.volume(), &[wrapped]).unwrap();
    let sealed = segment(&keys, 11, 1);
    let found = stranger.verify_segment((LIFE, ObjectNumber(11)), &sealed.stored);
    assert_eq!(found, Err(ObjectFault::Open(OpenError::NotAuthentic)));
}

#[test]
fn an_older_key_epoch_opens_by_name_and_an_unknown_one_not_at_all() {
    let Fixture { keys, keyring, .. } = fixture();
    let old = keys.epoch(KeyEpoch(1)).unwrap().clone();
    let sealed = keys.seal_segment(&FRESH, &old, Epoch(4), (LIFE, ObjectNumber(1)), &plan(1));
    assert!(keys.verify_segment((LIFE, ObjectNumber(1)), &sealed.stored).is_ok());
    let none = keyring.key_set(keys.volume(), &[]).unwrap();
    let found = none.verify_segment((LIFE, ObjectNumber(1)), &sealed.stored);
    assert_eq!(found, Err(ObjectFault::NoKey(KeyEpoch(1))));
}

#[test]
fn a_record_says_its_link_its_body_and_its_chain_hash() {
    let Fixture { keys, .. } = fixture();
    let sealed = segment(&keys, 11, 5);
    let sequence = record(&keys, &sealed);
    let opened = keys.open_record((LIFE, Seq(7)), &sequence.stored).unwrap();
    assert_eq!((opened.link, opened.hash), (link(), sequence.hash));
    assert_eq!(opened.body.segments, [sealed.object]);
    assert_eq!(opened.body.updates.iter().map(|update| update.frame.unwrap()).collect::<Vec<_>>(), sealed.frames);
}

#[test]
fn the_same_checkpoint_gives_the_same_stub() {
    let Fixture { keys, .. } = fixture();
    let newest = keys.newest().unwrap();
    assert_eq!(keys.seal_stub(newest, &stub()), keys.seal_stub(newest, &stub()));
    let mut other = stub();
    other.last = Jseq(21);
    assert_ne!(keys.seal_stub(newest, &stub())[136..160], keys.seal_stub(newest, &other)[136..160], "nonces differ");
    assert_eq!(keys.open_stub(LIFE, 5, &keys.seal_stub(newest, &stub())), Ok(stub()));
}

#[test]
fn pages_and_roots_open_for_their_own_reference_only() {
    let Fixture { keys, .. } = fixture();
    let newest = keys.newest().unwrap();
    let (page, stored) = keys.seal_page(&FRESH, newest, (LIFE, ObjectNumber(1)), b"page");
    assert_eq!(keys.open_page(&page, &stored).unwrap(), b"page");
    let wrong = ObjectRef { number: ObjectNumber(2), ..page };
    assert!(matches!(keys.open_page(&wrong, &stored), Err(ObjectFault::Foreign { .. })));
    let link = RootLink { seq: Seq(7), chain: Hash([3; 32]) };
    let (root, stored) = keys.seal_root(&FRESH, newest, (LIFE, ObjectNumber(1)), &link, b"root");
    assert_eq!(keys.open_root(&root, &stored).unwrap(), (link, b"root".to_vec()));
    assert!(keys.open_page(&root, &stored).is_err(), "a root is no page");
}

fn claim(keyring: &Keyring) -> Claim {
    Claim {
        cluster: keyring.cluster(),
        incarnation: Incarnation(2),
        claim: [5; 16],
        catalogue: (3, Hash([4; 32])),
        heads: Vec::new(),
    }
}

#[test]
fn catalogue_records_and_claims_open_as_themselves() {
    let Fixture { keyring, .. } = fixture();
    let catalogue = Catalogue {
        cluster: keyring.cluster(),
        incarnation: LIFE,
        number: 3,
        prev_hash: Hash([1; 32]),
        change: 9,
        clouds: Vec::new(),
        quorum: 1,
        volumes: Vec::new(),
    };
    let (stored, hash) = keyring.seal_catalogue(&FRESH, &catalogue);
    assert_eq!(keyring.open_catalogue(LIFE, 3, &stored), Ok((catalogue, hash)));
    assert!(matches!(keyring.open_catalogue(LIFE, 4, &stored), Err(ObjectFault::Foreign { .. })));

    let stored = keyring.seal_claim(&FRESH, &claim(&keyring));
    assert_eq!(keyring.open_claim(Incarnation(2), &stored), Ok(claim(&keyring)));
    assert!(matches!(keyring.open_claim(Incarnation(3), &stored), Err(ObjectFault::Foreign { .. })));
    for at in 0..stored.len() {
        let mut bad = stored.to_vec();
        bad[at] ^= 1;
        assert!(keyring.open_claim(Incarnation(2), &bad).is_err(), "byte {at}");
    }
}
