//! AUTH4: no read is answered with data without the right to every region that it touches, and nobody is kept from what he may read.

use velum_protocol::admin::Access;

use super::{Verdict, auth1::regions, words};
use crate::history::{Answer, Kind, Op, VolumeHistory};

/// Judges all reads that were asked for.
///
/// # Errors
/// The first one that was answered without the right, or denied with it.
pub fn check(volume: &VolumeHistory) -> Verdict {
    let asked = volume.eras.iter().flat_map(|era| &era.ops);
    // A block status counts for no more sectors than it reported a hole for.
    asked.filter(|op| op.kind == Kind::Read && op.count > 0).try_for_each(|op| check_read(volume, op))
}

fn check_read(volume: &VolumeHistory, op: &Op) -> Verdict {
    match op.answer {
        Answer::Done(step) => {
            let lacks = |region: &u64| !volume.rights.may(*region, Access::Read, (op.invoked, step));
            let Some(region) = regions(op).find(lacks) else { return Ok(()) };
            Err(format!("region {region} was read without the right: {}", words(op)))
        }
        Answer::Denied(step) => {
            let mut had = regions(op).map(|region| volume.rights.surely(region, Access::Read, (op.invoked, step)));
            if had.all(|had| had) { Err(format!("the right was there: {}", words(op))) } else { Ok(()) }
        }
        Answer::None | Answer::Refused(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::admin::Access;

    use super::check;
    use crate::{checker::example::Story, history::Rights};

    fn told() -> Story {
        let mut story = Story::new(64);
        story.volume.rights = Rights::over(1);
        story
    }

    #[test]
    fn what_may_be_read_is_read_and_what_may_not_is_denied() {
        let mut story = told();
        story.read_zeros(0, 8);
        story.allow(Access::Read);
        story.read_zeros(0, 8);
        story.allow(Access::None);
        story.read_denied(0, 8);
        assert_eq!(check(&story.volume), Ok(()));
    }

    #[test]
    fn data_without_the_right_is_rejected() {
        let mut story = told();
        story.allow(Access::None);
        story.read_zeros(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("region 0 was read without the right"));
    }

    #[test]
    fn a_read_that_is_denied_for_nothing_is_reported() {
        let mut story = told();
        story.read_denied(0, 8);
        assert!(check(&story.volume).unwrap_err().contains("the right was there"));
    }
}
