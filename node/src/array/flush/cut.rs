//! Cuts a window into frames and segments.

use bytes::Bytes;
use velum_protocol::{
    format::{
        location::{FRAME_BLOCKS_MAX, Frame, RunUpdate},
        segment::{SEGMENT_BLOCKS_MAX, SEGMENT_BLOCKS_TARGET},
    },
    id::BlockIndex,
};

use crate::{
    keyring::FramePlan,
    volume::messages::{Change, Window},
};

/// The frames of each segment of a window, in block order; empty when the window only unmaps.
///
/// Adjacent blocks share a frame, up to 16 of them. Segments come out about equally long, near the target: a window
/// somewhat above a multiple of the target makes longer segments, not one that is hardly filled.
#[must_use]
pub fn segments(window: &Window) -> Vec<Vec<FramePlan>> {
    let frames = frames(&window.changes);
    let blocks: usize = frames.iter().map(|frame| frame.blocks.len()).sum();
    let count = (blocks + SEGMENT_BLOCKS_TARGET / 2) / SEGMENT_BLOCKS_TARGET;
    let share = blocks.div_ceil(count.max(1)).max(1);
    let mut segments: Vec<Vec<FramePlan>> = Vec::with_capacity(count);
    let mut filled = usize::MAX;
    for frame in frames {
        if filled >= share {
            segments.push(Vec::new());
            filled = 0;
        }
        filled += frame.blocks.len();
        assert!(filled <= SEGMENT_BLOCKS_MAX, "a share and one frame fit a segment");
        segments.last_mut().expect("one was pushed before the first frame").push(frame);
    }
    segments
}

/// What a window changes in the extent map, given where its frames came to lie: in block order, disjoint.
#[must_use]
pub fn updates(window: &Window, frames: impl Iterator<Item = Frame>) -> Vec<RunUpdate> {
    let mut updates: Vec<RunUpdate> = frames
        .map(|frame| RunUpdate { start: frame.start, count: u64::from(frame.blocks), frame: Some(frame) })
        .chain(window.changes.iter().filter_map(|change| match change {
            Change::Unmap { start, count } => Some(RunUpdate { start: *start, count: count.0, frame: None }),
            Change::Data { .. } => None,
        }))
        .collect();
    updates.sort_unstable_by_key(|update| update.start);
    updates
}

/// The frames of changes in block order; what they unmap makes none.
pub(crate) fn frames(changes: &[Change]) -> Vec<FramePlan> {
    let mut frames: Vec<FramePlan> = Vec::new();
    for change in changes {
        let Change::Data { block, contents } = change else { continue };
        match frames.last_mut().filter(|frame| continues(frame, *block)) {
            Some(frame) => frame.blocks.push(Bytes::clone(contents)),
            None => frames.push(FramePlan { start: *block, blocks: vec![Bytes::clone(contents)] }),
        }
    }
    frames
}

/// True when `block` is the next one of a frame that is not full.
fn continues(frame: &FramePlan, block: BlockIndex) -> bool {
    let blocks = frame.blocks.len();
    let next = u64::try_from(blocks).ok().and_then(|blocks| frame.start.0.checked_add(blocks));
    blocks < usize::from(FRAME_BLOCKS_MAX) && next == Some(block.0)
}

#[cfg(test)]
mod tests {
    use velum_protocol::id::{BlockCount, Epoch, Hash, Jseq, VolumeId};

    use super::*;

    fn window(changes: Vec<Change>) -> Window {
        Window { volume: VolumeId::ZERO, epoch: Epoch(1), first: Jseq(1), last: Jseq(1), chain: Hash::ZERO, changes }
    }

    fn data(block: u64) -> Change {
        Change::Data { block: BlockIndex(block), contents: Bytes::from(vec![1; 4096]) }
    }

    fn shape(window: &Window) -> Vec<Vec<(u64, usize)>> {
        let frames = |plan: &Vec<FramePlan>| plan.iter().map(|frame| (frame.start.0, frame.blocks.len())).collect();
        segments(window).iter().map(frames).collect()
    }

    #[test]
    fn adjacent_blocks_share_frames_of_at_most_sixteen() {
        let changes = (0..18).map(data).chain([data(30)]).collect();
        assert_eq!(shape(&window(changes)), [[(0, 16), (16, 2), (30, 1)]]);
    }

    #[test]
    fn a_window_that_only_unmaps_makes_no_segment() {
        let changes = vec![Change::Unmap { start: BlockIndex(1), count: BlockCount(5) }];
        let window = window(changes);
        assert!(segments(&window).is_empty());
        let unmapped = RunUpdate { start: BlockIndex(1), count: 5, frame: None };
        assert_eq!(updates(&window, std::iter::empty()), [unmapped]);
    }

    #[test]
    fn segments_of_a_large_window_are_about_equally_long() {
        for (blocks, expected) in [(1, 1), (2048, 1), (3000, 1), (3072, 2), (4096, 2), (4200, 2), (12_288, 6)] {
            let segments = segments(&window((0..blocks).map(|block| data(block * 2)).collect()));
            let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
            assert_eq!(lengths.len(), expected, "{blocks} blocks: {lengths:?}");
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= expected, "{lengths:?}");
        }
    }

    #[test]
    fn updates_come_in_block_order_with_unmapped_runs_between_frames() {
        let changes = vec![data(1), Change::Unmap { start: BlockIndex(2), count: BlockCount(3) }, data(5), data(6)];
        let window = window(changes);
        let frames = segments(&window).concat();
        let frames = frames.iter().map(|plan| Frame {
            incarnation: velum_protocol::id::Incarnation(1),
            segment: velum_protocol::id::ObjectNumber(1),
            frame: 0,
            offset: 0,
            key_epoch: velum_protocol::id::KeyEpoch(1),
            start: plan.start,
            blocks: u16::try_from(plan.blocks.len()).unwrap(),
        });
        let runs: Vec<_> = updates(&window, frames)
            .iter()
            .map(|update| (update.start.0, update.count, update.frame.is_some()))
            .collect();
        assert_eq!(runs, [(1, 1, true), (2, 3, false), (5, 2, true)]);
    }
}
