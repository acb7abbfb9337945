//! The volume's machine, driven directly: what it promises guests, one test per promise.

mod among_others;
mod crash;
mod flush;
mod random;
mod reads;
mod waiting;
mod world;

use bytes::Bytes;
use velum_protocol::{
    format::{
        metadata::{AclEntry, Right},
        record::RecordHeader,
    },
    id::{BlockIndex, SessionId},
};

use self::world::{BLOCKS, World};
use crate::volume::{
    machine::Input,
    messages::{Operation, Outcome, Refusal},
};

const BLOCK: u64 = 4096;
const PLENTY: u64 = 1 << 30;

fn world() -> World {
    let mut world = World::new(PLENTY);
    world.attach(1);
    world.attach(2);
    world
}

fn write(offset: u64, length: u64, mark: u8) -> Operation {
    Operation::Write { offset, payload: Bytes::from(vec![mark; length as usize]), fua: false }
}

fn fua(offset: u64, length: u64, mark: u8) -> Operation {
    Operation::Write { offset, payload: Bytes::from(vec![mark; length as usize]), fua: true }
}

fn trim(offset: u64, length: u64) -> Operation {
    Operation::Trim { offset, length, fua: false }
}

fn read(offset: u64, length: u64) -> Operation {
    Operation::Read { offset, length: length as u32 }
}

/// The refusal a request was answered with.
fn refusal(world: &World, session: u64, tag: u64) -> Option<Refusal> {
    match world.outcome(session, tag)? {
        Outcome::Refused(refusal) => Some(*refusal),
        other => panic!("request {tag} was answered with {other:?}"),
    }
}

/// The first block, the second and all in all are `marks`.
fn blocks(marks: &[u8]) -> Vec<u8> {
    marks.iter().flat_map(|mark| vec![*mark; BLOCK as usize]).collect()
}

#[test]
fn a_write_is_acked_when_the_journal_has_it_and_not_before() {
    let mut world = world();
    world.submit(1, 1, write(0, BLOCK, 1));
    assert!(world.outcome(1, 1).is_none(), "within the burst nothing is at d0");
    assert!(world.disk.records.is_empty());
    world.step(Input::EndBurst);
    assert!(world.is_done(1, 1));
    assert_eq!(world.disk.records.len(), 1);
}

#[test]
fn one_submit_carries_a_burst() {
    let mut world = world();
    for tag in 0..32 {
        world.submit(1, tag, write(tag * BLOCK, BLOCK, 1));
    }
    assert!(world.replies.is_empty());
    world.step(Input::EndBurst);
    assert_eq!(world.replies.len(), 32);
    assert_eq!(world.submits, 1);
}

#[test]
fn a_barrier_covers_what_was_acked_on_every_session() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    world.ask(2, 1, Operation::Barrier);
    assert!(world.outcome(2, 1).is_none(), "the other session's write is not synced");
    world.complete_all();
    assert!(world.is_done(2, 1));
    assert_eq!(world.disk.synced, 1);
    world.ask(1, 2, Operation::Barrier);
    assert!(world.is_done(1, 2), "nothing new to sync");
    assert!(world.pending.is_empty());
}

#[test]
fn a_write_acked_during_a_sync_is_not_covered_by_it() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    world.ask(1, 2, Operation::Barrier);
    world.ask(1, 3, write(BLOCK, BLOCK, 1));
    world.ask(2, 4, Operation::Barrier);
    assert_eq!(world.pending.len(), 1, "one sync at a time");
    world.complete(0, true, true);
    assert!(world.is_done(1, 2));
    assert!(world.outcome(2, 4).is_none(), "the sync under way began before the write");
    world.complete(0, true, true);
    assert!(world.is_done(2, 4));
    assert_eq!(world.disk.synced, 2);
}

#[test]
fn a_fua_write_is_acked_when_synced() {
    let mut world = world();
    world.submit(1, 1, fua(0, BLOCK, 1));
    world.submit(1, 2, write(BLOCK, BLOCK, 1));
    world.step(Input::EndBurst);
    assert!(world.outcome(1, 1).is_none());
    assert!(world.is_done(1, 2));
    world.complete_all();
    assert!(world.is_done(1, 1));
}

#[test]
fn a_read_does_not_show_what_a_crash_could_take_back() {
    let mut world = world();
    world.submit(1, 1, write(0, BLOCK, 7));
    world.submit(2, 1, read(0, BLOCK));
    assert!(world.outcome(2, 1).is_none(), "the write is not at d0");
    world.submit(2, 2, read(BLOCK, BLOCK));
    assert_eq!(world.data(2, 2).unwrap(), blocks(&[0]), "another block does not wait");
    world.step(Input::EndBurst);
    assert_eq!(world.data(2, 1).unwrap(), blocks(&[7]));
}

