//! Clusters brought back from their clouds and a key, and what becomes of them afterwards: whole nodes, with guests that compare
//! every block with a reference device.

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

use std::rc::Rc;

use cluster::{
    BLOCKS, CLOUDS, Cluster, Process,
    guest::{Guest, Reference},
    run,
    support::{Crash, CrashDisk},
};
use velum_node::{
    array::recover::{RecoverError, Recovered, Standing, Verify},
    keyring::{IDENTITY_NAME, ObjectId, ObjectKind, slots_name},
};
use velum_protocol::{
    admin::{Access, AclLine, Request, ResizeVolume},
    format::metadata::CheckpointRef,
    id::{Incarnation, Seq},
};

const PAIRS: [([&str; 2], &str); 3] = [(["a", "b"], "c"), (["b", "c"], "a"), (["a", "c"], "b")];

/// A volume with a history, and how much of it is at d2.
struct History {
    reference: Reference,
    durable: usize,
}

/// Some rounds of writes and flushes, with checkpoints between them.
async fn write_history(cluster: &Cluster, process: &Process, history: &mut History, rounds: u64) {
    let mut guest = process.connect("demo").await;
    for _ in 0..rounds {
        for _ in 0..8 {
            process.run(guest.ask(history.reference.any(&cluster.rng))).await.unwrap();
        }
        process.flush("demo").await.unwrap();
        history.durable = history.reference.len();
    }
}

/// A cluster with a volume written to for some rounds, all clouds caught up, then a tail that no cloud has.
async fn with_history(cluster: &Rc<Cluster>, rounds: u64) -> (Process, History) {
    let process = cluster.founded().await;
    let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
    write_history(cluster, &process, &mut history, rounds).await;
    process.converge().await;
    let mut guest = process.connect("demo").await;
    for _ in 0..3 {
        process.run(guest.ask(history.reference.any(&cluster.rng))).await.unwrap();
    }
    (process, history)
}

/// The recovered cluster, served; the volume is that after a prefix of the writes which reaches d2.
async fn serve(cluster: &Rc<Cluster>, recovered: &Recovered, history: &mut History) -> Process {
    cluster.adopt(recovered).await;
    let process = cluster.start().await;
    let mut guest = connect_patiently(&process, "demo").await;
    let image = process.run(guest.image()).await.unwrap();
    let prefix = history.reference.expect_prefix(&image, history.durable);
    history.reference.cut(prefix);
    process
}

/// A volume with a checkpoint opens once a cloud has answered.
async fn connect_patiently(process: &Process, export: &str) -> Guest {
    for _ in 0..100 {
        match process.run(Guest::connect(&process.ports, export)).await {
            Ok(guest) => return guest,
            Err(_) => process.work(500).await,
        }
    }
    panic!("volume {export} does not open");
}

/// Reads the whole volume and compares it with everything written.
async fn expect_all(process: &Process, reference: &Reference) {
    let mut guest = connect_patiently(process, "demo").await;
    let image = process.run(guest.image()).await.unwrap();
    assert_eq!(reference.expect_prefix(&image, reference.len()), reference.len());
}

fn expect_sound(recovered: &Recovered) {
    let lost: Vec<_> = recovered.report.volumes.iter().flat_map(|volume| &volume.lost).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn all_three_clouds_bring_back_the_last_d2_or_later() {
    for rounds in [0, 1, 3, 11] {
        run(10 + rounds, async |cluster| {
            let (process, mut history) = with_history(&cluster, rounds).await;
            process.crash(Crash::LoseAll);
            let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            assert!(!recovered.report.shows_damage(), "{:#?}", recovered.report);
            assert_eq!(recovered.report.incarnation, Incarnation(2));
            serve(&cluster, &recovered, &mut history).await;
        });
    }
}

#[test]
fn any_two_clouds_bring_back_the_last_d2_when_the_third_is_accepted_as_missing() {
    for (place, (pair, missing)) in PAIRS.into_iter().enumerate() {
        run(20 + place as u64, async |cluster| {
            let (process, mut history) = with_history(&cluster, 7).await;
            process.crash(Crash::LoseAll);
            let refused = cluster.recover(&pair, &[], Verify::Present).await.map(drop).unwrap_err();
            assert!(matches!(&refused, RecoverError::Missing { cloud, .. } if cloud == missing), "{refused}");
            let recovered = cluster.recover(&pair, &[missing], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            assert!(recovered.report.assumption.contains("1 of 3 clouds missing"), "{}", recovered.report.assumption);
            serve(&cluster, &recovered, &mut history).await;
        });
    }
}

#[test]
fn one_cloud_alone_is_not_enough_whatever_is_accepted() {
    run(30, async |cluster| {
        let (process, _) = with_history(&cluster, 2).await;
        process.crash(Crash::LoseAll);
        let refused = cluster.recover(&["a"], &["b", "c"], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::TooFew { given: 1, needed: 2, .. }), "{refused}");
    });
}

/// Everything in a cloud that the state a recovery would find names, in random order.
fn named_objects(cluster: &Cluster, recovered: &Recovered, cloud: &str) -> Vec<(String, Option<ObjectId>)> {
    let (volume, state) = recovered.state.volumes.iter().next().unwrap();
    let keys = cluster.keys_of(*volume);
    let checkpoint = state.checkpoint.as_ref();
    let (root, stub) = (checkpoint.map(|known| known.root.clone()), checkpoint.map_or(0, |known| known.number));
    let is_named = |id: &ObjectId| match id.kind {
        ObjectKind::Record => state.records.contains_key(&Seq(id.number)),
        ObjectKind::Root => root.as_ref().is_some_and(|root| root.number.0 == id.number),
        ObjectKind::Stub => id.number == stub,
        ObjectKind::Catalogue => id.number == recovered.state.catalogue.0,
        ObjectKind::Segment | ObjectKind::Page => true,
        ObjectKind::Claim => false,
    };
    let mut reachable: std::collections::BTreeSet<ObjectId> = cluster.cloud(cloud).ids();
    let live = cluster.cloud(cloud).closure_of(|id| {
        matches!(id.kind, ObjectKind::Record | ObjectKind::Root) && is_named(id) && id.volume == keys.volume()
    });
    reachable
        .retain(|id| is_named(id) && (live.contains(id) || !matches!(id.kind, ObjectKind::Segment | ObjectKind::Page)));
    let names = cluster.cloud(cloud).names();
    names.into_iter().filter(|(_, id)| id.is_none_or(|id| reachable.contains(&id))).collect()
}

fn report_kind(id: Option<ObjectId>, name: &str) -> &'static str {
    match id.map(|id| id.kind) {
        None if name == IDENTITY_NAME => "identity",
        None => "slots",
        Some(ObjectKind::Segment) => "segment",
        Some(ObjectKind::Page) => "page",
        Some(ObjectKind::Root) => "root",
        Some(ObjectKind::Stub) => "stub",
        Some(ObjectKind::Record) => "record",
        Some(ObjectKind::Catalogue) => "catalogue",
        Some(ObjectKind::Claim) => "claim",
    }
}

