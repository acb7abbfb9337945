//! Whole sessions over an in-memory stream: the protocol's pure client on one side, a volume in memory on the other.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use tokio::{io::DuplexStream, task::yield_now};
use velum_protocol::{
    format::metadata::Right,
    nbd::{
        ErrorCode,
        client::{Answer, Ask, Completion, Handshake as ClientHandshake, Negotiated, Session, Wishes},
        flags::{ClientFlags, CommandFlags, TransmissionFlags},
        handshake::encode_client_flags,
        option::OptionRequest,
        request::{Command, Request as WireRequest},
    },
};

use super::*;
use crate::{
    audit::{Audit, Gate as GateNumber},
    server::{
        fakes::{ManualClock, MemoryVolume, Table, somebody},
        session::Sessions,
    },
    volume::messages::Refusal,
};

const SIZE: usize = 4 << 20;

/// A node with one volume, `demo`.
struct House {
    clock: Rc<ManualClock>,
    around: Surroundings,
    table: Rc<Table>,
    audit: Rc<Audit>,
    sessions: Rc<Sessions>,
}

impl House {
    fn new() -> Self {
        let clock = Rc::new(ManualClock::default());
        let (table, gate, audit) = Table::gate(&[("demo", Right::Write)], SIZE);
        let metrics = Arc::new(Metrics::new());
        let around = Surroundings { clock: Rc::clone(&clock) as Rc<dyn Clock>, gate, metrics };
        Self { clock, around, table, audit, sessions: Rc::new(Sessions::default()) }
    }

    fn volume(&self) -> Rc<MemoryVolume> {
        self.table.volume("demo")
    }

    /// A connection with the given room in each direction, and where its end will be told.
    fn connect(&self, room: usize) -> (DuplexStream, Rc<RefCell<Option<End>>>) {
        let (near, far) = tokio::io::duplex(room);
        let told = Rc::new(RefCell::new(None));
        let (around, ticket, tell) = (self.around.clone(), self.sessions.open().unwrap(), Rc::clone(&told));
        crate::actor::spawn(async move {
            let end = serve(&around, &ticket, &somebody(), Box::new(far)).await;
            *tell.borrow_mut() = Some(end);
        });
        (near, told)
    }

    async fn guest(&self, room: usize) -> Guest {
        let (mut stream, told) = self.connect(room);
        let wishes = Wishes { export: "demo".to_owned(), structured: true, allocation: true };
        let (mut handshake, mut input) = (ClientHandshake::new(wishes), BytesMut::new());
        let negotiated = loop {
            let mut out = BytesMut::new();
            if let Some(negotiated) = handshake.step(&mut input, &mut out).unwrap() {
                break negotiated;
            }
            stream.write_all(&out).await.unwrap();
            assert!(stream.read_buf(&mut input).await.unwrap() > 0, "the server stays");
        };
        Guest { stream, told, session: Session::new(negotiated), input, out: BytesMut::new() }
    }
}

/// A guest in transmission.
struct Guest {
    stream: DuplexStream,
    told: Rc<RefCell<Option<End>>>,
    session: Session,
    input: BytesMut,
    out: BytesMut,
}

impl Guest {
    fn queue(&mut self, ask: &Ask) {
        self.session.ask(ask, &mut self.out);
    }

    async fn send(&mut self) {
        let out = self.out.split();
        self.stream.write_all(&out).await.unwrap();
    }

    /// Waits for `count` answers.
    async fn answers(&mut self, count: usize) -> Vec<Completion> {
        let mut over = Vec::new();
        while over.len() < count {
            assert!(self.stream.read_buf(&mut self.input).await.unwrap() > 0, "the server stays");
            self.session.receive(&mut self.input, &mut over).unwrap();
        }
        over
    }

    async fn ask(&mut self, ask: &Ask) -> Result<Answer, ErrorCode> {
        self.queue(ask);
        self.send().await;
        self.answers(1).await.remove(0).1
    }

    /// Reads to the end of the stream and says how the session ended.
    async fn end(&mut self) -> End {
        while self.stream.read_buf(&mut self.input).await.unwrap() > 0 {}
        settle().await;
        self.told.borrow_mut().take().expect("the session is over")
    }
}

/// Lets every other task run until nothing moves any more.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

