//! Updates pending on a page that is away.

use std::collections::BTreeMap;

use velum_protocol::{format::location::Frame, id::BlockIndex};

use super::{
    Mapped,
    tree::{self, Span},
};

/// The newest updates of a page's blocks, as disjoint runs; `None` is a run unmapped.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay(BTreeMap<u64, Pending>);

#[derive(Clone, Copy, Debug)]
struct Pending {
    end: u64,
    frame: Option<Frame>,
}

impl Overlay {
    /// Runs pending.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The updates, in block order.
    pub(super) fn into_updates(self) -> impl Iterator<Item = (Span, Option<Frame>)> {
        self.0.into_iter().map(|(start, pending)| (Span { start, end: pending.end }, pending.frame))
    }

    /// Adds an update; `displaced` hears of earlier pending ones that give way.
    pub(super) fn replace(&mut self, span: Span, frame: Option<&Frame>, mut displaced: impl FnMut(&Frame, u64)) {
        let Span { start, end } = span;
        if let Some((_, left)) = self.0.range_mut(..start).next_back()
            && left.end > start
        {
            let whole = *left;
            left.end = start;
            self.give_way(whole, span, &mut displaced);
        }
        while let Some((at, pending)) = self.0.range(start..end).next().map(|(at, pending)| (*at, *pending)) {
            self.0.remove(&at);
            self.give_way(pending, Span { start: at, end }, &mut displaced);
        }
        self.insert(span, frame.copied());
    }

    /// Appends where `span` lies as far as pending updates say; false when they do not say it for all of it.
    pub(super) fn lookup(&self, span: Span, out: &mut Vec<Mapped>) -> bool {
        let mut at = span.start;
        let from = self.0.range(..=at).next_back().map_or(at, |(start, _)| *start);
        for (start, pending) in self.0.range(from..span.end) {
            if pending.end <= at {
                continue;
            }
            if *start > at {
                return false;
            }
            let end = pending.end.min(span.end);
            tree::push(out, Mapped { start: BlockIndex(at), count: end - at, location: pending.frame });
            at = end;
        }
        at == span.end
    }

    /// `pending` loses what it has in `span`; what it has beyond it is put back.
    fn give_way(&mut self, pending: Pending, span: Span, displaced: &mut impl FnMut(&Frame, u64)) {
        if let Some(frame) = &pending.frame {
            displaced(frame, pending.end.min(span.end) - span.start);
        }
        if pending.end > span.end {
            self.0.insert(span.end, pending);
        }
    }

    /// Inserts into a gap, joining neighbours that say the same: trims of adjacent ranges stay one entry.
    fn insert(&mut self, span: Span, frame: Option<Frame>) {
        let Span { mut start, mut end } = span;
        if let Some((at, left)) = self.0.range(..start).next_back()
            && left.end == start
            && left.frame == frame
        {
            start = *at;
        }
        if let Some(right) = self.0.get(&end)
            && right.frame == frame
        {
            let right_end = right.end;
            self.0.remove(&end);
            end = right_end;
        }
        self.0.insert(start, Pending { end, frame });
    }
}
