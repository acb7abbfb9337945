//! The array against clouds that fail, go away and come back, and against crashes at any instant. After every change of any
//! cloud the cloud is checked to hold whatever its records and checkpoints name; no name is ever stored with two contents and
//! none comes back after it was deleted (see `array_world::clouds`).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that meets the unexpected has failed, and says where"
)]

mod array_world;

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use array_world::{BLOCKS, CLOUDS, Process, VOLUME, World, run, settings};
use bytes::Bytes;
use velum_node::{
    array::{ArraySettings, recover::Verify},
    keyring::{ObjectId, ObjectKind},
    metadata::state::{RECORD_BYTES_MAX, RecordEntry},
};
use velum_protocol::{
    format::metadata::{AclEntry, CloudName, Command, Right},
    id::{BlockIndex, Epoch, Hash, Incarnation, Jseq, Seq, VolumeId},
};

const PAIRS: [[&str; 2]; 3] = [["a", "b"], ["b", "c"], ["a", "c"]];

/// Contents that are never the same twice.
fn contents(world: &World) -> Bytes {
    let stamp = world.rng.next().to_le_bytes();
    Bytes::from(stamp.repeat(512))
}

/// Writes or trims a few random blocks.
fn scribble(world: &World, process: &Process, count: u64) {
    for _ in 0..count {
        let block = world.rng.below(BLOCKS);
        let data = (world.rng.below(8) > 0).then(|| contents(world));
        process.port.write(block, data);
    }
}

/// What the clouds of `from` give back is what the volume held after some prefix of its writes that reaches at least `durable`.
async fn assert_recovers(world: &Rc<World>, from: &[&str], durable: Jseq) {
    let recovered = world.recover(from, Verify::Full).await.unwrap();
    let head = recovered.state.volumes[&VOLUME].head;
    assert!(head.last >= durable, "{from:?}: position {} is at d2, {} was recovered", durable, head.last);
    let image = world.image(&recovered.state, from).await;
    assert_eq!(image, world.journal.image(head.last), "{from:?}: the image at position {}", head.last);
    assert!(recovered.report.volumes.iter().all(|volume| volume.lost.is_empty()), "{:?}", recovered.report);
}

#[test]
fn a_flush_reaches_d2_and_all_clouds_hold_the_same() {
    run(1, async |world| {
        let process = world.start().await;
        scribble(&world, &process, 100);
        process.flush().await;
        assert_eq!(process.port.durable_last(), Jseq(100));
        process.publish_catalogue().await;
        process.checkpoint().await;
        process.settle().await;
        process.work(5000).await;
        let [a, b, c] = CLOUDS.map(|name| world.cloud(name).contents());
        assert!(a == b && b == c);
        let state = world.state.borrow().clone();
        let image = world.image(&state, &["b"]).await;
        assert_eq!(image, world.journal.image(Jseq(100)));
    });
}

#[test]
fn old_dirt_is_flushed_without_being_asked() {
    run(2, async |world| {
        let process = world.start().await;
        process.port.write(7, Some(contents(&world)));
        process.work(4000).await;
        assert_eq!(process.port.durable_last(), Jseq(0));
        process.work(4000).await;
        assert_eq!(process.port.durable_last(), Jseq(1));
    });
}

#[test]
fn with_too_few_clouds_nothing_is_durable_and_nothing_is_lost() {
    run(3, async |world| {
        let process = world.start().await;
        world.cloud("a").away.set(true);
        world.cloud("b").away.set(true);
        scribble(&world, &process, 100);
        process.work(60_000).await;
        assert_eq!(process.port.durable_last(), Jseq(0));
        world.cloud("b").away.set(false);
        process.work(60_000).await;
        assert_eq!(process.port.durable_last(), Jseq(100));
    });
}

#[test]
fn any_two_clouds_bring_the_volume_back() {
    for (place, pair) in PAIRS.iter().enumerate() {
        run(10 + place as u64, async |world| {
            let process = world.start().await;
            process.publish_catalogue().await;
            for _ in 0..20 {
                scribble(&world, &process, 60);
                process.flush().await;
            }
            let durable = process.port.durable_last();
            process.crash();
            assert_recovers(&world, pair, durable).await;
        });
    }
}

