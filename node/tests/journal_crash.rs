//! The journal on a disk that loses, keeps and tears unsynced writes in any subset: what a completed sync covered is there
//! after every crash, in order, and nothing is there that was never appended.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops at the first surprise")]

mod support;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::future::{Either, select};
use support::{Crash, CrashDisk, Rng, env, life};
use velum_node::journal::{
    DamageKind, Journal, JournalError, JournalIdentity, JournalSettings, Loss, Position, RecordState, Replay, StreamId,
    Tail, inspect,
};
use velum_protocol::id::{ClusterId, NodeId, VolumeId};

const SETTINGS: JournalSettings = JournalSettings { file_bytes: 128 << 10, files_at_start: 4, bytes_max: 1 << 20 };
const IDENTITY: JournalIdentity = JournalIdentity { cluster: ClusterId([7; 16]), node: NodeId(3) };

fn dir() -> &'static Path {
    Path::new("/node/journal")
}

fn stream(index: u64) -> StreamId {
    match index {
        0 => StreamId::Raft,
        index => StreamId::Volume(VolumeId([u8::try_from(index).unwrap(); 16])),
    }
}

fn at(number: u64) -> Position {
    Position { epoch: 1, number }
}

/// What a body says: so that a record out of place shows.
fn body(stream: StreamId, number: u64, length: usize) -> Vec<u8> {
    let mut body = format!("{stream} {number} ").into_bytes();
    body.resize(body.len().max(length), number.to_le_bytes()[0]);
    body
}

/// What the test knows of a journal across its lives.
#[derive(Clone, Default)]
struct Model {
    /// Everything appended and possibly there, in order of appending.
    appended: Vec<(StreamId, u64, Vec<u8>)>,
    /// How many of these a completed submit or sync covers.
    submitted: usize,
    synced: usize,
    trimmed: BTreeMap<StreamId, u64>,
    next: BTreeMap<StreamId, u64>,
    /// The machine lost power since the journal was last open.
    lost_power: bool,
}

impl Model {
    fn is_trimmed(&self, stream: StreamId, number: u64) -> bool {
        self.trimmed.get(&stream).is_some_and(|through| number <= *through)
    }

    /// Compares a replay with what must and may be there.
    fn check(&self, replay: &Replay, kept: usize, context: &str) {
        assert_eq!(replay.damage, vec![], "{context}: a crash damages nothing");
        let mut found: BTreeMap<(StreamId, u64), &[u8]> = BTreeMap::new();
        for (stream, records) in &replay.records {
            assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0), "{context}: {stream} is out of order");
            found.extend(records.iter().map(|(at, body)| ((*stream, at.number), &body[..])));
        }
        let mut gone = None;
        for (index, (stream, number, body)) in self.appended.iter().enumerate() {
            if self.is_trimmed(*stream, *number) {
                found.remove(&(*stream, *number));
                continue;
            }
            match found.remove(&(*stream, *number)) {
                Some(there) => {
                    assert_eq!(there, &body[..], "{context}: {stream} {number} has another body");
                    assert_eq!(gone, None, "{context}: {stream} {number} is there and an earlier record is not");
                }
                None => {
                    assert!(index >= kept, "{context}: {stream} {number} was durable and is gone ({index} of {kept})");
                    gone = Some(index);
                }
            }
        }
        assert!(found.is_empty(), "{context}: never appended: {:?}", found.keys());
    }

    /// Takes over what survived, as a restarted node does.
    fn survive(&mut self, replay: &Replay) {
        let there = |stream: &StreamId, number: u64| {
            replay.records.get(stream).is_some_and(|records| records.iter().any(|(at, _)| at.number == number))
        };
        self.appended.retain(|(stream, number, _)| there(stream, *number));
        self.submitted = self.appended.len();
        self.synced = self.appended.len();
        for (stream, records) in &replay.records {
            // A stream goes on behind what survived.
            let last = records.last().map_or(0, |(at, _)| at.number);
            self.next.insert(*stream, last.max(self.trimmed.get(stream).copied().unwrap_or(0)) + 1);
        }
        for (stream, next) in &mut self.next {
            if !replay.records.contains_key(stream) {
                *next = self.trimmed.get(stream).copied().unwrap_or(0) + 1;
            }
        }
    }
}

