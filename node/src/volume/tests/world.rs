//! A machine with a journal, clouds and a flusher around it that live in memory and answer when the test says so.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use velum_protocol::{
    checksum,
    format::{
        location::{FRAME_BLOCKS_MAX, Frame, RunUpdate},
        metadata::{AclEntry, ObjectRef, Right},
        page::Cut,
    },
    id::{
        BLOCK_LEN, BlockIndex, Epoch, Hash, Incarnation, Jseq, KeyEpoch, Lineage, ObjectNumber, Seq, SessionId,
        VolumeId,
    },
};

use crate::{
    actor::Machine,
    cache::{MemoryCache, gate::Gate},
    env::{Entropy, Instant},
    extent::ExtentMap,
    keyring::{KeySet, ProviderSecret, create_cluster},
    volume::{
        budget::DirtyBudget,
        machine::{Effect, FetchFailure, Fetched, Input, Parts, Room, Settings, VolumeMachine},
        messages::{Change, Committed, Moved, Operation, Origin, Outcome, Relocated, Request, Window},
        replay::{Lost, Replay, ReplayError, Start, Stored},
        sealing::{Owner, Sealer},
    },
};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(super) const LIFE: Incarnation = Incarnation(1);
/// Two leaves of the map and a bit.
pub(super) const BLOCKS: u64 = 8200;

#[derive(Default)]
pub(super) struct Counting(Cell<u64>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.set(self.0.get() + 1);
        blake3::Hasher::new().update(&self.0.get().to_le_bytes()).finalize_xof().fill(bytes);
    }
}

pub(super) fn keys() -> KeySet {
    let entropy = Counting::default();
    let secret = ProviderSecret::from_keyfile(0o600, entropy.fresh32().to_vec()).unwrap();
    let keyring = create_cluster(&entropy, &secret).unwrap().keyring;
    keyring.key_set(VOLUME, &[keyring.new_volume_keys(&entropy, VOLUME, KeyEpoch(1))]).unwrap()
}

/// The journal's room, set by the test.
pub(super) struct Tank(pub(super) Cell<u64>);

impl Room for Tank {
    fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.0.get()
    }
}

/// Something the machine asked for and that is not done yet.
#[derive(Debug)]
pub(super) enum Pending {
    Sync {
        through: Jseq,
        records: usize,
    },
    Frame {
        frame: Frame,
        wanted: u16,
    },
    Page {
        page: ObjectRef,
    },
    Room,
    /// Enough nodes have the records.
    Written {
        through: Jseq,
        chain: Hash,
    },
    /// Enough nodes say that nobody else is the owner.
    Confirm,
}

/// What survives a crash.
#[derive(Clone)]
pub(super) struct Disk {
    /// Records at d0, in order.
    pub(super) records: Vec<Stored>,
    /// How many of them are at d1.
    pub(super) synced: usize,
    /// Trimmed up to.
    pub(super) trimmed: (Epoch, Jseq),
}

/// What the cluster and the clouds know.
pub(super) struct Outside {
    pub(super) head: Start,
    pub(super) epoch: Epoch,
    pub(super) lineage: Lineage,
    pub(super) committed: Vec<Committed>,
    pub(super) durable: Jseq,
    frames: BTreeMap<(ObjectNumber, u32), Bytes>,
    pages: BTreeMap<ObjectNumber, Bytes>,
    next_object: u64,
}

pub(super) struct World {
    pub(super) keys: KeySet,
    pub(super) machine: VolumeMachine,
    sealer: Sealer,
    batch: Vec<Stored>,
    pub(super) disk: Disk,
    pub(super) outside: Outside,
    pub(super) pending: Vec<Pending>,
    pub(super) frozen: VecDeque<Arc<Window>>,
    pub(super) replies: Vec<(Origin, Outcome)>,
    pub(super) refusals: usize,
    pub(super) passed: u64,
    pub(super) woken: usize,
    /// Blocks offered to the disk cache because they lie elsewhere now.
    pub(super) moved: usize,
    pub(super) submits: usize,
    pub(super) budget: Rc<DirtyBudget>,
    pub(super) memory: Rc<RefCell<MemoryCache>>,
    pub(super) tank: Rc<Tank>,
    pub(super) now: Instant,
    /// Every append from now on fails.
    pub(super) journal_fails: bool,
    among_others: bool,
    budget_bytes: u64,
}

