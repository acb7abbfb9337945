//! What is left to move after records have come in between.

use proptest::prelude::*;
use velum_protocol::{
    format::metadata::ObjectRef,
    id::{BLOCK_LEN, Hash, Incarnation, KeyEpoch, ObjectNumber},
};

use super::*;
use crate::extent::ExtentMap;

const BLOCKS: u64 = 64;

fn frame(segment: u64, start: u64, blocks: u16) -> Frame {
    Frame {
        incarnation: Incarnation(1),
        segment: ObjectNumber(segment),
        frame: u32::try_from(start).unwrap(),
        offset: 136,
        key_epoch: KeyEpoch(1),
        start: BlockIndex(start),
        blocks,
    }
}

fn mapped(start: u64, count: u64, location: Option<Frame>) -> Mapped {
    Mapped { start: BlockIndex(start), count, location }
}

fn contents(blocks: u16, mark: u8) -> Vec<Bytes> {
    vec![Bytes::from(vec![mark; BLOCK_LEN]); usize::from(blocks)]
}

fn update(start: u64, count: u64, frame: Option<Frame>) -> RunUpdate {
    RunUpdate { start: BlockIndex(start), count, frame }
}

#[test]
fn only_blocks_that_lie_in_the_frame_are_moved() {
    let (old, other) = (frame(1, 0, 4), frame(2, 2, 1));
    let mut moves = Moves::default();
    let now = [mapped(0, 1, Some(old)), mapped(1, 1, None), mapped(2, 1, Some(other)), mapped(3, 1, Some(old))];
    assert!(moves.note(&old, &now));
    moves.read(&old, contents(4, 7));
    let starts: Vec<_> = moves.plan().iter().map(|frame| (frame.start.0, frame.blocks.len())).collect();
    assert_eq!(starts, [(0, 1), (3, 1)]);
    assert!(!moves.note(&frame(3, 9, 2), &[mapped(9, 2, None)]));
}

#[test]
fn neighbours_of_different_segments_share_a_frame() {
    let mut moves = Moves::default();
    for (segment, start) in [(1, 4), (2, 5), (3, 6)] {
        let old = frame(segment, start, 1);
        moves.note(&old, &[mapped(start, 1, Some(old))]);
        moves.read(&old, contents(1, 1));
    }
    let new = frame(9, 4, 3);
    assert_eq!(moves.plan().len(), 1);
    assert_eq!(moves.updates(&[new]), [update(4, 3, Some(new))]);
}

/// A guest overwrites one block of a frame while the frame is on its way to its new segment: the record that moves the frame
/// comes later in the sequence, and would bring the old contents back.
#[test]
fn a_block_overwritten_while_its_move_is_under_way_stays_where_the_guest_put_it() {
    let (old, new) = (frame(1, 0, 4), frame(9, 0, 4));
    let mut moves = Moves::default();
    moves.note(&old, &[mapped(0, 4, Some(old))]);
    moves.read(&old, contents(4, 1));
    moves.strike(&[update(1, 1, Some(frame(5, 1, 1)))]);
    assert_eq!(moves.updates(&[new]), [update(0, 1, Some(new)), update(2, 2, Some(new))]);
    moves.strike(&[update(0, 1 << 40, None)]);
    assert!(moves.updates(&[new]).is_empty());
    assert_eq!(moves.into_moved().count(), 0);
}

#[test]
fn what_was_struck_out_before_it_was_read_is_not_read() {
    let old = frame(1, 0, 2);
    let mut moves = Moves::default();
    moves.note(&old, &[mapped(0, 2, Some(old))]);
    moves.strike(&[update(0, 1, Some(frame(5, 0, 1)))]);
    moves.read(&old, contents(2, 1));
    assert_eq!(moves.len(), 1);
    assert_eq!(moves.plan()[0].start, BlockIndex(1));
}

/// Applies what a record says, as a volume does.
fn apply(map: &mut ExtentMap, updates: &[RunUpdate]) {
    for frame in updates.iter().filter_map(|update| update.frame) {
        let (incarnation, number) = (frame.incarnation, frame.segment);
        map.add_segment(&ObjectRef { incarnation, number, bytes: 1, hash: Hash::ZERO });
    }
    updates.iter().for_each(|update| map.apply(update).unwrap());
}

fn located(map: &mut ExtentMap) -> Vec<Mapped> {
    let mut out = Vec::new();
    map.lookup(BlockIndex(0), BLOCKS, &mut out).unwrap();
    out
}

fn at(map: &[Mapped], block: u64) -> Option<Frame> {
    let run = map.iter().find(|run| run.start.0 <= block && block < run.start.0 + run.count);
    run.expect("every block of the volume is told of").location
}

proptest! {
    /// Whatever guests write and give up in between: each block that the relocation moves lies at the moment of its record
    /// exactly where it was found, and each block that still lies there is moved.
    #[test]
    fn a_relocation_applies_where_the_location_is_unchanged_and_nowhere_else(
        before in prop::collection::vec((0..BLOCKS, 1_u16..=16), 1..20),
        between in prop::collection::vec((0..BLOCKS, 1_u16..=16, any::<bool>()), 0..20),
        early in any::<prop::sample::Index>(),
    ) {
        let run = |start: u64, blocks: u16| (start, u64::from(blocks).min(BLOCKS - start));
        let mut map = ExtentMap::empty(BLOCKS);
        let mut segment = 1;
        let mut write = |start: u64, blocks: u16, gone: bool| {
            let (start, count) = run(start, blocks);
            segment += 1;
            let frame = frame(segment, start, u16::try_from(count).unwrap());
            update(start, count, (!gone).then_some(frame))
        };
        for (start, blocks) in before {
            apply(&mut map, &[write(start, blocks, false)]);
        }
        let found = located(&mut map);
        let frames: std::collections::BTreeSet<Frame> = found.iter().filter_map(|run| run.location).collect();
        let mut moves = Moves::default();
        for frame in &frames {
            moves.note(frame, &found);
        }
        let early = early.index(between.len() + 1);
        let (first, later) = between.split_at(early);
        let mut struck = |moves: &mut Moves, map: &mut ExtentMap, writes: &[(u64, u16, bool)]| {
            for (start, blocks, gone) in writes {
                let updates = [write(*start, *blocks, *gone)];
                moves.strike(&updates);
                apply(map, &updates);
            }
        };
        struck(&mut moves, &mut map, first);
        frames.iter().for_each(|frame| moves.read(frame, contents(frame.blocks, 1)));
        let new: Vec<Frame> = (0_u32..)
            .zip(moves.plan())
            .map(|(place, plan)| Frame {
                frame: place,
                ..frame(1000, plan.start.0, u16::try_from(plan.blocks.len()).unwrap())
            })
            .collect();
        struck(&mut moves, &mut map, later);
        let moved = moves.updates(&new);
        let now = located(&mut map);
        let covers = |block: u64| moved.iter().any(|run| run.start.0 <= block && block < run.start.0 + run.count);
        for block in 0..BLOCKS {
            let unchanged = at(&found, block).is_some() && at(&now, block) == at(&found, block);
            prop_assert_eq!(covers(block), unchanged, "block {}", block);
        }
        apply(&mut map, &moved);
        prop_assert!(moved.windows(2).all(|pair| pair[0].start.0 + pair[0].count <= pair[1].start.0));
    }
}