/// Opens the journal and works on it at random until told to end.
async fn work(disk: CrashDisk, rng: Rc<Rng>, model: Rc<RefCell<Model>>, steps: u64, context: String, kept: usize) {
    let before = disk.image();
    let (examined, replay) = Journal::examine(&env(&disk, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
    assert!(disk.image() == before, "{context}: looking changes something");
    if !model.borrow().lost_power {
        assert_ne!(replay.tail, Tail::Cut, "{context}: a process that dies loses nothing acked");
    }
    let journal = examined.begin().await.unwrap();
    {
        let mut model = model.borrow_mut();
        model.check(&replay, kept, &context);
        model.survive(&replay);
        model.lost_power = false;
    }
    let mut syncs = Vec::new();
    for _ in 0..steps {
        match rng.below(10) {
            0..=5 => append(&journal, &rng, &model),
            6 => {
                journal.submit().unwrap();
                if !disk.is_stopped() {
                    let mut model = model.borrow_mut();
                    model.submitted = model.appended.len();
                }
            }
            7 => {
                let covered = model.borrow().appended.len();
                let (sync, model) = (journal.sync(), Rc::clone(&model));
                syncs.push(tokio::task::spawn_local(async move {
                    sync.await.unwrap();
                    let mut model = model.borrow_mut();
                    model.synced = model.synced.max(covered);
                    model.submitted = model.submitted.max(covered);
                }));
            }
            8 => tokio::task::yield_now().await,
            _ => trim(&journal, &rng, &model),
        }
    }
    for sync in syncs {
        sync.await.unwrap();
    }
}

fn append(journal: &Journal, rng: &Rng, model: &RefCell<Model>) {
    // The last stream is stalled: it is written to seldom and never trimmed.
    let stream = stream(if rng.below(40) == 0 { 3 } else { rng.below(3) });
    let number = model.borrow().next.get(&stream).copied().unwrap_or(1);
    // Many records shorter than a sector: a lost one must show although the next sector can be read.
    let length = match rng.below(8) {
        0 => 16_000,
        1..=3 => 40 + rng.index(200),
        _ => 40 + rng.index(4000),
    };
    let body = body(stream, number, length);
    match journal.append(stream, at(number), &body) {
        Ok(()) => {
            let mut model = model.borrow_mut();
            model.next.insert(stream, number + 1);
            model.appended.push((stream, number, body));
        }
        Err(JournalError::Full) => {
            for index in 0..3 {
                trim_through(journal, model, self::stream(index), 0);
            }
        }
        Err(error) => panic!("append: {error}"),
    }
}

fn trim(journal: &Journal, rng: &Rng, model: &RefCell<Model>) {
    trim_through(journal, model, stream(rng.below(3)), rng.below(12));
}

/// Trims all but the last `keep` records that are durable.
fn trim_through(journal: &Journal, model: &RefCell<Model>, stream: StreamId, keep: u64) {
    let mut model = model.borrow_mut();
    let synced = model.synced;
    let last = model.appended.iter().take(synced).filter(|(of, ..)| *of == stream).map(|(_, number, _)| *number).max();
    let through = last.unwrap_or(0).saturating_sub(keep);
    if through > model.trimmed.get(&stream).copied().unwrap_or(0) {
        model.trimmed.insert(stream, through);
        journal.trim(stream, at(through));
    }
}

fn lives(seed: u64) {
    let rng = Rc::new(Rng::new(seed));
    let model = Rc::new(RefCell::new(Model::default()));
    let mut disk = CrashDisk::new();
    let mut kept = 0;
    for turn in 0..6 {
        let context = format!("seed {seed} life {turn}");
        // Some lives end while the journal is being opened.
        disk.stop_after(if rng.below(4) == 0 { 1 + rng.below(60) } else { 60 + rng.below(900) });
        let steps = 200 + rng.below(1500);
        life(&disk, work(disk.clone(), Rc::clone(&rng), Rc::clone(&model), steps, context, kept));
        let crash = [Crash::Process, Crash::Power, Crash::Power, Crash::LoseAll, Crash::KeepAll][rng.index(5)];
        kept = match crash {
            Crash::Process | Crash::KeepAll => model.borrow().submitted,
            Crash::Power | Crash::LoseAll => {
                let mut model = model.borrow_mut();
                model.submitted = model.synced;
                model.synced
            }
        };
        model.borrow_mut().lost_power |= crash != Crash::Process;
        disk = disk.after(crash, &rng);
    }
    let context = format!("seed {seed}, the end");
    life(&disk, work(disk.clone(), rng, model, 0, context, kept)).unwrap();
}

#[test]
fn what_was_synced_survives_any_crash_in_order_and_nothing_else_appears() {
    for seed in 0..40 {
        lives(seed);
    }
}

/// A journal with `count` records in one stream, each synced, and the disk it lies on.
fn filled(count: u64, length: usize) -> CrashDisk {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, replay) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        assert!(replay.created);
        for number in 1..=count {
            journal.append(stream(1), at(number), &body(stream(1), number, length)).unwrap();
            journal.sync().await.unwrap();
        }
    });
    disk.after(Crash::LoseAll, &Rng::new(1))
}

fn open(disk: &CrashDisk) -> Result<(Rc<Journal>, Replay), JournalError> {
    let on = disk.clone();
    life(disk, async move { Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await }).unwrap()
}

fn numbers(replay: &Replay) -> Vec<u64> {
    replay.records.get(&stream(1)).map(|records| records.iter().map(|(at, _)| at.number).collect()).unwrap_or_default()
}

