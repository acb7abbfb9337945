//! Writes that wait: for room, for the rest of a block, for each other; and sessions that do not.

use velum_protocol::id::SessionId;

use super::{BLOCK, PLENTY, blocks, read, refusal, trim, world::World, write};
use crate::volume::{
    machine::Input,
    messages::{Operation, Refusal},
};

/// A world whose first blocks lie in the clouds and nowhere else.
fn cold(budget: u64) -> World {
    let mut world = World::new(budget);
    world.attach(1);
    world.attach(2);
    world.ask(1, 1000, write(0, 8 * BLOCK, 9));
    while world.freeze() | world.commit() {}
    world.become_durable();
    let (keys, disk, outside, budget) = world.kill();
    let mut world = World::start(keys, disk, outside, budget).unwrap();
    world.attach(1);
    world.attach(2);
    world
}

#[test]
fn writes_without_room_wait_in_order_and_wake_the_flusher() {
    let mut world = World::new(4 * (BLOCK + 400));
    world.attach(1);
    world.ask(1, 1, write(0, 4 * BLOCK, 1));
    world.ask(1, 2, write(4 * BLOCK, 3 * BLOCK, 2));
    world.ask(1, 3, write(8 * BLOCK, BLOCK, 3));
    world.ask(1, 4, read(4 * BLOCK, BLOCK));
    assert_eq!(world.machine.waiting_writes(), 2);
    assert!(world.outcome(1, 2).is_none() && world.outcome(1, 3).is_none(), "not acked, and nobody passes");
    assert_eq!(world.data(1, 4).unwrap(), blocks(&[0]), "reads go on");
    assert!(world.woken > 0 && world.machine.dirty().short);
    assert!(world.budget.bytes_used() <= world.budget.bytes_max());
    world.freeze();
    assert!(world.outcome(1, 2).is_none(), "frozen is not clean");
    world.commit();
    assert!(world.is_done(1, 2) && world.is_done(1, 3), "room again");
    assert!(!world.machine.dirty().short);
    assert_eq!(world.read_now(4 * BLOCK, 5 * 4096), blocks(&[2, 2, 2, 0, 3]));
}

#[test]
fn a_full_journal_holds_writes_back_too() {
    let mut world = World::new(PLENTY);
    world.attach(1);
    world.tank.0.set(100);
    world.ask(1, 1, write(0, BLOCK, 1));
    assert_eq!(world.machine.waiting_writes(), 1);
    assert_eq!(world.pending.len(), 1, "the journal is asked to tell");
    world.tank.0.set(1 << 20);
    world.complete_all();
    assert!(world.is_done(1, 1));
    assert_eq!(world.machine.waiting_writes(), 0);
}

#[test]
fn later_writes_to_a_block_wait_for_its_fill_and_others_do_not() {
    let mut world = cold(PLENTY);
    world.ask(1, 1, write(100, 50, 1));
    world.ask(1, 2, write(0, BLOCK, 2));
    world.ask(2, 3, write(90, 20, 3));
    world.ask(2, 4, write(4 * BLOCK, BLOCK, 4));
    world.ask(2, 5, write(BLOCK - 10, 20, 5));
    assert!(world.is_done(2, 4), "another block");
    for (session, tag) in [(1, 1), (1, 2), (2, 3), (2, 5)] {
        assert!(world.outcome(session, tag).is_none(), "request {tag} waits");
    }
    world.complete_all();
    for (session, tag) in [(1, 1), (1, 2), (2, 3), (2, 5)] {
        assert!(world.is_done(session, tag), "request {tag} went through");
    }
    let mut expected = blocks(&[2, 9]);
    expected[90..110].fill(3);
    expected[4086..4106].fill(5);
    assert_eq!(world.read_now(0, 8192), expected, "in the order they came");
}

