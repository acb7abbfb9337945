//! The guard before each cloud: whether the place that its URL leads to is this cluster's, and still is.
//!
//! A layer of [`super::Cloud`]. The first request looks at the identity object. The cluster's own lets requests pass; another
//! cluster's refuses them all; none means that the place is new (the identity and key slots are stored) or, when this cloud
//! has been in use before, that somebody emptied it, which is refused too: a cloud that has lost what others believe it holds
//! must not quietly start over. Where several nodes use a cloud, one that knows of nothing there cannot tell: others may have
//! stored something since. There a place without identity stays out of use until all have agreed to believe nothing of it.
//!
//! A place can be emptied or replaced while the node runs as well. So whoever is about to count on what was stored there asks
//! [`Guard::look`] for the identity once more, after the last object and before it counts: what was found in its place then
//! was stored in the right one. A place that was found wrong takes no request any more, also when its identity is back: it
//! may hold less than the metadata says, so its cursors start over first.
//!
//! For that nothing may be under way there that still believes the old cursors. Whoever does more than one thing in a cloud
//! and draws a conclusion holds a [`Visit`]; [`Guard::close`] lets no visit begin and waits for the end of those there are.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use tokio::sync::Notify;

use super::layer::{Answer, Asked, Attempt, Call, Layer};
use crate::{
    env::{CloudStore, CloudStoreError, Local},
    keyring::{IDENTITY_NAME, slots_name},
};

/// An identity object has some tens of bytes; what is longer is none.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// What is stored under the fixed names of every cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The identity object.
    pub object: Bytes,
    /// The key-slot object.
    pub slots: Bytes,
    /// The generation of the key slots; part of their name.
    pub generation: u64,
}

/// What is known of the place that a cloud's URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has looked since the node started.
    Unseen,
    /// It holds the cluster's identity, and has whenever it was looked at.
    Ours,
    /// It holds no identity although it did, or should.
    Emptied,
    /// It holds another identity.
    Foreign,
    /// It was found wrong and holds the cluster's identity again; what else it holds is not known.
    Returned,
    /// It holds no identity, and this node knows of nothing there; other nodes may.
    Unclaimed,
}

/// What a node knows of a place before it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// It knows of nothing that was stored there.
    pub may_be_new: bool,
    /// Other nodes store things there, too.
    pub is_shared: bool,
}

/// See the module.
pub struct Guard {
    store: Rc<dyn CloudStore>,
    identity: Identity,
    may_be_new: Cell<bool>,
    is_shared: bool,
    standing: Cell<Standing>,
    closed: Cell<bool>,
    visits: Cell<usize>,
    left: Notify,
}

impl Guard {
    /// Guards the place behind `store`. One without identity object becomes the cluster's when it may be new and is not shared.
    #[must_use]
    pub fn new(store: Rc<dyn CloudStore>, identity: Identity, place: Place) -> Rc<Self> {
        Rc::new(Self {
            store,
            identity,
            may_be_new: Cell::new(place.may_be_new),
            is_shared: place.is_shared,
            standing: Cell::new(Standing::Unseen),
            closed: Cell::new(false),
            visits: Cell::new(0),
            left: Notify::new(),
        })
    }

