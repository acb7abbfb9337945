//! Clouds that are emptied, exchanged, refuse to be written to or lose objects while the node runs: noticed, counted as away,
//! and brought back whole.

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

use std::{collections::BTreeSet, rc::Rc};

use cluster::{
    BLOCKS, CLOUDS, Cluster, Process,
    clouds::pause,
    guest::{Guest, Reference},
    run,
    support::Crash,
};
use futures_util::future::{Either, select};
use velum_node::{
    array::recover::Verify,
    keyring::{IDENTITY_NAME, ObjectId, ObjectKind},
};
use velum_protocol::{
    admin::{CloudState, CloudStatus, ProblemKind, Request, Response},
    format::metadata::{CloudName, Command},
};

/// A cluster with a volume written to and flushed for some rounds, with checkpoints, all clouds caught up.
async fn with_history(cluster: &Rc<Cluster>, rounds: u64) -> (Process, Reference) {
    let process = cluster.founded().await;
    let mut reference = Reference::new(BLOCKS);
    write(cluster, &process, &mut reference, rounds).await;
    process.converge().await;
    (process, reference)
}

/// Some rounds of writes, each flushed to the clouds.
async fn write(cluster: &Cluster, process: &Process, reference: &mut Reference, rounds: u64) {
    let mut guest = process.connect("demo").await;
    for _ in 0..rounds {
        for _ in 0..8 {
            process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
        }
        process.flush("demo").await.unwrap();
    }
}

async fn clouds(process: &Process) -> Vec<CloudStatus> {
    match process.admin(Request::ListClouds).await {
        Ok(Response::Clouds(clouds)) => clouds,
        other => panic!("{other:?}"),
    }
}

async fn state(process: &Process, cloud: &str) -> CloudState {
    clouds(process).await.into_iter().find(|status| status.name == cloud).unwrap().state
}

async fn resync(process: &Process, cloud: &str) -> Result<Response, velum_protocol::admin::Problem> {
    process.admin(Request::ResyncCloud { name: cloud.into() }).await
}

/// True when a flush is answered within some minutes.
async fn is_flushed(process: &Process) -> bool {
    let flush = Box::pin(process.node.admin("anonymous", Request::FlushVolume { name: "demo".into() }));
    matches!(process.run(select(flush, Box::pin(pause(200_000)))).await, Either::Left((Ok(_), _)))
}

/// The clouds of a pair bring back what the volume holds.
async fn assert_recovers(cluster: &Rc<Cluster>, reference: &Reference, pair: [&str; 2], missing: &str) {
    let recovered = cluster.recover(&pair, &[missing], Verify::Full).await.unwrap();
    assert!(recovered.report.volumes.iter().all(|volume| volume.lost.is_empty()), "{:?}", recovered.report);
    cluster.adopt(&recovered).await;
    let process = cluster.start().await;
    process.work(5_000).await;
    let mut guest = process.connect("demo").await;
    let image = process.run(guest.image()).await.unwrap();
    assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
}

/// An empty place was accepted: a window flushed to it and one other cloud counted as d2 and lay in one cloud only.
#[test]
fn nothing_is_cloud_durable_on_the_strength_of_a_cloud_that_was_emptied() {
    run(1, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 6).await;
        cluster.cloud("b").away.set(true);
        cluster.cloud("c").wipe();
        let mut guest = process.connect("demo").await;
        process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
        assert!(!is_flushed(&process).await, "it lies in cloud a alone");
        assert_eq!(state(&process, "c").await, CloudState::Emptied);
        cluster.cloud("b").away.set(false);
        assert!(is_flushed(&process).await);
    });
}

#[test]
fn an_emptied_cloud_is_noticed_also_when_nothing_is_written() {
    run(2, async |cluster| {
        let (process, _) = with_history(&cluster, 2).await;
        cluster.cloud("c").wipe();
        process.work(60_000).await;
        assert_eq!(state(&process, "c").await, CloudState::Emptied);
        let said = clouds(&process).await.into_iter().find(|cloud| cloud.name == "c").unwrap().last_error.unwrap();
        assert!(said.contains("velum cloud resync"), "{said}");
        let up = process
            .node
            .metrics()
            .render()
            .lines()
            .find(|line| line.starts_with("velum_cloud_up{cloud=\"c\"}"))
            .map(str::to_owned);
        assert_eq!(up.as_deref(), Some("velum_cloud_up{cloud=\"c\"} 0"));
    });
}

