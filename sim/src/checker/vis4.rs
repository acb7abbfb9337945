//! VIS4: what was acked before a barrier was asked for survives the loss of power once the barrier is acked (d1); so does
//! every acked write with FUA.

use super::{Verdict, prefix::Explained, words};
use crate::history::{Cut, Kind, Op, VolumeHistory};

/// Judges what was there after each loss of power.
///
/// # Errors
/// The first change at d1 that was lost.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for pair in volume.eras.windows(2) {
        let [before, after] = pair else { continue };
        let Some((at, Cut::PowerLoss)) = before.cut else { continue };
        let barriers = before.ops.iter().filter(|op| op.kind == Kind::Barrier && op.acked().is_some());
        let barrier = barriers.max_by_key(|op| op.invoked);
        let covered = |op: &Op| op.acked().is_some_and(|acked| barrier.is_some_and(|barrier| acked < barrier.invoked));
        let image =
            Explained::new(before, &after.base).map_err(|why| format!("after the power loss at {at}: {why}"))?;
        if let Some((sector, lost)) = image.missing(|op| covered(op) || (op.fua && op.acked().is_some())) {
            let barrier = barrier.map_or("no barrier".to_owned(), words);
            return Err(format!("sector {sector} lacks {} after the power loss at {at}; {barrier}", words(lost)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{checker::example::Story, history::Cut};

    #[test]
    fn what_a_barrier_covers_must_be_there_and_nothing_else() {
        let mut story = Story::new(16);
        let covered = story.write(0, 8);
        story.barrier();
        story.write(0, 8);
        story.cut(Cut::PowerLoss, &[covered, 0]);
        assert_eq!(check(&story.volume), Ok(()));
    }

    #[test]
    fn a_lost_write_before_a_barrier_is_rejected() {
        let mut story = Story::new(16);
        story.write(0, 8);
        story.barrier();
        story.cut(Cut::PowerLoss, &[0, 0]);
        assert!(check(&story.volume).unwrap_err().contains("lacks"));
    }

    #[test]
    fn a_lost_write_with_fua_is_rejected() {
        let mut story = Story::new(16);
        story.write_fua(8, 8);
        story.cut(Cut::PowerLoss, &[0, 0]);
        assert!(check(&story.volume).is_err());
    }
}
