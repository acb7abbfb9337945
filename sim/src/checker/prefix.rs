//! Is an image the state after some prefix of the changes?
//!
//! Guests do not see the order in which a volume takes concurrent changes, but they know that a change acked before another
//! was asked for comes first. So an image is a prefix exactly as far as a guest can tell when (1) every sector holds the
//! base or a change of the era, (2) if a change is in the image, no change that was acked before it was asked for is
//! missing, (3) nothing required is missing, and (4) no part of an atomic change that is in the image is missing. A change
//! is missing from a sector when what the sector holds had taken its effect before the change was asked for.

use std::collections::BTreeSet;

use crate::{
    checker::words,
    guest::pattern::Cell,
    history::{Era, Kind, Op, Step},
};

/// What one sector of an image may come from.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    /// The last step at which it may have taken effect.
    latest: Step,
    /// The change, when there is but one it can be.
    change: Option<&'a Op>,
}

/// An image, explained sector by sector.
pub(crate) struct Explained<'a> {
    era: &'a Era,
    sources: Vec<Source<'a>>,
}

impl<'a> Explained<'a> {
    /// Finds where each sector of `image` comes from.
    pub(crate) fn new(era: &'a Era, image: &[Cell]) -> Result<Self, String> {
        if image.len() != era.base.len() {
            return Err(format!("the image has {} sectors instead of {}", image.len(), era.base.len()));
        }
        let mut zeroed: Vec<Option<Source<'_>>> = vec![None; image.len()];
        for op in era.changes().filter(|op| op.kind == Kind::Zero) {
            for slot in &mut zeroed[op.first as usize..(op.first + op.count) as usize] {
                *slot = Some(match slot {
                    None => Source { latest: op.latest(), change: Some(op) },
                    Some(before) => Source { latest: before.latest.max(op.latest()), change: None },
                });
            }
        }
        let mut sources = Vec::with_capacity(image.len());
        for (sector, cell) in image.iter().enumerate() {
            let (base, zeroed) = (era.base[sector], zeroed[sector]);
            sources.push(source(era, sector as u64, *cell, base, zeroed)?);
        }
        Ok(Self { era, sources })
    }

    /// The newest step at which a change that is certainly in the image was asked for.
    pub(crate) fn newest(&self) -> Option<&'a Op> {
        self.sources.iter().filter_map(|source| source.change).max_by_key(|op| op.invoked)
    }

    /// The first change that is `required` and missing.
    pub(crate) fn missing(&self, required: impl Fn(&Op) -> bool) -> Option<(u64, &'a Op)> {
        let mut newest: Vec<Option<&Op>> = vec![None; self.sources.len()];
        for op in self.era.changes().filter(|op| required(op)) {
            for sector in op.first..op.first + op.count {
                let slot = &mut newest[sector as usize];
                if slot.is_none_or(|before| before.invoked < op.invoked) {
                    *slot = Some(op);
                }
            }
        }
        let lost = |(sector, op): (usize, Option<&'a Op>)| {
            op.filter(|op| self.sources[sector].latest < op.invoked).map(|op| (sector as u64, op))
        };
        newest.into_iter().enumerate().find_map(lost)
    }

    /// Rule 3, for what an operator's flush covers.
    fn check_flushed(&self) -> Result<(), String> {
        let Some(flushed) = self.era.flushed.iter().max() else { return Ok(()) };
        match self.missing(|op| op.acked().is_some_and(|acked| acked < *flushed)) {
            None => Ok(()),
            Some((sector, lost)) => Err(format!(
                "sector {sector} lacks {}, which was acked before the flush asked for at {flushed}",
                words(lost)
            )),
        }
    }

    /// Rules 2 and 4.
    pub(crate) fn check_closed(&self) -> Result<(), String> {
        self.check_dragged()?;
        self.check_whole()
    }

    /// Rule 4.
    fn check_whole(&self) -> Result<(), String> {
        let mut judged = BTreeSet::new();
        for (shown, op) in self.sources.iter().enumerate().filter_map(|(at, source)| Some((at, source.change?))) {
            if !op.is_atomic() || !judged.insert(op.id) {
                continue;
            }
            let lacks = |sector: &u64| self.sources[*sector as usize].latest < op.invoked;
            if let Some(sector) = (op.first..op.first + op.count).find(lacks) {
                return Err(format!(
                    "it holds a part of {}, in sector {shown}, and sector {sector} lacks it",
                    words(op)
                ));
            }
        }
        Ok(())
    }

    /// Rule 2: what the image holds drags everything acked before it along.
    fn check_dragged(&self) -> Result<(), String> {
        let Some(newest) = self.newest() else { return Ok(()) };
        match self.missing(|op| op.acked().is_some_and(|acked| acked < newest.invoked)) {
            None => Ok(()),
            Some((sector, lost)) => Err(format!(
                "it holds {} but sector {sector} lacks {}, which was acked before that was asked for",
                words(newest),
                words(lost)
            )),
        }
    }
}

/// Judges an image read from clouds: the prefix may end in the last of `eras` or, when its changes had not reached the clouds
/// yet, in one before.
pub(crate) fn check_closed(eras: &[Era], image: &[Cell]) -> Result<(), String> {
    newest_verdict(eras.iter().rev().map(|era| Explained::new(era, image)?.check_closed()))
}

/// The same, for clouds that together hold everything at d2: the prefix ends behind the last flush, in whichever era that
/// was.
pub(crate) fn check_flushed(eras: &[Era], image: &[Cell]) -> Result<(), String> {
    let last = eras.iter().rposition(|era| !era.flushed.is_empty());
    let eras = eras.get(last.unwrap_or(0)..).unwrap_or_default();
    let behind_flush = |era| {
        let image = Explained::new(era, image)?;
        image.check_closed()?;
        image.check_flushed()
    };
    newest_verdict(eras.iter().rev().map(behind_flush))
}

/// Good when one of the verdicts is, and else the first.
fn newest_verdict(mut verdicts: impl Iterator<Item = Result<(), String>>) -> Result<(), String> {
    let newest = verdicts.next().unwrap_or(Ok(()));
    if newest.is_ok() || verdicts.any(|verdict| verdict.is_ok()) { Ok(()) } else { newest }
}

fn source<'a>(
    era: &'a Era,
    sector: u64,
    cell: Cell,
    base: Cell,
    zeroed: Option<Source<'a>>,
) -> Result<Source<'a>, String> {
    if cell == Cell::ZERO && (base == Cell::ZERO || zeroed.is_some()) {
        let source = zeroed.unwrap_or(Source { latest: 0, change: None });
        // What was zeros before tells of no change.
        return Ok(Source { change: source.change.filter(|_| base != Cell::ZERO), ..source });
    }
    if cell == base && cell != Cell::GARBAGE {
        return Ok(Source { latest: 0, change: None });
    }
    match era.written(sector, cell) {
        Some(op) => Ok(Source { latest: op.latest(), change: Some(op) }),
        None if cell == Cell::ZERO => Err(format!("sector {sector} is zero and was neither at the start nor made so")),
        None if cell == Cell::GARBAGE => Err(format!("sector {sector} holds bytes that no guest wrote")),
        None => Err(format!("sector {sector} holds {:?}, which was not written there in this era", cell.origin())),
    }
}
