//! The map against a plain model: random histories with eviction, checkpoints of one instant, and rebuilding from roots.

#![expect(clippy::cast_possible_truncation, reason = "numbers in these tests are small")]

mod cases;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use velum_protocol::{
    checksum,
    format::page::{Cut, SegmentUsage},
    id::{Epoch, Hash, Jseq, KeyEpoch, Seq},
};

use super::*;

const INCARNATION: Incarnation = Incarnation(7);

/// One sequence record's worth of changes.
#[derive(Clone, Debug, Default)]
struct Record {
    segments: Vec<ObjectRef>,
    updates: Vec<RunUpdate>,
}

/// A committed checkpoint and what came after it.
#[derive(Clone, Debug, Default)]
struct Committed {
    root: Option<ObjectRef>,
    records_before: usize,
}

/// A checkpoint under way, with the model as it was when it began.
struct Running {
    plan: CheckpointPlan,
    model: BTreeMap<u64, Frame>,
    segments: BTreeSet<ObjectNumber>,
    size_blocks: u64,
    records_before: usize,
}

/// The map, the model it is compared with, and the clouds.
struct Bench {
    map: ExtentMap,
    model: BTreeMap<u64, Frame>,
    size_blocks: u64,
    first_size: u64,
    next: u64,
    /// Page objects in the clouds.
    pages: BTreeMap<ObjectNumber, Vec<u8>>,
    /// Segments in the clouds.
    segments: BTreeSet<ObjectNumber>,
    records: Vec<Record>,
    committed: Committed,
    running: Option<Running>,
}

fn object(number: u64, bytes: &[u8]) -> ObjectRef {
    ObjectRef {
        incarnation: INCARNATION,
        number: ObjectNumber(number),
        bytes: bytes.len() as u64,
        hash: checksum::hash(bytes),
    }
}

fn cut(seq: u64) -> Cut {
    Cut { seq: Seq(seq), chain: Hash([1; 32]), epoch: Epoch(2), last: Jseq(3), journal_chain: Hash([4; 32]) }
}

impl Bench {
    fn new(size_blocks: u64) -> Self {
        Self {
            map: ExtentMap::empty(size_blocks),
            model: BTreeMap::new(),
            size_blocks,
            first_size: size_blocks,
            next: 1000,
            pages: BTreeMap::new(),
            segments: BTreeSet::new(),
            records: Vec::new(),
            committed: Committed::default(),
            running: None,
        }
    }

    fn number(&mut self) -> u64 {
        // Jumps, so that several usage pages come into being.
        self.next += 1 + self.next % 301;
        self.next
    }

    /// Writes runs as one record: one new segment, frames in the order given.
    fn write(&mut self, runs: &[(u64, u16, bool)]) {
        let number = self.number();
        let segment = object(number, b"segment");
        let mut updates = Vec::new();
        let mut offset = 0;
        for (frame, (start, blocks, halved)) in runs.iter().enumerate() {
            let start = *start % self.size_blocks;
            let blocks = u64::from(*blocks).min(self.size_blocks - start) as u16;
            let frame = Frame {
                incarnation: INCARNATION,
                segment: ObjectNumber(number),
                frame: frame as u32,
                offset,
                key_epoch: KeyEpoch(1),
                start: BlockIndex(start),
                blocks,
            };
            offset += frame.sealed_bytes();
            let half = u64::from(blocks) / 2;
            if *halved && half > 0 {
                // Two updates into one frame, the second part first.
                updates.push(RunUpdate {
                    start: BlockIndex(start + half),
                    count: u64::from(blocks) - half,
                    frame: Some(frame),
                });
                updates.push(RunUpdate { start: BlockIndex(start), count: half, frame: Some(frame) });
            } else {
                updates.push(RunUpdate { start: BlockIndex(start), count: u64::from(blocks), frame: Some(frame) });
            }
        }
        self.commit(Record { segments: vec![segment], updates });
    }

    fn trim(&mut self, start: u64, count: u64) {
        let start = start % self.size_blocks;
        let count = count.min(self.size_blocks - start);
        self.commit(Record {
            segments: Vec::new(),
            updates: vec![RunUpdate { start: BlockIndex(start), count, frame: None }],
        });
    }

    fn commit(&mut self, record: Record) {
        for segment in &record.segments {
            self.segments.insert(segment.number);
        }
        for update in &record.updates {
            for block in update.start.0..update.start.0 + update.count.min(64) {
                match update.frame {
                    Some(frame) => drop(self.model.insert(block, frame)),
                    None => drop(self.model.remove(&block)),
                }
            }
            if update.frame.is_none() {
                let gone: Vec<u64> =
                    self.model.range(update.start.0..update.start.0 + update.count).map(|(block, _)| *block).collect();
                for block in gone {
                    self.model.remove(&block);
                }
            }
        }
        self.apply(&record);
        self.records.push(record);
    }

    fn apply(&mut self, record: &Record) {
        for segment in &record.segments {
            self.map.add_segment(segment);
        }
        for update in &record.updates {
            self.map.apply(update).unwrap();
        }
    }