/// Of a cloud that begins anew by another node's word a node hears from the metadata alone; by its old cursors it would leave
/// the cloud empty.
#[test]
fn a_cloud_that_begins_anew_by_another_nodes_word_is_filled_by_this_one() {
    run(30, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 6).await;
        cluster.cloud("c").wipe();
        let resync = Command::ResyncCloud { cloud: CloudName("c".into()) };
        process.run(process.node.metadata().propose(resync)).await.unwrap();
        write(&cluster, &process, &mut reference, 2).await;
        process.converge().await;
        assert_eq!(state(&process, "c").await, CloudState::Up);
        process.crash(Crash::Process);
        assert_recovers(&cluster, &reference, ["a", "c"], "b").await;
    });
}

/// Whether or not the node was restarted meanwhile: an empty place is never taken for the old one before an operator says so.
#[test]
fn an_emptied_cloud_is_filled_anew_when_an_operator_says_so_and_not_before() {
    for (seed, restarted) in [(10, false), (11, true)] {
        run(seed, async |cluster| {
            let (mut process, mut reference) = with_history(&cluster, 12).await;
            cluster.cloud("c").wipe();
            write(&cluster, &process, &mut reference, 3).await;
            if restarted {
                process.crash(Crash::Process);
                process = cluster.start().await;
            }
            process.work(120_000).await;
            assert_eq!(state(&process, "c").await, CloudState::Emptied);
            assert!(!cluster.cloud("c").names().iter().any(|(name, _)| name == IDENTITY_NAME));
            let Response::Cloud(status) = resync(&process, "c").await.unwrap() else { panic!("no cloud") };
            assert!(status.lag_records > 0, "{status:?}");
            process.converge().await;
            assert_eq!(state(&process, "c").await, CloudState::Up);
            assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
            write(&cluster, &process, &mut reference, 3).await;
            process.converge().await;
            process.crash(Crash::Process);
            assert_recovers(&cluster, &reference, ["b", "c"], "a").await;
        });
    }
}

/// A record that was under way when a cloud was emptied came to the empty place. By the time the cloud was filled again the
/// checkpoint it was given lay more than a thousand records higher, and the record stayed there for ever.
#[test]
fn a_record_that_came_late_to_an_emptied_cloud_does_not_stay() {
    run(16, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 12).await;
        let head = process.state().volumes.values().next().unwrap().head.seq.0;
        cluster.cloud("c").wipe();
        write(&cluster, &process, &mut reference, 1).await;
        let is_late = |id: &ObjectId| id.kind == ObjectKind::Record && id.number == head + 1;
        let late = cluster.cloud("a").names().into_iter().find(|(_, id)| id.as_ref().is_some_and(is_late)).unwrap().0;
        let stored = cluster.cloud("a").contents()[&late].clone();
        cluster.cloud("c").plant(&late, stored);
        let mut guest = process.connect("demo").await;
        while process.state().volumes.values().next().unwrap().head.seq.0 < head + 1_200 {
            process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
            process.flush("demo").await.unwrap();
        }
        process.work(120_000).await;
        resync(&process, "c").await.unwrap();
        process.converge().await;
        process.work(60_000).await;
        assert!(!cluster.cloud("c").ids().iter().any(is_late));
    });
}

/// What nothing needed any more was deleted in an empty place that stood where a cloud had been, and was struck off the list.
/// When the right place was put back it was still there, and stayed for ever.
#[test]
fn what_is_deleted_in_a_wrong_place_is_deleted_again_in_the_right_one() {
    for seed in 17..21 {
        run(seed, async |cluster| {
            let (process, mut reference) = with_history(&cluster, 6).await;
            write(&cluster, &process, &mut reference, 6).await;
            let gone = || cluster.cloud("c").deleted.borrow().iter().filter(|id| id.kind == ObjectKind::Page).count();
            let before = gone();
            'until: for _ in 0..30 {
                write(&cluster, &process, &mut reference, 1).await;
                for _ in 0..2_000 {
                    if gone() > before {
                        break 'until;
                    }
                    process.work(1).await;
                }
            }
            assert!(gone() > before, "nothing is deleted");
            // Others are under way now, and come to the empty place.
            let right = cluster.cloud("c").contents();
            cluster.cloud("c").wipe();
            process.work(20_000).await;
            cluster.cloud("c").roll_back(&right);
            process.work(20_000).await;
            write(&cluster, &process, &mut reference, 3).await;
            process.converge().await;
            process.work(120_000).await;
            let [b, c] = ["b", "c"].map(|name| cluster.cloud(name).ids());
            let stays: Vec<_> = c.difference(&b).filter(|id| id.kind != ObjectKind::Stub).collect();
            assert!(stays.is_empty(), "{stays:?}");
        });
    }
}

