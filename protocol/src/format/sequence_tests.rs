//! Sequence records read back, and bad ones are refused.

use proptest::prelude::*;

use super::*;

const KEYS: KeyEpoch = KeyEpoch(3);

fn segment(number: u64) -> ObjectRef {
    ObjectRef {
        incarnation: Incarnation(1),
        number: ObjectNumber(number),
        bytes: 65_536,
        hash: Hash([u8::try_from(number % 251).unwrap(); 32]),
    }
}

/// Lays runs into frames the way a flush does: every `per_segment` frames a new segment.
fn flushed(runs: &[(u64, u16)], per_segment: usize) -> Body {
    let mut body = Body { journal_chain: Hash([4; 32]), segments: Vec::new(), updates: Vec::new() };
    let (mut frame, mut offset) = (0, FRAMES_OFFSET);
    for (place, (start, blocks)) in runs.iter().enumerate() {
        if place % per_segment == 0 {
            body.segments.push(segment(100 + u64::try_from(place).unwrap()));
            (frame, offset) = (0, FRAMES_OFFSET);
        }
        let segment = body.segments.last().unwrap();
        body.updates.push(RunUpdate {
            start: BlockIndex(*start),
            count: u64::from(*blocks),
            frame: Some(Frame {
                incarnation: segment.incarnation,
                segment: segment.number,
                frame,
                offset,
                key_epoch: KEYS,
                start: BlockIndex(*start),
                blocks: *blocks,
            }),
        });
        frame += 1;
        offset += u32::from(*blocks) * 4096 + FRAME_OVERHEAD_BYTES;
    }
    body
}

fn mixed() -> Body {
    let mut body = flushed(&[(2, 1), (40, 16)], 1);
    body.updates.insert(1, RunUpdate { start: BlockIndex(3), count: 5, frame: None });
    let old = Frame {
        segment: ObjectNumber(7),
        key_epoch: KeyEpoch(2),
        frame: 9,
        offset: 5000,
        start: BlockIndex(70),
        blocks: 8,
        ..body.updates[0].frame.unwrap()
    };
    body.updates.push(RunUpdate { start: BlockIndex(72), count: 3, frame: Some(old) });
    body
}

#[test]
fn the_body_has_its_golden_bytes() {
    let mut golden = vec![4; 32];
    golden.push(2);
    for (number, fill) in [(100_u64, 100_u8), (101, 101)] {
        golden.extend_from_slice(&[1, 0, 0, 0]);
        golden.extend_from_slice(&number.to_le_bytes());
        golden.extend_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[fill; 32]);
    }
    golden.extend_from_slice(&[4, 2, 2, 0, 16, 32, 62, 16, 11, 1, 7, 9, 0x88, 0x27, 2, 2, 8]);
    assert_eq!(mixed().encode(KEYS), golden);
    assert_eq!(Body::decode(&golden, KEYS), Ok(mixed()));
}

#[test]
fn the_link_has_its_golden_bytes() {
    let link = Link { epoch: Epoch(1), first: Jseq(2), last: Jseq(3), prev_hash: Hash([9; 32]) };
    let mut golden = [9; 56];
    golden[..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(link.to_detail(), golden);
    assert_eq!(Link::from_detail(&golden), Ok(link));
    let empty = Link { first: Jseq(4), ..link };
    assert_eq!(Link::from_detail(&empty.to_detail()), Ok(empty));
    assert!(empty.is_empty() && !link.is_empty());
    let inverted = Link { first: Jseq(5), ..link };
    assert_eq!(Link::from_detail(&inverted.to_detail()), Err(ReadError::Field("window")));
}

#[test]
fn random_single_blocks_cost_a_few_bytes_a_run() {
    let runs: Vec<(u64, u16)> = (0..2048).map(|place| (place * 131_072, 1)).collect();
    let bytes = flushed(&runs, 2048).encode(KEYS).len();
    assert!(bytes < 2048 * 6, "{bytes}");
}

#[test]
fn every_truncation_is_refused() {
    let bytes = mixed().encode(KEYS);
    for length in 0..bytes.len() {
        assert!(Body::decode(&bytes[..length], KEYS).is_err(), "{length}");
    }
}

#[test]
fn a_run_beyond_the_largest_volume_is_refused() {
    let mut body = mixed();
    body.updates = vec![RunUpdate { start: BlockIndex(BLOCKS_MAX), count: 1, frame: None }];
    assert_eq!(Body::decode(&body.encode(KEYS), KEYS), Err(ReadError::Field("run")));
}

#[test]
fn a_frame_of_a_segment_the_record_does_not_name_is_refused() {
    let mut bytes = vec![0; 32];
    // No segments, one update: gap 0, one block, next segment.
    bytes.extend_from_slice(&[0, 1, 0, 2]);
    assert_eq!(Body::decode(&bytes, KEYS), Err(ReadError::Field("segment")));
}

#[test]
fn counts_that_the_bytes_cannot_hold_are_refused_before_allocating() {
    let mut bytes = vec![0; 32];
    bytes.extend_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(Body::decode(&bytes, KEYS), Err(ReadError::Truncated));
}

proptest! {
    #[test]
    fn any_flush_reads_back(
        gaps in prop::collection::vec((0_u64..1 << 20, 1_u16..=16), 1..300),
        per_segment in 1_usize..50,
        unmaps in prop::collection::vec(any::<bool>(), 300),
    ) {
        let mut end = 0;
        let runs: Vec<(u64, u16)> = gaps
            .into_iter()
            .map(|(gap, blocks)| {
                let start = end + gap;
                end = start + u64::from(blocks);
                (start, blocks)
            })
            .collect();
        let mut body = flushed(&runs, per_segment);
        // Runs that are unmapped, or that name only a part of their frame, fall back to other forms.
        for (update, unmap) in body.updates.iter_mut().zip(unmaps) {
            if unmap && update.start.0.is_multiple_of(2) {
                update.frame = None;
            } else if unmap && update.count > 1 {
                update.count -= 1;
            }
        }
        let bytes = body.encode(KEYS);
        prop_assert_eq!(Body::decode(&bytes, KEYS), Ok(body));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Body::decode(&bytes, KEYS);
    }

    #[test]
    fn damaged_bytes_never_panic(place in 0_usize..150, fill: u8) {
        let mut bytes = mixed().encode(KEYS);
        let place = place % bytes.len();
        bytes[place] = fill;
        let _ = Body::decode(&bytes, KEYS);
    }
}
