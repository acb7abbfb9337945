//! How cursors move, and what a cloud gets in which order.

use super::*;
use crate::actor::Machine as _;

fn cloud(name: &str) -> CloudName {
    CloudName(name.into())
}

fn machine(cursors: [u64; 3]) -> Machine {
    let cursors = ["a", "b", "c"].map(cloud).into_iter().zip(cursors.map(Seq)).collect();
    Machine::new(&cursors, 2)
}

fn step(machine: &mut Machine, input: Input) -> Vec<String> {
    let mut effects = Vec::new();
    machine.step(Instant(0), input, &mut effects);
    effects.iter().map(name).collect()
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Step { cloud, from, through } => format!("{} step {from}..={through}", cloud.0),
        Effect::Move { cloud, seq } => format!("{} move {seq}", cloud.0),
        Effect::Pause { cloud, pause } => format!("{} pause {} ms", cloud.0, pause.as_millis()),
        Effect::Jump { cloud } => format!("{} jump", cloud.0),
        Effect::Durable(seq) => format!("durable {seq}"),
    }
}

fn stepped(name: &str, outcome: Outcome) -> Input {
    Input::Stepped { cloud: cloud(name), outcome }
}

fn moved(name: &str, seq: u64) -> Input {
    Input::Moved { cloud: cloud(name), seq: Seq(seq) }
}

#[test]
fn every_cloud_is_brought_to_the_head_and_d2_is_reached_at_the_quorum() {
    let mut machine = machine([0, 0, 0]);
    let effects = step(&mut machine, Input::Head(Seq(1)));
    assert_eq!(effects, ["a step 1..=1", "b step 1..=1", "c step 1..=1"]);
    assert_eq!(step(&mut machine, stepped("a", Outcome::Through(Seq(1)))), ["a move 1"]);
    assert_eq!(step(&mut machine, stepped("c", Outcome::Through(Seq(1)))), ["c move 1"]);
    assert!(step(&mut machine, moved("a", 1)).is_empty());
    assert_eq!(step(&mut machine, moved("c", 1)), ["durable 1"]);
    assert_eq!(machine.durable(), Seq(1));
}

#[test]
fn storing_alone_is_not_d2() {
    let mut machine = machine([0, 0, 0]);
    step(&mut machine, Input::Head(Seq(1)));
    for name in ["a", "b", "c"] {
        step(&mut machine, stepped(name, Outcome::Through(Seq(1))));
    }
    assert_eq!(machine.durable(), Seq(0));
}

#[test]
fn a_failing_cloud_pauses_longer_each_time_and_holds_up_nobody() {
    let mut machine = machine([0, 0, 0]);
    step(&mut machine, Input::Head(Seq(1)));
    let failed = || stepped("b", Outcome::Failed { through: Seq(0) });
    assert_eq!(step(&mut machine, failed()), ["b pause 500 ms"]);
    assert_eq!(step(&mut machine, Input::Retry { cloud: cloud("b") }), ["b step 1..=1"]);
    assert_eq!(step(&mut machine, failed()), ["b pause 1000 ms"]);
    for name in ["a", "c"] {
        step(&mut machine, stepped(name, Outcome::Through(Seq(1))));
        step(&mut machine, moved(name, 1));
    }
    assert_eq!(machine.durable(), Seq(1));
}

#[test]
fn pauses_end_at_thirty_seconds() {
    assert_eq!(pause(5), Duration::from_secs(16));
    assert_eq!([pause(6), pause(31), pause(32), pause(u32::MAX)], [PAUSE_MAX; 4]);
}

#[test]
fn a_cloud_that_returns_catches_up_in_steps() {
    let mut machine = machine([40, 40, 3]);
    assert_eq!(step(&mut machine, Input::Head(Seq(40))), ["c step 4..=19"]);
    assert_eq!(step(&mut machine, stepped("c", Outcome::Through(Seq(19)))), ["c move 19", "c step 20..=35"]);
    assert_eq!(step(&mut machine, stepped("c", Outcome::Through(Seq(35)))), ["c step 36..=40"]);
    assert_eq!(step(&mut machine, moved("c", 19)), ["c move 35"]);
}

#[test]
fn what_a_failed_step_did_bring_counts() {
    let mut machine = machine([0, 0, 0]);
    step(&mut machine, Input::Head(Seq(9)));
    let effects = step(&mut machine, stepped("a", Outcome::Failed { through: Seq(4) }));
    assert_eq!(effects, ["a pause 500 ms", "a move 4"]);
}

#[test]
fn a_cloud_below_what_is_kept_jumps_and_goes_on_behind_the_checkpoint() {
    let mut machine = machine([90, 90, 1]);
    step(&mut machine, Input::Head(Seq(90)));
    assert_eq!(step(&mut machine, stepped("c", Outcome::Unreachable)), ["c jump"]);
    assert!(step(&mut machine, Input::Head(Seq(90))).is_empty());
    let jumped = Input::Jumped { cloud: cloud("c"), seq: Seq(80) };
    assert_eq!(step(&mut machine, jumped), ["c step 81..=90"]);
}

#[test]
fn a_cursor_that_raft_did_not_take_is_moved_again_after_a_pause() {
    let mut machine = machine([0, 0, 0]);
    step(&mut machine, Input::Head(Seq(1)));
    step(&mut machine, stepped("a", Outcome::Through(Seq(1))));
    assert_eq!(step(&mut machine, Input::NotMoved { cloud: cloud("a") }), ["a pause 500 ms"]);
    assert!(step(&mut machine, Input::Head(Seq(1))).is_empty(), "no busy loop");
    assert_eq!(step(&mut machine, Input::Retry { cloud: cloud("a") }), ["a move 1"]);
}

#[test]
fn a_restart_knows_d2_from_the_cursors() {
    assert_eq!(machine([7, 3, 5]).durable(), Seq(5));
}

#[test]
fn fewer_clouds_than_the_quorum_make_nothing_durable() {
    let cursors = [(cloud("a"), Seq(9))].into_iter().collect();
    assert_eq!(Machine::new(&cursors, 2).durable(), Seq(0));
}

#[test]
fn a_cloud_that_starts_over_is_given_everything_again_and_takes_nothing_from_d2() {
    let mut machine = machine([40, 40, 40]);
    let start_over = || Input::StartOver { cloud: cloud("c") };
    assert_eq!(step(&mut machine, start_over()), ["c step 1..=16"]);
    assert_eq!(step(&mut machine, stepped("c", Outcome::Unreachable)), ["c jump"]);
    assert!(step(&mut machine, start_over()).is_empty(), "it waits for the checkpoint as before");
    assert_eq!(step(&mut machine, Input::Jumped { cloud: cloud("c"), seq: Seq(38) }), ["c step 39..=40"]);
    assert_eq!(machine.durable(), Seq(40));
}

#[test]
fn a_cloud_that_starts_over_while_it_pauses_does_so_after_the_pause() {
    let mut machine = machine([40, 40, 39]);
    assert_eq!(step(&mut machine, Input::Head(Seq(40))), ["c step 40..=40"]);
    assert_eq!(step(&mut machine, stepped("c", Outcome::Failed { through: Seq(39) })), ["c pause 500 ms"]);
    assert!(step(&mut machine, Input::StartOver { cloud: cloud("c") }).is_empty());
    assert_eq!(step(&mut machine, Input::Retry { cloud: cloud("c") }), ["c step 1..=16"]);
}
