//! The machine alone: where records go, what is durable, what is used again.

use proptest::prelude::*;
use velum_protocol::{
    format::journal::RECORD_HEADER_LEN,
    id::{ClusterId, NodeId, VolumeId},
};

use super::*;
use crate::config::{JournalConfig, Size};

const SETTINGS: JournalSettings = JournalSettings { file_bytes: 64 << 10, files_at_start: 4, bytes_max: 512 << 10 };
const BUSY: StreamId = StreamId::Volume(VolumeId([1; 16]));
const STALLED: StreamId = StreamId::Volume(VolumeId([2; 16]));

fn identity() -> JournalIdentity {
    JournalIdentity { cluster: ClusterId([9; 16]), node: NodeId(1) }
}

/// A machine with four files, the first of them active and its ring record placed.
fn machine() -> Machine {
    let mut machine = Machine::new(identity(), SETTINGS, Known::default());
    for _ in 0..4 {
        let Chore::Create { file, .. } = machine.create() else { panic!("a new ring is created") };
        machine.prepared(file);
    }
    roll(&mut machine);
    machine
}

fn roll(machine: &mut Machine) {
    let ring = machine.roll().unwrap();
    machine.place(RecordKind::Ring, &ring.encode());
}

fn at(number: u64) -> Position {
    Position { epoch: 1, number }
}

/// Appends as the shell does; false when full.
fn append(machine: &mut Machine, stream: StreamId, number: u64, length: usize) -> bool {
    match machine.admit(stream, at(number), length) {
        Ok(Admission::Here) => {}
        Ok(Admission::Roll) => roll(machine),
        Err(JournalError::Full) => return false,
        Err(error) => panic!("{error}"),
    }
    machine.place(RecordKind::Stream(stream, at(number)), &vec![0; length]);
    true
}

fn sync(machine: &mut Machine) {
    if let Some(plan) = machine.begin_sync() {
        machine.synced(plan.through);
    }
}

/// Does chores until none is left; gives the files copied forward.
fn tidy(machine: &mut Machine) -> Vec<u32> {
    let mut copied = Vec::new();
    while let Some(chore) = machine.next_chore() {
        match chore {
            Chore::Prepare { file, .. } | Chore::Create { file, .. } => machine.prepared(file),
            Chore::CopyForward { file } => {
                copied.push(file);
                machine.drained(file);
                sync(machine);
            }
        }
    }
    copied
}

#[test]
fn records_are_packed_and_a_sync_starts_a_new_sector() {
    let mut machine = machine();
    let first = machine.next_offset();
    append(&mut machine, BUSY, 1, 100);
    assert_eq!(machine.next_offset(), first + (RECORD_HEADER_LEN + 100).next_multiple_of(8));
    let plan = machine.begin_sync().unwrap();
    assert_eq!(machine.next_offset() % SECTOR_BYTES, 0);
    assert_eq!(plan.through, machine.end_mark());
    append(&mut machine, BUSY, 2, 100);
    assert!(machine.begin_sync().is_none(), "one sync is in flight at a time");
    machine.synced(plan.through);
    assert_eq!(machine.durable(), plan.through);
    assert!(machine.begin_sync().is_some(), "what came meanwhile is not covered");
}

#[test]
fn what_a_sync_covers_is_known_to_the_byte() {
    let mut machine = machine();
    append(&mut machine, BUSY, 1, 100);
    append(&mut machine, StreamId::Raft, 7, 30);
    let covered = Durable { file: machine.active(), end: machine.records_end(), raft: at(7) };
    assert!(!covered.end.offset.is_multiple_of(SECTOR_BYTES), "the sync closes a sector behind it");
    let plan = machine.begin_sync().unwrap();
    append(&mut machine, StreamId::Raft, 8, 30);
    assert_eq!(machine.covered(), Durable::default(), "not before it is done");
    machine.synced(plan.through);
    assert_eq!(machine.covered(), covered);
}

