//! A volume with its shell on a real journal: sealed records, acks from within a call, crashes, a budget shared by two.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected has failed, and says where"
)]

mod support;

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use support::{Crash, CrashDisk, Rng, env, life};
use velum_node::{
    audit::{Audit, Gate},
    cache::{BlockLocation, MemoryCache},
    env::{Entropy, Env, Local},
    extent::ExtentMap,
    journal::{Journal, JournalIdentity, JournalSettings, Position, Replay, StreamId},
    keyring::{KeySet, ProviderSecret, create_cluster},
    metrics::Metrics,
    volume::{
        FrameSource, JournalFailed, OnWritten, OpenVolumeError, Opening, Records, Submitted, Volume,
        budget::DirtyBudget,
        machine::{FetchFailure, Fetched, Settings},
        messages::{
            Committed, Door, Entrant, FlushPort, Operation, Origin, Outcome, Principal, Refusal, Replies, Reply,
            Request,
        },
        replay::{Lost, Start, Stored},
        sealing::Owner,
    },
};
use velum_protocol::{
    format::{
        location::Frame,
        metadata::{AclEntry, ObjectRef, Right},
    },
    id::{ClusterId, Epoch, Hash, Jseq, KeyEpoch, Lineage, NodeId, Seq, SessionId, VolumeId},
};

const A: VolumeId = VolumeId([0xa; 16]);
const B: VolumeId = VolumeId([0xb; 16]);
const BLOCK: usize = 4096;
const JOURNAL: JournalSettings = JournalSettings { file_bytes: 1 << 20, files_at_start: 4, bytes_max: 8 << 20 };
const SESSION: SessionId = SessionId(1);

struct Stream(Rc<Journal>, StreamId);

impl Records for Stream {
    fn append(&self, epoch: Epoch, jseq: Jseq, record: &[u8]) -> Result<(), JournalFailed> {
        let at = Position { epoch: epoch.0, number: jseq.0 };
        self.0.append(self.1, at, record).map_err(|_| JournalFailed)
    }

    fn submit(&self) -> Result<Submitted, JournalFailed> {
        self.0.submit().map(|()| Submitted::Written).map_err(|_| JournalFailed)
    }

    fn on_written(&self, _written: OnWritten) {}

    fn sync(&self) -> Local<Result<(), JournalFailed>> {
        let synced = self.0.sync();
        Box::pin(async move { synced.await.map_err(|_| JournalFailed) })
    }

    fn confirm(&self, _reads: u64) -> Option<Local<()>> {
        None
    }

    fn trim(&self, epoch: Epoch, through: Jseq) {
        self.0.trim(self.1, Position { epoch: epoch.0, number: through.0 });
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.0.has_room(bytes)
    }

    fn room(&self, bytes: u64) -> Local<Result<(), JournalFailed>> {
        let room = self.0.room(bytes);
        Box::pin(async move { room.await.map_err(|_| JournalFailed) })
    }
}

/// Nothing lies in the clouds.
struct NoFrames;

impl FrameSource for NoFrames {
    fn frame(&self, _frame: &Frame, _wanted: u16) -> Local<Result<Fetched, FetchFailure>> {
        Box::pin(std::future::ready(Err(FetchFailure::Lost)))
    }

    fn page(&self, _page: &ObjectRef) -> Local<Result<Bytes, FetchFailure>> {
        Box::pin(std::future::ready(Err(FetchFailure::Lost)))
    }

    fn keep(&self, _blocks: Vec<(BlockLocation, Bytes)>) {}

    fn moved(&self, _blocks: Vec<(BlockLocation, BlockLocation, Bytes)>) {}
}

/// A session that keeps its replies and may ask again from within one.
#[derive(Default)]
struct Session {
    replies: RefCell<Vec<Reply>>,
    next: RefCell<Option<(Rc<dyn Door>, Request)>>,
}

impl Replies for Session {
    fn reply(&self, reply: Reply) {
        self.replies.borrow_mut().push(reply);
        let next = self.next.borrow_mut().take();
        if let Some((door, request)) = next {
            door.submit(request);
            door.end_burst();
        }
    }