/// Damages `name` in a cloud in one of the ways clouds do.
#[test]
fn how_much_is_looked_at_is_the_operators_choice_and_reported() {
    run(39, async |cluster| {
        let (process, _) = with_history(&cluster, 6).await;
        process.crash(Crash::LoseAll);
        let clean = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
        let named = named_objects(&cluster, &clean, "a");
        let segments: Vec<&String> = named
            .iter()
            .filter(|(_, id)| id.is_some_and(|id| id.kind == ObjectKind::Segment))
            .map(|(name, _)| name)
            .collect();
        let notices = async |verify| {
            cluster.lose_claims();
            let recovered = cluster.recover(&CLOUDS, &[], verify).await.unwrap();
            (!recovered.report.volumes[0].lost.is_empty(), recovered.report.verified)
        };
        for cloud in CLOUDS {
            // As long as before: only who reads it notices.
            cluster.cloud(cloud).damage(segments[0], |bytes| bytes[0] ^= 1);
        }
        assert_eq!(notices(Verify::Chain).await, (false, "only what leads to the volumes' state"));
        assert_eq!(notices(Verify::Present).await, (false, "every object is there with its length"));
        assert_eq!(notices(Verify::Full).await, (true, "every object is read from every cloud and opened"));
        for cloud in CLOUDS {
            cluster.cloud(cloud).lose(segments[0]);
        }
        assert!(!notices(Verify::Chain).await.0, "what no one asks after is not missed");
        assert!(notices(Verify::Present).await.0);
    });
}