/// A crash at any moment of a resync leaves nothing that the next start takes for more than it is.
#[test]
fn a_resync_that_is_broken_off_goes_on_with_the_next_start() {
    for milliseconds in [1, 20, 60, 120, 250, 500, 1_000] {
        run(20 + milliseconds, async |cluster| {
            let (process, mut reference) = with_history(&cluster, 12).await;
            cluster.cloud("c").wipe();
            process.work(60_000).await;
            let resync = Box::pin(process.node.admin("anonymous", Request::ResyncCloud { name: "c".into() }));
            drop(process.run(select(resync, Box::pin(pause(milliseconds)))).await);
            process.crash(Crash::Process);
            let process = cluster.start().await;
            process.work(60_000).await;
            if state(&process, "c").await == CloudState::Emptied {
                resync_again(&process).await;
            }
            write(&cluster, &process, &mut reference, 1).await;
            process.converge().await;
            assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
            process.crash(Crash::Process);
            assert_recovers(&cluster, &reference, ["a", "c"], "b").await;
        });
    }
}

async fn resync_again(process: &Process) {
    resync(process, "c").await.unwrap();
}

/// The disk of a cloud was not mounted for a while: the directory below was empty, and then everything was there again.
#[test]
fn a_cloud_whose_place_was_exchanged_for_a_while_is_brought_up_to_date_by_itself() {
    run(30, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 8).await;
        let contents = cluster.cloud("c").contents();
        cluster.cloud("c").wipe();
        write(&cluster, &process, &mut reference, 6).await;
        assert_eq!(state(&process, "c").await, CloudState::Emptied);
        cluster.cloud("c").roll_back(&contents);
        process.work(30_000).await;
        process.converge().await;
        assert_eq!(state(&process, "c").await, CloudState::Up);
        assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
        process.crash(Crash::Process);
        assert_recovers(&cluster, &reference, ["b", "c"], "a").await;
    });
}

/// What came back was an old copy: it held less than the cursor said.
#[test]
fn a_cloud_that_comes_back_with_less_than_it_had_is_made_whole() {
    run(31, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 3).await;
        let contents = cluster.cloud("c").contents();
        write(&cluster, &process, &mut reference, 9).await;
        process.converge().await;
        cluster.cloud("c").wipe();
        process.work(60_000).await;
        cluster.cloud("c").roll_back(&contents);
        process.work(30_000).await;
        process.converge().await;
        assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
        process.crash(Crash::Process);
        assert_recovers(&cluster, &reference, ["b", "c"], "a").await;
    });
}

#[test]
fn the_place_of_another_cluster_is_never_written_to() {
    run(40, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 2).await;
        let contents = cluster.cloud("c").contents();
        cluster.cloud("c").wipe();
        let mut other = contents[IDENTITY_NAME].to_vec();
        other[30] ^= 1;
        cluster.cloud("c").plant(IDENTITY_NAME, other.into());
        process.work(60_000).await;
        assert_eq!(state(&process, "c").await, CloudState::Foreign);
        let refused = resync(&process, "c").await.unwrap_err();
        assert_eq!(refused.kind, ProblemKind::Conflict, "{refused}");
        write(&cluster, &process, &mut reference, 3).await;
        assert_eq!(cluster.cloud("c").names().len(), 1, "nothing was put beside the other's identity");
        assert_eq!(resync(&process, "x").await.unwrap_err().kind, ProblemKind::NotFound);
        cluster.cloud("c").roll_back(&contents);
        process.work(30_000).await;
        process.converge().await;
        assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
    });
}

