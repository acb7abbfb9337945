//! One link, stepped by hand.

use velum_protocol::{
    format::raft::Membership,
    id::{ClusterId, Hash},
    peer::{
        HEADER_BYTES, Header, Placed, Placement,
        agreement::{MessageKind, SnapshotHead},
        forward::{Forward, Told},
    },
};

use super::*;
use crate::{actor::Machine as _, limits::PEER_QUEUE_BYTES_MAX};

const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const LIFE: Incarnation = Incarnation(2);

struct Link {
    machine: Machine,
    now_ms: u64,
    /// Frames handed over on the newest connection.
    wire: Vec<Frame>,
    dropped: usize,
    lost: usize,
    refused: Vec<Verdict>,
    sent: Vec<(u64, bool)>,
    waits: Vec<Duration>,
}

impl Link {
    fn new() -> Self {
        let machine = Machine::new(OWN, PEER);
        Self {
            machine,
            now_ms: 0,
            wire: Vec::new(),
            dropped: 0,
            lost: 0,
            refused: Vec::new(),
            sent: Vec::new(),
            waits: Vec::new(),
        }
    }

    fn up() -> Self {
        let mut link = Self::new();
        link.step(Input::Begin);
        link.step(Input::Address(Address::Tcp("b:1".into())));
        link.come_up();
        link
    }

    fn come_up(&mut self) {
        let link = self.machine.link;
        self.step(Input::Connected { link, incarnation: LIFE });
        self.step(Input::Heard { link, frame: Frame::Hello(hello()) });
        assert_eq!(self.machine.phase, Phase::Up);
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.machine.step(Instant(self.now_ms * 1000), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Write { link, bytes } => {
                    assert_eq!(link, self.machine.link);
                    self.wire.extend(decode(bytes));
                }
                Effect::Dropped(frames) => self.dropped += frames,
                Effect::Lost => self.lost += 1,
                Effect::Refused(verdict) => self.refused.push(verdict),
                Effect::Sent { ticket, whole } => self.sent.push((ticket, whole)),
                Effect::DialAfter { wait, .. } => self.waits.push(wait),
                Effect::Dial { .. }
                | Effect::Greet { .. }
                | Effect::Close
                | Effect::ArmBeat
                | Effect::Report { .. } => {}
            }
        }
    }

    fn written(&mut self) {
        let link = self.machine.link;
        self.step(Input::Written { link });
    }

    fn taken(&mut self, taken_bytes: u64) {
        let link = self.machine.link;
        self.step(Input::Heard { link, frame: Frame::Beat(Beat { taken_bytes }) });
    }
}

fn decode(mut bytes: Bytes) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = Header::decode(bytes.split_to(HEADER_BYTES).first_chunk().unwrap()).unwrap();
        frames.push(Frame::decode(header.kind, &bytes.split_to(header.body_bytes)).unwrap());
    }
    frames
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId([1; 16]),
        from: PEER,
        to: OWN,
        version_min: 1,
        version_max: 1,
        life: [2; 16],
        link: 1,
        incarnation: LIFE,
        address: String::new(),
    }
}

fn frame(ticket: u64) -> Frame {
    Frame::Placed(Placed { ticket, placement: Placement::Busy })
}

fn long(bytes: usize) -> Frame {
    Frame::Propose(velum_protocol::peer::Propose { ticket: 0, entry: vec![0; bytes].into() })
}

#[test]
fn frames_wait_for_the_greeting_and_go_in_order() {
    let mut link = Link::new();
    link.step(Input::Begin);
    link.step(Input::Address(Address::Tcp("b:1".into())));
    link.step(Input::Send(frame(1)));
    link.step(Input::Send(frame(2)));
    assert!(link.wire.is_empty());
    link.come_up();
    link.step(Input::Send(frame(3)));
    assert_eq!(link.wire, [frame(1), frame(2)], "one write is under way");
    link.written();
    assert_eq!(link.wire, [frame(1), frame(2), frame(3)]);
}

#[test]
fn a_broken_link_takes_its_queue_with_it_and_old_news_of_it_counts_for_nothing() {
    let mut link = Link::up();
    link.step(Input::Send(frame(1)));
    link.step(Input::Send(frame(2)));
    let old = link.machine.link;
    link.step(Input::Broken { link: old, why: "cut".into() });
    assert_eq!((link.dropped, link.lost), (1, 1), "the first one was handed over");
    link.step(Input::Send(frame(3)));
    assert_eq!((link.dropped, link.lost), (2, 2), "nothing is kept for a peer that is away");
    link.step(Input::Dial { link: old });
    link.come_up();
    link.wire.clear();
    for late in [
        Input::Written { link: old },
        Input::Broken { link: old, why: String::new() },
        Input::Heard { link: old, frame: frame(9) },
        Input::Dial { link: old },
        Input::Connected { link: old, incarnation: LIFE },
    ] {
        link.step(late);
    }
    assert_eq!((link.machine.phase, link.lost), (Phase::Up, 2));
    assert!(link.wire.is_empty(), "nothing of the old link is sent again");
}

