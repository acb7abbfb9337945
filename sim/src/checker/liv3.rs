//! LIV3: once every trouble has ended a cluster comes to rest: few elections, and volumes stay where they are.

use super::Verdict;

/// Terms with a leader that there may be after the last trouble.
const TERMS_MAX: u64 = 3;

/// Changes of a volume's owner that there may be after the last trouble.
const OWNER_CHANGES_MAX: u64 = 2;

/// What happened since the last trouble.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unrest {
    /// Terms with a leader.
    pub terms: u64,
    /// Changes of owner of the volume that had most of them.
    pub owner_changes: u64,
    /// Nodes that were ended all the same, each of which may cost one of both.
    pub falls: u64,
}

/// Judges a cluster at rest.
///
/// # Errors
/// When it elected, or moved a volume, again and again.
pub fn check(unrest: Unrest) -> Verdict {
    let Unrest { terms, owner_changes, falls } = unrest;
    if terms > TERMS_MAX + falls {
        return Err(format!("{terms} terms with a leader after the last trouble, with {falls} nodes ended since"));
    }
    if owner_changes > OWNER_CHANGES_MAX + falls {
        return Err(format!(
            "a volume changed its owner {owner_changes} times after the last trouble, with {falls} nodes ended since"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_changes_are_rest() {
        assert_eq!(check(Unrest { terms: 3, owner_changes: 2, falls: 0 }), Ok(()));
        assert_eq!(check(Unrest { terms: 5, owner_changes: 4, falls: 2 }), Ok(()));
    }

    #[test]
    fn going_on_electing_or_moving_is_rejected() {
        assert!(check(Unrest { terms: 4, ..Unrest::default() }).is_err());
        assert!(check(Unrest { owner_changes: 3, ..Unrest::default() }).is_err());
        assert!(check(Unrest { terms: 6, owner_changes: 4, falls: 2 }).is_err());
    }
}
