//! VIS2: a read returns only what was there at the start or was asked to be written there, and never a mixture of writes
//! inside one 4 KiB block that no order of them could leave.

use super::{Verdict, words};
use crate::{
    guest::pattern::{BLOCK_SECTORS, Cell},
    history::{Era, Op, VolumeHistory},
};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read with bytes from nowhere or with a torn block.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for era in &volume.eras {
        let blocks = era.by_block();
        for (block, ops) in &blocks {
            let changes: Vec<_> = ops.iter().copied().filter(|op| op.is_change()).collect();
            for read in ops.iter().filter(|op| !op.is_change()) {
                check_block(era, *block, &changes, read)?;
            }
        }
    }
    Ok(())
}

fn check_block(era: &Era, block: u64, changes: &[&Op], read: &Op) -> Verdict {
    let first = (block * BLOCK_SECTORS).max(read.first);
    let last = ((block + 1) * BLOCK_SECTORS).min(read.first + read.count);
    let answered = read.latest();
    let mut seen: Vec<(&Op, Vec<u64>)> = Vec::new();
    for sector in first..last {
        let cell = read.cells[(sector - read.first) as usize];
        let asked = |op: &&&Op| op.covers(sector) && op.cell(sector) == cell && op.invoked < answered;
        if let Some(op) = changes.iter().find(asked) {
            if cell == Cell::ZERO {
                continue;
            }
            match seen.iter_mut().find(|(other, _)| other.id == op.id) {
                Some((_, sectors)) => sectors.push(sector),
                None => seen.push((op, vec![sector])),
            }
        } else if cell == Cell::GARBAGE || cell != era.base[sector as usize] {
            let what = if cell == Cell::GARBAGE { "bytes that no guest wrote" } else { "what was never written there" };
            return Err(format!("sector {sector} of {} holds {what} ({:?})", words(read), cell.origin()));
        }
    }
    check_mixture(&seen, read)
}

/// A write that shows in one sector and not in another that it covers was overwritten there: that other write came later.
/// Around a circle of such writes there is no order.
fn check_mixture(seen: &[(&Op, Vec<u64>)], read: &Op) -> Verdict {
    let earlier = |one: &Op, later: &(&Op, Vec<u64>)| later.1.iter().any(|sector| one.covers(*sector));
    let mut left: Vec<_> = seen.iter().collect();
    while !left.is_empty() {
        // The newest of the writes that are left is one that nothing else was written over.
        let newest =
            left.iter().position(|(op, _)| left.iter().all(|other| other.0.id == op.id || !earlier(op, other)));
        match newest {
            Some(at) => drop(left.remove(at)),
            None => {
                let mixed: Vec<_> = left.iter().map(|(op, _)| words(op)).collect();
                return Err(format!("{} returned a mixture that no order leaves: {}", words(read), mixed.join("; ")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{checker::example::Story, guest::pattern::Cell};

    fn cells(parts: &[(u64, std::ops::Range<u64>)]) -> Vec<Cell> {
        parts.iter().flat_map(|(id, range)| range.clone().map(|index| Cell::stamp(*id, index))).collect()
    }

    #[test]
    fn a_partial_write_over_a_whole_one_is_kept() {
        let mut story = Story::new(64);
        let whole = story.write(8, 8);
        let part = story.write(10, 2);
        story.read_cells(8, cells(&[(whole, 0..2), (part, 0..2), (whole, 4..8)]));
        assert_eq!(check(&story.volume), Ok(()));
    }

    #[test]
    fn a_mixture_of_two_whole_writes_is_rejected() {
        let mut story = Story::new(64);
        let (one, other) = (story.write(8, 8), story.write(8, 8));
        story.read_cells(8, cells(&[(one, 0..4), (other, 4..8)]));
        assert!(check(&story.volume).unwrap_err().contains("mixture"));
    }

    #[test]
    fn bytes_from_nowhere_and_from_elsewhere_are_rejected() {
        let mut story = Story::new(64);
        story.read_cells(8, vec![Cell::GARBAGE; 8]);
        assert!(check(&story.volume).unwrap_err().contains("no guest wrote"));
        let mut story = Story::new(64);
        let elsewhere = story.write(0, 8);
        story.read(8, 8, elsewhere);
        assert!(check(&story.volume).unwrap_err().contains("never written there"));
    }

    #[test]
    fn zeros_that_nobody_asked_for_are_rejected() {
        let mut story = Story::new(64);
        let written = story.write(0, 8);
        story.cut(crate::history::Cut::PowerLoss, &[written, 0, 0, 0, 0, 0, 0, 0]);
        story.read_zeros(0, 8);
        assert!(check(&story.volume).is_err());
    }
}
