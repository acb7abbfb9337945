//! The asking side: the stream to one owner and the sessions on it, as a machine.
//!
//! A stream is opened with the first session. When anything of it may be lost, or the owner says so, it is over and with it every
//! session, each of which is reported once; the next session opens another one, after a rest, since the owner may be gone. Nothing
//! is sent before the owner has answered the opening, so nothing of an earlier stream can be taken for a later one's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use velum_protocol::{
    id::{Lineage, Pass, VolumeId},
    peer::forward::{Ask, Ended, Forward, Refused, Told},
};

use super::credit::{Inbound, Outbound, write_frames};
use crate::{
    actor,
    env::Instant,
    server::roads::End,
    volume::messages::{Operation, Outcome, Refusal, StatusExtent},
};

/// After this an opening that was not answered is repeated: the owner may not have listened yet. And so long a rest is between the
/// loss of a stream and the next one.
pub(super) const OPEN_AGAIN: Duration = Duration::from_millis(250);

/// What the machine is told.
#[derive(Debug)]
pub(super) enum Input {
    /// A session wants in.
    Attach { session: u64, volume: VolumeId, principal: Box<str>, pass: Option<Pass>, lineage: Option<Lineage> },
    /// A request of a session that was let in.
    Submit { session: u64, tag: u64, operation: Operation },
    /// No more are at hand.
    EndBurst,
    /// A session goes.
    Detach { session: u64 },
    /// The owner says something.
    Heard(Forward),
    /// What was sent may be lost.
    Lost,
    /// The time to repeat an opening, or the end of a rest.
    OpenAgain { stream: u64 },
}

/// What the shell is to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send to the owner.
    Send(Forward),
    /// A session was let in.
    Attached { session: u64, lineage: Lineage },
    /// A request is answered.
    Reply { session: u64, tag: u64, outcome: Outcome },
    /// A session is over.
    Ended { session: u64, end: End },
    /// Give [`Input::OpenAgain`] after [`OPEN_AGAIN`].
    Arm { stream: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Open,
    /// The stream was lost a moment ago.
    Resting,
}

#[derive(Debug)]
struct Session {
    volume: VolumeId,
    principal: Box<str>,
    pass: Option<Pass>,
    lineage: Option<Lineage>,
    attached: bool,
    flights: BTreeMap<u64, Flight>,
    /// Frames of a burst that has not ended.
    burst: Vec<Forward>,
}

/// A request that is not answered. Only a read expects bytes.
#[derive(Debug, Default)]
struct Flight {
    expected_bytes: u64,
    pieces: Vec<Bytes>,
    bytes: u64,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    life: [u8; 16],
    phase: Phase,
    stream: u64,
    sessions: BTreeMap<u64, Session>,
    /// Sessions with a burst that has not ended.
    bursting: BTreeSet<u64>,
    out: Outbound,
    replies: Inbound,
}

impl Machine {
    pub(super) fn new(life: [u8; 16]) -> Self {
        Self {
            life,
            phase: Phase::Idle,
            stream: 0,
            sessions: BTreeMap::new(),
            bursting: BTreeSet::new(),
            out: Outbound::default(),
            replies: Inbound::default(),
        }
    }

    fn begin(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Opening;
        self.stream += 1;
        self.open(effects);
    }

    fn open(&self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send(Forward::Open { life: self.life, stream: self.stream }));
        effects.push(Effect::Arm { stream: self.stream });
    }

    fn attach(&mut self, number: u64, session: Session, effects: &mut Vec<Effect>) {
        let attach = session.frame(number);
        self.sessions.insert(number, session);
        match self.phase {
            Phase::Idle => self.begin(effects),
            Phase::Opening | Phase::Resting => {}
            Phase::Open => self.out.push(attach),
        }
    }

    fn submit(&mut self, number: u64, tag: u64, operation: Operation, effects: &mut Vec<Effect>) {
        // One that is over has been reported.
        let Some(session) = self.sessions.get_mut(&number).filter(|session| session.attached) else { return };
        if is_nothing(&operation) {
            return effects.push(Effect::Reply { session: number, tag, outcome: Outcome::Done });
        }
        let expected_bytes = if let Operation::Read { length, .. } = operation { u64::from(length) } else { 0 };
        session.flights.insert(tag, Flight { expected_bytes, ..Flight::default() });
        session.burst.extend(frames_of(number, tag, operation));
        self.bursting.insert(number);
    }

    /// The last request of each session's burst says that it is the last.
    fn end_burst(&mut self) {
        for number in std::mem::take(&mut self.bursting) {
            let Some(session) = self.sessions.get_mut(&number) else { continue };
            let mut burst = std::mem::take(&mut session.burst);
            let last = burst.iter_mut().rev().find_map(|frame| match frame {
                Forward::Request { burst_end, .. } => Some(burst_end),
                _ => None,
            });
            if let Some(burst_end) = last {
                *burst_end = true;
            }
            burst.into_iter().for_each(|frame| self.out.push(frame));
        }
    }

    fn detach(&mut self, number: u64) {
        if self.sessions.remove(&number).is_some() {
            self.out.forget(number);
            if self.phase == Phase::Open {
                self.out.push(Forward::Detach { session: number });
            }
        }
    }

    const fn has_stream(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open)
    }

    /// The stream is over.
    fn lose(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Resting;
        effects.push(Effect::Arm { stream: self.stream });
        (self.out, self.replies) = (Outbound::default(), Inbound::default());
        self.bursting.clear();
        for session in std::mem::take(&mut self.sessions).into_keys() {
            effects.push(Effect::Ended { session, end: End::Unknown });
        }
    }

    fn heard(&mut self, frame: Forward, effects: &mut Vec<Effect>) {
        let bytes = frame.credit_bytes();
        match frame {
            Forward::Opened { stream } if self.phase == Phase::Opening && stream == self.stream => {
                self.phase = Phase::Open;
                for (number, session) in &self.sessions {
                    self.out.push(session.frame(*number));
                }
            }
            Forward::Closed { stream } if self.has_stream() && stream == self.stream => self.lose(effects),
            // Of a stream that is over, until its successor is open.
            _ if self.phase != Phase::Open => {}
            Forward::Attached { session: number, lineage, .. } => {
                if let Some(session) = self.sessions.get_mut(&number).filter(|session| !session.attached) {
                    session.attached = true;
                    effects.push(Effect::Attached { session: number, lineage });
                }
            }
            Forward::Ended { session, why } => self.ended(session, end(why), effects),
            Forward::Reply { session, tag, told } => {
                self.replied(session, tag, told, effects);
                if let Some(bytes) = self.replies.take(bytes) {
                    effects.push(Effect::Send(Forward::TookReplies { bytes }));
                }
            }
            Forward::TookRequests { bytes } => self.out.took(bytes),
            // The rest is said to the other side.
            _ => {}
        }
    }

    fn ended(&mut self, session: u64, end: End, effects: &mut Vec<Effect>) {
        if self.sessions.remove(&session).is_some() {
            self.out.forget(session);
            effects.push(Effect::Ended { session, end });
        }
    }

    fn replied(&mut self, number: u64, tag: u64, told: Told, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let Some(flight) = session.flights.get_mut(&tag) else { return };
        let outcome = match told {
            Told::Data { bytes, last } => {
                flight.bytes += u64::try_from(bytes.len()).expect("a length in memory fits 64 bits");
                flight.pieces.push(bytes);
                if flight.bytes > flight.expected_bytes || (last && flight.bytes < flight.expected_bytes) {
                    // Nothing that this owner says can be relied on; the session's guest asks anew.
                    self.ended(number, End::Unknown, effects);
                    return self.out.push(Forward::Detach { session: number });
                }
                if !last {
                    return;
                }
                Outcome::Data(std::mem::take(&mut flight.pieces))
            }
            Told::Done => Outcome::Done,
            Told::Refused(why) => Outcome::Refused(refusal(why)),
            Told::Status(extents) => {
                Outcome::Status(extents.into_iter().map(|(length, hole)| StatusExtent { length, hole }).collect())
            }
        };
        session.flights.remove(&tag);
        effects.push(Effect::Reply { session: number, tag, outcome });
    }
}

