//! Transcripts of handshakes, and every bad input a client can begin with.

use proptest::prelude::*;
use velum_protocol::nbd::{
    handshake::{GREETING_BYTES, decode_greeting, encode_client_flags},
    option_reply::{OPTION_REPLY_HEADER_BYTES, OptionReplyHeader},
};

use super::*;
use crate::{
    audit::Verdict,
    server::fakes::{Table, somebody},
};

const SIZE: usize = 1 << 20;

/// A server and the bytes that went to and fro.
struct Talk {
    handshake: Handshake,
    gate: std::rc::Rc<Gate>,
    audit: std::rc::Rc<crate::audit::Audit>,
    input: BytesMut,
    out: BytesMut,
    stopping: bool,
}

/// How a conversation stands.
#[derive(Debug, PartialEq, Eq)]
enum Stand {
    Talking,
    Entered { name: String, structured: bool, allocation: bool },
    Left(Leave),
}

impl Talk {
    /// The greeting and the client's flags are behind them.
    fn begun(volumes: &[(&str, Right)], flags: ClientFlags) -> Self {
        let mut talk = Self::new(volumes);
        encode_client_flags(flags, &mut talk.input);
        assert_eq!(talk.run(), Stand::Talking);
        talk.out.clear();
        talk
    }

    fn new(volumes: &[(&str, Right)]) -> Self {
        let (_, gate, audit) = Table::gate(volumes, SIZE);
        let mut out = BytesMut::new();
        let handshake = Handshake::new(&mut out);
        assert!(decode_greeting(out.first_chunk().unwrap()).is_ok());
        assert_eq!(out.len(), GREETING_BYTES);
        Self { handshake, gate, audit, input: BytesMut::new(), out, stopping: false }
    }

    fn run(&mut self) -> Stand {
        loop {
            let principal = somebody();
            let visitor = Visitor { gate: &self.gate, principal: &principal, stopping: self.stopping };
            match self.handshake.step(&mut self.input, visitor, &mut self.out) {
                Step::Again => {}
                Step::NeedInput => return Stand::Talking,
                Step::Leave(leave) => return Stand::Left(leave),
                Step::Enter(agreed) => {
                    let Agreed { export, structured, allocation } = *agreed;
                    return Stand::Entered { name: export.name, structured, allocation };
                }
            }
        }
    }

    fn say(&mut self, option: &OptionRequest) -> Stand {
        option.encode(&mut self.input);
        self.run()
    }

    fn say_raw(&mut self, code: OptionCode, data: &[u8]) -> Stand {
        OptionHeader { code, length: u32::try_from(data.len()).unwrap() }.encode(&mut self.input);
        self.input.extend_from_slice(data);
        self.run()
    }

    fn replies(&mut self) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        while !self.out.is_empty() {
            let header = OptionReplyHeader::decode(self.out.first_chunk().unwrap()).unwrap();
            let message = self.out.split_to(OPTION_REPLY_HEADER_BYTES + usize::try_from(header.length).unwrap());
            replies.push(OptionReply::decode(header, &message[OPTION_REPLY_HEADER_BYTES..]).unwrap());
        }
        replies
    }

    /// The only reply, which must be an error.
    fn error(&mut self) -> OptionError {
        match &self.replies()[..] {
            [OptionReply::Error { error, .. }] => *error,
            other => panic!("one error was expected: {other:?}"),
        }
    }
}

fn fixed() -> ClientFlags {
    ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES)
}

fn demo() -> Talk {
    Talk::begun(&[("demo", Right::Write)], fixed())
}

fn choice(name: &str, wanted: &[InfoKind]) -> Choice {
    Choice { name: name.to_owned(), wanted: wanted.to_vec() }
}

fn contexts(name: &str, queries: &[&str]) -> Contexts {
    Contexts { name: name.to_owned(), queries: queries.iter().map(|query| (*query).to_owned()).collect() }
}

fn context(id: u32) -> OptionReply {
    OptionReply::MetaContext { id, name: BASE_ALLOCATION.to_owned() }
}

fn entered(structured: bool, allocation: bool) -> Stand {
    Stand::Entered { name: "demo".to_owned(), structured, allocation }
}