#[test]
fn a_cloud_that_was_away_for_a_while_catches_up_by_records() {
    run(20, async |world| {
        let process = world.start().await;
        scribble(&world, &process, 50);
        process.flush().await;
        world.cloud("c").away.set(true);
        for _ in 0..3 {
            scribble(&world, &process, 50);
            process.flush().await;
        }
        world.cloud("c").away.set(false);
        process.settle().await;
        assert_eq!(world.cloud("c").count(ObjectKind::Record), 4);
        assert!(world.cloud("c").ids().is_superset(&world.cloud("a").ids()));
    });
}

#[test]
fn a_cloud_that_was_away_for_long_jumps_to_a_checkpoint_and_is_whole() {
    run(21, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        scribble(&world, &process, 50);
        process.flush().await;
        process.settle().await;
        world.cloud("c").away.set(true);
        for _ in 0..30 {
            scribble(&world, &process, 50);
            process.flush().await;
        }
        world.cloud("c").away.set(false);
        process.settle().await;
        assert!(world.cloud("c").count(ObjectKind::Record) < 31, "it did not get every record");
        let durable = process.port.durable_last();
        process.crash();
        assert_recovers(&world, &["b", "c"], durable).await;
    });
}

/// Flushes one block at a time.
async fn flush_singly(world: &World, process: &Process, count: u64) {
    for _ in 0..count {
        scribble(world, process, 1);
        process.flush().await;
    }
}

/// Cloud c is back after everything it needs to go on by records was dropped. Waits until it was given the newest checkpoint
/// in place of them; returns how long its cursor took to follow, and which records the cloud had when the cursor moved.
async fn jump(world: &World, process: &Process) -> (u64, BTreeSet<u64>) {
    let checkpoint = world.state.borrow().volumes[&VOLUME].checkpoint.clone().unwrap();
    let stub = world.keys().id(ObjectKind::Stub, checkpoint.root.incarnation, checkpoint.number);
    while !world.cloud("c").holds(&stub) {
        assert!(cursor(world, "c") < checkpoint.seq, "the cloud jumps");
        process.work(1).await;
    }
    let mut waited_ms = 0;
    while cursor(world, "c") < checkpoint.seq {
        process.work(1).await;
        waited_ms += 1;
    }
    (waited_ms, records(world, "c"))
}

fn cursor(world: &World, cloud: &str) -> Seq {
    world.state.borrow().volumes[&VOLUME].cursors.get(&CloudName(cloud.into())).copied().unwrap_or_default()
}

/// The numbers of the records that a cloud has.
fn records(world: &World, cloud: &str) -> BTreeSet<u64> {
    let ids = world.cloud(cloud).ids().into_iter();
    ids.filter(|id| id.kind == ObjectKind::Record).map(|id| id.number).collect()
}

/// Checkpoints are made when the test says so.
fn without_checkpoints() -> ArraySettings {
    let day = Duration::from_secs(86_400);
    ArraySettings { checkpoint_records: u64::MAX, checkpoint_bytes: u64::MAX, reclaim_grace: day, ..settings() }
}

/// More records than a search for old ones passes over, and two checkpoints so that none of them is kept for cloud c.
async fn leave_cloud_c_behind(world: &World, process: &Process) {
    world.cloud("c").away.set(true);
    flush_singly(world, process, 100).await;
    process.checkpoint().await;
    flush_singly(world, process, 2).await;
    process.checkpoint().await;
}

