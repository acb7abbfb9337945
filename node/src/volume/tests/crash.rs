//! What a new life makes of the journal of the last one, and what it refuses to start from.

use bytes::Bytes;
use velum_protocol::{
    format::record::{HEADER_BYTES, RecordHeader},
    id::{Epoch, Jseq, Lineage},
};

use super::{
    BLOCK, blocks, fua, read, world,
    world::{Disk, World},
    write,
};
use crate::volume::{
    messages::Operation,
    replay::{Lost, ReplayError},
};

/// A world with five records, all at d0, the first three proven to be at d1 by the later ones.
fn five() -> World {
    let mut world = world();
    for tag in 0..3 {
        world.ask(1, tag, write(tag * BLOCK, BLOCK, tag as u8 + 1));
    }
    world.ask(1, 10, Operation::Barrier);
    world.complete_all();
    world.ask(1, 3, write(3 * BLOCK, BLOCK, 4));
    world.ask(1, 4, write(4 * BLOCK, BLOCK, 5));
    world
}

/// The world of [`five`] restarted after `edit` touched its journal.
fn restart(world: World, edit: impl FnOnce(&mut Disk)) -> Result<World, ReplayError> {
    let (keys, mut disk, outside, budget) = world.kill();
    edit(&mut disk);
    World::start(keys, disk, outside, budget)
}

fn flip(record: &Bytes, place: usize) -> Bytes {
    let mut bytes = record.to_vec();
    bytes[place] ^= 1;
    Bytes::from(bytes)
}

#[test]
fn everything_at_d0_is_there_after_a_kill() {
    let mut world = restart(five(), |_| ()).unwrap();
    assert_eq!(world.read_now(0, 6 * 4096), blocks(&[1, 2, 3, 4, 5, 0]));
    assert_eq!(world.machine.dirty().bytes, 5 * BLOCK, "and dirty");
    assert_eq!(world.budget.bytes_used(), 5 * BLOCK);
    world.attach(1);
    world.ask(1, 1, Operation::Barrier);
    assert!(world.outcome(1, 1).is_none(), "what was found is not taken to be at d1");
    world.complete_all();
    assert!(world.is_done(1, 1));
}

#[test]
fn records_the_map_has_are_not_replayed() {
    let mut world = five();
    world.freeze();
    world.commit();
    world.ask(1, 9, write(0, BLOCK, 8));
    let mut world = restart(world, |_| ()).unwrap();
    assert_eq!(world.machine.dirty().bytes, BLOCK);
    assert_eq!(world.read_now(0, 2 * 4096), blocks(&[8, 2]));
}

#[test]
fn an_end_that_was_not_at_d1_may_be_gone() {
    for kept in 3..5 {
        let mut world = restart(five(), |disk| disk.records.truncate(kept)).unwrap();
        let marks: Vec<u8> = (1..=kept as u8).chain([0]).collect();
        assert_eq!(world.read_now(0, (kept as u32 + 1) * 4096), blocks(&marks));
    }
}

#[test]
fn a_missing_record_that_was_at_d1_faults_the_volume() {
    for missing in 0..3 {
        let result = restart(five(), |disk| drop(disk.records.remove(missing)));
        let first = Jseq(missing as u64 + 1);
        assert_eq!(result.err(), Some(ReplayError::Missing { first, durable: Jseq(3) }));
    }
}

#[test]
fn a_gap_above_d1_ends_the_replay_and_is_told() {
    let (keys, mut disk, outside, _) = five().kill();
    disk.records.remove(3);
    let owner = crate::volume::sealing::Owner { epoch: Epoch(2), lineage: Lineage(1) };
    let replay =
        crate::volume::replay::Replay::plan(outside.head, owner, disk.records.clone(), &Lost::default()).unwrap();
    assert_eq!((replay.len(), replay.given_up), (3, 1));
    let mut world = World::start(keys, disk, outside, 1 << 30).unwrap();
    assert_eq!(world.read_now(2 * BLOCK, 3 * 4096), blocks(&[3, 0, 0]));
}

#[test]
fn what_was_given_up_stays_given_up() {
    let mut world = restart(five(), |disk| drop(disk.records.remove(3))).unwrap();
    world.attach(1);
    world.ask(1, 1, write(7 * BLOCK, BLOCK, 7));
    assert_eq!(world.disk.records.last().unwrap().jseq, Jseq(4), "goes on where the replay ended");
    let mut world = restart(world, |_| ()).unwrap();
    assert_eq!(world.read_now(2 * BLOCK, 6 * 4096), blocks(&[3, 0, 0, 0, 0, 7]));
}

#[test]
fn a_record_that_was_changed_anywhere_faults_the_volume() {
    let length = five().disk.records[1].record.len();
    let places = (0..HEADER_BYTES).chain([HEADER_BYTES, HEADER_BYTES + 30, length / 2, length - 1]);
    for place in places {
        let result = restart(five(), |disk| disk.records[1].record = flip(&disk.records[1].record, place));
        assert!(result.is_err(), "byte {place}");
    }
}

