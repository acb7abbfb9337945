//! Clouds and fetches of a node under everything that simulated clouds do to them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected has failed, and says where"
)]

use std::{cell::RefCell, collections::BTreeMap, future::Future, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_node::{
    cloud::{
        Cloud, CloudError, CloudSet, FetchError, Fetcher,
        identity::{Identity, Place, Standing},
    },
    config::CloudConfig,
    env::Env,
    keyring::{
        IDENTITY_NAME, Keyring, NewCluster, ObjectKind, ProviderSecret, VolumeKeys, create_cluster, new_keyfile,
    },
    metrics::{CloudOutcome, CloudRequest, CloudState, Metrics},
};
use velum_protocol::{
    checksum,
    format::{
        bind::{BlockFrame, FrameCodec},
        location::Frame,
        metadata::ObjectRef,
    },
    id::{BlockIndex, Incarnation, KeyEpoch, ObjectNumber, VolumeId},
};
use velum_sim::{
    env::{
        self, Machine, Surroundings,
        cloud::{Change, Lie, SimCloud},
        disk::Medium,
        network::Wires,
    },
    rng::Rng,
    runtime::{Life, Sim, simulate},
};

const VOLUME: VolumeId = VolumeId([7; 16]);
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A node's clouds, seen from both sides.
struct World {
    sim: Rc<Sim>,
    env: Env,
    real: Vec<Rc<SimCloud>>,
    set: CloudSet,
    metrics: Metrics,
    keyring: Keyring,
    keys: VolumeKeys,
    fetcher: Fetcher,
}

impl World {
    fn new(sim: &Rc<Sim>) -> Self {
        Self::with(sim, Place { may_be_new: true, is_shared: false })
    }

    fn with(sim: &Rc<Sim>, place: Place) -> Self {
        let real: Vec<_> = NAMES.iter().map(|name| SimCloud::new(Rc::clone(sim), name)).collect();
        let by_url: BTreeMap<_, _> = real.iter().map(|cloud| (cloud.name().to_owned(), Rc::clone(cloud))).collect();
        let wires = Wires::new(Rc::clone(sim), Rng::new(sim.seed(), "wires"));
        let around = Surroundings { sim: Rc::clone(sim), wires, clouds: Rc::new(by_url) };
        let machine = Machine {
            name: "node".into(),
            medium: Rc::new(Medium::default()),
            clock_offset_ms: 5,
            clock_rate_ppm: 0,
            repeats_entropy: false,
            compute_ms_max: 1,
        };
        let env = env::of(&around, &machine, &Rc::new(Life::default()), 1);
        let metrics = Metrics::new();
        let config =
            |name: &&str| CloudConfig { name: (*name).to_owned(), url: (*name).to_owned(), options: BTreeMap::new() };
        let configs: Vec<_> = NAMES.iter().map(config).collect();
        let secret = ProviderSecret::from_keyfile(0o600, new_keyfile(&*env.entropy).to_vec()).unwrap();
        let NewCluster { keyring, identity_object, slots_object } = create_cluster(&*env.entropy, &secret).unwrap();
        for cloud in &real {
            cloud.store(IDENTITY_NAME, identity_object.clone());
        }
        let identity = Identity { object: identity_object, slots: slots_object, generation: 1 };
        let set = CloudSet::open(&env, &configs, 2, (&identity, &|_| place), &metrics).unwrap();
        let wrapped = keyring.new_volume_keys(&*env.entropy, VOLUME, KeyEpoch(1));
        let keys = keyring.volume(VOLUME, &wrapped).unwrap();
        let fetcher = Fetcher::new(&env, &set, keyring.clone());
        Self { sim: Rc::clone(sim), env, real, set, metrics, keyring, keys, fetcher }
    }

    fn cloud(&self, number: usize) -> &Rc<Cloud> {
        &self.set.clouds[number]
    }

    fn requests(&self, number: usize, kind: CloudRequest, outcome: CloudOutcome) -> u64 {
        self.metrics.cloud(NAMES[number]).requests.of(kind).of(outcome).get()
    }

    fn requests_of_all(&self, kind: CloudRequest, outcome: CloudOutcome) -> u64 {
        (0..NAMES.len()).map(|number| self.requests(number, kind, outcome)).sum()
    }

    /// Puts an object with one frame of two blocks into all clouds.
    fn store_frame(&self, segment: u64) -> (Frame, String, Vec<u8>) {
        let frame = Frame {
            incarnation: Incarnation(1),
            segment: ObjectNumber(segment),
            frame: 3,
            offset: 100,
            key_epoch: KeyEpoch(1),
            start: BlockIndex(40),
            blocks: 2,
        };
        let binding = BlockFrame {
            cluster: self.keyring.cluster(),
            volume: VOLUME,
            key_epoch: frame.key_epoch,
            incarnation: frame.incarnation,
            segment: frame.segment,
            frame: frame.frame,
            start: frame.start,
            blocks: frame.blocks,
            codec: FrameCodec::Stored,
        };
        let plaintext = vec![u8::try_from(segment % 251).unwrap(); 8192];
        let sealed = self.keys.block.seal(&self.env.entropy.fresh32(), &binding.aad(), &plaintext);
        let object = [&[9; 100][..], &sealed, &[9; 50]].concat();
        let name = self.keyring.names().object(ObjectKind::Segment, VOLUME, frame.incarnation, segment);
        self.store_everywhere(&name, &object);
        (frame, name, plaintext)
    }

    fn store_everywhere(&self, name: &str, object: &[u8]) {
        for cloud in &self.real {
            cloud.store(name, Bytes::copy_from_slice(object));
        }
    }

    async fn read(&self, frame: &Frame) -> Result<Bytes, FetchError> {
        self.fetcher.frame(VOLUME, &self.keys, frame).await
    }

    /// Makes each cloud's read time known, so that no cloud is tried out.
    async fn get_acquainted(&self) {
        self.store_everywhere("known", b"x");
        for cloud in &self.set.clouds {
            for _ in 0..20 {
                cloud.get("known", 1).await.unwrap();
            }
        }
    }

    fn latency(&self, number: usize, ms: u64) {
        self.real[number].faults.latency_ms_min.set(ms);
        self.real[number].faults.latency_ms_max.set(ms);
    }

    fn away(&self, number: usize, until_ms: u64) {
        self.real[number].faults.away_until_ms.set(until_ms);
    }
}

/// Runs `main` in a world of its own; a failed assertion fails the test.
fn world<F: Future<Output = ()> + 'static>(seed: u64, main: impl FnOnce(Rc<World>) -> F + Send + 'static) {
    let run = simulate(
        seed,
        || None,
        |sim| {
            let world = Rc::new(World::new(&sim));
            Box::pin(main(world))
        },
    );
    assert!(run.failures.is_empty(), "{:#?}", run.failures);
    assert!(run.result.is_some());
}

