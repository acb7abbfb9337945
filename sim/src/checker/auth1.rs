//! AUTH1, AUTH3: where hosts share a volume, no write is acked without a permit for every region that it touches, nobody is kept
//! from what he has a permit for, and what is denied changes nothing.
//!
//! That a denied write has no effect is judged by VIS1: it is no change there, so that whoever reads what it would have written has read
//! what nobody wrote.

use super::{Verdict, words};
use crate::{
    guest::pattern::{BLOCK_SECTORS, REGION_SECTORS},
    history::{Answer, Kind, Op, VolumeHistory},
};

/// Judges all changes that were asked for.
///
/// # Errors
/// The first write that was acked without a permit, or denied with one.
pub fn check(volume: &VolumeHistory) -> Verdict {
    if !volume.is_shared {
        return Ok(());
    }
    let asked = volume.eras.iter().flat_map(|era| &era.ops);
    asked.filter(|op| matches!(op.kind, Kind::Write | Kind::Zero)).try_for_each(|op| check_change(volume, op))
}

fn check_change(volume: &VolumeHistory, op: &Op) -> Verdict {
    let export = &volume.connections[op.connection as usize].export;
    let end = (op.first + op.count).next_multiple_of(BLOCK_SECTORS);
    let mut regions = op.first / REGION_SECTORS..end.div_ceil(REGION_SECTORS);
    match op.answer {
        Answer::Done(step) => {
            let lacks = |region: &u64| !volume.permits.may_hold(*region, export, (op.invoked, step));
            let Some(region) = regions.find(lacks) else { return Ok(()) };
            Err(format!("{export} was let write in region {region} without a permit: {}", words(op)))
        }
        Answer::Denied(step) => {
            let mut holds = regions.map(|region| volume.permits.surely_holds(region, export, (op.invoked, step)));
            if holds.all(|holds| holds) { Err(format!("{export} had a permit: {}", words(op))) } else { Ok(()) }
        }
        Answer::None | Answer::Refused(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::example::Story;

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
        assert!(check(&story.volume).unwrap_err().contains("had a permit"));
    }
}
