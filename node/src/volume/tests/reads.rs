//! Reads from the clouds: one fetch for all who wait, retries, losses, read-ahead, pages of the map.

use super::{
    BLOCK, PLENTY, blocks, read, refusal,
    world::{Pending, World},
    write,
};
use crate::volume::{
    machine::Input,
    messages::{Operation, Outcome, Refusal},
};

/// A world of `count` blocks in the clouds and nowhere else, block i holding the mark i.
fn cold(count: u64) -> World {
    let mut world = World::new(PLENTY);
    world.attach(1);
    for block in 0..count {
        world.ask(1, 1000 + block, write(block * BLOCK, BLOCK, block as u8));
    }
    while world.freeze() | world.commit() {}
    world.become_durable();
    let (keys, disk, outside, budget) = world.kill();
    let mut world = World::start(keys, disk, outside, budget).unwrap();
    world.memory.borrow_mut().set_budget(1 << 20);
    world.attach(1);
    world.attach(2);
    world
}

#[test]
fn one_fetch_serves_all_who_wait_for_a_frame() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, BLOCK));
    world.ask(1, 2, read(100, 50));
    world.ask(2, 3, read(0, 16 * BLOCK));
    assert_eq!(world.pending.len(), 1);
    world.complete(0, true, true);
    assert_eq!(world.data(1, 1).unwrap(), blocks(&[0]));
    assert_eq!(world.data(1, 2).unwrap(), vec![0; 50]);
    assert_eq!(world.data(2, 3).unwrap(), blocks(&(0..16).collect::<Vec<u8>>()));
    assert!(world.pending.is_empty());
}

#[test]
fn blocks_asked_for_after_a_fetch_left_are_fetched_again() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, BLOCK));
    world.ask(1, 2, read(9 * BLOCK, BLOCK));
    world.complete(0, true, false);
    assert_eq!(world.data(1, 1).unwrap(), blocks(&[0]));
    assert!(world.outcome(1, 2).is_none());
    world.complete(0, true, false);
    assert_eq!(world.data(1, 2).unwrap(), blocks(&[9]));
}

#[test]
fn a_read_waits_while_no_cloud_answers_and_fails_when_all_have_lost_the_frame() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, BLOCK));
    for _ in 0..5 {
        world.complete(0, false, true);
        assert!(world.outcome(1, 1).is_none(), "never zeros, never an error");
    }
    world.lose(0);
    assert_eq!(refusal(&world, 1, 1), Some(Refusal::Failed));
    world.ask(1, 2, read(0, BLOCK));
    world.complete_all();
    assert_eq!(world.data(1, 2).unwrap(), blocks(&[0]), "a later read tries anew");
}

#[test]
fn nobody_fetches_for_a_session_that_is_gone() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, BLOCK));
    world.step(Input::Detach { session: velum_protocol::id::SessionId(1) });
    world.complete(0, false, true);
    assert!(world.pending.is_empty(), "no retry");
}

#[test]
fn what_was_fetched_or_flushed_is_read_from_memory() {
    let mut world = cold(4);
    world.ask(1, 1, read(0, 4 * BLOCK));
    world.complete_all();
    world.ask(1, 2, read(0, 4 * BLOCK));
    assert_eq!(world.data(1, 2).unwrap(), blocks(&[0, 1, 2, 3]));
    world.ask(1, 3, write(BLOCK, BLOCK, 77));
    while world.freeze() | world.commit() {}
    world.ask(1, 4, read(BLOCK, BLOCK));
    assert_eq!(world.data(1, 4).unwrap(), blocks(&[77]), "a committed block is cached under its new location");
    assert!(world.pending.is_empty());
}

#[test]
fn a_sequential_reader_is_read_ahead_of() {
    let mut world = cold(64);
    for step in 0..4 {
        world.ask(1, step, read(step * 4 * BLOCK, 4 * BLOCK));
        while let Some(wanted) = world
            .pending
            .iter()
            .position(|pending| matches!(pending, Pending::Frame { frame, .. } if frame.start.0 == step * 4 / 16 * 16))
        {
            world.complete(wanted, true, true);
        }
    }
    assert!(!world.pending.is_empty(), "the next frame is on its way");
    world.complete_all();
    world.ask(1, 5, read(16 * BLOCK, 4 * BLOCK));
    assert_eq!(world.data(1, 5).unwrap(), blocks(&[16, 17, 18, 19]));
}

#[test]
fn a_prefetch_is_answered_when_the_blocks_are_here() {
    let mut world = cold(16);
    world.ask(1, 1, Operation::Prefetch { offset: 0, length: 8 * 4096 });
    assert!(world.outcome(1, 1).is_none());
    world.complete_all();
    assert!(world.is_done(1, 1));
    world.ask(1, 2, read(0, 8 * BLOCK));
    assert!(world.data(1, 2).is_some());
}

