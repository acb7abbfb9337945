//! What becomes of sessions and their requests when a volume moves.

use bytes::Bytes;
use velum_protocol::id::Epoch;

use super::*;
use crate::server::fakes::{ManualClock, MemoryVolume, entrant};

const OWNER: Owner = Owner { epoch: Epoch(1), lineage: Lineage(1) };
const BLOCK: usize = 4096;

/// A guest's session.
#[derive(Default)]
struct Session {
    replies: RefCell<Vec<(u64, Outcome)>>,
    ended: Cell<bool>,
    is_sent_away: Cell<bool>,
}

impl Replies for Session {
    fn reply(&self, reply: Reply) {
        assert!(!self.ended.get() && !self.is_sent_away.get(), "nothing comes after the end");
        self.replies.borrow_mut().push((reply.origin.tag, reply.outcome));
    }

    fn end(&self) {
        assert!(!self.ended.replace(true), "a session ends once");
    }
}

impl Visitor for Session {
    fn send_away(&self) {
        assert!(!self.ended.get() && !self.is_sent_away.replace(true), "a session ends once");
    }
}

impl Session {
    /// The requests that were answered since the last look.
    fn answered(&self) -> Vec<u64> {
        self.replies.take().into_iter().map(|(tag, _)| tag).collect()
    }
}

/// What another node was told.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Attach(u64, Option<Lineage>),
    Submit(u64, u64),
    EndBurst,
    Detach(u64),
}

#[derive(Default)]
struct Road {
    said: RefCell<Vec<(u64, Said)>>,
}

struct Far {
    node: u64,
    road: Rc<Road>,
}

impl Far {
    fn say(&self, said: Said) {
        self.road.said.borrow_mut().push((self.node, said));
    }
}

impl Afar for Far {
    fn attach(&self, session: SessionId, _entrant: &Entrant, lineage: Option<Lineage>) {
        self.say(Said::Attach(session.0, lineage));
    }

    fn submit(&self, request: Request) {
        self.say(Said::Submit(request.origin.session.0, request.origin.tag));
    }

    fn end_burst(&self) {
        self.say(Said::EndBurst);
    }

    fn detach(&self, session: SessionId) {
        self.say(Said::Detach(session.0));
    }
}

struct Roadmap(Rc<Road>);

impl Roads for Roadmap {
    fn to(&self, node: NodeId, _volume: VolumeId, _near: Weak<dyn Near>) -> Rc<dyn Afar> {
        Rc::new(Far { node: node.0, road: Rc::clone(&self.0) })
    }
}

struct Bench {
    clock: Rc<ManualClock>,
    road: Rc<Road>,
    _roads: Rc<dyn Roads>,
    switch: Switch,
    volume: Rc<MemoryVolume>,
}

impl Bench {
    fn new() -> Self {
        let (clock, road) = (Rc::<ManualClock>::default(), Rc::<Road>::default());
        let roads: Rc<dyn Roads> = Rc::new(Roadmap(Rc::clone(&road)));
        let weak = Rc::downgrade(&roads);
        let clock_of: Rc<dyn Clock> = clock.clone();
        let switch = Switch::new(&clock_of, VolumeId([7; 16]), Box::new(|| 8192), weak);
        Self { clock, road, _roads: roads, switch, volume: Rc::new(MemoryVolume::new(16 * BLOCK)) }
    }

    fn here(&self, lineage: u64) {
        self.switch.serve_here(self.volume.clone(), Owner { lineage: Lineage(lineage), ..OWNER });
    }

    fn session(&self, session: u64) -> Rc<Session> {
        let replies = Rc::<Session>::default();
        self.switch.attach(SessionId(session), entrant(), replies.clone());
        replies
    }

    fn ask(&self, session: u64, tag: u64) {
        self.write(session, tag, BLOCK);
    }

    fn write(&self, session: u64, tag: u64, bytes: usize) {
        let payload = Bytes::from(vec![u8::try_from(tag).unwrap(); bytes]);
        let operation = Operation::Write { offset: 0, payload, fua: false };
        self.switch.submit(Request { origin: Origin { session: SessionId(session), tag }, operation });
        self.switch.end_burst();
    }

    fn said(&self) -> Vec<(u64, Said)> {
        self.road.said.take()
    }

    fn let_in(&self, session: u64, lineage: u64) {
        self.switch.0.attached(SessionId(session), Lineage(lineage));
    }

    fn answer(&self, session: u64, tag: u64, outcome: Outcome) {
        self.switch.0.reply(Reply { origin: Origin { session: SessionId(session), tag }, outcome });
    }