fn injure(cluster: &Cluster, cloud: &str, name: &str) {
    let rng = &cluster.rng;
    cluster.cloud(cloud).damage(name, |bytes| match rng.below(4) {
        0 => bytes.truncate(rng.index(bytes.len())),
        1 => bytes.push(0),
        _ => {
            let at = rng.index(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
    });
}

#[test]
fn damage_to_any_object_of_one_cloud_is_reported_and_costs_nothing() {
    for seed in 40..52 {
        run(seed, async |cluster| {
            let victim = CLOUDS[cluster.rng.index(3)];
            let (process, mut history) = with_history(&cluster, 6).await;
            process.crash(Crash::LoseAll);
            let clean = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
            assert!(!clean.report.shows_damage(), "{:#?}", clean.report);
            cluster.lose_claims();
            let mut injured: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
            for (name, id) in named_objects(&cluster, &clean, victim) {
                if cluster.rng.below(2) == 0 {
                    injure(&cluster, victim, &name);
                    *injured.entry(report_kind(id, &name)).or_default() += 1;
                }
            }
            let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            for cloud in &recovered.report.clouds {
                let expected = if cloud.name == victim { injured.clone() } else { Default::default() };
                assert_eq!(cloud.corrupt, expected, "cloud {} with {victim} injured: {:#?}", cloud.name, cloud.details);
                assert!(cloud.missing.is_empty(), "{:?}", cloud.details);
            }
            serve(&cluster, &recovered, &mut history).await;
        });
    }
}

#[test]
fn each_kind_of_object_may_be_damaged_or_lost_wholesale_in_one_cloud() {
    let kinds = ["identity", "slots", "catalogue", "stub", "root", "page", "record", "segment"];
    for (place, kind) in kinds.into_iter().enumerate() {
        for lost in [false, true] {
            run(60 + place as u64, async |cluster| {
                let (process, mut history) = with_history(&cluster, 6).await;
                process.crash(Crash::LoseAll);
                let mut count = 0;
                for (name, id) in cluster.cloud("b").names() {
                    if report_kind(id, &name) == kind {
                        if lost {
                            cluster.cloud("b").lose(&name)
                        } else {
                            injure(&cluster, "b", &name)
                        }
                        count += 1;
                    }
                }
                assert!(count > 0, "there is no {kind}");
                let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
                expect_sound(&recovered);
                let report = &recovered.report.clouds[1];
                let counts = if lost { &report.missing } else { &report.corrupt };
                assert!(counts.get(kind).is_some_and(|count| *count > 0), "{kind}, lost: {lost}: {report:#?}");
                serve(&cluster, &recovered, &mut history).await;
            });
        }
    }
}

#[test]
fn a_cloud_rolled_back_does_not_roll_the_volume_back() {
    for victim in CLOUDS {
        run(70, async |cluster| {
            let process = cluster.founded().await;
            let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
            write_history(&cluster, &process, &mut history, 3).await;
            process.converge().await;
            let earlier = cluster.cloud(victim).contents();
            write_history(&cluster, &process, &mut history, 6).await;
            process.converge().await;
            process.crash(Crash::LoseAll);
            cluster.cloud(victim).roll_back(&earlier);
            let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            let report = recovered.report.clouds.iter().find(|cloud| cloud.name == victim).unwrap();
            assert!(!report.missing.is_empty(), "what the cloud forgot is reported: {report:#?}");
            serve(&cluster, &recovered, &mut history).await;
        });
    }
}

/// How a cloud goes bad as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ruin {
    /// Everything is gone.
    Emptied,
    /// Every object has some bits flipped, or is cut, or too long.
    Hurt,
    /// Every object is random bytes as long as it was.
    Random,
    /// It is the cloud of another cluster now.
    Replaced,
}

const RUINS: [(Ruin, Standing); 4] = [
    (Ruin::Emptied, Standing::Empty),
    (Ruin::Hurt, Standing::Damaged),
    (Ruin::Random, Standing::Damaged),
    (Ruin::Replaced, Standing::Foreign),
];

/// The contents of the cloud of a cluster that has nothing to do with this one.
async fn foreign_contents() -> std::collections::BTreeMap<String, bytes::Bytes> {
    let other = Cluster::new(91);
    other.secret.set(std::array::from_fn(|place| u8::try_from(place * 5 + 3).unwrap()));
    let process = other.founded().await;
    process.flush("demo").await.unwrap();
    other.cloud("b").contents()
}

async fn ruin(cluster: &Cluster, cloud: &str, how: Ruin) {
    let names: Vec<String> = cluster.cloud(cloud).names().into_iter().map(|(name, _)| name).collect();
    match how {
        Ruin::Emptied => cluster.cloud(cloud).wipe(),
        Ruin::Hurt => names.iter().for_each(|name| injure(cluster, cloud, name)),
        Ruin::Random => {
            let rng = &cluster.rng;
            for name in &names {
                cluster
                    .cloud(cloud)
                    .damage(name, |bytes| bytes.iter_mut().for_each(|byte| *byte = rng.below(256) as u8));
            }
        }
        Ruin::Replaced => cluster.cloud(cloud).roll_back(&foreign_contents().await),
    }
}

/// A cloud that is found to hold nothing of the cluster is the faulty one of three: the operator was asked to accept it as
/// missing, although waiting could not have made it better, and a damaged identity kept the node from ever using it again.
#[test]
fn a_cloud_that_is_bad_as_a_whole_is_the_faulty_one_and_is_filled_again() {
    for (place, (how, standing)) in RUINS.into_iter().enumerate() {
        for (victim, verify) in [("a", Verify::Present), ("b", Verify::Full)] {
            run(80 + place as u64, async |cluster| {
                let (process, mut history) = with_history(&cluster, 6).await;
                process.crash(Crash::LoseAll);
                ruin(&cluster, victim, how).await;
                let ruined = cluster.cloud(victim).contents();
                let recovered = cluster.recover(&CLOUDS, &[], verify).await.unwrap();
                expect_sound(&recovered);
                let report = &recovered.report;
                assert!(report.shows_damage());
                assert!(report.assumption.contains("none of the others lies"), "{}", report.assumption);
                assert!(report.assumption.contains(&format!("({victim})")), "{}", report.assumption);
                for cloud in &report.clouds {
                    if cloud.name == victim {
                        assert_eq!(cloud.standing, standing, "{how:?} {cloud:#?}");
                        assert!(!cloud.why.is_empty() && cloud.authentic.is_empty(), "{cloud:#?}");
                        assert_eq!(cloud.unmended, 0, "{cloud:#?}");
                        assert_eq!(
                            cloud.corrupt.values().sum::<u64>() > 0,
                            standing == Standing::Damaged,
                            "{cloud:#?}"
                        );
                    } else {
                        assert_eq!(cloud.standing, Standing::Good);
                        assert!(cloud.missing.is_empty() && cloud.corrupt.is_empty(), "{cloud:#?}");
                    }
                }
                if standing != Standing::Damaged {
                    assert_eq!(cluster.cloud(victim).contents(), ruined, "recovery writes nothing there");
                }
                let process = serve(&cluster, &recovered, &mut history).await;
                write_history(&cluster, &process, &mut history, 2).await;
                if how == Ruin::Replaced {
                    process.work(60_000).await;
                    assert_eq!(
                        cluster.cloud(victim).contents(),
                        ruined,
                        "a cloud of another cluster is never written to"
                    );
                    // The operator gives the cluster a place of its own under the same URL.
                    cluster.cloud(victim).wipe();
                }
                expect_filled_again(&cluster, process, &mut history, victim).await;
            });
        }
    }
}

/// The cloud reaches the head, holds the same as the others, and is as good as they are for the next recovery.
async fn expect_filled_again(cluster: &Rc<Cluster>, process: Process, history: &mut History, cloud: &str) {
    process.converge().await;
    process.work(60_000).await;
    assert_eq!(cluster.differences(&process.state()), Default::default(), "all clouds hold the same");
    process.crash(Crash::LoseAll);
    cluster.cloud("c").wipe();
    let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
    expect_sound(&recovered);
    let report = recovered.report.clouds.iter().find(|report| report.name == cloud).unwrap();
    assert_eq!(report.standing, Standing::Good);
    assert!(report.corrupt.is_empty() && report.missing.is_empty(), "{report:#?}");
    serve(cluster, &recovered, history).await;
}

#[test]
fn two_bad_clouds_of_three_are_refused_each_with_its_reason_and_nothing_is_changed() {
    for (place, (left, _)) in RUINS.into_iter().enumerate() {
        for (right, _) in RUINS {
            run(800 + place as u64, async |cluster| {
                let (process, _) = with_history(&cluster, 2).await;
                process.crash(Crash::LoseAll);
                ruin(&cluster, "a", left).await;
                ruin(&cluster, "c", right).await;
                let before = cluster.contents();
                for accepted in [&[][..], &["a"], &["a", "c"]] {
                    let refused = cluster.recover(&CLOUDS, accepted, Verify::Full).await.map(drop).unwrap_err();
                    assert!(matches!(refused, RecoverError::TooFew { given: 1, needed: 2, .. }), "{refused}");
                    let told = refused.to_string();
                    assert!(told.contains("of cloud a, ") && told.contains("of cloud c, "), "{told}");
                }
                assert_eq!(cluster.contents(), before, "a recovery that stops changes nothing");
            });
        }
    }
}

/// With a damaged identity a cloud of good objects was read by the recovery, and then refused by the node for ever.
#[test]
fn damaged_key_objects_are_written_anew_so_that_the_node_takes_the_cloud() {
    for (place, lost) in [false, true].into_iter().enumerate() {
        for name in [IDENTITY_NAME.to_owned(), slots_name(1)] {
            run(900 + place as u64, async |cluster| {
                let (process, mut history) = with_history(&cluster, 4).await;
                process.crash(Crash::LoseAll);
                let good = cluster.cloud("b").contents()[&name].clone();
                if lost {
                    cluster.cloud("b").lose(&name)
                } else {
                    injure(&cluster, "b", &name)
                }
                let recovered = cluster.recover(&CLOUDS, &[], Verify::Present).await.unwrap();
                assert_eq!((recovered.report.clouds[1].mended, recovered.report.clouds[1].unmended), (1, 0));
                assert_eq!(cluster.cloud("b").contents()[&name], good);
                let process = serve(&cluster, &recovered, &mut history).await;
                expect_filled_again(&cluster, process, &mut history, "b").await;
            });
        }
    }
}

#[test]
fn a_cloud_that_is_no_cloud_of_the_cluster_cannot_be_accepted_as_missing() {
    run(95, async |cluster| {
        let (process, _) = with_history(&cluster, 2).await;
        process.crash(Crash::LoseAll);
        let before = cluster.contents();
        let refused = cluster.recover(&CLOUDS, &["d"], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::NotListed { .. }), "{refused}");
        assert!(refused.to_string().contains("a, b, c"), "{refused}");
        assert_eq!(cluster.contents(), before, "a recovery that stops changes nothing");
    });
}