/// A guest's write of more than a file waited for room, and the ring never had more than one file to spare.
#[test]
fn the_ring_grows_for_a_write_that_waits_for_more_than_a_file() {
    let mut machine = machine();
    let bytes = 62 << 10;
    assert!(!machine.has_room(bytes));
    assert_eq!(tidy(&mut machine), [] as [u32; 0]);
    assert!(!machine.has_room(bytes), "nobody has said that it is wanted");
    machine.want(bytes);
    tidy(&mut machine);
    assert!(machine.has_room(bytes));
    machine.want(0);
    let files = machine.files().count();
    tidy(&mut machine);
    assert_eq!(machine.files().count(), files);
    // What no ring holds makes it grow to its bound and ends there.
    machine.want(SETTINGS.bytes_max * 2);
    tidy(&mut machine);
    assert_eq!(machine.files().count(), SETTINGS.files_max());
}

/// Raft learns at a start how long records may be. Files that were made later could take less.
#[test]
fn the_longest_body_is_the_same_for_all_of_a_life() {
    let identity = JournalIdentity { cluster: ClusterId([9; 16]), node: NodeId(1) };
    let known = Known { file_bytes_min: Some(256 << 10), ..Known::default() };
    let mut machine = Machine::new(identity, SETTINGS, known);
    let before = machine.body_bytes_max();
    let Chore::Create { file, .. } = machine.create() else { panic!("a new ring is created") };
    machine.prepared(file);
    assert_eq!(machine.body_bytes_max(), before);
    assert!(machine.body_bytes_handy() <= before / 16);
}

#[test]
fn a_sync_with_nothing_to_do_does_nothing() {
    let mut machine = machine();
    sync(&mut machine);
    assert_eq!(machine.begin_sync(), None);
}

#[test]
fn a_sync_covers_every_file_written_since_the_last() {
    let mut machine = machine();
    append(&mut machine, BUSY, 1, 20 << 10);
    append(&mut machine, BUSY, 2, 20 << 10);
    append(&mut machine, BUSY, 3, 20 << 10);
    append(&mut machine, BUSY, 4, 20 << 10);
    assert_eq!(machine.begin_sync().unwrap().files.len(), 2);
}

#[test]
fn positions_that_do_not_rise_are_refused() {
    let mut machine = machine();
    append(&mut machine, BUSY, 5, 10);
    assert!(matches!(machine.admit(BUSY, at(5), 10), Err(JournalError::OutOfOrder { .. })));
    assert!(matches!(machine.admit(BUSY, at(4), 10), Err(JournalError::OutOfOrder { .. })));
    assert!(machine.admit(STALLED, at(1), 10).is_ok(), "streams do not know each other");
    assert!(machine.admit(BUSY, Position { epoch: 2, number: 1 }, 10).is_ok());
}

#[test]
fn a_body_that_fits_no_file_is_refused() {
    let machine = machine();
    assert!(matches!(machine.admit(BUSY, at(1), 60 << 10), Err(JournalError::TooLarge { .. })));
    assert!(matches!(machine.admit(BUSY, at(1), 9 << 20), Err(JournalError::TooLarge { .. })));
}

#[test]
fn a_file_is_prepared_only_when_all_of_it_is_trimmed_and_durable() {
    let mut machine = machine();
    let first = machine.active();
    for number in 1..=4 {
        append(&mut machine, BUSY, number, 20 << 10);
    }
    assert_ne!(machine.active(), first);
    machine.trim(BUSY, at(1));
    sync(&mut machine);
    assert_eq!(machine.recyclable(), None, "two of its records are needed");
    machine.trim(BUSY, at(3));
    assert_eq!(machine.recyclable(), Some(first));
}

#[test]
fn a_dead_file_is_not_prepared_before_it_is_durable() {
    let mut machine = machine();
    for number in 1..=4 {
        append(&mut machine, BUSY, number, 20 << 10);
    }
    machine.trim(BUSY, at(4));
    assert_eq!(machine.recyclable(), None);
    sync(&mut machine);
    assert!(machine.recyclable().is_some());
}

#[test]
fn a_drained_file_is_free_only_when_the_copies_are_durable() {
    let mut machine = machine();
    let first = machine.active();
    append(&mut machine, STALLED, 1, 100);
    for number in 1..=4 {
        append(&mut machine, BUSY, number, 20 << 10);
    }
    sync(&mut machine);
    machine.place(RecordKind::Stream(STALLED, at(1)), &[0; 100]);
    machine.drained(first);
    assert_eq!(machine.recyclable(), None);
    sync(&mut machine);
    machine.trim(BUSY, at(2));
    assert_eq!(machine.recyclable(), Some(first));
}

