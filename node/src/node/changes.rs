//! Tells followers that something changed, in the order in which they began to wait.
//!
//! `tokio::sync::watch` does the same but wakes its waiters in an order drawn by chance, so that a world of the simulator
//! could not be run twice.

use std::{
    cell::Cell,
    rc::{Rc, Weak},
};

use tokio::sync::Notify;

#[derive(Default)]
struct Shared {
    count: Cell<u64>,
    told: Notify,
}

/// Where changes are told.
#[derive(Default)]
pub(super) struct Changes(Rc<Shared>);

impl Changes {
    /// Wakes all followers.
    pub(super) fn tell(&self) {
        self.0.count.set(self.0.count.get().wrapping_add(1));
        self.0.told.notify_waiters();
    }

    /// Hears of changes from now on; several may be heard of as one.
    pub(super) fn follow(&self) -> Follower {
        Follower { shared: Rc::downgrade(&self.0), seen: self.0.count.get() }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.0.told.notify_waiters();
    }
}

/// Hears of changes.
#[derive(Clone)]
pub(super) struct Follower {
    shared: Weak<Shared>,
    seen: u64,
}

impl Follower {
    /// Waits for a change that was not heard of. False when nothing is told any more.
    pub(super) async fn changed(&mut self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        if shared.count.get() == self.seen {
            shared.told.notified().await;
        }
        let is_told = shared.count.get() != self.seen;
        self.seen = shared.count.get();
        is_told
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, task::Poll};

    use futures_util::{FutureExt, StreamExt, poll, stream::FuturesUnordered};

    use super::*;

    /// With `tokio::sync::watch` the takeover and the doors of a node woke in either order, and a world run twice took two
    /// ways.
    #[tokio::test]
    async fn followers_are_woken_in_the_order_in_which_they_began_to_wait() {
        for _ in 0..50 {
            let (changes, woken) = (Changes::default(), RefCell::new(Vec::new()));
            let woken = &woken;
            let mut all: FuturesUnordered<_> = (0..8)
                .map(|number| {
                    let mut follower = changes.follow();
                    async move {
                        assert!(follower.changed().await, "the change is heard of");
                        woken.borrow_mut().push(number);
                    }
                })
                .collect();
            assert!(poll!(all.next()).is_pending(), "nothing has changed");
            changes.tell();
            while all.next().await.is_some() {}
            assert!(woken.borrow().is_sorted(), "{woken:?}");
        }
    }

    #[tokio::test]
    async fn a_change_between_two_looks_is_heard_of_once_and_the_end_as_well() {
        let changes = Changes::default();
        let mut follower = changes.follow();
        changes.tell();
        changes.tell();
        assert_eq!(follower.changed().now_or_never(), Some(true));
        assert_eq!(follower.changed().now_or_never(), None, "both were heard of as one");
        let mut waiting = Box::pin(follower.changed());
        assert_eq!(poll!(&mut waiting), Poll::Pending);
        drop(changes);
        assert!(!waiting.await, "nothing is told any more");
        assert_eq!(follower.changed().now_or_never(), Some(false));
    }
}
