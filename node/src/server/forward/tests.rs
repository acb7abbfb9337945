//! Two nodes with a queue of frames between them: both sides, both gates' places, and what a loss leaves behind.

use std::collections::VecDeque;

use bytes::Bytes;
use velum_protocol::id::{Handle, Pass};

use super::*;
use crate::{
    audit::{Audit, Gate as Number},
    metrics::Metrics,
    server::fakes::{ManualClock, MemoryVolume, Table, entrant},
    volume::sealing::Owner,
};

const OWNER: NodeId = NodeId(1);
const ASKER: NodeId = NodeId(2);

/// The volumes of one node.
#[derive(Default)]
struct Volumes(RefCell<Option<Switch>>);

impl Own for Volumes {
    fn switch(&self, _volume: VolumeId) -> Option<Switch> {
        self.0.borrow().clone()
    }
}

/// Frames on their way: to whom, and which.
#[derive(Default)]
struct Wire {
    frames: RefCell<VecDeque<(NodeId, Frame)>>,
    /// Nothing gets through any more, and the sender is told on the spot.
    is_cut: Cell<bool>,
    ends: RefCell<BTreeMap<NodeId, Weak<Forwarding>>>,
}

impl Wire {
    fn end(&self, node: NodeId) -> Rc<Forwarding> {
        self.ends.borrow()[&node].upgrade().unwrap()
    }

    fn carry(&self) {
        while self.carry_one() {}
    }

    fn carry_one(&self) -> bool {
        let Some((to, frame)) = self.frames.borrow_mut().pop_front() else { return false };
        let Frame::Forward(frame) = frame else { unreachable!("nothing else is sent here") };
        self.end(to).receive(other(to), frame);
        true
    }

    /// The link breaks in both directions, with all that is on it.
    fn cut(&self) {
        self.is_cut.set(true);
        self.frames.borrow_mut().clear();
        for node in [OWNER, ASKER] {
            self.end(node).parted(other(node));
            self.end(node).lost(other(node));
        }
    }
}

fn other(node: NodeId) -> NodeId {
    if node == OWNER { ASKER } else { OWNER }
}

struct Node {
    forwarding: Rc<Forwarding>,
    switch: Switch,
    table: Rc<Table>,
    audit: Rc<Audit>,
}

fn node(name: NodeId, wire: &Rc<Wire>, clock: &Rc<ManualClock>) -> Node {
    let (table, gate, audit) = Table::gate(&[("demo", Right::Write)], 1 << 20);
    let own = Rc::<Volumes>::default();
    let (carrier, clock): (_, Rc<dyn Clock>) = (Rc::clone(wire), clock.clone());
    let send: Send = Rc::new(move |to, frame| {
        if carrier.is_cut.get() {
            carrier.end(other(to)).lost(to);
        } else {
            carrier.frames.borrow_mut().push_back((to, frame));
        }
    });
    let around = Surroundings {
        clock: Rc::clone(&clock),
        send,
        gate,
        own: own.clone(),
        sessions: Rc::default(),
        metrics: Metrics::new().forward,
    };
    let forwarding = Forwarding::new(around, [u8::try_from(name.0).unwrap(); 16]);
    wire.ends.borrow_mut().insert(name, Rc::downgrade(&forwarding));
    let roads: Weak<Forwarding> = Rc::downgrade(&forwarding);
    let switch = Switch::new(&clock, VolumeId([1; 16]), Box::new(|| 1 << 20), roads);
    *own.0.borrow_mut() = Some(switch.clone());
    Node { forwarding, switch, table, audit }
}

/// A volume at one node, and guests at another.
struct Bench {
    clock: Rc<ManualClock>,
    wire: Rc<Wire>,
    owner: Node,
    asker: Node,
    volume: Rc<MemoryVolume>,
}

/// A guest's session.
#[derive(Default)]
struct Session {
    outcomes: RefCell<BTreeMap<u64, Outcome>>,
    ended: Cell<bool>,
}

impl Replies for Session {
    fn reply(&self, reply: Reply) {
        self.outcomes.borrow_mut().insert(reply.origin.tag, reply.outcome);
    }

    fn end(&self) {
        self.ended.set(true);
    }
}

impl Bench {
    fn new() -> Self {
        let (wire, clock) = (Rc::<Wire>::default(), Rc::<ManualClock>::default());
        let (owner, asker) = (node(OWNER, &wire, &clock), node(ASKER, &wire, &clock));
        let volume = owner.table.volume("demo");
        owner.switch.serve_here(volume.clone(), Owner { epoch: Epoch(3), lineage: Lineage(1) });
        asker.switch.serve_there(OWNER);
        Self { clock, wire, owner, asker, volume }
    }