#[test]
fn go_describes_the_export_and_enters() {
    let mut talk = demo();
    assert_eq!(talk.say(&OptionRequest::StructuredReply), Stand::Talking);
    assert_eq!(talk.replies(), [OptionReply::Ack]);
    assert_eq!(talk.say(&OptionRequest::SetMetaContext(contexts("demo", &["base:allocation"]))), Stand::Talking);
    assert_eq!(talk.replies(), [context(ALLOCATION_CONTEXT), OptionReply::Ack]);
    let wanted = [InfoKind::NAME, InfoKind::BLOCK_SIZE, InfoKind(77)];
    assert_eq!(talk.say(&OptionRequest::Go(choice("demo", &wanted))), entered(true, true));
    let replies = talk.replies();
    let [OptionReply::Info(Info::Export(export)), rest @ ..] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(export.size_bytes, SIZE as u64);
    let expected = [
        TransmissionFlags::HAS_FLAGS,
        TransmissionFlags::SEND_FLUSH,
        TransmissionFlags::SEND_FUA,
        TransmissionFlags::SEND_TRIM,
        TransmissionFlags::SEND_WRITE_ZEROES,
        TransmissionFlags::SEND_DF,
        TransmissionFlags::CAN_MULTI_CONN,
        TransmissionFlags::SEND_CACHE,
        TransmissionFlags::SEND_FAST_ZERO,
    ];
    assert_eq!(export.flags, expected.into_iter().fold(TransmissionFlags::NONE, TransmissionFlags::with));
    let sizes = Info::BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 };
    assert_eq!(rest, [OptionReply::Info(Info::Name("demo".to_owned())), OptionReply::Info(sizes), OptionReply::Ack]);
}

#[test]
fn a_message_is_taken_only_when_it_is_complete() {
    let mut talk = Talk::new(&[("demo", Right::Write)]);
    talk.out.clear();
    let mut bytes = BytesMut::new();
    encode_client_flags(fixed(), &mut bytes);
    OptionRequest::List.encode(&mut bytes);
    OptionRequest::Go(choice("demo", &[])).encode(&mut bytes);
    let (last, before) = bytes.split_last().unwrap();
    for byte in before {
        talk.input.extend_from_slice(&[*byte]);
        assert_eq!(talk.run(), Stand::Talking);
    }
    talk.input.extend_from_slice(&[*last]);
    assert_eq!(talk.run(), entered(false, false));
}

#[test]
fn requests_sent_along_with_go_are_left_for_transmission() {
    let mut talk = demo();
    OptionRequest::Go(choice("", &[])).encode(&mut talk.input);
    talk.input.extend_from_slice(b"pipelined");
    assert_eq!(talk.run(), entered(false, false));
    assert_eq!(&talk.input[..], b"pipelined");
}

#[test]
fn export_name_answers_without_option_replies() {
    for (flags, length) in [(fixed(), 10), (ClientFlags::FIXED_NEWSTYLE, 134)] {
        let mut talk = Talk::begun(&[("demo", Right::Write)], flags);
        assert_eq!(talk.say(&OptionRequest::ExportName("demo".to_owned())), entered(false, false));
        assert_eq!(talk.out.len(), length);
        let export = ExportInfo::decode(talk.out.first_chunk().unwrap()).unwrap();
        assert!(!export.flags.has(TransmissionFlags::SEND_DF), "structured replies were not asked for");
    }
}

#[test]
fn a_reader_gets_a_read_only_export() {
    let mut talk = Talk::begun(&[("demo", Right::Read)], fixed());
    talk.say(&OptionRequest::Info(choice("demo", &[])));
    let [OptionReply::Info(Info::Export(export)), OptionReply::Ack] = &talk.replies()[..] else { panic!() };
    assert!(export.flags.has(TransmissionFlags::READ_ONLY));
    let writes =
        [TransmissionFlags::SEND_TRIM, TransmissionFlags::SEND_WRITE_ZEROES, TransmissionFlags::SEND_FAST_ZERO];
    assert!(writes.into_iter().all(|flag| !export.flags.has(flag)));
}

#[test]
fn a_listing_shows_what_the_principal_may_see() {
    let mut talk = Talk::begun(&[("a", Right::Read), ("b", Right::None), ("c", Right::Write)], fixed());
    assert_eq!(talk.say(&OptionRequest::List), Stand::Talking);
    let server = |name: &str| OptionReply::Server { name: name.to_owned() };
    assert_eq!(talk.replies(), [server("a"), server("c"), OptionReply::Ack]);
}

