//! Layout and totality of frames.

use proptest::prelude::*;

use super::{
    agreement::{Message, MessageKind, SnapshotHead},
    ensemble::{
        Append, Appended, Condition, Confirm, Confirmed, Fence, Fenced, Heal, Life, Marks, Point, ReadTail, Release,
        Tail,
    },
    forward::{Ask, Ended, FORWARD_EXTENTS_MAX, FORWARD_PIECE_BYTES_MAX, Forward, Refused, Told},
    *,
};
use crate::{
    format::raft::{Entry, EntryKind, Membership},
    id::{BootId, ClusterId, Epoch, Handle, Hash, Incarnation, Jseq, Lineage, NodeId, Pass, VolumeId},
    invitation::TokenSecret,
    nbd::PAYLOAD_BYTES_MAX,
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
        incarnation: Incarnation(4),
        address: "h:1".to_owned(),
    }
}

fn join() -> Frame {
    Frame::Join(Join { secret: TokenSecret([0xc3; 32]), key: [0xb2; 32], address: "h:2".to_owned() })
}

const LIFE: Life = Life { process: [0xd1; 16], boot: BootId([0xb0; 16]) };

fn point(at: u64) -> Point {
    Point { at: Jseq(at), chain: Hash([0xe0; 32]) }
}

fn records() -> Frame {
    Frame::Append(Append {
        volume: VolumeId([0x70; 16]),
        epoch: Epoch(3),
        prev: point(8),
        marks: Marks { written: Jseq(7), durable: Jseq(6), trimmed: Jseq(5) },
        heals: Some(Heal { process: [0xd1; 16], to: Condition::Whole }),
        sync: true,
        records: vec![Bytes::from(vec![0x11; 136]), Bytes::from(vec![0x22; 137])],
    })
}

fn appended() -> Appended {
    Appended {
        volume: VolumeId([0x70; 16]),
        epoch: Epoch(3),
        promise: Epoch(4),
        life: LIFE,
        verdict: ensemble::Verdict::Took,
        condition: Condition::Amnesic,
        at: Jseq(10),
        synced: Jseq(9),
    }
}

fn fenced() -> Fenced {
    Fenced {
        volume: VolumeId([0x70; 16]),
        promise: Epoch(4),
        life: LIFE,
        condition: Condition::Whole,
        base: point(5),
        tail: point(10),
        tail_epoch: Epoch(3),
        durable: Jseq(6),
    }
}

/// What is said to a damaged copy that has been filled.
fn filled() -> Append {
    let Frame::Append(append) = records() else { unreachable!("records are appended") };
    let heals = Some(Heal { process: [0xd1; 16], to: Condition::Amnesic });
    Append { heals, sync: false, records: Vec::new(), ..append }
}

fn of_ensembles() -> Vec<Frame> {
    let volume = VolumeId([0x70; 16]);
    vec![
        records(),
        Frame::Appended(appended()),
        Frame::Fence(Fence { volume, epoch: Epoch(4) }),
        Frame::Fenced(fenced()),
        Frame::ReadTail(ReadTail { volume, epoch: Epoch(4), after: Jseq(5), through: Jseq(10) }),
        Frame::Tail(Tail { volume, epoch: Epoch(4), prev: point(5), records: vec![Bytes::from(vec![0x33; 136])] }),
        Frame::Confirm(Confirm { volume, epoch: Epoch(4), ticket: 9, wants_lease: true }),
        Frame::Confirmed(Confirmed { volume, promise: Epoch(4), ticket: 9, is_leased: false }),
        Frame::Release(Release { volume, epoch: Epoch(4), ticket: 9 }),
        Frame::Append(filled()),
        Frame::Appended(Appended { condition: Condition::Damaged, ..appended() }),
        Frame::Fenced(Fenced { condition: Condition::Damaged, ..fenced() }),
    ]
}

fn attach() -> Forward {
    Forward::Attach {
        session: 5,
        volume: VolumeId([0x70; 16]),
        lineage: Some(Lineage(2)),
        pass: Some(Pass { handle: Handle([0x71; 10]), connection: 3 }),
        principal: "uid:7".to_owned(),
    }
}

fn request(ask: Ask, burst_end: bool) -> Forward {
    Forward::Request { session: 5, tag: 9, ask, burst_end }
}

