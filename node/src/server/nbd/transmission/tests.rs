//! Requests and replies as tables and transcripts: what is handed out, what is answered, what cuts the connection.

use proptest::prelude::*;
use velum_protocol::format::metadata::Right;
use velum_protocol::nbd::{
    Cookie, PAYLOAD_BYTES_MAX,
    client::{Answer, Ask, Negotiated, Session},
    flags::TransmissionFlags,
    handshake::ExportInfo,
};

use super::super::judge::action_of;
use super::*;

const SIZE: u64 = 128 << 20;
const MAX: u32 = PAYLOAD_BYTES_MAX;

/// A machine, what it sent and what it wants done.
struct Line {
    machine: Transmission,
    out: Outgoing,
    effects: Vec<Effect>,
    conditions: Conditions,
}

impl Line {
    fn new(structured: bool) -> Self {
        let terms = Terms { structured, allocation: structured };
        let conditions = Conditions { size_bytes: SIZE, right: Right::Write, stopping: false, now: Instant(5) };
        let machine = Transmission::new(terms, BytesMut::new());
        Self { machine, out: Outgoing::default(), effects: Vec::new(), conditions }
    }

    fn advance(&mut self) -> Result<(), Cut> {
        self.machine.advance(&self.conditions, &mut self.out, &mut self.effects)
    }

    /// Delivers bytes as a socket would, where and as far as the machine wants them; gives back what it does not take.
    fn deliver<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], Cut> {
        self.advance()?;
        while !bytes.is_empty() && self.machine.wants_input() {
            let mut space = self.machine.space();
            let taken = bytes.len().min(space.remaining_mut());
            space.put_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.advance()?;
        }
        Ok(bytes)
    }

    fn ask(&mut self, request: Request, payload: &[u8]) -> Result<(), Cut> {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        bytes.extend_from_slice(payload);
        assert!(self.deliver(&bytes)?.is_empty(), "everything is taken");
        Ok(())
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.out.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); super::super::outgoing::SLICES_MAX];
            let count = self.out.slices(&mut slices);
            let before = all.len();
            slices[..count].iter().for_each(|slice| all.extend_from_slice(slice));
            let sent = all.len() - before;
            self.out.sent(sent);
        }
        all
    }

    fn submitted(&mut self) -> Vec<(u64, Operation)> {
        let submitted =
            |effect| if let Effect::Submit { tag, operation } = effect { Some((tag, operation)) } else { None };
        self.effects.drain(..).filter_map(submitted).collect()
    }

    /// The error of the only reply, which must be one.
    fn error(&mut self, session: &mut Session) -> Result<Answer, ErrorCode> {
        let mut over = Vec::new();
        session.receive(&mut BytesMut::from(&self.sent()[..]), &mut over).unwrap();
        assert_eq!(over.len(), 1, "one reply");
        over.remove(0).1
    }
}

fn request(command: Command, offset: u64, length: u32) -> Request {
    Request { flags: CommandFlags::NONE, command, cookie: Cookie(0xfeed), offset, length }
}

fn flagged(flags: CommandFlags, command: Command) -> Request {
    Request { flags, ..request(command, 0, 4096) }
}

/// The client's view of a session, with one request of its own in flight under the tests' cookie.
fn client(structured: bool) -> Session {
    let export = ExportInfo { size_bytes: SIZE, flags: TransmissionFlags::HAS_FLAGS };
    Session::new(Negotiated { export, structured, allocation: structured.then_some(ALLOCATION_CONTEXT) })
}

/// The reply to a request that the machine answers by itself, as the client reads it.
fn answer(line: &mut Line, structured: bool, asked: Request) -> Result<Answer, ErrorCode> {
    let mut session = client(structured);
    let ask = match asked.command {
        Command::Read => Ask::Read { offset: asked.offset, length: asked.length },
        Command::BlockStatus => Ask::BlockStatus { offset: asked.offset, length: asked.length, one: false },
        _ => Ask::Flush,
    };
    let cookie = session.ask(&ask, &mut BytesMut::new());
    let payload =
        if asked.command == Command::Write { vec![7; usize::try_from(asked.length).unwrap()] } else { vec![] };
    line.ask(Request { cookie, ..asked }, &payload).unwrap();
    assert!(line.submitted().is_empty(), "nothing reaches the volume");
    line.error(&mut session)
}

