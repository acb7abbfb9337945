//! VIS6: what a loss of power or a recovery leaves is the volume after some prefix of its changes, with nothing left out in
//! the middle.

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
    use crate::{checker::example::Story, history::Cut};

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