fn write(length: u32, payload: &'static [u8]) -> Ask {
    Ask::Write { offset: 4096, length, fua: true, payload: Bytes::from_static(payload) }
}

fn reply(told: Told) -> Forward {
    Forward::Reply { session: 5, tag: 9, told }
}

fn of_forwarding() -> Vec<Frame> {
    let data = |bytes: &'static [u8], last| reply(Told::Data { bytes: Bytes::from_static(bytes), last });
    let frames = vec![
        Forward::Open { life: [0xb2; 16], stream: 3 },
        Forward::Opened { stream: 3 },
        Forward::Closed { stream: 3 },
        attach(),
        Forward::Attached { session: 5, epoch: Epoch(4), lineage: Lineage(2) },
        Forward::Ended { session: 5, why: Ended::OtherLineage },
        Forward::Ended { session: 5, why: Ended::Undone },
        Forward::Detach { session: 5 },
        request(Ask::Read { offset: 4096, length: 512 }, false),
        request(write(5, b"abc"), true),
        request(Ask::Trim { offset: 4096, length: 1 << 40, fua: true }, false),
        request(Ask::WriteZeroes { offset: 4096, length: 8192, no_hole: true, fua: true }, false),
        request(Ask::Barrier, true),
        request(Ask::Prefetch { offset: 1, length: 2 }, false),
        request(Ask::Status { offset: 1, length: 2, extents_max: 16 }, false),
        Forward::Payload { session: 5, tag: 9, bytes: Bytes::from_static(b"de") },
        reply(Told::Done),
        reply(Told::Refused(Refused::Closing)),
        data(b"x", false),
        data(b"yz", true),
        reply(Told::Status(vec![(4096, false), (8192, true)])),
        Forward::TookRequests { bytes: 7 },
        Forward::TookReplies { bytes: 8 },
    ];
    frames.into_iter().map(Frame::Forward).collect()
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
    frames.extend([Verdict::Removed, Verdict::NoPlace, Verdict::Welcome, Verdict::Outlived].map(Frame::Verdict));
    let plain = |kind: &MessageKind| *kind != MessageKind::Snapshot;
    frames.extend(MessageKind::ALL.into_iter().filter(plain).map(|kind| Frame::Raft(Box::new(message(kind)))));
    frames.extend(of_ensembles());
    frames.extend(of_forwarding());
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
            "564c70720100010044000000",
            concat!(
                "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
                "0100000000000000",
                "0200000000000000",
                "0100",
                "0100",
                "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2",
                "0300000000000000",
                "04000000",
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
        (Frame::Verdict(Verdict::Outlived), "564c70720100080001000000", "04"),
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
fn room_is_made_for_all_that_long_frames_carry() {
    static LONG: [u8; 64 << 10] = [7; 64 << 10];
    let bytes = || Bytes::from_static(&LONG);
    let Frame::Append(append) = records() else { unreachable!("records are appended") };
    let Append { volume, epoch, prev, .. } = append.clone();
    let forwarded = [
        request(write(64 << 10, &LONG), true),
        Forward::Payload { session: 5, tag: 9, bytes: bytes() },
        reply(Told::Data { bytes: bytes(), last: true }),
    ];
    let carrying = [
        Frame::Append(Append { records: vec![bytes(); 24], ..append }),
        Frame::Tail(Tail { volume, epoch, prev, records: vec![bytes(); 24] }),
        Frame::Piece(Piece { index: 40, offset: 9, bytes: bytes() }),
    ];
    for frame in carrying.into_iter().chain(forwarded.map(Frame::Forward)) {
        let (room, length) = (HEADER_BYTES + FIELDS_BYTES + frame.carried_bytes(), frame.encode().len());
        assert!((length..length + FIELDS_BYTES).contains(&room), "{:?}: {length} bytes, room for {room}", frame.kind());
    }
}

/// Whether a frame ends with bytes whose length is what is left.
fn ends_open(frame: &Frame) -> bool {
    let is_piece = matches!(
        frame,
        Frame::Forward(
            Forward::Request { ask: Ask::Write { .. }, .. }
                | Forward::Payload { .. }
                | Forward::Reply { told: Told::Data { .. }, .. }
        )
    );
    is_piece || matches!(frame.kind(), Kind::Propose | Kind::Piece)
}

#[test]
fn every_truncation_and_every_tail_is_refused() {
    for frame in frames() {
        let whole = frame.encode();
        let body = whole.slice(HEADER_BYTES..);
        for length in 0..body.len() {
            let decoded = Frame::decode(frame.kind(), &body.slice(..length));
            // A shorter entry is an entry, and so with pieces; nothing else may be cut.
            let may_be_cut = ends_open(&frame);
            assert!(decoded.is_err() || may_be_cut, "{frame:?} cut to {length}");
        }
        let longer: Bytes = [&body[..], b"\0"].concat().into();
        assert!(Frame::decode(frame.kind(), &longer).is_err() || ends_open(&frame), "{frame:?} with a tail");
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
    assert_eq!(forged(25, 1), Err(FrameError::Kind(25)));
    assert_eq!(forged(44, 1), Err(FrameError::Kind(44)));
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

/// The bytes as `docs/format.md` draws them, written by another program.
#[test]
fn frames_of_ensembles_keep_their_bytes() {
    let goldens = [
        (
            "564c70720100100089010000",
            concat!(
                "70707070707070707070707070707070",
                "0300000000000000",
                "0800000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0700000000000000",
                "0600000000000000",
                "0500000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
                "01000000",
                "02000000",
                "880000001111111111111111111111111111111111111111111111111111111111111111111111111111111111111111",
                "111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111",
                "1111111111111111111111111111111111111111111111111111111111111111111111111111111111111111",
                "890000002222222222222222222222222222222222222222222222222222222222222222222222222222222222222222",
                "222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222",
                "222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222"
            ),
        ),
        (
            "564c70720100110054000000",
            concat!(
                "70707070707070707070707070707070",
                "0300000000000000",
                "0400000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0",
                "01010000",
                "0a00000000000000",
                "0900000000000000"
            ),
        ),
        ("564c70720100120018000000", concat!("70707070707070707070707070707070", "0400000000000000")),
        (
            "564c7072010013009c000000",
            concat!(
                "70707070707070707070707070707070",
                "0400000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0",
                "00000000",
                "0500000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0a00000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0300000000000000",
                "0600000000000000"
            ),
        ),
        (
            "564c70720100140028000000",
            concat!("70707070707070707070707070707070", "0400000000000000", "0500000000000000", "0a00000000000000"),
        ),
        (
            "564c707201001500d0000000",
            concat!(
                "70707070707070707070707070707070",
                "0400000000000000",
                "0500000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "01000000",
                "880000003333333333333333333333333333333333333333333333333333333333333333333333333333333333333333",
                "333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333",
                "3333333333333333333333333333333333333333333333333333333333333333333333333333333333333333"
            ),
        ),
        (
            "564c70720100160024000000",
            concat!("70707070707070707070707070707070", "0400000000000000", "0900000000000000", "01000000"),
        ),
        (
            "564c70720100170024000000",
            concat!("70707070707070707070707070707070", "0400000000000000", "0900000000000000", "00000000"),
        ),
        (
            "564c70720100180020000000",
            concat!("70707070707070707070707070707070", "0400000000000000", "0900000000000000"),
        ),
        (
            "564c70720100100070000000",
            concat!(
                "70707070707070707070707070707070",
                "0300000000000000",
                "0800000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0700000000000000",
                "0600000000000000",
                "0500000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
                "00010000",
                "00000000"
            ),
        ),
        (
            "564c70720100110054000000",
            concat!(
                "70707070707070707070707070707070",
                "0300000000000000",
                "0400000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0",
                "01020000",
                "0a00000000000000",
                "0900000000000000"
            ),
        ),
        (
            "564c7072010013009c000000",
            concat!(
                "70707070707070707070707070707070",
                "0400000000000000",
                "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0",
                "02000000",
                "0500000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0a00000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0",
                "0300000000000000",
                "0600000000000000"
            ),
        ),
    ];
    assert_eq!(of_ensembles().len(), goldens.len());
    for (frame, (header, body)) in of_ensembles().into_iter().zip(goldens) {
        let bytes = frame.encode();
        assert_eq!(hex(&bytes[..12]), header, "{frame:?}");
        assert_eq!(hex(&bytes[HEADER_BYTES..]), body, "{frame:?}");
    }
}

#[test]
fn frames_of_ensembles_that_cannot_be_are_refused() {
    let Frame::Append(append) = records() else { unreachable!("made above") };
    let with_marks = |written, durable, trimmed| {
        let marks = Marks { written: Jseq(written), durable: Jseq(durable), trimmed: Jseq(trimmed) };
        Frame::Append(Append { marks, ..append.clone() })
    };
    let short = Frame::Append(Append { records: vec![Bytes::from(vec![0; 135])], ..append.clone() });
    let volume = append.volume;
    let heal = |process, to| Frame::Append(Append { heals: Some(Heal { process, to }), ..append.clone() });
    let bad = [
        heal([0xd1; 16], Condition::Damaged),
        heal([0; 16], Condition::Amnesic),
        Frame::Append(Append { epoch: Epoch(0), ..append.clone() }),
        with_marks(5, 6, 5),
        with_marks(7, 5, 6),
        short,
        Frame::Appended(Appended { synced: Jseq(11), ..appended() }),
        Frame::Appended(Appended { life: Life { process: [0; 16], ..LIFE }, ..appended() }),
        Frame::Fence(Fence { volume, epoch: Epoch(0) }),
        Frame::Fenced(Fenced { tail: point(4), ..fenced() }),
        Frame::Fenced(Fenced { tail: point(5), ..fenced() }),
        Frame::Fenced(Fenced { tail_epoch: Epoch(0), ..fenced() }),
        Frame::ReadTail(ReadTail { volume, epoch: Epoch(4), after: Jseq(9), through: Jseq(9) }),
        Frame::Confirm(Confirm { volume, epoch: Epoch(0), ticket: 9, wants_lease: true }),
        Frame::Release(Release { volume, epoch: Epoch(0), ticket: 9 }),
    ];
    for frame in bad {
        assert!(decode(&frame.encode()).is_err(), "{frame:?}");
    }
}

#[test]
fn more_records_than_bytes_are_refused_before_anything_is_allocated() {
    let whole =
        Frame::Tail(Tail { volume: VolumeId([1; 16]), epoch: Epoch(1), prev: point(0), records: vec![] }).encode();
    let mut body = whole[HEADER_BYTES..].to_vec();
    let count = body.len() - 4;
    body[count..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Frame::decode(Kind::Tail, &body.into()), Err(FrameError::Body(ReadError::Field("records"))));
}

/// The bytes as `docs/format.md` draws them, written by another program.
#[test]
fn frames_of_forwarding_keep_their_bytes() {
    let goldens = [
        ("564c70720100200018000000", concat!("b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2", "0300000000000000")),
        ("564c70720100210008000000", "0300000000000000"),
        ("564c70720100220008000000", "0300000000000000"),
        (
            "564c70720100230038000000",
            concat!(
                "0500000000000000",
                "70707070707070707070707070707070",
                "0200000000000000",
                "71717171717171717171",
                "0300000000000000",
                "05",
                "7569643a37"
            ),
        ),
        ("564c70720100240018000000", concat!("0500000000000000", "0400000000000000", "0200000000000000")),
        ("564c70720100250009000000", concat!("0500000000000000", "03")),
        ("564c70720100250009000000", concat!("0500000000000000", "06")),
        ("564c70720100260008000000", "0500000000000000"),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "01000000",
                "00000000",
                "0010000000000000",
                "0002000000000000"
            ),
        ),
        (
            "564c7072010027002b000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "02050000",
                "00000000",
                "0010000000000000",
                "0500000000000000",
                "616263"
            ),
        ),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "03010000",
                "00000000",
                "0010000000000000",
                "0000000000010000"
            ),
        ),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "04030000",
                "00000000",
                "0010000000000000",
                "0020000000000000"
            ),
        ),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "05040000",
                "00000000",
                "0000000000000000",
                "0000000000000000"
            ),
        ),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "06000000",
                "00000000",
                "0100000000000000",
                "0200000000000000"
            ),
        ),
        (
            "564c70720100270028000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "07000000",
                "10000000",
                "0100000000000000",
                "0200000000000000"
            ),
        ),
        ("564c70720100280012000000", concat!("0500000000000000", "0900000000000000", "6465")),
        ("564c70720100290011000000", concat!("0500000000000000", "0900000000000000", "01")),
        ("564c70720100290012000000", concat!("0500000000000000", "0900000000000000", "02", "03")),
        ("564c70720100290012000000", concat!("0500000000000000", "0900000000000000", "03", "78")),
        ("564c70720100290013000000", concat!("0500000000000000", "0900000000000000", "04", "797a")),
        (
            "564c70720100290027000000",
            concat!(
                "0500000000000000",
                "0900000000000000",
                "05",
                "02000000",
                "001000000000000000",
                "002000000000000001"
            ),
        ),
        ("564c707201002a0008000000", "0700000000000000"),
        ("564c707201002b0008000000", "0800000000000000"),
    ];
    assert_eq!(of_forwarding().len(), goldens.len());
    for (frame, (header, body)) in of_forwarding().into_iter().zip(goldens) {
        let bytes = frame.encode();
        assert_eq!(hex(&bytes[..12]), header, "{frame:?}");
        assert_eq!(hex(&bytes[HEADER_BYTES..]), body, "{frame:?}");
    }
}

