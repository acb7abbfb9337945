//! Compaction in a whole array over three clouds in memory: how much the clouds hold after a volume was overwritten many times
//! over, and that no contents ever change by it, whatever fails and whenever the node crashes. Each relocation is compared
//! with the map at its own instant (see `array_world::port`).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that meets the unexpected has failed, and says where"
)]

mod array_world;

use std::{rc::Rc, time::Duration};

use array_world::{CLOUDS, Process, VOLUME, World, run, settings};
use bytes::Bytes;
use velum_node::{
    array::{ArraySettings, recover::Verify},
    keyring::ObjectKind,
};
use velum_protocol::id::{Jseq, Seq};

const PAIRS: [[&str; 2]; 3] = [["a", "b"], ["b", "c"], ["a", "c"]];

/// Blocks of the volume that guests write to.
const BLOCKS: u64 = 1000;

/// Blocks of one window.
const WINDOW: u64 = 50;

fn compacting(live_percent: u8) -> ArraySettings {
    ArraySettings { compact_live_percent: live_percent, reclaim_grace: Duration::from_secs(1), ..settings() }
}

fn overwrite(world: &World, process: &Process, blocks: u64, count: u64) {
    for _ in 0..count {
        let contents = Bytes::from(world.rng.next().to_le_bytes().repeat(512));
        process.port.write(world.rng.below(blocks), Some(contents));
    }
}

/// Bytes of segments in one cloud.
fn segment_bytes(world: &World, cloud: &str) -> u64 {
    world.cloud(cloud).bytes_of(ObjectKind::Segment)
}

/// Waits until nothing is done any more but by itself.
async fn rest(process: &Process) {
    for _ in 0..60 {
        process.work(5000).await;
    }
    process.settle().await;
}

async fn assert_recovers(world: &Rc<World>, from: &[&str], durable: Jseq) {
    let recovered = world.recover(from, Verify::Full).await.unwrap();
    let head = recovered.state.volumes[&VOLUME].head;
    assert!(head.last >= durable, "{from:?}: position {durable} is at d2, {} was recovered", head.last);
    let image = world.image(&recovered.state, from).await;
    assert_eq!(image, world.journal.image(head.last), "{from:?}: the image at position {}", head.last);
    assert!(recovered.report.volumes.iter().all(|volume| volume.lost.is_empty()), "{:?}", recovered.report);
}

/// Overwrites the volume at random 20 times its size; gives the bytes of segments in a cloud at the end.
async fn overwrite_for_long(world: &Rc<World>, live_percent: u8) -> u64 {
    world.settings.set(compacting(live_percent));
    let process = world.start().await;
    process.publish_catalogue().await;
    for block in 0..BLOCKS {
        process.port.write(block, Some(Bytes::from(vec![1; 4096])));
    }
    for _ in 0..20 * BLOCKS / WINDOW {
        overwrite(world, &process, BLOCKS, WINDOW);
        process.flush().await;
    }
    rest(&process).await;
    let state = world.state.borrow().clone();
    let image = world.image(&state, &["b"]).await;
    assert_eq!(image, world.journal.image(world.journal.last()));
    let held = CLOUDS.map(|cloud| segment_bytes(world, cloud));
    assert!(held.iter().all(|bytes| *bytes == held[0]), "the clouds agree: {held:?}");
    let holdings = process.array.holdings().unwrap();
    assert_eq!((holdings.live_bytes, holdings.stored_bytes), (BLOCKS * 4096, held[0]), "and the node knows");
    let durable = process.port.durable_last();
    process.crash();
    for pair in PAIRS {
        assert_recovers(world, &pair, durable).await;
    }
    held[0]
}

/// A segment with one live block of many stayed for ever: after overwriting a volume at random for long enough the clouds held
/// many times its size.
#[test]
fn a_volume_overwritten_twenty_times_holds_at_most_twice_its_live_bytes() {
    let live = BLOCKS * 4096;
    run(100, async |world| {
        let held = overwrite_for_long(&world, 50).await;
        assert!(held <= 2 * live + (192 << 10), "{held} bytes are held for {live} live ones");
    });
    run(100, async |world| {
        let held = overwrite_for_long(&world, 0).await;
        assert!(held > 3 * live, "without compaction {held} bytes are held for {live} live ones");
    });
}

/// One block per flush makes an object of 64 KiB for each 4 KiB.
#[test]
fn small_segments_are_put_together() {
    run(101, async |world| {
        world.settings.set(compacting(50));
        let process = world.start().await;
        process.publish_catalogue().await;
        for block in 0..200 {
            process.port.write(block * 3, Some(Bytes::from(vec![2; 4096])));
            process.flush().await;
        }
        rest(&process).await;
        let held = segment_bytes(&world, "a");
        assert!(held <= 2 * 200 * 4096 + (192 << 10), "{held} bytes are held");
        let state = world.state.borrow().clone();
        assert_eq!(world.image(&state, &["c"]).await, world.journal.image(world.journal.last()));
    });
}

