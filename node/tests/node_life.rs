//! The life of a node: stops, crashes, starts.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::await_holding_refcell_ref,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected has failed, and says where"
)]

mod cluster;

use std::path::{Path, PathBuf};

use cluster::{
    BLOCKS, Cluster, Process,
    clouds::pause,
    guest::{Guest, Reference},
    run,
    support::{Crash, env},
};
use futures_util::future::{Either, select};
use velum_node::{
    array::recover::Verify,
    config::Size,
    consensus::ConsensusError,
    journal::{InspectedRecord, JournalError, RecordKind, StreamId, inspect},
    node::StartError,
};
use velum_protocol::{
    admin::{Request, ResizeVolume},
    id::{Jseq, Lineage, NodeId},
};

#[test]
fn a_node_that_crashed_goes_on_with_every_acked_write() {
    run(1, async |cluster| {
        let process = cluster.founded().await;
        let mut reference = Reference::new(cluster::BLOCKS);
        let mut guest = process.connect("demo").await;
        for _ in 0..50 {
            process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
        }
        process.flush("demo").await.unwrap();
        for _ in 0..10 {
            process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
        }
        drop(guest);
        process.crash(Crash::Process);
        let process = cluster.start().await;
        let mut guest = process.connect("demo").await;
        let image = process.run(guest.image()).await.unwrap();
        assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
    });
}

/// A volume with blocks at its end in the clouds and others in the journal, cut and grown again.
async fn cut_and_grown(cluster: &std::rc::Rc<Cluster>) -> (Process, Reference) {
    let process = cluster.founded().await;
    let mut reference = Reference::new(BLOCKS);
    let mut guest = process.connect("demo").await;
    process.run(guest.ask(reference.write(1990, 20))).await.unwrap();
    process.run(guest.ask(reference.write(4000, 4))).await.unwrap();
    process.flush("demo").await.unwrap();
    process.run(guest.ask(reference.write(4002, 4))).await.unwrap();
    process.run(guest.barrier()).await.unwrap();
    drop(guest);
    for blocks in [2000, BLOCKS] {
        let resize = ResizeVolume { size_bytes: blocks * 4096, force: true };
        process.admin(Request::ResizeVolume { name: "demo".into(), resize }).await.unwrap();
    }
    reference.trim(2000, BLOCKS - 2000);
    (process, reference)
}

#[test]
fn what_a_smaller_size_cut_off_stays_away_whatever_crashed() {
    for (seed, crash) in [Crash::Process, Crash::LoseAll, Crash::KeepAll, Crash::Power].into_iter().enumerate() {
        run(10 + seed as u64, async |cluster| {
            let (process, reference) = cut_and_grown(&cluster).await;
            process.crash(crash);
            let process = cluster.start().await;
            let mut guest = process.connect("demo").await;
            let image = process.run(guest.image()).await.unwrap();
            assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
        });
    }
}

/// Sizes are recovered from the catalogue and blocks from the sequence. The sequence ended before the cut, and the volume
/// came back as large as it had grown and with what had been cut off.
#[test]
fn what_a_smaller_size_cut_off_stays_away_also_in_the_clouds() {
    run(20, async |cluster| {
        let (process, reference) = cut_and_grown(&cluster).await;
        process.crash(Crash::LoseAll);
        let recovered = cluster.recover(&["a", "b", "c"], &[], Verify::Full).await.unwrap();
        cluster.adopt(&recovered).await;
        let process = cluster.start().await;
        process.work(5000).await;
        let mut guest = process.connect("demo").await;
        let image = process.run(guest.image()).await.unwrap();
        assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
    });
}

/// A volume with acked writes that nothing has synced: nobody asked for a barrier. And its lineage.
async fn with_unsynced_writes(cluster: &std::rc::Rc<Cluster>) -> (Process, Reference, Lineage) {
    let process = cluster.founded().await;
    let mut reference = Reference::new(BLOCKS);
    let mut guest = process.connect("demo").await;
    for _ in 0..20 {
        process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
    }
    drop(guest);
    let lineage = lineage(&process);
    (process, reference, lineage)
}

