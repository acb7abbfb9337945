//! When a volume is compacted, and which segments are emptied.

use velum_protocol::id::Hash;

use super::*;
use crate::actor::Machine as _;

const MIB: u64 = 1 << 20;

fn segment(number: u64, bytes: u64, live_blocks: u32) -> SegmentUsage {
    let object = ObjectRef { incarnation: Incarnation(1), number: ObjectNumber(number), bytes, hash: Hash::ZERO };
    SegmentUsage { object, live_blocks }
}

fn survey(segments: impl IntoIterator<Item = SegmentUsage>) -> Survey {
    let mut survey = Survey::default();
    segments.into_iter().for_each(|segment| survey.add(segment));
    survey
}

fn chosen(survey: &Survey, live_percent: u8) -> Vec<u64> {
    survey.choose(live_percent).iter().map(|segment| segment.number.0).collect()
}

fn machine() -> Machine {
    Machine::new(Triggers { live_percent: 50, interval: Duration::from_secs(60) })
}

fn mark(seq: u64, checkpoint: u64) -> Input {
    Input::Looked(Mark { seq: Seq(seq), checkpoint })
}

fn step(machine: &mut Machine, seconds: u64, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.step(Instant(seconds * 1_000_000), input, &mut effects);
    effects
}

fn pause(effects: &[Effect]) -> u64 {
    match effects {
        [Effect::Arm(pause)] => pause.as_secs(),
        other => panic!("no pause: {other:?}"),
    }
}

#[test]
fn a_volume_that_is_mostly_live_is_left_alone() {
    let segments = || (1..=9).map(|number| segment(number, 8 * MIB, 1200)).chain([segment(10, 8 * MIB, 1)]);
    assert!(chosen(&survey(segments()), 50).is_empty(), "one dead segment in ten");
    assert_eq!(chosen(&survey(segments()), 55), [10]);
    assert!(chosen(&survey(segments()), 0).is_empty(), "never");
}

#[test]
fn the_emptiest_segments_go_first_and_those_that_are_mostly_live_stay() {
    let found = survey([
        segment(1, 8 * MIB, 600),
        segment(2, 8 * MIB, 2000),
        segment(3, 8 * MIB, 10),
        segment(4, 8 * MIB, 300),
        segment(5, 8 * MIB, 1000),
    ]);
    assert_eq!(chosen(&found, 50), [3, 4]);
    assert_eq!(chosen(&found, 65), [3, 4, 1]);
}

#[test]
fn no_more_is_emptied_than_brings_the_live_share_well_above_the_bound() {
    let full = (1..=9).map(|number| segment(number, 8 * MIB, 2000));
    let sparse = (20..60).map(|number| segment(number, MIB, 20));
    assert_eq!(chosen(&survey(full.chain(sparse)), 80), (20..47).collect::<Vec<_>>());
}

#[test]
fn a_step_is_bounded_in_blocks_in_bytes_and_in_segments() {
    assert_eq!(chosen(&survey((1..50).map(|number| segment(number, 8 * MIB, 900))), 50).len(), 2);
    assert_eq!(chosen(&survey((1..50).map(|number| segment(number, 8 * MIB, 1))), 50).len(), 8);
    assert_eq!(chosen(&survey((1..500).map(|number| segment(number, 64 << 10, 1))), 50).len(), SEGMENTS_MAX);
    assert_eq!(chosen(&survey([segment(1, 27 * MIB, 3000)]), 50), [1], "one that alone has more than a step's blocks");
}

#[test]
fn what_frees_next_to_nothing_is_not_done() {
    assert!(chosen(&survey([segment(1, 64 << 10, 1)]), 50).is_empty(), "no object is smaller");
    assert_eq!(chosen(&survey([segment(1, 64 << 10, 1), segment(2, 64 << 10, 1)]), 50), [1, 2]);
}