    fn session(&self, session: u64) -> Rc<Session> {
        let replies = Rc::<Session>::default();
        self.asker.switch.attach(SessionId(session), entrant(), replies.clone());
        self.wire.carry();
        replies
    }

    fn ask(&self, session: u64, tag: u64, operation: Operation) {
        self.send(session, tag, operation);
        self.wire.carry();
    }

    /// Asks, and leaves it on its way.
    fn send(&self, session: u64, tag: u64, operation: Operation) {
        self.asker.switch.submit(Request { origin: Origin { session: SessionId(session), tag }, operation });
        self.asker.switch.end_burst();
    }

    async fn pass(&self) {
        for _ in 0..4 {
            tokio::task::yield_now().await;
            self.clock.pass(asking::OPEN_AGAIN);
            tokio::task::yield_now().await;
            self.wire.carry();
        }
    }

    fn forwarded(&self) -> [i64; 2] {
        let sessions = |node: &Node, side| node.forwarding.around.metrics.sessions.of(side).get();
        [sessions(&self.asker, Side::Asking), sessions(&self.owner, Side::Serving)]
    }
}

fn write(bytes: usize) -> Operation {
    Operation::Write { offset: 0, payload: Bytes::from(vec![7; bytes]), fua: false }
}

fn run(test: impl AsyncFnOnce(Bench)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test(Bench::new()).await });
}

#[test]
fn a_guest_elsewhere_writes_and_reads_what_the_owner_has() {
    run(async |bench| {
        let session = bench.session(1);
        bench.ask(1, 1, write(1 << 20));
        bench.ask(1, 2, Operation::Read { offset: 5, length: 600_000 });
        bench.ask(1, 3, Operation::Status { offset: 0, length: 1 << 20, extents_max: 4 });
        assert_eq!(bench.volume.contents(0, 1 << 20), vec![7; 1 << 20]);
        let outcomes = session.outcomes.borrow();
        assert!(matches!(outcomes[&1], Outcome::Done));
        let Outcome::Data(pieces) = &outcomes[&2] else { panic!("{outcomes:?}") };
        assert_eq!(pieces.concat(), vec![7; 600_000]);
        assert!(matches!(&outcomes[&3], Outcome::Status(extents) if extents.len() == 1), "{outcomes:?}");
        assert_eq!((bench.volume.sessions(), bench.forwarded()), (1, [1, 1]));
        bench.asker.switch.detach(SessionId(1));
        bench.wire.carry();
        assert_eq!((bench.volume.sessions(), bench.forwarded()), (0, [0, 0]));
    });
}

#[test]
fn the_owner_judges_by_the_principal_and_records_a_refusal_once() {
    run(async |bench| {
        let session = bench.session(1);
        // The other node has not heard of it yet.
        bench.owner.table.set_right("demo", Right::Read);
        bench.ask(1, 1, write(4096));
        assert!(matches!(session.outcomes.borrow()[&1], Outcome::Refused(Refusal::NotAllowed)));
        assert_eq!(bench.volume.asked.borrow().len(), 0);
        let refused = |node: &Node| node.audit.counts(Number::Volume).refused;
        assert_eq!([refused(&bench.owner), refused(&bench.asker)], [1, 0]);
        let record = bench.owner.audit.recent().pop().unwrap();
        assert_eq!((&*record.who, record.action), ("uid:7", Action::Write));
        bench.ask(1, 2, Operation::Read { offset: 0, length: 1 });
        assert!(matches!(session.outcomes.borrow()[&2], Outcome::Data(_)));
        bench.owner.table.set_right("demo", Right::None);
        let nobody = bench.session(2);
        assert!(nobody.ended.get(), "gate 1 lets nobody in");
        assert_eq!(refused(&bench.owner), 2);
    });
}

#[test]
fn a_link_that_breaks_takes_along_what_waits_and_no_session_that_is_idle() {
    run(async |bench| {
        let (busy, idle) = (bench.session(1), bench.session(2));
        bench.volume.hold.set(true);
        bench.ask(1, 1, write(4096));
        bench.wire.cut();
        assert!(busy.ended.get() && !idle.ended.get());
        assert_eq!((bench.volume.sessions(), bench.volume.held()), (0, 0), "what had no position has no effect");
        assert_eq!(bench.forwarded()[1], 0);
        // As long as nobody is reached, asking again changes nothing.
        bench.ask(2, 1, write(4096));
        bench.pass().await;
        assert!(!idle.ended.get() && idle.outcomes.borrow().is_empty());
        bench.wire.is_cut.set(false);
        bench.volume.hold.set(false);
        bench.pass().await;
        assert!(matches!(idle.outcomes.borrow()[&1], Outcome::Done));
        bench.asker.switch.detach(SessionId(1));
        assert_eq!(bench.forwarded(), [1, 1]);
    });
}

