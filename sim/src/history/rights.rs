//! What an operator said about what guests may do in which region of a volume, and when it was in force.

use velum_protocol::admin::Access;

use super::{Step, permits::Permits};

/// All that was said, in the order in which it was asked for. Where nothing was said, everything is allowed.
#[derive(Clone, Debug, Default)]
pub struct Rights(Permits);

impl Rights {
    /// Everything is allowed in so many regions, from the start, until an operator says something else.
    #[must_use]
    pub fn over(regions: u64) -> Self {
        let mut said = Permits::default();
        for region in 0..regions {
            said.ask(region, word(Access::Write), 0);
            said.answered(0);
        }
        Self(said)
    }

    /// True when an operator may say something.
    #[must_use]
    pub fn are_told(&self) -> bool {
        !self.0.is_empty()
    }

    /// An operator asks that no more than `access` be allowed.
    pub fn ask(&mut self, region: u64, access: Access, asked: Step) {
        self.0.ask(region, word(access), asked);
    }

    /// It is in force.
    pub fn answered(&mut self, step: Step) {
        self.0.answered(step);
    }

    /// True when `needed` may have been allowed in `region` at some step of `from..=to`.
    #[must_use]
    pub fn may(&self, region: u64, needed: Access, span: (Step, Step)) -> bool {
        !self.are_told() || enough(needed).iter().any(|access| self.0.may_hold(region, word(*access), span))
    }

    /// True when `needed` was allowed in `region` at every step of `from..=to`.
    #[must_use]
    pub fn surely(&self, region: u64, needed: Access, span: (Step, Step)) -> bool {
        !self.are_told() || enough(needed).iter().any(|access| self.0.surely_holds(region, word(*access), span))
    }
}

const fn enough(needed: Access) -> &'static [Access] {
    match needed {
        Access::None => &[Access::None, Access::Read, Access::Write],
        Access::Read => &[Access::Read, Access::Write],
        Access::Write => &[Access::Write],
    }
}

const fn word(access: Access) -> &'static str {
    match access {
        Access::None => "none",
        Access::Read => "read",
        Access::Write => "write",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_may_read_and_who_may_read_may_not_write() {
        let mut rights = Rights::over(2);
        assert!(rights.surely(0, Access::Write, (1, 5)) && rights.surely(1, Access::Read, (1, 5)));
        rights.ask(0, Access::Read, 10);
        rights.answered(12);
        assert!(rights.may(0, Access::Read, (20, 21)) && rights.surely(0, Access::Read, (20, 21)));
        assert!(!rights.may(0, Access::Write, (20, 21)) && rights.may(0, Access::Write, (11, 21)));
        assert!(rights.surely(1, Access::Write, (20, 21)), "regions stand alone");
        rights.ask(0, Access::None, 30);
        rights.answered(32);
        assert!(!rights.may(0, Access::Read, (40, 41)));
    }

    #[test]
    fn where_no_operator_says_anything_everything_is_allowed() {
        let rights = Rights::default();
        assert!(!rights.are_told() && rights.may(7, Access::Write, (1, 2)) && rights.surely(7, Access::Write, (1, 2)));
    }
}
