//! Layout and totality of the journal's headers.

use proptest::prelude::*;

use super::*;

fn header() -> FileHeader {
    FileHeader {
        cluster: ClusterId([0xa1; 16]),
        node: NodeId(0x0102_0304_0506_0708),
        file: 0x1112_1314,
        lap: 0x2122_2324_2526_2728,
        file_bytes: 64 << 20,
    }
}

fn record() -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Stream(
            StreamId::Volume(VolumeId([0xb2; 16])),
            Position { epoch: 0x3132_3334_3536_3738, number: 0x4142_4344_4546_4748 },
        ),
        file: 0x1112_1314,
        at: Mark { lap: 0x2122_2324_2526_2728, offset: 0x5152_5354_5556_5758 },
        previous: 0x6162_6364,
        durable: Mark { lap: 0x7172_7374_7576_7778, offset: 0x8182_8384_8586_8788 },
        body_bytes: 4136,
        body_crc: 0x9192_9394,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn file_header_version_1_keeps_its_bytes() {
    let (bytes, crc) = header().encode();
    let golden = concat!(
        "564c6a6601000000",
        "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
        "0807060504030201",
        "14131211",
        "00000000",
        "2827262524232221",
        "0000000400000000",
    );
    assert_eq!(hex(&bytes[..56]), golden);
    assert!(bytes[56..508].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[508..], crc32c(&bytes[..508]).to_le_bytes());
    assert_eq!(crc, 1_409_079_860);
    assert_eq!(FileHeader::decode(&bytes), Ok((header(), crc)));
}

#[test]
fn record_header_version_1_keeps_its_bytes() {
    let (bytes, crc) = record().encode();
    let golden = concat!(
        "564c6a6e",
        "02000000",
        "2827262524232221",
        "14131211",
        "64636261",
        "5857565554535251",
        "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2",
        "3837363534333231",
        "4847464544434241",
        "7877767574737271",
        "8887868584838281",
        "28100000",
        "94939291",
        "00000000",
    );
    assert_eq!(hex(&bytes[..92]), golden);
    assert_eq!(bytes[92..], crc32c(&bytes[..92]).to_le_bytes());
    assert_eq!(RecordHeader::decode(&bytes), Ok((record(), crc)));
    assert_eq!(record().record_bytes(), 96 + 4136);
}

#[test]
fn ring_record_version_1_keeps_its_bytes() {
    let ring = Ring {
        files: vec![LiveFile { file: 1, lap: 2, end: 3 }],
        trims: vec![
            (StreamId::Raft, Position { epoch: 4, number: 5 }),
            (StreamId::Volume(VolumeId([0xc3; 16])), Position { epoch: 6, number: 7 }),
        ],
    };
    let golden = concat!(
        "01000000",
        "02000000",
        "01000000",
        "0200000000000000",
        "0300000000000000",
        "01",
        "00000000000000000000000000000000",
        "0400000000000000",
        "0500000000000000",
        "02",
        "c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3",
        "0600000000000000",
        "0700000000000000",
    );
    assert_eq!(hex(&ring.encode()), golden);
    assert_eq!(Ring::decode(&ring.encode()), Ok(ring));
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let (mut bytes, _) = header().encode();
    bytes[4] = 2;
    assert_eq!(FileHeader::decode(&bytes), Err(JournalFormatError::Checksum));
    let crc = crc32c(&bytes[..508]).to_le_bytes();
    bytes[508..].copy_from_slice(&crc);
    assert!(matches!(
        FileHeader::decode(&bytes),
        Err(JournalFormatError::Lead(LeadError::Newer { found: 2, known: 1 }))
    ));
}

#[test]
fn the_fields_fit_their_constants() {
    assert_eq!(usize::try_from(SECTOR_BYTES).unwrap(), FILE_HEADER_BYTES);
    assert_eq!(usize::try_from(RECORD_HEADER_LEN).unwrap(), RECORD_HEADER_BYTES);
    assert_eq!(RECORD_HEADER_LEN % RECORD_ALIGN_BYTES, 0);
}

proptest! {
    #[test]
    fn any_flipped_bit_of_a_header_is_noticed(bit in 0..96 * 8_usize, file_bit in 0..512 * 8_usize) {
        let (mut bytes, _) = record().encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(RecordHeader::decode(&bytes).is_err());
        let (mut bytes, _) = header().encode();
        bytes[file_bit / 8] ^= 1 << (file_bit % 8);
        prop_assert!(FileHeader::decode(&bytes).is_err());
    }

    #[test]
    fn decoders_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = FileHeader::decode(&bytes);
        let _ = RecordHeader::decode(&bytes);
        if let Ok(ring) = Ring::decode(&bytes) {
            prop_assert_eq!(ring.encode(), bytes);
        }
    }

    #[test]
    fn ring_counts_beyond_the_bytes_are_refused(files in 0..u32::MAX, trims in 0..u32::MAX) {
        let mut bytes = files.to_le_bytes().to_vec();
        bytes.extend_from_slice(&trims.to_le_bytes());
        prop_assert_eq!(Ring::decode(&bytes).is_ok(), files == 0 && trims == 0);
    }
}

/// Both header places, with a header of the given lap in each; zero leaves it blank.
fn places(laps: [u64; 2]) -> Vec<u8> {
    let sector = |lap| if lap == 0 { [0; 512] } else { FileHeader { lap, ..header() }.encode().0 };
    laps.map(sector).concat()
}

#[test]
fn the_header_of_the_higher_lap_counts_wherever_it_stands() {
    for (laps, lap, place) in [([3, 0], 3, 0), ([3, 8], 8, 1), ([9, 8], 9, 0), ([0, 8], 8, 1)] {
        let headers = FileHeaders::decode(&places(laps));
        assert_eq!((headers.current.unwrap().0.lap, headers.place, headers.doubtful), (lap, place, false));
    }
}

#[test]
fn a_header_that_was_being_written_leaves_the_one_before_and_a_doubt() {
    let mut bytes = places([3, 8]);
    bytes[600] ^= 1;
    let headers = FileHeaders::decode(&bytes);
    assert_eq!((headers.current.unwrap().0.lap, headers.doubtful), (3, true));
}

#[test]
fn no_header_at_all_is_blank_and_no_doubt() {
    for bytes in [places([0, 0]), Vec::new(), vec![0; 100]] {
        let headers = FileHeaders::decode(&bytes);
        assert!(headers.current.is_err() && !headers.doubtful);
    }
}

#[test]
fn a_newer_version_in_either_place_is_told() {
    for at in [0, 512] {
        let mut bytes = places([3, 8]);
        bytes[at + 4] = 9;
        let crc = crc32c(&bytes[at..at + 508]).to_le_bytes();
        bytes[at + 508..at + 512].copy_from_slice(&crc);
        let current = FileHeaders::decode(&bytes).current;
        assert!(matches!(current, Err(JournalFormatError::Lead(LeadError::Newer { found: 9, .. }))));
    }
}