    /// What was found when it was looked at last.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// Looks at the identity object now.
    ///
    /// # Errors
    /// `NotOurs` when the place is another cluster's, was emptied, or has only just come back; otherwise whatever the cloud
    /// answered.
    pub async fn look(&self) -> Result<(), CloudStoreError> {
        let found = match self.store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX).await {
            Ok(found) if found == self.identity.object => match self.standing.get() {
                Standing::Unseen | Standing::Ours | Standing::Unclaimed => Standing::Ours,
                Standing::Emptied | Standing::Foreign | Standing::Returned => Standing::Returned,
            },
            Ok(_) => Standing::Foreign,
            Err(CloudStoreError::NotFound) => match self.may_be_new.get() {
                true if !self.is_shared => return self.claim().await,
                true => Standing::Unclaimed,
                false => Standing::Emptied,
            },
            Err(error) => return Err(error),
        };
        self.set(found);
        self.verdict()
    }

    /// A place that has been the cluster's is never new again, unless nothing is believed to be there.
    fn set(&self, standing: Standing) {
        self.standing.set(standing);
        if standing == Standing::Ours {
            self.may_be_new.set(false);
        }
    }

    /// Makes the place the cluster's own, unless it is another's. Slots first: a place with an identity object always has
    /// the slots to open it with. Another cluster that claims the place at the same moment is seen by reading back.
    ///
    /// # Errors
    /// `NotOurs` when it is another cluster's; otherwise whatever the cloud answered.
    pub async fn claim(&self) -> Result<(), CloudStoreError> {
        let Self { store, identity, .. } = self;
        match store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX).await {
            Ok(found) if found != identity.object => {
                self.standing.set(Standing::Foreign);
                return self.verdict();
            }
            Ok(_) | Err(CloudStoreError::NotFound) => {}
            Err(error) => return Err(error),
        }
        store.put(&slots_name(identity.generation), identity.slots.clone()).await?;
        match store.create(IDENTITY_NAME, identity.object.clone()).await {
            Ok(()) | Err(CloudStoreError::AlreadyExists) => {}
            Err(error) => return Err(error),
        }
        let found = store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX).await?;
        self.set(if found == identity.object { Standing::Ours } else { Standing::Foreign });
        self.verdict()
    }

    /// Why no request gets through, if none does.
    #[must_use]
    pub fn refusal(&self) -> Option<CloudStoreError> {
        self.verdict().err()
    }

    /// What the standing means for a request.
    fn verdict(&self) -> Result<(), CloudStoreError> {
        let why = match self.standing.get() {
            _ if self.closed.get() => "how far it reaches is being looked at again",
            Standing::Unseen | Standing::Ours => return Ok(()),
            Standing::Emptied => {
                "its identity object is gone although this cluster has used it: somebody emptied it; bring back what was \
                 there, or fill it anew with `velum cloud resync`"
            }
            Standing::Foreign => {
                "it holds another cluster's data; correct its URL, or bring that cluster back with `velum recover`"
            }
            Standing::Unclaimed => {
                "it holds no identity object, and whether anything of this cluster was there is not known to this node; the \
                 leader claims it if nothing was, or `velum cloud resync` fills it anew"
            }
            Standing::Returned => "it is back, and how far it reaches is looked at again",
        };
        Err(CloudStoreError::NotOurs(why.to_owned()))
    }

    /// Begins a visit; none while the place is not the cluster's, or is closed.
    pub(super) fn enter(self: &Rc<Self>) -> Option<Visit> {
        self.verdict().ok()?;
        self.visits.set(self.visits.get() + 1);
        Some(Visit { guard: Rc::clone(self) })
    }

    /// Lets nothing in any more until the answer is dropped; completes when every visit has ended. `None` when it is closed
    /// already.
    pub(super) async fn close(self: &Rc<Self>) -> Option<Closed> {
        if self.closed.replace(true) {
            return None;
        }
        let closed = Closed { guard: Rc::clone(self) };
        loop {
            let left = self.left.notified();
            if self.visits.get() == 0 {
                return Some(closed);
            }
            left.await;
        }
    }
}

impl Layer for Guard {
    fn around<T: Answer>(self: Rc<Self>, _asked: Asked, call: Call<T>) -> Local<Attempt<T>> {
        Box::pin(async move {
            self.verdict()?;
            if self.standing.get() == Standing::Unseen {
                self.look().await?;
            }
            call().await
        })
    }
}

/// Something under way in a cloud that must not go on across a new beginning of its cursors.
pub struct Visit {
    guard: Rc<Guard>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.guard.visits.set(self.guard.visits.get() - 1);
        self.guard.left.notify_waiters();
    }
}

/// Nothing is under way in a cloud and nothing begins. Dropping it opens the cloud again.
pub struct Closed {
    guard: Rc<Guard>,
}

impl Closed {
    /// Nothing is believed to be in the place from now on.
    pub fn expect_nothing(&self) {
        self.guard.may_be_new.set(true);
        self.guard.standing.set(Standing::Unseen);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.guard.closed.set(false);
    }
}
