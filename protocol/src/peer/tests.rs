//! Layout and totality of frames.

use proptest::prelude::*;

use super::{
    agreement::{Message, MessageKind, SnapshotHead},
    *,
};
use crate::{
    format::raft::{Entry, EntryKind, Membership},
    id::{ClusterId, Hash, NodeId},
    invitation::TokenSecret,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn message(kind: MessageKind) -> Message {
    Message {
        kind,
        to: NodeId(2),
        from: NodeId(1),
        term: 7,
        log_term: 6,
        index: 40,
        commit: 39,
        commit_term: 5,
        reject: true,
        reject_hint: 38,
        context: Bytes::from_static(b"ctx"),
        entries: Vec::new(),
        snapshot: None,
    }
}

fn append() -> Frame {
    let entries = vec![
        Entry { term: 7, kind: EntryKind::Normal, data: Bytes::from_static(b"x") },
        Entry { term: 7, kind: EntryKind::MembershipV2, data: Bytes::new() },
    ];
    Frame::Raft(Box::new(Message { entries, ..message(MessageKind::Append) }))
}

fn snapshot() -> Frame {
    let membership = Membership { voters: vec![1, 2], learners: vec![3], ..Membership::default() };
    let head = SnapshotHead { index: 40, term: 7, membership, state_bytes: 9, state_hash: Hash([0xcc; 32]) };
    Frame::Raft(Box::new(Message { snapshot: Some(head), ..message(MessageKind::Snapshot) }))
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId([0xa1; 16]),
        from: NodeId(1),
        to: NodeId(2),
        version_min: 1,
        version_max: 1,
        life: [0xb2; 16],
        link: 3,
        address: "h:1".to_owned(),
    }
}

fn join() -> Frame {
    Frame::Join(Join { secret: TokenSecret([0xc3; 32]), key: [0xb2; 32], address: "h:2".to_owned() })
}

fn frames() -> Vec<Frame> {
    let mut frames = vec![
        Frame::Hello(hello()),
        Frame::Beat(Beat { taken_bytes: 5 }),
        append(),
        snapshot(),
        Frame::Piece(Piece { index: 40, offset: 4, bytes: Bytes::from_static(b"state") }),
        Frame::Propose(Propose { ticket: 9, entry: Bytes::from_static(b"entry") }),
    ];
    frames.extend(
        [
            Placement::At { index: 4, term: 2 },
            Placement::NotLeader(Some(NodeId(3))),
            Placement::NotLeader(None),
            Placement::Busy,
        ]
        .map(|placement| Frame::Placed(Placed { ticket: 9, placement })),
    );
    frames.push(join());
    frames.extend([Verdict::Removed, Verdict::NoPlace, Verdict::Welcome].map(Frame::Verdict));
    let plain = |kind: &MessageKind| *kind != MessageKind::Snapshot;
    frames.extend(MessageKind::ALL.into_iter().filter(plain).map(|kind| Frame::Raft(Box::new(message(kind)))));
    frames
}

fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
    let header = bytes.first_chunk().ok_or(FrameError::Checksum)?;
    let header = Header::decode(header)?;
    let body = bytes.slice(HEADER_BYTES..);
    if body.len() != header.body_bytes {
        return Err(FrameError::Body(ReadError::Truncated));
    }
    Frame::decode(header.kind, &body)
}

#[test]
fn version_1_keeps_its_bytes() {
    let goldens = [
        (
            Frame::Hello(hello()),
            "564c70720100010040000000",
            concat!(
                "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
                "0100000000000000",
                "0200000000000000",
                "0100",
                "0100",
                "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2",
                "0300000000000000",
                "03",
                "683a31"
            ),
        ),
        (Frame::Beat(Beat { taken_bytes: 5 }), "564c70720100020008000000", "0500000000000000"),
        (
            append(),
            "564c7072010003006e000000",
            concat!(
                "0101000000000000",
                "0200000000000000",
                "0100000000000000",
                "0700000000000000",
                "0600000000000000",
                "2800000000000000",
                "2700000000000000",
                "0500000000000000",
                "2600000000000000",
                "03000000",
                "637478",
                "02000000",
                "0700000000000000",
                "00",
                "01000000",
                "78",
                "0700000000000000",
                "02",
                "00000000"
            ),
        ),
        (
            Frame::Placed(Placed { ticket: 9, placement: Placement::At { index: 4, term: 2 } }),
            "564c70720100060019000000",
            "0900000000000000010400000000000000 0200000000000000",
        ),
        (
            join(),
            "564c70720100070044000000",
            concat!(
                "c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3",
                "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2",
                "03",
                "683a32"
            ),
        ),
        (Frame::Verdict(Verdict::NoPlace), "564c70720100080001000000", "02"),
    ];
    for (frame, header, body) in goldens {
        let bytes = frame.encode();
        assert_eq!(hex(&bytes[..12]), header, "{frame:?}");
        assert_eq!(hex(&bytes[HEADER_BYTES..]), body.replace(' ', ""), "{frame:?}");
    }
}

