//! The blocks that one step moves, as far as they still lie where they were found.
//!
//! A block is noted in the same instant in which the extent map says where it lies. From then on every record that this owner
//! appends strikes out what it changes, and nobody else appends. So at any later instant a block that is left here lies where
//! it was found, without the map being asked again, and a record that is agreed before the next one strikes anything may say
//! that it lies elsewhere now.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_protocol::{
    format::location::{Frame, RunUpdate},
    id::BlockIndex,
};

use crate::{
    array::flush::cut,
    extent::Mapped,
    keyring::FramePlan,
    volume::messages::{Change, Moved},
};

/// See the module.
#[derive(Debug, Default)]
pub struct Moves(BTreeMap<u64, Move>);

#[derive(Debug)]
struct Move {
    from: Frame,
    /// Once it was read.
    contents: Option<Bytes>,
}

impl Moves {
    /// True when nothing is left to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks left to move.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Notes what the map says of the blocks of `frame`: those that lie there are to be moved. True when there is one.
    pub fn note(&mut self, frame: &Frame, mapped: &[Mapped]) -> bool {
        let mut found = false;
        for run in mapped.iter().filter(|run| run.location.as_ref() == Some(frame)) {
            for block in run.start.0..run.start.0 + run.count {
                self.0.insert(block, Move { from: *frame, contents: None });
                found = true;
            }
        }
        found
    }

    /// Takes in the blocks of a frame, as far as they are still to be moved from there.
    pub fn read(&mut self, frame: &Frame, blocks: Vec<Bytes>) {
        for (block, contents) in (frame.start.0..).zip(blocks) {
            if let Some(moved) = self.0.get_mut(&block).filter(|moved| moved.from == *frame) {
                moved.contents = Some(contents);
            }
        }
    }

    /// A record was appended: what it changes does not lie where it was found any more.
    pub fn strike(&mut self, updates: &[RunUpdate]) {
        for update in updates {
            let end = update.start.0.saturating_add(update.count);
            while let Some(block) = self.0.range(update.start.0..end).next().map(|(block, _)| *block) {
                self.0.remove(&block);
            }
        }
    }

    /// The frames to seal, in block order. Neighbours share one, whichever segments they come from.
    #[must_use]
    pub fn plan(&self) -> Vec<FramePlan> {
        let read = self.0.iter().filter_map(|(block, moved)| Some((*block, moved.contents.clone()?)));
        let changes: Vec<Change> =
            read.map(|(block, contents)| Change::Data { block: BlockIndex(block), contents }).collect();
        cut::frames(&changes)
    }

    /// Where blocks lie once they were sealed as `frames`: of each frame the runs that are left.
    #[must_use]
    pub fn updates(&self, frames: &[Frame]) -> Vec<RunUpdate> {
        let mut updates: Vec<RunUpdate> = Vec::with_capacity(frames.len());
        for frame in frames {
            let first = updates.len();
            for (block, _) in self.0.range(frame.start.0..frame.start.0 + u64::from(frame.blocks)) {
                match updates.get_mut(first..).and_then(<[_]>::last_mut) {
                    Some(run) if run.start.0 + run.count == *block => run.count += 1,
                    _ => updates.push(RunUpdate { start: BlockIndex(*block), count: 1, frame: Some(*frame) }),
                }
            }
        }
        updates
    }

    /// What is left, in block order, for the caches and for whoever waits for it.
    pub fn into_moved(self) -> impl Iterator<Item = Moved> {
        self.0.into_iter().filter_map(|(block, moved)| {
            Some(Moved { block: BlockIndex(block), from: moved.from, contents: moved.contents? })
        })
    }
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
