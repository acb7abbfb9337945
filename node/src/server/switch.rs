//! The stable way in to one volume: guests' sessions hold it for as long as they live, whoever serves the volume meanwhile.
//!
//! Behind it is the volume on this node, its owner elsewhere, or nothing yet. Requests are held while nobody takes them, within
//! [`SWITCH_HELD_BYTES_MAX`] and [`SWITCH_HELD_TIME_MAX`]; past either bound the session that brought them ends, so that its guest
//! connects anew. A session moves on to another owner only when nothing of it is under way: what is under way may be done or not
//! when its owner is lost, and a guest is told nothing false by a connection that ends. It moves on only within one lineage, too.
//!
//! ```text
//!            ┌── serve_here(door, owner) ──> here ──┐
//! nothing ───┤                                      ├── break_off(), end_all() ──> nothing
//!            └── serve_there(node) ────────> there ─┘
//!                      hold(): nothing more is passed on until go_on(), or one of the above
//! ```
//!
//! A node may be cut off from whoever serves the volume, and not know who that is. Then what waits for too long ends its session, and
//! no guest comes in: it may find the volume at another node's door.
//!
//! Sessions of other nodes' guests are let in only while the volume is here. When it goes they end, and those of which nothing is
//! under way are told so: whatever else they ask is undone, and the node that asked for them, which knows where the volume is as
//! well as this one, holds it for the next owner.

mod guest;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::Notify;
use velum_protocol::id::{Lineage, NodeId, SessionId, VolumeId};

use self::guest::{Guest, Place};
use super::roads::{Afar, End, Near, Roads, Visitor};
use crate::{
    actor,
    env::{Clock, Local},
    limits::{SWITCH_HELD_BYTES_MAX, SWITCH_HELD_TIME_MAX},
    volume::{
        messages::{Door, Entrant, Operation, Origin, Outcome, Refusal, Replies, Reply, Request},
        sealing::Owner,
    },
};

/// How often sessions that are outside knock at the owner's again, and what is held is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long a guest is without an answer before its session ends, while this node is cut off.
const UNANSWERED_MAX: Duration = Duration::from_secs(1);

/// What a held request counts for beside its payload.
const OVERHEAD_BYTES: u64 = 128;

/// The way in to one volume. Cheap to clone.
#[derive(Clone)]
pub struct Switch(Rc<Inner>);

struct Inner {
    own: Weak<Self>,
    clock: Rc<dyn Clock>,
    volume: VolumeId,
    size_bytes: Box<dyn Fn() -> u64>,
    roads: Weak<dyn Roads>,
    backing: RefCell<Backing>,
    /// Nothing more is passed on while there is one.
    holds: RefCell<BTreeSet<Hold>>,
    next_hold: Cell<u64>,
    is_cut_off: Cell<bool>,
    guests: RefCell<BTreeMap<SessionId, Rc<Guest>>>,
    /// Requests passed on and not answered, of all guests.
    under_way: Cell<usize>,
    held_bytes: Cell<u64>,
    is_looking: Cell<bool>,
    changed: Notify,
}

/// Names what [`Switch::hold`] began. Several may hold at a time: each for a reason of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub struct Hold(u64);

#[derive(Clone)]
enum Backing {
    Nothing,
    Here(Rc<dyn Door>, Owner),
    There(NodeId, Rc<dyn Afar>),
}

impl Switch {
    /// A switch with nothing behind it yet. `size_bytes` tells the volume's size while it is not here.
    #[must_use]
    pub fn new(
        clock: &Rc<dyn Clock>,
        volume: VolumeId,
        size_bytes: Box<dyn Fn() -> u64>,
        roads: Weak<dyn Roads>,
    ) -> Self {
        Self(Rc::new_cyclic(|own| Inner {
            own: Weak::clone(own),
            clock: Rc::clone(clock),
            volume,
            size_bytes,
            roads,
            backing: RefCell::new(Backing::Nothing),
            holds: RefCell::default(),
            next_hold: Cell::default(),
            is_cut_off: Cell::default(),
            guests: RefCell::default(),
            under_way: Cell::default(),
            held_bytes: Cell::default(),
            is_looking: Cell::default(),
            changed: Notify::default(),
        }))
    }