    fn end(&self) {}
}

impl Session {
    fn outcome(&self, tag: u64) -> Option<Outcome> {
        self.replies.borrow().iter().find(|reply| reply.origin.tag == tag).map(|reply| reply.outcome.clone())
    }

    async fn wait(&self, tag: u64) -> Outcome {
        loop {
            if let Some(outcome) = self.outcome(tag) {
                return outcome;
            }
            tokio::task::yield_now().await;
        }
    }

    fn data(&self, tag: u64) -> Vec<u8> {
        match self.outcome(tag) {
            Some(Outcome::Data(pieces)) => pieces.concat(),
            other => panic!("request {tag} got {other:?}"),
        }
    }
}

struct Constant(Cell<u64>);

impl Entropy for Constant {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.set(self.0.get() + 1);
        for (byte, place) in bytes.iter_mut().zip(self.0.get()..) {
            *byte = place.to_le_bytes()[0].wrapping_mul(37);
        }
    }
}

fn keys(volume: VolumeId) -> KeySet {
    let entropy = Constant(Cell::new(1));
    let secret = ProviderSecret::from_keyfile(0o600, entropy.fresh32().to_vec()).unwrap();
    let keyring = create_cluster(&entropy, &secret).unwrap().keyring;
    keyring.key_set(volume, &[keyring.new_volume_keys(&entropy, volume, KeyEpoch(1))]).unwrap()
}

struct Node {
    env: Env,
    journal: Rc<Journal>,
    replay: RefCell<Replay>,
    budget: Rc<DirtyBudget>,
    audit: Rc<Audit>,
    epoch: u64,
}

impl Node {
    async fn start(disk: &CrashDisk, epoch: u64, budget_bytes: u64) -> Self {
        let env = env(disk, epoch);
        let identity = JournalIdentity { cluster: ClusterId([7; 16]), node: NodeId(1) };
        let (journal, replay) = Journal::open(&env, Path::new("/node/journal"), JOURNAL, identity).await.unwrap();
        let audit = Rc::new(Audit::new(Rc::clone(&env.clock), Arc::new(Metrics::new())));
        let budget = DirtyBudget::new(budget_bytes);
        Self { env, journal, replay: RefCell::new(replay), budget, audit, epoch }
    }

    fn open(&self, id: VolumeId) -> Result<(Volume, Rc<Session>), OpenVolumeError> {
        let stream = StreamId::Volume(id);
        let records = self.replay.borrow_mut().records.remove(&stream).unwrap_or_default();
        let stored = records
            .into_iter()
            .map(|(at, record)| Stored { epoch: Epoch(at.epoch), jseq: Jseq(at.number), record })
            .collect();
        let acl = vec![AclEntry { principal: "*".to_owned(), range: None, right: Right::Write }];
        let (volume, _) = Volume::open(
            &self.env,
            Opening {
                keys: keys(id),
                settings: Settings {
                    flush_bytes: 8 << 20,
                    read_ahead_bytes: 1 << 20,
                    map_bytes: 1 << 20,
                    confirm_reads: false,
                    record_blocks_max: self.journal.body_bytes_handy() as u64 / 4200,
                },
                size_bytes: 64 << 20,
                acl: (acl, 1),
                owner: Owner { epoch: Epoch(self.epoch), lineage: Lineage(1) },
                head: Start { last: Jseq(0), chain: Hash::ZERO },
                durable: Jseq(0),
                map: ExtentMap::empty(16 << 10),
                stored,
                lost: Lost::default(),
                records: Rc::new(Stream(Rc::clone(&self.journal), stream)),
                frames: Rc::new(NoFrames),
                memory: Rc::new(RefCell::new(MemoryCache::new(1 << 20))),
                budget: Rc::clone(&self.budget),
                audit: Rc::clone(&self.audit),
            },
        )?;
        let session = Rc::new(Session::default());
        volume.attach(
            SESSION,
            Entrant { principal: Principal(Rc::from("uid:1")), pass: None },
            Rc::clone(&session) as Rc<dyn Replies>,
        );
        Ok((volume, session))
    }
}

