//! AUTH1, AUTH3: no write is acked without the right to every region that it touches, nor, where hosts share a volume, without a
//! permit for each; nobody is kept from what he may do; and what is denied changes nothing.
//!
//! That a denied write has no effect is judged by VIS1: it is no change there, so that whoever reads what it would have written has read
//! what nobody wrote.

use std::ops::Range;

use velum_protocol::admin::Access;

use super::{Verdict, words};
use crate::{
    guest::pattern::{BLOCK_SECTORS, REGION_SECTORS},
    history::{Answer, Kind, Op, VolumeHistory},
};

/// Judges all changes that were asked for.
///
/// # Errors
/// The first write that was acked without a right or a permit, or denied with both.
pub fn check(volume: &VolumeHistory) -> Verdict {
    let asked = volume.eras.iter().flat_map(|era| &era.ops);
    asked.filter(|op| matches!(op.kind, Kind::Write | Kind::Zero)).try_for_each(|op| check_change(volume, op))
}

/// The regions that a request touches.
pub(super) fn regions(op: &Op) -> Range<u64> {
    let end = (op.first + op.count).next_multiple_of(BLOCK_SECTORS);
    op.first / REGION_SECTORS..end.div_ceil(REGION_SECTORS)
}

fn check_change(volume: &VolumeHistory, op: &Op) -> Verdict {
    let export = &volume.connections[op.connection as usize].export;
    match op.answer {
        Answer::Done(step) => {
            let span = (op.invoked, step);
            if let Some(region) = regions(op).find(|region| !volume.rights.may(*region, Access::Write, span)) {
                return Err(format!("{export} was let write in region {region} without the right: {}", words(op)));
            }
            let lacks = |region: &u64| volume.is_shared && !volume.permits.may_hold(*region, export, span);
            let Some(region) = regions(op).find(lacks) else { return Ok(()) };
            Err(format!("{export} was let write in region {region} without a permit: {}", words(op)))
        }
        Answer::Denied(step) => {
            let span = (op.invoked, step);
            let permitted = |region| !volume.is_shared || volume.permits.surely_holds(region, export, span);
            if regions(op).all(|region| permitted(region) && volume.rights.surely(region, Access::Write, span)) {
                return Err(format!("{export} had the right and a permit: {}", words(op)));
            }
            Ok(())
        }
        Answer::None | Answer::Refused(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::admin::Access;

    use super::check;
    use crate::{checker::example::Story, history::Rights};

    /// A volume that two hosts share, of which the first one has the permit.
    fn shared() -> Story {
        let mut story = Story::new(64);
        story.volume.is_shared = true;
        permit(&mut story, "one");
        story.connect_as(0, "one");
        story
    }

    fn permit(story: &mut Story, holder: &str) {
        let asked = story.volume.step();
        story.volume.permits.ask(0, holder, asked);
        let answered = story.volume.step();
        story.volume.permits.answered(answered);
    }

    #[test]
    fn the_holder_writes_and_others_are_denied() {
        let mut story = shared();
        story.write(0, 8);
        story.connect_as(1, "two");
        story.denied(0, 8);
        assert_eq!(check(&story.volume), Ok(()));
    }

    #[test]
    fn a_write_that_is_acked_without_a_permit_is_rejected() {
        let mut story = shared();
        story.connect_as(1, "two");
        story.write(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("two was let write in region 0"));
    }

    #[test]
    fn a_write_after_the_permit_went_to_somebody_else_is_rejected() {
        let mut story = shared();
        permit(&mut story, "two");
        story.write(0, 8);
        assert!(check(&story.volume).is_err());
    }

    #[test]
    fn a_holder_who_is_denied_is_reported() {
        let mut story = shared();
        story.denied(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("had the right and a permit"));
    }

    #[test]
    fn a_write_after_the_right_was_taken_away_is_rejected() {
        let mut story = Story::new(64);
        story.volume.rights = Rights::over(1);
        story.write(0, 8);
        story.allow(Access::Read);
        story.denied(0, 8);
        assert_eq!(check(&story.volume), Ok(()));
        story.write(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("without the right"));
    }

    #[test]
    fn whoever_has_the_right_again_is_not_denied() {
        let mut story = Story::new(64);
        story.volume.rights = Rights::over(1);
        story.allow(Access::None);
        story.allow(Access::Write);
        story.denied(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("had the right"));
    }
}
