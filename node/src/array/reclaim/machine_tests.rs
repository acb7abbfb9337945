//! When an object may go, cloud by cloud.

use velum_protocol::{format::metadata::ObjectRef, id::Hash};

use super::*;
use crate::actor::Machine as _;

const GRACE: Duration = Duration::from_secs(3600);

fn cloud(name: &str) -> CloudName {
    CloudName(name.into())
}

fn name(number: u64) -> Name {
    (Incarnation(1), ObjectNumber(number))
}

fn entry(kind: NumberedKind, number: u64, checkpoint: u64, committed: bool) -> (Name, Entry) {
    let object = ObjectRef { incarnation: Incarnation(1), number: ObjectNumber(number), bytes: 1, hash: Hash([1; 32]) };
    let object = CondemnedObject { kind, object };
    (name(number), Entry { object, checkpoint, committed, gone_from: BTreeSet::new() })
}

/// A number that an epoch left behind.
fn orphan(number: u64, checkpoint: u64, committed: bool) -> (Name, Entry) {
    let (name, mut entry) = entry(NumberedKind::Segment, number, checkpoint, committed);
    entry.object.object.hash = Hash::ZERO;
    (name, entry)
}

/// Checkpoints 5 and 6; the floor is 5 at seq 50.
fn survey(held: [u64; 3], condemned: impl IntoIterator<Item = (Name, Entry)>) -> Survey {
    Survey {
        newest: 6,
        previous: Some((5, Seq(50))),
        held: ["a", "b", "c"].map(cloud).into_iter().zip(held).collect(),
        quorum: 2,
        condemned: condemned.into_iter().collect(),
        dead: false,
    }
}

fn machine() -> Machine {
    let mut machine = Machine::new(GRACE);
    for name in ["a", "b", "c"] {
        machine.records_gone.insert(cloud(name), Seq(50));
    }
    machine
}

fn step(machine: &mut Machine, seconds: u64, input: Input) -> Vec<String> {
    let mut effects = Vec::new();
    machine.step(Instant(seconds * 1_000_000), input, &mut effects);
    effects.iter().map(name_effect).collect()
}

fn name_effect(effect: &Effect) -> String {
    match effect {
        Effect::Survey => "survey".into(),
        Effect::Arm(pause) => format!("arm {} s", pause.as_secs()),
        Effect::Approve(names) => {
            format!("approve {:?}", names.iter().map(|(_, number)| number.0).collect::<Vec<_>>())
        }
        Effect::Sweep { cloud, records: (gone, through), objects, .. } => {
            let numbers: Vec<_> = objects.iter().map(|object| object.object.number.0).collect();
            format!("sweep {} records {gone}..={through} objects {numbers:?}", cloud.0)
        }
        Effect::Checkpoint => "checkpoint".into(),
    }
}

use NumberedKind::{Page, Root, Segment};

#[test]
fn nothing_is_approved_before_the_grace_and_all_of_it_after() {
    let mut machine = machine();
    let ledger = || Input::Surveyed(survey([6, 6, 6], [entry(Segment, 1, 5, false)]));
    assert!(step(&mut machine, 0, ledger()).is_empty());
    assert!(step(&mut machine, 3599, ledger()).is_empty());
    assert_eq!(step(&mut machine, 3600, ledger()), ["approve [1]"]);
    assert!(step(&mut machine, 3601, ledger()).is_empty(), "asked once at a time");
}

#[test]
fn the_grace_begins_when_enough_clouds_hold_the_checkpoint() {
    let mut machine = machine();
    let ledger = |held| Input::Surveyed(survey(held, [entry(Segment, 1, 6, false)]));
    step(&mut machine, 0, ledger([6, 5, 5]));
    assert!(step(&mut machine, 7200, ledger([6, 6, 5])).is_empty());
    let effects = step(&mut machine, 10_800, ledger([6, 6, 5]));
    assert_eq!(effects[0], "approve [1]");
}

#[test]
fn a_cloud_without_the_newest_checkpoint_is_left_alone() {
    let mut machine = machine();
    let ledger = survey([6, 5, 6], [entry(Segment, 1, 5, true)]);
    let effects = step(&mut machine, 0, Input::Surveyed(ledger));
    assert_eq!(effects, ["sweep a records 50..=50 objects [1]", "sweep c records 50..=50 objects [1]"]);
}

#[test]
fn what_was_dead_only_at_the_newest_checkpoint_stays() {
    let mut machine = machine();
    let ledger = survey([6, 6, 6], [entry(Segment, 1, 6, true)]);
    assert!(step(&mut machine, 0, Input::Surveyed(ledger)).is_empty(), "the floor still refers to it");
}

