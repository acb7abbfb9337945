//! VIS6: what a loss of power or a recovery leaves is the volume after some prefix of its changes, with nothing left out in
//! the middle; and VIS7 for such an image: of small requests on block bounds it holds all or nothing.

use super::{
    Verdict,
    prefix::{self, Explained},
};
use crate::history::{Cut, VolumeHistory};

/// Judges the image after each cut. A loss of power leaves a prefix that ends in the era it cuts; clouds may lag by more than
/// an era.
///
/// # Errors
/// A change that is missing although a later one is there, or bytes that no prefix explains.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for (at, after) in volume.eras.iter().enumerate().skip(1) {
        let eras = &volume.eras[..at];
        let Some((before, (at, cut))) = eras.last().and_then(|before| Some((before, before.cut?))) else { continue };
        let verdict = match cut {
            Cut::PowerLoss => Explained::new(before, &after.base).and_then(|image| image.check_closed()),
            Cut::Recovery => prefix::check_closed(eras, &after.base),
        };
        verdict.map_err(|why| format!("the image after {cut:?} at {at} is no prefix: {why}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        checker::example::Story,
        history::{Cut, Kind},
    };

    #[test]
    fn any_prefix_is_kept() {
        for kept in 0..=3 {
            let mut story = Story::new(24);
            let ids = [story.write(0, 8), story.write(8, 8), story.write(0, 8)];
            let blocks = [[0, 0], [ids[0], 0], [ids[0], ids[1]], [ids[2], ids[1]]][kept];
            story.cut(Cut::PowerLoss, &[blocks[0], blocks[1], 0]);
            assert_eq!(check(&story.volume), Ok(()));
        }
    }

    #[test]
    fn a_hole_in_the_order_is_rejected() {
        let mut story = Story::new(16);
        story.write(0, 8);
        let later = story.write(8, 8);
        story.cut(Cut::Recovery, &[0, later]);
        assert!(check(&story.volume).unwrap_err().contains("lacks"));
    }

    #[test]
    fn a_part_of_a_small_request_is_rejected_and_one_of_a_large_request_is_kept() {
        for (kind, blocks, is_kept) in
            [(Kind::Write, 16, false), (Kind::Write, 17, true), (Kind::Zero, 16, false), (Kind::Zero, 17, true)]
        {
            let mut story = Story::new(8 * 17);
            let before: Vec<u64> = (0..17).map(|block| story.write(8 * block, 8)).collect();
            // So that zeros tell of a change.
            story.cut(Cut::PowerLoss, &before);
            story.reconnect();
            let id = story.unanswered(kind, 0, 8 * blocks);
            let after = if kind == Kind::Zero { 0 } else { id };
            // Block 0 is as the request leaves it, all others are as before.
            let image = [&[after], &before[1..]].concat();
            story.cut(Cut::PowerLoss, &image);
            assert_eq!(check(&story.volume).is_ok(), is_kept, "{kind:?} of {blocks} blocks");
        }
    }

    #[test]
    fn a_recovery_may_go_back_beyond_a_power_loss_and_a_power_loss_may_not() {
        for (cut, kept) in [(Cut::Recovery, true), (Cut::PowerLoss, false)] {
            let mut story = Story::new(8);
            let (first, second) = (story.write(0, 8), story.write(0, 8));
            story.cut(Cut::PowerLoss, &[second]);
            story.reconnect();
            story.write(0, 8);
            story.cut(cut, &[first]);
            assert_eq!(check(&story.volume).is_ok(), kept);
        }
    }
}