    /// Lets so much time pass that everybody who waits looks.
    async fn pass(&self, time: Duration) {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.clock.pass(time);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }
}

fn run(test: impl AsyncFnOnce(Bench)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test(Bench::new()).await });
}

#[test]
fn what_is_asked_before_anybody_serves_the_volume_is_held_and_then_done_in_order() {
    run(async |bench| {
        let session = bench.session(1);
        assert_eq!(bench.switch.size_bytes(), 8192, "as the metadata says");
        let opening = bench.switch.opening().expect("nobody serves it");
        for tag in 1..=3 {
            bench.ask(1, tag);
        }
        bench.here(1);
        opening.await;
        assert!(bench.switch.opening().is_none());
        assert_eq!(session.answered(), [1, 2, 3]);
        assert!(bench.volume.bursts.get() > 0);
        assert_eq!(bench.switch.size_bytes(), 16 * BLOCK as u64);
        bench.ask(1, 4);
        assert_eq!((session.answered(), bench.volume.sessions()), (vec![4], 1));
        bench.switch.detach(SessionId(1));
        assert_eq!(bench.volume.sessions(), 0);
    });
}

#[test]
fn nobody_is_asked_for_a_session_before_it_was_let_in() {
    run(async |bench| {
        bench.switch.serve_there(NodeId(2));
        let session = bench.session(1);
        bench.ask(1, 1);
        bench.switch.serve_there(NodeId(2));
        assert_eq!(bench.said(), [(2, Said::Attach(1, None)), (2, Said::EndBurst)]);
        bench.let_in(1, 1);
        assert_eq!(bench.said(), [(2, Said::Submit(1, 1)), (2, Said::EndBurst)]);
        bench.answer(1, 1, Outcome::Done);
        bench.answer(1, 1, Outcome::Done);
        assert_eq!(session.answered(), [1]);
    });
}

#[test]
fn with_something_under_way_a_session_ends_and_the_others_go_on_with_the_next_owner() {
    run(async |bench| {
        bench.switch.serve_there(NodeId(2));
        let (busy, idle) = (bench.session(1), bench.session(2));
        bench.let_in(1, 1);
        bench.let_in(2, 1);
        bench.ask(1, 1);
        bench.said();
        bench.switch.serve_there(NodeId(3));
        assert!(busy.ended.get() && !idle.ended.get());
        let (gone, moved) = (Said::Detach(1), Said::Detach(2));
        assert_eq!(bench.said(), [(2, gone), (2, moved), (3, Said::Attach(2, Some(Lineage(1))))]);
        // A late answer is nobody's.
        bench.answer(1, 1, Outcome::Done);
        bench.ask(1, 2);
        assert!(busy.replies.borrow().is_empty());
        assert_eq!(bench.said(), [(3, Said::EndBurst)]);
        bench.let_in(2, 1);
        bench.ask(2, 1);
        assert_eq!(bench.said(), [(3, Said::Submit(2, 1)), (3, Said::EndBurst)]);
        bench.switch.break_off();
        assert!(idle.ended.get());
    });
}

#[test]
fn a_volume_that_breaks_off_here_answers_nobody_any_more() {
    run(async |bench| {
        bench.here(1);
        bench.volume.hold.set(true);
        let (busy, idle) = (bench.session(1), bench.session(2));
        bench.ask(1, 1);
        bench.switch.break_off();
        assert!(busy.ended.get() && !idle.ended.get());
        assert_eq!((bench.volume.sessions(), bench.volume.held()), (0, 0), "it was told, and forgets what it can");
        bench.ask(2, 1);
        bench.volume.hold.set(false);
        bench.here(1);
        assert_eq!(idle.answered(), [1]);
    });
}

#[test]
fn while_the_node_is_cut_off_who_waits_ends_and_nobody_comes_in() {
    run(async |bench| {
        bench.here(1);
        bench.volume.hold.set(true);
        let (busy, idle) = (bench.session(1), bench.session(2));
        bench.ask(1, 1);
        bench.switch.set_cut_off(true);
        assert!(!bench.switch.opening().expect("nobody comes in").await);
        assert!(!busy.ended.get(), "it has not waited for long");
        bench.pass(UNANSWERED_MAX).await;
        bench.switch.set_cut_off(true);
        assert!(busy.ended.get() && !idle.ended.get());
        // What is answered all the same ends nobody.
        bench.volume.hold.set(false);
        bench.ask(2, 1);
        bench.switch.set_cut_off(true);
        assert_eq!(idle.answered(), [1]);
        // Nor does it matter who holds it.
        bench.switch.break_off();
        bench.ask(2, 2);
        bench.pass(UNANSWERED_MAX).await;
        bench.switch.set_cut_off(false);
        assert!(!idle.ended.get() && bench.switch.opening().expect("nobody serves it").now_or_never().is_none());
        bench.switch.set_cut_off(true);
        assert!(idle.ended.get());
    });
}

