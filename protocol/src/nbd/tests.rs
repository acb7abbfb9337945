//! Round trips of every message, hostile bytes for every decoder, and the incidents that taught the bounds.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    client::{Answer, Ask, ClientError, Handshake, Negotiated, Session, Wishes},
    flags::{ClientFlags, CommandFlags, HandshakeFlags, StatusFlags, TransmissionFlags},
    handshake::*,
    option::*,
    option_reply::*,
    reply::*,
    request::*,
    *,
};

fn name() -> impl Strategy<Value = String> + Clone {
    "[a-zA-Z0-9 ._:äé-]{0,64}"
}

fn option_request() -> impl Strategy<Value = OptionRequest> {
    let kinds = proptest::collection::btree_set(any::<u16>(), 0..8)
        .prop_map(|kinds| kinds.into_iter().map(InfoKind).collect::<Vec<_>>());
    let choice = (name(), kinds).prop_map(|(name, wanted)| Choice { name, wanted });
    let queries = proptest::collection::vec("[a-z-]{1,12}:[a-z/]{0,20}", 0..QUERIES_MAX);
    let contexts = (name(), queries).prop_map(|(name, queries)| Contexts { name, queries });
    prop_oneof![
        name().prop_map(OptionRequest::ExportName),
        Just(OptionRequest::Abort),
        Just(OptionRequest::List),
        Just(OptionRequest::StartTls),
        Just(OptionRequest::StructuredReply),
        choice.clone().prop_map(OptionRequest::Info),
        choice.prop_map(OptionRequest::Go),
        contexts.clone().prop_map(OptionRequest::ListMetaContext),
        contexts.prop_map(OptionRequest::SetMetaContext),
        (11u32..).prop_map(|code| OptionRequest::Unknown(OptionCode(code))),
    ]
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    let export = (any::<u64>(), any::<u16>())
        .prop_map(|(size_bytes, flags)| Info::Export(ExportInfo { size_bytes, flags: TransmissionFlags(flags) }));
    let info = prop_oneof![
        export,
        name().prop_map(Info::Name),
        name().prop_map(Info::Description),
        any::<[u32; 3]>().prop_map(|[minimum, preferred, maximum]| Info::BlockSize { minimum, preferred, maximum }),
        (4u16..).prop_map(|kind| Info::Unknown(InfoKind(kind))),
    ];
    let error = prop_oneof![
        Just(OptionError::Unsupported),
        Just(OptionError::Policy),
        Just(OptionError::Invalid),
        Just(OptionError::Platform),
        Just(OptionError::TlsRequired),
        Just(OptionError::UnknownExport),
        Just(OptionError::Shutdown),
        Just(OptionError::BlockSizeRequired),
        Just(OptionError::TooBig),
        (10u32..1 << 31).prop_map(OptionError::Other),
    ];
    prop_oneof![
        Just(OptionReply::Ack),
        name().prop_map(|name| OptionReply::Server { name }),
        info.prop_map(OptionReply::Info),
        (any::<u32>(), name()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (error, name()).prop_map(|(error, message)| OptionReply::Error { error, message }),
    ]
}

proptest! {
    #[test]
    fn every_option_reads_back(option in option_request()) {
        let mut out = BytesMut::new();
        option.encode(&mut out);
        let header = OptionHeader::decode(out.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(usize::try_from(header.length).unwrap(), out.len() - OPTION_HEADER_BYTES);
        prop_assert_eq!(OptionRequest::decode(header.code, &out[OPTION_HEADER_BYTES..]), Ok(option));
    }

    #[test]
    fn every_option_reply_reads_back(reply in option_reply(), option in any::<u32>()) {
        let mut out = BytesMut::new();
        reply.encode(OptionCode(option), &mut out);
        let header = OptionReplyHeader::decode(out.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header.option, OptionCode(option));
        prop_assert_eq!(OptionReply::decode(header, &out[OPTION_REPLY_HEADER_BYTES..]), Ok(reply));
    }

    #[test]
    fn every_request_reads_back(flags: u16, number in 0u16..12, cookie: u64, offset: u64, length: u32) {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        let request = Request::decode(bytes.first_chunk().unwrap()).unwrap();
        prop_assert_eq!((request.flags.0, request.cookie.0, request.offset, request.length), (flags, cookie, offset, length));
        let mut again = BytesMut::new();
        request.encode(&mut again);
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn every_reply_reads_back(cookie: u64, code in 1u32..200, offset: u64, extents in proptest::collection::vec((1u32.., 0u32..4), 1..20)) {
        let cookie = Cookie(cookie);
        let error = ErrorCode::from_number(code).unwrap();
        let extents: Vec<_> = extents.into_iter().map(|(length, flags)| Descriptor { length, flags: StatusFlags(flags) }).collect();
        let mut out = BytesMut::new();
        encode_simple(cookie, Some(error), &mut out);
        prop_assert_eq!(ReplyHeader::decode(&out).unwrap(), Some((ReplyHeader::Simple { cookie, error: Some(error) }, SIMPLE_BYTES)));

        let chunk = |write: &dyn Fn(&mut BytesMut)| {
            let mut out = BytesMut::new();
            write(&mut out);
            out
        };
        let none = chunk(&|out| encode_none(cookie, out));
        prop_assert_eq!(decoded(&none), (cookie, true, Chunk::None));
        let failed = chunk(&|out| encode_error(cookie, error, "no", out));
        prop_assert_eq!(decoded(&failed), (cookie, true, Chunk::Error { error, message: "no", offset: None }));
        let status = chunk(&|out| encode_status(cookie, 3, &extents, out));
        prop_assert_eq!(decoded(&status), (cookie, true, Chunk::Status { context: 3, extents: extents.clone() }));
        let mut read = chunk(&|out| encode_data(cookie, offset, 5, out));
        read.extend_from_slice(b"hello");
        prop_assert_eq!(decoded(&read), (cookie, true, Chunk::Data { offset, contents: b"hello" }));
    }

    #[test]
    fn no_decoder_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), code in 0u32..13, kind: u16) {
        let _ = OptionRequest::decode(OptionCode(code), &bytes);
        let _ = Chunk::decode(kind, &bytes);
        for kind in [kind & 7, kind | 0x8000, 0x8001, 0x8002] {
            let _ = Chunk::decode(kind, &bytes);
        }
        let _ = ReplyHeader::decode(&bytes);
        for kind in [1, 2, 3, 4, 0x8000_0003, code] {
            let header = OptionReplyHeader { option: OptionCode(code), kind, length: 0 };
            let _ = OptionReply::decode(header, &bytes);
        }
        if let Some(head) = bytes.first_chunk() { let _ = Request::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionHeader::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionReplyHeader::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = decode_greeting(head); }
        if let Some(head) = bytes.first_chunk() { let _ = ExportInfo::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = decode_client_flags(*head); }
    }

    #[test]
    fn no_cut_or_bit_flip_of_an_option_panics_a_decoder(option in option_request(), at: prop::sample::Index, bit in 0u8..8) {
        let mut out = BytesMut::new();
        option.encode(&mut out);
        let cut = at.index(out.len());
        if let Some(data) = out.get(OPTION_HEADER_BYTES..cut) { let _ = OptionRequest::decode(option.code(), data); }
        out[cut] ^= 1 << bit;
        let _ = OptionRequest::decode(option.code(), &out[OPTION_HEADER_BYTES..]);
    }

    #[test]
    fn no_bytes_from_a_server_panic_the_client(bytes in proptest::collection::vec(any::<u8>(), 0..300), structured: bool, magic in 0u8..3) {
        let mut input = BytesMut::from(&bytes[..]);
        let _ = Handshake::new(wishes()).step(&mut input, &mut BytesMut::new());
        let mut session = Session::new(negotiated(structured));
        let mut out = BytesMut::new();
        session.ask(&Ask::Read { offset: 0, length: 64 }, &mut out);
        session.ask(&Ask::BlockStatus { offset: 0, length: 64, one: false }, &mut out);
        let mut input = BytesMut::new();
        match magic {
            0 => input.extend_from_slice(&SIMPLE_MAGIC.to_be_bytes()),
            1 => input.extend_from_slice(&CHUNK_MAGIC.to_be_bytes()),
            _ => {}
        }
        input.extend_from_slice(&bytes);
        let _ = session.receive(&mut input, &mut Vec::new());
    }
}

fn decoded(message: &[u8]) -> (Cookie, bool, Chunk<'_>) {
    let Ok(Some((ReplyHeader::Chunk { cookie, done, kind, length }, head))) = ReplyHeader::decode(message) else {
        panic!("not a chunk")
    };
    assert_eq!(usize::try_from(length).unwrap(), message.len() - head);
    (cookie, done, Chunk::decode(kind, &message[head..]).unwrap())
}

fn wishes() -> Wishes {
    Wishes { export: "demo".to_owned(), structured: true, allocation: true }
}

fn negotiated(structured: bool) -> Negotiated {
    let export = ExportInfo { size_bytes: 1 << 20, flags: TransmissionFlags::HAS_FLAGS };
    Negotiated { export, structured, allocation: structured.then_some(1) }
}

/// Option data: a name of the given length field, then the given tail.
fn choice_data(name_length: u32, tail: &[u8]) -> Vec<u8> {
    let mut data = name_length.to_be_bytes().to_vec();
    data.extend_from_slice(tail);
    data
}

#[test]
fn malformed_options_are_told_apart() {
    let long_name = vec![b'x'; STRING_BYTES_MAX + 1];
    let mut many = choice_data(0, &[]);
    many.extend_from_slice(&u32::MAX.to_be_bytes());
    let mut no_colon = choice_data(0, &1u32.to_be_bytes());
    no_colon.extend_from_slice(&[0, 0, 0, 4]);
    no_colon.extend_from_slice(b"base");
    let mut no_namespace = choice_data(0, &1u32.to_be_bytes());
    no_namespace.extend_from_slice(&[0, 0, 0, 2]);
    no_namespace.extend_from_slice(b":x");
    let table: &[(&str, OptionCode, &[u8], Malformed)] = &[
        ("list with data", OptionCode::LIST, b"x", Malformed::Trailing),
        ("starttls with data", OptionCode::STARTTLS, b"x", Malformed::Trailing),
        ("structured reply with data", OptionCode::STRUCTURED_REPLY, b"x", Malformed::Trailing),
        ("name with NUL", OptionCode::EXPORT_NAME, b"a\0b", Malformed::NotText),
        ("name not UTF-8", OptionCode::EXPORT_NAME, b"\xff\xfe", Malformed::NotText),
        ("name of 4,097 bytes", OptionCode::EXPORT_NAME, &long_name, Malformed::StringTooLong),
        ("no data at all", OptionCode::GO, b"", Malformed::Short),
        ("name reaches over the info count", OptionCode::GO, &choice_data(3, b"abc"), Malformed::Short),
        ("fewer infos than counted", OptionCode::GO, &choice_data(1, b"a\0\x02\0\x03"), Malformed::Short),
        ("more infos than counted", OptionCode::GO, &choice_data(1, b"a\0\0\0\x03"), Malformed::Trailing),
        ("an info twice", OptionCode::INFO, &choice_data(1, b"a\0\x02\0\x03\0\x03"), Malformed::Duplicate),
        ("2^32 queries", OptionCode::SET_META_CONTEXT, &many, Malformed::TooMany),
        ("a query without a colon", OptionCode::SET_META_CONTEXT, &no_colon, Malformed::NoNamespace),
        ("a query without a namespace", OptionCode::LIST_META_CONTEXT, &no_namespace, Malformed::NoNamespace),
        ("a query count cut short", OptionCode::LIST_META_CONTEXT, &choice_data(0, b"\0\0"), Malformed::Short),
    ];
    for (what, code, data, expected) in table {
        assert_eq!(OptionRequest::decode(*code, data), Err(*expected), "{what}");
    }
}

/// The server of the reference implementation took the name's length on trust and wrote over its stack or heap.
#[test]
fn cve_2022_26495_and_26496_a_name_length_beyond_the_option_is_malformed() {
    for length in [u32::MAX, u32::MAX - 3, 0x8000_0000, 6, 5] {
        let data = choice_data(length, b"abcd");
        for code in [OptionCode::GO, OptionCode::INFO, OptionCode::SET_META_CONTEXT, OptionCode::LIST_META_CONTEXT] {
            assert_eq!(OptionRequest::decode(code, &data), Err(Malformed::Short), "{length:#x} {code:?}");
        }
    }
}

/// A long export name overran a buffer on the stack of qemu's server; here it is a name like any other.
#[test]
fn cve_2017_15118_a_long_export_name_is_kept_whole() {
    let name = "n".repeat(3000);
    let mut data = choice_data(3000, name.as_bytes());
    data.extend_from_slice(&[0, 0]);
    let Ok(OptionRequest::Go(choice)) = OptionRequest::decode(OptionCode::GO, &data) else { panic!("a legal option") };
    assert_eq!(choice.name, name);
}

/// A server that announces more than was asked for must not make the client write beyond its buffer.
#[test]
fn nbd_135_a_reply_longer_than_its_request_ends_the_session() {
    for (offset, length) in [(4096, 513), (4095, 512), (4608, 1), (u64::MAX, 16), (0, 1)] {
        let mut session = Session::new(negotiated(true));
        let cookie = session.ask(&Ask::Read { offset: 4096, length: 512 }, &mut BytesMut::new());
        let mut input = BytesMut::new();
        encode_data(cookie, offset, length, &mut input);
        input.resize(input.len() + usize::try_from(length).unwrap(), 7);
        let ended = session.receive(&mut input, &mut Vec::new());
        assert!(matches!(ended, Err(ClientError::Broken(_))), "{offset}+{length}: {ended:?}");
    }
}

/// A structured reply of nearly 4 GiB made a client allocate as much.
#[test]
fn an_oversized_structured_reply_is_refused_by_its_header() {
    for length in [CHUNK_PAYLOAD_BYTES_MAX + 1, u32::MAX] {
        let mut message = BytesMut::new();
        encode_none(Cookie(1), &mut message);
        message[16..20].copy_from_slice(&length.to_be_bytes());
        assert_eq!(ReplyHeader::decode(&message), Err(Malformed::TooLong));
    }
}

#[test]
fn unknown_client_flags_are_refused() {
    assert!(decode_client_flags([0, 0, 0, 3]).unwrap().has(ClientFlags::NO_ZEROES));
    assert_eq!(decode_client_flags([0, 0, 0, 4]), Err(Malformed::Flags));
    assert_eq!(decode_client_flags(*b"GET "), Err(Malformed::Flags));
}

#[test]
fn the_old_greeting_is_refused() {
    let mut greeting = BytesMut::new();
    encode_greeting(HandshakeFlags::FIXED_NEWSTYLE, &mut greeting);
    assert_eq!(decode_greeting(greeting.first_chunk().unwrap()), Ok(HandshakeFlags::FIXED_NEWSTYLE));
    greeting[8..16].copy_from_slice(&0x0000_4202_8186_1253_u64.to_be_bytes());
    assert_eq!(decode_greeting(greeting.first_chunk().unwrap()), Err(Malformed::Magic));
}

#[test]
fn the_zeros_after_an_export_name_can_be_left_out() {
    let export = ExportInfo { size_bytes: 1 << 30, flags: TransmissionFlags::HAS_FLAGS };
    for (no_zeroes, length) in [(true, EXPORT_BYTES), (false, EXPORT_BYTES + EXPORT_ZEROES)] {
        let mut out = BytesMut::new();
        export.encode(no_zeroes, &mut out);
        assert_eq!(out.len(), length);
        assert_eq!(ExportInfo::decode(out.first_chunk().unwrap()), Ok(export));
    }
}

#[test]
fn a_fragmented_read_is_assembled_and_an_incomplete_one_refused() {
    let read = Ask::Read { offset: 100, length: 10 };
    let mut session = Session::new(negotiated(true));
    let cookie = session.ask(&read, &mut BytesMut::new());
    let mut input = BytesMut::new();
    let piece = |offset: u64, bytes: &[u8], done: bool, input: &mut BytesMut| {
        let mut message = BytesMut::new();
        encode_data(cookie, offset, u32::try_from(bytes.len()).unwrap(), &mut message);
        message[5] = u8::from(done);
        input.extend_from_slice(&message);
        input.extend_from_slice(bytes);
    };
    piece(106, b"WXYZ", false, &mut input);
    piece(100, b"abcdef", true, &mut input);
    let mut over = Vec::new();
    // One byte at a time: the machine keeps what is not complete.
    let mut partial = BytesMut::new();
    for byte in input.clone() {
        partial.extend_from_slice(&[byte]);
        session.receive(&mut partial, &mut over).unwrap();
    }
    assert_eq!(over, [(cookie, Ok(Answer::Data(Bytes::from_static(b"abcdefWXYZ"))))]);

    let mut session = Session::new(negotiated(true));
    session.ask(&read, &mut BytesMut::new());
    let mut input = BytesMut::new();
    piece(100, b"abc", true, &mut input);
    assert!(matches!(session.receive(&mut input, &mut over), Err(ClientError::Broken(_))));

    let mut session = Session::new(negotiated(true));
    session.ask(&read, &mut BytesMut::new());
    let mut input = BytesMut::new();
    piece(100, b"abcdef", false, &mut input);
    piece(105, b"fghij", true, &mut input);
    assert!(matches!(session.receive(&mut input, &mut over), Err(ClientError::Broken(_))));
}

#[test]
fn replies_that_fit_no_request_end_the_session() {
    let broken = |structured: bool, ask: &Ask, reply: &dyn Fn(Cookie, &mut BytesMut)| {
        let mut session = Session::new(negotiated(structured));
        let cookie = session.ask(ask, &mut BytesMut::new());
        let mut input = BytesMut::new();
        reply(cookie, &mut input);
        matches!(session.receive(&mut input, &mut Vec::new()), Err(ClientError::Broken(_)))
    };
    let (read, status) = (Ask::Read { offset: 0, length: 4 }, Ask::BlockStatus { offset: 0, length: 4096, one: true });
    let extent = |length| Descriptor { length, flags: StatusFlags::NONE };
    assert!(broken(true, &Ask::Flush, &|_, out| encode_simple(Cookie(77), None, out)), "unknown cookie");
    assert!(broken(true, &read, &|cookie, out| encode_simple(cookie, None, out)), "simple reply to a structured read");
    assert!(broken(false, &read, &|cookie, out| encode_none(cookie, out)), "chunk without structured replies");
    assert!(broken(true, &status, &|cookie, out| encode_none(cookie, out)), "status without extents");
    assert!(broken(true, &status, &|cookie, out| encode_status(cookie, 9, &[extent(1)], out)), "foreign context");
    assert!(broken(true, &status, &|cookie, out| encode_status(cookie, 1, &[extent(1); 2], out)), "two for REQ_ONE");
    assert!(broken(true, &status, &|cookie, out| encode_status(cookie, 1, &[extent(4097)], out)), "beyond REQ_ONE");
    assert!(!broken(true, &status, &|cookie, out| encode_status(cookie, 1, &[extent(4096)], out)));
    assert!(!broken(true, &Ask::Flush, &|cookie, out| encode_simple(cookie, None, out)));
}

#[test]
fn request_flags_follow_what_is_asked() {
    let mut out = BytesMut::new();
    let mut session = Session::new(negotiated(true));
    session.ask(&Ask::WriteZeroes { offset: 1, length: 2, no_hole: true, fast: true, fua: true }, &mut out);
    let request = Request::decode(out.first_chunk().unwrap()).unwrap();
    let expected = CommandFlags::FUA.with(CommandFlags::NO_HOLE).with(CommandFlags::FAST_ZERO);
    assert_eq!((request.command, request.flags), (Command::WriteZeroes, expected));
}

/// Bytes written down from the protocol document, so that both directions cannot be wrong alike.
#[test]
fn messages_have_the_documented_bytes() {
    let hex = |text: &str| -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let written = |write: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    };
    let flags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);
    let greeting = written(&|out| encode_greeting(flags, out));
    assert_eq!(greeting, [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat());

    let choice = Choice { name: "demo".to_owned(), wanted: vec![InfoKind::BLOCK_SIZE] };
    let go = written(&|out| OptionRequest::Go(choice.clone()).encode(out));
    assert_eq!(go, hex("49484156454f5054 00000007 0000000c 00000004 64656d6f 0001 0003"));
    let queries = vec!["base:allocation".to_owned()];
    let contexts = Contexts { name: String::new(), queries };
    let set = written(&|out| OptionRequest::SetMetaContext(contexts.clone()).encode(out));
    let expected = "49484156454f5054 0000000a 0000001b 00000000 00000001 0000000f 626173653a616c6c6f636174696f6e";
    assert_eq!(set, hex(expected));

    let reply = |reply: OptionReply, option| written(&|out| reply.encode(option, out));
    let export = ExportInfo { size_bytes: 1 << 30, flags: TransmissionFlags(0x0dfd) };
    let expected = "0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0dfd";
    assert_eq!(reply(OptionReply::Info(Info::Export(export)), OptionCode::GO), hex(expected));
    let sizes = Info::BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 };
    let expected = "0003e889045565a9 00000006 00000003 0000000e 0003 00000001 00001000 02000000";
    assert_eq!(reply(OptionReply::Info(sizes), OptionCode::INFO), hex(expected));
    let refusal = OptionReply::error(OptionError::UnknownExport, "no");
    assert_eq!(reply(refusal, OptionCode::GO), hex("0003e889045565a9 00000007 80000006 00000002 6e6f"));
    let server = OptionReply::Server { name: "a".to_owned() };
    assert_eq!(reply(server, OptionCode::LIST), hex("0003e889045565a9 00000003 00000002 00000005 00000001 61"));

    let cookie = Cookie(0x1122_3344_5566_7788);
    let flags = CommandFlags::FUA.with(CommandFlags::NO_HOLE);
    let zeroes = Request { flags, command: Command::WriteZeroes, cookie, offset: 4096, length: 512 };
    let expected = "25609513 0003 0006 1122334455667788 0000000000001000 00000200";
    assert_eq!(written(&|out| zeroes.encode(out)), hex(expected));
    let simple = written(&|out| encode_simple(cookie, Some(ErrorCode::Shutdown), out));
    assert_eq!(simple, hex("67446698 0000006c 1122334455667788"));
    let data = written(&|out| encode_data(cookie, 4096, 3, out));
    assert_eq!(data, hex("668e33ef 0001 0001 1122334455667788 0000000b 0000000000001000"));
    let hole = Descriptor { length: 4096, flags: StatusFlags::HOLE.with(StatusFlags::ZERO) };
    let status = written(&|out| encode_status(cookie, 1, &[hole], out));
    assert_eq!(status, hex("668e33ef 0001 0005 1122334455667788 0000000c 00000001 00001000 00000003"));
    let error = written(&|out| encode_error(cookie, ErrorCode::NoSpace, "no", out));
    assert_eq!(error, hex("668e33ef 0001 8001 1122334455667788 00000008 0000001c 0002 6e6f"));
}