#[test]
fn a_volume_that_is_not_there_yet_is_knocked_for_until_it_is() {
    run(async |bench| {
        bench.owner.switch.break_off();
        let session = bench.session(1);
        bench.ask(1, 1, write(4096));
        bench.pass().await;
        assert!(session.outcomes.borrow().is_empty() && !session.ended.get());
        bench.owner.switch.serve_here(bench.volume.clone(), Owner { epoch: Epoch(4), lineage: Lineage(1) });
        bench.pass().await;
        assert!(matches!(session.outcomes.borrow()[&1], Outcome::Done));
        // Opened anew after writes were lost, it is another one.
        bench.owner.switch.break_off();
        bench.owner.switch.serve_here(bench.volume.clone(), Owner { epoch: Epoch(5), lineage: Lineage(2) });
        bench.pass().await;
        assert!(session.ended.get());
    });
}

/// What the owner held while its volume was to move, what had come in part and what was on its way when it went are done by the next
/// owner, in the order in which they were asked, and the guest does not notice.
#[test]
fn a_planned_move_gives_back_what_came_too_late() {
    run(async |bench| {
        let session = bench.session(1);
        let at = |offset, bytes| Operation::Write { offset, payload: Bytes::from(vec![7; bytes]), fua: false };
        bench.ask(1, 1, at(0, 4096));
        assert!(matches!(session.outcomes.borrow()[&1], Outcome::Done));
        let _ = bench.owner.switch.hold();
        bench.ask(1, 2, at(4096, 4096));
        bench.send(1, 3, at(8192, 600 << 10));
        assert!(bench.wire.carry_one(), "the first of its pieces");
        bench.send(1, 4, Operation::Barrier);
        bench.owner.switch.break_off();
        bench.wire.carry();
        bench.pass().await;
        assert!(session.outcomes.borrow().len() == 1 && !session.ended.get());
        assert_eq!(bench.forwarded()[1], 0, "nobody is let in where the volume is not");
        let moved = Rc::new(MemoryVolume::new(1 << 20));
        bench.asker.switch.serve_here(moved.clone(), Owner { epoch: Epoch(4), lineage: Lineage(1) });
        assert!((1..=4).all(|tag| matches!(session.outcomes.borrow()[&tag], Outcome::Done)));
        let tags = |volume: &MemoryVolume| -> Vec<u64> {
            volume.asked.borrow().iter().map(|request| request.origin.tag).collect()
        };
        assert_eq!((tags(&bench.volume), tags(&moved)), (vec![1], vec![2, 3, 4]));
        assert_eq!(moved.contents(4096, 4096 + (600 << 10)), vec![7; 4096 + (600 << 10)]);
    });
}

/// A write that the volume has is not asked again of anybody, whoever says that it has gone.
#[test]
fn what_was_begun_when_the_volume_goes_ends_its_session() {
    run(async |bench| {
        let session = bench.session(1);
        bench.volume.hold.set(true);
        bench.ask(1, 1, write(4096));
        bench.owner.switch.break_off();
        bench.wire.carry();
        assert!(session.ended.get());
        let moved = Rc::new(MemoryVolume::new(1 << 20));
        bench.asker.switch.serve_here(moved.clone(), Owner { epoch: Epoch(4), lineage: Lineage(1) });
        assert!(moved.asked.borrow().is_empty());
    });
}

/// A newer connection has taken the place of one that another node still holds requests of: the owner has the last word, unless it has
/// not heard of the newer one yet.
#[test]
fn the_owner_lets_in_only_connections_that_live() {
    run(async |bench| {
        let came = async |session, connection| {
            let (replies, pass) = (Rc::<Session>::default(), Some(Pass { handle: Handle([1; 10]), connection }));
            bench.asker.switch.attach(SessionId(session), Entrant { pass, ..entrant() }, replies.clone());
            bench.send(session, 1, write(8));
            bench.pass().await;
            (replies.outcomes.borrow().len(), replies.ended.get())
        };
        assert_eq!(came(1, 2).await, (1, false), "it lives");
        assert_eq!(came(2, 3).await, (0, true), "it is over");
        assert_eq!(came(3, u64::MAX).await, (0, false), "it is waited for");
        assert_eq!(bench.volume.asked.borrow().len(), 1);
    });
}