fn write(offset: u64, payload: impl Into<Bytes>) -> Ask {
    Ask::Write { offset, payload: payload.into(), fua: false }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

#[test]
fn a_guest_reads_what_it_wrote() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        let Negotiated { export, structured, allocation } = guest.session.negotiated().clone();
        assert_eq!((export.size_bytes, structured, allocation), (SIZE as u64, true, Some(1)));
        assert!(export.flags.has(TransmissionFlags::CAN_MULTI_CONN));
        // Larger than the read buffer and than the stream's room, and not aligned to anything.
        let large: Vec<u8> =
            (0..1_000_003u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
        assert_eq!(guest.ask(&write(4097, large.clone())).await, Ok(Answer::Done));
        assert_eq!(house.volume().contents(4097, large.len()), large);
        let read = Ask::Read { offset: 4097, length: 1_000_003 };
        assert_eq!(guest.ask(&read).await, Ok(Answer::Data(Bytes::from(large))));
        assert_eq!(guest.ask(&Ask::Trim { offset: 0, length: 8192, fua: true }).await, Ok(Answer::Done));
        let status = guest.ask(&Ask::BlockStatus { offset: 0, length: 16384, one: false }).await;
        let Ok(Answer::Status(extents)) = status else { panic!("{status:?}") };
        assert_eq!(
            extents.iter().map(|extent| (extent.length, extent.flags.0)).collect::<Vec<_>>(),
            [(8192, 3), (8192, 0)]
        );
        assert_eq!(guest.ask(&Ask::Flush).await, Ok(Answer::Done));
        guest.session.disconnect(&mut guest.out);
        guest.send().await;
        assert!(matches!(guest.end().await, End::Disconnected));
        assert_eq!(house.volume().sessions(), 0, "the session has detached");
    });
}

#[test]
fn a_burst_of_requests_is_one_burst_for_the_volume_and_arms_no_timer() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 20).await;
        for block in 0..32 {
            guest.queue(&write(block * 4096, vec![1; 4096]));
        }
        guest.send().await;
        assert_eq!(guest.answers(32).await.len(), 32);
        assert_eq!(house.volume().bursts.get(), 1);
        assert_eq!(house.clock.armed(), 0);
        let nbd = &house.around.metrics.nbd;
        let done = nbd.requests.of(crate::metrics::GuestRequest::Write).of(crate::metrics::GuestOutcome::Done);
        assert_eq!((done.get(), nbd.written_bytes.get(), nbd.in_flight.get()), (32, 32 * 4096, 0));
    });
}

#[test]
fn answers_go_out_as_they_come_in_any_order() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().hold.set(true);
        for offset in [0u64, 4096, 8192] {
            guest.queue(&Ask::Read { offset, length: 512 });
        }
        guest.send().await;
        settle().await;
        house.volume().answer(1);
        let first = guest.answers(1).await.remove(0);
        house.volume().answer(2);
        let rest = guest.answers(2).await;
        let cookies: Vec<_> = [first].into_iter().chain(rest).map(|(cookie, _)| cookie.0).collect();
        assert_eq!(cookies, [3, 2, 1]);
    });
}

#[test]
fn a_client_that_leaves_without_goodbye_takes_its_requests_along() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().hold.set(true);
        guest.queue(&write(0, vec![9; 4096]));
        guest.send().await;
        settle().await;
        assert_eq!(house.volume().held(), 1);
        drop(guest.stream);
        settle().await;
        assert!(matches!(guest.told.take(), Some(End::Closed | End::Broken(_))));
        assert_eq!((house.volume().held(), house.volume().sessions()), (0, 0));
    });
}

/// A server acted on a write whose payload never came in full.
#[test]
fn cve_2017_9524_a_short_payload_then_close_has_no_effect() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        guest.queue(&write(0, vec![9; 8192]));
        guest.out.truncate(5000);
        guest.send().await;
        drop(guest.stream);
        settle().await;
        assert!(guest.told.borrow().is_some());
        assert!(house.volume().asked.borrow().is_empty());
        assert_eq!(house.volume().contents(0, 8192), vec![0; 8192]);
    });
}

#[test]
fn goodbye_waits_for_what_is_in_flight() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().hold.set(true);
        guest.queue(&write(0, vec![9; 4096]));
        guest.session.disconnect(&mut guest.out);
        guest.send().await;
        settle().await;
        assert!(guest.told.borrow().is_none());
        house.volume().answer(1);
        assert_eq!(guest.answers(1).await[0].1, Ok(Answer::Done));
        assert!(matches!(guest.end().await, End::Disconnected));
        assert_eq!(house.volume().contents(0, 4096), vec![9; 4096]);
    });
}

#[test]
fn a_handshake_at_a_byte_per_second_is_cut_off_in_time() {
    run(async {
        let house = House::new();
        let (mut stream, told) = house.connect(1 << 12);
        settle().await;
        for byte in b"\0\0\0\x03IHAVE" {
            assert!(told.borrow().is_none());
            stream.write_all(&[*byte]).await.unwrap();
            settle().await;
            house.clock.pass(Duration::from_secs(1));
            settle().await;
        }
        assert!(told.borrow().is_none());
        house.clock.pass(Duration::from_secs(1));
        settle().await;
        assert!(matches!(told.take(), Some(End::Late)));
        assert_eq!(house.around.metrics.nbd.refused_inputs.of(RefusedInput::Limit).get(), 1);
    });
}