#[test]
fn clouds_of_two_clusters_that_one_key_opens_are_not_mixed() {
    run(95, async |cluster| {
        let other = Cluster::new(96);
        let theirs = other.founded().await;
        theirs.flush("demo").await.unwrap();
        let (process, _) = with_history(&cluster, 2).await;
        process.crash(Crash::LoseAll);
        cluster.cloud("b").roll_back(&other.cloud("b").contents());
        let refused = cluster.recover(&CLOUDS, &["b"], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::TwoClusters(..)), "{refused}");
    });
}

#[test]
fn of_two_recoveries_at_once_at_most_one_goes_on() {
    let mut went_on = 0;
    for seed in 100..116 {
        run(seed, async |cluster| {
            let (process, mut history) = with_history(&cluster, 3).await;
            process.crash(Crash::LoseAll);
            let (left, right) = futures_util::future::join(
                cluster.recover(&CLOUDS, &[], Verify::Present),
                cluster.recover(&CLOUDS, &[], Verify::Present),
            )
            .await;
            let claimed = |outcome: &Result<Recovered, RecoverError>| matches!(outcome, Err(RecoverError::Claimed(_)));
            assert!(claimed(&left) || claimed(&right), "one of the two must lose");
            if let Ok(recovered) = left.or(right) {
                went_on += 1;
                serve(&cluster, &recovered, &mut history).await;
            } else {
                let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
                assert_eq!(recovered.state.incarnation, Incarnation(3), "a life that was claimed is not lived again");
                serve(&cluster, &recovered, &mut history).await;
            }
        });
    }
    eprintln!("{went_on} of 16 races had a winner");
}