impl Session {
    fn frame(&self, session: u64) -> Forward {
        let Self { volume, lineage, pass, .. } = *self;
        Forward::Attach { session, volume, lineage, pass, principal: self.principal.to_string() }
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Attach { session: number, volume, principal, pass, lineage } => {
                let (flights, burst) = (BTreeMap::new(), Vec::new());
                let session = Session { volume, principal, pass, lineage, attached: false, flights, burst };
                self.attach(number, session, effects);
            }
            Input::Submit { session, tag, operation } => self.submit(session, tag, operation, effects),
            Input::EndBurst => self.end_burst(),
            Input::Detach { session } => self.detach(session),
            Input::Heard(frame) => self.heard(frame, effects),
            Input::Lost => {
                if self.has_stream() {
                    self.lose(effects);
                }
            }
            Input::OpenAgain { stream } => match self.phase {
                _ if stream != self.stream => {}
                Phase::Opening => self.open(effects),
                Phase::Resting if self.sessions.is_empty() => self.phase = Phase::Idle,
                Phase::Resting => self.begin(effects),
                Phase::Idle | Phase::Open => {}
            },
        }
        effects.extend(std::iter::from_fn(|| self.out.next()).map(Effect::Send));
    }
}

/// Whether a request is of length zero: done without effect, and not worth a frame.
const fn is_nothing(operation: &Operation) -> bool {
    match operation {
        Operation::Read { length, .. } | Operation::Prefetch { length, .. } | Operation::Status { length, .. } => {
            *length == 0
        }
        Operation::Trim { length, .. } | Operation::WriteZeroes { length, .. } => *length == 0,
        Operation::Write { payload, .. } => payload.is_empty(),
        Operation::Barrier => false,
    }
}

fn frames_of(session: u64, tag: u64, operation: Operation) -> Vec<Forward> {
    let ask = match operation {
        Operation::Write { offset, payload, fua } => return write_frames(session, tag, (offset, fua), payload),
        Operation::Read { offset, length } => Ask::Read { offset, length },
        Operation::Trim { offset, length, fua } => Ask::Trim { offset, length, fua },
        Operation::WriteZeroes { offset, length, no_hole, fua } => Ask::WriteZeroes { offset, length, no_hole, fua },
        Operation::Barrier => Ask::Barrier,
        Operation::Prefetch { offset, length } => Ask::Prefetch { offset, length },
        Operation::Status { offset, length, extents_max } => {
            Ask::Status { offset, length, extents_max: u32::try_from(extents_max).unwrap_or(u32::MAX) }
        }
    };
    vec![Forward::Request { session, tag, ask, burst_end: false }]
}

/// Replies and the end of a session come in the order in which the owner said them, so what is unanswered here was unanswered there.
const fn end(why: Ended) -> End {
    match why {
        Ended::NotHere => End::Unknown,
        Ended::Undone => End::Undone,
        Ended::NotAllowed | Ended::OtherLineage | Ended::Full | Ended::Malformed | Ended::NotAttached => End::ForGood,
    }
}

const fn refusal(why: Refused) -> Refusal {
    match why {
        Refused::NotAllowed => Refusal::NotAllowed,
        Refused::OutOfRange => Refusal::OutOfRange,
        Refused::Closing => Refusal::Closing,
        Refused::Failed => Refusal::Failed,
    }
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
