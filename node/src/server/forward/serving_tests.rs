//! One stream as the owner sees it.

use super::*;
use crate::actor::Machine as _;

const VOLUME: VolumeId = VolumeId([7; 16]);

struct Bench(Machine);

impl Bench {
    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0.step(Instant(0), input, &mut effects);
        effects
    }

    fn hear(&mut self, frame: Forward) -> Vec<Effect> {
        self.step(Input::Heard(frame))
    }

    /// With session 1 let in on stream 1.
    fn attached() -> Self {
        let mut bench = Self(Machine::new());
        assert!(bench.hear(attach(1)).is_empty(), "there is no stream yet");
        let effects = bench.hear(open(1));
        assert!(matches!(effects[..], [Effect::Send(Forward::Opened { stream: 1 })]), "{effects:?}");
        bench.admit(1);
        bench
    }

    fn admit(&mut self, session: u64) {
        let effects = self.hear(attach(session));
        assert!(matches!(effects[..], [Effect::Admit { .. }]), "{effects:?}");
        let effects = self.step(Input::Admitted { session, epoch: Epoch(3), lineage: Lineage(2) });
        assert!(matches!(effects[..], [Effect::Send(Forward::Attached { .. })]), "{effects:?}");
    }
}

fn open(stream: u64) -> Forward {
    Forward::Open { life: [1; 16], stream }
}

fn attach(session: u64) -> Forward {
    Forward::Attach { session, volume: VOLUME, lineage: None, pass: None, principal: "uid:7".to_owned() }
}

fn request(session: u64, tag: u64, ask: Ask, burst_end: bool) -> Forward {
    Forward::Request { session, tag, ask, burst_end }
}

fn write(length: u32, bytes: usize) -> Ask {
    Ask::Write { offset: 0, length, fua: false, payload: Bytes::from(vec![1; bytes]) }
}

fn piece(session: u64, tag: u64, bytes: usize) -> Forward {
    Forward::Payload { session, tag, bytes: Bytes::from(vec![2; bytes]) }
}

/// What is handed on: session, tag and how long a write's payload is.
fn submitted(effects: &[Effect]) -> Vec<(u64, u64, usize)> {
    let submitted = |effect: &Effect| match effect {
        Effect::Submit { session, tag, operation: Operation::Write { payload, .. } } => {
            Some((*session, *tag, payload.len()))
        }
        Effect::Submit { session, tag, .. } => Some((*session, *tag, 0)),
        _ => None,
    };
    effects.iter().filter_map(submitted).collect()
}

fn detached(effects: &[Effect]) -> Vec<u64> {
    let detached = |effect: &Effect| match effect {
        Effect::Detach { session } => Some(*session),
        _ => None,
    };
    effects.iter().filter_map(detached).collect()
}

fn ended(effects: &[Effect]) -> Vec<(u64, Ended)> {
    let ended = |effect: &Effect| match effect {
        Effect::Send(Forward::Ended { session, why }) => Some((*session, *why)),
        _ => None,
    };
    effects.iter().filter_map(ended).collect()
}

fn done(session: u64, tag: u64) -> Input {
    Input::Reply { session, tag, outcome: Outcome::Done }
}

#[test]
fn a_write_is_handed_on_when_it_is_whole_and_its_burst_ends() {
    let mut bench = Bench::attached();
    assert!(bench.hear(request(1, 5, write(5, 2), false)).is_empty());
    assert_eq!(submitted(&bench.hear(piece(1, 5, 3))), [(1, 5, 5)]);
    let effects = bench.hear(request(1, 6, Ask::Barrier, true));
    assert!(matches!(effects[..], [Effect::Submit { tag: 6, .. }, Effect::EndBurst { session: 1 }]), "{effects:?}");
    let effects = bench.step(done(1, 6));
    assert!(
        matches!(effects[..], [Effect::Send(Forward::Reply { session: 1, tag: 6, told: Told::Done })]),
        "{effects:?}"
    );
    assert!(bench.step(done(1, 6)).is_empty(), "a request is answered once");
}