#[test]
fn a_recovery_broken_off_at_any_point_can_be_repeated() {
    break_off_everywhere(None, 7);
}

/// Broken off while it replaces what is damaged, too.
#[test]
fn a_recovery_with_a_bad_cloud_broken_off_at_any_point_can_be_repeated() {
    break_off_everywhere(Some(Ruin::Hurt), 29);
    break_off_everywhere(Some(Ruin::Emptied), 29);
}

fn break_off_everywhere(bad: Option<Ruin>, step: usize) {
    for milliseconds in (1..).step_by(step) {
        let finished = run(120, async |cluster| {
            let (process, mut history) = with_history(&cluster, 5).await;
            process.crash(Crash::LoseAll);
            if let Some(how) = bad {
                ruin(&cluster, "b", how).await;
            }
            let first = cluster.recover(&CLOUDS, &[], Verify::Present);
            let finished =
                futures_util::future::select(Box::pin(first), Box::pin(cluster::clouds::pause(milliseconds))).await;
            let finished = matches!(finished, futures_util::future::Either::Left(_));
            let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            assert!(recovered.state.incarnation <= Incarnation(3));
            serve(&cluster, &recovered, &mut history).await;
            finished
        });
        if finished {
            break;
        }
    }
}

/// At rest every cloud is rid of what earlier lives left: only what the last two checkpoints name stays of it. It used to stay
/// for ever, for no ledger of the new life listed it: what the old one had condemned, what it had stored and not referred to
/// yet, and what only records and checkpoints named that the recovery did not see.
fn expect_no_litter(cluster: &Cluster, process: &Process) {
    let state = process.state();
    let volume = state.volumes.values().next().unwrap();
    let own =
        |known: &Option<CheckpointRef>| known.as_ref().is_some_and(|known| known.root.incarnation == state.incarnation);
    assert!(own(&volume.checkpoint) && own(&volume.previous_checkpoint), "a volume at rest makes its checkpoints");
    assert!(volume.condemned.keys().all(|(_, number)| number.0 > 0), "{:?}", volume.condemned);
    let roots: Vec<u64> = [&volume.checkpoint, &volume.previous_checkpoint]
        .into_iter()
        .flatten()
        .map(|known| known.root.number.0)
        .collect();
    for name in CLOUDS {
        let cloud = cluster.cloud(name);
        let live = cloud.closure_of(|id| {
            id.kind == ObjectKind::Root && id.incarnation == state.incarnation && roots.contains(&id.number)
        });
        let litter: Vec<_> = cloud
            .ids()
            .into_iter()
            .filter(|id| id.incarnation < state.incarnation && !live.contains(id))
            .filter(|id| !matches!(id.kind, ObjectKind::Stub | ObjectKind::Catalogue | ObjectKind::Claim))
            .collect();
        assert!(litter.is_empty(), "cloud {name}: {litter:?}");
    }
}

#[test]
fn a_recovered_cluster_lives_on_and_is_recovered_again_and_again() {
    for seed in 130..136 {
        run(seed, async |cluster| {
            let (process, mut history) = with_history(&cluster, 6).await;
            process.crash(Crash::LoseAll);
            for life in 2..=4 {
                let (pair, missing) = PAIRS[cluster.rng.index(3)];
                let recovered = cluster.recover(&pair, &[missing], Verify::Full).await.unwrap();
                expect_sound(&recovered);
                assert_eq!(recovered.state.incarnation, Incarnation(life));
                let process = serve(&cluster, &recovered, &mut history).await;
                let rounds = cluster.rng.below(9);
                write_history(&cluster, &process, &mut history, rounds).await;
                process.crash(Crash::Process);
                let process = cluster.start().await;
                expect_all(&process, &history.reference).await;
                history.durable = history.durable.min(history.reference.len());
                process.converge().await;
                process.work(60_000).await;
                let differences = cluster.differences(&process.state());
                assert!(differences.is_empty(), "life {life}: {differences:?}");
                expect_no_litter(&cluster, &process);
                process.crash(Crash::LoseAll);
            }
        });
    }
}

