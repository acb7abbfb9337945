//! SEQ4: the journal is never trimmed beyond what lies in w clouds: every position after the last one at d2 is still in the
//! journal's files, without a gap.
//!
//! A machine recovered from the clouds begins its journal behind the newest position that any cloud showed it, which may lie
//! in too few: what comes before that was never in its journal.

use std::collections::BTreeSet;

use velum_protocol::id::Jseq;

use super::Verdict;

/// What a start would find of one volume in the journal of a node that is down.
#[derive(Clone, Debug, Default)]
pub struct Journaled {
    /// The highest position that the journal calls trimmed.
    pub trimmed: Jseq,
    /// The positions that it still holds.
    pub found: BTreeSet<Jseq>,
}

/// Judges a journal, `durable` being the volume's last position at d2 and `adopted` the last one that the machine may have
/// found in the clouds when it was recovered.
///
/// # Errors
/// A position that is trimmed, or not there, and in too few clouds.
pub fn check(durable: Jseq, adopted: Jseq, journaled: &Journaled) -> Verdict {
    let durable = durable.max(adopted);
    let Journaled { trimmed, found } = journaled;
    if *trimmed > durable {
        return Err(format!(
            "the clouds hold everything up to position {durable} and the journal is trimmed to {trimmed}"
        ));
    }
    let Some(end) = found.last() else { return Ok(()) };
    match (durable.0 + 1..=end.0).map(Jseq).find(|position| !found.contains(position)) {
        None => Ok(()),
        Some(gone) => Err(format!(
            "the clouds hold everything up to position {durable} and the journal goes to {end}: {gone} is nowhere"
        )),
    }
}

/// The last position that at least `quorum` of the clouds hold, given how far each of them reaches.
#[must_use]
pub fn durable(mut reach: Vec<Jseq>, quorum: usize) -> Jseq {
    reach.sort_unstable();
    reach.len().checked_sub(quorum).and_then(|at| reach.get(at)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journaled(trimmed: u64, numbers: &[u64]) -> Journaled {
        Journaled { trimmed: Jseq(trimmed), found: numbers.iter().copied().map(Jseq).collect() }
    }

    #[test]
    fn d2_is_what_the_quorum_reaches() {
        assert_eq!(durable(vec![Jseq(9), Jseq(3), Jseq(5)], 2), Jseq(5));
        assert_eq!(durable(vec![Jseq(9), Jseq(3), Jseq(5)], 3), Jseq(3));
        assert_eq!(durable(vec![Jseq(9)], 2), Jseq(0));
    }

    #[test]
    fn a_journal_that_begins_at_or_before_d2_is_kept() {
        for present in [&[][..], &[6, 7], &[4, 5, 6, 7], &[2, 3]] {
            assert_eq!(check(Jseq(5), Jseq(0), &journaled(5, present)), Ok(()), "{present:?}");
        }
    }

    #[test]
    fn a_position_trimmed_too_early_is_rejected() {
        assert!(check(Jseq(5), Jseq(0), &journaled(0, &[7, 8])).is_err());
        assert!(check(Jseq(5), Jseq(3), &journaled(3, &[4, 5, 6, 8])).is_err());
        assert!(check(Jseq(5), Jseq(0), &journaled(6, &[])).is_err(), "nothing is left to show the gap");
    }

    /// Seed 500044: the three clouds reached to 208, 213 and 222 when the machine was lost; its successor was recovered from
    /// the third and wrote on from 223. Power failed before the other two had been brought up to that, and the positions
    /// between were missed in a journal where they had never been.
    #[test]
    fn a_journal_of_a_recovered_machine_begins_where_the_newest_cloud_ended() {
        let reach = vec![Jseq(208), Jseq(213), Jseq(222)];
        let (durable, adopted) = (durable(reach, 2), Jseq(222));
        assert_eq!(check(durable, adopted, &journaled(0, &[223, 224])), Ok(()));
        assert!(check(durable, Jseq(0), &journaled(0, &[223, 224])).is_err(), "a machine that wrote them had them");
        assert!(check(durable, adopted, &journaled(0, &[224])).is_err());
        assert!(check(durable, adopted, &journaled(223, &[224])).is_err());
    }
}