#[test]
fn pages_that_are_away_are_fetched_for_reads_and_status() {
    let mut world = World::new(PLENTY);
    world.attach(1);
    world.ask(1, 1, write(4094 * BLOCK, 4 * BLOCK, 3));
    while world.freeze() | world.commit() {}
    world.checkpoint();
    world.ask(1, 2, read(4093 * BLOCK, 6 * BLOCK));
    assert!(matches!(world.pending[..], [Pending::Page { .. }]));
    world.complete(0, false, true);
    assert!(matches!(world.pending[..], [Pending::Page { .. }]), "tried again");
    world.complete_all();
    assert_eq!(world.data(1, 2).unwrap(), blocks(&[0, 3, 3, 3, 3, 0]));
    world.checkpoint();
    world.ask(1, 3, Operation::Status { offset: 4093 * BLOCK, length: 6 * 4096, extents_max: 8 });
    world.complete_all();
    let Some(Outcome::Status(extents)) = world.outcome(1, 3) else { panic!() };
    assert!(!extents.is_empty(), "at least the first leaf is told");
    world.ask(1, 4, Operation::Status { offset: 4093 * BLOCK, length: 6 * 4096, extents_max: 8 });
    world.complete_all();
    let Some(Outcome::Status(extents)) = world.outcome(1, 4) else { panic!() };
    assert_eq!(
        extents.iter().map(|extent| (extent.length / BLOCK, extent.hole)).collect::<Vec<_>>(),
        [(1, true), (4, false), (1, true)]
    );
}

#[test]
fn a_lost_page_fails_the_read_that_needs_it() {
    let mut world = World::new(PLENTY);
    world.attach(1);
    world.ask(1, 1, write(0, BLOCK, 3));
    while world.freeze() | world.commit() {}
    world.checkpoint();
    world.ask(1, 2, read(0, BLOCK));
    world.lose(0);
    assert_eq!(refusal(&world, 1, 2), Some(Refusal::Failed));
}

#[test]
fn blocks_that_were_moved_are_read_from_where_they_lie_now() {
    let mut world = cold(32);
    world.relocate(4, 16);
    world.ask(1, 1, read(0, 32 * BLOCK));
    let segments = world.pending.iter().map(|pending| match pending {
        Pending::Frame { frame, wanted } => (frame.segment, wanted.count_ones()),
        other => panic!("{other:?} is no fetch of a frame"),
    });
    let segments: Vec<_> = segments.collect();
    let [(old, 4), (new, 16), (also_old, 12)] = segments[..] else { panic!("{segments:?}") };
    assert!(old == also_old && new > old);
    world.complete_all();
    assert_eq!(world.data(1, 1).unwrap(), blocks(&(0..32).collect::<Vec<u8>>()));
    assert_eq!(world.moved, 16);
}

#[test]
fn what_memory_holds_of_moved_blocks_it_still_holds() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, 8 * BLOCK));
    world.complete(0, true, false);
    world.relocate(0, 16);
    world.ask(1, 2, read(0, 8 * BLOCK));
    assert_eq!(world.data(1, 2).unwrap(), blocks(&(0..8).collect::<Vec<u8>>()));
    world.ask(1, 3, read(8 * BLOCK, BLOCK));
    assert!(world.data(1, 3).is_none(), "what nobody had read is not pushed into memory");
}

/// A read waits for a frame that no cloud can give now. A compaction moves the block, and the segment it lay in is deleted
/// before the cloud answers: all would say that it is gone, and the guest would get an error for a block that is safe.
#[test]
fn a_read_that_waits_for_a_block_at_its_old_place_gets_it_when_it_is_moved() {
    let mut world = cold(16);
    world.ask(1, 1, read(0, 2 * BLOCK));
    world.ask(2, 2, read(BLOCK, 2 * BLOCK));
    world.complete(0, false, true);
    world.relocate(0, 2);
    assert_eq!(world.data(1, 1).unwrap(), blocks(&[0, 1]));
    assert!(world.outcome(2, 2).is_none(), "block 2 was not moved");
    world.relocate(2, 1);
    assert_eq!(world.data(2, 2).unwrap(), blocks(&[1, 2]));
    world.lose(0);
    assert_eq!(world.read_now(0, 16 * 4096), blocks(&(0..16).collect::<Vec<u8>>()));
}

/// The buffer has a newer version of a moved block, in a window that is out and in one that is not.
#[test]
fn a_moved_block_that_is_dirty_stays_dirty() {
    let mut world = cold(16);
    world.ask(1, 1, write(0, BLOCK, 100));
    world.freeze();
    world.ask(1, 2, write(BLOCK, BLOCK, 101));
    world.relocate(0, 3);
    assert_eq!(world.read_now(0, 3 * 4096), blocks(&[100, 101, 2]));
    world.freeze();
    assert!(world.commit() && world.commit());
    assert_eq!(world.read_now(0, 3 * 4096), blocks(&[100, 101, 2]));
}