fn lineage(process: &Process) -> Lineage {
    process.state().volumes[&process.volume("demo")].lineage
}

#[test]
fn a_crash_of_the_process_keeps_the_lineage() {
    run(30, async |cluster| {
        let (mut process, _, before) = with_unsynced_writes(&cluster).await;
        for _ in 0..3 {
            process.crash(Crash::Process);
            process = cluster.start().await;
            assert_eq!(lineage(&process), before);
        }
    });
}

/// Every record of the journal's end was lost and none was torn: what was left looked as if nothing had ever followed it.
#[test]
fn a_loss_of_power_changes_the_lineage_once_also_when_it_leaves_no_trace() {
    for (seed, crash) in [Crash::LoseAll, Crash::Power, Crash::KeepAll].into_iter().enumerate() {
        run(40 + seed as u64, async |cluster| {
            let (process, reference, before) = with_unsynced_writes(&cluster).await;
            process.crash(crash);
            let process = cluster.start().await;
            let after = lineage(&process);
            assert!(after > before, "{crash:?}");
            let mut guest = process.connect("demo").await;
            let image = process.run(guest.image()).await.unwrap();
            let kept = reference.expect_prefix(&image, 0);
            assert!(crash != Crash::LoseAll || kept < reference.len(), "the test loses something");
            drop(guest);
            process.crash(Crash::Process);
            assert_eq!(lineage(&cluster.start().await), after, "the loss is told once");
        });
    }
}

/// Flips a bit in the last record of the volume.
async fn spoil_last_record(cluster: &Cluster, stream: StreamId) {
    let (path, record) = last_record(cluster, stream).await;
    cluster.disk.borrow().damage(&path, |bytes| bytes[record.offset as usize + 150] ^= 1);
}

/// Acked writes were dropped without a word when the last record was damaged, for a process that is killed leaves an
/// unfinished one there too. What no barrier had covered is lost, and the lineage says so; it says so also when the start
/// that found it is broken off anywhere.
#[test]
fn damage_of_the_unsynced_end_changes_the_lineage_also_within_one_boot() {
    for operation in (1..).step_by(4) {
        let broken_off = run(1000 + operation, async |cluster| {
            let (process, mut reference, before) = with_unsynced_writes(&cluster).await;
            let mut guest = process.connect("demo").await;
            process.run(guest.ask(reference.write(0, 2))).await.unwrap();
            drop(guest);
            let stream = StreamId::Volume(process.volume("demo"));
            process.crash(Crash::Process);
            spoil_last_record(&cluster, stream).await;
            let broken_off = break_off_start(&cluster, operation).await;
            let process = cluster.start().await;
            assert!(lineage(&process) > before, "broken off at operation {operation}");
            let mut guest = process.connect("demo").await;
            let image = process.run(guest.image()).await.unwrap();
            assert!(reference.expect_prefix(&image, 0) < reference.len(), "the test loses something");
            broken_off
        });
        if !broken_off {
            return;
        }
    }
}

/// What a barrier had covered was dropped without a word when nothing had been written behind it.
#[test]
fn damage_of_what_the_last_barrier_covered_closes_the_volume_at_every_start() {
    run(49, async |cluster| {
        let (process, _, before) = with_unsynced_writes(&cluster).await;
        let mut guest = process.connect("demo").await;
        process.run(guest.barrier()).await.unwrap();
        drop(guest);
        let stream = StreamId::Volume(process.volume("demo"));
        process.crash(Crash::Process);
        spoil_last_record(&cluster, stream).await;
        for crash in [Crash::Process, Crash::Process, Crash::LoseAll, Crash::Process] {
            let process = cluster.start().await;
            assert!(process.run(Guest::connect(&process.ports, "demo")).await.is_err(), "before {crash:?}");
            assert!(crash != Crash::Process || lineage(&process) >= before);
            process.crash(crash);
        }
    });
}