#[test]
fn roots_go_before_what_they_refer_to() {
    let mut machine = machine();
    let ledger = survey([6, 0, 0], [entry(Segment, 1, 5, true), entry(Root, 2, 5, true), entry(Page, 3, 5, true)]);
    let effects = step(&mut machine, 0, Input::Surveyed(ledger));
    assert_eq!(effects, ["sweep a records 50..=50 objects [2, 1, 3]"]);
}

#[test]
fn a_root_that_may_not_go_yet_holds_back_the_rest() {
    let mut machine = machine();
    let ledger = survey([6, 0, 0], [entry(Segment, 1, 5, true), entry(Root, 2, 5, false)]);
    assert!(step(&mut machine, 0, Input::Surveyed(ledger)).is_empty());
}

#[test]
fn records_below_the_floor_go_even_if_nothing_is_condemned() {
    let mut machine = Machine::new(GRACE);
    let effects = step(&mut machine, 0, Input::Surveyed(survey([6, 5, 5], [])));
    assert_eq!(effects, ["sweep a records 0..=50 objects []"]);
    step(&mut machine, 0, Input::Swept { cloud: cloud("a"), records_gone: Seq(50) });
    assert!(step(&mut machine, 0, Input::Surveyed(survey([6, 5, 5], []))).is_empty());
}

#[test]
fn with_one_checkpoint_there_is_no_floor_and_nothing_goes() {
    let mut machine = Machine::new(GRACE);
    let mut ledger = survey([6, 6, 6], [entry(Segment, 1, 5, true)]);
    ledger.previous = None;
    assert!(step(&mut machine, 0, Input::Surveyed(ledger)).is_empty());
}

#[test]
fn what_is_gone_from_a_cloud_is_not_deleted_there_again() {
    let mut machine = machine();
    let (name, mut gone) = entry(Segment, 1, 5, true);
    gone.gone_from.insert(cloud("a"));
    let effects = step(&mut machine, 0, Input::Surveyed(survey([6, 6, 0], [(name, gone)])));
    assert_eq!(effects, ["sweep b records 50..=50 objects [1]"]);
}

#[test]
fn segments_that_wait_for_the_floor_ask_for_a_checkpoint_and_pages_do_not() {
    let mut machine = machine();
    let pages = || Input::Surveyed(survey([6, 6, 6], [entry(Page, 1, 6, true)]));
    step(&mut machine, 0, pages());
    assert!(step(&mut machine, 9000, pages()).is_empty());
    let segments = || Input::Surveyed(survey([6, 6, 6], [entry(Segment, 2, 6, true)]));
    step(&mut machine, 9000, segments());
    assert_eq!(step(&mut machine, 12_600, segments()), ["checkpoint"]);
    assert!(step(&mut machine, 12_700, segments()).is_empty(), "not oftener than the grace");
}

#[test]
fn dead_segments_of_a_volume_at_rest_are_condemned_after_the_grace() {
    let mut machine = machine();
    let ledger = || Input::Surveyed(Survey { dead: true, ..survey([6, 6, 6], []) });
    assert!(step(&mut machine, 0, ledger()).is_empty());
    assert_eq!(step(&mut machine, 3600, ledger()), ["checkpoint"]);
}

#[test]
fn a_restart_starts_the_grace_anew() {
    let mut machine = machine();
    let ledger = || Input::Surveyed(survey([6, 6, 6], [entry(Segment, 1, 5, false)]));
    step(&mut machine, 3599, ledger());
    let mut restarted = super::tests::machine();
    assert!(step(&mut restarted, 3600, ledger()).is_empty());
}

#[test]
fn orphans_go_before_what_they_may_refer_to_highest_number_first() {
    let mut machine = machine();
    let ledger = [entry(Page, 1, 5, true), orphan(2, 6, true), orphan(3, 6, true), entry(Page, 4, 6, true)];
    let effects = step(&mut machine, 0, Input::Surveyed(survey([6, 0, 0], ledger)));
    assert_eq!(effects, ["sweep a records 50..=50 objects [3, 2, 1]"]);
}

#[test]
fn an_orphan_that_may_not_go_yet_holds_back_the_rest() {
    let mut machine = machine();
    let ledger = [entry(Page, 1, 5, true), orphan(2, 6, false), orphan(3, 6, true)];
    let effects = step(&mut machine, 0, Input::Surveyed(survey([6, 0, 0], ledger)));
    assert_eq!(effects, ["sweep a records 50..=50 objects [3]"]);
}