/// The records of a cloud that jumped stayed for ever: its cursor had moved far past them, where no search for old ones found
/// them any more. When they were deleted, it was one by one, and a far cloud took minutes.
#[test]
fn a_cloud_that_jumps_is_soon_rid_of_all_its_old_records() {
    run(22, async |world| {
        world.settings.set(without_checkpoints());
        let process = world.start().await;
        flush_singly(&world, &process, 300).await;
        process.settle().await;
        leave_cloud_c_behind(&world, &process).await;
        assert_eq!(records(&world, "c"), (1..=300).collect());
        world.cloud("c").latency_ms.set(100);
        world.cloud("c").away.set(false);
        let (waited_ms, records_left) = jump(&world, &process).await;
        assert_eq!(records_left, BTreeSet::new());
        // 300 requests to find them and 300 to delete them, each of 100 ms.
        assert!(waited_ms < 15_000, "{waited_ms} ms");
        process.settle().await;
        world.cloud("c").check_all_closed();
    });
}

/// A step stores several records before it moves the cursor. When it was a cloud's first, the cloud has records and no cursor:
/// those stayed for ever.
#[test]
fn a_cloud_that_jumps_is_rid_of_what_a_step_that_broke_off_stored() {
    for settled in [0, 1, 5] {
        run(23, async |world| {
            world.settings.set(without_checkpoints());
            let process = world.start().await;
            flush_singly(&world, &process, settled).await;
            process.settle().await;
            world.cloud("c").away.set(true);
            flush_singly(&world, &process, 12).await;
            process.crash();
            world.cloud("c").away.set(false);
            let process = world.start().await;
            while records(&world, "c").len() < 12 {
                process.work(1).await;
            }
            process.crash();
            assert_eq!(cursor(&world, "c"), Seq(settled), "the cloud has more than its cursor says");
            let process = world.start().await;
            leave_cloud_c_behind(&world, &process).await;
            assert_eq!(records(&world, "c"), (1..=12).collect());
            world.cloud("c").away.set(false);
            let (_, records_left) = jump(&world, &process).await;
            assert_eq!(records_left, BTreeSet::new(), "{settled} records had settled");
        });
    }
}

/// Objects in a cloud but for stubs, of which one stays for each checkpoint.
fn objects(world: &World) -> usize {
    world.cloud("a").ids().len() - world.cloud("a").count(ObjectKind::Stub)
}

#[test]
fn overwriting_for_ever_does_not_grow_the_clouds_for_ever() {
    run(30, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        let mut most = 0;
        for round in 0..60 {
            for block in 0..64 {
                process.port.write(block * 3, Some(contents(&world)));
            }
            process.flush().await;
            process.work(10_000).await;
            if round == 20 {
                most = objects(&world);
            }
        }
        let now = objects(&world);
        assert!(now <= most + 10, "{most} objects after 20 rounds, {now} after 60");
        assert!(world.cloud("a").count(ObjectKind::Segment) < 30);
        let durable = process.port.durable_last();
        process.crash();
        assert_recovers(&world, &["a", "c"], durable).await;
    });
}

#[test]
fn objects_lost_in_a_crash_are_found_and_deleted() {
    run(31, async |world| {
        let process = world.start().await;
        for _ in 0..3 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        // The segments of the next window are stored; its record is not.
        scribble(&world, &process, 60);
        while world.cloud("a").count(ObjectKind::Segment) < 4 {
            process.work(1).await;
        }
        process.crash();
        let stored = world.cloud("a").count(ObjectKind::Segment);
        let referred = world.state.borrow().volumes[&VOLUME].head.seq.0;
        assert!(stored as u64 > referred, "an orphan was stored: {stored} segments, {referred} records");
        let process = world.start().await;
        process.flush().await;
        for _ in 0..3 {
            process.checkpoint().await;
            process.settle().await;
            process.work(60_000).await;
        }
        let left = world.cloud("a").count(ObjectKind::Segment);
        let records = world.state.borrow().volumes[&VOLUME].head.seq.0;
        assert!(left as u64 <= records, "{left} segments for {records} records");
        assert!(world.state.borrow().volumes[&VOLUME].ranges.len() <= 1, "old ranges are settled");
    });
}