#[test]
fn requests_up_to_64_kib_on_block_bounds_are_one_record_and_large_ones_are_split() {
    let mut world = world();
    world.ask(1, 1, write(5 * BLOCK, 64 << 10, 1));
    assert_eq!(world.disk.records.len(), 1);
    world.ask(1, 2, write(0, 32 << 20, 2));
    assert_eq!(world.disk.records.len(), 33);
    let largest = world.disk.records.iter().map(|record| record.record.len()).max().unwrap();
    assert_eq!(largest, (1 << 20) + 96 + 40);
    assert!(world.is_done(1, 2));
    assert_eq!(world.read_now(32 << 20, 16), vec![0; 16]);
    assert_eq!(world.read_now((32 << 20) - 8, 16), [[2; 8], [0; 8]].concat());
}

#[test]
fn part_of_a_block_is_written_over_what_stands_there() {
    let mut world = world();
    world.ask(1, 1, write(0, 2 * BLOCK, 1));
    world.ask(1, 2, write(4000, 200, 2));
    world.ask(1, 3, trim(100, 50));
    let mut expected = blocks(&[1, 1]);
    expected[4000..4200].fill(2);
    expected[100..150].fill(0);
    assert_eq!(world.read_now(0, 8192), expected);
    let last = world.disk.records.last().unwrap();
    let (header, _) = RecordHeader::decode(&last.record).unwrap();
    assert_eq!((header.start, header.count.0), (BlockIndex(0), 1), "the journal holds whole blocks");
}

#[test]
fn trimmed_blocks_are_holes_and_zeroed_ones_with_no_hole_are_data() {
    let mut world = world();
    world.ask(1, 1, write(0, 6 * BLOCK, 9));
    world.ask(1, 2, trim(BLOCK, BLOCK));
    world.ask(1, 3, Operation::WriteZeroes { offset: 2 * BLOCK, length: BLOCK, no_hole: false, fua: false });
    world.ask(1, 4, Operation::WriteZeroes { offset: 3 * BLOCK, length: BLOCK, no_hole: true, fua: false });
    assert_eq!(world.read_now(0, 6 * 4096), blocks(&[9, 0, 0, 0, 9, 9]));
    world.ask(1, 5, Operation::Status { offset: 100, length: 7 * 4096 - 100, extents_max: 10 });
    let Some(Outcome::Status(extents)) = world.outcome(1, 5) else { panic!() };
    let extents: Vec<(u64, bool)> = extents.iter().map(|extent| (extent.length, extent.hole)).collect();
    assert_eq!(extents, [(3996, false), (8192, true), (12288, false), (4096, true)]);
}

#[test]
fn zeros_as_data_over_gigabytes_go_in_bounded_steps() {
    let mut world = World::new(10 << 20);
    world.attach(1);
    let length = BLOCKS * BLOCK;
    world.ask(1, 1, Operation::WriteZeroes { offset: 0, length, no_hole: true, fua: false });
    let mut most = 0;
    while world.outcome(1, 1).is_none() {
        most = most.max(world.budget.bytes_used());
        assert!(world.freeze() | world.commit(), "a flush makes room for the next step");
    }
    assert!(most <= 10 << 20, "{most}");
    assert!(world.outside.committed.len() >= 3);
    world.ask(1, 2, Operation::Status { offset: 0, length: u32::try_from(length).unwrap(), extents_max: 4 });
    assert!(matches!(world.outcome(1, 2), Some(Outcome::Status(extents)) if extents.len() == 1 && !extents[0].hole));
}

#[test]
fn requests_beyond_the_end_or_of_nobody_change_nothing() {
    let mut world = world();
    let end = BLOCKS * BLOCK;
    world.ask(1, 1, write(end - BLOCK, 2 * BLOCK, 1));
    world.ask(1, 2, read(u64::MAX, 1));
    world.ask(1, 3, trim(u64::MAX - 1, u64::MAX));
    for tag in 1..=3 {
        assert_eq!(refusal(&world, 1, tag), Some(Refusal::OutOfRange));
    }
    world.ask(1, 4, write(end, 0, 1));
    world.ask(1, 5, read(3, 0));
    assert!(world.is_done(1, 4) && world.is_done(1, 5), "length zero is done without effect");
    world.ask(77, 1, write(0, BLOCK, 1));
    assert!(world.outcome(77, 1).is_none(), "no session, no answer");
    assert!(world.disk.records.is_empty());
}

fn regions() -> Vec<AclEntry> {
    let entry = |range, right| AclEntry { principal: "anonymous".to_owned(), range, right };
    vec![entry(None, Right::Write), entry(Some((BlockIndex(2), BlockIndex(4))), Right::Read)]
}