#[test]
fn a_put_whose_answer_is_lost_is_done_all_the_same() {
    for seed in 0..20 {
        world(seed, |world| async move {
            world.real[0].faults.fail_after_ppm.set(400_000);
            world.real[0].faults.fail_before_ppm.set(100_000);
            for number in 0..5 {
                let (name, body) = (format!("object-{number}"), Bytes::from(vec![number; 1000]));
                if world.cloud(0).put(&name, body.clone()).await.is_ok() {
                    assert_eq!(world.real[0].bucket.borrow().pristine().get(&name), Some(&body));
                }
            }
        });
    }
}

#[test]
fn a_create_knows_its_own_earlier_attempt_from_somebody_elses_object() {
    for seed in 0..20 {
        world(seed, |world| async move {
            world.real[0].faults.fail_after_ppm.set(300_000);
            match world.cloud(0).create("mine", "mine".into()).await {
                Ok(()) | Err(CloudError::Away(_)) => {}
                Err(other) => panic!("my own object is not mine: {other}"),
            }
            world.real[0].faults.heal();
            assert_eq!(world.cloud(0).create("mine", "mine".into()).await, Ok(()));
            assert_eq!(world.cloud(0).create("mine", "hers".into()).await, Err(CloudError::Conflict));
            assert_eq!(world.cloud(0).create("mine", "mine, and longer".into()).await, Err(CloudError::Conflict));
            assert_eq!(world.cloud(0).create("mine", "me".into()).await, Err(CloudError::Conflict));
        });
    }
}

