//! One stream as the node that asks sees it.

use velum_protocol::id::Epoch;

use super::*;
use crate::{actor::Machine as _, limits::FORWARD_CREDIT_BYTES};

const VOLUME: VolumeId = VolumeId([7; 16]);

struct Bench(Machine);

impl Bench {
    fn new() -> Self {
        Self(Machine::new([1; 16]))
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.0.step(Instant(0), input, &mut effects);
        effects
    }

    /// What is sent.
    fn sent(&mut self, input: Input) -> Vec<Forward> {
        let sent = |effect| match effect {
            Effect::Send(frame) => Some(frame),
            _ => None,
        };
        self.step(input).into_iter().filter_map(sent).collect()
    }

    fn hear(&mut self, frame: Forward) -> Vec<Effect> {
        self.step(Input::Heard(frame))
    }

    fn attach(&mut self, session: u64) -> Vec<Forward> {
        self.sent(Input::Attach { session, volume: VOLUME, principal: "uid:7".into(), pass: None, lineage: None })
    }

    /// With session 1 let in on stream 1.
    fn attached() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.attach(1), [Forward::Open { life: [1; 16], stream: 1 }]);
        assert_eq!(bench.sent(Input::Heard(Forward::Opened { stream: 1 })), [attach(1)]);
        let effects = bench.hear(attached(1));
        assert!(matches!(effects[..], [Effect::Attached { session: 1, lineage: Lineage(2) }]), "{effects:?}");
        bench
    }

    fn submit(&mut self, tag: u64, operation: Operation) {
        assert!(self.step(Input::Submit { session: 1, tag, operation }).is_empty(), "sent with its burst");
    }
}

fn attach(session: u64) -> Forward {
    Forward::Attach { session, volume: VOLUME, lineage: None, pass: None, principal: "uid:7".to_owned() }
}

const fn attached(session: u64) -> Forward {
    Forward::Attached { session, epoch: Epoch(3), lineage: Lineage(2) }
}

fn write(bytes: usize) -> Operation {
    Operation::Write { offset: 0, payload: Bytes::from(vec![1; bytes]), fua: false }
}

fn data(tag: u64, bytes: usize, last: bool) -> Forward {
    Forward::Reply { session: 1, tag, told: Told::Data { bytes: Bytes::from(vec![2; bytes]), last } }
}

fn ended(effects: &[Effect]) -> Vec<(u64, End)> {
    let ended = |effect: &Effect| match effect {
        Effect::Ended { session, end } => Some((*session, *end)),
        _ => None,
    };
    effects.iter().filter_map(ended).collect()
}

#[test]
fn a_burst_goes_out_in_order_and_its_last_request_says_so() {
    let mut bench = Bench::attached();
    bench.submit(1, write(600 << 10));
    bench.submit(2, Operation::Barrier);
    let sent = bench.sent(Input::EndBurst);
    let tags: Vec<(u64, bool)> = sent
        .iter()
        .map(|frame| match frame {
            Forward::Request { tag, burst_end, .. } => (*tag, *burst_end),
            Forward::Payload { tag, .. } => (*tag, false),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tags, [(1, false), (1, false), (1, false), (2, true)]);
    let effects = bench.hear(Forward::Reply { session: 1, tag: 2, told: Told::Done });
    assert!(matches!(effects[..], [Effect::Reply { session: 1, tag: 2, outcome: Outcome::Done }]), "{effects:?}");
    // Twice is once.
    assert!(bench.hear(Forward::Reply { session: 1, tag: 2, told: Told::Done }).is_empty());
}

#[test]
fn no_more_is_under_way_than_there_is_credit_for_and_the_rest_follows() {
    let mut bench = Bench::attached();
    let whole = usize::try_from(FORWARD_CREDIT_BYTES).unwrap() * 2;
    bench.submit(1, write(whole));
    let counted = |frames: &[Forward]| frames.iter().map(Forward::credit_bytes).sum::<u64>();
    let mut sent = counted(&bench.sent(Input::EndBurst));
    assert!(sent <= FORWARD_CREDIT_BYTES);
    while let Some(more) =
        Some(counted(&bench.sent(Input::Heard(Forward::TookRequests { bytes: sent })))).filter(|more| *more > 0)
    {
        sent += more;
    }
    assert!(sent > whole as u64);
}

#[test]
fn data_comes_in_pieces_and_is_taken_in_steps() {
    let mut bench = Bench::attached();
    bench.submit(1, Operation::Read { offset: 0, length: 3 << 20 });
    bench.sent(Input::EndBurst);
    let mut told = Vec::new();
    for place in 0..3 {
        for effect in bench.hear(data(1, 1 << 20, place == 2)) {
            match effect {
                Effect::Send(Forward::TookReplies { bytes }) => told.push(bytes),
                Effect::Reply { outcome: Outcome::Data(pieces), .. } => {
                    assert_eq!((place, pieces.iter().map(Bytes::len).sum::<usize>()), (2, 3 << 20));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(told.last(), Some(&(3 * ((1 << 20) + 64))));
}

#[test]
fn a_read_that_is_told_more_or_less_than_it_asked_ends_its_session() {
    for (bytes, last) in [(513, false), (511, true)] {
        let mut bench = Bench::attached();
        bench.submit(1, Operation::Read { offset: 0, length: 512 });
        bench.sent(Input::EndBurst);
        let effects = bench.hear(data(1, bytes, last));
        assert_eq!(ended(&effects), [(1, End::Unknown)]);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Reply { .. })));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Send(Forward::Detach { session: 1 }))));
    }
}