fn request(tag: u64, operation: Operation) -> Request {
    Request { origin: Origin { session: SESSION, tag }, operation }
}

fn write(offset: usize, length: usize, mark: u8) -> Operation {
    Operation::Write { offset: offset as u64, payload: Bytes::from(vec![mark; length]), fua: false }
}

fn ask(volume: &Volume, tag: u64, operation: Operation) {
    volume.submit(request(tag, operation));
    volume.end_burst();
}

fn read(volume: &Volume, session: &Session, tag: u64, offset: u64, length: u32) -> Vec<u8> {
    ask(volume, tag, Operation::Read { offset, length });
    session.data(tag)
}

#[test]
fn a_write_is_acked_within_the_call_that_ends_its_burst_and_survives_a_kill() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 20).await;
        let (volume, session) = node.open(A).unwrap();
        volume.submit(request(1, write(0, BLOCK, 1)));
        assert!(session.outcome(1).is_none());
        volume.end_burst();
        assert!(matches!(session.outcome(1), Some(Outcome::Done)));
        ask(&volume, 2, write(BLOCK + 100, 10, 2));
        assert_eq!(read(&volume, &session, 3, 4096 + 98, 4), [0, 0, 2, 2]);
    });
    let disk = disk.after(Crash::Process, &Rng::new(1));
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 2, 1 << 20).await;
        let (volume, session) = node.open(A).unwrap();
        assert_eq!(read(&volume, &session, 1, 4090, 8), [1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(read(&volume, &session, 2, 4096 + 98, 4), [0, 0, 2, 2]);
    })
    .unwrap();
}

#[test]
fn what_a_barrier_covered_survives_a_power_cut() {
    for seed in 0..20 {
        let disk = CrashDisk::new();
        let on = disk.clone();
        life(&disk, async move {
            let node = Node::start(&on, 1, 1 << 20).await;
            let (volume, session) = node.open(A).unwrap();
            ask(&volume, 1, write(0, BLOCK, 1));
            ask(&volume, 2, Operation::Barrier);
            assert!(matches!(session.wait(2).await, Outcome::Done));
            ask(&volume, 3, write(BLOCK, BLOCK, 2));
            ask(&volume, 4, write(2 * BLOCK, BLOCK, 3));
        })
        .unwrap();
        let disk = disk.after(Crash::Power, &Rng::new(seed));
        let on = disk.clone();
        life(&disk, async move {
            let node = Node::start(&on, 2, 1 << 20).await;
            let (volume, session) = node.open(A).unwrap();
            assert_eq!(read(&volume, &session, 1, 0, 4096), [1; BLOCK]);
            let (two, three) = (read(&volume, &session, 2, 4096, 1)[0], read(&volume, &session, 3, 8192, 1)[0]);
            assert!([(0, 0), (2, 0), (2, 3)].contains(&(two, three)), "a prefix: {two} {three}");
        })
        .unwrap();
    }
}

#[test]
fn a_failed_sync_ends_the_acks() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 20).await;
        let (volume, session) = node.open(A).unwrap();
        ask(&volume, 1, write(0, BLOCK, 1));
        on.fail_sync_at.set(on.syncs() + 1);
        ask(&volume, 2, Operation::Barrier);
        assert!(matches!(session.wait(2).await, Outcome::Refused(Refusal::Failed)));
        ask(&volume, 3, write(0, BLOCK, 2));
        assert!(matches!(session.outcome(3), Some(Outcome::Refused(Refusal::Failed))));
        assert!(volume.is_poisoned() && volume.freeze().is_none());
        assert_eq!(read(&volume, &session, 4, 0, 1), [1]);
    })
    .unwrap();
}

