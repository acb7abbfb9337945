//! Layout and totality of raft's records and snapshot.

use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn record() -> Record {
    Record {
        hard_state: HardState { term: 7, vote: 1, commit: 40 },
        first: 41,
        entries: vec![
            Entry { term: 7, kind: EntryKind::Normal, data: Bytes::new() },
            Entry { term: 7, kind: EntryKind::MembershipV2, data: Bytes::from_static(b"\xaa\xbb") },
        ],
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        hard_state: HardState { term: 7, vote: 1, commit: 40 },
        from_record: 99,
        membership: Membership { voters: vec![1, 2], learners: vec![3], auto_leave: true, ..Membership::default() },
        state: Bytes::from_static(b"state"),
    }
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        cluster: ClusterId([0xa1; 16]),
        node: NodeId(5),
        index: 40,
        term: 7,
        body_bytes: 1000,
        body_crc: 0x0102_0304,
    }
}

#[test]
fn record_version_1_keeps_its_bytes() {
    let golden = concat!(
        "0700000000000000",
        "0100000000000000",
        "2800000000000000",
        "2900000000000000",
        "02000000",
        "0700000000000000",
        "00",
        "00000000",
        "0700000000000000",
        "02",
        "02000000",
        "aabb",
    );
    assert_eq!(hex(&record().encode()), golden);
    assert_eq!(Record::decode(&record().encode()), Ok(record()));
}

#[test]
fn snapshot_version_1_keeps_its_bytes() {
    let golden = concat!(
        "0700000000000000",
        "0100000000000000",
        "2800000000000000",
        "6300000000000000",
        "01",
        "02000000",
        "0100000000000000",
        "0200000000000000",
        "01000000",
        "0300000000000000",
        "00000000",
        "00000000",
        "7374617465",
    );
    assert_eq!(hex(&snapshot().encode()), golden);
    assert_eq!(Snapshot::decode(snapshot().encode().into()), Ok(snapshot()));
}

#[test]
fn snapshot_header_version_1_keeps_its_bytes() {
    let bytes = header().encode();
    let golden = concat!(
        "564c727301000000",
        "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
        "0500000000000000",
        "2800000000000000",
        "0700000000000000",
        "e803000000000000",
        "04030201",
    );
    assert_eq!(hex(&bytes[..60]), golden);
    assert_eq!(bytes[60..], crc32c(&bytes[..60]).to_le_bytes());
    assert_eq!(SnapshotHeader::decode(&bytes), Ok(header()));
}

#[test]
fn counts_beyond_the_bytes_are_refused_before_anything_is_allocated() {
    let mut bytes = Record { first: 1, ..Record::default() }.encode();
    bytes[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Record::decode(&bytes), Err(ReadError::Field("entries")));
    let mut bytes = Snapshot::default().encode();
    bytes[33..37].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Snapshot::decode(bytes.into()), Err(ReadError::Field("members")));
}

#[test]
fn an_index_beyond_the_number_space_is_refused() {
    let bytes = Record { first: u64::MAX, ..record() }.encode();
    assert_eq!(Record::decode(&bytes), Err(ReadError::Field("first index")));
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes.clone());
        }
        if let Ok(snapshot) = Snapshot::decode(bytes.clone().into()) {
            prop_assert_eq!(snapshot.encode(), bytes.clone());
        }
        let _ = SnapshotHeader::decode(&bytes);
    }

    #[test]
    fn any_flipped_bit_of_the_snapshot_header_is_noticed(bit in 0..64 * 8_usize) {
        let mut bytes = header().encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(SnapshotHeader::decode(&bytes).is_err());
    }

    #[test]
    fn truncated_records_are_refused(cut in 0..70_usize) {
        let bytes = record().encode();
        prop_assert!(cut >= bytes.len() || Record::decode(&bytes[..cut]).is_err());
    }
}

#[test]
fn a_membership_change_keeps_its_bytes_and_is_read_totally() {
    let change = MembershipChange {
        transition: Transition::Implicit,
        changes: vec![(MemberChange::Voter, 4), (MemberChange::Remove, 2)],
    };
    let bytes = change.encode();
    assert_eq!(hex(&bytes), "01000000020000000004000000000000000102000000000000 00".replace(' ', ""));
    assert_eq!(MembershipChange::decode(&bytes), Ok(change));
    for length in 0..bytes.len() {
        assert!(MembershipChange::decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    for (at, to) in [(0, 3), (1, 1), (7, 1), (8, 3)] {
        let mut bad = bytes.clone();
        bad[at] = to;
        assert!(MembershipChange::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn memberships_that_raft_would_stop_at_are_told() {
    let group = |voters: &[u64], learners: &[u64], voters_outgoing: &[u64], learners_next: &[u64], auto_leave| {
        let [voters, learners, voters_outgoing, learners_next] =
            [voters, learners, voters_outgoing, learners_next].map(<[u64]>::to_vec);
        Membership { voters, learners, voters_outgoing, learners_next, auto_leave }.is_possible()
    };
    assert!(group(&[1, 2], &[3], &[], &[], false));
    assert!(group(&[1, 2], &[3], &[1, 4], &[4], true));
    for (voters, learners, outgoing, next, auto_leave) in [
        (&[][..], &[][..], &[][..], &[][..], false),
        (&[1, 1], &[], &[], &[], false),
        (&[0, 1], &[], &[], &[], false),
        (&[1], &[1], &[], &[], false),
        (&[1], &[], &[], &[2], false),
        (&[1], &[], &[], &[], true),
        (&[1], &[2], &[2], &[], false),
        (&[1], &[], &[1], &[1], false),
    ] {
        assert!(!group(voters, learners, outgoing, next, auto_leave), "{voters:?} {learners:?} {outgoing:?} {next:?}");
    }
}
