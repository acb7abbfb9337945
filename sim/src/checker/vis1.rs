//! VIS1, and OWN6 for guests that are attached: every cell of a volume behaves as an atomic register, whole histories, nothing sampled.
//!
//! A change without an ack may take effect at any later point while its process lives, or never, but only once. That of an attached
//! guest may not once a later connection of his was told something. Where all
//! requests that touched a block cover it whole, the block's first sector stands for it; else each sector is judged.

use super::{
    Verdict,
    linear::{self, Flaw, Touch},
};
use crate::{
    guest::pattern::{BLOCK_SECTORS, Cell},
    history::{Era, Op, VolumeHistory},
};

/// Judges all eras of a volume.
///
/// # Errors
/// The first cell whose history no order explains.
pub fn check(volume: &VolumeHistory) -> Verdict {
    volume.eras.iter().try_for_each(check_era)
}

fn check_era(era: &Era) -> Verdict {
    for (block, ops) in era.by_block() {
        let first = block * BLOCK_SECTORS;
        let last = (first + BLOCK_SECTORS).min(era.base.len() as u64);
        let whole = ops.iter().all(|op| op.covers(first) && op.covers(last - 1));
        for sector in first..if whole { first + 1 } else { last } {
            let touches: Vec<_> = ops.iter().filter(|op| op.covers(sector)).map(|op| touch(op, sector)).collect();
            linear::judge(era.base[sector as usize], &touches).map_err(|flaw| explain(sector, flaw, &ops))?;
        }
    }
    Ok(())
}

fn touch(op: &Op, sector: u64) -> Touch {
    let is_read = !op.is_change();
    let value = if is_read { op.cells[(sector - op.first) as usize] } else { op.cell(sector) };
    Touch { value, is_read, start: op.invoked, end: op.latest(), must: op.acked().is_some() }
}

fn explain(sector: u64, flaw: Flaw, ops: &[&Op]) -> String {
    let name = |cell: Cell| cell.origin().map_or_else(|| "zeros".to_owned(), |(write, _)| format!("write #{write}"));
    let what = match flaw {
        Flaw::FromNowhere(cell) => format!("a read returned {} before anyone had written it", name(cell)),
        Flaw::Conflict(one, other) => format!("{} and {} would both be the newest at one time", name(one), name(other)),
        Flaw::NoOrder(step) => format!("no order of the changes explains what was read by step {step}"),
    };
    let involved: Vec<_> = ops
        .iter()
        .filter(|op| op.covers(sector))
        .map(|op| {
            let seen = if op.is_change() { String::new() } else { format!(" saw {}", name(touch(op, sector).value)) };
            super::words(op) + &seen
        })
        .collect();
    format!("sector {sector}: {what}; it was touched by {}", involved[involved.len().saturating_sub(12)..].join("; "))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::example::Story;

    #[test]
    fn reading_ones_own_writes_is_kept() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        story.read(0, 8, first);
        let second = story.write(0, 8);
        story.read(0, 8, second);
        assert_eq!(check(&story.volume), Ok(()));
    }

    #[test]
    fn a_lost_write_is_rejected() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        story.write(0, 8);
        story.read(0, 8, first);
        assert!(check(&story.volume).unwrap_err().contains("newest at one time"));
    }

    #[test]
    fn a_resurrected_unacked_write_is_rejected() {
        let mut story = Story::new(64);
        let unacked = story.write_unanswered(0, 8);
        story.killed();
        let next = story.write(0, 8);
        story.read(0, 8, next);
        assert_eq!(check(&story.volume), Ok(()));
        story.read(0, 8, unacked);
        assert!(check(&story.volume).is_err());
    }

    /// OWN6. Without attachments it may: nobody can tell whether the old connection lives.
    #[test]
    fn what_a_connection_had_that_another_took_the_place_of_is_rejected() {
        for one_connection in [false, true] {
            let mut story = Story::new(64);
            story.volume.one_connection = one_connection;
            let unacked = story.write_unanswered(0, 8);
            story.reconnect();
            let next = story.write(0, 8);
            story.read(0, 8, next);
            assert_eq!(check(&story.volume), Ok(()));
            story.read(0, 8, unacked);
            assert_eq!(check(&story.volume).is_err(), one_connection);
        }
    }

    #[test]
    fn an_unacked_write_may_apply_once_or_never() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        let unacked = story.write_unanswered(0, 8);
        story.read(0, 8, first);
        story.read(0, 8, unacked);
        assert_eq!(check(&story.volume), Ok(()));
        story.read(0, 8, first);
        assert!(check(&story.volume).is_err());
    }

    #[test]
    fn data_after_an_acked_trim_is_rejected() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        story.zero(0, 8);
        story.read_zeros(0, 8);
        story.zero(0, 4);
        assert_eq!(check(&story.volume), Ok(()));
        story.read(0, 8, first);
        assert!(check(&story.volume).is_err());
    }
}