    /// From now on the volume is served by this node. Sessions that began under another lineage end; so do those that still have
    /// requests under way where it was served before.
    pub fn serve_here(&self, door: Rc<dyn Door>, owner: Owner) {
        self.0.change(Backing::Here(door, owner));
    }

    /// From now on the volume is served by another node; nothing happens when it already is. Sessions that still have requests
    /// under way where it was served before end; the owner judges the lineages of the others.
    pub fn serve_there(&self, node: NodeId) {
        if matches!(&*self.0.backing.borrow(), Backing::There(now, _) if *now == node) {
            return self.0.resume();
        }
        // Without roads the node is going away.
        let Some(roads) = self.0.roads.upgrade() else { return };
        let near: Weak<dyn Near> = self.0.own.clone();
        let afar = roads.to(node, self.0.volume, near);
        self.0.change(Backing::There(node, afar));
    }

    /// Passes nothing more on: before a planned move, or before the volume is opened anew. Ends with [`Switch::go_on`], or for all who
    /// hold with the next [`Switch::serve_here`], [`Switch::serve_there`] or [`Switch::break_off`].
    pub fn hold(&self) -> Hold {
        let hold = Hold(self.0.next_hold.replace(self.0.next_hold.get() + 1));
        self.0.holds.borrow_mut().insert(hold);
        hold
    }

    /// Completes when nothing is under way, for somebody who holds.
    #[must_use]
    pub fn idle(&self) -> Local<()> {
        let inner = Rc::clone(&self.0);
        async move {
            loop {
                let changed = inner.changed.notified();
                if inner.under_way.get() == 0 {
                    return;
                }
                changed.await;
            }
        }
        .boxed_local()
    }

    /// Ends a [`Switch::hold`] after which nothing has changed; what others hold they hold on.
    pub fn go_on(&self, hold: Hold) {
        let is_last = {
            let mut holds = self.0.holds.borrow_mut();
            holds.remove(&hold) && holds.is_empty()
        };
        if is_last {
            self.0.resume();
        }
    }

    /// Whoever served the volume is lost: sessions with requests under way end, the requests of the others are held.
    pub fn break_off(&self) {
        self.0.change(Backing::Nothing);
    }

    /// Tells whether this node is cut off from whoever serves the volume. While it is, sessions end whose requests are not answered.
    pub fn set_cut_off(&self, is_cut_off: bool) {
        if self.0.is_cut_off.replace(is_cut_off) != is_cut_off {
            self.0.changed.notify_waiters();
        }
        if is_cut_off {
            self.0.end_unanswered();
        }
    }

    /// All sessions end: the volume was deleted, or none of them may go on.
    pub fn end_all(&self) {
        self.0.change(Backing::Nothing);
        self.0.each(|inner, guest| inner.cut(guest));
    }

    /// In whose name this node serves the volume, if it does now.
    #[must_use]
    pub fn served_here(&self) -> Option<Owner> {
        match &*self.0.backing.borrow() {
            Backing::Here(_, owner) => Some(*owner),
            Backing::Nothing | Backing::There(..) => None,
        }
    }

    /// Which other node serves the volume, as far as the switch was told.
    #[must_use]
    pub fn served_there(&self) -> Option<NodeId> {
        match &*self.0.backing.borrow() {
            Backing::There(node, _) => Some(*node),
            Backing::Nothing | Backing::Here(..) => None,
        }
    }

    /// Lets a session of another node's guest in; only while the volume is here.
    pub(super) fn attach_forwarded(&self, session: SessionId, entrant: Entrant, visitor: Rc<dyn Visitor>) {
        self.0.attach(Guest::visiting(session, entrant, visitor));
    }
}

impl Door for Switch {
    fn size_bytes(&self) -> u64 {
        match &*self.0.backing.borrow() {
            Backing::Here(door, _) => door.size_bytes(),
            Backing::Nothing | Backing::There(..) => (self.0.size_bytes)(),
        }
    }

    fn attach(&self, session: SessionId, entrant: Entrant, replies: Rc<dyn Replies>) {
        self.0.attach(Guest::new(session, entrant, replies));
    }

