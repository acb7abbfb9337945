//! The link to one peer, as a machine: dial, greet, send in order within the peer's credit, and begin anew when it breaks.
//!
//! What waits to be sent is bounded in bytes. Past the bound a frame is dropped, counted, and the receiver of this node is
//! told that something may be lost. A link that breaks takes its queue with it. Who goes first, [`Lanes`] says, and how much is on
//! its way at once, a [`Window`] and the peer's credit.

use std::{cmp::Ordering, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    id::{Incarnation, NodeId},
    peer::{
        Beat, Frame, Hello, Piece, Verdict,
        agreement::{Message, PIECE_BYTES_MAX},
    },
};

use super::{lanes::Lanes, window::Window};

use crate::{
    actor,
    env::{Instant, network::Address},
    limits::PEER_CREDIT_BYTES,
};

/// How often a link says that it lives.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// A peer that says nothing for this long is taken for gone. Five beats, so that one lost second does not cut a link.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2500);

/// The first wait before dialling again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Bytes handed to the stream at once.
const WRITE_BYTES: usize = 256 << 10;

/// Bytes of a snapshot's state in one frame: what else is on the link waits for no more.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES <= PIECE_BYTES_MAX);

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
    lanes: Lanes,
    window: Window,
    writing: bool,
    /// The peer is to be asked what it has taken, and told that this side lives.
    is_beat_due: bool,
    /// Bytes of frames handed over on this link, without the greeting.
    written_bytes: u64,
    taken_bytes: u64,
    sending: Option<Sending>,
    heard: Instant,
    /// When the greeting was sent.
    greeting: Instant,
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
            lanes: Lanes::default(),
            window: Window::new(Duration::MAX),
            writing: false,
            is_beat_due: false,
            written_bytes: 0,
            taken_bytes: 0,
            sending: None,
            heard: Instant::default(),
            greeting: Instant::default(),
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
        (self.writing, self.is_beat_due) = (false, false);
        let lanes = std::mem::take(&mut self.lanes);
        if lanes.count() > 0 {
            effects.push(Effect::Dropped(lanes.count()));
        }
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

    fn send(&mut self, frame: &Frame, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Down || !self.lanes.push(frame) {
            effects.push(Effect::Dropped(1));
            return effects.push(Effect::Lost);
        }
        self.write(now, effects);
    }

    fn send_snapshot(&mut self, (ticket, head, state): (u64, Message, Bytes), now: Instant, effects: &mut Vec<Effect>) {
        let index = head.snapshot.as_ref().map(|head| head.index);
        let Some(index) = index.filter(|_| self.phase == Phase::Up && self.sending.is_none()) else {
            return effects.push(Effect::Sent { ticket, whole: false });
        };
        // The head is a word and goes before its pieces.
        self.sending = Some(Sending { ticket, index, offset: 0, state, ends_at: None });
        self.send(&Frame::Raft(Box::new(head)), now, effects);
    }

    /// Hands over what the peer has room for, one piece at a time.
    fn write(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Up || self.writing {
            return;
        }
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while let Some((length, takes_turns)) = self.next() {
            let in_flight = self.written_bytes - self.taken_bytes;
            let most = if takes_turns { self.window.bytes() } else { PEER_CREDIT_BYTES };
            // One frame is always let through: with nothing in flight there is credit for the longest.
            if in_flight > 0 && in_flight + u64_of(length) > most {
                self.is_beat_due |= self.window.hold();
                break;
            }
            if bytes > 0 && bytes + length > WRITE_BYTES {
                break;
            }
            frames.extend(self.lanes.pop());
            self.written_bytes += u64_of(length);
            bytes += length;
        }
        // Behind all else, so that the answer tells of it.
        if std::mem::take(&mut self.is_beat_due) {
            let beat = Frame::Beat(Beat { taken_bytes: 0 }).encode();
            self.written_bytes += u64_of(beat.len());
            self.window.ask(self.written_bytes, now);
            frames.push(beat);
        }
        // A frame of its own, as long ones mostly are, is written from where it stands.
        let alone = if frames.len() == 1 { frames.pop() } else { None };
        let bytes = alone.unwrap_or_else(|| frames.concat().into());
        if !bytes.is_empty() {
            self.writing = true;
            effects.push(Effect::Write { link: self.link, bytes });
        }
    }

    /// The next frame to go, as [`Lanes::next`] gives it. A piece of a snapshot is cut when none waits.
    fn next(&mut self) -> Option<(usize, bool)> {
        if let Some(sending) = self.sending.as_mut().filter(|_| self.lanes.has_no_piece()) {
            let end = sending.state.len().min(sending.offset + PIECE_BYTES);
            if sending.offset < end {
                let bytes = sending.state.slice(sending.offset..end);
                let piece = Piece { index: sending.index, offset: u64_of(sending.offset), bytes };
                if self.lanes.push(&Frame::Piece(piece)) {
                    sending.offset = end;
                }
            } else if sending.ends_at.is_none() {
                sending.ends_at = Some(self.written_bytes);
            }
        }
        self.lanes.next()
    }

    fn taken(&mut self, taken_bytes: u64, now: Instant, effects: &mut Vec<Effect>) {
        // A peer that has taken more than it was sent is mistaken; credit it with no more than that.
        self.taken_bytes = self.taken_bytes.max(taken_bytes.min(self.written_bytes));
        let taken = self.taken_bytes;
        self.window.taken(taken, now);
        if let Some(sent) = self.sending.take_if(|sending| sending.ends_at.is_some_and(|end| end <= taken)) {
            effects.push(Effect::Sent { ticket: sent.ticket, whole: true });
        }
        self.write(now, effects);
    }

    fn heard(&mut self, frame: Frame, now: Instant, effects: &mut Vec<Effect>) {
        match frame {
            Frame::Hello(hello) if self.phase == Phase::Greeting => self.greeted(&hello, now, effects),
            Frame::Beat(Beat { taken_bytes }) if self.phase == Phase::Up => self.taken(taken_bytes, now, effects),
            Frame::Verdict(verdict @ (Verdict::Removed | Verdict::Outlived)) => self.refused(verdict, effects),
            _ => self.fall("the peer says what has no place on this side of a link".to_owned(), effects),
        }
    }

    fn greeted(&mut self, hello: &Hello, now: Instant, effects: &mut Vec<Effect>) {
        match objection(hello, self.incarnation, self.peer, self.own) {
            None => {
                self.phase = Phase::Up;
                self.window = Window::new(now.since(self.greeting));
                self.backoff = BACKOFF.0;
                effects.push(Effect::Report { state: LinkState::Up, why: None });
                self.write(now, effects);
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
            self.is_beat_due = self.phase == Phase::Up;
            self.write(now, effects);
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
            Input::Send(frame) => self.send(&frame, now, effects),
            Input::SendSnapshot { ticket, head, state } => self.send_snapshot((ticket, *head, state), now, effects),
            Input::Connected { link, incarnation } if link == self.link && self.phase == Phase::Dialling => {
                self.phase = Phase::Greeting;
                self.incarnation = incarnation;
                (self.heard, self.greeting) = (now, now);
                (self.written_bytes, self.taken_bytes) = (0, 0);
                effects.push(Effect::Greet { link });
            }
            Input::Heard { link, frame } if link == self.link => {
                self.heard = now;
                self.heard(frame, now, effects);
            }
            Input::Written { link } if link == self.link => {
                self.writing = false;
                self.write(now, effects);
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