#[test]
fn bad_requests_get_their_error_and_never_reach_the_volume() {
    let fua = CommandFlags::FUA;
    let fast_no_hole = CommandFlags::FAST_ZERO.with(CommandFlags::NO_HOLE);
    use Command::*;
    use ErrorCode::*;
    let table: &[(&str, Request, ErrorCode)] = &[
        ("read beyond the end", request(Read, SIZE - 1, 2), Invalid),
        ("read whose end overflows", request(Read, u64::MAX, 2), Invalid),
        ("read over the largest payload", request(Read, 0, MAX + 1), Invalid),
        ("such a read in one piece", Request { flags: CommandFlags::DF, ..request(Read, 0, MAX + 1) }, Overflow),
        ("read with a write's flag", flagged(CommandFlags::NO_HOLE, Read), Invalid),
        ("read with an unknown flag", flagged(CommandFlags(1 << 9), Read), Invalid),
        ("write beyond the end", request(Write, SIZE - 1, 2), NoSpace),
        ("write whose end overflows", request(Write, u64::MAX - 1, 4096), NoSpace),
        ("write over the largest payload", request(Write, 0, MAX + 1), Invalid),
        ("write of twice the largest payload", request(Write, 0, 2 * MAX), Invalid),
        ("write with an unknown flag", flagged(CommandFlags(1 << 15), Write), Invalid),
        ("write with the extension's flag", flagged(CommandFlags::PAYLOAD_LEN, Write), Invalid),
        ("zeroes beyond the end", request(WriteZeroes, SIZE, 1), NoSpace),
        ("zeroes whose end overflows", request(WriteZeroes, u64::MAX, u32::MAX), NoSpace),
        ("fast zeroes without a hole", flagged(fast_no_hole, WriteZeroes), NotSupported),
        ("zeroes with a read's flag", flagged(CommandFlags::DF, WriteZeroes), Invalid),
        ("trim beyond the end", request(Trim, SIZE - 4096, 8192), Invalid),
        ("trim with a flag of zeroes", flagged(CommandFlags::NO_HOLE, Trim), Invalid),
        ("cache beyond the end", request(Cache, SIZE, 1), Invalid),
        ("cache with a flag", flagged(CommandFlags::REQ_ONE, Cache), Invalid),
        ("status beyond the end", request(BlockStatus, 0, u32::MAX), Invalid),
        ("status of nothing", request(BlockStatus, 0, 0), Invalid),
        ("flush with an offset", request(Flush, 1, 0), Invalid),
        ("flush with a length", request(Flush, 0, 1), Invalid),
        ("flush with another's flag", Request { flags: CommandFlags::DF.with(fua), ..request(Flush, 0, 0) }, Invalid),
        ("an unknown command", request(Unknown(9), 0, 0), Invalid),
        ("resize, an extension", request(Unknown(8), 4096, 0), Invalid),
    ];
    for structured in [true, false] {
        for (what, asked, expected) in table {
            let expected = match (*expected, structured) {
                (Overflow, false) => Invalid,
                (expected, _) => expected,
            };
            let mut line = Line::new(structured);
            assert_eq!(answer(&mut line, structured, *asked), Err(expected), "{what}, structured: {structured}");
            line.ask(request(Flush, 0, 0), &[]).unwrap();
            assert_eq!(line.submitted().len(), 1, "after {what} the session goes on");
        }
    }
}

#[test]
fn a_block_status_needs_its_context() {
    let mut line = Line::new(true);
    line.machine.terms.allocation = false;
    assert_eq!(answer(&mut line, true, request(Command::BlockStatus, 0, 4096)), Err(ErrorCode::Invalid));
}

#[test]
fn what_cannot_be_understood_cuts_the_connection() {
    let mut magic = BytesMut::new();
    request(Command::Read, 0, 4096).encode(&mut magic);
    magic[3] ^= 1;
    let encoded = |request: Request| {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        bytes
    };
    let table = [
        ("bad magic", magic, Cut::Malformed(Malformed::Magic)),
        ("write of 64 MiB and a byte", encoded(request(Command::Write, 0, 2 * MAX + 1)), Cut::TooLong(2 * MAX + 1)),
        ("write of 4 GiB", encoded(request(Command::Write, 0, u32::MAX)), Cut::TooLong(u32::MAX)),
        ("unknown with a payload", encoded(request(Command::Unknown(77), 0, 512)), Cut::Unknown(77)),
    ];
    for (what, bytes, expected) in table {
        let mut line = Line::new(true);
        assert_eq!(line.deliver(&bytes), Err(expected), "{what}");
        assert!(line.effects.is_empty() && line.out.is_empty(), "{what}");
    }
}