#[test]
fn unknown_and_forbidden_exports_get_the_same_answer() {
    let volumes = [("hidden", Right::None), ("demo", Right::Write)];
    for name in ["hidden", "missing", "demo\u{300}", "Demo", "demo ", &"n".repeat(3000)] {
        let mut talk = Talk::begun(&volumes, fixed());
        talk.say(&OptionRequest::StructuredReply);
        talk.replies();
        for option in [
            OptionRequest::Info(choice(name, &[])),
            OptionRequest::Go(choice(name, &[])),
            OptionRequest::SetMetaContext(contexts(name, &["base:allocation"])),
            OptionRequest::ListMetaContext(contexts(name, &[])),
        ] {
            assert_eq!(talk.say(&option), Stand::Talking);
            assert_eq!(talk.error(), OptionError::UnknownExport, "{option:?}");
        }
        let refused = talk.audit.recent().iter().filter(|record| record.verdict == Verdict::Refused).count();
        assert_eq!(refused, 4, "one record each");
        assert_eq!(talk.say(&OptionRequest::ExportName(name.to_owned())), Stand::Left(Leave::UnknownExport));
        assert!(talk.out.is_empty(), "there is no error reply to an export name");
    }
}

#[test]
fn bad_options_are_answered_and_the_talk_goes_on() {
    let long_name = [&4097u32.to_be_bytes()[..], &[b'x'; 4097], &[0, 0]].concat();
    let go = |name: &[u8], tail: &[u8]| [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name, tail].concat();
    let table: &[(&str, OptionCode, Vec<u8>, OptionError)] = &[
        ("unknown option", OptionCode(42), vec![], OptionError::Unsupported),
        ("unknown option with data", OptionCode(11), vec![1; 100], OptionError::Unsupported),
        ("peek export", OptionCode(4), vec![], OptionError::Unsupported),
        ("starttls without TLS", OptionCode::STARTTLS, vec![], OptionError::Unsupported),
        ("starttls with data", OptionCode::STARTTLS, vec![0], OptionError::Invalid),
        ("list with data", OptionCode::LIST, vec![0], OptionError::Invalid),
        ("structured reply with data", OptionCode::STRUCTURED_REPLY, vec![0], OptionError::Invalid),
        ("name longer than the option", OptionCode::GO, u32::MAX.to_be_bytes().to_vec(), OptionError::Invalid),
        ("name with NUL", OptionCode::GO, go(b"de\0mo", &[0, 0]), OptionError::Invalid),
        ("name cut by NUL", OptionCode::GO, go(b"demo\0", &[0, 0]), OptionError::Invalid),
        ("name not UTF-8", OptionCode::INFO, go(b"demo\xff", &[0, 0]), OptionError::Invalid),
        ("name of 4,097 bytes", OptionCode::INFO, long_name, OptionError::Invalid),
        ("info count too large", OptionCode::GO, go(b"demo", &[0, 9, 0, 3]), OptionError::Invalid),
        ("an info twice", OptionCode::GO, go(b"demo", &[0, 2, 0, 3, 0, 3]), OptionError::Invalid),
        ("2^32 queries", OptionCode::SET_META_CONTEXT, go(b"demo", &[255; 4]), OptionError::TooBig),
        (
            "query without colon",
            OptionCode::SET_META_CONTEXT,
            go(b"demo", b"\0\0\0\x01\0\0\0\x04base"),
            OptionError::Invalid,
        ),
        ("8 KiB and a byte", OptionCode::LIST, vec![0; 8193], OptionError::TooBig),
        ("64 KiB", OptionCode(42), vec![0; 65536], OptionError::TooBig),
    ];
    let mut talk = demo();
    for (what, code, data, expected) in table {
        assert_eq!(talk.say_raw(*code, data), Stand::Talking, "{what}");
        assert_eq!(talk.error(), *expected, "{what}");
    }
    assert_eq!(talk.say(&OptionRequest::Go(choice("demo", &[]))), entered(false, false), "nothing of it stuck");
    assert_eq!(talk.handshake.take_refused().len(), table.len(), "each is counted");
}