/// The file and offset of a record.
fn place_of(disk: &CrashDisk, number: u64) -> (PathBuf, usize) {
    for path in disk.paths() {
        let on = disk.clone();
        let name = path.clone();
        let found = life(disk, async move { inspect(&env(&on, 1), &name).await.unwrap() }).unwrap();
        for record in found.records {
            if record.kind == Some(velum_node::journal::RecordKind::Stream(stream(1), at(number))) {
                return (path, usize::try_from(record.offset).unwrap());
            }
        }
    }
    panic!("record {number} is nowhere");
}

#[test]
fn a_flipped_bit_below_what_was_durable_is_reported_and_what_lies_behind_still_counts() {
    let disk = filled(40, 500);
    let (path, offset) = place_of(&disk, 20);
    disk.damage(&path, |bytes| bytes[offset + 200] ^= 4);
    for _ in 0..2 {
        let (_, replay) = open(&disk).unwrap();
        let expected: Vec<u64> = (1..=40).filter(|number| *number != 20).collect();
        assert_eq!(numbers(&replay), expected);
        assert_eq!(replay.damage.len(), 1);
        assert!(matches!(replay.damage[0].kind, DamageKind::Body(_)), "{:?}", replay.damage);
    }
}

/// A start met reads that failed for a moment, took the pages for damaged, and the volume stayed closed for good.
#[test]
fn reads_that_fail_for_a_while_cost_nothing_and_reads_that_fail_for_good_are_damage() {
    for times in [1, 2, 4, u64::MAX] {
        let disk = filled(60, 8000);
        let (_, offset) = place_of(&disk, 20);
        disk.fail_reads_of.set((offset + 5000, times));
        let (_, replay) = open(&disk).unwrap();
        let lost = times == u64::MAX;
        assert_eq!(numbers(&replay).contains(&20), !lost, "{times} times");
        assert!(numbers(&replay).ends_with(&[59, 60]), "{times} times");
        assert_eq!(!replay.damage.is_empty(), lost, "{times} times: {:?}", replay.damage);
    }
}

#[test]
fn a_lost_write_below_what_was_durable_is_reported() {
    let disk = filled(40, 500);
    let (path, offset) = place_of(&disk, 20);
    let (_, next) = place_of(&disk, 21);
    disk.damage(&path, |bytes| bytes[offset..next].fill(0));
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(numbers(&replay), (1..=40).filter(|number| *number != 20).collect::<Vec<_>>());
    assert_eq!(replay.damage.iter().map(|damage| damage.kind).collect::<Vec<_>>(), [DamageKind::Missing]);
}

#[test]
fn a_misdirected_write_is_not_taken_for_a_record() {
    let disk = filled(40, 500);
    let (path, offset) = place_of(&disk, 20);
    let (_, other) = place_of(&disk, 30);
    disk.damage(&path, |bytes| {
        let copy = bytes[other..other + 600].to_vec();
        bytes[offset..offset + 600].copy_from_slice(&copy);
    });
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(numbers(&replay), (1..=40).filter(|number| *number != 20).collect::<Vec<_>>());
    assert_eq!(replay.damage.len(), 1);
}

#[test]
fn a_missing_file_in_the_middle_is_reported_at_every_start() {
    let disk = filled(60, 8000);
    let (path, _) = place_of(&disk, 20);
    disk.remove_file(&path);
    for _ in 0..3 {
        let (_, replay) = open(&disk).unwrap();
        assert!(numbers(&replay).len() < 60 && numbers(&replay).contains(&60));
        assert_eq!(replay.damage.iter().map(|damage| damage.kind).collect::<Vec<_>>(), [DamageKind::FileMissing]);
    }
}

#[test]
fn files_that_changed_places_are_reported_and_left_alone() {
    let disk = filled(60, 8000);
    let ((one, _), (other, _)) = (place_of(&disk, 5), place_of(&disk, 25));
    assert_ne!(one, other);
    let (first, second) = (disk.bytes(&one), disk.bytes(&other));
    disk.damage(&one, |bytes| bytes.clone_from(&second));
    disk.damage(&other, |bytes| bytes.clone_from(&first));
    let (_, replay) = open(&disk).unwrap();
    assert!(replay.damage.iter().any(|damage| damage.kind == DamageKind::FileMissing));
    assert_eq!((disk.bytes(&one), disk.bytes(&other)), (second, first));
}

#[test]
fn a_damaged_file_header_costs_no_record() {
    let disk = filled(60, 8000);
    let (path, _) = place_of(&disk, 20);
    disk.damage(&path, |bytes| bytes[20] ^= 1);
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(numbers(&replay), (1..=60).collect::<Vec<_>>());
    assert_eq!(replay.damage.iter().map(|damage| damage.kind).collect::<Vec<_>>(), [DamageKind::FileHeader]);
}

#[test]
fn a_journal_cut_off_at_any_place_keeps_what_is_whole_and_never_makes_records_up() {
    let whole = filled(12, 300);
    let (path, _) = place_of(&whole, 12);
    let image = whole.bytes(&path);
    let (_, end) = place_of(&whole, 12);
    for cut in (1024..end + 400).step_by(61) {
        let disk = whole.after(Crash::KeepAll, &Rng::new(1));
        disk.damage(&path, |bytes| bytes[cut.min(image.len())..].fill(0));
        let (_, replay) = open(&disk).unwrap();
        let found = numbers(&replay);
        assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "cut at {cut}");
    }
}

