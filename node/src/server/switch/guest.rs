//! One session at a switch: where it stands, what it has under way and what is held of it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use velum_protocol::id::{Lineage, SessionId};

use crate::{
    env::Instant,
    server::roads::Visitor,
    volume::messages::{Entrant, Operation, Replies},
};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody knows it.
    Outside,
    /// The owner was asked to let it in.
    Asking,
    /// Its requests are passed on.
    Inside,
    /// The owner gives requests back undone: once the others are answered it goes outside.
    Leaving,
    /// It has ended.
    Over,
}

/// A session.
pub(super) struct Guest {
    pub(super) session: SessionId,
    pub(super) entrant: Entrant,
    pub(super) replies: Rc<dyn Replies>,
    /// Of another node's guest.
    pub(super) visitor: Option<Rc<dyn Visitor>>,
    pub(super) place: Cell<Place>,
    pub(super) lineage: Cell<Option<Lineage>>,
    /// Counts the times that it went in, so that a late reply of an earlier owner is told.
    pub(super) turn: Cell<u64>,
    pub(super) under_way: Cell<usize>,
    /// When something was last answered, or asked with nothing else under way.
    pub(super) answered_at: Cell<Instant>,
    /// What is under way at another node, for it may be given back.
    pub(super) sent: RefCell<BTreeMap<u64, Operation>>,
    /// Since when, and what; by tag.
    pub(super) held: RefCell<VecDeque<(Instant, u64, Operation)>>,
}

impl Guest {
    /// One that nobody knows yet.
    pub(super) fn new(session: SessionId, entrant: Entrant, replies: Rc<dyn Replies>) -> Self {
        Self {
            session,
            entrant,
            replies,
            visitor: None,
            place: Cell::new(Place::Outside),
            lineage: Cell::default(),
            turn: Cell::default(),
            under_way: Cell::default(),
            answered_at: Cell::default(),
            sent: RefCell::default(),
            held: RefCell::default(),
        }
    }

    /// One of another node's.
    pub(super) fn visiting(session: SessionId, entrant: Entrant, visitor: Rc<dyn Visitor>) -> Self {
        let replies: Rc<dyn Replies> = visitor.clone();
        Self { visitor: Some(visitor), ..Self::new(session, entrant, replies) }
    }

    /// Since when the oldest of what is held waits.
    pub(super) fn held_since(&self) -> Option<Instant> {
        self.held.borrow().iter().map(|(since, ..)| *since).min()
    }
}
