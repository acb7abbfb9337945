//! Random histories against a reference device: requests of arbitrary bytes, completions in any order, windows, checkpoints,
//! crashes.
//!
//! Requests that touch a block take effect in the order they were handed in. So the reference keeps, per block, the
//! contents after each request in turn, and every read must show one of those the block can have had between the read's
//! call and its answer: nothing older than what was acked before, nothing newer than what was handed in.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::world::{BLOCKS, World};
use crate::volume::{
    machine::Input,
    messages::{Operation, Outcome},
};

const BLOCK: u64 = 4096;
/// Where requests fall: the start, and around the bound of two leaves of the map.
const PLACES: [u64; 2] = [0, 4090 * BLOCK];
const SPAN: u64 = 12 * BLOCK;

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, length: u64, fua: bool },
    Trim { at: u64, length: u64, fua: bool },
    Zero { at: u64, length: u64 },
    Read { at: u64, length: u64 },
    Barrier,
    EndBurst,
    Complete { which: usize, well: bool, whole: bool },
    Freeze,
    Commit,
    Durable,
    Checkpoint,
    Kill,
    PowerCut { keep: usize },
}

fn any_range() -> impl Strategy<Value = (u64, u64)> {
    let aligned = (0..SPAN / BLOCK, 1..6u64).prop_map(|(at, count)| (at * BLOCK, count * BLOCK));
    let ragged = (0..SPAN, 1..3 * BLOCK);
    (prop_oneof![aligned, ragged], 0..PLACES.len()).prop_map(|((at, length), place)| (PLACES[place] + at, length))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => (any_range(), prop::bool::weighted(0.1)).prop_map(|((at, length), fua)| Step::Write { at, length, fua }),
        4 => (any_range(), prop::bool::weighted(0.1)).prop_map(|((at, length), fua)| Step::Trim { at, length, fua }),
        3 => any_range().prop_map(|(at, length)| Step::Zero { at, length }),
        16 => any_range().prop_map(|(at, length)| Step::Read { at, length }),
        3 => Just(Step::Barrier),
        16 => Just(Step::EndBurst),
        24 => (any::<usize>(), prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(which, well, whole)| Step::Complete { which, well, whole }),
        6 => Just(Step::Freeze),
        6 => Just(Step::Commit),
        3 => Just(Step::Durable),
        3 => Just(Step::Checkpoint),
        1 => Just(Step::Kill),
        1 => any::<usize>().prop_map(|keep| Step::PowerCut { keep }),
    ]
}

/// What a block held after each request that touched it, and how far that is certain.
#[derive(Clone, Default)]
struct History {
    versions: Vec<Vec<u8>>,
    /// Versions up to here were acked.
    acked: usize,
    /// Versions up to here are at d1.
    synced: usize,
}

impl History {
    fn newest(&self) -> Vec<u8> {
        self.versions.last().cloned().unwrap_or_else(|| vec![0; BLOCK as usize])
    }

    fn version(&self, number: usize) -> Vec<u8> {
        number.checked_sub(1).map_or_else(|| vec![0; BLOCK as usize], |at| self.versions[at].clone())
    }
}

enum Asked {
    /// The version each touched block got.
    Change { versions: Vec<(u64, usize)>, fua: bool },
    /// The oldest version each touched block may show.
    Read { at: u64, length: u64, oldest: Vec<(u64, usize)> },
    /// The versions acked before it.
    Barrier { acked: Vec<(u64, usize)> },
}

struct Run {
    world: Option<World>,
    device: BTreeMap<u64, History>,
    asked: BTreeMap<u64, Asked>,
    next_tag: u64,
    answered: usize,
}

impl Run {
    fn new() -> Self {
        let mut run = Self {
            world: Some(World::new(40 * (BLOCK + 400))),
            device: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_tag: 1,
            answered: 0,
        };
        run.attach();
        run
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    fn attach(&mut self) {
        self.world().attach(1);
        self.world().attach(2);
    }

    fn tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    /// Puts a change into the reference and hands it in.
    fn change(&mut self, at: u64, bytes: &[u8], fua: bool, operation: Operation) {
        let end = at + bytes.len() as u64;
        let mut versions = Vec::new();
        for block in at / BLOCK..end.div_ceil(BLOCK) {
            let history = self.device.entry(block).or_default();
            let mut contents = history.newest();
            for (place, byte) in contents.iter_mut().enumerate() {
                let here = block * BLOCK + place as u64;
                if (at..end).contains(&here) {
                    *byte = bytes[(here - at) as usize];
                }
            }
            history.versions.push(contents);
            versions.push((block, history.versions.len()));
        }
        let tag = self.tag();
        self.asked.insert(tag, Asked::Change { versions, fua });
        self.world().submit(1 + tag % 2, tag, operation);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { at, length, fua } => {
                let mark = self.next_tag;
                let bytes: Vec<u8> = (0..length).map(|place| (mark * 31 + place / 64 + 1) as u8).collect();
                let payload = Bytes::from(bytes.clone());
                self.change(at, &bytes, fua, Operation::Write { offset: at, payload, fua });
            }
            Step::Trim { at, length, fua } => {
                let operation = Operation::Trim { offset: at, length, fua };
                self.change(at, &vec![0; length as usize], fua, operation);
            }
            Step::Zero { at, length } => {
                let operation = Operation::WriteZeroes { offset: at, length, no_hole: true, fua: false };
                self.change(at, &vec![0; length as usize], false, operation);
            }
            Step::Read { at, length } => {
                let tag = self.tag();
                let blocks = at / BLOCK..(at + length).div_ceil(BLOCK);
                let oldest = blocks.map(|block| (block, self.device.entry(block).or_default().acked)).collect();
                self.asked.insert(tag, Asked::Read { at, length, oldest });
                self.world().submit(1 + tag % 2, tag, Operation::Read { offset: at, length: length as u32 });
            }
            Step::Barrier => {
                let tag = self.tag();
                let acked = self.device.iter().map(|(block, history)| (*block, history.acked)).collect();
                self.asked.insert(tag, Asked::Barrier { acked });
                self.world().submit(1 + tag % 2, tag, Operation::Barrier);
            }
            Step::EndBurst => self.world().step(Input::EndBurst),
            Step::Complete { which, well, whole } => {
                let pending = self.world().pending.len();
                if pending > 0 {
                    self.world().complete(which % pending, well, whole);
                }
            }
            Step::Freeze => drop(self.world().freeze()),
            Step::Commit => drop(self.world().commit()),
            Step::Durable => self.world().become_durable(),
            Step::Checkpoint => self.world().checkpoint(),
            Step::Kill => self.restart(None),
            Step::PowerCut { keep } => self.restart(Some(keep)),
        }
        self.check_replies();
    }

