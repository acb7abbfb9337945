//! The shipped journal on the simulated disk: the process dies, or the machine loses power, at any I/O, life after life.
//!
//! After each start the records of a stream must be contiguous, hold what was appended, reach at least to what was synced
//! (to what was submitted, when only the process died), and begin no later than after the last trim.

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "sizes are small numbers drawn here, and a test that meets the unexpected has failed"
)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::Path,
    rc::Rc,
};

use velum_node::journal::{Journal, JournalIdentity, JournalSettings, Position, Replay, StreamId};
use velum_protocol::id::{ClusterId, NodeId, VolumeId};
use velum_sim::{
    env::{self, Machine, Surroundings, disk::Loss, network::Wires},
    guest::connection::within,
    rng::Rng,
    runtime::{Life, Process, Sim, simulate},
};

const STREAMS: u64 = 3;

/// What is known of one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    appended: u64,
    submitted: u64,
    synced: u64,
    trimmed: u64,
}

fn stream(number: u64) -> StreamId {
    if number == 0 { StreamId::Raft } else { StreamId::Volume(VolumeId([number as u8; 16])) }
}

/// The body of a record: its length and bytes follow from its place and the life that wrote it.
fn body(number: u64, position: u64, life: u64) -> Vec<u8> {
    let rng = Rng::new(number << 48 | position << 8 | life, "body");
    let mut bytes = vec![0; rng.between(1, *rng.pick(&[100, 5_000, 30_000])) as usize];
    rng.fill(&mut bytes);
    bytes[0] = life as u8;
    bytes
}

struct World {
    sim: Rc<Sim>,
    around: Surroundings,
    machine: Machine,
    rng: Rng,
    streams: RefCell<BTreeMap<u64, Stream>>,
}

impl World {
    async fn open(&self, life: &Rc<Life>, number: u64) -> Option<(Rc<Journal>, Replay)> {
        let env = env::of(&self.around, &self.machine, life, number);
        let settings = JournalSettings { file_bytes: 128 << 10, files_at_start: 4, bytes_max: 1 << 20 };
        let identity = JournalIdentity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        drop(env.disk.create_dir_all(Path::new("/j")).await);
        match Journal::open(&env, Path::new("/j"), settings, identity).await {
            Ok(opened) => Some(opened),
            Err(error) => {
                assert!(!life.is_alive(), "a journal opens after any crash: {error}");
                None
            }
        }
    }

    /// One life: opens, checks, then works until the process ends.
    async fn live(self: Rc<Self>, life: Rc<Life>, number: u64, lost_power: bool, opened: Rc<Cell<bool>>) {
        let Some((journal, replay)) = self.open(&life, number).await else { return };
        opened.set(true);
        assert!(replay.damage.is_empty(), "a crash is no damage: {:?}", replay.damage);
        self.check(&replay, number, lost_power);
        loop {
            let which = self.rng.below(STREAMS);
            let mut stream_now = self.streams.borrow()[&which];
            match self.rng.below(10) {
                0..=5 if journal.has_room(64 << 10) => {
                    let at = Position { epoch: 1, number: stream_now.appended + 1 };
                    if journal.append(stream(which), at, &body(which, at.number, number)).is_ok() {
                        stream_now.appended += 1;
                        self.streams.borrow_mut().insert(which, stream_now);
                    }
                }
                6 => {
                    if journal.submit().is_ok() && life.is_alive() {
                        for stream in self.streams.borrow_mut().values_mut() {
                            stream.submitted = stream.appended;
                        }
                    }
                }
                7 => {
                    let before = self.streams.borrow().clone();
                    if journal.sync().await.is_ok() && life.is_alive() {
                        for (which, stream) in self.streams.borrow_mut().iter_mut() {
                            stream.synced = stream.synced.max(before[which].appended);
                            stream.submitted = stream.submitted.max(stream.synced);
                        }
                    }
                }
                _ => {
                    // Only what is durable is ever trimmed.
                    let through = self.rng.between(stream_now.trimmed, stream_now.synced.max(stream_now.trimmed));
                    if through > stream_now.trimmed {
                        journal.trim(stream(which), Position { epoch: 1, number: through });
                        stream_now.trimmed = through;
                        self.streams.borrow_mut().insert(which, stream_now);
                    }
                }
            }
            if self.rng.chance(100_000) {
                self.sim.sleep_ms(1).await;
            }
        }
    }

