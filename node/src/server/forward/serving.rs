//! The owner's side: the stream of one asking node and the sessions on it, as a machine.
//!
//! A session is let in when the shell has asked gate 1 and found the volume served here; its requests go to the volume in the order
//! in which they come, as many at once as [`FORWARD_BYTES_MAX`] allows. What waits beyond that is not said to be taken, so the
//! other side's credit bounds it. A stream ends when a newer one opens, when the node that asks cannot be heard any more, and when
//! something that was said to it may be lost; its sessions are let go of at once, so that none of their requests that has no
//! position takes effect after that.
//!
//! A session that ends with its volume going away in peace ([`Ended::Undone`]) has been answered all that the volume began. The
//! rest, whether it waits here, lacks pieces or is still on its way, is never handed on; and the end is said behind the answers.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use velum_protocol::{
    id::{Epoch, Lineage, VolumeId},
    nbd::PAYLOAD_BYTES_MAX,
    peer::forward::{Ask, Ended, FORWARD_EXTENTS_MAX, Forward, Refused, Told},
};

use super::credit::{Inbound, Outbound, repack};
use crate::{
    actor,
    env::Instant,
    limits::{FORWARD_BYTES_MAX, SESSIONS_MAX},
    volume::messages::{Entrant, Operation, Outcome, Principal, Refusal, StatusExtent},
};

/// How often an asking node is told that its stream is over, until it opens another one or is gone.
pub(super) const CLOSED_AGAIN: Duration = Duration::from_millis(250);

/// What a request holds beside its payload.
const OVERHEAD_BYTES: u64 = 128;

/// What the machine is told.
#[derive(Debug)]
pub(super) enum Input {
    /// The asking node says something.
    Heard(Forward),
    /// The shell let a session in.
    Admitted { session: u64, epoch: Epoch, lineage: Lineage },
    /// The shell did not, or the volume is not served here any more.
    Over { session: u64, why: Ended },
    /// A request is answered.
    Reply { session: u64, tag: u64, outcome: Outcome },
    /// What was sent may be lost.
    Lost,
    /// What the asking node sent may be lost.
    Parted,
    /// The time to say again that a stream is over.
    ClosedAgain { stream: u64 },
}

/// What the shell is to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send to the asking node.
    Send(Forward),
    /// Ask whether a session may come in: [`Input::Admitted`] or [`Input::Over`].
    Admit { session: u64, volume: VolumeId, lineage: Option<Lineage>, entrant: Entrant },
    /// Hand a request to the volume.
    Submit { session: u64, tag: u64, operation: Operation },
    /// No more requests are at hand.
    EndBurst { session: u64 },
    /// Let a session go.
    Detach { session: u64 },
    /// Give [`Input::ClosedAgain`] after [`CLOSED_AGAIN`].
    Arm { stream: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was ever heard, or not since the node was gone.
    Silent,
    Open {
        life: [u8; 16],
        stream: u64,
    },
    /// Something said may be lost.
    Closed {
        stream: u64,
    },
}

#[derive(Debug, Default)]
struct Session {
    attached: bool,
    /// What each request that is not answered holds.
    flights: BTreeMap<u64, u64>,
    arriving: Option<Arriving>,
}

/// A write of which pieces are missing.
#[derive(Debug)]
struct Arriving {
    tag: u64,
    offset: u64,
    fua: bool,
    length: usize,
    payload: BytesMut,
    burst_end: bool,
}