/// The last record of raft was damaged, and the start went on from an older state than had been agreed on: it could have
/// given numbers of segments and of records a second time.
#[test]
fn a_raft_log_without_its_durable_end_stops_the_start_and_is_left_as_it_is() {
    let spoil: [fn(&mut [u8]); 3] = [|record| record[150] ^= 1, |record| record[30] ^= 1, |record| record.fill(0)];
    for (seed, spoil) in spoil.into_iter().enumerate() {
        run(52 + seed as u64, async |cluster| {
            let process = cluster.founded().await;
            process.create_volume("other", 1 << 20).await.unwrap();
            process.crash(Crash::Process);
            let (path, record) = last_record(&cluster, StreamId::Raft).await;
            let (offset, end) = (record.offset as usize, record.end as usize);
            cluster.disk.borrow().damage(&path, |bytes| spoil(&mut bytes[offset..end]));
            let before = cluster.disk.borrow().image();
            for _ in 0..2 {
                let refused = cluster.try_start().await.map(drop);
                let is_damage = matches!(refused, Err(StartError::Consensus(ConsensusError::LogDamaged { .. })));
                assert!(is_damage, "kind {seed}: {refused:?}");
                assert!(cluster.disk.borrow().image() == before, "kind {seed}");
            }
        });
    }
}

