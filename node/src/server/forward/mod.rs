//! Requests for volumes that another node owns: this node asks the owner for its own guests, and serves the guests of others.
//!
//! The way between two nodes is a *stream* in each direction, over the links: see [`asking`] for the node that asks and [`serving`]
//! for the owner. Both gates are judged by the owner, by the principal that the asking node names; that node is believed, for it
//! holds the root key. What the owner takes of a node at once is bounded in sessions and bytes.

mod asking;
mod credit;
mod serving;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
};

use velum_protocol::{
    format::metadata::Right,
    id::{Epoch, Lineage, NodeId, SessionId, VolumeId},
    peer::{
        Frame,
        forward::{Ended, Forward},
    },
};

use super::{
    gate::{Gate, Standing},
    roads::{Afar, Near, Roads, Visitor},
    session::Sessions,
    switch::Switch,
};
use crate::{
    actor::{self, Handle, Shell},
    audit::{Action, ByteRange},
    env::Clock,
    metrics::{ForwardMetrics, Side},
    volume::messages::{Door as _, Entrant, Operation, Origin, Outcome, Principal, Refusal, Replies, Reply, Request},
};

/// How frames get to another node; what is lost is told by [`Forwarding::lost`].
pub type Send = Rc<dyn Fn(NodeId, Frame)>;

/// The volumes of this node.
pub trait Own {
    /// The way to a volume, whoever owns it.
    fn switch(&self, volume: VolumeId) -> Option<Switch>;
}

/// All that a node forwards and serves of what others forward.
pub struct Forwarding {
    around: Rc<Surroundings>,
    life: [u8; 16],
    peers: RefCell<BTreeMap<NodeId, Peer>>,
}

/// What forwarding stands on.
pub struct Surroundings {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// The way to other nodes.
    pub send: Send,
    /// Gate 1.
    pub gate: Rc<Gate>,
    /// The volumes of this node.
    pub own: Rc<dyn Own>,
    /// Gives sessions their numbers on this node.
    pub sessions: Rc<Sessions>,
    /// Counters.
    pub metrics: ForwardMetrics,
}

struct Peer {
    asking: Handle<asking::Input>,
    guests: Rc<Guests>,
    serving: Handle<serving::Input>,
}

impl Forwarding {
    /// Nothing is under way yet. `life` is random, another one for each process.
    #[must_use]
    pub fn new(around: Surroundings, life: [u8; 16]) -> Rc<Self> {
        Rc::new(Self { around: Rc::new(around), life, peers: RefCell::default() })
    }

    /// A frame of a peer's.
    pub fn receive(&self, from: NodeId, frame: Forward) {
        match frame {
            Forward::Opened { .. }
            | Forward::Closed { .. }
            | Forward::Attached { .. }
            | Forward::Ended { .. }
            | Forward::Reply { .. }
            | Forward::TookRequests { .. } => {
                // Answers to nothing that was asked need no memory.
                let asking = self.peers.borrow().get(&from).map(|peer| peer.asking.clone());
                if let Some(asking) = asking {
                    asking.call(asking::Input::Heard(frame));
                }
            }
            Forward::Open { .. }
            | Forward::Attach { .. }
            | Forward::Detach { .. }
            | Forward::Request { .. }
            | Forward::Payload { .. }
            | Forward::TookReplies { .. } => {
                self.with_peer(from, |peer| peer.serving.clone()).call(serving::Input::Heard(frame));
            }
        }
    }

    /// What was sent to a peer may be lost.
    pub fn lost(&self, to: NodeId) {
        let peer = self.peers.borrow().get(&to).map(|peer| (peer.asking.clone(), peer.serving.clone()));
        if let Some((asking, serving)) = peer {
            asking.call(asking::Input::Lost);
            serving.call(serving::Input::Lost);
        }
    }

    /// What a peer sent may be lost.
    pub fn parted(&self, from: NodeId) {
        let serving = self.peers.borrow().get(&from).map(|peer| peer.serving.clone());
        if let Some(serving) = serving {
            serving.call(serving::Input::Parted);
        }
    }

    fn with_peer<T>(&self, node: NodeId, read: impl FnOnce(&Peer) -> T) -> T {
        read(self.peers.borrow_mut().entry(node).or_insert_with(|| self.meet(node)))
    }

    fn meet(&self, node: NodeId) -> Peer {
        let around = &self.around;
        let guests: Rc<Guests> = Rc::default();
        let shell = Asker { around: Rc::clone(around), owner: node, guests: Rc::clone(&guests) };
        let asking = actor::start(Rc::clone(&around.clock), asking::Machine::new(self.life), shell);
        let shell = Server { around: Rc::clone(around), peer: node, served: BTreeMap::new() };
        let serving = actor::start(Rc::clone(&around.clock), serving::Machine::new(), shell);
        Peer { asking, guests, serving }
    }
}

