//! What a start makes of a copy's records, and of what the journal says is lost.

use super::*;
use crate::ensemble::member::tests::{START, records};

type Stored = Vec<(Position, Bytes)>;

fn stored(epoch: u64, records: &[(Bytes, Point)]) -> Stored {
    let place = |(record, point): &(Bytes, Point)| (Position { epoch, number: point.at.0 }, record.clone());
    records.iter().map(place).collect()
}

/// Where the run begins, how many records it has, and whether it breaks.
fn run(parts: &[Stored]) -> (u64, usize, bool) {
    let mut all = parts.concat();
    all.sort_by_key(|(at, _)| *at);
    let Run { base, held, breaks, .. } = Run::of(&all);
    (base.at.0, held.len(), breaks)
}

#[test]
fn a_later_epoch_voids_what_earlier_ones_left_at_its_beginning_and_above() {
    let first = records(1, START, 6, 0);
    let second = records(2, first[3].1, 2, 0);
    let third = records(4, second[0].1, 1, 0);
    let all = [stored(1, &first), stored(2, &second), stored(4, &third)];
    assert_eq!(run(&all[..1]), (0, 6, false));
    assert_eq!(run(&all), (0, 6, false));
    let chains = Run::of(&all.concat()).held.iter().map(|held| held.chain).collect::<Vec<_>>();
    assert_eq!(chains[3..], [first[3].1.chain, second[0].1.chain, third[0].1.chain]);
}

#[test]
fn a_run_begins_behind_what_is_missing() {
    let all = records(1, START, 8, 0);
    assert_eq!(run(&[stored(1, &all[..3]), stored(1, &all[5..])]), (5, 3, false), "it may have begun anew there");
    let other = records(2, records(1, START, 3, 1)[2].1, 2, 0);
    assert_eq!(
        run(&[stored(1, &all[..3]), stored(2, &other)]),
        (3, 2, true),
        "it follows another record than there is"
    );
    assert_eq!(run(&[stored(1, &all[4..])]), (4, 4, false));
    assert_eq!(run(&[]), (0, 0, false));
}

/// A damaged copy is filled from below the records that are left. A later epoch's took their place, and the fill was not seen: the run
/// began where those of the earlier epoch ended.
#[test]
fn a_copy_that_was_filled_below_what_was_left_reads_back_as_it_was_filled() {
    let left = records(1, START, 9, 0);
    let next = records(2, left[4].1, 3, 0);
    assert_eq!(run(&[stored(1, &left[7..]), stored(1, &left[2..5]), stored(2, &next)]), (2, 6, false));
}

#[test]
fn damage_is_what_may_have_been_synced_and_is_not_in_the_sequence_yet() {
    let all = records(1, START, 8, 0);
    let at = |number| Position { epoch: 1, number };
    let judge = |loss: Loss, stored: Stored, sequenced: u64| is_damaged(loss, &Run::of(&stored), Jseq(sequenced));
    let (none, gaps) = (Loss::default, || Loss { gaps: true, ..Loss::default() });
    assert!(!judge(none(), stored(1, &all), 0));
    assert!(!judge(none(), stored(1, &all[5..]), 0), "what lies before was trimmed");
    assert!(!judge(gaps(), stored(1, &all), 0), "of another stream");
    assert!(judge(gaps(), stored(1, &all[5..]), 4) && !judge(gaps(), stored(1, &all[5..]), 5));
    let lost = || Loss { records: vec![at(3)], ..Loss::default() };
    assert!(judge(lost(), stored(1, &all[3..]), 2) && !judge(lost(), stored(1, &all[3..]), 3));
    assert!(judge(Loss { end: true, ..Loss::default() }, stored(1, &all), 8), "records may have stood behind it");
    let mut misplaced = stored(1, &all);
    misplaced[7].0 = at(9);
    assert!(judge(none(), misplaced, 8));
    let other = records(2, records(1, START, 3, 1)[2].1, 2, 0);
    let breaks = || [stored(1, &all[..3]), stored(2, &other)].concat();
    assert!(judge(none(), breaks(), 2) && !judge(none(), breaks(), 3));
}

/// An end that was not synced is what a loss of power takes, and what a bit that flips takes of it is no worse.
#[test]
fn an_end_that_was_not_synced_is_no_damage() {
    use Condition::{Amnesic, Whole};
    let of = |unsynced| [Tail::Whole, Tail::Cut, Tail::Unknown].map(|tail| reads_at_end(unsynced, tail));
    assert_eq!(of(Unsynced::Synced), [Whole, Amnesic, Whole]);
    assert_eq!(of(Unsynced::InPageCache), [Whole, Amnesic, Amnesic]);
    assert_eq!(of(Unsynced::Doubtful), [Amnesic; 3]);
}