#[test]
fn requests_of_length_zero_are_done_at_once() {
    for command in [Command::Read, Command::Write, Command::Trim, Command::Cache, Command::WriteZeroes] {
        for offset in [0, SIZE] {
            for structured in [true, false] {
                let mut line = Line::new(structured);
                let expected = if command == Command::Read { Answer::Data(Bytes::new()) } else { Answer::Done };
                let got = answer(&mut line, structured, request(command, offset, 0));
                assert_eq!(got, Ok(expected), "{command:?} at {offset}");
            }
        }
    }
}

#[test]
fn each_command_reaches_the_volume_as_what_it_asks() {
    let mut line = Line::new(true);
    let fua = CommandFlags::FUA;
    line.ask(Request { flags: fua, ..request(Command::Write, 3, 5) }, b"hello").unwrap();
    line.ask(Request { flags: fua, ..request(Command::Read, 1, 2) }, &[]).unwrap();
    line.ask(Request { flags: fua, ..request(Command::Trim, 0, 64 << 20) }, &[]).unwrap();
    line.ask(Request { flags: CommandFlags::NO_HOLE, ..request(Command::WriteZeroes, 4096, 8192) }, &[]).unwrap();
    line.ask(Request { flags: CommandFlags::FAST_ZERO, ..request(Command::WriteZeroes, 1, 1) }, &[]).unwrap();
    line.ask(request(Command::Cache, 0, MAX), &[]).unwrap();
    line.ask(Request { flags: CommandFlags::REQ_ONE, ..request(Command::BlockStatus, 0, 9) }, &[]).unwrap();
    line.ask(request(Command::BlockStatus, 0, 9), &[]).unwrap();
    line.ask(Request { flags: fua, ..request(Command::Flush, 0, 0) }, &[]).unwrap();
    let submitted: Vec<_> = line.submitted().into_iter().map(|(_, operation)| format!("{operation:?}")).collect();
    assert_eq!(
        submitted,
        [
            r#"Write { offset: 3, payload: b"hello", fua: true }"#,
            "Read { offset: 1, length: 2 }",
            "Trim { offset: 0, length: 67108864, fua: true }",
            "WriteZeroes { offset: 4096, length: 8192, no_hole: true, fua: false }",
            "WriteZeroes { offset: 1, length: 1, no_hole: false, fua: false }",
            "Prefetch { offset: 0, length: 33554432 }",
            "Status { offset: 0, length: 9, extents_max: 1 }",
            "Status { offset: 0, length: 9, extents_max: 16384 }",
            "Barrier",
        ]
    );
}

#[test]
fn a_writer_without_the_right_is_told_and_recorded_once_each() {
    for (right, command, allowed) in [
        (Right::Read, Command::Write, false),
        (Right::Read, Command::Trim, false),
        (Right::Read, Command::WriteZeroes, false),
        (Right::Read, Command::Read, true),
        (Right::Read, Command::BlockStatus, true),
        (Right::None, Command::Read, false),
        (Right::None, Command::BlockStatus, false),
        (Right::None, Command::Cache, false),
    ] {
        let mut line = Line::new(true);
        line.conditions.right = right;
        let payload: &[u8] = if command == Command::Write { &[1; 4096] } else { &[] };
        line.ask(request(command, 8192, 4096), payload).unwrap();
        let refused: Vec<_> = line
            .effects
            .iter()
            .filter_map(
                |effect| if let Effect::Refused { action, range } = effect { Some((*action, *range)) } else { None },
            )
            .collect();
        let range = ByteRange { offset: 8192, length: 4096 };
        let expected = if allowed { vec![] } else { vec![(action_of(command), range)] };
        assert_eq!(refused, expected, "{right:?} {command:?}");
        assert_eq!(line.submitted().len(), usize::from(allowed), "{right:?} {command:?}");
        assert_eq!(line.out.is_empty(), allowed);
    }
}