impl Roads for Forwarding {
    fn to(&self, node: NodeId, volume: VolumeId, near: Weak<dyn Near>) -> Rc<dyn Afar> {
        let (asking, guests) = self.with_peer(node, |peer| (peer.asking.clone(), Rc::clone(&peer.guests)));
        let metrics = self.around.metrics.clone();
        Rc::new(RemoteDoor { volume, asking, guests, near, numbers: RefCell::default(), metrics })
    }
}

/// The sessions of this node's guests on one stream, by the number they have there.
#[derive(Default)]
struct Guests {
    last: Cell<u64>,
    known: RefCell<BTreeMap<u64, Guest>>,
}

/// A session, and who hears of it.
type Guest = (SessionId, Weak<dyn Near>);

impl Guests {
    fn near(&self, number: u64) -> Option<(SessionId, Rc<dyn Near>)> {
        let known = self.known.borrow();
        let (session, near) = known.get(&number)?;
        Some((*session, near.upgrade()?))
    }
}

/// The way to one volume at its owner.
struct RemoteDoor {
    volume: VolumeId,
    asking: Handle<asking::Input>,
    guests: Rc<Guests>,
    near: Weak<dyn Near>,
    numbers: RefCell<BTreeMap<SessionId, u64>>,
    metrics: ForwardMetrics,
}

impl Afar for RemoteDoor {
    fn attach(&self, session: SessionId, entrant: &Entrant, lineage: Option<Lineage>) {
        let number = self.guests.last.get() + 1;
        self.guests.last.set(number);
        self.numbers.borrow_mut().insert(session, number);
        let known = self.guests.known.borrow_mut().insert(number, (session, Weak::clone(&self.near)));
        debug_assert!(known.is_none(), "numbers are never used again");
        self.metrics.sessions.of(Side::Asking).inc();
        let (principal, pass) = (Box::from(&*entrant.principal.0), entrant.pass);
        self.asking.call(asking::Input::Attach { session: number, volume: self.volume, principal, pass, lineage });
    }

    fn submit(&self, request: Request) {
        let Request { origin: Origin { session, tag }, operation } = request;
        let number = self.numbers.borrow().get(&session).copied();
        if let Some(session) = number {
            count(&self.metrics, Side::Asking, &operation);
            self.asking.call(asking::Input::Submit { session, tag, operation });
        }
    }

    fn end_burst(&self) {
        self.asking.call(asking::Input::EndBurst);
    }

    fn detach(&self, session: SessionId) {
        let number = self.numbers.borrow_mut().remove(&session);
        let Some(session) = number else { return };
        // Not known any more when the owner has ended it.
        if self.guests.known.borrow_mut().remove(&session).is_some() {
            self.metrics.sessions.of(Side::Asking).dec();
            self.asking.call(asking::Input::Detach { session });
        }
    }
}

/// Performs what the asking machine says.
struct Asker {
    around: Rc<Surroundings>,
    owner: NodeId,
    guests: Rc<Guests>,
}

impl Shell<asking::Machine> for Asker {
    fn perform(&mut self, effect: asking::Effect, own: &Handle<asking::Input>) {
        use asking::{Effect, Input, OPEN_AGAIN};
        match effect {
            Effect::Send(frame) => (self.around.send)(self.owner, Frame::Forward(frame)),
            Effect::Attached { session, lineage } => {
                if let Some((session, near)) = self.guests.near(session) {
                    near.attached(session, lineage);
                }
            }
            Effect::Reply { session, tag, outcome } => {
                count_reply(&self.around.metrics, Side::Asking, &outcome);
                if let Some((session, near)) = self.guests.near(session) {
                    near.reply(Reply { origin: Origin { session, tag }, outcome });
                }
            }
            Effect::Ended { session: number, end } => {
                let guest = self.guests.near(number);
                if self.guests.known.borrow_mut().remove(&number).is_some() {
                    self.around.metrics.sessions.of(Side::Asking).dec();
                }
                if let Some((session, near)) = guest {
                    near.ended(session, end);
                }
            }
            Effect::Arm { stream } => own.after(&*self.around.clock, OPEN_AGAIN, Input::OpenAgain { stream }),
        }
    }
}

/// A session of a guest of another node.
struct Served {
    id: SessionId,
    volume: VolumeId,
    principal: Principal,
    switch: Switch,
}

/// Performs what the serving machine says; gate 1 is here.
struct Server {
    around: Rc<Surroundings>,
    peer: NodeId,
    served: BTreeMap<u64, Served>,
}