#[test]
fn frames_of_forwarding_that_cannot_be_are_refused() {
    let named = |principal: &str| Forward::Attach {
        session: 5,
        volume: VolumeId([0x70; 16]),
        lineage: None,
        pass: None,
        principal: principal.to_owned(),
    };
    let read = |offset, length| request(Ask::Read { offset, length }, false);
    let long = Bytes::from(vec![1; FORWARD_PIECE_BYTES_MAX + 1]);
    let bad = [
        Forward::Open { life: [0; 16], stream: 3 },
        Forward::Open { life: [1; 16], stream: 0 },
        named(""),
        named("a\nb"),
        named(&"a".repeat(129)),
        Forward::Attached { session: 5, epoch: Epoch(0), lineage: Lineage(2) },
        Forward::Attached { session: 5, epoch: Epoch(1), lineage: Lineage(0) },
        read(0, 0),
        read(0, PAYLOAD_BYTES_MAX + 1),
        read(u64::MAX, 2),
        request(write(2, b"abc"), false),
        request(write(2, b""), false),
        request(write(PAYLOAD_BYTES_MAX + 1, b"a"), false),
        request(Ask::Status { offset: 0, length: 1, extents_max: 0 }, false),
        Forward::Payload { session: 5, tag: 9, bytes: Bytes::new() },
        Forward::Payload { session: 5, tag: 9, bytes: long.clone() },
        reply(Told::Data { bytes: long, last: true }),
        reply(Told::Status(vec![(1, false); FORWARD_EXTENTS_MAX + 1])),
    ];
    for frame in bad {
        assert!(decode(&Frame::Forward(frame.clone()).encode()).is_err(), "{frame:?}");
    }
    // Flags that an operation does not have, and operations, outcomes and reasons that there are not.
    for (frame, at, to) in [
        (read(0, 1), 17, 1),
        (request(write(1, b"a"), false), 17, 2),
        (read(0, 1), 16, 8),
        (read(0, 1), 18, 1),
        (reply(Told::Done), 16, 6),
        (reply(Told::Refused(Refused::Failed)), 17, 5),
        (Forward::Ended { session: 1, why: Ended::Full }, 8, 8),
        // A handle without a connection.
        (named("a"), 32, 1),
        (Forward::Ended { session: 1, why: Ended::Full }, 8, 0),
    ] {
        let mut body = Frame::Forward(frame.clone()).encode()[HEADER_BYTES..].to_vec();
        body[at] = to;
        assert!(Frame::decode(frame.kind(), &body.into()).is_err(), "{frame:?} with {to} at {at}");
    }
}

#[test]
fn both_sides_count_alike_what_takes_credit() {
    let counted: Vec<u64> = of_forwarding()
        .into_iter()
        .map(|frame| match frame {
            Frame::Forward(forward) => forward.credit_bytes(),
            _ => unreachable!("made above"),
        })
        .collect();
    assert_eq!(counted[..8], [0; 8]);
    assert_eq!(counted[8..], [64, 67, 64, 64, 64, 64, 64, 66, 64, 64, 65, 66, 82, 0, 0]);
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(kind in 0..Kind::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
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