#[test]
fn waits_between_connections_grow_to_a_bound_and_shrink_once_it_is_up() {
    let mut link = Link::new();
    link.step(Input::Address(Address::Tcp("b:1".into())));
    for _ in 0..10 {
        let number = link.machine.link;
        link.step(Input::Broken { link: number, why: "refused".into() });
        link.step(Input::Dial { link: number });
    }
    assert!(link.waits[0] >= BACKOFF.0 && link.waits[0] < BACKOFF.0 * 2);
    assert!(link.waits[9] >= BACKOFF.1 && link.waits[9] < BACKOFF.1 * 2);
    link.come_up();
    let number = link.machine.link;
    link.step(Input::Broken { link: number, why: "cut".into() });
    assert!(link.waits[10] < BACKOFF.0 * 2);
}

#[test]
fn no_more_is_sent_than_the_peer_has_credit_for_and_no_more_kept_than_the_queue_holds() {
    let mut link = Link::up();
    let length = 1 << 20;
    for _ in 0..100 {
        link.step(Input::Send(long(length)));
        link.written();
    }
    let frame_bytes = u64_of(long(length).encode().len());
    let proposals = |link: &Link| link.wire.iter().filter(|frame| matches!(frame, Frame::Propose(_))).count();
    assert_eq!(u64_of(proposals(&link)), PEER_CREDIT_BYTES / frame_bytes);
    assert!(link.dropped > 0 && link.lost > 0, "past the queue's bound frames are dropped, and that is said");
    assert!(link.machine.lanes.count() * length <= PEER_QUEUE_BYTES_MAX);
    let before = proposals(&link);
    link.taken(3 * frame_bytes);
    (0..10).for_each(|_| link.written());
    assert_eq!(proposals(&link), before + 3);
    // A peer that lies about what it has taken gets no more than all.
    link.taken(u64::MAX);
    assert_eq!(link.machine.taken_bytes, link.machine.written_bytes - frame_bytes);
}

/// A guest's data.
fn data(bytes: usize) -> Frame {
    Frame::Forward(Forward::Reply { session: 1, tag: 1, told: Told::Data { bytes: vec![0; bytes].into(), last: true } })
}

/// On a link of 640 KB/s between the door of a guest and its owner, the owner's records had filled 8 MiB of the way: for over ten
/// seconds the guest heard nothing, and raft came as late as the guest.
#[test]
fn a_narrow_way_is_not_filled_with_what_takes_turns() {
    let mut link = Link::up();
    let bytes_per_ms = 640;
    for _ in 0..400 {
        link.step(Input::Send(data(100_000)));
        link.written();
        link.now_ms += 50;
        let taken = link.machine.taken_bytes + 50 * bytes_per_ms;
        link.taken(taken);
        link.written();
    }
    let on_the_way = link.machine.written_bytes - link.machine.taken_bytes;
    assert!(on_the_way <= 400 << 10, "{on_the_way} bytes are on the way");
    assert!(link.machine.lanes.count() > 100, "much waits");
    link.wire.clear();
    link.step(Input::Send(frame(1)));
    link.written();
    assert!(link.wire.contains(&frame(1)), "a word goes at once");
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut link = Link::up();
    for _ in 0..4 {
        link.now_ms += 500;
        link.step(Input::Beat);
        link.written();
    }
    assert_eq!(link.machine.phase, Phase::Up);
    assert!(link.wire.contains(&Frame::Beat(Beat { taken_bytes: 0 })));
    link.taken(0);
    link.now_ms += 2_600;
    link.step(Input::Beat);
    assert_eq!(link.machine.phase, Phase::Down);
}

