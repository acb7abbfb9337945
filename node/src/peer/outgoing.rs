//! The link to one peer, as a machine: dial, greet, send in order within the peer's credit, and begin anew when it breaks.
//!
//! What waits to be sent is bounded in bytes. Past the bound a frame is dropped, counted, and the receiver of this node is
//! told that something may be lost. A link that breaks takes its queue with it.

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    id::{Incarnation, NodeId},
    peer::{
        Beat, Frame, Hello, Piece, Verdict,
        agreement::{Message, PIECE_BYTES_MAX},
    },
};

use crate::{
    actor,
    env::{Instant, network::Address},
    limits::{PEER_CREDIT_BYTES, PEER_QUEUE_BYTES_MAX},
};

/// How often a link says that it lives.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// A peer that says nothing for this long is taken for gone. Five beats, so that one lost second does not cut a link.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2500);

/// The first wait before dialling again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Bytes handed to the stream at once.
const WRITE_BYTES: usize = 256 << 10;

/// What the machine is told.
#[derive(Debug)]
pub(super) enum Input {
    /// The first one.
    Begin,
    /// Where the peer is.
    Address(Address),
    /// Send a frame.
    Send(Frame),
    /// Send a snapshot.
    SendSnapshot { ticket: u64, head: Box<Message>, state: Bytes },
    /// The peer answers and is who it should be. This node belongs to that life of the cluster.
    Connected { link: u64, incarnation: Incarnation },
    /// The peer says something on the link.
    Heard { link: u64, frame: Frame },
    /// What was given to be written is written.
    Written { link: u64 },
    /// The link could not be made, or is no more.
    Broken { link: u64, why: String },
    /// A beat went by.
    Beat,
    /// Time to dial again.
    Dial { link: u64 },
    /// No more.
    Stop,
}

/// What the shell is to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Connect.
    Dial { link: u64, address: Address },
    /// Say who this is, as the link's first frame.
    Greet { link: u64 },
    /// Write; then [`Input::Written`].
    Write { link: u64, bytes: Bytes },
    /// Drop the connection.
    Close,
    /// Dial again after a while.
    DialAfter { link: u64, wait: Duration },
    /// Say when a beat went by.
    ArmBeat,
    /// What became of a snapshot.
    Sent { ticket: u64, whole: bool },
    /// So many frames were not sent.
    Dropped(usize),
    /// Tell this node that frames may be lost.
    Lost,
    /// Tell this node that it is no part of the cluster any more.
    Refused(Verdict),
    /// The link stands otherwise.
    Report { state: LinkState, why: Option<String> },
}

/// How a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Waiting before it is tried again.
    Down,
    /// Connecting or greeting.
    Connecting,
    /// Frames travel.
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection; perhaps a wait for the next one.
    Down,
    Dialling,
    Greeting,
    Up,
    Stopped,
}

/// A snapshot on its way.
#[derive(Debug)]
struct Sending {
    ticket: u64,
    index: u64,
    offset: usize,
    state: Bytes,
    /// Once all of it is handed over: the bytes that the peer has to take for that.
    ends_at: Option<u64>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    own: NodeId,
    peer: NodeId,
    address: Option<Address>,
    phase: Phase,
    /// The life of the cluster that this node belonged to when the link began.
    incarnation: Incarnation,
    /// Counts connections; what comes from another one than the newest is old.
    link: u64,
    backoff: Duration,
    queue: VecDeque<Bytes>,
    queue_bytes: usize,
    writing: bool,
    /// Bytes of frames handed over on this link, without the greeting.
    written_bytes: u64,
    taken_bytes: u64,
    sending: Option<Sending>,
    heard: Instant,
}

impl Machine {
    /// A link that has nowhere to go yet.
    pub(super) fn new(own: NodeId, peer: NodeId) -> Self {
        Self {
            own,
            peer,
            address: None,
            phase: Phase::Down,
            incarnation: Incarnation(0),
            link: 0,
            backoff: BACKOFF.0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            writing: false,
            written_bytes: 0,
            taken_bytes: 0,
            sending: None,
            heard: Instant::default(),
        }
    }

    fn dial(&mut self, effects: &mut Vec<Effect>) {
        let Some(address) = self.address.clone() else { return };
        self.link += 1;
        self.phase = Phase::Dialling;
        effects.push(Effect::Dial { link: self.link, address });
        effects.push(Effect::Report { state: LinkState::Connecting, why: None });
    }