pub(super) fn everyone() -> Vec<AclEntry> {
    vec![AclEntry { principal: "*".to_owned(), range: None, right: Right::Write }]
}

impl World {
    pub(super) fn new(budget_bytes: u64) -> Self {
        let disk = Disk { records: Vec::new(), synced: 0, trimmed: (Epoch(0), Jseq(0)) };
        let outside = Outside {
            head: Start { last: Jseq(0), chain: Hash::ZERO },
            epoch: Epoch(0),
            lineage: Lineage(1),
            committed: Vec::new(),
            durable: Jseq(0),
            frames: BTreeMap::new(),
            pages: BTreeMap::new(),
            next_object: 1,
        };
        Self::start(keys(), disk, outside, budget_bytes).unwrap()
    }

    /// One whose journal other nodes keep too: d0 comes later, and reads are confirmed.
    pub(super) fn among_others(budget_bytes: u64) -> Self {
        let (keys, disk, outside, _) = Self::new(budget_bytes).kill();
        Self::open(keys, disk, outside, budget_bytes, true).unwrap()
    }

    /// A new life on what is left.
    pub(super) fn start(keys: KeySet, disk: Disk, outside: Outside, budget_bytes: u64) -> Result<Self, ReplayError> {
        Self::open(keys, disk, outside, budget_bytes, false)
    }

    fn open(
        keys: KeySet,
        disk: Disk,
        mut outside: Outside,
        budget_bytes: u64,
        among_others: bool,
    ) -> Result<Self, ReplayError> {
        outside.epoch = outside.epoch.next();
        let owner = Owner { epoch: outside.epoch, lineage: outside.lineage };
        let mut map = ExtentMap::empty(BLOCKS);
        for committed in &outside.committed {
            committed.segments.iter().for_each(|segment| map.add_segment(segment));
            committed.updates.iter().for_each(|update| map.apply(update).unwrap());
        }
        let budget = DirtyBudget::new(budget_bytes);
        // Small, so that blocks are evicted and fetched again.
        let memory = Rc::new(RefCell::new(MemoryCache::new(40 << 10)));
        let tank = Rc::new(Tank(Cell::new(1 << 40)));
        let replay = Replay::plan(outside.head, owner, disk.records.clone(), &Lost::default())?;
        let mut machine = VolumeMachine::new(Parts {
            id: VOLUME,
            settings: Settings {
                flush_bytes: 64 << 10,
                read_ahead_bytes: 64 << 10,
                map_bytes: 0,
                record_blocks_max: 256,
                confirm_reads: among_others,
            },
            size_blocks: BLOCKS,
            gate: Gate::compile(&everyone(), 1),
            map,
            epoch: owner.epoch,
            last: outside.head.last,
            chain: outside.head.chain,
            durable: outside.durable,
            epochs: replay.epochs.clone(),
            memory: Rc::clone(&memory),
            budget: Rc::clone(&budget),
            room: Rc::clone(&tank) as Rc<dyn Room>,
        });
        let chain = replay.run(Instant(0), &keys, &mut machine)?;
        let sealer = Sealer::new(&keys, owner, Rc::new(Counting(Cell::new(outside.epoch.0 << 32))), chain).unwrap();
        Ok(Self {
            keys,
            machine,
            sealer,
            batch: Vec::new(),
            disk,
            outside,
            pending: Vec::new(),
            frozen: VecDeque::new(),
            replies: Vec::new(),
            refusals: 0,
            passed: 0,
            woken: 0,
            moved: 0,
            submits: 0,
            budget,
            memory,
            tank,
            now: Instant(1_000),
            journal_fails: false,
            among_others,
            budget_bytes,
        })
    }

    /// The process is killed: what was submitted is there. Gives what a new life starts from.
    pub(super) fn kill(self) -> (KeySet, Disk, Outside, u64) {
        (self.keys, self.disk, self.outside, self.budget_bytes)
    }

