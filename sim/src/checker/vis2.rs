//! VIS2: a read returns only what was there at the start or was asked to be written there, and never a mixture of writes
//! inside one 4 KiB block that no order of them could leave.

use super::{Verdict, words};
use crate::{
    guest::pattern::{BLOCK_SECTORS, Cell},
    history::{Era, Kind, Op, Step, VolumeHistory},
};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read with bytes from nowhere or with a torn block.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for era in &volume.eras {
        let zeroed = zeroed(era);
        for (block, ops) in era.by_block() {
            for read in ops.iter().filter(|op| !op.is_change()) {
                check_block(era, block, &zeroed, read)?;
            }
        }
    }
    Ok(())
}

/// When each sector was first asked to be zeros.
fn zeroed(era: &Era) -> Vec<Option<Step>> {
    let mut zeroed = vec![None; era.base.len()];
    // Operations come in the order of their invocation.
    for op in era.ops.iter().filter(|op| op.kind == Kind::Zero) {
        for first in &mut zeroed[op.first as usize..(op.first + op.count) as usize] {
            first.get_or_insert(op.invoked);
        }
    }
    zeroed
}

fn check_block(era: &Era, block: u64, zeroed: &[Option<Step>], read: &Op) -> Verdict {
    let first = (block * BLOCK_SECTORS).max(read.first);
    let last = ((block + 1) * BLOCK_SECTORS).min(read.first + read.count);
    let answered = read.latest();
    let mut seen: Vec<(&Op, Vec<u64>)> = Vec::new();
    for sector in first..last {
        let cell = read.cells[(sector - read.first) as usize];
        if cell == Cell::ZERO && zeroed[sector as usize].is_some_and(|asked| asked < answered) {
            continue;
        }
        if let Some(op) = era.written(sector, cell).filter(|op| op.invoked < answered) {
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
    use crate::{checker::example::Story, guest::pattern::Cell, rng::Rng};

    #[test]
    fn in_random_histories_what_was_not_asked_for_before_the_answer_is_rejected() {
        let (mut kept, mut broken) = (0, 0);
        for seed in 0..5_000 {
            let story = Story::random(&Rng::new(seed, "asked"));
            let era = story.volume.era();
            let was_asked = |read: &crate::history::Op, sector: u64| {
                let cell = read.cells[(sector - read.first) as usize];
                let mut asked = era.changes().filter(|op| op.covers(sector) && op.invoked < read.latest());
                cell == Cell::ZERO || asked.any(|op| op.cell(sector) == cell)
            };
            let mut reads = era.ops.iter().filter(|op| !op.cells.is_empty());
            // Each read shows but one write, so that there is no mixture to reject.
            let is_kept = reads.all(|read| (read.first..read.first + read.count).all(|sector| was_asked(read, sector)));
            assert_eq!(check(&story.volume).is_ok(), is_kept, "{:#?}", story.volume);
            if is_kept { kept += 1 } else { broken += 1 }
        }
        assert!(kept > 1_000 && broken > 500, "{kept} kept, {broken} broken");
    }

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