#[test]
fn a_session_does_not_outlive_its_lineage() {
    run(async |bench| {
        bench.here(1);
        let session = bench.session(1);
        bench.ask(1, 1);
        bench.here(2);
        assert!(session.ended.get(), "here");
        let session = bench.session(2);
        bench.switch.serve_there(NodeId(2));
        bench.let_in(2, 3);
        assert!(session.ended.get(), "there, whatever the owner judged");
        let session = bench.session(3);
        bench.let_in(3, 3);
        bench.here(3);
        assert!(!session.ended.get());
    });
}

#[test]
fn a_hold_waits_for_what_is_under_way_and_passes_nothing_on() {
    run(async |bench| {
        bench.here(1);
        bench.volume.hold.set(true);
        let session = bench.session(1);
        bench.ask(1, 1);
        let _ = bench.switch.hold();
        let mut idle = bench.switch.idle();
        bench.ask(1, 2);
        assert!((&mut idle).now_or_never().is_none());
        assert_eq!(bench.volume.held(), 1);
        bench.volume.answer(1);
        idle.await;
        assert_eq!(session.answered(), [1]);
        bench.switch.serve_there(NodeId(2));
        bench.let_in(1, 1);
        assert_eq!(bench.said()[..2], [(2, Said::Attach(1, Some(Lineage(1)))), (2, Said::Submit(1, 2))]);
        assert!(!session.ended.get());
        // What never was under way is held no longer than anything.
        assert!(bench.switch.idle().now_or_never().is_none());
    });
}

/// A planned move that gave up had guests go on in the midst of another one, or of the journal's mending.
#[test]
fn who_gives_up_holding_ends_no_hold_but_his_own() {
    run(async |bench| {
        bench.here(1);
        let session = bench.session(1);
        let (one, other) = (bench.switch.hold(), bench.switch.hold());
        bench.ask(1, 1);
        bench.switch.go_on(one);
        bench.switch.go_on(one);
        assert!(session.answered().is_empty(), "the other one holds on");
        bench.switch.go_on(other);
        assert_eq!(session.answered(), [1]);
        let before = bench.switch.hold();
        bench.here(1);
        let after = bench.switch.hold();
        bench.ask(1, 2);
        bench.switch.go_on(before);
        assert!(session.answered().is_empty(), "the hold before ended when the volume was opened anew");
        bench.switch.go_on(after);
        assert_eq!(session.answered(), [2]);
    });
}

#[test]
fn what_an_owner_gives_back_undone_is_asked_again() {
    run(async |bench| {
        bench.switch.serve_there(NodeId(2));
        let session = bench.session(1);
        bench.let_in(1, 1);
        for tag in 1..=3 {
            bench.ask(1, tag);
        }
        bench.said();
        bench.answer(1, 3, Outcome::Refused(Refusal::Closing));
        bench.answer(1, 1, Outcome::Refused(Refusal::Closing));
        bench.ask(1, 4);
        assert_eq!(bench.said(), [(2, Said::EndBurst)], "held behind them");
        bench.answer(1, 2, Outcome::Done);
        assert_eq!((session.answered(), bench.said()), (vec![2], vec![(2, Said::Detach(1))]));
        bench.pass(LOOK).await;
        assert_eq!(bench.said(), [(2, Said::Attach(1, Some(Lineage(1))))]);
        bench.switch.0.ended(SessionId(1), End::Unknown);
        bench.pass(LOOK).await;
        bench.let_in(1, 1);
        let again = [1, 3, 4].map(|tag| (2, Said::Submit(1, tag)));
        assert_eq!(bench.said()[2..5], again, "behind its going and its coming back");
        assert!(!session.ended.get());
    });
}

