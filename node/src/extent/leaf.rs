//! A leaf in memory: sorted disjoint runs of 16 bytes over a table of segments, as they stand in the page.

use std::cell::Cell;

use velum_protocol::{
    format::{
        location::Frame,
        page::{LEAF_BLOCKS, LeafPayload, Run, SegmentId},
    },
    id::BlockIndex,
};

use super::{Mapped, tree};

/// A resident leaf.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Its contents; other than in an encoded leaf, segments stand in any order and may be unused.
    content: LeafPayload,
    /// The highest segment the table has had: a higher one needs no search.
    newest: Option<SegmentId>,
    /// Used since the clock hand came by.
    pub(super) touched: Cell<bool>,
}

impl Leaf {
    /// A leaf without runs.
    pub(super) fn vacant(first: u64) -> Self {
        Self::of(LeafPayload { first: BlockIndex(first), segments: Vec::new(), runs: Vec::new() })
    }

    /// A decoded leaf.
    pub(super) fn of(content: LeafPayload) -> Self {
        let newest = content.segments.last().copied();
        Self { content, newest, touched: Cell::new(true) }
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.content.runs.is_empty()
    }

    /// Memory it takes, about.
    pub(super) fn weight(&self) -> u64 {
        let entries = self.content.runs.capacity() + self.content.segments.capacity();
        (entries * size_of::<Run>() + size_of::<Self>()) as u64
    }

    /// The leaf as it is written: segments sorted, each used.
    pub(super) fn canonical(&self) -> LeafPayload {
        let LeafPayload { first, segments, runs } = &self.content;
        let mut used = vec![false; segments.len()];
        for run in runs {
            *used.get_mut(usize::from(run.segment)).expect(IN_TABLE) = true;
        }
        let mut order: Vec<(SegmentId, usize)> = Vec::new();
        for (index, (segment, used)) in segments.iter().zip(&used).enumerate() {
            if *used {
                order.push((*segment, index));
            }
        }
        order.sort_unstable();
        let mut renamed = vec![0_u16; segments.len()];
        for (new, (_, old)) in order.iter().enumerate() {
            *renamed.get_mut(*old).expect(IN_TABLE) = u16::try_from(new).expect(TABLE_BOUND);
        }
        let rename = |run: &Run| Run { segment: *renamed.get(usize::from(run.segment)).expect(IN_TABLE), ..*run };
        LeafPayload {
            first: *first,
            segments: order.into_iter().map(|(segment, _)| segment).collect(),
            runs: runs.iter().map(rename).collect(),
        }
    }

    /// Whether any block of `start..end` is mapped; both counted from the leaf's first block.
    pub(super) fn overlaps(&self, start: u16, end: u16) -> bool {
        let next = first_ending_after(&self.content.runs, start);
        self.content.runs.get(next).is_some_and(|run| run.start < end)
    }

    /// Maps `start..end` to `frame`, or to nothing. `displaced` hears of every run that gives way.
    pub(super) fn replace(
        &mut self,
        start: u16,
        end: u16,
        frame: Option<&Frame>,
        mut displaced: impl FnMut(&SegmentId, u64),
    ) {
        let added = frame.map(|frame| self.run_of(start, end, frame));
        let LeafPayload { segments, runs, .. } = &mut self.content;
        let mut low = first_ending_after(runs, start);
        let mut high = low;
        let mut kept_left = None;
        let mut kept_right = None;
        for run in runs.iter().skip(low).take_while(|run| run.start < end) {
            high += 1;
            let segment = segments.get(usize::from(run.segment)).expect(IN_TABLE);
            displaced(segment, u64::from(run.end().min(end) - run.start.max(start)));
            if run.start < start {
                kept_left = Some(cut(run, run.start, start));
            }
            if run.end() > end {
                kept_right = Some(cut(run, end, run.end()));
            }
        }
        let mut middle = added;
        if let Some(run) = middle.as_mut() {
            // Neighbours in the same frame become one run again, so that a frame mapped piece by piece costs one entry.
            if kept_left.is_none() && low > 0 && runs.get(low - 1).is_some_and(|left| joins(left, run)) {
                low -= 1;
                kept_left = runs.get(low).copied();
            }
            if kept_right.is_none() && runs.get(high).is_some_and(|right| joins(run, right)) {
                kept_right = runs.get(high).copied();
                high += 1;
            }
            if let Some(left) = kept_left.take_if(|left| joins(left, run)) {
                *run = Run { count: left.count + run.count, ..left };
            }
            if let Some(right) = kept_right.take_if(|right| joins(run, right)) {
                run.count += right.count;
            }
        }
        runs.splice(low..high, kept_left.into_iter().chain(middle).chain(kept_right));
        self.drop_unused();
    }

