//! A volume whose journal other nodes keep too: d0 comes from them, reads are confirmed by them, and it may be abandoned.

use super::{BLOCK, PLENTY, read, world::World, write};
use crate::volume::{
    machine::Input,
    messages::{Operation, Outcome},
};

fn world() -> World {
    let mut world = World::among_others(PLENTY);
    world.attach(1);
    world
}

fn answers(world: &World) -> Vec<u64> {
    world.replies.iter().map(|(origin, _)| origin.tag).collect()
}

/// A stale owner that answered reads from its cache would show a guest what another owner's guest has overwritten.
#[test]
fn a_read_is_answered_after_a_look_that_began_when_it_was_done() {
    let mut world = world();
    world.ask(1, 1, read(0, BLOCK));
    world.ask(1, 2, read(BLOCK, BLOCK));
    assert!(answers(&world).is_empty());
    assert_eq!(world.pending.len(), 1, "one look is under way");
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1], "the second read was not done when the look began");
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1, 2]);
    assert!(world.pending.is_empty());
}

/// A stale owner denied what the volume's owner, elsewhere, allowed by then.
#[test]
fn a_denial_is_answered_as_a_read_is() {
    let mut world = world();
    world.step(Input::SetAcl { entries: Vec::new(), version: 2 });
    world.ask(1, 1, write(0, BLOCK, 1));
    world.ask(1, 2, read(1 << 40, BLOCK));
    assert!(answers(&world).is_empty());
    world.complete(0, true, true);
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1, 2]);
    world.ask(1, 3, write(0, BLOCK, 1));
    world.step(Input::Abandon);
    world.complete_all();
    assert_eq!(answers(&world), [1, 2], "whoever owns it now knows");
}

/// With acks that come from other nodes the last record is nearly never at d0: windows are cut all the same, and handed out when
/// they are.
#[test]
fn a_window_is_cut_at_once_and_handed_out_at_d0() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    assert!(world.machine.freeze().is_none());
    world.ask(1, 2, write(0, BLOCK, 2));
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1]);
    assert_eq!(world.woken, 1, "the flusher is told that it can have it");
    let window = world.machine.freeze().unwrap();
    assert_eq!((window.first.0, window.last.0), (1, 1));
    assert!(world.machine.freeze().is_none(), "the second write is not at d0");
    world.complete(0, true, true);
    assert_eq!(world.machine.freeze().unwrap().last.0, 2);
}

/// Windows are cut off before they are at d0. A read of one was answered at once: what a guest had seen was gone when another node, which
/// had not got it, took over.
#[test]
fn a_read_of_a_window_that_was_cut_off_waits_until_that_is_at_d0() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    assert!(world.machine.freeze().is_none());
    world.ask(1, 2, read(0, BLOCK));
    assert_eq!(world.pending.len(), 1, "no look begins before the write is at d0");
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1]);
    world.complete(0, true, true);
    assert_eq!(answers(&world), [1, 2]);
}

#[test]
fn an_abandoned_volume_answers_nothing_and_lets_go_of_what_it_held() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    world.ask(1, 2, read(0, BLOCK));
    world.ask(1, 3, Operation::Barrier);
    world.replies.clear();
    world.step(Input::Abandon);
    while !world.pending.is_empty() {
        world.complete(0, true, true);
    }
    world.attach(2);
    world.ask(2, 1, write(0, BLOCK, 2));
    assert!(world.replies.iter().all(|(_, outcome)| matches!(outcome, Outcome::Refused(_))), "{:?}", world.replies);
    assert!(world.machine.freeze().is_none());
    assert_eq!(world.budget.bytes_used(), 0);
}