#[test]
fn what_cannot_be_answered_ends_the_connection_without_a_byte() {
    let too_long = OptionSkip(65537);
    let table: &[(&str, Vec<u8>, Leave)] = &[
        ("option magic", [&b"IHAVEOPS"[..], &[0; 8]].concat(), Leave::Malformed(Malformed::Magic)),
        ("64 KiB and a byte", too_long.header(OptionCode::LIST), Leave::TooLong),
        ("4 GiB", OptionSkip(u32::MAX).header(OptionCode(99)), Leave::TooLong),
        ("export name of 8 KiB and a byte", OptionSkip(8193).header(OptionCode::EXPORT_NAME), Leave::TooLong),
        ("export name with NUL", raw(OptionCode::EXPORT_NAME, b"demo\0"), Leave::Malformed(Malformed::NotText)),
        ("export name not UTF-8", raw(OptionCode::EXPORT_NAME, b"\xfe"), Leave::Malformed(Malformed::NotText)),
        ("4,097 bytes", raw(OptionCode::EXPORT_NAME, &[b'n'; 4097]), Leave::Malformed(Malformed::StringTooLong)),
    ];
    for (what, bytes, expected) in table {
        let mut talk = demo();
        talk.input.extend_from_slice(bytes);
        assert_eq!(talk.run(), Stand::Left(*expected), "{what}");
        assert!(talk.out.is_empty(), "{what}");
    }
}

struct OptionSkip(u32);

impl OptionSkip {
    fn header(&self, code: OptionCode) -> Vec<u8> {
        let mut out = BytesMut::new();
        OptionHeader { code, length: self.0 }.encode(&mut out);
        out.to_vec()
    }
}

fn raw(code: OptionCode, data: &[u8]) -> Vec<u8> {
    [OptionSkip(u32::try_from(data.len()).unwrap()).header(code), data.to_vec()].concat()
}

#[test]
fn bad_client_flags_end_the_connection() {
    for flags in [*b"\0\0\0\x04", *b"GET ", *b"\x16\x03\x01\x02", [255; 4]] {
        let mut talk = Talk::new(&[]);
        talk.input.extend_from_slice(&flags);
        assert_eq!(talk.run(), Stand::Left(Leave::Malformed(Malformed::Flags)));
    }
}

#[test]
fn abort_is_acknowledged_whatever_comes_with_it() {
    for data in [&b""[..], b"bye"] {
        let mut talk = demo();
        assert_eq!(talk.say_raw(OptionCode::ABORT, data), Stand::Left(Leave::Aborted));
        assert_eq!(talk.replies(), [OptionReply::Ack]);
    }
}

/// A server kept reading options, and their data, for as long as they came.
#[test]
fn cve_2017_15119_endless_options_end_the_connection() {
    let mut talk = demo();
    for _ in 0..HANDSHAKE_OPTIONS_MAX {
        assert_eq!(talk.say(&OptionRequest::List), Stand::Talking);
    }
    assert_eq!(talk.say(&OptionRequest::List), Stand::Left(Leave::TooManyOptions));
}

#[test]
fn metadata_contexts_follow_the_last_successful_choice() {
    let set = |name: &str, queries: &[&str]| OptionRequest::SetMetaContext(contexts(name, queries));
    let good = || set("demo", &["base:allocation"]);
    let bad_count = raw(OptionCode::SET_META_CONTEXT, &[0; 3]);
    let after = |say: &dyn Fn(&mut Talk)| {
        let mut talk = Talk::begun(&[("demo", Right::Write), ("other", Right::Write)], fixed());
        talk.say(&OptionRequest::StructuredReply);
        talk.say(&good());
        say(&mut talk);
        talk.say(&OptionRequest::Go(choice("demo", &[])))
    };
    assert_eq!(after(&|_| ()), entered(true, true));
    assert_eq!(after(&|talk| drop(talk.say(&set("demo", &[])))), entered(true, false), "an empty choice");
    assert_eq!(
        after(&|talk| drop(talk.say(&set("missing", &["base:allocation"])))),
        entered(true, false),
        "a failed one"
    );
    assert_eq!(
        after(&|talk| drop(talk.say(&set("other", &["base:allocation"])))),
        entered(true, false),
        "another export"
    );
    assert_eq!(
        after(&|talk| drop(talk.say(&set("demo", &["base:", "x-own:leaf"])))),
        entered(true, false),
        "a wildcard"
    );
    let malformed = |talk: &mut Talk| {
        talk.input.extend_from_slice(&bad_count);
        talk.run();
    };
    assert_eq!(after(&malformed), entered(true, false), "a malformed one");
    let list = OptionRequest::ListMetaContext(contexts("demo", &[]));
    assert_eq!(after(&|talk| drop(talk.say(&list))), entered(true, true), "listing changes nothing");
}