#[test]
fn a_cloud_that_loses_what_it_took_is_found_out() {
    world(1, |world| async move {
        let (sim, cloud) = (Rc::clone(&world.sim), Rc::downgrade(&world.real[0]));
        // Whatever is stored is gone at once.
        world.real[0].watch(Rc::new(move |_, change| {
            if let Change::Put { name, .. } = change {
                let (cloud, name) = (cloud.upgrade().unwrap(), (*name).to_owned());
                sim.later(0, move || cloud.erase(&name));
            }
        }));
        let stored = world.cloud(0).put("object", "body".into()).await;
        assert!(matches!(stored, Err(CloudError::Unverified(_))), "{stored:?}");
        assert!(world.cloud(0).health().missing >= 1);
    });
}

#[test]
fn requests_to_an_absent_cloud_end_and_its_health_says_so_until_it_is_back() {
    world(2, |world| async move {
        let watch = world.set.clone().watch(Rc::clone(&world.env.clock));
        let watch = tokio::task::spawn_local(watch);
        world.away(1, 60_000);
        let put = world.cloud(1).put("object", "body".into()).await;
        assert!(matches!(put, Err(CloudError::Away(_))), "{put:?}");
        assert!(world.sim.now_ms() < 2_000, "a cloud that refuses connections is given up soon");
        let health = world.cloud(1).health();
        assert!(health.state == CloudState::Away && health.last_error.is_some(), "{health:?}");
        world.cloud(1).show();
        assert_eq!(world.metrics.cloud("b").up.get(), 0);
        world.sim.sleep_ms(75_000).await;
        assert_eq!(world.cloud(1).state(), CloudState::Up, "it came back, and nobody needed to ask for it");
        world.cloud(1).show();
        assert_eq!(world.metrics.cloud("b").up.get(), 1);
        watch.abort();
    });
}

#[test]
fn a_cloud_that_never_answers_holds_nobody_for_ever() {
    world(3, |world| async move {
        world.real[0].faults.stalled_until_ms.set(u64::MAX / 2);
        let put = world.cloud(0).put("object", "body".into()).await;
        assert!(matches!(put, Err(CloudError::Away(_))), "{put:?}");
        assert!(world.sim.now_ms() < 40_000, "{} ms", world.sim.now_ms());
        assert_eq!(world.cloud(0).health().in_flight, 0);
    });
}

#[test]
fn a_throttling_cloud_gets_fewer_requests_and_all_are_done_in_the_end() {
    world(4, |world| async move {
        world.real[0].faults.throttle_ppm.set(500_000);
        let puts = (0..40).map(|number| {
            let world = Rc::clone(&world);
            async move {
                // The caller's long loop.
                let name = format!("object-{number}");
                while world.cloud(0).put(&name, "body".into()).await.is_err() {
                    world.sim.sleep_ms(500).await;
                }
            }
        });
        let shrunk = Rc::new(RefCell::new(16));
        let (watched, lowest) = (Rc::clone(&world), Rc::clone(&shrunk));
        let watch = tokio::task::spawn_local(async move {
            loop {
                let window = watched.cloud(0).health().window;
                lowest.replace_with(|lowest| (*lowest).min(window));
                watched.sim.sleep_ms(10).await;
            }
        });
        let relief = Rc::clone(&world);
        tokio::task::spawn_local(async move {
            relief.sim.sleep_ms(20_000).await;
            relief.real[0].faults.heal();
        });
        join_all(puts).await;
        watch.abort();
        assert!(*shrunk.borrow() < 8, "the window stayed at {}", shrunk.borrow());
        let bucket = world.real[0].bucket.borrow();
        assert_eq!(bucket.pristine().keys().filter(|name| name.starts_with("object-")).count(), 40);
    });
}

#[test]
fn a_frame_is_read_and_the_fastest_cloud_is_asked() {
    world(5, |world| async move {
        for (number, ms) in [(0, 40), (1, 5), (2, 40)] {
            world.latency(number, ms);
        }
        world.get_acquainted().await;
        let before = world.requests(1, CloudRequest::GetRange, CloudOutcome::Done);
        for segment in 0..10 {
            let (frame, _, plaintext) = world.store_frame(segment);
            assert_eq!(world.read(&frame).await.unwrap(), plaintext);
        }
        assert_eq!(world.requests(1, CloudRequest::GetRange, CloudOutcome::Done) - before, 10);
        assert_eq!(world.requests_of_all(CloudRequest::GetRange, CloudOutcome::Done), 10);
    });
}