#[test]
fn a_volume_at_rest_comes_to_rest() {
    run(102, async |world| {
        world.settings.set(compacting(80));
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..40 {
            overwrite(&world, &process, 100, 20);
            process.flush().await;
        }
        rest(&process).await;
        rest(&process).await;
        let head = process.array.status().head;
        process.work(3_600_000).await;
        assert_eq!(process.array.status().head, head, "an hour without a write is an hour without a record");
        assert!(process.port.relocations.get() > 0);
    });
}

/// With a cloud away for long, the others are compacted all the same; the one that returns gets what it lacks.
#[test]
fn a_cloud_that_was_away_during_compactions_comes_back_whole() {
    run(103, async |world| {
        world.settings.set(compacting(60));
        let process = world.start().await;
        process.publish_catalogue().await;
        overwrite(&world, &process, 300, 300);
        process.flush().await;
        process.settle().await;
        world.cloud("c").away.set(true);
        for _ in 0..60 {
            overwrite(&world, &process, 300, 40);
            process.flush().await;
            process.work(500).await;
        }
        assert!(process.port.relocations.get() > 0);
        world.cloud("c").away.set(false);
        rest(&process).await;
        let durable = process.port.durable_last();
        process.crash();
        world.cloud("c").check_all_closed();
        assert_recovers(&world, &["b", "c"], durable).await;
    });
}

/// Without clouds to read from or to store in, a step waits or is given up, and nothing else is the worse for it.
#[test]
fn what_a_step_stored_in_vain_is_deleted() {
    run(104, async |world| {
        world.settings.set(compacting(80));
        let process = world.start().await;
        process.publish_catalogue().await;
        for _ in 0..30 {
            overwrite(&world, &process, 200, 20);
            process.flush().await;
            // Gate 3's grants are taken back again and again: most steps store a segment for nothing.
            for _ in 0..40 {
                world.apply(velum_protocol::format::metadata::Command::RevokeFlush { volume: VOLUME });
                process.work(50).await;
            }
        }
        rest(&process).await;
        let holdings = process.array.holdings().unwrap();
        assert_eq!(segment_bytes(&world, "a"), holdings.stored_bytes, "nothing is left that nothing refers to");
        assert!(!process.array.status().fenced);
    });
}

/// Random overwriting, faults, outages and crashes under compaction that never rests.
fn torment(seed: u64) -> u64 {
    println!("seed {seed}");
    let relocations = Rc::new(std::cell::Cell::new(0));
    let counted = Rc::clone(&relocations);
    run(seed, async |world| {
        world.settings.set(compacting(80));
        let blocks = [20, 100, 400][world.rng.index(3)];
        let mut process = world.start().await;
        process.publish_catalogue().await;
        world.raft_failures.set(world.rng.below(10));
        let mut durable = Jseq(0);
        for _ in 0..50 {
            overwrite(&world, &process, blocks, world.rng.below(60));
            for cloud in world.clouds.values() {
                cloud.failures.set(world.rng.below(10));
                cloud.latency_ms.set(1 + world.rng.below(300));
            }
            let away = CLOUDS[world.rng.index(3)];
            world.cloud(away).away.set(world.rng.below(5) == 0);
            match world.rng.below(8) {
                0 => {
                    process.work(world.rng.below(3000)).await;
                    durable = durable.max(process.port.durable_last());
                    counted.set(counted.get() + process.port.relocations.get());
                    process.crash();
                    for cloud in world.clouds.values() {
                        cloud.away.set(false);
                        cloud.failures.set(0);
                    }
                    process = world.start().await;
                }
                _ => process.work(world.rng.below(4000)).await,
            }
            durable = durable.max(process.port.durable_last());
        }
        counted.set(counted.get() + process.port.relocations.get());
        process.crash();
        for cloud in world.clouds.values() {
            cloud.away.set(false);
            cloud.failures.set(0);
            cloud.check_all_closed();
        }
        assert!(world.state.borrow().volumes[&VOLUME].head.seq > Seq(0));
        assert_recovers(&world, &PAIRS[world.rng.index(3)], durable).await;
    });
    relocations.get()
}

#[test]
fn whatever_happens_under_compaction_any_two_clouds_bring_back_a_prefix_that_reaches_d2() {
    let relocations: u64 = (3000..3012).map(torment).sum();
    assert!(relocations > 50, "compaction was at work {relocations} times");
}