#[test]
fn a_request_gate_2_refuses_has_no_effect_and_leaves_one_record() {
    let mut world = world();
    world.ask(1, 1, write(0, 6 * BLOCK, 1));
    world.step(Input::SetAcl { entries: regions(), version: 2 });
    let (records, used) = (world.disk.records.len(), world.budget.bytes_used());
    world.ask(1, 2, write(0, 6 * BLOCK, 2));
    assert_eq!(refusal(&world, 1, 2), Some(Refusal::NotAllowed), "a forbidden region in the middle");
    assert_eq!(world.refusals, 1);
    assert_eq!((world.disk.records.len(), world.budget.bytes_used()), (records, used));
    assert_eq!(world.read_now(0, 6 * 4096), blocks(&[1; 6]));
    world.ask(1, 3, write(4 * BLOCK - 1, 10, 2));
    assert_eq!(refusal(&world, 1, 3), Some(Refusal::NotAllowed), "one byte reaches into it");
    world.ask(1, 4, write(0, 2 * BLOCK, 3));
    world.ask(1, 5, write(4 * BLOCK, 2 * BLOCK, 3));
    assert_eq!(world.read_now(0, 6 * 4096), blocks(&[3, 3, 1, 1, 3, 3]));
    assert_eq!(world.refusals, 2);
}

#[test]
fn a_barrier_needs_no_right_to_a_region() {
    let mut world = world();
    world.step(Input::SetAcl { entries: Vec::new(), version: 2 });
    world.ask(1, 1, Operation::Barrier);
    assert!(world.is_done(1, 1));
    world.ask(1, 2, read(0, 1));
    assert_eq!(refusal(&world, 1, 2), Some(Refusal::NotAllowed));
}

#[test]
fn what_a_smaller_size_cuts_off_never_comes_back() {
    let mut world = world();
    world.ask(1, 1, write(8 * BLOCK, 4 * BLOCK, 5));
    world.freeze();
    world.ask(1, 2, write(9 * BLOCK, BLOCK, 6));
    world.step(Input::SetSize { blocks: 9 });
    world.ask(1, 3, read(9 * BLOCK, BLOCK));
    assert_eq!(refusal(&world, 1, 3), Some(Refusal::OutOfRange));
    world.commit();
    world.step(Input::SetSize { blocks: 20 });
    assert_eq!(world.read_now(8 * BLOCK, 4 * 4096), blocks(&[5, 0, 0, 0]));
    while world.freeze() | world.commit() {}
    assert_eq!(world.read_now(8 * BLOCK, 4 * 4096), blocks(&[5, 0, 0, 0]));
    let (keys, disk, outside, budget) = world.kill();
    let mut world = World::start(keys, disk, outside, budget).unwrap();
    assert_eq!(world.read_now(8 * BLOCK, 4 * 4096), blocks(&[5, 0, 0, 0]));
}

#[test]
fn a_poisoned_journal_ends_all_acks_and_leaves_reads_of_what_is_known() {
    let mut world = world();
    world.ask(1, 1, write(0, BLOCK, 1));
    world.ask(1, 2, Operation::Barrier);
    world.submit(1, 3, write(BLOCK, BLOCK, 2));
    world.submit(1, 4, read(BLOCK, BLOCK));
    world.submit(1, 5, fua(2 * BLOCK, BLOCK, 2));
    world.journal_fails = true;
    world.step(Input::EndBurst);
    for tag in [2, 3, 4, 5] {
        assert_eq!(refusal(&world, 1, tag), Some(Refusal::Failed), "request {tag}");
    }
    world.complete_all();
    world.ask(1, 6, write(0, BLOCK, 3));
    world.ask(1, 7, trim(0, BLOCK));
    world.ask(1, 8, Operation::Barrier);
    for tag in [6, 7, 8] {
        assert_eq!(refusal(&world, 1, tag), Some(Refusal::Failed), "request {tag}");
    }
    world.ask(1, 9, read(2 * BLOCK, BLOCK));
    assert_eq!(refusal(&world, 1, 9), Some(Refusal::Failed), "what was never at d0 is not shown");
    world.ask(1, 10, read(0, BLOCK));
    assert_eq!(world.data(1, 10).unwrap(), blocks(&[1]), "what was acked is");
    world.ask(1, 11, read(4 * BLOCK, BLOCK));
    assert!(world.data(1, 11).is_some());
    assert!(!world.freeze(), "nothing that may vanish is flushed");
    let replies = world.replies.len();
    world.step(Input::Synced { through: world.machine.dirty().last });
    assert_eq!(world.replies.len(), replies, "a late sync acks nothing");
}

#[test]
fn a_closing_volume_takes_nothing_new_and_finishes_what_it_has() {
    let mut world = world();
    world.submit(1, 1, fua(0, BLOCK, 1));
    world.step(Input::Close);
    world.ask(1, 2, write(0, BLOCK, 2));
    world.ask(1, 3, read(0, BLOCK));
    assert_eq!(refusal(&world, 1, 2), Some(Refusal::Closing));
    assert_eq!(refusal(&world, 1, 3), Some(Refusal::Closing));
    world.complete_all();
    assert!(world.is_done(1, 1));
}

#[test]
fn a_session_that_is_gone_is_not_answered() {
    let mut world = world();
    world.submit(1, 1, write(0, BLOCK, 1));
    world.submit(1, 2, read(0, BLOCK));
    world.step(Input::Detach { session: SessionId(1) });
    world.complete_all();
    assert!(world.replies.is_empty());
    assert_eq!(world.read_now(0, 4096), blocks(&[1]), "what has a position stays");
}
