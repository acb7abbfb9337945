//! VIS3: an acked write is seen by every later read until something newer is (d0). Weaker than VIS1 and easier to read: it
//! compares pairs and names the write that was lost.

use super::{Verdict, stale};
use crate::history::{Op, VolumeHistory};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read that shows what an acked change had replaced before the read was asked for.
pub fn check(volume: &VolumeHistory) -> Verdict {
    volume.eras.iter().try_for_each(|era| stale::check(era, Op::acked))
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