    fn submit(&self, request: Request) {
        let Request { origin: Origin { session, tag }, operation } = request;
        let guest = self.0.guests.borrow().get(&session).map(Rc::clone);
        match guest {
            Some(guest) if guest.place.get() == Place::Inside && !self.0.is_held() => {
                self.0.pass(&guest, tag, operation);
            }
            Some(guest) => self.0.keep(&guest, tag, operation),
            None => {}
        }
    }

    fn end_burst(&self) {
        let backing = self.0.backing.borrow().clone();
        match backing {
            Backing::Here(door, _) => door.end_burst(),
            Backing::There(_, afar) => afar.end_burst(),
            Backing::Nothing => {}
        }
    }

    fn detach(&self, session: SessionId) {
        let guest = self.0.guests.borrow_mut().remove(&session);
        if let Some(guest) = guest {
            self.0.take_out(&guest);
            self.0.forget(&guest);
        }
    }

    fn opening(&self) -> Option<Local<bool>> {
        let is_nothing = |inner: &Inner| matches!(&*inner.backing.borrow(), Backing::Nothing);
        let inner = Rc::clone(&self.0);
        (is_nothing(&inner) || inner.is_cut_off.get()).then(|| {
            async move {
                loop {
                    let changed = inner.changed.notified();
                    if inner.is_cut_off.get() || !is_nothing(&inner) {
                        return !inner.is_cut_off.get();
                    }
                    changed.await;
                }
            }
            .boxed_local()
        })
    }
}

impl Inner {
    fn each(&self, then: impl Fn(&Self, &Rc<Guest>)) {
        let guests: Vec<_> = self.guests.borrow().values().map(Rc::clone).collect();
        guests.iter().filter(|guest| guest.place.get() != Place::Over).for_each(|guest| then(self, guest));
    }

    /// Has something else behind the switch, and everybody moved there who may go.
    fn change(&self, next: Backing) {
        let stays_here = matches!(next, Backing::Here(..));
        self.each(|inner, guest| {
            inner.take_out(guest);
            match &guest.visitor {
                _ if guest.under_way.get() > 0 => inner.cut(guest),
                Some(visitor) if !stays_here => inner.send_away(guest, &**visitor),
                _ => {}
            }
        });
        *self.backing.borrow_mut() = next;
        self.resume();
        self.changed.notify_waiters();
    }

    fn is_held(&self) -> bool {
        !self.holds.borrow().is_empty()
    }

    fn resume(&self) {
        self.holds.take();
        self.each(Self::go_in);
        self.look_later();
    }

    fn attach(&self, guest: Guest) {
        let guest = Rc::new(guest);
        self.guests.borrow_mut().insert(guest.session, Rc::clone(&guest));
        self.go_in(&guest);
        self.look_later();
    }

    /// Brings a session in, or has the owner asked; what was held of one that is in is passed on.
    fn go_in(&self, guest: &Rc<Guest>) {
        let backing = self.backing.borrow().clone();
        match (backing, guest.place.get()) {
            (Backing::Here(door, owner), Place::Outside) => {
                if guest.lineage.replace(Some(owner.lineage)).is_some_and(|lineage| lineage != owner.lineage) {
                    return self.cut(guest);
                }
                guest.place.set(Place::Inside);
                guest.turn.set(guest.turn.get() + 1);
                let (inner, turn) = (Weak::clone(&self.own), guest.turn.get());
                let passing = Passing { inner, guest: Rc::clone(guest), turn };
                door.attach(guest.session, guest.entrant.clone(), Rc::new(passing));
                self.release(guest);
            }
            (Backing::There(_, afar), Place::Outside) => {
                guest.place.set(Place::Asking);
                afar.attach(guest.session, &guest.entrant, guest.lineage.get());
            }
            (Backing::Here(..) | Backing::There(..), Place::Inside) => self.release(guest),
            _ => {}
        }
    }