/// It counted as up and complete, and its lag alone told of it.
#[test]
fn a_cloud_that_takes_nothing_is_no_cloud_that_is_up() {
    run(50, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 2).await;
        for kind in [ObjectKind::Segment, ObjectKind::Record] {
            cluster.cloud("c").refused.set(Some(kind));
            write(&cluster, &process, &mut reference, 1).await;
            process.work(5_000).await;
            assert_eq!(state(&process, "c").await, CloudState::ReadOnly);
            cluster.cloud("c").refused.set(None);
            process.converge().await;
            assert_eq!(state(&process, "c").await, CloudState::Up);
        }
        assert!(clouds(&process).await.iter().all(|cloud| cloud.write_seconds.is_some()));
    });
}

/// An operator may ask for it at any time: for a cloud that lost some objects and still has its identity.
#[test]
fn a_resync_brings_back_what_a_cloud_lost() {
    run(60, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 12).await;
        for (name, id) in cluster.cloud("b").names() {
            // Records and roots all, for the watcher of the clouds holds those that are there to what they name.
            let refers = |kind| matches!(kind, ObjectKind::Record | ObjectKind::Root);
            if id.is_some_and(|id| refers(id.kind) || id.number % 2 == 0) {
                cluster.cloud("b").lose(&name);
            }
        }
        assert!(!cluster.differences(&process.state()).is_empty());
        resync(&process, "b").await.unwrap();
        process.converge().await;
        assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
        write(&cluster, &process, &mut reference, 2).await;
        process.converge().await;
        process.crash(Crash::Process);
        assert_recovers(&cluster, &reference, ["a", "b"], "c").await;
    });
}

/// Resyncs of every cloud in turn while guests write and another cloud is away.
#[test]
fn guests_notice_nothing_of_resyncs() {
    run(70, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 6).await;
        for cloud in CLOUDS {
            cluster.cloud(cloud).wipe();
            write(&cluster, &process, &mut reference, 2).await;
            process.work(40_000).await;
            resync(&process, cloud).await.unwrap();
            write(&cluster, &process, &mut reference, 2).await;
            process.converge().await;
            assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
        }
        let mut guest = process.connect("demo").await;
        let image = process.run(Guest::image(&mut guest)).await.unwrap();
        assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
    });
}

/// Every read was served from elsewhere, and the copy stayed as it was for ever.
#[test]
fn a_copy_that_a_read_finds_damaged_or_missing_is_repaired() {
    run(80, async |cluster| {
        let (process, reference) = with_history(&cluster, 6).await;
        let before = cluster.contents();
        process.crash(Crash::Process);
        for (name, id) in cluster.cloud("b").names() {
            match id {
                Some(id) if id.kind == ObjectKind::Segment && id.number % 2 == 0 => cluster.cloud("b").lose(&name),
                Some(id) if id.kind == ObjectKind::Segment => {
                    cluster.cloud("b").damage(&name, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1));
                }
                _ => {}
            }
        }
        // The others are slow, so that reads go to the bad one first.
        for cloud in ["a", "c"] {
            cluster.cloud(cloud).latency_ms.set(200);
        }
        let process = cluster.start().await;
        process.work(10_000).await;
        for _ in 0..4 {
            let mut guest = process.connect("demo").await;
            let image = process.run(guest.image()).await.unwrap();
            assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
            process.work(60_000).await;
        }
        let repaired = process.node.metrics().cloud("b").repaired.get();
        assert!(repaired > 0, "no copy was repaired");
        let after = cluster.cloud("b").contents();
        let wrong =
            before[1].iter().filter(|(name, stored)| after.get(*name).is_some_and(|now| now != *stored)).count();
        assert_eq!(wrong, 0, "of the copies that were read none is damaged any more; {repaired} were repaired");
    });
}

/// Seed 730000007: a start asks every cloud for the root of the checkpoint. A cloud that had not got it yet was repaired, and held
/// a root without its pages. (The watcher of the clouds asks of each root, when it comes, that all it names is there.)
#[test]
fn a_cloud_that_lags_is_not_given_a_root_before_its_pages() {
    run(81, async |cluster| {
        let (process, mut reference) = with_history(&cluster, 2).await;
        cluster.cloud("b").refused.set(Some(ObjectKind::Page));
        write(&cluster, &process, &mut reference, 8).await;
        process.work(5_000).await;
        process.crash(Crash::Process);
        for cloud in ["a", "c"] {
            cluster.cloud(cloud).latency_ms.set(200);
        }
        let process = cluster.start().await;
        process.work(60_000).await;
        cluster.cloud("b").refused.set(None);
        process.converge().await;
        assert_eq!(cluster.differences(&process.state()), BTreeSet::new());
    });
}