#[test]
fn a_fill_that_fails_changes_nothing() {
    let mut world = cold(PLENTY);
    world.ask(1, 1, write(100, 50, 1));
    world.ask(1, 2, write(0, BLOCK, 2));
    world.lose(0);
    assert_eq!(refusal(&world, 1, 1), Some(Refusal::Failed));
    assert!(world.is_done(1, 2), "who waited behind it goes on");
    assert_eq!(world.budget.bytes_used(), BLOCK);
    assert_eq!(world.read_now(0, 4096), blocks(&[2]));
}

#[test]
fn requests_of_a_dead_session_without_a_position_never_take_effect() {
    let mut world = cold(2 * (BLOCK + 400));
    world.ask(1, 1, write(100, 50, 1));
    world.ask(1, 2, write(0, BLOCK, 2));
    world.ask(1, 3, write(4 * BLOCK, BLOCK, 3));
    assert_eq!(world.machine.waiting_writes(), 1, "one waits for a fill, one behind it, one for room");
    world.step(Input::Detach { session: SessionId(1) });
    let mut successor = 0;
    for block in [0, 4] {
        successor += 1;
        world.ask(2, successor, write(block * BLOCK, BLOCK, 7));
        assert!(world.is_done(2, successor));
    }
    world.complete_all();
    while world.freeze() | world.commit() {}
    assert_eq!(world.read_now(0, 5 * 4096), blocks(&[7, 9, 9, 9, 7]));
    assert!(world.replies.iter().all(|(origin, _)| origin.session != SessionId(1)));
    assert_eq!(world.budget.bytes_used(), 0);
}

#[test]
fn a_revoked_right_holds_for_what_waits() {
    let mut world = cold(2 * (BLOCK + 400));
    world.ask(1, 1, write(100, 50, 1));
    world.ask(1, 2, write(4 * BLOCK, 2 * BLOCK, 3));
    world.ask(1, 3, read(5 * BLOCK, BLOCK));
    assert!((1..=3).all(|tag| world.outcome(1, tag).is_none()));
    world.step(Input::SetAcl { entries: Vec::new(), version: 2 });
    for tag in 1..=3 {
        assert_eq!(refusal(&world, 1, tag), Some(Refusal::NotAllowed), "request {tag}");
    }
    assert_eq!(world.refusals, 3, "one record each");
    world.complete_all();
    assert_eq!((world.disk.records.len(), world.budget.bytes_used()), (0, 0));
}

#[test]
fn the_journal_filling_up_during_a_fill_sends_the_write_back_in_line() {
    let mut world = cold(PLENTY);
    world.ask(1, 1, write(100, 50, 1));
    world.tank.0.set(0);
    world.complete(0, true, true);
    assert!(world.outcome(1, 1).is_none());
    assert_eq!(world.machine.waiting_writes(), 1);
    world.tank.0.set(1 << 20);
    world.complete_all();
    assert!(world.is_done(1, 1));
    let mut expected = blocks(&[9]);
    expected[100..150].fill(1);
    assert_eq!(world.read_now(0, 4096), expected);
}

#[test]
fn many_small_writes_behind_one_fill_keep_their_order() {
    let mut world = cold(PLENTY);
    let mut expected = blocks(&[9, 9]);
    for tag in 0..200u64 {
        let (at, length) = (tag * 37 % 8000, 1 + tag % 190);
        world.ask(1 + tag % 2, tag, write(at, length, tag as u8));
        expected[at as usize..(at + length) as usize].fill(tag as u8);
    }
    world.complete_all();
    assert!((0..200).all(|tag| world.is_done(1 + tag % 2, tag)));
    assert_eq!(world.read_now(0, 8192), expected);
}

#[test]
fn a_trim_behind_a_fill_waits_its_turn() {
    let mut world = cold(PLENTY);
    world.ask(1, 1, write(100, 50, 1));
    world.ask(1, 2, trim(0, 2 * BLOCK));
    world.ask(1, 3, Operation::Barrier);
    assert!(world.is_done(1, 3), "a barrier does not wait for what is not acked");
    world.complete_all();
    assert!(world.is_done(1, 1) && world.is_done(1, 2));
    assert_eq!(world.read_now(0, 3 * 4096), blocks(&[0, 0, 9]));
}