    /// Takes a session out of where it is. What was under way there is not answered any more.
    fn take_out(&self, guest: &Guest) {
        if matches!(guest.place.get(), Place::Outside | Place::Over) {
            return;
        }
        guest.place.set(Place::Outside);
        guest.turn.set(guest.turn.get() + 1);
        let backing = self.backing.borrow().clone();
        match backing {
            Backing::Here(door, _) => door.detach(guest.session),
            Backing::There(_, afar) => afar.detach(guest.session),
            Backing::Nothing => {}
        }
    }

    /// Ends a session without an answer to what it has under way.
    fn cut(&self, guest: &Guest) {
        self.end(guest);
        guest.replies.end();
    }

    /// Ends another node's session of which nothing is under way. What is held of it, that node asks of the next owner.
    fn send_away(&self, guest: &Guest, visitor: &dyn Visitor) {
        self.end(guest);
        visitor.send_away();
    }

    /// Nothing more of a session is passed on, whatever comes of it.
    fn end(&self, guest: &Guest) {
        self.take_out(guest);
        guest.place.set(Place::Over);
        self.forget(guest);
    }

    /// Ends the sessions that wait for too long.
    fn end_unanswered(&self) {
        let now = self.clock.now();
        self.each(|inner, guest| {
            let under_way = (guest.under_way.get() > 0).then(|| guest.answered_at.get());
            if under_way.into_iter().chain(guest.held_since()).any(|since| now.since(since) >= UNANSWERED_MAX) {
                tracing::warn!(volume = %inner.volume, "whoever serves a volume is not reached from here: a session ends");
                inner.cut(guest);
            }
        });
    }

    /// Forgets what a session has under way and held.
    fn forget(&self, guest: &Guest) {
        let held: u64 = guest.held.take().iter().map(|(_, _, operation)| cost(operation)).sum();
        self.held_bytes.set(self.held_bytes.get() - held);
        guest.sent.take();
        let under_way = guest.under_way.take();
        self.under_way.set(self.under_way.get() - under_way);
        self.changed.notify_waiters();
    }

    fn pass(&self, guest: &Guest, tag: u64, operation: Operation) {
        if guest.under_way.get() == 0 {
            guest.answered_at.set(self.clock.now());
        }
        guest.under_way.set(guest.under_way.get() + 1);
        self.under_way.set(self.under_way.get() + 1);
        let origin = Origin { session: guest.session, tag };
        let backing = self.backing.borrow().clone();
        match backing {
            Backing::Here(door, _) => door.submit(Request { origin, operation }),
            Backing::There(_, afar) => {
                guest.sent.borrow_mut().insert(tag, operation.clone());
                afar.submit(Request { origin, operation });
            }
            Backing::Nothing => unreachable!("nobody is inside nothing"),
        }
    }

    fn answered(&self, guest: &Guest) {
        guest.answered_at.set(self.clock.now());
        guest.under_way.set(guest.under_way.get() - 1);
        self.under_way.set(self.under_way.get() - 1);
        if self.under_way.get() == 0 && self.is_held() {
            self.changed.notify_waiters();
        }
    }

    /// Holds a request.
    fn keep(&self, guest: &Guest, tag: u64, operation: Operation) {
        if guest.place.get() == Place::Over {
            return;
        }
        let held_bytes = self.held_bytes.get() + cost(&operation);
        if held_bytes > SWITCH_HELD_BYTES_MAX {
            tracing::warn!(volume = %self.volume, "too much is held for a volume that nobody serves: a session ends");
            return self.cut(guest);
        }
        self.held_bytes.set(held_bytes);
        let mut held = guest.held.borrow_mut();
        let place = held.partition_point(|(_, before, _)| *before < tag);
        held.insert(place, (self.clock.now(), tag, operation));
        drop(held);
        self.look_later();
    }

    /// Holds again what is under way at another node and was never begun there.
    fn take_back(&self, guest: &Guest) {
        for (tag, operation) in guest.sent.take() {
            self.keep(guest, tag, operation);
            if guest.place.get() == Place::Over {
                return;
            }
            self.answered(guest);
        }
    }