#[test]
fn a_damaged_a_missing_and_an_absent_copy_are_passed_over() {
    world(6, |world| async move {
        world.get_acquainted().await;
        let (frame, name, plaintext) = world.store_frame(1);
        let mut damaged = world.real[0].bucket.borrow().pristine()[&name].to_vec();
        damaged[5000] ^= 1;
        world.real[0].store(&name, damaged.into());
        world.real[1].erase(&name);
        for _ in 0..20 {
            assert_eq!(world.read(&frame).await.unwrap(), plaintext);
        }
        let health = [0, 1].map(|number| world.cloud(number).health());
        assert!(health[0].damaged + health[1].missing > 0, "{health:?}");
        world.away(2, 10_000);
        let began = world.sim.now_ms();
        assert_eq!(world.read(&frame).await.unwrap(), plaintext, "it waits for the one good copy");
        assert!(world.sim.now_ms() >= 10_000 && began < 10_000);
    });
}

#[test]
fn bytes_of_another_frame_volume_or_place_are_never_given_out() {
    world(7, |world| async move {
        let (frame, name, _) = world.store_frame(1);
        let (_, other_name, _) = world.store_frame(2);
        // Every cloud serves an authentic object of another number under the name.
        let swapped = world.real[0].bucket.borrow().pristine()[&other_name].to_vec();
        world.store_everywhere(&name, &swapped);
        let lost = world.read(&frame).await;
        assert!(matches!(lost, Err(FetchError::Lost { missing: 0, damaged: 3, .. })), "{lost:?}");
        let (frame, _, _) = world.store_frame(1);
        for moved in [
            Frame { frame: 4, ..frame },
            Frame { start: BlockIndex(41), ..frame },
            Frame { offset: 101, ..frame },
            Frame { blocks: 1, ..frame },
        ] {
            assert!(world.read(&moved).await.is_err(), "{moved:?}");
        }
        let other_volume = world.fetcher.frame(VolumeId([8; 16]), &world.keys, &frame).await;
        assert!(matches!(other_volume, Err(FetchError::Lost { missing: 3, .. })), "{other_volume:?}");
    });
}

#[test]
fn a_slow_cloud_is_not_waited_for() {
    world(8, |world| async move {
        world.latency(0, 5);
        world.latency(1, 30);
        world.latency(2, 30);
        world.get_acquainted().await;
        world.latency(0, 5_000);
        let (frame, _, plaintext) = world.store_frame(1);
        let began = world.sim.now_ms();
        assert_eq!(world.read(&frame).await.unwrap(), plaintext);
        let took = world.sim.now_ms() - began;
        assert!(took < 200, "{took} ms");
        assert!(world.metrics.cloud("a").hedged.get() >= 1);
        // It has learned: the slow cloud comes last now, but for what the times of the others vary.
        world.sim.sleep_ms(1).await;
        let (frame, ..) = world.store_frame(2);
        for _ in 0..20 {
            world.read(&frame).await.unwrap();
        }
        let health = [0, 1].map(|number| world.cloud(number).health().read_time.unwrap());
        assert!(health[0] > health[1] * 9 / 10, "{health:?}");
    });
}

#[test]
fn many_readers_of_one_frame_make_one_request() {
    world(9, |world| async move {
        world.get_acquainted().await;
        let (frame, _, plaintext) = world.store_frame(1);
        let reads = join_all((0..50).map(|_| world.read(&frame))).await;
        assert!(reads.iter().all(|read| read.as_ref().is_ok_and(|bytes| *bytes == plaintext)));
        let requests: u64 = world.requests_of_all(CloudRequest::GetRange, CloudOutcome::Done);
        assert!(requests <= 2, "{requests} requests for one frame (one, or two when hedged)");
    });
}