#[test]
fn a_cloud_that_was_away_through_a_recovery_is_brought_to_the_new_life() {
    for seed in 140..146 {
        run(seed, async |cluster| {
            let process = cluster.founded().await;
            let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
            write_history(&cluster, &process, &mut history, 2).await;
            cluster.cloud("c").away.set(cluster.rng.below(2) == 0);
            write_history(&cluster, &process, &mut history, 5).await;
            // Cloud c alone gets some more of the old life, which the recovery will not see.
            if !cluster.cloud("c").away.get() {
                process.converge().await;
                let [a, b] = ["a", "b"].map(|name| cluster.cloud(name));
                a.away.set(true);
                b.away.set(true);
                let mut guest = process.connect("demo").await;
                for _ in 0..5 {
                    process.run(guest.ask(history.reference.any(&cluster.rng))).await.unwrap();
                }
                let flush = process.flush("demo");
                let _ = futures_util::future::select(Box::pin(flush), Box::pin(cluster::clouds::pause(20_000))).await;
                a.away.set(false);
                b.away.set(false);
            }
            process.crash(Crash::LoseAll);
            cluster.cloud("c").away.set(true);
            let recovered = cluster.recover(&["a", "b"], &["c"], Verify::Full).await.unwrap();
            let process = serve(&cluster, &recovered, &mut history).await;
            write_history(&cluster, &process, &mut history, 5).await;
            cluster.cloud("c").away.set(false);
            process.converge().await;
            process.work(120_000).await;
            process.crash(Crash::LoseAll);
            cluster.cloud("a").wipe();
            let recovered = cluster.recover(&["b", "c"], &["a"], Verify::Full).await.unwrap();
            expect_sound(&recovered);
            assert!(recovered.report.clouds[1].missing.is_empty(), "{:#?}", recovered.report.clouds[1]);
            assert_eq!(recovered.state.incarnation, Incarnation(3));
            serve(&cluster, &recovered, &mut history).await;
        });
    }
}

/// A cloud that was away for many checkpoints came back with the root of an old one. The search for the roots of earlier lives
/// ended after so many checkpoints without one, and what the root names was deleted from under it.
#[test]
fn the_root_of_a_checkpoint_long_ago_goes_before_what_it_names() {
    for seed in 150..152 {
        run(seed, async |cluster| {
            let process = cluster.founded().await;
            let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
            write_history(&cluster, &process, &mut history, 6).await;
            process.converge().await;
            cluster.cloud("c").away.set(true);
            let mut guest = process.connect("demo").await;
            for _ in 0..140 * cluster.config.borrow().checkpoint.records {
                process.run(guest.ask(history.reference.any(&cluster.rng))).await.unwrap();
                process.flush("demo").await.unwrap();
            }
            history.durable = history.reference.len();
            process.crash(Crash::LoseAll);
            let recovered = cluster.recover(&["a", "b"], &["c"], Verify::Full).await.unwrap();
            let process = serve(&cluster, &recovered, &mut history).await;
            // The cloud itself sees to it that nothing it holds names what it has not.
            cluster.cloud("c").away.set(false);
            write_history(&cluster, &process, &mut history, 5).await;
            process.converge().await;
            process.work(120_000).await;
            expect_no_litter(&cluster, &process);
        });
    }
}

/// A record that was under way when a cloud was emptied came to the empty place, and then the machine was lost with all that
/// was known of the cloud. By then the record lay more than a thousand others below the floor.
#[test]
fn a_record_that_came_late_long_before_a_recovery_does_not_stay() {
    run(154, async |cluster| {
        let process = cluster.founded().await;
        let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
        write_history(&cluster, &process, &mut history, 6).await;
        process.converge().await;
        let head = |process: &Process| process.state().volumes.values().next().unwrap().head.seq.0;
        let number = head(&process) + 1;
        cluster.cloud("c").wipe();
        write_history(&cluster, &process, &mut history, 1).await;
        let is_late = |id: &ObjectId| id.kind == ObjectKind::Record && id.number == number;
        let late = cluster.cloud("a").names().into_iter().find(|(_, id)| id.as_ref().is_some_and(is_late)).unwrap().0;
        cluster.cloud("c").plant(&late, cluster.cloud("a").contents()[&late].clone());
        let mut guest = process.connect("demo").await;
        while head(&process) < number + 1_200 {
            process.run(guest.ask(history.reference.any(&cluster.rng))).await.unwrap();
            process.flush("demo").await.unwrap();
        }
        history.durable = history.reference.len();
        process.crash(Crash::LoseAll);
        let recovered = cluster.recover(&["a", "b"], &["c"], Verify::Full).await.unwrap();
        let process = serve(&cluster, &recovered, &mut history).await;
        write_history(&cluster, &process, &mut history, 5).await;
        process.converge().await;
        process.work(120_000).await;
        assert!(!cluster.cloud("c").ids().iter().any(is_late));
    });
}

/// Two clouds lacked the stubs of many checkpoints that the third had. A recovery from the two saw none of those checkpoints, and
/// the search for their roots in the third ended two numbers above the last one that it did see.
#[test]
fn the_root_of_a_checkpoint_that_the_recovery_did_not_see_goes_before_what_it_names() {
    for seed in 155..159 {
        run(seed, async |cluster| {
            let process = cluster.founded().await;
            let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
            write_history(&cluster, &process, &mut history, 6).await;
            process.converge().await;
            let refuse = |kind| ["a", "b"].map(|name| cluster.cloud(name).refused.set(kind));
            refuse(Some(ObjectKind::Stub));
            write_history(&cluster, &process, &mut history, 60).await;
            process.crash(Crash::LoseAll);
            cluster.cloud("c").away.set(true);
            // It had deleted records that the new life, which knows of no newer checkpoint, brings there again.
            cluster.cloud("c").deleted.borrow_mut().clear();
            refuse(None);
            let recovered = cluster.recover(&["a", "b"], &["c"], Verify::Full).await.unwrap();
            let process = serve(&cluster, &recovered, &mut history).await;
            // The cloud itself sees to it that nothing it holds names what it has not.
            cluster.cloud("c").away.set(false);
            write_history(&cluster, &process, &mut history, 5).await;
            process.converge().await;
            process.work(120_000).await;
            expect_no_litter(&cluster, &process);
        });
    }
}