#[test]
fn every_frame_reads_back() {
    for frame in frames() {
        assert_eq!(decode(&frame.encode()), Ok(frame.clone()), "{frame:?}");
    }
}

#[test]
fn every_truncation_and_every_tail_is_refused() {
    for frame in frames() {
        let whole = frame.encode();
        let body = whole.slice(HEADER_BYTES..);
        for length in 0..body.len() {
            let decoded = Frame::decode(frame.kind(), &body.slice(..length));
            // A shorter entry is an entry; nothing else may be cut.
            let may_be_cut = matches!(frame.kind(), Kind::Propose | Kind::Piece);
            assert!(decoded.is_err() || may_be_cut, "{frame:?} cut to {length}");
        }
        let longer: Bytes = [&body[..], b"\0"].concat().into();
        let may_grow = matches!(frame.kind(), Kind::Propose | Kind::Piece);
        assert!(Frame::decode(frame.kind(), &longer).is_err() || may_grow, "{frame:?} with a tail");
    }
}

#[test]
fn headers_are_judged_before_their_bodies() {
    let good: [u8; HEADER_BYTES] = *append().encode().first_chunk().unwrap();
    for at in 0..HEADER_BYTES {
        let mut bad = good;
        bad[at] ^= 0x40;
        assert!(Header::decode(&bad).is_err(), "byte {at}");
    }
    let forged = |kind: u8, length: u32| {
        let mut bytes = good;
        bytes[6] = kind;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c(&bytes[..12]).to_le_bytes();
        bytes[12..].copy_from_slice(&crc);
        Header::decode(&bytes)
    };
    let most = u32::try_from(BODY_BYTES_MAX).unwrap();
    assert!(forged(3, most).is_ok());
    assert_eq!(forged(3, most + 1), Err(FrameError::Length(most + 1)));
    assert_eq!(forged(0, 1), Err(FrameError::Kind(0)));
    assert_eq!(forged(9, 1), Err(FrameError::Kind(9)));
    assert_eq!(forged(16, 1), Err(FrameError::Kind(16)));
}

#[test]
fn counts_and_lengths_that_cannot_be_are_refused_before_anything_is_allocated() {
    let body = |kind: MessageKind, entries: u32, data: u32| -> Bytes {
        let mut out = Vec::new();
        message(kind).put(&mut out);
        out.truncate(out.len() - 4);
        out.extend_from_slice(&entries.to_le_bytes());
        out.extend_from_slice(&7_u64.to_le_bytes());
        out.push(0);
        out.extend_from_slice(&data.to_le_bytes());
        out.into()
    };
    let read = |body: Bytes| Frame::decode(Kind::Raft, &body);
    assert!(read(body(MessageKind::Append, 1, 0)).is_ok());
    assert!(read(body(MessageKind::Append, u32::MAX, 0)).is_err());
    assert!(read(body(MessageKind::Append, 1, u32::MAX)).is_err());
    assert!(read(body(MessageKind::Heartbeat, 1, 0)).is_err(), "a heartbeat has no entries");
}

#[test]
fn a_hello_that_cannot_be_is_refused() {
    let bad = [
        Hello { version_min: 0, ..hello() },
        Hello { version_min: 2, ..hello() },
        Hello { from: NodeId(2), ..hello() },
        Hello { from: NodeId(0), ..hello() },
        Hello { address: "a\nb".to_owned(), ..hello() },
    ];
    for hello in bad {
        assert!(decode(&Frame::Hello(hello.clone()).encode()).is_err(), "{hello:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(kind in 0_usize..8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        if let Ok(frame) = Frame::decode(Kind::ALL[kind], &bytes) {
            prop_assert_eq!(&frame.encode()[HEADER_BYTES..], &bytes[..], "equal values have equal bytes");
        }
    }

    #[test]
    fn changed_bodies_never_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to: u8) {
        let frames = frames();
        let frame = which.get(&frames);
        let mut body = frame.encode()[HEADER_BYTES..].to_vec();
        let at = at.index(body.len());
        body[at] = to;
        let body = Bytes::from(body);
        if let Ok(frame) = Frame::decode(frame.kind(), &body) {
            prop_assert_eq!(&frame.encode()[HEADER_BYTES..], &body[..]);
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(bytes: [u8; HEADER_BYTES]) {
        let _ = Header::decode(&bytes);
    }
}
