//! SEQ9: a record without a window of the journal changes no contents: every block it moves holds after it what it held
//! before it. So nothing that a guest wrote since a compaction began is undone by it.

use super::Verdict;
use crate::ledger::image::Moved;

/// Judges the blocks that a record with an empty window moves.
///
/// # Errors
/// The first block that it changes.
pub fn check(moved: &[Moved]) -> Verdict {
    match moved.iter().find(|moved| moved.after.is_none() || moved.before != moved.after) {
        None => Ok(()),
        Some(Moved { block, before: None, .. }) => Err(format!("it gives contents to block {block}, which had none")),
        Some(Moved { block, after: None, .. }) => Err(format!("it takes the contents of block {block} away")),
        Some(Moved { block, .. }) => Err(format!("it changes the contents of block {block}")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn moved(block: u64, before: Option<u8>, after: Option<u8>) -> Moved {
        let contents = |mark: Option<u8>| mark.map(|mark| Bytes::from(vec![mark; 4096]));
        Moved { block, before: contents(before), after: contents(after) }
    }

    #[test]
    fn what_only_lies_elsewhere_is_kept() {
        assert_eq!(check(&[moved(0, Some(1), Some(1)), moved(9, Some(2), Some(2))]), Ok(()));
    }

    #[test]
    fn what_brings_back_or_takes_away_or_makes_up_contents_is_rejected() {
        for (before, after) in [(Some(2), Some(1)), (None, Some(1)), (Some(1), None), (None, None)] {
            assert!(check(&[moved(0, Some(1), Some(1)), moved(9, before, after)]).is_err(), "{before:?} {after:?}");
        }
    }
}