#[test]
fn no_plaintext_reaches_the_disk_and_other_keys_open_nothing() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    let canary = b"a canary that sings in the clear";
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 20).await;
        let (volume, _) = node.open(A).unwrap();
        let payload = Bytes::from(canary.repeat(BLOCK / canary.len()));
        ask(&volume, 1, Operation::Write { offset: 0, payload, fua: false });
    })
    .unwrap();
    for (path, bytes) in disk.image() {
        assert!(!bytes.windows(16).any(|window| window == &canary[..16]), "{}", path.display());
    }
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 2, 1 << 20).await;
        let stolen = node.replay.borrow_mut().records.remove(&StreamId::Volume(A)).unwrap();
        node.replay.borrow_mut().records.insert(StreamId::Volume(B), stolen);
        assert!(matches!(node.open(B), Err(OpenVolumeError::Faulted(_))));
    })
    .unwrap();
}

#[test]
fn a_session_may_ask_again_from_within_a_reply() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 20).await;
        let (volume, session) = node.open(A).unwrap();
        *session.next.borrow_mut() = Some((Rc::new(volume.clone()), request(2, write(0, BLOCK, 2))));
        ask(&volume, 1, write(0, BLOCK, 1));
        assert!(matches!(session.outcome(2), Some(Outcome::Done)));
        assert_eq!(read(&volume, &session, 3, 0, 1), [2]);
        session.next.borrow_mut().take();
    })
    .unwrap();
}

#[test]
fn a_flush_of_one_volume_makes_room_for_another() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 8 * 4096).await;
        let ((a, session_a), (b, session_b)) = (node.open(A).unwrap(), node.open(B).unwrap());
        let woken = Rc::new(Cell::new(0));
        let count = Rc::clone(&woken);
        a.on_dirty(Rc::new(move || count.set(count.get() + 1)));
        ask(&a, 1, write(0, 7 * BLOCK, 1));
        ask(&b, 1, write(0, 2 * BLOCK, 1));
        assert!(matches!(session_a.outcome(1), Some(Outcome::Done)));
        assert!(session_b.outcome(1).is_none() && b.waiting_writes() == 1);
        assert_eq!(woken.get(), 1, "the one that can help is told");
        assert!(a.dirty().short);
        ask(&a, 2, write(8 * BLOCK, BLOCK, 1));
        assert!(session_a.outcome(2).is_none(), "nobody passes the one that waits");
        let window = a.freeze().unwrap();
        a.committed(Committed { seq: Seq(1), last: window.last, segments: Vec::new(), updates: Vec::new() });
        assert!(matches!(session_b.outcome(1), Some(Outcome::Done)));
        assert!(matches!(session_a.outcome(2), Some(Outcome::Done)));
        assert!(!a.dirty().short && !b.dirty().short);
    })
    .unwrap();
}

#[test]
fn the_journal_gives_its_room_back_at_d2() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 30).await;
        let (volume, session) = node.open(A).unwrap();
        let mut tag = 0;
        while volume.waiting_writes() == 0 {
            tag += 1;
            ask(&volume, tag, write(0, 64 * BLOCK, 1));
            assert!(tag < 1000, "the journal is bounded");
            tokio::task::yield_now().await;
        }
        let window = volume.freeze().unwrap();
        volume.committed(Committed { seq: Seq(1), last: window.last, segments: Vec::new(), updates: Vec::new() });
        assert!(session.outcome(tag).is_none(), "the clouds do not have it yet");
        volume.durable(window.last);
        assert!(matches!(session.wait(tag).await, Outcome::Done));
    })
    .unwrap();
}

#[test]
fn gate_2_reports_to_the_audit() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = Node::start(&on, 1, 1 << 20).await;
        let (volume, session) = node.open(A).unwrap();
        ask(&volume, 1, write(0, BLOCK, 1));
        ask(&volume, 2, Operation::Read { offset: 0, length: 1 });
        volume.set_acl(vec![AclEntry { principal: "uid:1".to_owned(), range: None, right: Right::Read }], 2);
        ask(&volume, 3, write(0, BLOCK, 2));
        assert!(matches!(session.outcome(3), Some(Outcome::Refused(Refusal::NotAllowed))));
        let counts = node.audit.counts(Gate::Region);
        assert_eq!((counts.allowed, counts.refused), (2, 1));
        let record = node.audit.recent().pop().unwrap();
        assert_eq!((&*record.who, record.volume, record.range.unwrap().length), ("uid:1", Some(A), 4096));
    })
    .unwrap();
}