#[test]
fn volumes_leave_a_reserve_that_raft_may_use() {
    let mut machine = machine();
    let mut number = 0;
    while append(&mut machine, BUSY, number + 1, 20 << 10) {
        number += 1;
    }
    assert!(!machine.has_room(20 << 10));
    assert_eq!(machine.admit(StreamId::Raft, at(1), 20 << 10).unwrap(), Admission::Roll);
}

/// Clouds were bad for some seconds and guests wrote on until the ring was full. Raft had to begin a file of the reserve, and
/// volumes and copies filled it to its end; then the flushes that would have freed the ring could not be agreed on any more.
#[test]
fn a_file_of_the_reserve_that_raft_has_begun_is_not_filled_by_volumes() {
    let mut machine = machine();
    let mut number = 0;
    while machine.has_room(4 << 10) {
        number += 1;
        assert!(append(&mut machine, BUSY, number, 4 << 10), "there was room");
    }
    let mut index = 0;
    for ready in [1, 0] {
        while machine.ready.len() > ready {
            index += 1;
            assert!(append(&mut machine, StreamId::Raft, index, 2 << 10), "the reserve is raft's");
        }
        assert!(machine.active_left() > 16 << 10);
        assert!(!machine.has_room(100), "not one record of a volume fits");
    }
}

/// A file that is mostly dead is copied into what raft has begun of the reserve, for that frees a whole file; but copies that
/// could not be finished, or would leave raft too little, are not begun.
#[test]
fn copies_are_begun_only_when_they_leave_raft_room() {
    let mut machine = machine();
    let first = machine.active();
    append(&mut machine, STALLED, 1, 8 << 10);
    let (mut number, mut last_in_first) = (0, 0);
    while machine.has_room(4 << 10) {
        number += 1;
        append(&mut machine, BUSY, number, 4 << 10);
        if machine.active() == first {
            last_in_first = number;
        }
    }
    let mut index = 0;
    while !machine.ready.is_empty() {
        index += 1;
        append(&mut machine, StreamId::Raft, index, 2 << 10);
    }
    sync(&mut machine);
    machine.growth_refused = true;
    assert_eq!(machine.next_chore(), None, "every file is mostly live");
    machine.trim(BUSY, at(last_in_first));
    assert_eq!(machine.next_chore(), Some(Chore::CopyForward { file: first }));
    append(&mut machine, StreamId::Raft, index + 1, 20 << 10);
    assert_eq!(machine.next_chore(), None, "what is left is raft's");
}

/// A little of raft's was live in each full file, what was left of the active one was too small for copies to be risked, and
/// volumes waited for ever.
#[test]
fn raft_is_told_when_its_records_are_all_that_keeps_files() {
    let mut machine = machine();
    machine.growth_refused = true;
    let mut number = 0;
    while !machine.ready.is_empty() {
        number += 1;
        append(&mut machine, StreamId::Raft, number, 1 << 10);
        append(&mut machine, BUSY, number, 2 << 10);
    }
    while machine.active_left() > SETTINGS.file_bytes / 2 {
        number += 1;
        append(&mut machine, StreamId::Raft, number, 1 << 10);
    }
    machine.trim(BUSY, at(number));
    sync(&mut machine);
    machine.growth_refused = true;
    assert_eq!(tidy(&mut machine), [] as [u32; 0]);
    assert!(!machine.has_room(1));
    assert!(machine.is_crowded_by(StreamId::Raft));
    assert!(!machine.is_crowded_by(BUSY));
    machine.trim(StreamId::Raft, at(number - 1));
    tidy(&mut machine);
    assert!(machine.has_room(1));
    assert!(!machine.is_crowded_by(StreamId::Raft));
}

/// Settings were accepted under which a guest's long write would have waited for ever.
#[test]
fn the_smallest_ring_that_may_be_configured_takes_the_longest_write() {
    for mebibytes in [16, 18, 36, 64] {
        let config = JournalConfig { file_bytes: Size::mib(mebibytes), ..JournalConfig::default() };
        let (file_bytes, files) = (config.file_bytes.bytes(), config.files_min());
        let settings = JournalSettings { file_bytes, files_at_start: 2, bytes_max: file_bytes * files };
        let mut machine = Machine::new(identity(), settings, Known::default());
        for _ in 0..files {
            let Chore::Create { file, .. } = machine.create() else { panic!("a new ring is created") };
            machine.prepared(file);
        }
        roll(&mut machine);
        // The file that is written to may be as good as full.
        machine.next = file_bytes;
        assert!(machine.has_room(32 << 20), "{files} files of {mebibytes} MiB");
        assert!(files > 4 || mebibytes >= 36);
    }
}

