//! Reading a volume's ACL. The entry that stands last among those that match decides; without one nothing is allowed.

use velum_protocol::{
    format::metadata::{AclEntry, Right},
    id::{BlockCount, BlockIndex},
};

/// The name that matches every principal.
pub const EVERYONE: &str = "*";

/// What `principal` may do with the volume as a whole: gate 1's question. An entry for a range counts, for it may let the
/// principal in; gate 2 judges each request.
#[must_use]
pub fn widest_right(acl: &[AclEntry], principal: &str) -> Right {
    let whole = right_at(acl, principal, None);
    acl.iter()
        .filter(|entry| matches(entry, principal))
        .filter_map(|entry| entry.range)
        .map(|(first, _)| right_at(acl, principal, Some(first)))
        .fold(whole, Right::max)
}

/// What `principal` may do with every block of a range.
#[must_use]
pub fn right_over(acl: &[AclEntry], principal: &str, first: BlockIndex, count: BlockCount) -> Right {
    let end = BlockIndex(first.0.saturating_add(count.0.max(1)));
    let bounds = acl.iter().filter_map(|entry| entry.range).flat_map(|(low, high)| [low, high]);
    // The right can change only at a bound of an entry, so looking there and at the start sees every block.
    std::iter::once(first)
        .chain(bounds.filter(|bound| *bound > first && *bound < end))
        .map(|block| right_at(acl, principal, Some(block)))
        .min()
        .unwrap_or(Right::None)
}

fn right_at(acl: &[AclEntry], principal: &str, block: Option<BlockIndex>) -> Right {
    let covers = |entry: &&AclEntry| match (entry.range, block) {
        (None, _) => true,
        (Some((first, end)), Some(block)) => first <= block && block < end,
        (Some(_), None) => false,
    };
    acl.iter().rev().filter(|entry| matches(entry, principal)).find(covers).map_or(Right::None, |entry| entry.right)
}

fn matches(entry: &AclEntry, principal: &str) -> bool {
    entry.principal == EVERYONE || entry.principal == principal
}