#[test]
fn a_failed_sync_poisons_and_a_restart_writes_the_tail_anew_before_it_counts() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        on.fail_sync_at.set(on.syncs() + 1);
        journal.append(stream(1), at(1), b"first").unwrap();
        assert!(matches!(journal.sync().await, Err(JournalError::Poisoned { .. })));
        assert!(matches!(journal.append(stream(1), at(2), b"second"), Err(JournalError::Poisoned { .. })));
        assert!(matches!(journal.submit(), Err(JournalError::Poisoned { .. })));
        assert!(matches!(journal.sync().await, Err(JournalError::Poisoned { .. })));
        assert!(journal.status().poisoned.is_some());
    });
    // The process starts again; the page cache still shows what the device never got.
    let disk = disk.after(Crash::Process, &Rng::new(1));
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(numbers(&replay), [1]);
    // Now it was acked by being replayed, and power fails.
    let disk = disk.after(Crash::LoseAll, &Rng::new(1));
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(numbers(&replay), [1]);
    assert_eq!(replay.damage, vec![]);
}

#[test]
fn a_failed_write_poisons() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        on.fail_writes.set(true);
        journal.append(stream(1), at(1), b"first").unwrap();
        assert!(journal.submit().is_err());
        on.fail_writes.set(false);
        assert!(matches!(journal.submit(), Err(JournalError::Poisoned { .. })));
    });
}

#[test]
fn the_journal_of_another_node_or_a_newer_version_is_refused_and_untouched() {
    let disk = filled(3, 100);
    let before = disk.image();
    for identity in
        [JournalIdentity { node: NodeId(4), ..IDENTITY }, JournalIdentity { cluster: ClusterId([8; 16]), ..IDENTITY }]
    {
        let on = disk.clone();
        let opened = life(&disk, async move { Journal::open(&env(&on, 1), dir(), SETTINGS, identity).await.map(drop) });
        assert!(matches!(opened, Some(Err(JournalError::Foreign { .. }))));
        assert_eq!(disk.image(), before);
    }
    for path in disk.paths() {
        disk.damage(&path, |bytes| {
            bytes[4] = 2;
            let crc = crc(&bytes[..508]);
            bytes[508..512].copy_from_slice(&crc);
        });
    }
    let before = disk.image();
    assert!(matches!(open(&disk), Err(JournalError::Newer { .. })));
    assert_eq!(disk.image(), before);
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    velum_protocol::checksum::crc32c(bytes).to_le_bytes()
}

#[test]
fn one_stalled_stream_does_not_hold_the_ring() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        let (busy, stalled) = (stream(1), stream(2));
        let mut stalled_last = 0;
        for number in 1..=4000 {
            journal.room(2000).await.unwrap();
            journal.append(busy, at(number), &body(busy, number, 2000)).unwrap();
            if number % 100 == 0 {
                stalled_last += 1;
                journal.append(stalled, at(stalled_last), &body(stalled, stalled_last, 300)).unwrap();
            }
            journal.sync().await.unwrap();
            journal.trim(busy, at(number));
        }
        // 8 MB went through a ring of 1 MiB.
        assert!(journal.status().files <= SETTINGS.files_max());
    });
    let disk = disk.after(Crash::LoseAll, &Rng::new(1));
    let (_, replay) = open(&disk).unwrap();
    let stalled = replay.records.get(&stream(2)).unwrap();
    assert_eq!(stalled.iter().map(|(at, _)| at.number).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert_eq!(stalled[0].1[..], body(stream(2), 1, 300)[..]);
}

/// Appends under one number after the other until the ring takes no more and cannot grow; returns the number before the one
/// that was refused then.
async fn fill(journal: &Journal, append: impl Fn(u64) -> Result<(), JournalError>) -> u64 {
    let mut number = 0;
    loop {
        match append(number + 1) {
            Ok(()) => {}
            Err(JournalError::Full) if journal.status().files == SETTINGS.files_max() => return number,
            // Only a file that is about to be made is missing. A part may have been taken, so the number is not used again.
            Err(JournalError::Full) => {}
            Err(error) => panic!("{error}"),
        }
        number += 1;
        journal.sync().await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_full_ring_refuses_volumes_keeps_room_for_raft_and_recovers_by_trimming() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        let number = fill(&journal, |number| journal.append(stream(1), at(number), &[1; 8000])).await;
        assert!(!journal.has_room(8000));
        journal.append(StreamId::Raft, at(1), &[2; 8000]).unwrap();
        journal.sync().await.unwrap();
        journal.trim(stream(1), at(number));
        journal.room(8000).await.unwrap();
        journal.append(stream(1), at(number + 1), &[3; 8000]).unwrap();
        journal.sync().await.unwrap();
    })
    .unwrap();
}