#[test]
fn metadata_contexts_are_listed_by_query() {
    let mut talk = demo();
    let list = |queries: &[&str]| OptionRequest::ListMetaContext(contexts("demo", queries));
    talk.say(&list(&[]));
    assert_eq!(talk.error(), OptionError::Invalid, "structured replies come first");
    talk.say(&OptionRequest::SetMetaContext(contexts("demo", &["base:allocation"])));
    assert_eq!(talk.error(), OptionError::Invalid, "structured replies come first");
    talk.say(&OptionRequest::StructuredReply);
    talk.replies();
    for (queries, found) in [
        (&[][..], true),
        (&["base:"][..], true),
        (&["base:allocation"][..], true),
        (&["base:", "base:allocation"][..], true),
        (&["base:none"][..], false),
        (&["qemu:dirty-bitmap:x"][..], false),
    ] {
        talk.say(&list(queries));
        let expected = if found { vec![context(0), OptionReply::Ack] } else { vec![OptionReply::Ack] };
        assert_eq!(talk.replies(), expected, "{queries:?}");
    }
}

/// A server kept what was negotiated in the clear when TLS began. Here TLS is refused, and says so before and after.
#[test]
fn cve_2021_3716_starttls_is_refused_and_starts_nothing() {
    let mut talk = demo();
    talk.say(&OptionRequest::StructuredReply);
    talk.replies();
    OptionRequest::StartTls.encode(&mut talk.input);
    OptionRequest::StartTls.encode(&mut talk.input);
    assert_eq!(talk.run(), Stand::Talking);
    let errors: Vec<_> = talk.replies();
    assert!(errors.iter().all(|reply| matches!(reply, OptionReply::Error { error: OptionError::Unsupported, .. })));
    assert_eq!(errors.len(), 2);
}

/// A server opened its disk for clients that had not chosen an export; connecting and leaving wore it out.
#[test]
fn cve_2019_14850_no_volume_is_touched_before_an_export_is_chosen() {
    let mut talk = demo();
    talk.say(&OptionRequest::List);
    assert!(talk.audit.recent().is_empty());
    talk.say(&OptionRequest::Abort);
    assert!(talk.audit.recent().is_empty());
}

/// A server aborted when one client asked about exports over and over with INFO before GO; state of the first lingered.
#[test]
fn cve_2019_14851_asking_before_choosing_leaves_nothing_behind() {
    let mut talk = demo();
    for _ in 0..20 {
        assert_eq!(talk.say(&OptionRequest::Info(choice("demo", &[InfoKind::BLOCK_SIZE]))), Stand::Talking);
    }
    assert_eq!(talk.say(&OptionRequest::Go(choice("demo", &[]))), entered(false, false));
}

#[test]
fn a_stopping_node_turns_options_away() {
    let mut talk = demo();
    talk.stopping = true;
    assert_eq!(talk.say(&OptionRequest::List), Stand::Left(Leave::Stopping));
    assert_eq!(talk.error(), OptionError::Shutdown);
    assert_eq!(talk.say(&OptionRequest::Abort), Stand::Left(Leave::Aborted));
}

proptest! {
    #[test]
    fn no_bytes_panic_the_handshake(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..12), begin: bool) {
        let mut talk = if begin { demo() } else { Talk::new(&[]) };
        for (piece, code) in pieces.into_iter().zip(0u32..) {
            if begin { OptionHeader { code: OptionCode(code), length: u32::try_from(piece.len()).unwrap() }.encode(&mut talk.input); }
            talk.input.extend_from_slice(&piece);
            if talk.run() != Stand::Talking { break }
        }
    }
}
