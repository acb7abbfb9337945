//! Which reads show what had been replaced before they were asked for?
//!
//! A change that is known to have taken effect by some step replaced what the sector held before. Whoever asks after that
//! step must not be shown what can only be older than the change.

use super::{Verdict, words};
use crate::{
    guest::pattern::{BLOCK_SECTORS, Cell},
    history::{Era, Op, Step},
};

/// Judges every successful read of an era; `known` says by which step a change has taken effect, if that is known at all.
///
/// # Errors
/// The first read that shows what was replaced.
pub(crate) fn check(era: &Era, known: impl Fn(&Op) -> Option<Step>) -> Verdict {
    for (block, ops) in era.by_block() {
        let bounds = block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS;
        let changes: Vec<_> = bounds.clone().map(|sector| Changes::of(&ops, sector, &known)).collect();
        for read in ops.iter().filter(|op| !op.is_change()) {
            for sector in bounds.start.max(read.first)..bounds.end.min(read.first + read.count) {
                let cell = read.cells[(sector - read.first) as usize];
                let changes = &changes[(sector - bounds.start) as usize];
                let latest = changes.latest(era, sector, cell);
                if let Some(lost) = latest.and_then(|latest| changes.replaced(latest, read.invoked)) {
                    let seen = cell.origin().map_or("zeros".to_owned(), |(write, _)| format!("write #{write}"));
                    return Err(format!("sector {sector} of {} shows {seen} and not {}", words(read), words(lost)));
                }
            }
        }
    }
    Ok(())
}

/// The changes of one sector.
struct Changes<'a> {
    /// In the order of their invocation, each with the step by which it is known to have taken effect; the end of time when it
    /// is not known.
    all: Vec<(&'a Op, Step)>,
    /// For each: when it or one after it was first known.
    first_known: Vec<Step>,
    /// The last step at which one of them may have left zeros.
    zeroed: Option<Step>,
}

impl<'a> Changes<'a> {
    fn of(ops: &[&'a Op], sector: u64, known: &impl Fn(&Op) -> Option<Step>) -> Self {
        let here = ops.iter().copied().filter(|op| op.is_change() && op.covers(sector));
        let all: Vec<_> = here.map(|op| (op, known(op).unwrap_or(Step::MAX))).collect();
        let mut first_known: Vec<_> = all.iter().map(|(_, known)| *known).collect();
        let mut soonest = Step::MAX;
        for known in first_known.iter_mut().rev() {
            soonest = soonest.min(*known);
            *known = soonest;
        }
        let zeroes = all.iter().filter(|(op, _)| op.cell(sector) == Cell::ZERO);
        let zeroed = zeroes.map(|(op, _)| op.latest()).max();
        Self { all, first_known, zeroed }
    }

    /// The last step at which the sector may have come to hold `cell`.
    fn latest(&self, era: &Era, sector: u64, cell: Cell) -> Option<Step> {
        let changed = if cell == Cell::ZERO { self.zeroed } else { era.written(sector, cell).map(Op::latest) };
        changed.or((cell == era.base[sector as usize]).then_some(0))
    }

    /// The change that was asked for after `latest` and known to have taken effect before a read was asked for at `asked`.
    fn replaced(&self, latest: Step, asked: Step) -> Option<&'a Op> {
        let after = self.all.partition_point(|(op, _)| op.invoked <= latest);
        if *self.first_known.get(after)? >= asked {
            return None;
        }
        self.all[after..].iter().find(|(_, known)| *known < asked).map(|(op, _)| *op)
    }
}
