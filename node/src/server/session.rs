//! What all sessions have in common, whatever protocol they speak: who is behind them, where their replies wait, how many
//! there may be and how they end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;
use velum_protocol::id::SessionId;

use crate::{
    env::PeerIdentity,
    limits::SESSIONS_MAX,
    volume::messages::{Principal, Replies, Reply},
};

/// The user behind a connection: a local process by the kernel's word, else `anonymous`.
#[must_use]
pub fn principal(peer: &PeerIdentity) -> Principal {
    match peer {
        PeerIdentity::Unix { uid, .. } => Principal(Rc::from(format!("uid:{uid}"))),
        // Nodes have a door of their own; at a guest's door they are nobody.
        PeerIdentity::Unknown(_) | PeerIdentity::Node { .. } => Principal(Rc::from("anonymous")),
    }
}

/// Where the volume puts a session's replies and the node its call to stop. Wakes the session's task once for all that
/// comes while it waits, and not at all while it is awake.
#[derive(Default)]
pub struct Mailbox {
    replies: RefCell<Vec<Reply>>,
    stopping: Cell<bool>,
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Mailbox {
    /// Moves the replies that have come to `taken`, which must be empty.
    pub fn take(&self, taken: &mut Vec<Reply>) {
        debug_assert!(taken.is_empty(), "replies taken before are dealt with first");
        std::mem::swap(&mut *self.replies.borrow_mut(), taken);
    }

    /// True once the node has asked the session to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// True once the session is over: nothing it has under way is answered any more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    /// Ready when replies have come; else the task is woken by the next reply or the call to stop.
    pub fn poll_replies(&self, context: &Context<'_>) -> Poll<()> {
        self.wake_by(context);
        if self.replies.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Ready once the node has asked the session to end.
    pub fn poll_stop(&self, context: &Context<'_>) -> Poll<()> {
        self.wake_by(context);
        if self.stopping.get() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn wake_by(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => *waker = Some(context.waker().clone()),
        }
    }

    /// Says that the task is awake and will look for replies by itself.
    pub fn awake(&self) {
        self.waker.borrow_mut().take();
    }

    fn wake(&self) {
        // Taken out first: waking may run code that comes back here.
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }
}

impl Replies for Mailbox {
    fn reply(&self, reply: Reply) {
        self.replies.borrow_mut().push(reply);
        self.wake();
    }

    fn end(&self) {
        self.ended.set(true);
        self.wake();
    }
}

/// The open sessions of a node, over all its doors.
#[derive(Default)]
pub struct Sessions {
    last: Cell<u64>,
    open: RefCell<BTreeMap<SessionId, Rc<Mailbox>>>,
    stopping: Cell<bool>,
    drained: Notify,
}

impl Sessions {
    /// Opens a session; `None` when there are too many or the node is stopping.
    #[must_use]
    pub fn open(self: &Rc<Self>) -> Option<Ticket> {
        if self.stopping.get() || self.open.borrow().len() >= SESSIONS_MAX {
            return None;
        }
        let id = self.next_id();
        let mailbox = Rc::new(Mailbox::default());
        self.open.borrow_mut().insert(id, Rc::clone(&mailbox));
        Some(Ticket { id, mailbox, sessions: Rc::clone(self) })
    }

    /// A number for a session; never given twice.
    #[must_use]
    pub fn next_id(&self) -> SessionId {
        let id = SessionId(self.last.get()).next();
        self.last.set(id.0);
        id
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Asks all to end and lets no more in.
    pub fn stop(&self) {
        self.stopping.set(true);
        let open: Vec<_> = self.open.borrow().values().cloned().collect();
        for mailbox in open {
            mailbox.stop();
        }
    }

    /// Waits until none is open.
    pub async fn drained(&self) {
        loop {
            // Made before the look, so that a session that ends in between is not missed.
            let one_less = self.drained.notified();
            if self.open.borrow().is_empty() {
                return;
            }
            one_less.await;
        }
    }
}

/// A session's place among the open ones; given back when dropped.
pub struct Ticket {
    /// The session.
    pub id: SessionId,
    /// Its mailbox.
    pub mailbox: Rc<Mailbox>,
    sessions: Rc<Sessions>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.sessions.open.borrow_mut().remove(&self.id);
        self.sessions.drained.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_process_is_known_by_its_user_id_and_others_are_anonymous() {
        let local = PeerIdentity::Unix { uid: 1000, gid: 5, pid: 77 };
        assert_eq!(&*principal(&local).0, "uid:1000");
        assert_eq!(&*principal(&PeerIdentity::Unknown("10.0.0.1:5".to_owned())).0, "anonymous");
    }

    #[test]
    fn places_are_bounded_numbered_once_and_given_back() {
        let sessions = Rc::new(Sessions::default());
        let mut tickets: Vec<_> = (0..SESSIONS_MAX).map(|_| sessions.open().unwrap()).collect();
        assert!(sessions.open().is_none());
        let gone = tickets.pop().unwrap().id;
        let next = sessions.open().unwrap();
        assert!(next.id > gone, "an id is never used again");
        drop((tickets, next));
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn stopping_reaches_every_open_session_and_shuts_the_door() {
        let sessions = Rc::new(Sessions::default());
        let ticket = sessions.open().unwrap();
        sessions.stop();
        assert!(ticket.mailbox.is_stopping());
        assert!(sessions.open().is_none());
    }
}