#[test]
fn a_greeting_of_somebody_else_ends_the_link() {
    for bad in [
        Hello { from: NodeId(3), ..hello() },
        Hello { to: NodeId(3), ..hello() },
        Hello { version_min: 2, version_max: 2, ..hello() },
        Hello { incarnation: Incarnation(1), ..hello() },
    ] {
        let mut link = Link::new();
        link.step(Input::Address(Address::Tcp("b:1".into())));
        let number = link.machine.link;
        link.step(Input::Connected { link: number, incarnation: LIFE });
        link.step(Input::Heard { link: number, frame: Frame::Hello(bad) });
        assert_eq!(link.machine.phase, Phase::Down);
    }
    let mut link = Link::up();
    let number = link.machine.link;
    link.step(Input::Heard { link: number, frame: frame(1) });
    assert_eq!(link.machine.phase, Phase::Down, "frames do not come back on this side");
}

fn head(state: &Bytes) -> Box<Message> {
    let head = SnapshotHead {
        index: 9,
        term: 1,
        membership: Membership::default(),
        state_bytes: u64_of(state.len()),
        state_hash: Hash(*blake3::hash(state).as_bytes()),
    };
    Box::new(Message {
        kind: MessageKind::Snapshot,
        to: PEER,
        from: OWN,
        term: 1,
        log_term: 0,
        index: 0,
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        snapshot: Some(head),
    })
}

#[test]
fn a_snapshot_goes_in_pieces_between_other_frames_and_is_sent_when_it_is_taken() {
    let mut link = Link::up();
    let state = Bytes::from(vec![5; 12 * PIECE_BYTES + 10]);
    link.step(Input::SendSnapshot { ticket: 1, head: head(&state), state: state.clone() });
    link.step(Input::SendSnapshot { ticket: 2, head: head(&state), state: state.clone() });
    assert_eq!(link.sent, [(2, false)], "one at a time");
    link.step(Input::Send(frame(7)));
    for _ in 0..20 {
        link.written();
        let taken = link.machine.written_bytes;
        link.taken(taken);
    }
    let mut seen = Vec::new();
    let pieces = link.wire.iter().filter_map(|frame| if let Frame::Piece(piece) = frame { Some(piece) } else { None });
    for piece in pieces {
        assert_eq!(piece.offset, u64_of(seen.len()));
        seen.extend_from_slice(&piece.bytes);
    }
    assert!(seen == state, "the pieces are not the state");
    let place = link.wire.iter().position(|sent| *sent == frame(7)).unwrap();
    assert!(place < 3, "a short frame does not wait for the whole state");
    assert_eq!(link.sent, [(2, false), (1, true)]);
}

/// A link that is greeted by `frame`, from a node that belongs to life `own`.
fn answered(own: Incarnation, frame: Frame) -> Link {
    let mut link = Link::new();
    link.step(Input::Begin);
    link.step(Input::Address(Address::Tcp("b:1".into())));
    let number = link.machine.link;
    link.step(Input::Connected { link: number, incarnation: own });
    link.step(Input::Heard { link: number, frame });
    link
}

#[test]
fn a_node_that_is_no_part_of_the_cluster_hears_of_it_also_before_it_is_greeted() {
    for verdict in [Verdict::Removed, Verdict::Outlived] {
        assert_eq!(answered(LIFE, Frame::Verdict(verdict)).refused, [verdict]);
    }
    let mut link = Link::up();
    let number = link.machine.link;
    link.step(Input::Heard { link: number, frame: Frame::Verdict(Verdict::NoPlace) });
    assert!(link.refused.is_empty(), "that is said on the other node's link");
}

#[test]
fn a_node_that_meets_a_newer_life_knows_that_its_own_is_over() {
    let met = |own: u32, theirs: u32| {
        let incarnation = Incarnation(theirs);
        let link = answered(Incarnation(own), Frame::Hello(Hello { incarnation, ..hello() }));
        (link.machine.phase, link.refused)
    };
    assert_eq!(met(2, 3), (Phase::Down, vec![Verdict::Outlived]));
    assert_eq!(met(2, 1), (Phase::Down, Vec::new()));
    assert_eq!(met(2, 2), (Phase::Up, Vec::new()));
    assert_eq!(met(0, 3), (Phase::Up, Vec::new()), "a newcomer learns");
    assert_eq!(met(3, 0), (Phase::Up, Vec::new()), "and is taught");
}

#[test]
fn a_snapshot_whose_link_breaks_is_said_to_have_failed() {
    let mut link = Link::up();
    let state = Bytes::from(vec![5; 100]);
    link.step(Input::SendSnapshot { ticket: 1, head: head(&state), state: state.clone() });
    let number = link.machine.link;
    link.step(Input::Broken { link: number, why: "cut".into() });
    link.step(Input::SendSnapshot { ticket: 2, head: head(&state), state });
    assert_eq!(link.sent, [(1, false), (2, false)]);
}