#[test]
fn what_cannot_be_ends_the_session_that_said_it_and_no_other() {
    let big = u32::try_from(16 << 20).unwrap();
    let nonsense: [&[Forward]; 6] = [
        &[attach(2)],
        &[piece(2, 5, 1)],
        &[request(2, 5, write(5, 2), false), piece(2, 6, 3)],
        &[request(2, 5, write(5, 2), false), piece(2, 5, 4)],
        &[request(2, 5, write(5, 2), false), request(2, 6, Ask::Barrier, true)],
        &[request(2, 5, Ask::Barrier, false), request(2, 5, Ask::Barrier, true)],
    ];
    for frames in nonsense {
        let mut bench = Bench::attached();
        bench.admit(2);
        let effects: Vec<Effect> = frames.iter().flat_map(|frame| bench.hear(frame.clone())).collect();
        assert_eq!(ended(&effects), [(2, Ended::Malformed)], "{frames:?}");
        assert_eq!(detached(&effects), [2]);
        assert_eq!(submitted(&bench.hear(request(1, 1, Ask::Barrier, true))).len(), 1);
        assert!(bench.hear(request(2, 9, Ask::Barrier, true)).is_empty(), "it is forgotten");
    }
    // More writes that are arriving than any node sends at once.
    let mut bench = Bench::attached();
    bench.admit(2);
    bench.admit(3);
    bench.hear(request(1, 1, write(big, 1), true));
    bench.hear(request(2, 1, write(big, 1), true));
    assert_eq!(ended(&bench.hear(request(3, 1, write(big, 1), true))), [(3, Ended::Malformed)]);
}

#[test]
fn sessions_of_a_peer_are_bounded() {
    let mut bench = Bench::attached();
    for session in 2..=SESSIONS_MAX as u64 {
        bench.admit(session);
    }
    assert_eq!(ended(&bench.hear(attach(10_000))), [(10_000, Ended::Full)]);
    assert_eq!(detached(&bench.hear(Forward::Detach { session: 1 })), [1]);
    bench.admit(10_001);
}

#[test]
fn bytes_in_hand_are_bounded_and_what_waits_is_not_said_to_be_taken() {
    let mut bench = Bench::attached();
    let read = Ask::Read { offset: 0, length: 32 << 20 };
    let mut effects = Vec::new();
    for tag in 1..=4 {
        effects.extend(bench.hear(request(1, tag, read.clone(), false)));
    }
    assert_eq!(submitted(&effects), [(1, 1, 0)], "two do not fit with what they cost");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::EndBurst { .. })), "what is handed on is under way");
    // Writes as large as the credit, another session, come behind them.
    bench.admit(2);
    let told = |bench: &mut Bench, input| {
        bench.step(input).iter().any(|effect| matches!(effect, Effect::Send(Forward::TookRequests { .. })))
    };
    for tag in 0..8 {
        assert!(!told(&mut bench, Input::Heard(request(2, tag, write(1 << 19, 1 << 19), true))));
    }
    for tag in 1..3 {
        assert!(!told(&mut bench, done(1, tag)), "read {tag}");
    }
    assert!(told(&mut bench, done(1, 3)), "nothing waits any more");
}

#[test]
fn replies_go_out_within_the_credit_and_no_further_request_is_taken_for_them() {
    let mut bench = Bench::attached();
    for tag in 1..=3 {
        bench.hear(request(1, tag, Ask::Read { offset: 0, length: 20 << 20 }, true));
    }
    let data = |tag| {
        let outcome = Outcome::Data(vec![Bytes::from(vec![3; 1 << 20]); 20]);
        Input::Reply { session: 1, tag, outcome }
    };
    let sent = |effects: &[Effect]| {
        let bytes = |effect: &Effect| if let Effect::Send(frame) = effect { frame.credit_bytes() } else { 0 };
        effects.iter().map(bytes).sum::<u64>()
    };
    let mut all: u64 = (1..=3).map(|tag| sent(&bench.step(data(tag)))).sum();
    assert!(all <= crate::limits::FORWARD_CREDIT_BYTES);
    assert!(submitted(&bench.hear(request(1, 4, Ask::Read { offset: 0, length: 20 << 20 }, true))).is_empty());
    let mut later = Vec::new();
    loop {
        let effects = bench.hear(Forward::TookReplies { bytes: all });
        later.extend(submitted(&effects));
        let more = sent(&effects);
        if more == 0 {
            break;
        }
        all += more;
    }
    assert!(all > 60 << 20);
    assert_eq!(later, [(1, 4, 0)]);
}