#[test]
fn a_guest_that_takes_no_replies_is_cut_off_and_others_go_on() {
    run(async {
        let house = House::new();
        let mut stalled = house.guest(4096).await;
        let mut other = house.guest(1 << 16).await;
        for _ in 0..4 {
            stalled.queue(&Ask::Read { offset: 0, length: 65536 });
        }
        stalled.send().await;
        settle().await;
        for _ in 0..29 {
            house.clock.pass(Duration::from_secs(1));
            assert_eq!(other.ask(&write(0, vec![1; 512])).await, Ok(Answer::Done));
            assert!(stalled.told.borrow().is_none());
        }
        house.clock.pass(Duration::from_secs(1));
        settle().await;
        assert!(matches!(stalled.told.take(), Some(End::Stalled)));
        assert_eq!(other.ask(&Ask::Flush).await, Ok(Answer::Done));
        assert_eq!(house.volume().sessions(), 1);
    });
}

#[test]
fn a_slow_guest_that_takes_something_is_not_cut_off() {
    run(async {
        let house = House::new();
        let mut slow = house.guest(4096).await;
        slow.queue(&Ask::Read { offset: 0, length: 65536 });
        slow.send().await;
        settle().await;
        for _ in 0..10 {
            house.clock.pass(Duration::from_secs(25));
            slow.stream.read_exact(&mut [0; 100]).await.unwrap();
            settle().await;
        }
        assert!(slow.told.borrow().is_none());
    });
}

/// A server that was told to stop waited for ever for a client that sent nothing.
#[test]
fn cve_2024_7409_stopping_closes_idle_sessions_and_unfinished_handshakes() {
    run(async {
        let house = House::new();
        let mut idle = house.guest(1 << 16).await;
        let (mut silent, told) = house.connect(1 << 16);
        settle().await;
        house.sessions.stop();
        house.sessions.drained().await;
        assert!(matches!(idle.end().await, End::Stopped));
        assert!(matches!(told.take(), Some(End::Stopped)));
        let mut greeting = Vec::new();
        silent.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting.len(), 18);
    });
}

#[test]
fn stopping_lets_what_is_in_flight_finish_and_answers_the_rest_with_shutdown() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().hold.set(true);
        guest.queue(&write(0, vec![5; 512]));
        guest.send().await;
        settle().await;
        house.sessions.stop();
        let late = guest.ask(&write(512, vec![6; 512])).await;
        assert_eq!(late, Err(ErrorCode::Shutdown));
        house.volume().answer(1);
        assert_eq!(guest.answers(1).await[0].1, Ok(Answer::Done));
        assert!(matches!(guest.end().await, End::Stopped));
        assert_eq!(house.volume().contents(0, 1024), [[5; 512], [0; 512]].concat());
    });
}

#[test]
fn a_volume_that_is_fenced_never_succeeds_and_ends_the_session() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().refusal.set(Some(Refusal::Closing));
        guest.queue(&write(0, vec![5; 512]));
        guest.queue(&Ask::Flush);
        guest.send().await;
        let answers = guest.answers(2).await;
        assert!(answers.iter().all(|(_, result)| *result == Err(ErrorCode::Shutdown)), "{answers:?}");
        assert!(matches!(guest.end().await, End::Stopped));
    });
}

#[test]
fn a_right_taken_away_stops_the_next_write_and_is_recorded_once() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        assert_eq!(guest.ask(&write(0, vec![5; 512])).await, Ok(Answer::Done));
        house.table.set_right("demo", Right::Read);
        assert_eq!(guest.ask(&write(0, vec![6; 512])).await, Err(ErrorCode::NotPermitted));
        assert_eq!(guest.ask(&Ask::Read { offset: 0, length: 1 }).await, Ok(Answer::Data(Bytes::from_static(&[5]))));
        house.table.set_right("demo", Right::None);
        assert_eq!(guest.ask(&Ask::Read { offset: 0, length: 1 }).await, Err(ErrorCode::NotPermitted));
        assert_eq!(house.audit.counts(GateNumber::Volume).refused, 2);
    });
}

/// A server opened its volume for connections that had not chosen one, so that coming and going wore it out.
#[test]
fn cve_2019_14850_coming_and_going_touches_no_volume_and_leaks_no_session() {
    run(async {
        let house = House::new();
        for round in 0..2000 {
            let (mut stream, told) = house.connect(1 << 10);
            if round % 2 == 0 {
                let mut out = BytesMut::new();
                encode_client_flags(ClientFlags::FIXED_NEWSTYLE, &mut out);
                OptionRequest::List.encode(&mut out);
                stream.write_all(&out).await.unwrap();
                settle().await;
            }
            drop(stream);
            settle().await;
            assert!(told.borrow().is_some());
        }
        assert_eq!((house.sessions.count(), house.volume().sessions()), (0, 0));
        assert_eq!(house.clock.armed(), 0);
    });
}