/// A request that waits for room.
#[derive(Debug)]
struct Waiting {
    session: u64,
    tag: u64,
    operation: Operation,
    burst_end: bool,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    sessions: BTreeMap<u64, Session>,
    flight_bytes: u64,
    arriving_bytes: usize,
    waiting: VecDeque<Waiting>,
    out: Outbound,
    requests: Inbound,
    /// Taken and not to be told while requests wait.
    withheld_bytes: u64,
    /// Whose requests were handed on and the end of their burst not.
    open_burst: Option<u64>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Silent,
            sessions: BTreeMap::new(),
            flight_bytes: 0,
            arriving_bytes: 0,
            waiting: VecDeque::new(),
            out: Outbound::default(),
            requests: Inbound::default(),
            withheld_bytes: 0,
            open_burst: None,
        }
    }

    /// Lets go of every session.
    fn begin(&mut self, phase: Phase, effects: &mut Vec<Effect>) {
        let sessions = std::mem::take(&mut self.sessions);
        let attached = sessions.into_iter().filter(|(_, session)| session.attached);
        effects.extend(attached.map(|(session, _)| Effect::Detach { session }));
        *self = Self { phase, ..Self::new() };
    }

    fn close(&self, stream: u64, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send(Forward::Closed { stream }));
        effects.push(Effect::Arm { stream });
    }

    /// Ends a session on this side's account.
    fn end(&mut self, number: u64, why: Ended, effects: &mut Vec<Effect>) {
        if !self.let_go(number, effects) {
            return;
        }
        // An answer that was not told would be taken for a request that was not begun.
        if why != Ended::Undone {
            self.out.forget(number);
        }
        self.out.push(Forward::Ended { session: number, why });
    }

    /// Forgets a session, with all it asked and was not answered; false when there is none.
    fn let_go(&mut self, number: u64, effects: &mut Vec<Effect>) -> bool {
        let Some(session) = self.sessions.remove(&number) else { return false };
        self.flight_bytes -= session.flights.values().sum::<u64>();
        self.arriving_bytes -= session.arriving.map_or(0, |arriving| arriving.length);
        self.waiting.retain(|waiting| waiting.session != number);
        self.open_burst.take_if(|open| *open == number);
        if session.attached {
            effects.push(Effect::Detach { session: number });
        }
        true
    }

    fn heard(&mut self, frame: Forward, effects: &mut Vec<Effect>) {
        if let Forward::Open { life, stream } = frame {
            let opened = Phase::Open { life, stream };
            // Repeated before it was answered: nothing of the stream can have come yet.
            if self.phase != opened {
                self.begin(opened, effects);
            }
            return effects.push(Effect::Send(Forward::Opened { stream }));
        }
        if !matches!(self.phase, Phase::Open { .. }) {
            return;
        }
        let bytes = frame.credit_bytes();
        match frame {
            Forward::Attach { session, volume, lineage, pass, principal } => {
                let entrant = Entrant { principal: Principal(principal.into()), pass };
                self.attach(session, (volume, lineage, entrant), effects);
            }
            Forward::Detach { session } => {
                self.let_go(session, effects);
                self.out.forget(session);
            }
            Forward::Request { session, tag, ask, burst_end } => {
                self.withheld_bytes += bytes;
                self.request(session, tag, ask, burst_end, effects);
            }
            Forward::Payload { session, tag, bytes: piece } => {
                self.withheld_bytes += bytes;
                self.payload(session, tag, &piece, effects);
            }
            Forward::TookReplies { bytes } => self.out.took(bytes),
            // The rest is said to the other side.
            _ => {}
        }
    }

    fn attach(
        &mut self,
        number: u64,
        (volume, lineage, entrant): (VolumeId, Option<Lineage>, Entrant),
        effects: &mut Vec<Effect>,
    ) {
        if self.sessions.contains_key(&number) {
            return self.end(number, Ended::Malformed, effects);
        }
        if self.sessions.len() >= SESSIONS_MAX {
            return self.out.push(Forward::Ended { session: number, why: Ended::Full });
        }
        self.sessions.insert(number, Session::default());
        effects.push(Effect::Admit { session: number, volume, lineage, entrant });
    }

    fn request(&mut self, number: u64, tag: u64, ask: Ask, burst_end: bool, effects: &mut Vec<Effect>) {
        // What was under way when a session ended still comes.
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let is_odd = !session.attached || session.arriving.is_some() || session.flights.contains_key(&tag);
        if is_odd {
            return self.end(number, Ended::Malformed, effects);
        }
        session.flights.insert(tag, 0);
        let operation = match ask {
            Ask::Write { offset, length, fua, payload } => {
                let length = usize::try_from(length).expect("a payload is bounded");
                if payload.len() < length {
                    // One such write fits always; more of them at once no well-meaning node sends.
                    let most = usize::try_from(PAYLOAD_BYTES_MAX).expect("a payload is bounded");
                    if self.arriving_bytes > 0 && self.arriving_bytes + length > most {
                        return self.end(number, Ended::Malformed, effects);
                    }
                    self.arriving_bytes += length;
                    let payload = BytesMut::from(&payload[..]);
                    session.arriving = Some(Arriving { tag, offset, fua, length, payload, burst_end });
                    return;
                }
                Operation::Write { offset, payload, fua }
            }
            other => operation(other),
        };
        self.waiting.push_back(Waiting { session: number, tag, operation, burst_end });
    }

    fn payload(&mut self, number: u64, tag: u64, piece: &Bytes, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let fits =
            |arriving: &&mut Arriving| arriving.tag == tag && arriving.payload.len() + piece.len() <= arriving.length;
        let Some(arriving) = session.arriving.as_mut().filter(fits) else {
            return self.end(number, Ended::Malformed, effects);
        };
        arriving.payload.extend_from_slice(piece);
        let is_whole = |arriving: &mut Arriving| arriving.payload.len() == arriving.length;
        if let Some(Arriving { tag, offset, fua, length, payload, burst_end }) = session.arriving.take_if(is_whole) {
            self.arriving_bytes -= length;
            let operation = Operation::Write { offset, payload: payload.freeze(), fua };
            self.waiting.push_back(Waiting { session: number, tag, operation, burst_end });
        }
    }

    /// Hands on what there is room for.
    fn admit_waiting(&mut self, effects: &mut Vec<Effect>) {
        while let Some(Waiting { operation, .. }) = self.waiting.front() {
            let (cost, held) = (cost(operation), self.flight_bytes + self.out.queued_bytes());
            if held > 0 && held + cost > FORWARD_BYTES_MAX {
                // What makes room may be what was handed on and not yet written.
                return effects.extend(self.open_burst.take().map(|session| Effect::EndBurst { session }));
            }
            let Some(Waiting { session, tag, operation, burst_end }) = self.waiting.pop_front() else { return };
            let flights = self.sessions.get_mut(&session).map(|session| &mut session.flights);
            flights.expect("what a session asked goes with it").insert(tag, cost);
            self.flight_bytes += cost;
            effects.push(Effect::Submit { session, tag, operation });
            self.open_burst = Some(session);
            if burst_end {
                effects.extend(self.open_burst.take().map(|session| Effect::EndBurst { session }));
            }
        }
        if let Some(bytes) = self.requests.take(std::mem::take(&mut self.withheld_bytes)) {
            effects.push(Effect::Send(Forward::TookRequests { bytes }));
        }
    }

    fn replied(&mut self, number: u64, tag: u64, outcome: Outcome) {
        let flight = self.sessions.get_mut(&number).and_then(|session| session.flights.remove(&tag));
        let Some(cost) = flight else { return };
        self.flight_bytes -= cost;
        let told = |told| Forward::Reply { session: number, tag, told };
        match outcome {
            Outcome::Done => self.out.push(told(Told::Done)),
            Outcome::Refused(why) => self.out.push(told(Told::Refused(refused(why)))),
            Outcome::Status(extents) => {
                let extents = extents.into_iter().take(FORWARD_EXTENTS_MAX);
                let extents = extents.map(|StatusExtent { length, hole }| (length, hole));
                self.out.push(told(Told::Status(extents.collect())));
            }
            Outcome::Data(pieces) => {
                let pieces = repack(pieces);
                let count = pieces.len();
                for (place, bytes) in (1..).zip(pieces) {
                    self.out.push(told(Told::Data { bytes, last: place == count }));
                }
            }
        }
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Heard(frame) => self.heard(frame, effects),
            Input::Admitted { session: number, epoch, lineage } => match self.sessions.get_mut(&number) {
                Some(session) => {
                    session.attached = true;
                    self.out.push(Forward::Attached { session: number, epoch, lineage });
                }
                None => effects.push(Effect::Detach { session: number }),
            },
            Input::Over { session, why } => self.end(session, why, effects),
            Input::Reply { session, tag, outcome } => self.replied(session, tag, outcome),
            Input::Lost => {
                if let Phase::Open { stream, .. } = self.phase {
                    self.begin(Phase::Closed { stream }, effects);
                    self.close(stream, effects);
                }
            }
            Input::Parted => self.begin(Phase::Silent, effects),
            Input::ClosedAgain { stream } => {
                if self.phase == (Phase::Closed { stream }) {
                    self.close(stream, effects);
                }
            }
        }
        effects.extend(std::iter::from_fn(|| self.out.next()).map(Effect::Send));
        self.admit_waiting(effects);
    }
}