#[test]
fn what_an_owner_never_began_is_asked_of_the_next_one() {
    run(async |bench| {
        bench.switch.serve_there(NodeId(2));
        let (session, greedy) = (bench.session(1), bench.session(2));
        bench.let_in(1, 1);
        bench.let_in(2, 1);
        for tag in 1..=3 {
            bench.ask(1, tag);
        }
        bench.answer(1, 2, Outcome::Done);
        let half = usize::try_from(SWITCH_HELD_BYTES_MAX / 2).unwrap();
        bench.write(2, 1, half);
        bench.write(2, 2, half);
        // The node hears that the volume is to be elsewhere, waits for what is under way, and hears of its end.
        let _ = bench.switch.hold();
        let mut idle = bench.switch.idle();
        bench.switch.0.ended(SessionId(2), End::Undone);
        assert!(greedy.ended.get(), "what comes back is bounded as all that is held");
        assert!((&mut idle).now_or_never().is_none());
        bench.switch.0.ended(SessionId(1), End::Undone);
        bench.ask(1, 4);
        idle.await;
        bench.said();
        bench.switch.serve_there(NodeId(3));
        bench.let_in(1, 1);
        let (attach, again) = ((3, Said::Attach(1, Some(Lineage(1)))), [1, 3, 4].map(|tag| (3, Said::Submit(1, tag))));
        let said = bench.said();
        assert_eq!((&said[0], &said[1..4]), (&attach, &again[..]));
        assert_eq!((session.answered(), session.ended.get()), (vec![2], false));
    });
}

#[test]
fn another_nodes_session_is_sent_away_when_the_volume_goes_if_nothing_of_it_is_under_way() {
    run(async |bench| {
        bench.here(1);
        let (held, busy) = (Rc::<Session>::default(), Rc::<Session>::default());
        bench.switch.attach_forwarded(SessionId(1), entrant(), held.clone());
        bench.switch.attach_forwarded(SessionId(2), entrant(), busy.clone());
        bench.volume.hold.set(true);
        bench.ask(2, 1);
        let _ = bench.switch.hold();
        bench.ask(1, 7);
        bench.here(1);
        assert!(!held.ended.get() && busy.ended.get(), "opened anew it is here still");
        assert_eq!(bench.volume.held(), 1);
        bench.volume.answer(1);
        assert_eq!(held.answered(), [7]);
        let _ = bench.switch.hold();
        bench.ask(1, 8);
        bench.switch.serve_there(NodeId(2));
        assert!(held.is_sent_away.get() && !held.ended.get() && !busy.is_sent_away.get());
        assert!(held.answered().is_empty() && bench.said().is_empty(), "nothing is sent on");
        bench.ask(1, 9);
        bench.here(1);
        assert_eq!((bench.volume.held(), bench.switch.0.held_bytes.get()), (0, 0), "nothing of it is begun any more");
    });
}

#[test]
fn held_requests_are_bounded_in_bytes_and_time() {
    run(async |bench| {
        let (patient, greedy) = (bench.session(1), bench.session(2));
        bench.ask(1, 1);
        let half = usize::try_from(SWITCH_HELD_BYTES_MAX / 2).unwrap();
        bench.write(2, 1, half);
        assert!(!greedy.ended.get());
        bench.write(2, 2, half);
        assert!(greedy.ended.get() && !patient.ended.get());
        bench.pass(SWITCH_HELD_TIME_MAX - LOOK).await;
        assert!(!patient.ended.get());
        bench.pass(LOOK).await;
        bench.pass(LOOK).await;
        assert!(patient.ended.get());
        assert_eq!(bench.switch.0.held_bytes.get(), 0);
        bench.pass(LOOK).await;
        assert_eq!(bench.clock.armed(), 0, "nobody looks for nothing");
    });
}

#[test]
fn all_sessions_end_with_their_volume() {
    run(async |bench| {
        bench.here(1);
        let sessions = [bench.session(1), bench.session(2)];
        bench.ask(1, 1);
        bench.switch.end_all();
        assert!(sessions.iter().all(|session| session.ended.get()));
        assert_eq!(bench.volume.sessions(), 0);
        bench.ask(1, 2);
        bench.switch.detach(SessionId(1));
        bench.here(1);
        assert_eq!(bench.volume.sessions(), 0);
    });
}

#[test]
fn a_refusal_for_good_and_a_loss_under_way_end_a_session() {
    run(async |bench| {
        bench.switch.serve_there(NodeId(2));
        let (refused, lost, idle) = (bench.session(1), bench.session(2), bench.session(3));
        bench.switch.0.ended(SessionId(1), End::ForGood);
        assert!(refused.ended.get());
        for session in [2, 3] {
            bench.let_in(session, 1);
        }
        bench.ask(2, 1);
        bench.switch.0.ended(SessionId(2), End::Unknown);
        bench.switch.0.ended(SessionId(3), End::Unknown);
        assert!(lost.ended.get() && !idle.ended.get());
        bench.said();
        bench.pass(LOOK).await;
        assert_eq!(bench.said(), [(2, Said::Attach(3, Some(Lineage(1))))]);
    });
}