#[test]
fn a_newer_stream_a_peer_that_is_gone_and_a_lost_answer_let_go_of_all_sessions() {
    for over in
        [Input::Heard(open(2)), Input::Heard(Forward::Open { life: [2; 16], stream: 1 }), Input::Parted, Input::Lost]
    {
        let mut bench = Bench::attached();
        bench.hear(request(1, 1, write(9, 1), true));
        let was_lost = matches!(over, Input::Lost);
        let effects = bench.step(over);
        assert_eq!(detached(&effects), [1]);
        let closes = |effects: &[Effect]| {
            effects.iter().any(|effect| matches!(effect, Effect::Send(Forward::Closed { stream: 1 })))
        };
        assert_eq!(closes(&effects), was_lost);
        assert_eq!(closes(&bench.step(Input::ClosedAgain { stream: 1 })), was_lost, "said until it is heard");
        assert!(submitted(&bench.hear(piece(1, 1, 8))).is_empty());
        assert!(bench.step(done(1, 1)).is_empty());
        bench.hear(open(3));
        assert!(!closes(&bench.step(Input::ClosedAgain { stream: 1 })));
        bench.admit(2);
    }
}

/// What is answered is told before the end, however little credit there is; of the rest nothing is ever handed on.
#[test]
fn a_session_whose_volume_goes_in_peace_is_told_every_answer_before_its_end() {
    let mut bench = Bench::attached();
    bench.admit(2);
    let read = |tag| request(1, tag, Ask::Read { offset: 0, length: 20 << 20 }, true);
    for tag in 1..=3 {
        assert_eq!(submitted(&bench.hear(read(tag))), [(1, tag, 0)]);
    }
    // One waits for room, and of a write a piece is missing.
    assert!(submitted(&bench.hear(read(4))).is_empty());
    assert!(submitted(&bench.hear(request(1, 5, write(9, 1), true))).is_empty());
    let told = |effects: &[Effect]| -> Vec<Forward> {
        let told = |effect: &Effect| match effect {
            Effect::Send(frame @ (Forward::Reply { .. } | Forward::Ended { .. })) => Some(frame.clone()),
            _ => None,
        };
        effects.iter().filter_map(told).collect()
    };
    let outcome = Outcome::Data(vec![Bytes::from(vec![3; 1 << 20]); 20]);
    let mut all = told(&bench.step(Input::Reply { session: 1, tag: 1, outcome }));
    all.extend(told(&bench.step(done(1, 2))));
    let effects = bench.step(Input::Over { session: 1, why: Ended::Undone });
    assert_eq!((detached(&effects), ended(&effects)), (vec![1], vec![]), "there is no credit for the answers");
    // What was on its way meanwhile, and what the volume said too late.
    assert!(submitted(&bench.hear(piece(1, 5, 8))).is_empty());
    assert!(submitted(&bench.hear(read(6))).is_empty());
    assert!(told(&bench.step(done(1, 3))).is_empty());
    loop {
        let bytes = all.iter().map(Forward::credit_bytes).sum();
        let effects = bench.hear(Forward::TookReplies { bytes });
        assert!(submitted(&effects).is_empty());
        let more = told(&effects);
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    let data: usize = all
        .iter()
        .map(|frame| match frame {
            Forward::Reply { tag: 1, told: Told::Data { bytes, .. }, .. } => bytes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(data, 20 << 20);
    let end =
        [Forward::Reply { session: 1, tag: 2, told: Told::Done }, Forward::Ended { session: 1, why: Ended::Undone }];
    assert_eq!(all[all.len() - 2..], end);
    assert_eq!(submitted(&bench.hear(request(2, 1, Ask::Read { offset: 0, length: 32 << 20 }, true))), [(2, 1, 0)]);
}

#[test]
fn an_opening_that_was_repeated_changes_nothing() {
    let mut bench = Bench::attached();
    let effects = bench.hear(open(1));
    assert!(matches!(effects[..], [Effect::Send(Forward::Opened { stream: 1 })]), "{effects:?}");
    assert_eq!(submitted(&bench.hear(request(1, 1, Ask::Barrier, true))).len(), 1);
}

#[test]
fn a_session_that_is_not_let_in_asks_nothing() {
    let mut bench = Bench::attached();
    bench.hear(attach(2));
    assert_eq!(ended(&bench.step(Input::Over { session: 2, why: Ended::NotAllowed })), [(2, Ended::NotAllowed)]);
    assert!(bench.hear(request(2, 1, Ask::Barrier, true)).is_empty());
    // One that was let in when it had gone already is let go again.
    assert_eq!(detached(&bench.step(Input::Admitted { session: 2, epoch: Epoch(3), lineage: Lineage(2) })), [2]);
}