impl Server {
    fn admit(
        &mut self,
        (number, volume): (u64, VolumeId),
        lineage: Option<Lineage>,
        entrant: Entrant,
        own: &Handle<serving::Input>,
    ) -> Result<(Epoch, Lineage), Ended> {
        let principal = entrant.principal.clone();
        let switch = self.around.own.switch(volume).ok_or(Ended::NotHere)?;
        let owner = switch.served_here().ok_or(Ended::NotHere)?;
        if lineage.is_some_and(|lineage| lineage != owner.lineage) {
            return Err(Ended::OtherLineage);
        }
        if !self.around.gate.admit_volume(volume, &principal, Action::Attach) {
            return Err(Ended::NotAllowed);
        }
        match self.around.gate.stands(volume, entrant.pass) {
            Standing::Live => {}
            // It began elsewhere, and this node is to hear of it.
            Standing::NotYet => return Err(Ended::NotHere),
            Standing::Over => return Err(Ended::NotAttached),
        }
        let id = self.around.sessions.next_id();
        let metrics = self.around.metrics.clone();
        let answers = Rc::new(Answers { session: number, serving: own.clone(), metrics });
        switch.attach_forwarded(id, entrant, answers);
        self.around.metrics.sessions.of(Side::Serving).inc();
        tracing::debug!(peer = %self.peer, %volume, session = %id, "a session of a peer's guest begins");
        self.served.insert(number, Served { id, volume, principal, switch });
        Ok((owner.epoch, owner.lineage))
    }

    /// Gate 1, and on to the volume.
    fn submit(&self, session: u64, tag: u64, operation: Operation, own: &Handle<serving::Input>) {
        let Some(Served { id, volume, principal, switch }) = self.served.get(&session) else { return };
        let (gate, (needed, action, range)) = (&self.around.gate, needs(&operation));
        if gate.right(*volume, principal) < needed {
            gate.refused(*volume, principal, action, range);
            return own.call(serving::Input::Reply { session, tag, outcome: Outcome::Refused(Refusal::NotAllowed) });
        }
        gate.passed(1);
        count(&self.around.metrics, Side::Serving, &operation);
        switch.submit(Request { origin: Origin { session: *id, tag }, operation });
    }
}

impl Shell<serving::Machine> for Server {
    fn perform(&mut self, effect: serving::Effect, own: &Handle<serving::Input>) {
        use serving::{CLOSED_AGAIN, Effect, Input};
        match effect {
            Effect::Send(frame) => (self.around.send)(self.peer, Frame::Forward(frame)),
            Effect::Admit { session, volume, lineage, entrant } => {
                own.call(match self.admit((session, volume), lineage, entrant, own) {
                    Ok((epoch, lineage)) => Input::Admitted { session, epoch, lineage },
                    Err(why) => Input::Over { session, why },
                });
            }
            Effect::Submit { session, tag, operation } => self.submit(session, tag, operation, own),
            Effect::EndBurst { session } => {
                if let Some(served) = self.served.get(&session) {
                    served.switch.end_burst();
                }
            }
            Effect::Detach { session } => {
                if let Some(served) = self.served.remove(&session) {
                    self.around.metrics.sessions.of(Side::Serving).dec();
                    served.switch.detach(served.id);
                }
            }
            Effect::Arm { stream } => own.after(&*self.around.clock, CLOSED_AGAIN, Input::ClosedAgain { stream }),
        }
    }
}

/// Where the volume puts the replies of a peer's guest.
struct Answers {
    session: u64,
    serving: Handle<serving::Input>,
    metrics: ForwardMetrics,
}

impl Replies for Answers {
    fn reply(&self, reply: Reply) {
        let Reply { origin, outcome } = reply;
        count_reply(&self.metrics, Side::Serving, &outcome);
        self.serving.call(serving::Input::Reply { session: self.session, tag: origin.tag, outcome });
    }

    fn end(&self) {
        self.serving.call(serving::Input::Over { session: self.session, why: Ended::NotHere });
    }
}

impl Visitor for Answers {
    fn send_away(&self) {
        self.serving.call(serving::Input::Over { session: self.session, why: Ended::Undone });
    }
}

/// What a request takes: the right, and what the audit calls it.
const fn needs(operation: &Operation) -> (Right, Action, ByteRange) {
    let (action, offset, length) = match operation {
        Operation::Read { offset, length }
        | Operation::Prefetch { offset, length }
        | Operation::Status { offset, length, .. } => (Action::Read, *offset, *length as u64),
        Operation::Write { offset, payload, .. } => (Action::Write, *offset, payload.len() as u64),
        Operation::Trim { offset, length, .. } | Operation::WriteZeroes { offset, length, .. } => {
            (Action::Write, *offset, *length)
        }
        // As at the door: whoever may read may ask that what is acked lasts.
        Operation::Barrier => (Action::Read, 0, 0),
    };
    let right = if matches!(action, Action::Write) { Right::Write } else { Right::Read };
    (right, action, ByteRange { offset, length })
}

fn count(metrics: &ForwardMetrics, side: Side, operation: &Operation) {
    metrics.requests.of(side).inc();
    if let Operation::Write { payload, .. } = operation {
        metrics.bytes.of(side).inc_by(payload.len() as u64);
    }
}

fn count_reply(metrics: &ForwardMetrics, side: Side, outcome: &Outcome) {
    if let Outcome::Data(pieces) = outcome {
        metrics.bytes.of(side).inc_by(pieces.iter().map(|piece| piece.len() as u64).sum());
    }
}

#[cfg(test)]
mod tests;