/// A start that was refused over its settings had already written the end of the journal anew, and with that dropped what
/// told of damage.
#[test]
fn a_start_that_is_refused_changes_nothing_and_hides_nothing() {
    type Refusal = (&'static str, fn(&Cluster), fn(&Cluster), fn(&StartError) -> bool);
    let refusals: [Refusal; 9] = [
        (
            "other clouds",
            |cluster| cluster.config.borrow_mut().clouds.swap(0, 1),
            |cluster| cluster.config.borrow_mut().clouds.swap(0, 1),
            |error| matches!(error, StartError::OtherClouds { .. }),
        ),
        (
            "another node's directory",
            |cluster| cluster.config.borrow_mut().node = NodeId(2),
            |cluster| cluster.config.borrow_mut().node = NodeId(1),
            |error| matches!(error, StartError::Journal(JournalError::Foreign { .. })),
        ),
        (
            "wrong key",
            |cluster| cluster.secret.set(std::array::from_fn(|place| (place * 5 + 3) as u8)),
            |cluster| cluster.secret.set(std::array::from_fn(|place| (place * 7 + 11) as u8)),
            |error| matches!(error, StartError::Key(_)),
        ),
        (
            "address in use",
            |cluster| cluster.ports_taken.set(true),
            |cluster| cluster.ports_taken.set(false),
            |error| matches!(error, StartError::Listen { .. }),
        ),
        (
            "cloud not understood",
            |cluster| cluster.misunderstood.set(true),
            |cluster| cluster.misunderstood.set(false),
            |error| matches!(error, StartError::OpenCloud(_)),
        ),
        (
            "journal files too short",
            |cluster| cluster.config.borrow_mut().journal.file_bytes = Size::from_bytes(64 << 10),
            |cluster| cluster.config.borrow_mut().journal.file_bytes = Size::mib(1),
            |error| matches!(error, StartError::Journal(JournalError::FilesTooShort { .. })),
        ),
        (
            "journal setting out of bounds",
            |cluster| cluster.config.borrow_mut().journal.file_bytes = Size::from_bytes(5000),
            |cluster| cluster.config.borrow_mut().journal.file_bytes = Size::mib(1),
            |error| matches!(error, StartError::Journal(JournalError::Settings(_))),
        ),
        (
            "raft snapshot damaged",
            |cluster| flip(cluster, &cluster.layout().raft().join("snapshot")),
            |cluster| flip(cluster, &cluster.layout().raft().join("snapshot")),
            |error| matches!(error, StartError::Consensus(ConsensusError::SnapshotDamaged { .. })),
        ),
        (
            "boot file of a newer version",
            |cluster| cluster.disk.borrow().damage(&cluster.layout().boot(), |bytes| bytes[4] = 2),
            |cluster| cluster.disk.borrow().damage(&cluster.layout().boot(), |bytes| bytes[4] = 1),
            |error| matches!(error, StartError::Newer { .. }),
        ),
    ];
    run(56, async |cluster| {
        let (process, _, lineage_before) = with_unsynced_writes(&cluster).await;
        let mut guest = process.connect("demo").await;
        let mut reference = Reference::new(BLOCKS);
        process.run(guest.ask(reference.write(0, 40))).await.unwrap();
        drop(guest);
        let stream = StreamId::Volume(process.volume("demo"));
        process.crash(Crash::Process);
        // There is something to hide: the last write is damaged. And a leftover of a snapshot that was not finished.
        spoil_last_record(&cluster, stream).await;
        let left = cluster.layout().raft().join("snapshot.new");
        let disk = cluster.disk.borrow().clone();
        let file = velum_node::env::Disk::open(&disk, &left, velum_node::env::OpenMode::CreateNew).await.unwrap();
        file.write_at(0, b"half").unwrap();
        for (what, refuse, mend, is_expected) in refusals {
            refuse(&cluster);
            let before = cluster.disk.borrow().image();
            let error = cluster.try_start().await.map(drop).unwrap_err();
            assert!(is_expected(&error), "{what}: {error}");
            assert!(cluster.disk.borrow().image() == before, "{what}: something was changed");
            mend(&cluster);
        }
        let process = cluster.start().await;
        assert!(lineage(&process) > lineage_before, "the loss is told when the start is let through");
        assert!(!cluster.disk.borrow().paths().contains(&left));
    });
}

fn flip(cluster: &Cluster, path: &Path) {
    cluster.disk.borrow().damage(path, |bytes| bytes[70] ^= 1);
}

/// Starts the node and stops its machine's disk at an operation. False when the start was done before; the process is gone
/// either way, and the page cache is not.
async fn break_off_start(cluster: &std::rc::Rc<Cluster>, operation: u64) -> bool {
    cluster.disk.borrow().stop_after(operation);
    let stopped = cluster.disk.borrow().stopped();
    let starting = Box::pin(cluster.try_start());
    match select(starting, Box::pin(stopped.notified())).await {
        Either::Left((process, _)) => {
            process.unwrap().crash(Crash::Process);
            false
        }
        Either::Right(_) => {
            let after = cluster.disk.borrow().after(Crash::Process, &cluster.rng);
            *cluster.disk.borrow_mut() = after;
            true
        }
    }
}

/// A guest's write was longer than a file of the journal takes in one record; the journal refused it, and the volume took
/// nothing more.
#[test]
fn a_long_write_is_split_into_what_the_journals_files_take() {
    for file_bytes in [Size::from_bytes(512 << 10), Size::mib(1)] {
        run(57, async |cluster| {
            cluster.config.borrow_mut().journal.file_bytes = file_bytes;
            let process = cluster.founded().await;
            let mut reference = Reference::new(BLOCKS);
            let mut guest = process.connect("demo").await;
            for turn in 0..12 {
                process.run(guest.ask(reference.write(turn * 300, 256 + turn))).await.unwrap();
            }
            drop(guest);
            process.crash(Crash::Process);
            let process = cluster.start().await;
            let mut guest = process.connect("demo").await;
            let image = process.run(guest.image()).await.unwrap();
            assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
        });
    }
}

#[test]
fn a_clean_stop_keeps_the_lineage_through_a_reboot() {
    run(50, async |cluster| {
        let (process, reference, before) = with_unsynced_writes(&cluster).await;
        process.stop().await;
        let rebooted = cluster.disk.borrow().after(Crash::LoseAll, &cluster.rng);
        *cluster.disk.borrow_mut() = rebooted;
        let process = cluster.start().await;
        assert_eq!(lineage(&process), before);
        let mut guest = process.connect("demo").await;
        let image = process.run(guest.image()).await.unwrap();
        assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
        drop(guest);
        // The stop counts for the start after it and for no other.
        process.crash(Crash::LoseAll);
        assert!(lineage(&cluster.start().await) > before);
    });
}

#[test]
fn a_new_directory_has_lost_nothing() {
    run(51, async |cluster| {
        cluster.create().await.unwrap();
        let rebooted = cluster.disk.borrow().after(Crash::LoseAll, &cluster.rng);
        *cluster.disk.borrow_mut() = rebooted;
        let process = cluster.start().await;
        process.create_volume("demo", 1 << 20).await.unwrap();
        assert_eq!(lineage(&process), Lineage(1));
    });
}

#[test]
fn a_boot_file_that_is_missing_or_damaged_is_taken_for_another_boot() {
    let spoil: [fn(&Cluster); 3] = [
        |cluster| cluster.disk.borrow().remove_file(&cluster.layout().boot()),
        |cluster| cluster.disk.borrow().damage(&cluster.layout().boot(), |bytes| bytes[40] ^= 1),
        |cluster| cluster.disk.borrow().damage(&cluster.layout().boot(), |bytes| bytes.extend([0; 100])),
    ];
    for (seed, spoil) in spoil.into_iter().enumerate() {
        run(60 + seed as u64, async |cluster| {
            let (process, _, before) = with_unsynced_writes(&cluster).await;
            process.crash(Crash::Process);
            spoil(&cluster);
            assert!(lineage(&cluster.start().await) > before);
        });
    }
}

#[test]
fn a_boot_file_of_a_newer_version_stops_the_start_and_changes_nothing() {
    run(70, async |cluster| {
        let (process, _, _) = with_unsynced_writes(&cluster).await;
        process.crash(Crash::Process);
        cluster.disk.borrow().damage(&cluster.layout().boot(), |bytes| bytes[4] = 2);
        let before = cluster.disk.borrow().image();
        assert!(matches!(cluster.try_start().await, Err(StartError::Newer { .. })));
        assert!(cluster.disk.borrow().image() == before);
    });
}

/// Wherever a start after a loss of power is broken off, the next one tells of the loss.
#[test]
fn a_start_broken_off_does_not_hide_a_loss() {
    let mut seed = 80;
    for operation in (1..).step_by(3) {
        seed += 1;
        let broken_off = run(seed, async |cluster| {
            let (process, _, before) = with_unsynced_writes(&cluster).await;
            process.crash(Crash::LoseAll);
            let broken_off = break_off_start(&cluster, operation).await;
            assert!(lineage(&cluster.start().await) > before, "broken off at operation {operation}");
            broken_off
        });
        if !broken_off {
            return;
        }
    }
}

/// Two volumes with synced writes in the journal, the newer ones those of `other`. The last record of `demo` is spoiled: no
/// record of it behind that one says that it had been durable.
async fn with_a_spoiled_end(cluster: &std::rc::Rc<Cluster>, spoil: impl Fn(&mut [u8])) -> Reference {
    let process = cluster.founded().await;
    process.create_volume("other", 1 << 20).await.unwrap();
    let (mut demo, mut other) = (Reference::new(BLOCKS), Reference::new(256));
    for (name, reference) in [("demo", &mut demo), ("other", &mut other)] {
        let mut guest = process.connect(name).await;
        for block in 0..5 {
            process.run(guest.ask(reference.write(block, 2))).await.unwrap();
        }
        process.run(guest.barrier()).await.unwrap();
    }
    let stream = StreamId::Volume(process.volume("demo"));
    process.crash(Crash::Process);
    let (path, record) = last_record(cluster, stream).await;
    let (offset, end) = (record.offset as usize, record.end as usize);
    cluster.disk.borrow().damage(&path, |bytes| spoil(&mut bytes[offset..end]));
    other
}

async fn last_record(cluster: &Cluster, stream: StreamId) -> (PathBuf, InspectedRecord) {
    let disk = cluster.disk.borrow().clone();
    let mut found = Vec::new();
    for path in disk.paths().into_iter().filter(|path| path.extension().is_some_and(|name| name == "journal")) {
        let records = inspect(&env(&disk, 1), &path).await.unwrap().records.into_iter();
        found.extend(records.map(|record| (path.clone(), record)));
    }
    let position = |record: &InspectedRecord| match record.kind {
        Some(RecordKind::Stream(of, at)) if of == stream => Some(at),
        _ => None,
    };
    found.into_iter().filter(|(_, record)| position(record).is_some()).max_by_key(|(_, r)| position(r)).unwrap()
}

/// The end of a volume's journal was damaged after it had been synced. No later record of the volume told of it, and the
/// volume opened without its last write.
#[test]
fn a_volume_whose_durable_end_is_damaged_stays_closed_and_the_others_go_on() {
    let spoil: [fn(&mut [u8]); 2] = [|record| record[150] ^= 1, |record| record.fill(0)];
    for (seed, spoil) in spoil.into_iter().enumerate() {
        run(100 + seed as u64, async |cluster| {
            let other = with_a_spoiled_end(&cluster, spoil).await;
            for crash in [Crash::Process, Crash::LoseAll] {
                let process = cluster.start().await;
                assert!(
                    process.run(Guest::connect(&process.ports, "demo")).await.is_err(),
                    "kind {seed}, before {crash:?}"
                );
                let mut guest = process.connect("other").await;
                let image = process.run(guest.image()).await.unwrap();
                assert_eq!(other.expect_prefix(&image, other.len()), other.len());
                process.flush("other").await.unwrap();
                drop(guest);
                process.crash(crash);
            }
        });
    }
}

fn set_clouds_away(cluster: &Cluster, away: bool) {
    cluster.clouds.values().for_each(|cloud| cloud.away.set(away));
}

/// True when a write is acked within half a minute.
async fn takes_a_write(process: &Process, guest: &mut Guest, reference: &mut Reference) -> bool {
    let asked = Box::pin(guest.ask(reference.write(0, 64)));
    match process.run(select(asked, Box::pin(pause(30_000)))).await {
        Either::Left((answer, _)) => {
            answer.unwrap();
            true
        }
        Either::Right(_) => {
            reference.forget_last();
            false
        }
    }
}

/// Fills the ring while no cloud answers, and has it flushed when they do, but stops the machine after so many operations of
/// its disk. True when it stopped before all was done.
async fn flush_a_full_ring(cluster: &std::rc::Rc<Cluster>, reference: &mut Reference, operations: u64) -> bool {
    cluster.config.borrow_mut().journal.bytes_max = Size::mib(4);
    let process = cluster.founded().await;
    set_clouds_away(cluster, true);
    let mut guest = process.connect("demo").await;
    while takes_a_write(&process, &mut guest, reference).await {}
    drop(guest);
    let stopped = cluster.disk.borrow().stopped();
    cluster.disk.borrow().stop_after(operations);
    set_clouds_away(cluster, false);
    let flushed = process.run(select(Box::pin(stopped.notified()), Box::pin(pause(60_000)))).await;
    let broken_off = matches!(flushed, Either::Left(_));
    process.crash(Crash::Process);
    broken_off
}

/// The process ended when everything in a full ring was at d2, but before the journal had noted that it was needed no more.
/// Nothing was left to be flushed, so nothing ever made room, and the volume took no write again.
#[test]
fn a_full_ring_has_room_after_a_start_wherever_its_flush_was_broken_off() {
    let mut without_a_flush = 0;
    for operations in 1.. {
        let broken_off = run(110, async |cluster| {
            let mut reference = Reference::new(BLOCKS);
            let broken_off = flush_a_full_ring(&cluster, &mut reference, operations).await;
            set_clouds_away(&cluster, true);
            let process = cluster.start().await;
            let volume = process.state().volumes[&process.volume("demo")].clone();
            let (last, durable) = (volume.head.last, volume.durable_jseq(2));
            let all_durable = last > Jseq(0) && durable == last;
            let mut guest = process.connect("demo").await;
            let taken = takes_a_write(&process, &mut guest, &mut reference).await;
            assert_eq!(taken, all_durable, "stopped after {operations} operations, {durable} of {last} at d2");
            if all_durable {
                without_a_flush += 1;
            } else {
                set_clouds_away(&cluster, false);
                let mut guest = process.connect("demo").await;
                assert!(takes_a_write(&process, &mut guest, &mut reference).await, "once it could be flushed");
            }
            broken_off
        });
        if !broken_off {
            break;
        }
    }
    assert!(without_a_flush > 0, "the test sees such a ring");
}
