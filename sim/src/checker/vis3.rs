//! VIS3: an acked write is seen by every later read until something newer is (d0). Weaker than VIS1 and easier to read: it
//! compares pairs and names the write that was lost.

use super::{Verdict, words};
use crate::{
    guest::pattern::Cell,
    history::{Era, Op, Step, VolumeHistory},
};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read that shows what an acked change had replaced before the read was asked for.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for era in &volume.eras {
        for (block, ops) in era.by_block() {
            let changes: Vec<_> = (block * 8..block * 8 + 8).map(|sector| Changes::of(&ops, sector)).collect();
            for read in ops.iter().filter(|op| !op.is_change()) {
                let first = (block * 8).max(read.first);
                for sector in first..(block * 8 + 8).min(read.first + read.count) {
                    let cell = read.cells[(sector - read.first) as usize];
                    let changes = &changes[(sector - block * 8) as usize];
                    let latest = changes.latest(era, sector, cell);
                    if let Some(lost) = latest.and_then(|latest| changes.replaced(latest, read.invoked)) {
                        let seen = cell.origin().map_or("zeros".to_owned(), |(write, _)| format!("write #{write}"));
                        return Err(format!("sector {sector} of {} shows {seen} and not {}", words(read), words(lost)));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The changes of one sector.
struct Changes<'a> {
    /// In the order of their invocation.
    all: Vec<&'a Op>,
    /// For each: when it or one after it was first acked; the end of time when none was.
    first_ack: Vec<Step>,
    /// The last step at which one of them may have left zeros.
    zeroed: Option<Step>,
}

impl<'a> Changes<'a> {
    fn of(ops: &[&'a Op], sector: u64) -> Self {
        let all: Vec<_> = ops.iter().copied().filter(|op| op.is_change() && op.covers(sector)).collect();
        let mut first_ack: Vec<_> = all.iter().map(|op| op.acked().unwrap_or(Step::MAX)).collect();
        let mut soonest = Step::MAX;
        for acked in first_ack.iter_mut().rev() {
            soonest = soonest.min(*acked);
            *acked = soonest;
        }
        let zeroed = all.iter().filter(|op| op.cell(sector) == Cell::ZERO).map(|op| op.latest()).max();
        Self { all, first_ack, zeroed }
    }

    /// The last step at which the sector may have come to hold `cell`.
    fn latest(&self, era: &Era, sector: u64, cell: Cell) -> Option<Step> {
        let changed = if cell == Cell::ZERO { self.zeroed } else { era.written(sector, cell).map(Op::latest) };
        changed.or((cell == era.base[sector as usize]).then_some(0))
    }

    /// The change that was asked for after `latest` and acked before a read was asked for at `asked`.
    fn replaced(&self, latest: Step, asked: Step) -> Option<&'a Op> {
        let after = self.all.partition_point(|op| op.invoked <= latest);
        if *self.first_ack.get(after)? >= asked {
            return None;
        }
        self.all[after..].iter().copied().find(|op| op.acked().is_some_and(|acked| acked < asked))
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        checker::example::Story,
        guest::pattern::Cell,
        history::{Era, Op},
        rng::Rng,
    };

    /// Compares every pair: true when a read of `sector` shows what `lost` had replaced.
    fn is_stale(era: &Era, sector: u64, read: &Op) -> bool {
        let cell = read.cells[(sector - read.first) as usize];
        let here = || era.changes().filter(|op| op.covers(sector));
        let sources = here().filter(|op| op.cell(sector) == cell).map(Op::latest);
        let Some(latest) = sources.chain((cell == Cell::ZERO).then_some(0)).max() else { return false };
        here().any(|lost| lost.invoked > latest && lost.acked().is_some_and(|acked| acked < read.invoked))
    }

    #[test]
    fn random_histories_are_judged_as_by_comparing_every_pair() {
        let (mut kept, mut broken) = (0, 0);
        for seed in 0..5_000 {
            let story = Story::random(&Rng::new(seed, "pairs"));
            let era = story.volume.era();
            let reads = || era.ops.iter().filter(|op| !op.cells.is_empty());
            let stale = |read: &&Op| (read.first..read.first + read.count).any(|sector| is_stale(era, sector, read));
            let is_kept = !reads().any(|read| stale(&read));
            assert_eq!(check(&story.volume).is_ok(), is_kept, "{:#?}", story.volume);
            if is_kept { kept += 1 } else { broken += 1 }
        }
        assert!(kept > 1_000 && broken > 500, "{kept} kept, {broken} broken");
    }

    #[test]
    fn the_write_that_was_lost_is_named() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        let lost = story.write(0, 8);
        story.killed();
        story.reconnect();
        story.read(0, 8, lost);
        assert_eq!(check(&story.volume), Ok(()));
        story.read(0, 8, first);
        assert!(check(&story.volume).unwrap_err().contains(&format!("not Write #{lost}")));
    }

    #[test]
    fn zeros_after_an_acked_write_are_rejected() {
        let mut story = Story::new(64);
        story.write(0, 8);
        story.read_zeros(0, 8);
        assert!(check(&story.volume).is_err());
    }
}