#[test]
fn a_malformed_request_cuts_its_own_session_only() {
    run(async {
        let house = House::new();
        let mut bad = house.guest(1 << 16).await;
        let mut good = house.guest(1 << 16).await;
        bad.out.extend_from_slice(&[0; 28]);
        bad.send().await;
        assert!(matches!(bad.end().await, End::Cut(Cut::Malformed(_))));
        assert_eq!(good.ask(&write(0, vec![1; 512])).await, Ok(Answer::Done));
        assert_eq!(house.around.metrics.nbd.refused_inputs.of(RefusedInput::Malformed).get(), 1);
    });
}

#[test]
fn more_than_a_session_may_hold_is_served_in_turn() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        // 80 reads of 4 MiB: five times what may be held at once.
        for _ in 0..80 {
            guest.queue(&Ask::Read { offset: 0, length: 4 << 20 });
        }
        guest.send().await;
        let answers = guest.answers(80).await;
        assert!(answers.iter().all(|(_, result)| result.is_ok()));
        assert_eq!(house.clock.armed(), 0);
    });
}

#[test]
fn requests_that_came_along_with_the_choice_of_an_export_are_served() {
    run(async {
        let house = House::new();
        let (mut stream, _) = house.connect(1 << 16);
        let mut out = BytesMut::new();
        encode_client_flags(ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES), &mut out);
        OptionRequest::ExportName(String::new()).encode(&mut out);
        let (flags, cookie) = (CommandFlags::NONE, velum_protocol::nbd::Cookie(8));
        WireRequest { flags, command: Command::Read, cookie, offset: 0, length: 4 }.encode(&mut out);
        WireRequest { flags, command: Command::Disconnect, cookie, offset: 0, length: 0 }.encode(&mut out);
        stream.write_all(&out).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 18 + 10 + 16 + 4);
    });
}

/// Whoever was told a volume's new handle by one node may ask for it at another one before that has heard of it.
#[test]
fn what_another_node_knows_already_is_found() {
    run(async {
        let house = House::new();
        house.table.hide("demo");
        let mut guest = house.guest(1 << 16).await;
        assert_eq!(guest.ask(&write(0, vec![1; 512])).await, Ok(Answer::Done));
    });
}

/// A guest who may not see a volume is answered no sooner than one who asks for what is not there, or he could tell names by that.
#[test]
fn what_is_forbidden_is_looked_at_again_as_what_is_not_there() {
    run(async {
        let house = House::new();
        house.table.outdate("demo");
        let mut guest = house.guest(1 << 16).await;
        assert_eq!(guest.ask(&write(0, vec![1; 512])).await, Ok(Answer::Done));
    });
}

#[test]
fn a_guest_waits_in_the_handshake_for_a_volume_that_is_being_opened_and_not_for_ever() {
    run(async {
        let house = House::new();
        let opened = house.volume().opens_later();
        let opening = async {
            settle().await;
            assert_eq!(house.volume().sessions(), 0);
            opened.send(()).unwrap();
        };
        let (mut guest, ()) = futures_util::future::join(house.guest(1 << 16), opening).await;
        assert_eq!(guest.ask(&write(0, vec![1; 512])).await, Ok(Answer::Done));

        let (_never, (mut stream, told)) = (house.volume().opens_later(), house.connect(1 << 16));
        let mut out = BytesMut::new();
        encode_client_flags(ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES), &mut out);
        OptionRequest::ExportName("demo".to_owned()).encode(&mut out);
        stream.write_all(&out).await.unwrap();
        settle().await;
        house.clock.pass(HANDSHAKE_TIME_MAX);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 18, "the greeting, and no word of the export");
        settle().await;
        assert!(matches!(told.borrow_mut().take(), Some(End::Late)));
    });
}

/// An error in the place of an answer would say that nothing was done.
#[test]
fn a_session_that_is_ended_answers_nothing_that_is_under_way() {
    run(async {
        let house = House::new();
        let mut guest = house.guest(1 << 16).await;
        house.volume().hold.set(true);
        guest.queue(&write(0, vec![1; 512]));
        guest.send().await;
        settle().await;
        assert_eq!(house.volume().held(), 1);
        house.volume().end_sessions();
        assert!(matches!(guest.end().await, End::Lost));
        assert!(guest.input.is_empty(), "not a byte more");
        assert_eq!((house.volume().sessions(), house.sessions.count()), (0, 0));
    });
}