#[test]
fn a_whole_object_is_given_out_only_when_its_hash_is_right() {
    world(10, |world| async move {
        let body = vec![3; 3 << 20];
        let object = ObjectRef {
            incarnation: Incarnation(1),
            number: ObjectNumber(9),
            bytes: 3 << 20,
            hash: checksum::hash(&body),
        };
        let name = world.keyring.names().object(ObjectKind::Page, VOLUME, Incarnation(1), 9);
        world.store_everywhere(&name, &body);
        let read = || world.fetcher.object(ObjectKind::Page, VOLUME, &object);
        assert!(read().await.unwrap() == body);
        for (number, wrong) in [(0, vec![4; 3 << 20]), (1, vec![3; (3 << 20) + 1]), (2, vec![3; (3 << 20) - 1])] {
            world.real[number].store(&name, wrong.into());
            let read = read().await;
            match number {
                2 => assert!(matches!(read, Err(FetchError::Lost { damaged: 3, .. })), "{read:?}"),
                _ => assert!(read.unwrap() == body, "copy {number} was taken"),
            }
        }
    });
}

#[test]
fn a_read_that_is_given_up_leaves_nothing_behind() {
    world(11, |world| async move {
        for number in 0..3 {
            world.real[number].faults.stalled_until_ms.set(1_000_000);
        }
        let (frame, ..) = world.store_frame(1);
        for _ in 0..200 {
            let mut read = Box::pin(world.read(&frame));
            assert!(futures_util::poll!(&mut read).is_pending());
            world.sim.sleep_ms(5).await;
        }
        let left: usize = world.set.clouds.iter().map(|cloud| cloud.health().in_flight + cloud.health().waiting).sum();
        assert_eq!(left, 0);
        assert!(world.env.clock.now().since(velum_node::env::Instant(0)) < Duration::from_secs(5));
    });
}

#[test]
fn reads_are_right_under_every_fault_at_once() {
    for seed in 100..130 {
        world(seed, |world| async move {
            let rng = Rng::new(world.sim.seed(), "test");
            let frames: Vec<_> = (0..8).map(|segment| world.store_frame(segment)).collect();
            for cloud in &world.real {
                cloud.faults.fail_before_ppm.set(100_000);
                cloud.faults.lost_ppm.set(20_000);
                cloud.faults.throttle_ppm.set(50_000);
            }
            world.real[0].bucket.borrow_mut().lie(&rng, 500_000, Lie::Flip);
            world.real[1].bucket.borrow_mut().lie(&rng, 300_000, Lie::Swap);
            for _ in 0..60 {
                let (frame, _, plaintext) = rng.pick(&frames);
                assert_eq!(world.read(frame).await.unwrap(), *plaintext);
                if rng.chance(100_000) {
                    let until = world.sim.now_ms() + rng.below(5_000);
                    world.away(usize::try_from(rng.below(3)).unwrap(), until);
                }
            }
        });
    }
}

#[test]
fn a_cloud_that_was_emptied_takes_nothing_until_it_begins_anew() {
    let run = simulate(
        31,
        || None,
        |sim| {
            Box::pin(async move {
                let world = World::new(&sim);
                let cloud = world.cloud(0);
                cloud.put("velum/x", Bytes::from_static(b"1")).await.unwrap();
                cloud.confirm().await.unwrap();
                world.real[0].empty(false);
                assert!(matches!(cloud.confirm().await, Err(CloudError::NotOurs(_))));
                assert_eq!(cloud.state(), CloudState::Emptied);
                assert!(matches!(cloud.put("velum/x", Bytes::from_static(b"1")).await, Err(CloudError::NotOurs(_))));
                assert!(cloud.enter().is_none());
                assert!(world.real[0].bucket.borrow().pristine().is_empty());
                let closed = cloud.close().await.unwrap();
                cloud.begin_anew(closed).await.unwrap();
                assert_eq!(cloud.state(), CloudState::Up);
                cloud.put("velum/x", Bytes::from_static(b"1")).await.unwrap();
                assert!(world.real[0].bucket.borrow().pristine().contains_key(IDENTITY_NAME));
            })
        },
    );
    assert!(run.failures.is_empty(), "{:?}", run.failures);
}