#[test]
fn a_deleted_volume_is_gone_from_every_cloud_and_from_the_metadata() {
    run(32, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..12 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        process.settle().await;
        world.cloud("c").away.set(true);
        world.apply(Command::DeleteVolume { volume: VOLUME });
        process.work(300_000).await;
        let of_volume = |name: &str| world.cloud(name).ids().iter().filter(|id| id.volume == VOLUME).count();
        assert!(world.state.borrow().volumes.contains_key(&VOLUME), "cloud c still holds it");
        assert_eq!((of_volume("a"), of_volume("b")), (0, 0));
        assert!(of_volume("c") > 0);
        world.cloud("c").away.set(false);
        process.work(300_000).await;
        assert_eq!(of_volume("c"), 0);
        assert!(world.state.borrow().volumes.is_empty());
    });
}

#[test]
fn a_cloud_corrupted_at_random_is_found_out_and_the_volume_comes_back_whole() {
    run(40, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..15 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        process.settle().await;
        process.work(5000).await;
        let durable = process.port.durable_last();
        process.crash();
        let corrupted = world.cloud("b").corrupt(|id| id.number % 3 == 0);
        assert!(corrupted > 0);
        let recovered = world.recover(&CLOUDS, Verify::Full).await.unwrap();
        let head = recovered.state.volumes[&VOLUME].head;
        assert!(head.last >= durable);
        assert_eq!(world.image(&recovered.state, &CLOUDS).await, world.journal.image(head.last));
        let damaged = recovered.report.clouds.iter().find(|cloud| cloud.name == "b").unwrap();
        assert!(!damaged.corrupt.is_empty(), "{damaged:?}");
        for healthy in recovered.report.clouds.iter().filter(|cloud| cloud.name != "b") {
            assert!(healthy.corrupt.is_empty() && healthy.missing.is_empty(), "{healthy:?}");
        }
    });
}

#[test]
fn a_cloud_rolled_back_does_not_roll_the_volume_back() {
    run(41, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..10 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        let durable = process.port.durable_last();
        process.crash();
        world.cloud("a").wipe_after(ObjectKind::Record, 4);
        assert_recovers(&world, &CLOUDS, durable).await;
    });
}

#[test]
fn a_recovered_cluster_goes_on_and_can_be_recovered_again() {
    run(50, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..9 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        process.settle().await;
        process.crash();
        let recovered = world.recover(&CLOUDS, Verify::Present).await.unwrap();
        let last = recovered.state.volumes[&VOLUME].head.last;
        *world.state.borrow_mut() = recovered.state;
        let kept = usize::try_from(last.0).unwrap();
        world.journal.writes.borrow_mut().truncate(kept);
        world.look_with_keys();
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..9 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        process.settle().await;
        let durable = process.port.durable_last();
        process.crash();
        assert_recovers(&world, &["a", "c"], durable).await;
    });
}

#[test]
fn a_node_of_an_earlier_life_stops_for_good_and_deletes_nothing_more() {
    run(51, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..9 {
            scribble(&world, &process, 60);
            process.flush().await;
        }
        process.settle().await;
        let recovered = world.recover(&["a", "b"], Verify::Present).await.unwrap();
        let head = recovered.state.volumes[&VOLUME].head;
        // The old node knows nothing of it, and goes on for half a minute at most.
        process.work(60_000).await;
        let before: Vec<_> = CLOUDS.iter().map(|name| world.cloud(name).ids()).collect();
        scribble(&world, &process, 60);
        process.work(600_000).await;
        let after: Vec<_> = CLOUDS.iter().map(|name| world.cloud(name).ids()).collect();
        assert_eq!(before, after, "nothing is stored and nothing deleted");
        assert!(process.array.status().fenced);
        assert_eq!(world.image(&recovered.state, &CLOUDS).await, world.journal.image(head.last));
    });
}

#[test]
fn nothing_is_flushed_before_a_quorum_of_clouds_says_that_no_later_life_began() {
    run(52, async |world| {
        CLOUDS[1..].iter().for_each(|name| world.cloud(name).away.set(true));
        let process = world.start().await;
        scribble(&world, &process, 60);
        process.work(30_000).await;
        assert_eq!(world.cloud("a").count(ObjectKind::Segment), 0);
        world.cloud("b").away.set(false);
        process.flush().await;
    });
}

