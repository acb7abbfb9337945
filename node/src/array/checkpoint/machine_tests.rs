//! The order of a checkpoint, step by step.

use super::*;
use crate::actor::Machine as _;

fn cloud(name: &str) -> CloudName {
    CloudName(name.into())
}

fn machine(newest: u64, held: [u64; 3]) -> Machine {
    let held = ["a", "b", "c"].map(cloud).into_iter().zip(held).collect();
    Machine::new(Triggers { records: 10, bytes: 1000 }, newest, &held)
}

fn step(machine: &mut Machine, input: Input) -> Vec<String> {
    let mut effects = Vec::new();
    machine.step(Instant(0), input, &mut effects);
    effects.iter().map(name).collect()
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Write => "write".into(),
        Effect::Commit => "commit".into(),
        Effect::Pause(_) => "pause".into(),
        Effect::Publish { cloud, jump } => format!("publish {}{}", cloud.0, if *jump { " jump" } else { "" }),
        Effect::PausePublish { cloud, .. } => format!("pause {}", cloud.0),
        Effect::Answer { committed } => format!("answer {committed}"),
    }
}

#[test]
fn a_checkpoint_is_made_after_enough_records_or_bytes() {
    let mut machine = machine(0, [0, 0, 0]);
    assert!(step(&mut machine, Input::Grown { records: 9, bytes: 999 }).is_empty());
    assert_eq!(step(&mut machine, Input::Grown { records: 10, bytes: 0 }), ["write"]);
    let mut machine = super::tests::machine(0, [0, 0, 0]);
    assert_eq!(step(&mut machine, Input::Grown { records: 1, bytes: 1000 }), ["write"]);
}

#[test]
fn it_is_published_only_once_raft_has_it() {
    let mut machine = machine(4, [4, 4, 4]);
    assert_eq!(step(&mut machine, Input::Demanded), ["write"]);
    assert_eq!(step(&mut machine, Input::Written), ["commit"]);
    let effects = step(&mut machine, Input::Committed { number: 5 });
    assert_eq!(effects, ["answer true", "publish a", "publish b", "publish c"]);
    for name in ["a", "b", "c"] {
        assert!(step(&mut machine, Input::Published { cloud: cloud(name), number: 5 }).is_empty());
    }
    assert!(machine.is_everywhere());
}

#[test]
fn a_restart_publishes_what_a_cloud_lacks() {
    let mut machine = machine(5, [5, 4, 5]);
    assert_eq!(step(&mut machine, Input::Grown { records: 0, bytes: 0 }), ["publish b"]);
}

#[test]
fn a_cloud_that_fails_is_tried_again_and_then_gets_the_newest() {
    let mut machine = machine(5, [5, 4, 5]);
    step(&mut machine, Input::Grown { records: 10, bytes: 0 });
    assert_eq!(step(&mut machine, Input::NotPublished { cloud: cloud("b") }), ["pause b"]);
    step(&mut machine, Input::Written);
    assert_eq!(step(&mut machine, Input::Committed { number: 6 }), ["publish a", "publish c"]);
    assert_eq!(step(&mut machine, Input::PublishAgain { cloud: cloud("b") }), ["publish b"]);
    assert!(step(&mut machine, Input::Published { cloud: cloud("b"), number: 6 }).is_empty());
}

#[test]
fn a_checkpoint_published_while_a_newer_one_was_committed_is_followed_by_that() {
    let mut machine = machine(5, [5, 4, 5]);
    step(&mut machine, Input::Grown { records: 10, bytes: 0 });
    step(&mut machine, Input::Written);
    step(&mut machine, Input::Committed { number: 6 });
    assert_eq!(step(&mut machine, Input::Published { cloud: cloud("b"), number: 5 }), ["publish b"]);
}

#[test]
fn a_cloud_that_must_jump_gets_the_newest_checkpoint_even_if_it_holds_it() {
    let mut machine = machine(5, [5, 5, 5]);
    assert_eq!(step(&mut machine, Input::JumpAsked { cloud: cloud("b") }), ["publish b jump"]);
}

#[test]
fn a_jump_asked_before_the_first_checkpoint_waits_for_it() {
    let mut machine = machine(0, [0, 0, 0]);
    assert!(step(&mut machine, Input::JumpAsked { cloud: cloud("b") }).is_empty());
}

#[test]
fn a_draft_that_fails_is_made_again_and_the_demand_is_still_answered() {
    let mut machine = machine(0, [0, 0, 0]);
    step(&mut machine, Input::Demanded);
    assert_eq!(step(&mut machine, Input::NotWritten), ["pause"]);
    assert_eq!(step(&mut machine, Input::TryAgain), ["write"]);
    step(&mut machine, Input::Written);
    assert_eq!(step(&mut machine, Input::Committed { number: 1 })[0], "answer true");
}

#[test]
fn a_demand_during_a_draft_gets_a_draft_of_its_own() {
    let mut machine = machine(0, [0, 0, 0]);
    step(&mut machine, Input::Grown { records: 10, bytes: 0 });
    assert!(step(&mut machine, Input::Demanded).is_empty());
    step(&mut machine, Input::Written);
    let effects = step(&mut machine, Input::Committed { number: 1 });
    assert_eq!(effects, ["write", "publish a", "publish b", "publish c"]);
}

#[test]
fn a_fenced_owner_makes_no_checkpoint_and_says_so() {
    let mut machine = machine(0, [0, 0, 0]);
    step(&mut machine, Input::Demanded);
    step(&mut machine, Input::Written);
    assert_eq!(step(&mut machine, Input::Refused), ["answer false"]);
    assert_eq!(step(&mut machine, Input::Demanded), ["answer false"]);
    assert!(step(&mut machine, Input::Grown { records: 99, bytes: 0 }).is_empty());
}

#[test]
fn a_cloud_that_starts_over_is_given_the_newest_checkpoint_again() {
    let mut machine = machine(5, [5, 5, 5]);
    let start_over = || Input::StartOver { cloud: cloud("c") };
    assert_eq!(step(&mut machine, start_over()), ["publish c"]);
    assert_eq!(step(&mut machine, Input::NotPublished { cloud: cloud("c") }), ["pause c"]);
    // Its sequence may have asked for the segments already; it still waits for them.
    step(&mut machine, Input::JumpAsked { cloud: cloud("c") });
    step(&mut machine, start_over());
    assert_eq!(step(&mut machine, Input::PublishAgain { cloud: cloud("c") }), ["publish c jump"]);
}
