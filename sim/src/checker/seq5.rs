//! SEQ5: what the clouds hold is the volume after some prefix of its changes, and any subset of clouds that a recovery may
//! start from holds at least everything at d2.

use super::{Verdict, prefix};
use crate::{
    guest::pattern::Cell,
    history::{Cut, Era, VolumeHistory},
};

/// Judges an image read from clouds while the volume lives.
///
/// # Errors
/// Why it is no prefix of any era.
pub fn check_prefix(volume: &VolumeHistory, image: &[Cell]) -> Verdict {
    prefix::check_closed(&volume.eras, image)
}

/// Judges the newest image among clouds that a recovery may start from: what an operator's flush promised is there.
///
/// # Errors
/// The change at d2 that it lacks.
pub fn check_flushed(volume: &VolumeHistory, image: &[Cell]) -> Verdict {
    prefix::check_flushed(&volume.eras, image)
}

/// Judges what each recovery in the history brought back.
///
/// # Errors
/// The change at d2 that was lost.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for (at, era) in volume.eras.iter().enumerate().skip(1) {
        let before = &volume.eras[..at];
        if matches!(before.last(), Some(Era { cut: Some((_, Cut::Recovery)), .. })) {
            prefix::check_flushed(before, &era.base)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::Story;

    fn image(blocks: &[u64]) -> Vec<Cell> {
        let cell = |id: u64, index| if id == 0 { Cell::ZERO } else { Cell::stamp(id, index) };
        blocks.iter().flat_map(|id| (0..8).map(move |index| cell(*id, index))).collect()
    }

    #[test]
    fn an_image_older_than_the_last_power_loss_is_still_a_prefix() {
        let mut story = Story::new(16);
        let (first, second) = (story.write(0, 8), story.write(8, 8));
        story.cut(Cut::PowerLoss, &[first, second]);
        story.reconnect();
        let third = story.write(0, 8);
        for blocks in [[0, 0], [first, 0], [first, second], [third, second]] {
            assert_eq!(check_prefix(&story.volume, &image(&blocks)), Ok(()));
        }
        assert!(check_prefix(&story.volume, &image(&[third, 0])).is_err());
    }

    #[test]
    fn a_change_at_d2_that_is_missing_is_rejected() {
        let mut story = Story::new(16);
        let flushed = story.write(0, 8);
        story.flush();
        story.write(8, 8);
        assert_eq!(check_flushed(&story.volume, &image(&[flushed, 0])), Ok(()));
        assert!(check_flushed(&story.volume, &image(&[0, 0])).is_err());
        story.cut(Cut::Recovery, &[0, 0]);
        assert!(check(&story.volume).is_err());
    }

    #[test]
    fn a_recovery_may_end_before_a_power_loss_but_not_before_a_flush() {
        let tell = |is_flushed| {
            let mut story = Story::new(16);
            let first = story.write(0, 8);
            story.flush();
            let second = story.write(0, 8);
            story.cut(Cut::PowerLoss, &[second, 0]);
            story.reconnect();
            let third = story.write(0, 8);
            if is_flushed {
                story.flush();
            }
            (story, first, second, third)
        };
        let (mut story, first, second, third) = tell(false);
        for kept in [first, second, third] {
            assert_eq!(check_flushed(&story.volume, &image(&[kept, 0])), Ok(()));
        }
        assert!(check_flushed(&story.volume, &image(&[0, 0])).is_err());
        story.cut(Cut::Recovery, &[0, 0]);
        assert!(check(&story.volume).is_err());
        let (story, first, second, third) = tell(true);
        assert_eq!(check_flushed(&story.volume, &image(&[third, 0])), Ok(()));
        for lost in [first, second] {
            assert!(check_flushed(&story.volume, &image(&[lost, 0])).is_err());
        }
    }
}