    /// Holds the answers that came against the reference.
    fn check_replies(&mut self) {
        let replies = self.world.as_ref().unwrap().replies[self.answered..].to_vec();
        self.answered += replies.len();
        for (origin, outcome) in replies {
            match (self.asked.remove(&origin.tag).expect("a request is answered once"), outcome) {
                (Asked::Change { versions, fua }, Outcome::Done) => {
                    for (block, version) in versions {
                        let history = self.device.get_mut(&block).unwrap();
                        history.acked = history.acked.max(version);
                        if fua {
                            history.synced = history.synced.max(version);
                        }
                    }
                }
                (Asked::Barrier { acked }, Outcome::Done) => {
                    for (block, version) in acked {
                        let history = self.device.get_mut(&block).unwrap();
                        history.synced = history.synced.max(version);
                    }
                }
                (Asked::Read { at, length, oldest }, Outcome::Data(pieces)) => {
                    let bytes = pieces.concat();
                    assert_eq!(bytes.len() as u64, length);
                    for (block, oldest) in oldest {
                        self.check_block(at, &bytes, block, oldest);
                    }
                }
                (_, outcome) => panic!("request {} got {outcome:?}", origin.tag),
            }
        }
    }

    fn check_block(&self, at: u64, bytes: &[u8], block: u64, oldest: usize) {
        let from = at.max(block * BLOCK);
        let to = (at + bytes.len() as u64).min((block + 1) * BLOCK);
        let seen = &bytes[(from - at) as usize..(to - at) as usize];
        let within = (from - block * BLOCK) as usize..(to - block * BLOCK) as usize;
        let history = &self.device[&block];
        let shown = (oldest..=history.versions.len()).any(|version| history.version(version)[within.clone()] == *seen);
        assert!(shown, "block {block} showed what it cannot have held (acked {oldest} of {})", history.versions.len());
    }

    /// Kills the process; with a power cut only `keep` of the unsynced records survive.
    fn restart(&mut self, keep: Option<usize>) {
        let (keys, mut disk, outside, budget) = self.world.take().unwrap().kill();
        if let Some(keep) = keep {
            let unsynced = disk.records.len() - disk.synced;
            disk.records.truncate(disk.synced + keep % (unsynced + 1));
        }
        disk.synced = disk.records.len();
        self.world = Some(World::start(keys, disk, outside, budget).expect("the journal is whole"));
        self.attach();
        self.answered = 0;
        self.asked.clear();
        let blocks: Vec<u64> = self.device.keys().copied().collect();
        for block in blocks {
            let found = self.world().read_now(block * BLOCK, BLOCK as u32);
            let history = self.device.get_mut(&block).unwrap();
            let oldest = if keep.is_some() { history.synced } else { history.acked };
            let kept = (oldest..=history.versions.len()).any(|version| history.version(version) == found);
            assert!(kept, "block {block} lost what was {}", if keep.is_some() { "synced" } else { "acked" });
            // What is there is on disk as it was replayed, and at d1 by then.
            *history = History { versions: vec![found], acked: 1, synced: 1 };
        }
        self.answered = self.world.as_ref().unwrap().replies.len();
    }

    /// Everything gets through in the end, and the device reads as the reference says.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.world().step(Input::EndBurst);
            self.world().complete_all();
            let moved = self.world().freeze() | self.world().commit();
            self.world().become_durable();
            self.check_replies();
            if !moved && self.asked.is_empty() {
                break;
            }
        }
        assert!(self.asked.is_empty(), "{} requests were never answered", self.asked.len());
        let blocks: Vec<u64> = self.device.keys().copied().collect();
        for block in blocks {
            assert_eq!(
                self.world().read_now(block * BLOCK, BLOCK as u32),
                self.device[&block].newest(),
                "block {block}"
            );
        }
        assert_eq!(self.world().budget.bytes_used(), 0, "what was taken was given back");
        assert_eq!(self.world().read_now((BLOCKS - 1) * BLOCK, BLOCK as u32), vec![0; BLOCK as usize]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn reads_show_what_the_reference_device_can_have_held(steps in prop::collection::vec(any_step(), 1..160)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.finish();
    }
}