/// What some cloud has of the volume itself.
fn of_the_volume(world: &World) -> BTreeSet<(&str, ObjectId)> {
    let of = |name| world.cloud(name).ids().into_iter().filter(|id| id.volume == VOLUME).map(move |id| (name, id));
    CLOUDS.into_iter().flat_map(of).collect()
}

/// A recovery knows keys and sizes from the catalogue alone: what was flushed of a volume that no catalogue showed was lost
/// with the node, although it had been at d2.
#[test]
fn nothing_of_a_volume_is_stored_before_a_quorum_of_clouds_shows_it() {
    run(53, async |world| {
        world.state.borrow_mut().volumes.get_mut(&VOLUME).unwrap().described = 1;
        CLOUDS[1..].iter().for_each(|name| world.cloud(name).refused.set(Some(ObjectKind::Catalogue)));
        let process = world.start().await;
        scribble(&world, &process, 60);
        process.work(60_000).await;
        assert_eq!(CLOUDS.map(|name| world.cloud(name).count(ObjectKind::Catalogue)), [1, 0, 0]);
        assert_eq!(of_the_volume(&world), BTreeSet::new());
        world.cloud("b").refused.set(None);
        process.flush().await;
        assert_eq!(world.cloud("b").count(ObjectKind::Catalogue), 1);
        process.crash();
        assert_recovers(&world, &["b", "c"], Jseq(60)).await;
    });
}

/// The same for a volume that the clouds show as it was before.
#[test]
fn nothing_is_flushed_or_checkpointed_before_a_quorum_of_clouds_shows_the_volume_as_it_is() {
    run(54, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        scribble(&world, &process, 60);
        process.flush().await;
        process.settle().await;
        CLOUDS[1..].iter().for_each(|name| world.cloud(name).refused.set(Some(ObjectKind::Catalogue)));
        let entry = AclEntry { principal: "uid:7".into(), range: None, right: Right::Write };
        world.apply(Command::SetAcl { volume: VOLUME, entry });
        let before = of_the_volume(&world);
        let array = process.array.clone();
        let checkpoint = process.local.spawn_local(async move { array.checkpoint().await });
        process.work(30_000).await;
        assert_eq!(of_the_volume(&world), before, "no checkpoint");
        scribble(&world, &process, 60);
        process.work(30_000).await;
        assert_eq!(of_the_volume(&world), before, "no flush");
        world.cloud("c").refused.set(None);
        process.local.run_until(checkpoint).await.unwrap().unwrap();
        process.flush().await;
        assert_eq!(process.port.durable_last(), Jseq(120));
    });
}

/// A flush waited until the clouds showed the newest change of the volume; with changes that came faster than clouds take a
/// record of the catalogue it waited for ever.
#[test]
fn steady_changes_of_an_acl_hold_no_flush_up() {
    run(55, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        world.clouds.values().for_each(|cloud| cloud.latency_ms.set(200));
        scribble(&world, &process, 60);
        for change in 0..400 {
            let entry = AclEntry { principal: format!("uid:{change}"), range: None, right: Right::Write };
            world.apply(Command::SetAcl { volume: VOLUME, entry });
            process.work(50).await;
        }
        assert_eq!(process.port.durable_last(), Jseq(60));
    });
}

/// The records of other volumes had filled the metadata: the owner took that for the end of its epoch, and nothing of the
/// volume was flushed until the next start.
#[test]
fn a_flush_that_finds_no_room_for_its_record_goes_on_when_there_is_some() {
    run(56, async |world| {
        let process = world.start().await;
        process.publish_catalogue().await;
        let other = VolumeId([9; 16]);
        let record = RecordEntry {
            incarnation: Incarnation(1),
            record: vec![0; RECORD_BYTES_MAX].into(),
            hash: Hash::ZERO,
            objects: Vec::new(),
            first: Jseq(1),
            last: Jseq(1),
            epoch: Epoch(1),
        };
        let mut crowd = world.state.borrow().volumes[&VOLUME].clone();
        crowd.records.insert(Seq(1), record);
        world.state.borrow_mut().volumes.insert(other, crowd);
        scribble(&world, &process, 60);
        process.work(30_000).await;
        assert_eq!(process.port.durable_last(), Jseq(0));
        world.state.borrow_mut().volumes.remove(&other);
        process.work(5_000).await;
        assert_eq!(process.port.durable_last(), Jseq(60));
    });
}