fn operation(ask: Ask) -> Operation {
    match ask {
        Ask::Read { offset, length } => Operation::Read { offset, length },
        Ask::Write { offset, fua, payload, .. } => Operation::Write { offset, payload, fua },
        Ask::Trim { offset, length, fua } => Operation::Trim { offset, length, fua },
        Ask::WriteZeroes { offset, length, no_hole, fua } => Operation::WriteZeroes { offset, length, no_hole, fua },
        Ask::Barrier => Operation::Barrier,
        Ask::Prefetch { offset, length } => Operation::Prefetch { offset, length },
        Ask::Status { offset, length, extents_max } => {
            let extents_max = usize::try_from(extents_max).unwrap_or(usize::MAX).min(FORWARD_EXTENTS_MAX);
            Operation::Status { offset, length, extents_max }
        }
    }
}

/// Bytes a request holds until it is answered.
fn cost(operation: &Operation) -> u64 {
    let payload = match operation {
        Operation::Read { length, .. } => u64::from(*length),
        Operation::Write { payload, .. } => u64::try_from(payload.len()).expect("a length in memory fits 64 bits"),
        _ => 0,
    };
    payload + OVERHEAD_BYTES
}

const fn refused(why: Refusal) -> Refused {
    match why {
        Refusal::NotAllowed => Refused::NotAllowed,
        Refusal::OutOfRange => Refused::OutOfRange,
        Refusal::Closing => Refused::Closing,
        Refusal::Failed => Refused::Failed,
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
