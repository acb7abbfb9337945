//! VIS7: a small request on block bounds is there as a whole or not at all, whatever crashes. (That no block is torn is VIS2.)
//!
//! Whoever was shown a part of such a change knows that it took effect by then and, when the process that had it was killed,
//! by then at the latest. So nothing older is shown afterwards where the rest of it went. This judges changes that were
//! never acked, too, of which a crash might leave a part. What a loss of power or a recovery leaves, or clouds hold, is judged
//! as an image, by VIS6 and SEQ5: it may lack what was shown, and no part of a change ([`super::prefix`]).

use std::collections::BTreeMap;

use super::{Verdict, stale};
use crate::history::{Era, Kind, Op, Step, VolumeHistory};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read that lacks a part of a change that had been shown before.
pub fn check(volume: &VolumeHistory) -> Verdict {
    volume.eras.iter().try_for_each(|era| {
        let shown = shown(era);
        stale::check(era, |op| known(&shown, op))
    })
}

/// When each write was first shown to somebody.
fn shown(era: &Era) -> BTreeMap<u64, Step> {
    let mut shown = BTreeMap::new();
    for read in era.ops.iter().filter(|op| op.kind == Kind::Read) {
        let Some(answered) = read.acked() else { continue };
        for (sector, cell) in (read.first..).zip(&read.cells) {
            if let Some(op) = era.written(sector, *cell) {
                let first = shown.entry(op.id).or_insert(answered);
                *first = answered.min(*first);
            }
        }
    }
    shown
}

/// By when a change has taken effect as a whole.
fn known(shown: &BTreeMap<u64, Step>, op: &Op) -> Option<Step> {
    let shown = shown.get(&op.id).filter(|_| op.is_atomic())?;
    Some(op.latest().min(*shown))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{checker::example::Story, guest::pattern::Cell};

    fn part(id: u64, from: u64) -> Vec<Cell> {
        (from..from + 8).map(|index| Cell::stamp(id, index)).collect()
    }

    #[test]
    fn a_part_that_a_kill_left_of_a_small_request_is_rejected() {
        for (count, is_kept) in [(128, false), (136, true)] {
            let mut story = Story::new(256);
            let before = story.write(0, 256);
            let unacked = story.write_unanswered(8, count);
            story.killed();
            story.read_cells(0, part(before, 0));
            story.read_cells(8, part(unacked, 0));
            assert_eq!(check(&story.volume), Ok(()));
            story.read_cells(count, part(before, count));
            assert_eq!(check(&story.volume).is_ok(), is_kept, "{count} sectors");
        }
    }

    /// The part is shown last of all, and yet the kill was before.
    #[test]
    fn a_part_that_is_shown_after_what_is_missing_is_rejected() {
        let mut story = Story::new(32);
        let before = story.write(0, 32);
        let unacked = story.write_unanswered(0, 16);
        story.read_cells(0, part(before, 0));
        story.killed();
        story.read_cells(8, part(unacked, 8));
        assert_eq!(check(&story.volume), Ok(()));
        story.read_cells(0, part(before, 0));
        story.read_cells(8, part(unacked, 8));
        assert!(check(&story.volume).unwrap_err().contains("and not Write #2"));
    }

    #[test]
    fn what_was_written_over_or_is_not_on_block_bounds_is_kept() {
        let mut story = Story::new(32);
        let before = story.write(0, 32);
        let unacked = story.write_unanswered(0, 16);
        story.killed();
        let over = story.write(8, 8);
        story.read_cells(0, part(unacked, 0));
        story.read_cells(8, part(over, 0));
        let odd = story.write_unanswered(17, 15);
        story.killed();
        story.read_cells(17, part(odd, 0)[..7].to_vec());
        story.read_cells(24, part(before, 24));
        assert_eq!(check(&story.volume), Ok(()));
    }
}