/// A record that is authentic and not the one that the cluster agreed on, as a second head of the same sequence.
fn forge_fork(cluster: &Cluster, recovered: &Recovered, cloud: &str) {
    let (volume, state) = recovered.state.volumes.iter().next().unwrap();
    let keys = cluster.keys_of(*volume);
    let (seq, entry) = state.records.iter().next_back().unwrap();
    let opened = keys.open_record((entry.incarnation, *seq), &entry.record).unwrap();
    let epoch = keys.newest().unwrap();
    let forged = keys.seal_record(&[1; 32], epoch, (entry.incarnation, *seq), &opened.link, &opened.body);
    let name = cluster.keyring().object_name(&keys.id(ObjectKind::Record, entry.incarnation, seq.0));
    cluster.cloud(cloud).plant(&name, forged.stored);
}

#[test]
fn a_forked_sequence_stops_the_recovery() {
    run(150, async |cluster| {
        let (process, _) = with_history(&cluster, 6).await;
        process.crash(Crash::LoseAll);
        let clean = cluster.recover(&CLOUDS, &[], Verify::Present).await.unwrap();
        cluster.lose_claims();
        forge_fork(&cluster, &clean, "c");
        let refused = cluster.recover(&CLOUDS, &[], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::Fork { .. }), "{refused}");
        assert!(cluster.cloud("a").count(ObjectKind::Claim) == 0, "a recovery that stops claims nothing");
    });
}

/// The seq of the last record and the one before it, when both stand behind the checkpoint.
fn last_records(recovered: &Recovered) -> (Seq, Seq) {
    let state = recovered.state.volumes.values().next().unwrap();
    let mut seqs = state.records.keys().rev();
    (*seqs.next().unwrap(), *seqs.next().unwrap())
}

#[test]
fn a_gap_in_more_clouds_than_may_lie_stops_the_recovery() {
    run(160, async |cluster| {
        let (process, mut history) = with_history(&cluster, 7).await;
        process.crash(Crash::LoseAll);
        let clean = cluster.recover(&CLOUDS, &[], Verify::Present).await.unwrap();
        cluster.lose_claims();
        let (volume, _) = clean.state.volumes.iter().next().unwrap();
        let (last, missing) = last_records(&clean);
        let name = |seq: Seq| {
            cluster.keyring().object_name(&cluster.keys_of(*volume).id(ObjectKind::Record, Incarnation(1), seq.0))
        };
        for cloud in CLOUDS {
            cluster.cloud(cloud).lose(&name(missing));
        }
        let refused = cluster.recover(&CLOUDS, &[], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::Gap { .. }), "{refused}");
        // With the last record in one cloud only, that cloud lies and the sequence ends before: nothing there was at d2.
        cluster.cloud("a").lose(&name(last));
        cluster.cloud("b").lose(&name(last));
        let refused = cluster.recover(&["b", "c"], &["a"], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::Gap { .. }), "with a cloud missing none may lie: {refused}");
        let recovered = cluster.recover(&CLOUDS, &[], Verify::Full).await.unwrap();
        history.durable = 0;
        serve(&cluster, &recovered, &mut history).await;
    });
}

#[test]
fn without_a_catalogue_nothing_is_guessed() {
    run(170, async |cluster| {
        let (process, _) = with_history(&cluster, 3).await;
        process.crash(Crash::LoseAll);
        for cloud in CLOUDS {
            for (name, id) in cluster.cloud(cloud).names() {
                if id.is_some_and(|id| id.kind == ObjectKind::Catalogue) {
                    cluster.cloud(cloud).lose(&name);
                }
            }
        }
        let refused = cluster.recover(&CLOUDS, &[], Verify::Present).await.map(drop).unwrap_err();
        assert_eq!(refused, RecoverError::NoCatalogue);
    });
}

#[test]
fn a_wrong_key_recovers_nothing_and_says_so() {
    run(180, async |cluster| {
        let (process, _) = with_history(&cluster, 2).await;
        process.crash(Crash::LoseAll);
        let before = cluster.contents();
        cluster.secret.set(std::array::from_fn(|place| u8::try_from(place * 3 + 1).unwrap()));
        let refused = cluster.recover(&CLOUDS, &[], Verify::Present).await.map(drop).unwrap_err();
        assert!(matches!(refused, RecoverError::NoCluster(_)), "{refused}");
        assert_eq!(cluster.contents(), before, "a recovery that stops changes nothing");
    });
}