    /// Appends where `start..end` lies.
    pub(super) fn lookup(&self, start: u16, end: u16, out: &mut Vec<Mapped>) {
        self.touched.set(true);
        let runs = &self.content.runs;
        let first = self.content.first.0;
        let mut at = start;
        let from = first_ending_after(runs, start);
        for run in runs.iter().skip(from).take_while(|run| run.start < end) {
            if at < run.start {
                tree::push(out, mapped(first, at, run.start, None));
            }
            let (low, high) = (run.start.max(start), run.end().min(end));
            let frame = self.content.frame(run).expect("runs name segments of their own leaf");
            tree::push(out, mapped(first, low, high, Some(frame)));
            at = high;
        }
        if at < end {
            tree::push(out, mapped(first, at, end, None));
        }
    }

    fn run_of(&mut self, start: u16, end: u16, frame: &Frame) -> Run {
        let skip = self.content.first.0 + u64::from(start) - frame.start.0;
        Run {
            start,
            count: u8::try_from(end - start).expect(IN_FRAME),
            skip: u8::try_from(skip).expect(IN_FRAME),
            blocks: u8::try_from(frame.blocks).expect(IN_FRAME),
            segment: self.segment_index(frame),
            frame: frame.frame,
            offset: frame.offset,
        }
    }

    fn segment_index(&mut self, frame: &Frame) -> u16 {
        let id = SegmentId { incarnation: frame.incarnation, number: frame.segment, key_epoch: frame.key_epoch };
        let segments = &mut self.content.segments;
        // A flush maps many runs of its own new segments: those stand at the end, and a new one is above all others.
        let known = if self.newest.is_none_or(|newest| id > newest) {
            None
        } else {
            segments.iter().rposition(|segment| *segment == id)
        };
        let index = known.unwrap_or_else(|| {
            segments.push(id);
            segments.len() - 1
        });
        self.newest = self.newest.max(Some(id));
        u16::try_from(index).expect(TABLE_BOUND)
    }

    /// Keeps the table shorter than about twice the runs, by which it is bounded.
    fn drop_unused(&mut self) {
        if self.content.segments.len() > 2 * self.content.runs.len() + 16 {
            self.content = self.canonical();
            self.newest = self.content.segments.last().copied();
        }
    }
}

/// Blocks a leaf covers, for use with slices.
const LEAF_BLOCKS_LEN: usize = 4096;
const _: () = assert!(LEAF_BLOCKS_LEN as u64 == LEAF_BLOCKS, "one number, two types");

const IN_TABLE: &str = "runs name segments of their own leaf";
const IN_FRAME: &str = "updates are checked to lie in their frame, which has at most 16 blocks";
const TABLE_BOUND: &str = "a leaf has at most 4,096 runs and its segment table about twice as many entries";

/// Index of the first run that ends after `block`. A leaf written in small pieces has its runs about evenly spread, so the
/// search begins where the run would be then and widens from there: in a map larger than the processor's cache that
/// touches two or three lines of it where halving from the middle touches nine.
fn first_ending_after(runs: &[Run], block: u16) -> usize {
    /// Runs looked at around the guess before widening: two cache lines to each side.
    const STEP: usize = 8;
    let before = |index: usize| runs.get(index).is_some_and(|run| run.end() <= block);
    let guess = usize::from(block) * runs.len() / LEAF_BLOCKS_LEN;
    let (mut low, mut high, mut step) = (guess, guess, STEP);
    if before(guess) {
        while before(high) {
            low = high + 1;
            high += step;
            step *= 2;
        }
    } else {
        while low > 0 && !before(low - 1) {
            high = low - 1;
            low = low.saturating_sub(step);
            step *= 2;
        }
    }
    let high = high.min(runs.len());
    low + runs.get(low..high).map_or(0, |between| between.partition_point(|run| run.end() <= block))
}

/// The part `start..end` of a run.
fn cut(run: &Run, start: u16, end: u16) -> Run {
    Run {
        start,
        count: u8::try_from(end - start).expect(IN_FRAME),
        skip: run.skip + u8::try_from(start - run.start).expect(IN_FRAME),
        ..*run
    }
}

/// Whether `right` goes on where `left` ends, in the volume and in the same frame.
fn joins(left: &Run, right: &Run) -> bool {
    left.end() == right.start
        && left.skip + left.count == right.skip
        && (left.segment, left.frame, left.offset, left.blocks)
            == (right.segment, right.frame, right.offset, right.blocks)
}

fn mapped(first: u64, start: u16, end: u16, location: Option<Frame>) -> Mapped {
    Mapped { start: BlockIndex(first + u64::from(start)), count: u64::from(end - start), location }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_search_finds_what_halving_finds(starts in prop::collection::btree_set(0_u16..4096, 0..600), block in 0_u16..=4096) {
            let run = |start: u16| Run { start, count: 1, skip: 0, blocks: 1, segment: 0, frame: 0, offset: 0 };
            let runs: Vec<Run> = starts.into_iter().map(run).collect();
            let found = first_ending_after(&runs, block);
            prop_assert_eq!(found, runs.partition_point(|run| run.end() <= block));
        }
    }
}