/// Random work, faults, outages and crashes; at the end every pair of clouds gives back a prefix that reaches d2.
fn torment(seed: u64) {
    println!("seed {seed}");
    run(seed, async |world| {
        let mut process = world.start().await;
        process.publish_catalogue().await;
        world.raft_failures.set(world.rng.below(10));
        let mut durable = Jseq(0);
        for _ in 0..40 {
            let count = world.rng.below(60);
            scribble(&world, &process, count);
            for cloud in world.clouds.values() {
                cloud.failures.set(world.rng.below(20));
                cloud.latency_ms.set(1 + world.rng.below(300));
            }
            let away = CLOUDS[world.rng.index(3)];
            world.cloud(away).away.set(world.rng.below(3) == 0);
            match world.rng.below(6) {
                0 => {
                    for cloud in world.clouds.values() {
                        cloud.away.set(false);
                        cloud.failures.set(world.rng.below(5));
                    }
                    process.flush().await;
                    assert_eq!(process.port.durable_last(), world.journal.last());
                }
                1 => {
                    process.work(world.rng.below(2000)).await;
                    durable = durable.max(process.port.durable_last());
                    process.crash();
                    for cloud in world.clouds.values() {
                        cloud.away.set(false);
                        cloud.failures.set(0);
                    }
                    process = world.start().await;
                }
                _ => process.work(world.rng.below(12_000)).await,
            }
            durable = durable.max(process.port.durable_last());
        }
        process.work(world.rng.below(3000)).await;
        durable = durable.max(process.port.durable_last());
        process.crash();
        for cloud in world.clouds.values() {
            cloud.away.set(false);
            cloud.failures.set(0);
            cloud.check_all_closed();
        }
        let pair = PAIRS[world.rng.index(3)];
        assert_recovers(&world, &pair, durable).await;
    });
}

#[test]
fn whatever_happens_any_two_clouds_bring_back_a_prefix_that_reaches_d2() {
    for seed in 1000..1012 {
        torment(seed);
    }
}

#[test]
fn after_whatever_happened_the_clouds_become_the_same_again() {
    for seed in 2000..2004 {
        run(seed, async |world| {
            let mut process = world.start().await;
            for _ in 0..15 {
                scribble(&world, &process, 40);
                let away = CLOUDS[world.rng.index(3)];
                world.cloud(away).away.set(world.rng.below(2) == 0);
                process.work(world.rng.below(8000)).await;
                if world.rng.below(4) == 0 {
                    process.crash();
                    world.clouds.values().for_each(|cloud| cloud.away.set(false));
                    process = world.start().await;
                }
            }
            world.clouds.values().for_each(|cloud| cloud.away.set(false));
            process.flush().await;
            for _ in 0..4 {
                process.checkpoint().await;
                process.settle().await;
                process.work(120_000).await;
            }
            let live = |name: &str| {
                let kinds = [ObjectKind::Segment, ObjectKind::Record, ObjectKind::Stub];
                world.cloud(name).ids().into_iter().filter(|id| kinds.contains(&id.kind)).collect::<Vec<_>>()
            };
            assert_eq!(live("a"), live("b"), "seed {seed}");
            assert_eq!(live("b"), live("c"), "seed {seed}");
            let state = world.state.borrow().clone();
            let image = world.image(&state, &["c"]).await;
            assert_eq!(image, world.journal.image(world.journal.last()), "seed {seed}");
            assert!(image.keys().all(|block| *block < BlockIndex(BLOCKS)));
        });
    }
}