/// The ring is full, no file can be emptied into another, and a volume waits for room. Once each wait began a chore that
/// could not be done, whose end woke the wait: the node read the same file over and over, and did nothing else.
#[test]
fn waiting_for_room_in_a_full_ring_is_idle() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        let both = |number| {
            journal.append(stream(1), at(number), &[1; 8000])?;
            journal.append(stream(2), at(number), &[2; 4000])
        };
        let number = fill(&journal, both).await;
        // Raft takes what is kept for it, and with that the room to copy anything to.
        let mut logged = 1;
        while journal.append(StreamId::Raft, at(logged), &[3; 8000]).is_ok() {
            logged += 1;
            journal.sync().await.unwrap();
        }
        // Two thirds of each file stay needed.
        journal.trim(stream(2), at(number));
        let waits = async {
            journal.room(8000).await.unwrap();
            panic!("nothing has made room");
        };
        let looks = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let before = on.operations() + on.reads();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            on.operations() + on.reads() - before
        };
        let done = match select(Box::pin(waits), Box::pin(looks)).await {
            Either::Left(((), _)) => unreachable!("it panics"),
            Either::Right((done, _)) => done,
        };
        assert_eq!(done, 0, "the disk is asked although nothing can be done");
        journal.trim(stream(1), at(number));
        journal.room(8000).await.unwrap();
    })
    .unwrap();
}

#[test]
fn a_disk_too_full_to_grow_on_is_no_failure() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        on.full.set(true);
        for number in 1..=400 {
            journal.room(2000).await.unwrap();
            journal.append(stream(1), at(number), &[1; 2000]).unwrap();
            journal.sync().await.unwrap();
            journal.trim(stream(1), at(number));
        }
        assert_eq!(journal.status().poisoned, None);
        assert_eq!(journal.status().files, SETTINGS.files_at_start);
    })
    .unwrap();
}

#[test]
fn syncs_that_wait_for_one_in_flight_share_the_next() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        let before = journal.status().syncs;
        let syncs: Vec<_> = (1..=50)
            .map(|number| {
                journal.append(stream(1), at(number), &[1; 100]).unwrap();
                journal.sync()
            })
            .collect();
        for sync in syncs {
            sync.await.unwrap();
        }
        assert!(journal.status().syncs - before <= 2, "{} syncs", journal.status().syncs - before);
    })
    .unwrap();
}

#[test]
fn positions_of_a_stream_must_rise_also_across_a_restart() {
    let disk = filled(3, 100);
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        let refused = journal.append(stream(1), at(3), b"again");
        assert!(matches!(refused, Err(JournalError::OutOfOrder { .. })));
        journal.append(stream(1), Position { epoch: 2, number: 1 }, b"next epoch").unwrap();
        let too_large = journal.append(stream(1), Position { epoch: 2, number: 2 }, &vec![0; 9 << 20]);
        assert!(matches!(too_large, Err(JournalError::TooLarge { .. })));
    })
    .unwrap();
}

/// A copy of another node's records that was damaged could not be filled again: what it lacked was refused for being below its end.
#[test]
fn a_copy_is_whole_when_the_records_it_lacks_are_appended_again() {
    let disk = filled(6, 300);
    for number in [3, 5] {
        let (path, offset) = place_of(&disk, number);
        disk.damage(&path, |bytes| bytes[offset + 150] ^= 1);
    }
    let on = disk.clone();
    life(&disk, async move {
        let (journal, replay) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        assert_eq!((numbers(&replay), replay.loss(stream(1)).records), (vec![1, 2, 4, 6], vec![at(3), at(5)]));
        for number in 2..=6 {
            journal.append_foreign(stream(1), at(number), &body(stream(1), number, 300)).unwrap();
        }
        journal.sync().await.unwrap();
    });
    for _ in 0..2 {
        let (_, replay) = open(&disk).unwrap();
        assert_eq!((numbers(&replay), replay.loss(stream(1))), ((1..=6).collect(), Loss::default()));
    }
}

/// The end of a copy may have stood where nothing can be read any more. The file that told so was kept for as long as the stream got no
/// new record, so that each start took a copy for damaged that had been filled long ago.
#[test]
fn damage_that_was_made_up_for_is_not_found_for_ever() {
    for makes_up in [false, true] {
        let disk = ended(300, true);
        let (path, offset) = place_of(&disk, 6);
        disk.damage(&path, |bytes| bytes[offset..offset + 396].fill(0));
        let on = disk.clone();
        life(&disk, async move {
            let (journal, replay) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
            assert!(replay.loss(stream(1)).end);
            // Nothing was lost of this one, it turns out; and the clouds have all of it.
            if makes_up {
                journal.made_up(stream(1));
            }
            journal.trim(stream(1), at(5));
            for number in 1..=60 {
                journal.append(stream(2), at(number), &body(stream(2), number, 20_000)).unwrap();
                journal.sync().await.unwrap();
                journal.trim(stream(2), at(number.saturating_sub(2)));
            }
        });
        let (_, replay) = open(&disk).unwrap();
        assert_eq!(replay.loss(stream(1)).end, !makes_up);
    }
}