#[test]
fn what_is_lost_ends_every_session_once_and_the_next_stream_comes_after_a_rest() {
    for loss in [Input::Lost, Input::Heard(Forward::Closed { stream: 1 })] {
        let mut bench = Bench::attached();
        bench.attach(2);
        bench.submit(1, write(10 << 20));
        bench.sent(Input::EndBurst);
        let effects = bench.step(loss);
        assert_eq!(ended(&effects), [(1, End::Unknown), (2, End::Unknown)]);
        assert!(ended(&bench.step(Input::Lost)).is_empty());
        assert!(bench.attach(3).is_empty(), "it rests");
        // What the owner still says of the old stream is nothing to a new session.
        assert!(bench.hear(attached(3)).is_empty());
        assert!(bench.hear(Forward::Opened { stream: 1 }).is_empty());
        let again = bench.sent(Input::OpenAgain { stream: 1 });
        assert_eq!(again, [Forward::Open { life: [1; 16], stream: 2 }]);
        assert!(bench.hear(Forward::Closed { stream: 1 }).is_empty());
        assert!(bench.hear(Forward::Opened { stream: 1 }).is_empty());
        assert_eq!(bench.sent(Input::OpenAgain { stream: 2 }).len(), 1, "repeated until it is answered");
        assert_eq!(bench.sent(Input::Heard(Forward::Opened { stream: 2 })), [attach(3)]);
    }
}

#[test]
fn a_session_that_goes_takes_along_what_was_not_sent() {
    let mut bench = Bench::attached();
    bench.submit(1, write(10 << 20));
    let sent = bench.sent(Input::EndBurst);
    assert_eq!(bench.sent(Input::Detach { session: 1 }), [Forward::Detach { session: 1 }]);
    let bytes = sent.iter().map(Forward::credit_bytes).sum();
    assert!(bench.sent(Input::Heard(Forward::TookRequests { bytes })).is_empty());
    assert!(bench.hear(Forward::Reply { session: 1, tag: 1, told: Told::Done }).is_empty());
}

#[test]
fn the_owner_says_whether_to_ask_again() {
    for (why, end) in [
        (Ended::NotHere, End::Unknown),
        (Ended::Undone, End::Undone),
        (Ended::OtherLineage, End::ForGood),
        (Ended::NotAllowed, End::ForGood),
    ] {
        let mut bench = Bench::attached();
        assert_eq!(ended(&bench.hear(Forward::Ended { session: 1, why })), [(1, end)]);
        assert!(bench.hear(Forward::Ended { session: 1, why }).is_empty());
    }
}

/// Whoever hears that nothing more of it was begun asks the next owner; none of it may reach this one after that.
#[test]
fn a_session_that_is_sent_away_takes_along_what_was_not_sent() {
    let mut bench = Bench::attached();
    bench.attach(2);
    bench.submit(1, write(10 << 20));
    let sent = bench.sent(Input::EndBurst);
    bench.submit(2, Operation::Barrier);
    bench.submit(3, Operation::Read { offset: 0, length: 512 });
    bench.hear(data(3, 500, false));
    let effects = bench.hear(Forward::Ended { session: 1, why: Ended::Undone });
    assert!(matches!(effects[..], [Effect::Ended { session: 1, end: End::Undone }]), "{effects:?}");
    assert!(bench.sent(Input::EndBurst).is_empty());
    let bytes = sent.iter().map(Forward::credit_bytes).sum();
    assert!(bench.sent(Input::Heard(Forward::TookRequests { bytes })).is_empty());
    assert!(bench.hear(data(3, 12, true)).is_empty());
    assert!(bench.step(Input::Submit { session: 1, tag: 4, operation: Operation::Barrier }).is_empty());
}

#[test]
fn what_asks_for_nothing_is_answered_here() {
    let mut bench = Bench::attached();
    let effects = bench.step(Input::Submit { session: 1, tag: 4, operation: write(0) });
    assert!(matches!(effects[..], [Effect::Reply { tag: 4, outcome: Outcome::Done, .. }]), "{effects:?}");
    assert!(bench.sent(Input::EndBurst).is_empty());
}
