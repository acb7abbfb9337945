//! VIS3: an acked write is seen by every later read until something newer is (d0). Weaker than VIS1 and easier to read: it
//! compares pairs and names the write that was lost.

use super::{Verdict, words};
use crate::{
    guest::pattern::Cell,
    history::{Op, Step, VolumeHistory},
};

/// Judges every successful read of a volume.
///
/// # Errors
/// The first read that shows what an acked change had replaced before the read was asked for.
pub fn check(volume: &VolumeHistory) -> Verdict {
    for era in &volume.eras {
        for (block, ops) in era.by_block() {
            let changes: Vec<_> = ops.iter().copied().filter(|op| op.is_change()).collect();
            for read in ops.iter().filter(|op| !op.is_change()) {
                let first = (block * 8).max(read.first);
                for sector in first..(block * 8 + 8).min(read.first + read.count) {
                    let cell = read.cells[(sector - read.first) as usize];
                    if let Some(lost) = replaced(&changes, sector, cell, era.base[sector as usize], read.invoked) {
                        let seen = cell.origin().map_or("zeros".to_owned(), |(write, _)| format!("write #{write}"));
                        return Err(format!("sector {sector} of {} shows {seen} and not {}", words(read), words(lost)));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The acked change that had replaced `cell` before a read was asked for at `asked`.
fn replaced<'a>(changes: &[&'a Op], sector: u64, cell: Cell, base: Cell, asked: Step) -> Option<&'a Op> {
    let here = || changes.iter().copied().filter(|op| op.covers(sector));
    let sources = here().filter(|op| op.cell(sector) == cell).map(Op::latest);
    let latest = sources.chain((cell == base).then_some(0)).max()?;
    here().find(|op| op.invoked > latest && op.acked().is_some_and(|acked| acked < asked))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::checker::example::Story;

    #[test]
    fn the_write_that_was_lost_is_named() {
        let mut story = Story::new(64);
        let first = story.write(0, 8);
        let lost = story.write(0, 8);
        story.killed();
        story.reconnect();
        story.read(0, 8, lost);
        assert_eq!(check(&story.volume), Ok(()));
        story.read(0, 8, first);
        assert!(check(&story.volume).unwrap_err().contains(&format!("not Write #{lost}")));
    }

    #[test]
    fn zeros_after_an_acked_write_are_rejected() {
        let mut story = Story::new(64);
        story.write(0, 8);
        story.read_zeros(0, 8);
        assert!(check(&story.volume).is_err());
    }
}