    /// The connection is no more, and all that waited for it.
    fn fall(&mut self, why: String, effects: &mut Vec<Effect>) {
        effects.push(Effect::Close);
        self.phase = Phase::Down;
        self.writing = false;
        if !self.queue.is_empty() {
            effects.push(Effect::Dropped(self.queue.len()));
        }
        self.queue.clear();
        self.queue_bytes = 0;
        if let Some(Sending { ticket, .. }) = self.sending.take() {
            effects.push(Effect::Sent { ticket, whole: false });
        }
        effects.push(Effect::Lost);
        effects.push(Effect::Report { state: LinkState::Down, why: Some(why) });
        effects.push(Effect::DialAfter { link: self.link, wait: self.wait() });
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// The wait before the next connection: up to half as long again, another one for each node, so that two that lost each
    /// other do not stay in step.
    fn wait(&self) -> Duration {
        let mixed = (self.own.0.rotate_left(32) ^ self.peer.0 ^ self.link).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        let backoff_ms = u64::try_from(self.backoff.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(backoff_ms + backoff_ms * mixed / 512)
    }

    fn send(&mut self, frame: &Frame, effects: &mut Vec<Effect>) {
        let bytes = frame.encode();
        if self.phase == Phase::Down || self.queue_bytes + bytes.len() > PEER_QUEUE_BYTES_MAX {
            effects.push(Effect::Dropped(1));
            return effects.push(Effect::Lost);
        }
        self.queue_bytes += bytes.len();
        self.queue.push_back(bytes);
        self.write(effects);
    }

    fn send_snapshot(&mut self, ticket: u64, head: Message, state: Bytes, effects: &mut Vec<Effect>) {
        let index = head.snapshot.as_ref().map(|head| head.index);
        let Some(index) = index.filter(|_| self.phase == Phase::Up && self.sending.is_none()) else {
            return effects.push(Effect::Sent { ticket, whole: false });
        };
        self.sending = Some(Sending { ticket, index, offset: 0, state, ends_at: None });
        self.send(&Frame::Raft(Box::new(head)), effects);
        self.write(effects);
    }

    /// Hands over what the peer has room for, one piece at a time.
    fn write(&mut self, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Up || self.writing {
            return;
        }
        self.queue_piece();
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = self.queue.front() {
            let length = u64_of(frame.len());
            let in_flight = self.written_bytes - self.taken_bytes;
            // One frame is always let through: with nothing in flight there is credit for the longest.
            let has_credit = in_flight == 0 || in_flight + length <= PEER_CREDIT_BYTES;
            if !has_credit || (bytes > 0 && bytes + frame.len() > WRITE_BYTES) {
                break;
            }
            self.written_bytes += length;
            self.queue_bytes -= frame.len();
            bytes += frame.len();
            frames.extend(self.queue.pop_front());
        }
        // A frame of its own, as long ones mostly are, is written from where it stands.
        let alone = if frames.len() == 1 { frames.pop() } else { None };
        let bytes = alone.unwrap_or_else(|| frames.concat().into());
        if !bytes.is_empty() {
            self.writing = true;
            effects.push(Effect::Write { link: self.link, bytes });
        }
    }

    /// The next piece of a snapshot, when nothing else waits.
    fn queue_piece(&mut self) {
        let Some(sending) = self.sending.as_mut().filter(|_| self.queue.is_empty()) else { return };
        let end = sending.state.len().min(sending.offset + PIECE_BYTES_MAX);
        if sending.offset < end {
            let bytes = sending.state.slice(sending.offset..end);
            let frame = Frame::Piece(Piece { index: sending.index, offset: u64_of(sending.offset), bytes }).encode();
            sending.offset = end;
            self.queue_bytes += frame.len();
            self.queue.push_back(frame);
        } else if sending.ends_at.is_none() {
            sending.ends_at = Some(self.written_bytes);
        }
    }

    fn taken(&mut self, taken_bytes: u64, effects: &mut Vec<Effect>) {
        // A peer that has taken more than it was sent is mistaken; credit it with no more than that.
        self.taken_bytes = self.taken_bytes.max(taken_bytes.min(self.written_bytes));
        let taken = self.taken_bytes;
        if let Some(sent) = self.sending.take_if(|sending| sending.ends_at.is_some_and(|end| end <= taken)) {
            effects.push(Effect::Sent { ticket: sent.ticket, whole: true });
        }
        self.write(effects);
    }

    fn heard(&mut self, frame: Frame, effects: &mut Vec<Effect>) {
        match frame {
            Frame::Hello(hello) if self.phase == Phase::Greeting => self.greeted(&hello, effects),
            Frame::Beat(Beat { taken_bytes }) if self.phase == Phase::Up => self.taken(taken_bytes, effects),
            Frame::Verdict(verdict @ (Verdict::Removed | Verdict::Outlived)) => self.refused(verdict, effects),
            _ => self.fall("the peer says what has no place on this side of a link".to_owned(), effects),
        }
    }

    fn greeted(&mut self, hello: &Hello, effects: &mut Vec<Effect>) {
        match objection(hello, self.incarnation, self.peer, self.own) {
            None => {
                self.phase = Phase::Up;
                self.backoff = BACKOFF.0;
                effects.push(Effect::Report { state: LinkState::Up, why: None });
                self.write(effects);
            }
            Some(Objection::Faulty(why)) => self.fall(why.to_owned(), effects),
            Some(Objection::Outlived) => {
                self.fall("the peer belongs to an older life of the cluster".to_owned(), effects);
            }
            Some(Objection::Outlives) => self.refused(Verdict::Outlived, effects),
        }
    }

    fn refused(&mut self, verdict: Verdict, effects: &mut Vec<Effect>) {
        effects.push(Effect::Refused(verdict));
        self.fall(verdict.to_string(), effects);
    }

    fn beat(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Greeting | Phase::Up) {
            if now.since(self.heard) > SILENCE_MAX {
                return self.fall("the peer gave no sign of life".to_owned(), effects);
            }
            if self.phase == Phase::Up {
                self.send(&Frame::Beat(Beat { taken_bytes: 0 }), effects);
            }
        }
    }
}

/// What is wrong with a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// It contradicts the certificate, or speaks another version.
    Faulty(&'static str),
    /// It is of an older life of the cluster.
    Outlived,
    /// It is of a newer one: this node's is over.
    Outlives,
}

/// What is wrong with a greeting of `from` to `to`, which belongs to life `own`, if anything is. Who does not know a life yet is
/// about to learn it from the other.
pub(super) fn objection(hello: &Hello, own: Incarnation, from: NodeId, to: NodeId) -> Option<Objection> {
    let version = velum_protocol::version::PEER_FRAME.version;
    if (hello.from, hello.to) != (from, to) {
        return Some(Objection::Faulty("the greeting names other nodes than the certificates do"));
    }
    if version < hello.version_min {
        let why = "the other node speaks only newer versions; this one is too old to talk to it";
        return Some(Objection::Faulty(why));
    }
    // The oldest version that is spoken here is the first one, so an older node always has one in common.
    let is_known = own != Incarnation(0) && hello.incarnation != Incarnation(0);
    match hello.incarnation.cmp(&own) {
        Ordering::Less if is_known => Some(Objection::Outlived),
        Ordering::Greater if is_known => Some(Objection::Outlives),
        _ => None,
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Stopped {
            if let Input::SendSnapshot { ticket, .. } = input {
                effects.push(Effect::Sent { ticket, whole: false });
            }
            return;
        }
        match input {
            Input::Begin => effects.push(Effect::ArmBeat),
            Input::Address(address) => {
                let is_first = self.address.is_none();
                self.address = Some(address);
                if is_first {
                    self.dial(effects);
                }
            }
            Input::Send(frame) => self.send(&frame, effects),
            Input::SendSnapshot { ticket, head, state } => self.send_snapshot(ticket, *head, state, effects),
            Input::Connected { link, incarnation } if link == self.link && self.phase == Phase::Dialling => {
                self.phase = Phase::Greeting;
                self.incarnation = incarnation;
                self.heard = now;
                (self.written_bytes, self.taken_bytes) = (0, 0);
                effects.push(Effect::Greet { link });
            }
            Input::Heard { link, frame } if link == self.link => {
                self.heard = now;
                self.heard(frame, effects);
            }
            Input::Written { link } if link == self.link => {
                self.writing = false;
                self.write(effects);
            }
            Input::Broken { link, why } if link == self.link && self.phase != Phase::Down => self.fall(why, effects),
            Input::Beat => {
                effects.push(Effect::ArmBeat);
                self.beat(now, effects);
            }
            Input::Dial { link } if link == self.link && self.phase == Phase::Down => self.dial(effects),
            Input::Stop => {
                self.fall("there is no need for it any more".to_owned(), effects);
                self.phase = Phase::Stopped;
            }
            // Of a link that is no more.
            Input::Connected { .. }
            | Input::Heard { .. }
            | Input::Written { .. }
            | Input::Broken { .. }
            | Input::Dial { .. } => {}
        }
    }
}

fn u64_of(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;