#[test]
fn a_right_taken_away_while_the_payload_arrives_stops_the_write() {
    let mut line = Line::new(false);
    let mut bytes = BytesMut::new();
    request(Command::Write, 0, 8192).encode(&mut bytes);
    bytes.extend_from_slice(&[3; 5000]);
    line.deliver(&bytes).unwrap();
    line.conditions.right = Right::Read;
    line.deliver(&[3; 3192]).unwrap();
    assert!(line.submitted().is_empty());
    let mut expected = BytesMut::new();
    encode_simple(Cookie(0xfeed), Some(ErrorCode::NotPermitted), &mut expected);
    assert_eq!(line.sent(), expected);
}

/// A client that announced a payload and left made a server write what happened to be in its buffer.
#[test]
fn cve_2017_9524_a_short_payload_has_no_effect() {
    for length in [1, 27, 4095, 300_000] {
        let mut line = Line::new(true);
        let mut bytes = BytesMut::new();
        request(Command::Write, 0, 300_001).encode(&mut bytes);
        bytes.resize(REQUEST_BYTES + length, 9);
        line.deliver(&bytes).unwrap();
        assert!(line.effects.is_empty() && line.out.is_empty());
        assert_eq!(line.machine.in_flight(), 0);
    }
}

#[test]
fn same_cookies_in_flight_are_all_answered_and_answers_come_in_any_order() {
    let mut line = Line::new(false);
    for offset in [0, 4096, 8192] {
        line.ask(request(Command::Read, offset, 4), &[]).unwrap();
    }
    let tags: Vec<_> = line.submitted().into_iter().map(|(tag, _)| tag).collect();
    let mut expected = BytesMut::new();
    for (tag, data) in tags.iter().rev().zip([&b"cccc"[..], b"bbbb", b"aaaa"]) {
        let over = line.machine.reply(*tag, Outcome::Data(vec![Bytes::copy_from_slice(data)]), &mut line.out).unwrap();
        assert_eq!((over.kind, over.outcome, over.bytes), (GuestRequest::Read, GuestOutcome::Done, 4));
        encode_simple(Cookie(0xfeed), None, &mut expected);
        expected.extend_from_slice(data);
    }
    assert_eq!(line.sent(), expected);
    assert!(line.machine.reply(tags[0], Outcome::Done, &mut line.out).is_none(), "a second answer is ignored");
    assert!(line.out.is_empty());
}

#[test]
fn the_volumes_refusals_become_errors() {
    let table = [
        (Refusal::NotAllowed, Command::Write, ErrorCode::NotPermitted),
        (Refusal::OutOfRange, Command::Write, ErrorCode::NoSpace),
        (Refusal::OutOfRange, Command::WriteZeroes, ErrorCode::NoSpace),
        (Refusal::OutOfRange, Command::Read, ErrorCode::Invalid),
        (Refusal::Closing, Command::Read, ErrorCode::Shutdown),
        (Refusal::Failed, Command::Flush, ErrorCode::Io),
    ];
    for (refusal, command, expected) in table {
        let mut line = Line::new(false);
        let length = if command == Command::Flush { 0 } else { 16 };
        let payload = if command == Command::Write { vec![0; 16] } else { vec![] };
        line.ask(request(command, 0, length), &payload).unwrap();
        let tag = line.submitted()[0].0;
        line.machine.reply(tag, Outcome::Refused(refusal), &mut line.out).unwrap();
        let mut bytes = BytesMut::new();
        encode_simple(Cookie(0xfeed), Some(expected), &mut bytes);
        assert_eq!(line.sent(), bytes, "{refusal:?} {command:?}");
        assert_eq!(line.machine.is_fenced(), refusal == Refusal::Closing);
    }
}

#[test]
fn an_answer_that_does_not_fit_its_request_is_an_error_and_never_data() {
    let table = [
        (Command::Read, Outcome::Data(vec![Bytes::from_static(b"short")])),
        (Command::Read, Outcome::Data(vec![Bytes::from_static(&[0; 17])])),
        (Command::Read, Outcome::Done),
        (Command::BlockStatus, Outcome::Status(vec![])),
        (Command::BlockStatus, Outcome::Status(vec![StatusExtent { length: 0, hole: true }])),
        (Command::Trim, Outcome::Data(vec![])),
    ];
    for (command, outcome) in table {
        let mut line = Line::new(true);
        line.ask(request(command, 0, 16), &[]).unwrap();
        let tag = line.submitted()[0].0;
        let what = format!("{command:?} {outcome:?}");
        let over = line.machine.reply(tag, outcome, &mut line.out).unwrap();
        assert_eq!(over.outcome, GuestOutcome::Failed, "{what}");
        let mut bytes = BytesMut::new();
        encode_error(Cookie(0xfeed), ErrorCode::Io, message_of(ErrorCode::Io), &mut bytes);
        assert_eq!(line.sent(), bytes, "{what}");
    }
}

