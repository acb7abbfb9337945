//! VIS5: lineage honesty. A recovery that lost acked writes has changed the lineage; and, per connection for plain export
//! names, a connection from before a loss gets no success any more, so that its guest cannot take the past for unbroken.

use super::{Verdict, prefix::Explained, words};
use crate::history::{Era, VolumeHistory};

/// Judges every ack after a cut, and the lineage after it.
///
/// # Errors
/// The first success on a connection that is older than the cut before it, or a loss that the lineage hides.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for pair in volume.eras.windows(2) {
        let [before, after] = pair else { continue };
        let Some((cut, _)) = before.cut else { continue };
        check_lineage(before, after)?;
        let survivor = after.ops.iter().chain(&before.ops).find(|op| {
            volume.connections[op.connection as usize].at < cut && op.acked().is_some_and(|acked| acked > cut)
        });
        if let Some(op) = survivor {
            return Err(format!("{} succeeded although its connection is older than the loss at {cut}", words(op)));
        }
    }
    Ok(())
}

fn check_lineage(before: &Era, after: &Era) -> Verdict {
    let (Some(old), Some(new)) = (before.lineage, after.lineage) else { return Ok(()) };
    // What is no prefix of the era goes back to one before it.
    let lost = match Explained::new(before, &after.base) {
        Ok(image) => image.missing(|op| op.acked().is_some()).map(|(at, op)| format!("sector {at} lost {}", words(op))),
        Err(why) => Some(why),
    };
    match lost {
        Some(lost) if old >= new => {
            Err(format!("{lost}, and the lineage, which was {old}, is {new} now as if nothing had happened"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{checker::example::Story, history::Cut};

    #[test]
    fn an_old_connection_that_still_succeeds_is_rejected() {
        let mut story = Story::new(16);
        story.write(0, 8);
        story.cut(Cut::PowerLoss, &[0, 0]);
        story.reconnect();
        story.write(0, 8);
        assert_eq!(check(&story.volume), Ok(()));
        let mut story = Story::new(16);
        story.write(0, 8);
        story.cut(Cut::PowerLoss, &[0, 0]);
        story.write(0, 8);
        assert!(check(&story.volume).is_err());
    }

    #[test]
    fn a_loss_that_the_lineage_hides_is_rejected() {
        for cut in [Cut::Recovery, Cut::PowerLoss] {
            for (new, honest) in [(1, false), (2, true)] {
                let mut story = Story::new(16);
                story.volume.shown_lineage(1);
                story.write(0, 8);
                story.cut(cut, &[0, 0]);
                story.volume.shown_lineage(new);
                assert_eq!(check(&story.volume).is_ok(), honest, "{cut:?}, lineage {new}");
            }
        }
    }

    #[test]
    fn a_lineage_may_stay_when_nothing_was_lost() {
        let mut story = Story::new(16);
        story.volume.shown_lineage(1);
        let written = story.write(0, 8);
        story.cut(Cut::PowerLoss, &[written, 0]);
        story.volume.shown_lineage(1);
        assert_eq!(check(&story.volume), Ok(()));
    }
}