    fn resize(&mut self, size_blocks: u64) {
        if size_blocks < self.size_blocks {
            // The rule for whoever shrinks a volume.
            self.trim(size_blocks, self.size_blocks - size_blocks);
        }
        self.map.resize(size_blocks);
        self.size_blocks = size_blocks;
    }

    fn load(&mut self, page: &ObjectRef) {
        let payload = self.pages.get(&page.number).expect("the map asks for pages that exist");
        self.map.page_loaded(page, payload).unwrap();
    }

    fn lookup(&mut self, start: u64, count: u64) -> Vec<Mapped> {
        let mut out = Vec::new();
        for _ in 0..10_000 {
            match self.map.lookup(BlockIndex(start), count, &mut out) {
                Ok(()) => return out,
                Err(PageNeeded(page)) => self.load(&page),
            }
        }
        panic!("a look-up ends after loading the pages it needs");
    }

    fn check(&mut self, start: u64, count: u64) {
        let start = start % self.size_blocks;
        let count = count.min(self.size_blocks - start).max(1);
        let answer = self.lookup(start, count);
        assert_eq!(expected(&self.model, start, count), answer);
    }

    fn begin(&mut self) {
        if self.running.is_some() {
            return;
        }
        loop {
            let needed = self.map.pages_needed_for_checkpoint();
            if needed.is_empty() {
                break;
            }
            for page in needed {
                self.load(&page);
            }
        }
        let announced = self.map.changed_pages();
        assert_eq!(self.map.stats().pending_updates, 0, "nothing is pending once all pages are loaded");
        let mut next = self.next;
        let mut given = 0;
        let plan = self.map.begin_checkpoint(
            &mut || {
                next += 1;
                given += 1;
                ObjectNumber(next)
            },
            INCARNATION,
        );
        self.next = next;
        assert!(given <= announced + 1, "no more numbers are taken than announced");
        let plan = plan.unwrap();
        assert!(announced >= plan.page_count() && self.map.changed_pages() == announced);
        self.running = Some(Running {
            plan,
            model: self.model.clone(),
            segments: self.segments.clone(),
            size_blocks: self.size_blocks,
            records_before: self.records.len(),
        });
    }

    fn seal_some(&mut self, count: usize) -> bool {
        let Some(running) = &mut self.running else { return false };
        for _ in 0..count {
            let Some(page) = running.plan.next_page() else { return false };
            let sealed = running.plan.page_sealed(page.payload.len() as u64, checksum::hash(&page.payload));
            assert_eq!(sealed.number, page.number);
            assert!(self.pages.insert(page.number, page.payload).is_none(), "an object number is used once");
        }
        true
    }

    fn finish(&mut self) {
        while self.seal_some(1) {}
        let Some(running) = self.running.take() else { return };
        let page = running.plan.root(&cut(running.records_before as u64));
        let root = object(page.number.0, &page.payload);
        self.pages.insert(page.number, page.payload);
        for condemned in running.plan.condemned() {
            let page = self.pages.remove(&condemned.number).is_some();
            let segment = self.segments.remove(&condemned.number);
            assert!(page || segment, "object {} is condemned once", condemned.number);
        }
        let live: BTreeSet<ObjectNumber> = self.check_closure(&root, &running);
        let kept: BTreeSet<ObjectNumber> = running.segments.intersection(&self.segments).copied().collect();
        assert_eq!(kept, live, "a checkpoint keeps exactly the segments it refers to");
        self.map.finish_checkpoint(running.plan, root.clone());
        self.committed = Committed { root: Some(root), records_before: running.records_before };
    }

    /// Reads the checkpoint back by itself; returns the segments it names.
    fn check_closure(&self, root: &ObjectRef, running: &Running) -> BTreeSet<ObjectNumber> {
        let mut reached = BTreeSet::from([root.number]);
        let mut found = BTreeMap::new();
        let mut usage: BTreeMap<ObjectNumber, u32> = BTreeMap::new();
        let mut open = vec![root.clone()];
        while let Some(page) = open.pop() {
            let bytes = self.pages.get(&page.number).expect("a checkpoint names only objects that exist");
            assert_eq!((page.bytes, page.hash), (bytes.len() as u64, checksum::hash(bytes)));
            reached.insert(page.number);
            let payload = Payload::decode(bytes).unwrap();
            match &payload {
                Payload::Leaf(leaf) => {
                    for run in &leaf.runs {
                        for block in run.start..run.end() {
                            found.insert(leaf.first.0 + u64::from(block), leaf.frame(run).unwrap());
                        }
                    }
                }
                Payload::Usage(page) => {
                    usage.extend(
                        page.segments.iter().map(|SegmentUsage { object, live_blocks }| (object.number, *live_blocks)),
                    );
                }
                Payload::Root(root) => {
                    assert_eq!(root.size_blocks, running.size_blocks);
                    assert_eq!(root.mapped_blocks, running.model.len() as u64);
                    open.extend(payload.objects());
                }
                Payload::Inner(inner) => {
                    assert!(!inner.children.is_empty(), "a page without content is not written");
                    open.extend(payload.objects());
                }
            }
        }
        assert_eq!(found, running.model, "a checkpoint is of the instant it began");
        let mut counted: BTreeMap<ObjectNumber, u32> = BTreeMap::new();
        for frame in running.model.values() {
            *counted.entry(frame.segment).or_default() += 1;
        }
        assert_eq!(usage, counted, "live blocks are counted exactly");
        let stored: BTreeSet<ObjectNumber> = self.pages.keys().copied().collect();
        assert_eq!(stored, reached, "every page is referred to or condemned");
        usage.into_keys().collect()
    }

