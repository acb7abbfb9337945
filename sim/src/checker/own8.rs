//! OWN8: a member applies only what is committed and durable on it, and a restart finds all of that again.

use super::Verdict;

/// How far a member is, as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The term, and the last one that it led in this life or those before. A term that was only heard of may be forgotten.
    pub term: u64,
    /// See there.
    pub led: u64,
    /// Applied up to here.
    pub applied: u64,
    /// Committed up to here.
    pub commit: u64,
    /// Durable here up to here.
    pub persisted: u64,
}

/// Judges a member at one moment.
///
/// # Errors
/// When it has applied more than is committed, or than is durable.
pub fn check(node: u64, now: Standing) -> Verdict {
    if now.applied > now.commit {
        return Err(format!("node {node} applied {} and knows {} to be committed", now.applied, now.commit));
    }
    if now.applied > now.persisted {
        return Err(format!("node {node} applied {} and holds {} durably", now.applied, now.persisted));
    }
    Ok(())
}

/// Judges a member that has just started again by the last it was seen at in the life before.
///
/// # Errors
/// When it has forgotten a term that it led, or an entry that it had applied.
pub fn check_restart(node: u64, before: Standing, after: Standing) -> Verdict {
    if after.term < before.led {
        return Err(format!("node {node} led in term {} and starts in term {}", before.led, after.term));
    }
    if after.persisted < before.applied {
        return Err(format!(
            "node {node} had applied {} and finds {} after its restart",
            before.applied, after.persisted
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Standing = Standing { term: 3, led: 3, applied: 10, commit: 11, persisted: 12 };

    #[test]
    fn a_member_ahead_of_what_is_committed_or_durable_is_rejected() {
        assert_eq!(check(1, GOOD), Ok(()));
        assert!(check(1, Standing { commit: 9, ..GOOD }).is_err());
        assert!(check(1, Standing { persisted: 9, ..GOOD }).is_err());
    }

    #[test]
    fn a_restart_that_forgot_is_rejected() {
        assert_eq!(check_restart(1, GOOD, Standing { applied: 0, commit: 4, ..GOOD }), Ok(()));
        assert!(check_restart(1, GOOD, Standing { persisted: 9, ..GOOD }).is_err());
        assert!(check_restart(1, GOOD, Standing { term: 2, ..GOOD }).is_err());
        let heard = Standing { led: 1, ..GOOD };
        assert_eq!(check_restart(1, heard, Standing { term: 2, ..GOOD }), Ok(()), "it only heard of term 3");
    }
}
