//! The other half of gate 2: among attachments that share a volume, only the one with a permit for a region writes there.
//!
//! Whoever is attached alone, or to a volume that nobody is attached to, needs none: there is nobody to keep out.

use std::collections::{BTreeMap, BTreeSet};

use velum_protocol::{
    format::metadata::Right,
    id::{BlockIndex, Handle},
};

use super::gate::{Access, Decision};

/// Who shares a volume, and who may write where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// The attachments that need permits.
    pub sharing: BTreeSet<Handle>,
    /// Disjoint, by first block: one past the last, and who may write there.
    pub spans: BTreeMap<BlockIndex, (BlockIndex, Handle)>,
}

impl Permits {
    /// Judges one request of an attachment's. Reads take no permit.
    #[must_use]
    pub fn judge(&self, attachment: Option<Handle>, access: Access) -> Decision {
        match attachment.filter(|handle| access.right == Right::Write && self.sharing.contains(handle)) {
            Some(handle) if !self.covers(handle, access) => Decision::Refused,
            _ => Decision::Allowed,
        }
    }

    /// Whether every block touched lies in a permit of the attachment's.
    fn covers(&self, handle: Handle, access: Access) -> bool {
        let mut next = access.first.0;
        let Some(end) = next.checked_add(access.count.0) else { return false };
        while next < end {
            match self.spans.range(..=BlockIndex(next)).next_back() {
                Some((_, (until, holder))) if until.0 > next && *holder == handle => next = until.0,
                _ => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::id::BlockCount;

    use super::*;

    const ONE: Handle = Handle([1; 10]);
    const OTHER: Handle = Handle([2; 10]);
    const ALONE: Handle = Handle([3; 10]);

    fn permits() -> Permits {
        let span = |first, end, holder| (BlockIndex(first), (BlockIndex(end), holder));
        let spans = [span(0, 10, ONE), span(10, 20, ONE), span(20, 30, OTHER), span(40, 50, ONE)];
        Permits { sharing: [ONE, OTHER].into(), spans: spans.into() }
    }

    fn writes(attachment: Option<Handle>, first: u64, count: u64) -> bool {
        let access = Access { first: BlockIndex(first), count: BlockCount(count), right: Right::Write };
        permits().judge(attachment, access) == Decision::Allowed
    }

    #[test]
    fn every_block_that_is_written_takes_a_permit_of_the_writers() {
        assert!(writes(Some(ONE), 0, 20), "over two permits");
        assert!(!writes(Some(ONE), 0, 21) && !writes(Some(ONE), 19, 2), "into another one's");
        assert!(!writes(Some(ONE), 30, 1) && !writes(Some(ONE), 35, 10), "where nobody has one");
        assert!(!writes(Some(ONE), u64::MAX, 2));
        assert!(writes(Some(OTHER), 20, 10) && !writes(Some(OTHER), 40, 1));
    }

    #[test]
    fn reads_and_whoever_does_not_share_take_none() {
        let read = Access { first: BlockIndex(0), count: BlockCount(100), right: Right::Read };
        assert_eq!(permits().judge(Some(OTHER), read), Decision::Allowed);
        assert!(writes(Some(ALONE), 0, 100) && writes(None, 0, 100));
    }
}