/// Steps by themselves never go on for ever: each leaves less than was there.
#[test]
fn compaction_of_a_volume_at_rest_ends_within_its_bound() {
    for live_percent in [1, 20, 50, 80] {
        for seed in 0..20_u64 {
            let mut segments: BTreeMap<u64, SegmentUsage> = (0..100)
                .map(|number| {
                    let spread = (number * 7919 + seed * 104_729) % 2048;
                    let blocks = u32::try_from(if seed % 2 == 0 { spread } else { spread % 16 }).unwrap() + 1;
                    let bytes = if seed % 3 == 0 { 8 * MIB + (128 << 10) } else { sealed_bytes(u64::from(blocks) * 3) };
                    (number, segment(number, bytes, blocks))
                })
                .collect();
            let (mut steps, mut next, mut moved, mut freed) = (0, 1000, 0, 0);
            let rest = loop {
                let found = survey(segments.values().cloned());
                let emptied = found.choose(live_percent);
                if emptied.is_empty() {
                    break found.holdings;
                }
                let taken = emptied.iter().filter_map(|object| segments.remove(&object.number.0));
                let (blocks, bytes) = taken.fold((0, 0), |(blocks, bytes), segment| {
                    (blocks + segment.live_blocks, bytes + segment.object.bytes)
                });
                moved += u64::from(blocks) * BLOCK_BYTES;
                freed += bytes;
                segments.insert(next, segment(next, sealed_bytes(u64::from(blocks)), blocks));
                (next, steps) = (next + 1, steps + 1);
                assert!(steps < 1000, "it does not end");
            };
            let bound = rest.live_bytes * 100 / u64::from(live_percent) + (192 << 10);
            assert!(rest.stored_bytes <= bound, "{live_percent} {seed}: {rest:?}");
            assert!(moved * 100 <= freed * u64::from(live_percent), "{live_percent} {seed}: {moved} of {freed}");
        }
    }
}

#[test]
fn a_volume_where_nothing_has_happened_is_not_surveyed_again() {
    let mut machine = machine();
    assert_eq!(step(&mut machine, 0, Input::Tick), [Effect::Look]);
    assert_eq!(step(&mut machine, 0, mark(5, 1)), [Effect::Survey(BTreeSet::new())]);
    assert_eq!(pause(&step(&mut machine, 0, Input::Surveyed(Some(Survey::default())))), 60);
    assert_eq!(pause(&step(&mut machine, 60, mark(5, 1))), 60);
    for (seq, checkpoint) in [(6, 1), (6, 2)] {
        assert_eq!(step(&mut machine, 120, mark(seq, checkpoint)), [Effect::Survey(BTreeSet::new())]);
        step(&mut machine, 120, Input::Surveyed(Some(Survey::default())));
    }
}

#[test]
fn a_step_is_followed_by_a_rest_as_long_and_a_longer_one_when_guests_wait() {
    let mut machine = machine();
    for (pressed, rest) in [(false, 3), (true, 12)] {
        step(&mut machine, 0, mark(5, 1));
        let found = survey([segment(1, 8 * MIB, 10)]);
        assert!(matches!(&step(&mut machine, 10, Input::Surveyed(Some(found)))[..], [Effect::Step(_)]));
        let stepped = Input::Stepped { outcome: Outcome::Done, pressed };
        assert_eq!(pause(&step(&mut machine, 13, stepped)), rest);
    }
}

/// A block overwritten on a page of the map that is away counts as live until that page is loaded, so a segment that was
/// emptied may look live. Reading it over and over would cost a transfer each time and move nothing.
#[test]
fn a_segment_that_was_emptied_is_left_out_until_its_count_is_exact() {
    let mut machine = machine();
    step(&mut machine, 0, mark(5, 3));
    step(&mut machine, 0, Input::Surveyed(Some(survey([segment(1, 8 * MIB, 10)]))));
    step(&mut machine, 0, Input::Stepped { outcome: Outcome::Done, pressed: false });
    let emptied = BTreeSet::from([(Incarnation(1), ObjectNumber(1))]);
    for checkpoint in [3, 4] {
        assert_eq!(step(&mut machine, 1, mark(6, checkpoint)), [Effect::Survey(emptied.clone())]);
    }
    assert_eq!(step(&mut machine, 1, mark(6, 5)), [Effect::Survey(BTreeSet::new())]);
}

#[test]
fn a_step_that_came_to_nothing_is_tried_again_after_a_pause() {
    let mut machine = machine();
    step(&mut machine, 0, mark(5, 1));
    assert_eq!(pause(&step(&mut machine, 0, Input::Surveyed(None))), 10);
    step(&mut machine, 10, mark(5, 1));
    step(&mut machine, 10, Input::Surveyed(Some(survey([segment(1, 8 * MIB, 10)]))));
    assert_eq!(pause(&step(&mut machine, 11, Input::Stepped { outcome: Outcome::Failed, pressed: false })), 10);
    assert_eq!(step(&mut machine, 21, mark(5, 1)), [Effect::Survey(BTreeSet::new())]);
}