#[test]
fn extents_stay_within_what_was_asked_for() {
    let hole = StatusFlags::HOLE.with(StatusFlags::ZERO);
    let descriptor = |length, flags| Descriptor { length, flags };
    let extents = vec![StatusExtent { length: 4096, hole: false }, StatusExtent { length: 1 << 40, hole: true }];
    for (flags, length, expected) in [
        (CommandFlags::NONE, 8192, vec![descriptor(4096, StatusFlags::NONE), descriptor(4096, hole)]),
        (CommandFlags::NONE, 4096, vec![descriptor(4096, StatusFlags::NONE)]),
        (CommandFlags::REQ_ONE, 8192, vec![descriptor(4096, StatusFlags::NONE)]),
        (CommandFlags::REQ_ONE, 100, vec![descriptor(100, StatusFlags::NONE)]),
    ] {
        let mut line = Line::new(true);
        line.ask(Request { flags, ..request(Command::BlockStatus, 0, length) }, &[]).unwrap();
        let tag = line.submitted()[0].0;
        line.machine.reply(tag, Outcome::Status(extents.clone()), &mut line.out).unwrap();
        let mut bytes = BytesMut::new();
        encode_status(Cookie(0xfeed), ALLOCATION_CONTEXT, &expected, &mut bytes);
        assert_eq!(line.sent(), bytes, "{flags:?} {length}");
    }
}

#[test]
fn what_is_held_stays_within_the_bound_and_goes_on_when_there_is_room() {
    let mut line = Line::new(true);
    let mut bytes = BytesMut::new();
    for _ in 0..5 {
        request(Command::Read, 0, MAX).encode(&mut bytes);
    }
    line.deliver(&bytes).unwrap();
    // Two reads of 32 MiB would be 64 MiB and their overhead.
    let first = line.submitted();
    assert_eq!(first.len(), 1);
    assert!(line.machine.is_blocked() && !line.machine.wants_input(), "the socket is left unread");
    let data = vec![Bytes::from(vec![0; usize::try_from(MAX).unwrap()])];
    line.machine.reply(first[0].0, Outcome::Data(data), &mut line.out).unwrap();
    line.advance().unwrap();
    assert!(line.submitted().is_empty(), "replies that are not taken count too");
    assert!(line.sent().len() > usize::try_from(MAX).unwrap());
    line.advance().unwrap();
    assert_eq!(line.submitted().len(), 1);
    assert!(line.machine.is_blocked());
}

#[test]
fn requests_in_flight_are_bounded_by_number_too() {
    let mut line = Line::new(true);
    let mut bytes = BytesMut::new();
    for _ in 0..SESSION_REQUESTS_MAX + 1 {
        request(Command::Flush, 0, 0).encode(&mut bytes);
    }
    line.deliver(&bytes).unwrap();
    let submitted = line.submitted();
    assert_eq!(submitted.len(), SESSION_REQUESTS_MAX);
    assert!(line.machine.is_blocked());
    line.machine.reply(submitted[3].0, Outcome::Done, &mut line.out).unwrap();
    line.advance().unwrap();
    assert_eq!((line.submitted().len(), line.machine.is_blocked()), (1, false));
}

/// Error replies that the client does not take must not pile up without bound either.
#[test]
fn a_flood_of_bad_requests_stops_being_read_when_its_answers_are_not_taken() {
    let mut line = Line::new(true);
    let mut bytes = BytesMut::new();
    for _ in 0..4096 {
        request(Command::Flush, 1, 1).encode(&mut bytes);
    }
    let mut rounds = 0;
    while line.deliver(&bytes).unwrap().is_empty() {
        rounds += 1;
        assert!(rounds < 1000, "it never stops");
        line.effects.clear();
    }
    assert!(line.out.len() as u64 <= SESSION_BYTES_MAX);
}