#[test]
fn the_last_record_changed_faults_the_volume_instead_of_vanishing() {
    let result = restart(five(), |disk| {
        let last = disk.records.last_mut().unwrap();
        last.record = flip(&last.record, HEADER_BYTES + 100);
    });
    assert!(matches!(result.err(), Some(ReplayError::Closed { jseq: Jseq(5), .. })));
}

#[test]
fn swapped_and_replayed_records_are_found_out() {
    let swapped = restart(five(), |disk| {
        let (one, two) = (disk.records[0].record.clone(), disk.records[1].record.clone());
        (disk.records[0].record, disk.records[1].record) = (two, one);
    });
    assert!(matches!(swapped.err(), Some(ReplayError::Misplaced { .. })));
    // An authentic record of another history at the same position: another chain.
    let mut other = world();
    for tag in 0..5 {
        other.ask(1, tag, write(9 * BLOCK, BLOCK, 99));
    }
    let foreign = other.disk.records[2].clone();
    let spliced = restart(five(), |disk| disk.records[2] = foreign);
    assert!(matches!(spliced.err(), Some(ReplayError::Chain(Jseq(3)))));
}

#[test]
fn records_of_a_time_to_come_are_refused() {
    let (keys, disk, mut outside, budget) = five().kill();
    outside.epoch = Epoch(0);
    let result = World::start(keys, disk, outside, budget);
    assert!(matches!(result.err(), Some(ReplayError::Misplaced { epoch: Epoch(1), .. })));
}

#[test]
fn a_head_that_the_journal_does_not_continue_is_refused() {
    let (keys, disk, mut outside, budget) = five().kill();
    outside.head.chain.0[0] ^= 1;
    assert!(matches!(World::start(keys, disk, outside, budget).err(), Some(ReplayError::Chain(Jseq(1)))));
}

#[test]
fn every_record_says_what_was_at_d1_when_it_was_sealed() {
    let world = five();
    let durable = |index: usize| RecordHeader::decode(&world.disk.records[index].record).unwrap().0.durable;
    assert_eq!((durable(2), durable(3), durable(4)), (Jseq(0), Jseq(3), Jseq(3)));
}

#[test]
fn a_life_after_a_life_keeps_one_chain() {
    let mut world = five();
    for life in 0..4u64 {
        world = restart(world, |_| ()).unwrap();
        world.attach(1);
        world.ask(1, life, fua(life * BLOCK, BLOCK, 50 + life as u8));
        world.complete_all();
        if life == 2 {
            while world.freeze() | world.commit() {}
        }
    }
    let mut world = restart(world, |_| ()).unwrap();
    assert_eq!(world.read_now(0, 5 * 4096), blocks(&[50, 51, 52, 53, 5]));
    world.attach(1);
    world.ask(1, 9, read(0, BLOCK));
    assert!(world.data(1, 9).is_some());
}

/// What a volume with five records, the first three flushed, makes of a journal that `lost` something.
fn planned(kept: usize, lost: &Lost) -> Result<usize, ReplayError> {
    let (_, disk, mut outside, _) = five().kill();
    outside.head.last = Jseq(3);
    let owner = crate::volume::sealing::Owner { epoch: Epoch(2), lineage: Lineage(1) };
    let stored = disk.records.iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1);
    let stored = stored.map(|(_, record)| record.clone()).collect();
    crate::volume::replay::Replay::plan(outside.head, owner, stored, lost).map(|replay| replay.len())
}

#[test]
fn records_that_damage_took_are_not_taken_for_an_end_that_a_crash_took() {
    let lost = |jseq| Lost { records: vec![(Epoch(1), Jseq(jseq))], ..Lost::default() };
    let damaged = |first| Err(ReplayError::Damaged { first: Jseq(first) });
    assert_eq!(planned(0b01111, &Lost::default()), Ok(1), "a crash");
    assert_eq!(planned(0b01111, &lost(5)), damaged(5));
    assert_eq!(planned(0b10111, &lost(4)), damaged(4));
    assert_eq!(planned(0b11101, &lost(2)), Ok(2), "what is in the sequence is not needed");
    let later = Lost { records: vec![(Epoch(0), Jseq(5))], ..Lost::default() };
    assert_eq!(planned(0b11111, &later), Ok(2), "what a later epoch replaced is not needed");
    let gaps = Lost { gaps: true, ..Lost::default() };
    assert_eq!(planned(0b11111, &gaps), Ok(2), "there is no gap");
    assert_eq!(planned(0b10111, &gaps), damaged(4));
    assert_eq!(planned(0b11111, &Lost { end: true, ..Lost::default() }), damaged(6));
}
