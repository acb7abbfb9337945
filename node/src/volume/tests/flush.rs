//! Windows: what a flush gets, when the buffer lets go, what the journal may forget.

use velum_protocol::id::{Epoch, Jseq};

use super::{BLOCK, PLENTY, blocks, trim, world, world::World, write};
use crate::volume::messages::Change;

#[test]
fn a_window_holds_the_newest_version_of_each_block_at_d0() {
    let mut world = world();
    world.ask(1, 1, write(0, 2 * BLOCK, 1));
    world.ask(1, 2, write(BLOCK, BLOCK, 2));
    world.ask(1, 3, trim(0, BLOCK));
    assert!(world.freeze());
    let window = world.frozen.front().unwrap();
    assert_eq!((window.first, window.last, window.epoch), (Jseq(1), Jseq(3), Epoch(1)));
    assert!(matches!(
        &window.changes[..],
        [Change::Unmap { .. }, Change::Data { contents, .. }] if contents[..] == blocks(&[2])[..]
    ));
    assert!(!world.freeze(), "nothing new is dirty");
}

#[test]
fn nothing_that_is_not_at_d0_is_cut() {
    let mut world = world();
    world.submit(1, 1, write(0, BLOCK, 1));
    assert!(world.machine.freeze().is_none());
    assert!(world.freeze(), "after the submit it is");
}

#[test]
fn several_windows_may_be_out_and_reads_see_through_them() {
    let mut world = world();
    for mark in 1..=3 {
        world.ask(1, mark, write((mark - 1) * BLOCK, 3 * BLOCK, mark as u8));
        world.freeze();
    }
    assert_eq!(world.frozen.len(), 3);
    assert_eq!(world.read_now(0, 6 * 4096), blocks(&[1, 2, 3, 3, 3, 0]));
    for _ in 0..3 {
        world.commit();
        assert_eq!(world.read_now(0, 6 * 4096), blocks(&[1, 2, 3, 3, 3, 0]));
    }
    assert_eq!(world.budget.bytes_used(), 0);
}

#[test]
fn the_flusher_is_woken_once_per_threshold() {
    let mut world = world();
    for tag in 0..15 {
        world.ask(1, tag, write(tag * BLOCK, BLOCK, 1));
    }
    assert_eq!(world.woken, 0);
    for tag in 15..64 {
        world.ask(1, tag, write(tag * BLOCK, BLOCK, 1));
    }
    assert_eq!(world.woken, 1);
    world.freeze();
    for tag in 64..80 {
        world.ask(1, tag, write(tag * BLOCK, BLOCK, 1));
    }
    assert_eq!(world.woken, 2);
}

#[test]
fn a_window_does_not_grow_without_bound_when_no_flush_comes() {
    let mut world = World::new(PLENTY);
    world.attach(1);
    for tag in 0..36 {
        world.ask(1, tag, write(tag * 64 * BLOCK % (1 << 24), 64 * BLOCK, 1));
        world.ask(1, 100 + tag, write((4096 + tag * 100) * BLOCK, 64 * BLOCK, 1));
    }
    assert!(world.freeze());
    assert!(world.frozen[0].changes.len() < 4096 + 64, "{}", world.frozen[0].changes.len());
    assert!(world.freeze(), "the rest is in another one");
}

#[test]
fn the_oldest_dirty_byte_and_the_exposure_are_told_until_d2() {
    let mut world = world();
    assert_eq!((world.machine.dirty().oldest, world.machine.dirty().exposed_since), (None, None));
    world.ask(1, 1, write(0, BLOCK, 1));
    let since = world.machine.dirty().oldest.unwrap();
    assert_eq!(world.machine.dirty().bytes, BLOCK);
    world.freeze();
    world.ask(1, 2, write(0, BLOCK, 1));
    let dirty = world.machine.dirty();
    assert!(dirty.oldest.unwrap() > since, "the first one is on its way");
    assert_eq!((dirty.exposed_since, dirty.buffered_bytes), (Some(since), 2 * BLOCK));
    world.commit();
    assert_eq!(world.machine.dirty().exposed_since, Some(since), "committed is not durable");
    world.become_durable();
    assert!(world.machine.dirty().exposed_since.unwrap() > since);
    assert_eq!(world.machine.dirty().durable, Jseq(1));
}

#[test]
fn the_journal_is_trimmed_at_d2_and_in_the_epoch_of_the_record() {
    let mut world = world();
    for tag in 1..=4 {
        world.ask(1, tag, write(tag * BLOCK, BLOCK, 1));
    }
    world.freeze();
    world.commit();
    assert_eq!(world.disk.records.len(), 4, "committed is not durable");
    let (keys, disk, outside, budget) = world.kill();
    let mut world = World::start(keys, disk, outside, budget).unwrap();
    world.attach(1);
    world.ask(1, 5, write(0, BLOCK, 1));
    world.become_durable();
    assert_eq!(world.disk.trimmed, (Epoch(1), Jseq(4)));
    assert_eq!(world.disk.records.len(), 1, "the new epoch's record stays");
}