    /// Passes on what was held of a session that is inside.
    fn release(&self, guest: &Guest) {
        if self.is_held() || guest.held.borrow().is_empty() {
            return;
        }
        for (_, tag, operation) in guest.held.take() {
            self.held_bytes.set(self.held_bytes.get() - cost(&operation));
            // The way there may end under what is passed on, and the session with it.
            if guest.place.get() == Place::Inside {
                self.pass(guest, tag, operation);
            }
        }
        let backing = self.backing.borrow().clone();
        match backing {
            Backing::Here(door, _) => door.end_burst(),
            Backing::There(_, afar) => afar.end_burst(),
            Backing::Nothing => {}
        }
    }

    /// Sees to what waits, for as long as something does.
    fn look_later(&self) {
        if !self.has_to_look() || self.is_looking.replace(true) {
            return;
        }
        let (weak, clock) = (Weak::clone(&self.own), Rc::clone(&self.clock));
        actor::spawn(async move {
            loop {
                clock.sleep(LOOK).await;
                let Some(inner) = weak.upgrade() else { return };
                inner.look();
                if !inner.has_to_look() {
                    return inner.is_looking.set(false);
                }
            }
        });
    }

    fn has_to_look(&self) -> bool {
        let is_there = matches!(&*self.backing.borrow(), Backing::There(..));
        let waits =
            |guest: &Rc<Guest>| !guest.held.borrow().is_empty() || (is_there && guest.place.get() == Place::Outside);
        self.guests.borrow().values().any(waits)
    }

    fn look(&self) {
        let now = self.clock.now();
        self.each(|inner, guest| {
            if guest.held_since().is_some_and(|since| now.since(since) >= SWITCH_HELD_TIME_MAX) {
                tracing::warn!(volume = %inner.volume, "nobody has served a volume for too long: a session ends");
                inner.cut(guest);
            } else if !inner.is_held() {
                inner.go_in(guest);
            }
        });
    }

    fn guest(&self, session: SessionId) -> Option<Rc<Guest>> {
        self.guests.borrow().get(&session).filter(|guest| guest.place.get() != Place::Over).map(Rc::clone)
    }
}

impl Near for Inner {
    fn attached(&self, session: SessionId, lineage: Lineage) {
        let Some(guest) = self.guest(session).filter(|guest| guest.place.get() == Place::Asking) else { return };
        if guest.lineage.replace(Some(lineage)).is_some_and(|began_under| began_under != lineage) {
            return self.cut(&guest);
        }
        guest.place.set(Place::Inside);
        self.release(&guest);
    }

    fn reply(&self, reply: Reply) {
        let Origin { session, tag } = reply.origin;
        let Some(guest) = self.guest(session) else { return };
        let Some(operation) = guest.sent.borrow_mut().remove(&tag) else { return };
        if let Outcome::Refused(Refusal::Closing) = reply.outcome {
            guest.place.set(Place::Leaving);
            self.keep(&guest, tag, operation);
        } else {
            guest.replies.reply(reply);
        }
        if guest.place.get() == Place::Over {
            return;
        }
        self.answered(&guest);
        if guest.place.get() == Place::Leaving && guest.under_way.get() == 0 {
            self.take_out(&guest);
            self.look_later();
        }
    }

    fn ended(&self, session: SessionId, end: End) {
        let Some(guest) = self.guest(session) else { return };
        if end == End::Undone {
            self.take_back(&guest);
        }
        if end == End::ForGood || guest.under_way.get() > 0 {
            return self.cut(&guest);
        }
        self.take_out(&guest);
        self.look_later();
    }
}

/// Where the volume on this node puts the replies of a session.
struct Passing {
    inner: Weak<Inner>,
    guest: Rc<Guest>,
    turn: u64,
}

impl Replies for Passing {
    fn reply(&self, reply: Reply) {
        if self.guest.turn.get() != self.turn {
            return;
        }
        if let Some(inner) = self.inner.upgrade() {
            inner.answered(&self.guest);
        }
        self.guest.replies.reply(reply);
    }

    fn end(&self) {
        if let Some(inner) = self.inner.upgrade().filter(|_| self.guest.turn.get() == self.turn) {
            inner.cut(&self.guest);
        }
    }
}

fn cost(operation: &Operation) -> u64 {
    let payload = if let Operation::Write { payload, .. } = operation { payload.len() as u64 } else { 0 };
    payload + OVERHEAD_BYTES
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