/// A node that started after a cloud was emptied, and whose metadata told of nothing in that, once made itself at home there.
/// The owner of a volume had stored segments there before, saw the identity in its place, and stored a record over them.
#[test]
fn a_place_that_others_use_too_is_not_taken_for_a_new_one() {
    let run = simulate(
        33,
        || None,
        |sim| {
            Box::pin(async move {
                let world = World::with(&sim, Place { may_be_new: true, is_shared: true });
                let (empty, cloud) = (world.cloud(0), world.cloud(1));
                world.real[0].empty(false);
                assert!(matches!(empty.put("velum/x", Bytes::from_static(b"1")).await, Err(CloudError::NotOurs(_))));
                assert_eq!((empty.standing(), empty.state()), (Standing::Unclaimed, CloudState::Emptied));
                assert!(world.real[0].bucket.borrow().pristine().is_empty());
                let closed = empty.close().await.unwrap();
                empty.begin_anew(closed).await.unwrap();
                assert_eq!(empty.state(), CloudState::Up, "it begins when all have agreed");

                cloud.confirm().await.unwrap();
                assert_eq!(cloud.standing(), Standing::Ours, "it holds the identity");
                let closed = cloud.close().await.unwrap();
                closed.expect_nothing();
                world.real[1].empty(true);
                drop(closed);
                assert!(cloud.confirm().await.is_err(), "another node claims it");
                world.real[1].put_back();
                cloud.confirm().await.unwrap();
                assert_eq!(cloud.state(), CloudState::Up, "nothing was believed of it");
            })
        },
    );
    assert!(run.failures.is_empty(), "{:?}", run.failures);
}

#[test]
fn a_place_that_is_back_is_not_believed_before_its_cursors_are_set_back() {
    let run = simulate(
        32,
        || None,
        |sim| {
            Box::pin(async move {
                let world = World::new(&sim);
                let cloud = world.cloud(0);
                cloud.confirm().await.unwrap();
                world.real[0].empty(true);
                assert!(cloud.confirm().await.is_err());
                world.real[0].put_back();
                assert!(matches!(cloud.confirm().await, Err(CloudError::NotOurs(_))));
                assert_eq!(cloud.state(), CloudState::Returned);
                assert!(cloud.enter().is_none());
            })
        },
    );
    assert!(run.failures.is_empty(), "{:?}", run.failures);
}

#[test]
fn a_cloud_is_closed_only_when_every_visit_has_ended() {
    let run = simulate(
        33,
        || None,
        |sim| {
            Box::pin(async move {
                let world = World::new(&sim);
                let cloud = world.cloud(0);
                let visit = cloud.enter().unwrap();
                let mut closing = Box::pin(cloud.close());
                assert!(futures_util::poll!(&mut closing).is_pending());
                assert!(cloud.enter().is_none(), "it lets nothing in meanwhile");
                assert!(matches!(cloud.head("velum/x").await, Err(CloudError::NotOurs(_))));
                assert!(cloud.close().await.is_none(), "somebody else is at it");
                drop(visit);
                drop(closing.await.unwrap());
                assert!(cloud.enter().is_some());
                // Given up before it was closed, it is open again.
                let visit = cloud.enter();
                let mut closing = Box::pin(cloud.close());
                assert!(futures_util::poll!(&mut closing).is_pending());
                drop(closing);
                assert!(cloud.enter().is_some());
                drop(visit);
            })
        },
    );
    assert!(run.failures.is_empty(), "{:?}", run.failures);
}

#[test]
fn a_cloud_that_refuses_changes_is_read_only_and_no_cloud_that_is_up() {
    let run = simulate(
        34,
        || None,
        |sim| {
            Box::pin(async move {
                let world = World::new(&sim);
                let cloud = world.cloud(0);
                cloud.put("velum/x", Bytes::from_static(b"1")).await.unwrap();
                world.real[0].faults.read_only_until_ms.set(u64::MAX);
                for _ in 0..3 {
                    assert!(matches!(cloud.put("velum/y", Bytes::from_static(b"1")).await, Err(CloudError::Denied(_))));
                    assert_eq!(cloud.get("velum/x", 9).await.unwrap(), "1");
                    assert_eq!(cloud.state(), CloudState::ReadOnly);
                }
                world.real[0].faults.heal();
                cloud.put("velum/y", Bytes::from_static(b"1")).await.unwrap();
                assert_eq!(cloud.state(), CloudState::Up);
            })
        },
    );
    assert!(run.failures.is_empty(), "{:?}", run.failures);
}