#[test]
fn payloads_of_refused_writes_are_not_kept() {
    let mut line = Line::new(false);
    let mut bytes = BytesMut::new();
    request(Command::Write, SIZE, 2 * MAX).encode(&mut bytes);
    line.deliver(&bytes).unwrap();
    let chunk = vec![1; 1 << 20];
    for _ in 0..64 {
        assert!(line.out.is_empty(), "the answer comes after the payload");
        line.deliver(&chunk).unwrap();
        assert!(line.machine.input.capacity() <= 2 * SESSION_READ_BYTES);
    }
    assert_eq!(line.sent().len(), 16);
}

#[test]
fn payloads_do_not_pin_the_read_buffer() {
    let mut line = Line::new(true);
    for round in 0..100u8 {
        let mut bytes = BytesMut::new();
        for _ in 0..8 {
            request(Command::Write, 0, 4096).encode(&mut bytes);
            bytes.extend_from_slice(&[round; 4096]);
        }
        line.deliver(&bytes).unwrap();
        assert!(line.machine.input.capacity() <= SESSION_READ_BYTES, "the buffer is used over and over");
    }
    let submitted = line.submitted();
    assert_eq!(submitted.len(), 800);
    for ((_, operation), round) in submitted.iter().zip((0..100u8).flat_map(|round| [round; 8])) {
        let Operation::Write { payload, .. } = operation else { panic!("a write") };
        assert_eq!(payload, &vec![round; 4096]);
    }
}

#[test]
fn after_goodbye_nothing_more_is_taken_and_what_is_in_flight_is_answered() {
    let mut line = Line::new(true);
    line.ask(request(Command::Flush, 0, 0), &[]).unwrap();
    let tag = line.submitted()[0].0;
    let mut bytes = BytesMut::new();
    request(Command::Disconnect, 0, 0).encode(&mut bytes);
    request(Command::Write, 0, 4).encode(&mut bytes);
    bytes.extend_from_slice(b"late");
    line.deliver(&bytes).unwrap();
    assert!(line.machine.is_disconnected() && !line.machine.wants_input());
    assert!(line.submitted().is_empty(), "what follows goodbye is not looked at");
    assert!(line.machine.reply(tag, Outcome::Done, &mut line.out).is_some());
    assert_eq!(line.sent().len(), 16);
}

#[test]
fn a_stopping_session_answers_everything_with_shutdown() {
    for command in [Command::Read, Command::Write, Command::Flush, Command::Trim, Command::BlockStatus] {
        let mut line = Line::new(true);
        line.conditions.stopping = true;
        assert_eq!(answer(&mut line, true, request(command, 0, 512)), Err(ErrorCode::Shutdown), "{command:?}");
    }
}

proptest! {
    /// However a stream of requests is cut into reads, the same is handed out.
    #[test]
    fn cutting_the_stream_changes_nothing(
        asks in proptest::collection::vec((0u8..6, 0u32..200_000, 0u64..1 << 20), 1..12),
        cuts in proptest::collection::vec(1usize..100_000, 1..8),
    ) {
        let mut bytes = BytesMut::new();
        let mut expected = 0;
        for (kind, length, offset) in asks {
            let command = [Command::Read, Command::Write, Command::Trim, Command::WriteZeroes, Command::Cache, Command::Write][usize::from(kind)];
            request(command, offset, length).encode(&mut bytes);
            if command == Command::Write { bytes.resize(bytes.len() + usize::try_from(length).unwrap(), kind) }
            expected += usize::from(length > 0);
        }
        let mut whole = Line::new(true);
        whole.deliver(&bytes).unwrap();
        let whole = whole.submitted();
        prop_assert_eq!(whole.len(), expected);
        let mut line = Line::new(true);
        let (mut rest, mut cut) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            prop_assert!(line.deliver(now).unwrap().is_empty());
            rest = later;
        }
        prop_assert_eq!(format!("{:?}", line.submitted()), format!("{whole:?}"));
    }

    #[test]
    fn no_bytes_panic_the_machine(bytes in proptest::collection::vec(any::<u8>(), 0..400), command in 0u8..10, structured: bool) {
        let mut line = Line::new(structured);
        let mut framed = BytesMut::new();
        for chunk in bytes.chunks(24) {
            framed.put_u32(velum_protocol::nbd::request::REQUEST_MAGIC);
            framed.put_u16(0);
            framed.put_u16(u16::from(command));
            framed.extend_from_slice(chunk);
        }
        let _ = line.deliver(&framed);
        let _ = line.deliver(&bytes);
    }
}