    fn abandon(&mut self) {
        if let Some(running) = self.running.take() {
            self.map.abandon_checkpoint(running.plan, None);
        }
    }

    /// The node crashes and rebuilds the map from the newest root and the records after it.
    fn restart(&mut self) {
        self.running = None;
        let Committed { root, records_before } = self.committed.clone();
        self.map = match &root {
            None => ExtentMap::empty(self.first_size),
            Some(root) => {
                let payload = self.pages.get(&root.number).unwrap();
                let Payload::Root(payload) = Payload::decode(payload).unwrap() else { panic!("a root is a root") };
                ExtentMap::from_root(root.clone(), &payload)
            }
        };
        for record in self.records.clone().iter().skip(records_before) {
            self.apply(record);
        }
        self.map.resize(self.size_blocks);
        // What an unfinished checkpoint left behind is collected by the numbers of its epoch, not by the map.
        let mut reached = BTreeSet::new();
        let mut open: Vec<ObjectRef> = root.into_iter().collect();
        while let Some(page) = open.pop() {
            if let Some(bytes) = self.pages.get(&page.number) {
                reached.insert(page.number);
                open.extend(Payload::decode(bytes).unwrap().objects());
            }
        }
        self.pages.retain(|number, _| reached.contains(number));
    }
}

/// What a look-up must answer, by the model.
fn expected(model: &BTreeMap<u64, Frame>, start: u64, count: u64) -> Vec<Mapped> {
    let mut out = Vec::new();
    let mut at = start;
    for (block, frame) in model.range(start..start + count) {
        if at < *block {
            tree::push(&mut out, Mapped { start: BlockIndex(at), count: block - at, location: None });
        }
        tree::push(&mut out, Mapped { start: BlockIndex(*block), count: 1, location: Some(*frame) });
        at = block + 1;
    }
    if at < start + count {
        tree::push(&mut out, Mapped { start: BlockIndex(at), count: start + count - at, location: None });
    }
    out
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<(u64, u16, bool)>),
    Trim(u64, u64),
    Check(u64, u64),
    Evict(u64),
    Begin,
    Seal(usize),
    Finish,
    Abandon,
    Restart,
    Resize(u64),
}

/// Blocks around the bounds of leaves and inner pages, so that few operations meet often.
fn block() -> impl Strategy<Value = u64> {
    (prop::sample::select(vec![0_u64, 4096, 8192, 1 << 20, (1 << 20) + 4096, 2 << 20]), 0_u64..48)
        .prop_map(|(base, offset)| (base + offset).saturating_sub(24))
}

fn op() -> impl Strategy<Value = Op> {
    let run = (block(), 1_u16..=16, any::<bool>());
    prop_oneof![
        8 => prop::collection::vec(run, 0..6).prop_map(Op::Write),
        3 => (block(), 1_u64..40).prop_map(|(start, count)| Op::Trim(start, count)),
        1 => (block(), prop::sample::select(vec![4096_u64, 9000, 1 << 20, 3 << 20])).prop_map(|(start, count)| Op::Trim(start, count)),
        6 => (block(), 1_u64..60).prop_map(|(start, count)| Op::Check(start, count)),
        3 => prop::sample::select(vec![0_u64, 20_000]).prop_map(Op::Evict),
        2 => Just(Op::Begin),
        2 => (1_usize..4).prop_map(Op::Seal),
        2 => Just(Op::Finish),
        1 => Just(Op::Abandon),
        1 => Just(Op::Restart),
        1 => prop::sample::select(vec![5000_u64, 4100, 1 << 20, (1 << 20) + 10, 3 << 20]).prop_map(Op::Resize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_answers_as_the_model_does(
        size in prop::sample::select(vec![5000_u64, 1 << 20, 3 << 20]),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut bench = Bench::new(size);
        for op in ops {
            match op {
                Op::Write(runs) => bench.write(&runs),
                Op::Trim(start, count) => bench.trim(start, count),
                Op::Check(start, count) => bench.check(start, count),
                Op::Evict(bytes) => (0..4).for_each(|_| bench.map.evict(bytes)),
                Op::Begin => bench.begin(),
                Op::Seal(count) => {
                    bench.seal_some(count);
                }
                Op::Finish => bench.finish(),
                Op::Abandon => bench.abandon(),
                Op::Restart => bench.restart(),
                Op::Resize(size) => bench.resize(size),
            }
        }
        let size = bench.size_blocks;
        bench.check(0, size);
        bench.abandon();
        bench.begin();
        bench.finish();
        prop_assert_eq!(bench.map.changed_pages(), 0);
        bench.restart();
        bench.check(0, size);
        prop_assert_eq!(bench.map.stats().usage_faults, 0);
    }
}