#[test]
fn a_removed_stream_is_not_replayed_once_a_new_file_began() {
    let disk = filled(3, 100);
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        journal.remove(stream(1));
        journal.close().await.unwrap();
    });
    let (_, replay) = open(&disk.after(Crash::LoseAll, &Rng::new(1))).unwrap();
    assert_eq!(replay.records.get(&stream(1)), None);
}

#[test]
fn inspection_shows_records_and_their_state_without_keys() {
    let disk = filled(5, 300);
    let (path, offset) = place_of(&disk, 3);
    disk.damage(&path, |bytes| bytes[offset + 150] ^= 1);
    let on = disk.clone();
    let name = path.clone();
    let file = life(&disk, async move { inspect(&env(&on, 1), &name).await.unwrap() }).unwrap();
    assert_eq!(file.header.unwrap().node, NodeId(3));
    let states: Vec<_> =
        file.records.iter().filter(|record| record.ring.is_none()).map(|record| record.state).collect();
    assert_eq!(
        states,
        [RecordState::Whole, RecordState::Whole, RecordState::BodyDamaged, RecordState::Whole, RecordState::Whole]
    );
}

/// A journal whose last three records are `length` long, synced if `synced` says so, and the disk after the process died.
fn ended(length: usize, synced: bool) -> CrashDisk {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        for number in 1..=6 {
            journal.append(stream(1), at(number), &body(stream(1), number, length)).unwrap();
            if number == 3 {
                journal.sync().await.unwrap();
            }
        }
        journal.submit().unwrap();
        if synced {
            journal.sync().await.unwrap();
        }
    });
    disk.after(Crash::Process, &Rng::new(1))
}

/// What may happen to the last record at rest: its body, its header, or all of it.
const SPOILS: [fn(&mut [u8]); 3] = [|record| record[120] ^= 1, |record| record[30] ^= 1, |record| record.fill(0)];

/// Nothing follows the last record that a barrier covered, so no record said that it had been durable: when it was damaged
/// it was taken for an unfinished end and dropped.
#[test]
fn damage_to_the_last_synced_record_is_damage_and_stays_reported() {
    // Also records of which several stand in a sector.
    for length in [40, 500, 5000] {
        for (kind, spoil) in SPOILS.into_iter().enumerate() {
            let disk = ended(length, true);
            let (path, offset) = place_of(&disk, 6);
            disk.damage(&path, |bytes| spoil(&mut bytes[offset..offset + 96 + length]));
            let context = format!("{length} bytes, kind {kind}");
            for turn in 0..3 {
                let (journal, replay) = open(&disk).unwrap();
                assert_eq!(replay.damage.len(), 1, "{context}, start {turn}");
                let loss = replay.loss(stream(1));
                assert!(loss.end || loss.records == [at(6)], "{context}, start {turn}: {loss:?}");
                assert!(numbers(&replay).starts_with(&[1, 2, 3, 4, 5]), "{context}, start {turn}");
                assert_eq!(replay.tail, Tail::Whole, "{context}, start {turn}: nothing else is lost");
                let on = disk.clone();
                // Others go on behind it.
                life(&disk, async move {
                    journal.append(stream(2), at(1 + turn), b"of another stream").unwrap();
                    journal.sync().await.unwrap();
                    drop(on);
                });
            }
        }
    }
}

/// Written and acked, not synced: lost for good when it is damaged, but not without a word.
#[test]
fn damage_to_the_last_written_record_is_told_within_one_boot() {
    for length in [40, 500, 5000] {
        for (kind, spoil) in SPOILS.into_iter().enumerate() {
            let disk = ended(length, false);
            let (_, replay) = open(&disk.after(Crash::Process, &Rng::new(1))).unwrap();
            assert_eq!((numbers(&replay), replay.tail), ((1..=6).collect(), Tail::Whole));
            let (path, offset) = place_of(&disk, 6);
            disk.damage(&path, |bytes| spoil(&mut bytes[offset..offset + 96 + length]));
            let (_, replay) = open(&disk).unwrap();
            assert_eq!(replay.tail, Tail::Cut, "{length} bytes, kind {kind}");
            assert_eq!((numbers(&replay), replay.damage), ((1..=5).collect(), vec![]), "{length} bytes, kind {kind}");
        }
    }
}

#[test]
fn a_write_that_was_never_finished_is_dropped_and_was_never_acked() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
        journal.append(stream(1), at(1), &[1; 3000]).unwrap();
        journal.sync().await.unwrap();
        journal.append(stream(1), at(2), &[2; 3000]).unwrap();
        // The process dies behind the write of the record, and before anybody hears of it.
        on.stop_after(2);
        journal.submit().unwrap();
    });
    let disk = disk.after(Crash::Process, &Rng::new(1));
    let (path, offset) = place_of(&disk, 2);
    for (cut, kept) in [(3096, vec![1, 2]), (2000, vec![1]), (60, vec![1]), (0, vec![1])] {
        let disk = disk.after(Crash::Process, &Rng::new(1));
        disk.damage(&path, |bytes| bytes[offset + cut..offset + 3096].fill(0));
        let (_, replay) = open(&disk).unwrap();
        assert_eq!((numbers(&replay), replay.tail), (kept, Tail::Whole), "cut at {cut}");
        assert_eq!(replay.damage, vec![], "cut at {cut}");
    }
}

