//! One link that comes in, frame by frame.

use velum_protocol::{
    format::raft::Membership,
    peer::{
        Beat, Placed, Placement,
        agreement::{MessageKind, PIECE_BYTES_MAX},
    },
};

use super::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);
const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const LIFE: Incarnation = Incarnation(2);

fn hello() -> Hello {
    Hello {
        cluster: CLUSTER,
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

fn greeted() -> Machine {
    let mut machine = Machine::new(CLUSTER, LIFE, OWN, PEER);
    assert_eq!(machine.take(Frame::Hello(hello()), 80), Ok(vec![Step::Greeted(hello())]));
    machine
}

fn message(kind: MessageKind) -> Message {
    Message {
        kind,
        to: OWN,
        from: PEER,
        term: 1,
        log_term: 0,
        index: 0,
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        snapshot: None,
    }
}

fn raft(message: Message) -> Frame {
    Frame::Raft(Box::new(message))
}

fn snapshot(state: &[u8]) -> Frame {
    let head = SnapshotHead {
        index: 9,
        term: 1,
        membership: Membership::default(),
        state_bytes: u64::try_from(state.len()).unwrap(),
        state_hash: Hash(*blake3::hash(state).as_bytes()),
    };
    raft(Message { snapshot: Some(head), ..message(MessageKind::Snapshot) })
}

fn piece(index: u64, offset: usize, bytes: &[u8]) -> Frame {
    let offset = u64::try_from(offset).unwrap();
    Frame::Piece(Piece { index, offset, bytes: Bytes::copy_from_slice(bytes) })
}

#[test]
fn a_link_begins_with_a_greeting_of_the_node_that_the_transport_vouches_for() {
    let refused = |frame| Machine::new(CLUSTER, LIFE, OWN, PEER).take(frame, 80).unwrap_err();
    assert_eq!(refused(Frame::Beat(Beat { taken_bytes: 0 })), Refusal::NoGreeting);
    assert_eq!(refused(raft(message(MessageKind::Heartbeat))), Refusal::NoGreeting);
    let other_cluster = Hello { cluster: ClusterId([9; 16]), ..hello() };
    assert_eq!(refused(Frame::Hello(other_cluster)), Refusal::OtherCluster);
    for bad in [Hello { from: NodeId(3), ..hello() }, Hello { to: NodeId(3), ..hello() }] {
        assert!(matches!(refused(Frame::Hello(bad)), Refusal::Greeting(_)));
    }
    let of_life = |life| refused(Frame::Hello(Hello { incarnation: Incarnation(life), ..hello() }));
    assert_eq!((of_life(1), of_life(3)), (Refusal::Outlived, Refusal::Outlives));
    assert_eq!(greeted().take(Frame::Hello(hello()), 80), Err(Refusal::OutOfPlace));
}

#[test]
fn a_message_of_another_node_or_for_another_ends_the_link() {
    let good = message(MessageKind::Heartbeat);
    let taken = greeted().take(raft(good.clone()), 100).unwrap();
    assert_eq!(taken, [Step::Deliver(raft(good.clone()), Bytes::new())]);
    for bad in [Message { from: NodeId(3), ..good.clone() }, Message { to: NodeId(3), ..good }] {
        assert_eq!(greeted().take(raft(bad), 100), Err(Refusal::OtherNode));
    }
}

#[test]
fn what_was_taken_is_told_when_asked_and_now_and_then() {
    let mut machine = greeted();
    assert_eq!(machine.take(Frame::Beat(Beat { taken_bytes: 0 }), 24), Ok(vec![Step::Tell(24)]));
    let frame = Frame::Placed(Placed { ticket: 1, placement: Placement::Busy });
    let deliver = Step::Deliver(frame.clone(), Bytes::new());
    assert_eq!(machine.take(frame.clone(), 1000), Ok(vec![deliver]));
    let half = usize::try_from(TELL_BYTES).unwrap() / 2;
    machine.take(frame.clone(), half).unwrap();
    let told = machine.take(frame, half).unwrap();
    assert_eq!(told[1], Step::Tell(1024 + TELL_BYTES));
}

#[test]
fn a_snapshot_is_handed_on_once_it_is_whole() {
    let state = vec![7; PIECE_BYTES_MAX + 5];
    let (first, second) = state.split_at(PIECE_BYTES_MAX);
    let mut machine = greeted();
    assert_eq!(machine.take(snapshot(&state), 100), Ok(vec![]));
    assert!(machine.take(piece(9, 0, first), 100).unwrap().is_empty());
    // Other frames come between.
    assert_eq!(machine.take(raft(message(MessageKind::Heartbeat)), 100).unwrap().len(), 1);
    let whole = machine.take(piece(9, first.len(), second), 100).unwrap();
    assert_eq!(whole, [Step::Deliver(snapshot(&state), Bytes::from(state.clone()))]);
    assert_eq!(machine.take(snapshot(&[]), 100).unwrap(), [Step::Deliver(snapshot(&[]), Bytes::new())]);
}

#[test]
fn pieces_that_do_not_belong_end_the_link() {
    let state = [7; 100];
    let refused = |pieces: &[Frame]| {
        let mut machine = greeted();
        machine.take(snapshot(&state), 100).unwrap();
        pieces.iter().find_map(|piece| machine.take(piece.clone(), 100).err())
    };
    assert_eq!(greeted().take(piece(9, 0, &state), 100), Err(Refusal::PieceOutOfOrder));
    assert_eq!(refused(&[piece(8, 0, &state)]), Some(Refusal::PieceOutOfOrder));
    assert_eq!(refused(&[piece(9, 1, &state)]), Some(Refusal::PieceOutOfOrder));
    assert_eq!(refused(&[piece(9, 0, &state[..50]), piece(9, 0, &state[..50])]), Some(Refusal::PieceOutOfOrder));
    assert_eq!(refused(&[piece(9, 0, &[7; 101])]), Some(Refusal::PieceOutOfOrder));
    assert_eq!(refused(&[piece(9, 0, &[8; 100])]), Some(Refusal::SnapshotDamaged));
    let Frame::Raft(mut endless) = snapshot(&state) else { panic!("a snapshot is a message of raft") };
    endless.snapshot.as_mut().unwrap().state_bytes = PEER_SNAPSHOT_BYTES_MAX + 1;
    assert_eq!(greeted().take(Frame::Raft(endless), 100), Err(Refusal::SnapshotTooLong));
}