    pub(super) fn attach(&mut self, session: u64) {
        self.step(Input::Attach { session: SessionId(session), principal: Box::from("anonymous"), attachment: None });
    }

    pub(super) fn submit(&mut self, session: u64, tag: u64, operation: Operation) {
        let origin = Origin { session: SessionId(session), tag };
        self.step(Input::Request(Request { origin, operation }));
    }

    /// Submits one request as a burst of its own.
    pub(super) fn ask(&mut self, session: u64, tag: u64, operation: Operation) {
        self.submit(session, tag, operation);
        self.step(Input::EndBurst);
    }

    /// Steps the machine as its actor would: effects first, then what they led to.
    pub(super) fn step(&mut self, input: Input) {
        let mut waiting = VecDeque::from([input]);
        while let Some(input) = waiting.pop_front() {
            self.now = Instant(self.now.0 + 1);
            let mut effects = Vec::new();
            self.machine.step(self.now, input, &mut effects);
            for effect in effects {
                waiting.extend(self.perform(effect));
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Append(record) => {
                if self.journal_fails {
                    return Some(Input::JournalFailed);
                }
                let (epoch, jseq) = (self.outside.epoch, record.jseq);
                let sealed = Bytes::copy_from_slice(self.sealer.seal(&record));
                self.batch.push(Stored { epoch, jseq, record: sealed });
            }
            Effect::Submit { through } => {
                if self.journal_fails {
                    return Some(Input::JournalFailed);
                }
                assert_eq!(self.batch.last().map(|record| record.jseq), Some(through), "submits what was appended");
                self.submits += 1;
                self.disk.records.append(&mut self.batch);
                let chain = self.sealer.chain();
                if self.among_others {
                    self.pending.push(Pending::Written { through, chain });
                    return Some(Input::Sealed { through, chain });
                }
                return Some(Input::Submitted { through, chain });
            }
            Effect::Sync { through } => self.pending.push(Pending::Sync { through, records: self.disk.records.len() }),
            Effect::Confirm { .. } => self.pending.push(Pending::Confirm),
            Effect::Reply(reply) => self.replies.push((reply.origin, reply.outcome)),
            Effect::FetchFrame { frame, wanted, .. } => self.pending.push(Pending::Frame { frame, wanted }),
            Effect::FetchPage { page, .. } => self.pending.push(Pending::Page { page }),
            Effect::Keep(_) => {}
            Effect::Moved(blocks) => self.moved += blocks.len(),
            Effect::WakeFlush => self.woken += 1,
            Effect::WakeWaiting => return Some(Input::Room),
            Effect::Press => return Some(Input::Pressure),
            Effect::AwaitRoom { .. } => self.pending.push(Pending::Room),
            Effect::TrimJournal { epoch, through } => {
                self.disk.trimmed = (epoch, through);
                let before = self.disk.records.len();
                self.disk.records.retain(|record| (record.epoch, record.jseq) > (epoch, through));
                self.disk.synced = self.disk.synced.saturating_sub(before - self.disk.records.len());
                let gone = before - self.disk.records.len();
                for pending in &mut self.pending {
                    if let Pending::Sync { records, .. } = pending {
                        *records = records.saturating_sub(gone);
                    }
                }
            }
            Effect::Passed { requests } => self.passed += requests,
            Effect::Refused { .. } => self.refusals += 1,
        }
        None
    }

    /// Completes something pending. `well` = false: the clouds do not answer this time; `whole`: a frame comes whole.
    pub(super) fn complete(&mut self, index: usize, well: bool, whole: bool) {
        let input = match self.pending.swap_remove(index) {
            Pending::Sync { through, records } => {
                self.disk.synced = self.disk.synced.max(records);
                Input::Synced { through }
            }
            Pending::Frame { frame, .. } if !well => Input::Fetched { frame, result: Err(FetchFailure::Unavailable) },
            Pending::Frame { frame, wanted } => {
                let plaintext = self.outside.frames.get(&(frame.segment, frame.frame)).unwrap().clone();
                let block = |block: u16| plaintext.slice(usize::from(block) * BLOCK_LEN..).slice(..BLOCK_LEN);
                let fetched = if whole {
                    Fetched::Frame(plaintext.clone())
                } else {
                    Fetched::Blocks(
                        (0..frame.blocks).filter(|at| wanted >> at & 1 == 1).map(|at| (at, block(at))).collect(),
                    )
                };
                Input::Fetched { frame, result: Ok(fetched) }
            }
            Pending::Page { page } if !well => Input::PageFetched { page, result: Err(FetchFailure::Unavailable) },
            Pending::Page { page } => {
                let payload = self.outside.pages.get(&page.number).unwrap().clone();
                Input::PageFetched { page, result: Ok(payload) }
            }
            Pending::Room => Input::Room,
            Pending::Written { through, chain } => Input::Submitted { through, chain },
            Pending::Confirm => Input::Confirmed,
        };
        self.step(input);
    }

    /// Answers a fetch: nobody has it.
    pub(super) fn lose(&mut self, index: usize) {
        let result = FetchFailure::Lost;
        let input = match self.pending.swap_remove(index) {
            Pending::Frame { frame, .. } => Input::Fetched { frame, result: Err(result) },
            Pending::Page { page } => Input::PageFetched { page, result: Err(result) },
            other => panic!("{other:?} is no fetch"),
        };
        self.step(input);
    }

    /// Completes everything until nothing is pending.
    pub(super) fn complete_all(&mut self) {
        while !self.pending.is_empty() {
            self.complete(0, true, true);
        }
    }

    pub(super) fn freeze(&mut self) -> bool {
        self.step(Input::EndBurst);
        let window = self.machine.freeze();
        let froze = window.is_some();
        self.frozen.extend(window);
        froze
    }

    /// The oldest frozen window goes to the clouds in frames and into the sequence.
    pub(super) fn commit(&mut self) -> bool {
        let Some(window) = self.frozen.pop_front() else { return false };
        assert_eq!(window.first, self.outside.head.last.next(), "windows follow each other");
        let segment = ObjectNumber(self.outside.next_object);
        self.outside.next_object += 1;
        let mut updates: Vec<RunUpdate> = Vec::new();
        let mut run: Vec<(u64, Bytes)> = Vec::new();
        let mut frames = 0;
        for change in &window.changes {
            match change {
                Change::Data { block, contents } => {
                    let joins = run.last().is_some_and(|(last, _)| last + 1 == block.0);
                    if !joins || run.len() == usize::from(FRAME_BLOCKS_MAX) {
                        self.outside.close_frame(segment, &mut frames, &mut run, &mut updates);
                    }
                    run.push((block.0, contents.clone()));
                }
                Change::Unmap { start, count } => {
                    self.outside.close_frame(segment, &mut frames, &mut run, &mut updates);
                    updates.push(RunUpdate { start: *start, count: count.0, frame: None });
                }
            }
        }
        self.outside.close_frame(segment, &mut frames, &mut run, &mut updates);
        let object = ObjectRef { incarnation: LIFE, number: segment, bytes: 1, hash: Hash([2; 32]) };
        let seq = Seq(self.outside.committed.len() as u64 + 1);
        let segments = if frames > 0 { vec![object] } else { Vec::new() };
        let committed = Committed { seq, last: window.last, segments, updates };
        self.outside.head = Start { last: window.last, chain: window.chain };
        self.outside.committed.push(committed.clone());
        self.step(Input::Committed(committed));
        true
    }

    /// A compaction moves up to 16 blocks that are in the clouds into one frame of a new segment.
    pub(super) fn relocate(&mut self, start: u64, count: u64) {
        let segment = ObjectNumber(self.outside.next_object);
        self.outside.next_object += 1;
        let mut mapped = Vec::new();
        self.machine.map_mut().lookup(BlockIndex(start), count, &mut mapped).unwrap();
        let (mut moved, mut run) = (Vec::new(), Vec::new());
        for block in start..start + count {
            let at = mapped.iter().find(|at| at.start.0 <= block && block < at.start.0 + at.count).unwrap();
            let from = at.location.unwrap();
            let place = usize::try_from(block - from.start.0).unwrap() * BLOCK_LEN;
            let contents = self.outside.frames[&(from.segment, from.frame)].slice(place..place + BLOCK_LEN);
            moved.push(Moved { block: BlockIndex(block), from, contents: contents.clone() });
            run.push((block, contents));
        }
        let mut updates = Vec::new();
        self.outside.close_frame(segment, &mut 0, &mut run, &mut updates);
        let segment = ObjectRef { incarnation: LIFE, number: segment, bytes: 1, hash: Hash([2; 32]) };
        self.step(Input::Relocated(Relocated { segment, updates, moved }));
    }

    pub(super) fn become_durable(&mut self) {
        self.outside.durable = self.outside.head.last;
        self.step(Input::Durable(self.outside.durable));
    }

    /// Writes the map's changed pages out and evicts what can be.
    pub(super) fn checkpoint(&mut self) {
        loop {
            let needed = self.machine.map_mut().pages_needed_for_checkpoint();
            if needed.is_empty() {
                break;
            }
            for page in needed {
                let payload = self.outside.pages.get(&page.number).unwrap().clone();
                self.machine.map_mut().page_loaded(&page, &payload).unwrap();
            }
        }
        let next = &mut self.outside.next_object;
        let mut numbers = || {
            *next += 1;
            ObjectNumber(*next)
        };
        let mut plan = self.machine.map_mut().begin_checkpoint(&mut numbers, LIFE).unwrap();
        while let Some(page) = plan.next_page() {
            let object = plan.page_sealed(page.payload.len() as u64, checksum::hash(&page.payload));
            self.outside.pages.insert(object.number, Bytes::from(page.payload));
        }
        let Start { last, chain } = self.outside.head;
        let root =
            plan.root(&Cut { seq: Seq(1), chain: Hash::ZERO, epoch: self.outside.epoch, last, journal_chain: chain });
        let object =
            ObjectRef { incarnation: LIFE, number: root.number, bytes: 1, hash: checksum::hash(&root.payload) };
        self.machine.map_mut().finish_checkpoint(plan, object);
        self.outside.next_object += 1;
        for _ in 0..100 {
            self.machine.map_mut().evict(0);
        }
    }

    /// The outcome of one request, which must have been answered exactly once.
    pub(super) fn outcome(&self, session: u64, tag: u64) -> Option<&Outcome> {
        let origin = Origin { session: SessionId(session), tag };
        let mut found = self.replies.iter().filter(|(of, _)| *of == origin).map(|(_, outcome)| outcome);
        let first = found.next();
        assert!(found.next().is_none(), "request {tag} was answered twice");
        first
    }

    pub(super) fn is_done(&self, session: u64, tag: u64) -> bool {
        matches!(self.outcome(session, tag), Some(Outcome::Done))
    }

    /// The bytes a read was answered with.
    pub(super) fn data(&self, session: u64, tag: u64) -> Option<Vec<u8>> {
        match self.outcome(session, tag)? {
            Outcome::Data(pieces) => Some(pieces.concat()),
            other => panic!("request {tag} was answered with {other:?}"),
        }
    }

    /// Reads at once, helping with whatever is needed.
    pub(super) fn read_now(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let tag = u64::MAX - self.replies.len() as u64;
        self.attach(999);
        self.ask(999, tag, Operation::Read { offset, length });
        self.complete_all();
        self.data(999, tag).unwrap()
    }
}

impl Outside {
    fn close_frame(
        &mut self,
        segment: ObjectNumber,
        frames: &mut u32,
        run: &mut Vec<(u64, Bytes)>,
        updates: &mut Vec<RunUpdate>,
    ) {
        let Some((start, _)) = run.first() else { return };
        let start = BlockIndex(*start);
        let blocks = u16::try_from(run.len()).unwrap();
        let frame =
            Frame { incarnation: LIFE, segment, frame: *frames, offset: 0, key_epoch: KeyEpoch(1), start, blocks };
        let plaintext: Vec<u8> = run.drain(..).flat_map(|(_, contents)| contents.to_vec()).collect();
        self.frames.insert((segment, *frames), Bytes::from(plaintext));
        updates.push(RunUpdate { start, count: u64::from(blocks), frame: Some(frame) });
        *frames += 1;
    }
}