/// One bit of any record flips after the process died. Whatever was acked and is lost by that is told as what it was.
#[test]
fn a_bit_that_flips_anywhere_never_takes_an_acked_record_silently() {
    let (mut damaged, mut cut) = (0, 0);
    for seed in 0..150 {
        let rng = Rc::new(Rng::new(1000 + seed));
        let model = Rc::new(RefCell::new(Model::default()));
        let disk = CrashDisk::new();
        disk.stop_after(100 + rng.below(300));
        life(&disk, work(disk.clone(), Rc::clone(&rng), Rc::clone(&model), 2000, format!("seed {seed}"), 0));
        let disk = disk.after(Crash::Process, &rng);
        // The records nearest to the end, for those nothing else tells of.
        let model = model.borrow();
        let Some(first) = model.appended.len().checked_sub(30) else { continue };
        let index = first + rng.index(30);
        let (stream_of, number, _) = &model.appended[index];
        let Some((path, offset, end)) = find(&disk, *stream_of, *number) else { continue };
        let bit = offset + rng.index(end - offset);
        let is_filling = bit >= offset + 96 + model.appended[index].2.len();
        disk.damage(&path, |bytes| bytes[bit] ^= 1 << rng.below(8));
        let (_, replay) = open(&disk).unwrap();
        let there = |(of, number, _): &(StreamId, u64, Vec<u8>)| {
            model.is_trimmed(*of, *number)
                || replay.records.get(of).is_some_and(|records| records.iter().any(|(at, _)| at.number == *number))
        };
        let gone = |records: &[(StreamId, u64, Vec<u8>)]| records.iter().filter(|record| !there(record)).count();
        let (synced, submitted) =
            (gone(&model.appended[..model.synced]), gone(&model.appended[model.synced..model.submitted]));
        let context = format!("seed {seed}: {stream_of} {number}, {index} of {} and {}", model.synced, model.submitted);
        assert!(!is_filling || synced + submitted == 0, "{context}: nothing hangs on the filling");
        assert!(synced == 0 || !replay.damage.is_empty(), "{context}: {synced} synced records are gone");
        // The journal syncs by itself too, when it begins another file.
        let is_told = replay.tail == Tail::Cut || !replay.damage.is_empty();
        assert!(submitted == 0 || is_told, "{context}: {submitted} acked records are gone");
        (damaged, cut) = (damaged + usize::from(synced > 0), cut + usize::from(submitted > 0));
    }
    assert!(damaged > 10 && cut > 10, "{damaged} and {cut} of the seeds lost something");
}

/// File, offset and end of a record.
fn find(disk: &CrashDisk, stream: StreamId, number: u64) -> Option<(PathBuf, usize, usize)> {
    disk.paths().into_iter().find_map(|path| {
        let (on, name) = (disk.clone(), path.clone());
        let found = life(disk, async move { inspect(&env(&on, 1), &name).await.unwrap() }).unwrap();
        let kind = Some(velum_node::journal::RecordKind::Stream(stream, at(number)));
        let record = found.records.into_iter().find(|record| record.kind == kind)?;
        Some((path, usize::try_from(record.offset).unwrap(), usize::try_from(record.end).unwrap()))
    })
}

fn reach() -> PathBuf {
    dir().join("reach")
}

#[test]
fn notes_that_cannot_be_read_tell_nothing_of_the_end() {
    let spoil: [fn(&CrashDisk); 4] = [
        |disk| disk.remove_file(&reach()),
        |disk| disk.damage(&reach(), |bytes| bytes[20] ^= 1),
        |disk| disk.damage(&reach(), |bytes| bytes[4096 + 60] ^= 1),
        |disk| disk.damage(&reach(), |bytes| bytes.truncate(4200)),
    ];
    for spoil in spoil {
        let disk = ended(500, false);
        spoil(&disk);
        let (_, replay) = open(&disk).unwrap();
        assert_eq!((numbers(&replay), replay.tail), ((1..=6).collect(), Tail::Unknown));
        // The next start has notes again.
        let (_, replay) = open(&disk.after(Crash::Process, &Rng::new(1))).unwrap();
        assert_eq!((numbers(&replay), replay.tail), ((1..=6).collect(), Tail::Whole));
    }
}

#[test]
fn notes_of_another_boot_say_what_was_durable_and_no_more() {
    for crash in [Crash::LoseAll, Crash::KeepAll] {
        let disk = ended(500, false).after(crash, &Rng::new(1));
        let (_, replay) = open(&disk).unwrap();
        assert!(numbers(&replay).starts_with(&[1, 2, 3]));
        assert_eq!(replay.tail, Tail::Unknown, "{crash:?}");
    }
    // Written back by the kernel before power failed.
    let disk = ended(500, true).after(Crash::KeepAll, &Rng::new(1));
    let (path, offset) = place_of(&disk, 6);
    disk.damage(&path, |bytes| bytes[offset + 200] ^= 1);
    let (_, replay) = open(&disk).unwrap();
    assert_eq!(replay.loss(stream(1)).records, [at(6)]);
}