#[test]
fn volumes_made_deleted_and_resized_come_back_as_they_were() {
    run(190, async |cluster| {
        let process = cluster.founded().await;
        let mut reference = Reference::new(BLOCKS);
        process.create_volume("gone", 1 << 20).await.unwrap();
        process.create_volume("empty", 1 << 20).await.unwrap();
        let mut guest = process.connect("demo").await;
        for _ in 0..30 {
            process.run(guest.ask(reference.any(&cluster.rng))).await.unwrap();
        }
        process.flush("demo").await.unwrap();
        drop(guest);
        let mut gone = process.connect("gone").await;
        let mut other = Reference::new(256);
        process.run(gone.ask(other.write(0, 4))).await.unwrap();
        process.flush("gone").await.unwrap();
        process.run(gone.ask(other.write(0, 4))).await.unwrap();
        drop(gone);
        process.work(1000).await;
        process.admin(Request::DeleteVolume { name: "gone".into() }).await.unwrap();
        let resize = |size_bytes| Request::ResizeVolume {
            name: "demo".into(),
            resize: ResizeVolume { size_bytes, force: true },
        };
        // Cut, then grown again: what lay behind the cut is not there any more.
        process.admin(resize(2000 * 4096)).await.unwrap();
        process.admin(resize((BLOCKS + 800) * 4096)).await.unwrap();
        reference.trim(2000, BLOCKS - 2000);
        reference.grow(BLOCKS + 800);
        let line = AclLine { principal: "uid:7".into(), access: Access::Read, range: None };
        process.admin(Request::SetAcl { name: "demo".into(), line: line.clone() }).await.unwrap();
        process.flush("demo").await.unwrap();
        let lineage = process.state().volumes[&process.volume("demo")].lineage;
        process.crash(Crash::LoseAll);
        let recovered = cluster.recover(&["a", "b"], &["c"], Verify::Full).await.unwrap();
        expect_sound(&recovered);
        cluster.adopt(&recovered).await;
        let process = cluster.start().await;
        let names: Vec<String> = process.state().volumes.values().map(|volume| volume.name.clone()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&"empty".to_owned()) && names.contains(&"demo".to_owned()));
        let volume = process.state().volumes[&process.volume("demo")].clone();
        assert_eq!(volume.size_bytes, (BLOCKS + 800) * 4096);
        assert!(volume.lineage > lineage, "acked writes may be missing");
        assert!(volume.acl.iter().any(|entry| entry.principal == "uid:7"));
        expect_all(&process, &reference).await;
    });
}

#[test]
fn a_cloud_that_falls_silent_during_the_search_is_a_missing_one() {
    // Cloud c lags behind; a and b, which have all that is d2, stop answering at some point of the search.
    let mut refusals = 0;
    for milliseconds in (5..600).step_by(17) {
        run(200, async |cluster| {
            let process = cluster.founded().await;
            let mut history = History { reference: Reference::new(BLOCKS), durable: 0 };
            write_history(&cluster, &process, &mut history, 2).await;
            process.converge().await;
            cluster.cloud("c").away.set(true);
            write_history(&cluster, &process, &mut history, 8).await;
            process.crash(Crash::LoseAll);
            cluster.cloud("c").away.set(false);
            let silence = async {
                cluster::clouds::pause(milliseconds).await;
                cluster.cloud("a").away.set(true);
                cluster.cloud("b").away.set(true);
            };
            let (recovered, ()) =
                futures_util::future::join(cluster.recover(&CLOUDS, &[], Verify::Present), silence).await;
            cluster.cloud("a").away.set(false);
            cluster.cloud("b").away.set(false);
            match recovered {
                Ok(recovered) => drop(serve(&cluster, &recovered, &mut history).await),
                Err(error) => {
                    refusals += 1;
                    assert!(!matches!(error, RecoverError::Fork { .. }), "{error}");
                }
            }
        });
    }
    assert!(refusals > 0, "some of the silences came in the middle");
}

#[test]
fn a_disk_that_holds_a_node_is_not_written_over() {
    run(210, async |cluster| {
        let (process, _) = with_history(&cluster, 2).await;
        process.crash(Crash::Process);
        let recovered = cluster.recover(&CLOUDS, &[], Verify::Present).await.unwrap();
        let before = cluster.disk.borrow().image();
        let config = cluster.config.borrow().clone();
        let refused = velum_node::node::adopt(
            &cluster.lone_env(),
            &config,
            &recovered.identity,
            &recovered.keyring,
            &recovered.state,
        )
        .await
        .unwrap_err();
        assert!(matches!(refused, velum_node::node::StartError::AlreadyCreated(_)), "{refused}");
        assert_eq!(cluster.disk.borrow().image(), before);
        *cluster.disk.borrow_mut() = CrashDisk::new();
    });
}

#[test]
fn the_newest_slots_win_over_older_ones_under_any_name() {
    run(220, async |cluster| {
        let (process, mut history) = with_history(&cluster, 2).await;
        process.crash(Crash::LoseAll);
        let secret = cluster::secret(cluster.secret.get());
        let derivation = velum_protocol::format::slot::Derivation::Keyfile;
        let (generation, slots) =
            cluster.keyring().rewrap(&*cluster.lone_env().entropy, &[(&secret, derivation)]).unwrap();
        let old = cluster.cloud("a").contents()[&slots_name(1)].clone();
        cluster.cloud("b").plant(&slots_name(generation), slots);
        // Cloud a offers the old ones as a later generation.
        cluster.cloud("a").plant(&slots_name(generation + 1), old);
        let recovered = cluster.recover(&CLOUDS, &[], Verify::Present).await.unwrap();
        assert_eq!(recovered.identity.generation, generation);
        serve(&cluster, &recovered, &mut history).await;
    });
}