#[test]
fn the_ring_grows_to_its_bound_and_no_further() {
    let mut machine = machine();
    let mut number = 0;
    loop {
        while append(&mut machine, BUSY, number + 1, 20 << 10) {
            number += 1;
        }
        sync(&mut machine);
        let files = machine.files().count();
        tidy(&mut machine);
        if machine.files().count() == files {
            break;
        }
    }
    assert_eq!(machine.files().count(), SETTINGS.files_max());
}

#[test]
fn the_ring_record_names_what_is_live_and_where_it_ends() {
    let mut machine = machine();
    let first = machine.active();
    append(&mut machine, BUSY, 1, 20 << 10);
    append(&mut machine, BUSY, 2, 20 << 10);
    let end = machine.next_offset();
    sync(&mut machine);
    let ring = machine.roll().unwrap();
    assert_eq!(ring.files, [LiveFile { file: first, lap: 1, end }]);
    machine.place(RecordKind::Ring, &ring.encode());
    machine.trim(BUSY, at(2));
    let ring = machine.ring();
    assert_eq!(ring.files, []);
    assert_eq!(ring.trims, [(BUSY, at(2))]);
}

proptest! {
    /// Whatever the order of appends, trims, syncs and chores: no live or unsynced record stands in a file that is used
    /// again, and no synced sector is written again.
    #[test]
    fn live_records_are_never_given_up(steps in proptest::collection::vec((0_u8..8, 1_usize..20_000, 0_u64..6), 1..300)) {
        let mut machine = machine();
        // (stream, number) -> the places (file, lap) a record stands in.
        let mut places: BTreeMap<(StreamId, u64), Vec<(u32, u64)>> = BTreeMap::new();
        let mut next = BTreeMap::from([(BUSY, 1), (STALLED, 1)]);
        let mut synced_to = BTreeMap::new();
        for (step, length, keep) in steps {
            match step {
                0..=3 => {
                    let stream = if step == 0 && length < 2000 { STALLED } else { BUSY };
                    let number = next[&stream];
                    if append(&mut machine, stream, number, length) {
                        let mark = machine.end_mark();
                        let begun = mark.offset - record_bytes(u32::try_from(length).unwrap());
                        prop_assert!(synced_to.get(&mark.lap).is_none_or(|through| begun >= *through));
                        places.insert((stream, number), vec![(machine.active(), mark.lap)]);
                        next.insert(stream, number + 1);
                    }
                }
                4 => if let Some(plan) = machine.begin_sync() {
                    synced_to.insert(plan.through.lap, plan.through.offset);
                    machine.synced(plan.through);
                },
                5 => {
                    let through = next[&BUSY].saturating_sub(1 + keep);
                    machine.trim(BUSY, at(through));
                    places.retain(|(stream, number), _| *stream != BUSY || *number > through);
                }
                _ => if let Some(chore) = machine.next_chore() {
                    match chore {
                        Chore::Prepare { file, .. } => {
                            for ((stream, number), at) in &places {
                                let free = at.iter().all(|(place, _)| *place == file);
                                prop_assert!(!free, "{stream} {number} was live in file {file}");
                            }
                            for at in places.values_mut() {
                                at.retain(|(place, _)| *place != file);
                            }
                            machine.prepared(file);
                        }
                        Chore::Create { file, .. } => machine.prepared(file),
                        Chore::CopyForward { file } => {
                            let there: Vec<_> =
                                places.iter().filter(|(_, at)| at.iter().any(|(place, _)| *place == file)).map(|(key, _)| *key).collect();
                            let mut whole = true;
                            for (stream, number) in there {
                                match machine.admit_bytes(500, 0) {
                                    Ok(Admission::Roll) => roll(&mut machine),
                                    Ok(Admission::Here) => {}
                                    Err(_) => { whole = false; break; }
                                }
                                machine.place(RecordKind::Stream(stream, at(number)), &[0; 500]);
                                places.get_mut(&(stream, number)).unwrap().push((machine.active(), machine.end_mark().lap));
                            }
                            if whole {
                                machine.drained(file);
                            }
                        }
                    }
                },
            }
        }
    }
}