/// The file in which the last sync ended has gone, before any later file could name it.
#[test]
fn a_missing_newest_file_is_reported_at_every_start() {
    let disk = filled(60, 8000);
    let disk = disk.after(Crash::Process, &Rng::new(1));
    open(&disk).unwrap();
    let disk = disk.after(Crash::Process, &Rng::new(1));
    let (path, _) = {
        let on = disk.clone();
        life(&disk, async move {
            let (journal, _) = Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await.unwrap();
            journal.append(stream(1), at(61), &body(stream(1), 61, 8000)).unwrap();
            journal.sync().await.unwrap();
        });
        place_of(&disk, 61)
    };
    disk.remove_file(&path);
    for turn in 0..2 {
        let (_, replay) = open(&disk).unwrap();
        assert!(!numbers(&replay).contains(&61));
        assert!(replay.damage.iter().any(|damage| damage.kind == DamageKind::FileMissing), "start {turn}");
        assert!(replay.loss(stream(1)).end, "start {turn}");
    }
}

/// A start does not go by notes before its own tail stands: wherever it is broken off, the next one finds the same.
#[test]
fn a_start_broken_off_anywhere_finds_the_same_again() {
    for spoiled in [false, true] {
        for operation in 1..400 {
            let disk = ended(500, false);
            if spoiled {
                // A record that was synced; those behind it were only written.
                let (path, offset) = place_of(&disk, 3);
                disk.damage(&path, |bytes| bytes[offset + 200] ^= 1);
            }
            disk.stop_after(operation);
            let on = disk.clone();
            let opened = life(&disk, async move { Journal::open(&env(&on, 1), dir(), SETTINGS, IDENTITY).await });
            let (_, replay) = open(&disk.after(Crash::Process, &Rng::new(operation))).unwrap();
            let expected: Vec<u64> = (1..=6).filter(|number| !spoiled || *number != 3).collect();
            assert_eq!((numbers(&replay), replay.tail), (expected, Tail::Whole), "operation {operation}");
            assert_eq!(replay.damage.len(), usize::from(spoiled), "operation {operation}");
            if opened.is_some() {
                assert!(operation > 20, "the test breaks starts off");
                break;
            }
        }
    }
}

#[test]
fn notes_of_another_node_or_a_newer_version_are_refused_and_untouched() {
    let disk = filled(3, 100);
    disk.damage(&reach(), |bytes| {
        bytes[4] = 2;
        let crc = crc(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc);
    });
    let before = disk.image();
    assert!(matches!(open(&disk), Err(JournalError::Newer { .. })));
    assert_eq!(disk.image(), before);
    let disk = filled(3, 100);
    disk.damage(&reach(), |bytes| {
        for place in [0, 4096] {
            bytes[place + 24] = 9;
            let crc = crc(&bytes[place..place + 124]);
            bytes[place + 124..place + 128].copy_from_slice(&crc);
        }
    });
    let before = disk.image();
    assert!(matches!(open(&disk), Err(JournalError::Foreign { .. })));
    assert_eq!(disk.image(), before);
}

/// A journal with long files held a record that no file of a new, smaller setting could take when it was to be written again.
#[test]
fn files_too_short_for_a_record_that_is_there_are_refused_and_nothing_is_touched() {
    let disk = filled(2, 60_000);
    let before = disk.image();
    let settings = JournalSettings { file_bytes: 64 << 10, ..SETTINGS };
    let on = disk.clone();
    let opened = life(&disk, async move { Journal::open(&env(&on, 1), dir(), settings, IDENTITY).await.map(drop) });
    let Some(Err(JournalError::FilesTooShort { wanted_bytes, .. })) = opened else { panic!("{opened:?}") };
    assert_eq!(disk.image(), before);
    let on = disk.clone();
    let settings = JournalSettings { file_bytes: wanted_bytes, ..SETTINGS };
    life(&disk, async move {
        let (journal, replay) = Journal::open(&env(&on, 1), dir(), settings, IDENTITY).await.unwrap();
        assert_eq!(numbers(&replay), [1, 2]);
        // What fits is the same for all of this life, also when shorter files are made later.
        assert!(journal.body_bytes_max() < 70_000);
    })
    .unwrap();
}

#[test]
fn a_disk_without_room_for_the_notes_refuses_the_start_and_the_next_one_works() {
    let disk = ended(500, false);
    disk.remove_file(&reach());
    disk.full.set(true);
    let opened = open(&disk).map(drop);
    assert!(matches!(opened, Err(JournalError::Io { operation: "create", .. })), "{opened:?}");
    disk.full.set(false);
    let (_, replay) = open(&disk.after(Crash::Process, &Rng::new(1))).unwrap();
    assert_eq!(numbers(&replay), (1..=6).collect::<Vec<_>>());
}