    fn check(&self, replay: &Replay, life: u64, lost_power: bool) {
        for (which, known) in self.streams.borrow_mut().iter_mut() {
            // Of what was trimmed anything may still be found, also with gaps; owners skip it.
            let mut records = replay.records.get(&stream(*which)).cloned().unwrap_or_default();
            records.retain(|(at, _)| at.number > known.trimmed);
            let mut last = None;
            for (at, bytes) in &records {
                assert!(
                    last.is_none_or(|last| at.number == last + 1),
                    "stream {which}: {} follows {last:?}",
                    at.number
                );
                last = Some(at.number);
                let written = (0..life).any(|life| bytes[..] == body(*which, at.number, life)[..]);
                assert!(written, "stream {which}: position {} holds what nobody wrote", at.number);
            }
            let promised = if lost_power { known.synced } else { known.submitted };
            if promised > known.trimmed {
                let first = records.first().map_or(u64::MAX, |(at, _)| at.number);
                assert!(first <= known.trimmed + 1, "stream {which} begins at {first}, trimmed was {}", known.trimmed);
                assert!(last >= Some(promised), "stream {which} ends at {last:?}, promised was {promised}");
            }
            let end = last.unwrap_or(0).max(known.trimmed);
            *known = Stream { appended: end, submitted: end, synced: end, trimmed: known.trimmed };
        }
    }
}

async fn lives(sim: Rc<Sim>, seed: u64) {
    let rng = Rng::new(seed, "lives");
    let wires = Wires::new(Rc::clone(&sim), rng.fork("network"));
    let around = Surroundings { sim: Rc::clone(&sim), wires, clouds: Rc::default() };
    let world = Rc::new(World {
        sim: Rc::clone(&sim),
        around,
        machine: Machine::new("machine"),
        rng: rng.fork("work"),
        streams: RefCell::new((0..STREAMS).map(|which| (which, Stream::default())).collect()),
    });
    let mut lost_power = false;
    for number in 1..=8 {
        let life = Rc::<Life>::default();
        let opened = Rc::new(Cell::new(false));
        // Early in a life the journal is being opened, and that may be cut short too.
        world.machine.medium.faults.end_after.set(Some(rng.below(*rng.pick(&[30, 300, 900]))));
        let main = Rc::clone(&world).live(Rc::clone(&life), number, lost_power, Rc::clone(&opened));
        let process = Process::start(&sim, Rc::clone(&life), main);
        // A life that breaks a promise panics and never ends.
        let _ended_or_late = within(&sim, 600_000, life.ended()).await;
        drop(process);
        sim.sleep_ms(5).await;
        world.machine.medium.faults.end_after.set(None);
        let loses_power = rng.chance(600_000);
        if loses_power {
            let loss = *rng.pick(&[Loss::KeepAll, Loss::LoseAll, Loss::Pages, Loss::Torn]);
            world.machine.medium.image.borrow_mut().crash(loss, &rng);
        } else {
            world.machine.medium.image.borrow_mut().drop_nameless();
        }
        // A life that never opened the journal passes on what the one before it left.
        lost_power = loses_power || (lost_power && !opened.get());
        if sim.has_failed() {
            return;
        }
    }
}

#[test]
fn the_journal_keeps_its_word_through_any_crash() {
    for seed in 0..150 {
        let run = simulate(seed, || None, move |sim| Box::pin(lives(sim, seed)));
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
    }
}
