//! How much of journals the volumes of one owner may take, among several nodes.
//!
//! What an owner's journal takes, the journals of its members must take too, and each node is a member of others' ensembles while it
//! owns volumes itself. With records that have no room elsewhere nothing comes to d0, hence nothing to the clouds, and nothing is
//! trimmed anywhere; a takeover cannot write back what it found. So each node's volumes get a share of a journal that leaves room for
//! those of all others, and wait for the clouds beyond it.

use std::cell::Cell;

use tokio::sync::Notify;

/// The share of one node. What lies in the clouds counts no more.
pub(super) struct Quota {
    bytes_max: Box<dyn Fn() -> u64>,
    used: Cell<u64>,
    freed: Notify,
}

impl Quota {
    /// `bytes_max` tells the share as the cluster is now.
    pub(super) fn new(bytes_max: Box<dyn Fn() -> u64>) -> Self {
        Self { bytes_max, used: Cell::default(), freed: Notify::default() }
    }

    /// True when records of `bytes` fit. One write always does when there is nothing else, however small the share.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let used = self.used.get();
        used == 0 || used.saturating_add(bytes) <= (self.bytes_max)()
    }

    /// A volume's records took `before` bytes and take `now`.
    pub(super) fn change(&self, before: u64, now: u64) {
        self.used.set((self.used.get() + now).saturating_sub(before));
        if now < before {
            self.freed.notify_waiters();
        }
    }

    /// Completes when [`Self::has_room`] says yes.
    pub(super) async fn room(&self, bytes: u64) {
        loop {
            // Made before the look, so that nothing freed in between is missed.
            let freed = self.freed.notified();
            if self.has_room(bytes) {
                return;
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_util::FutureExt;

    use super::*;
    use crate::env::Local;

    #[test]
    fn volumes_share_and_wait_for_what_is_freed() {
        let quota = Rc::new(Quota::new(Box::new(|| 100)));
        assert!(quota.has_room(1_000), "one write alone");
        quota.change(0, 60);
        quota.change(0, 30);
        assert!(quota.has_room(10) && !quota.has_room(11));
        let own = Rc::clone(&quota);
        let mut waiting: Local<()> = Box::pin(async move { own.room(40).await });
        assert!(waiting.as_mut().now_or_never().is_none());
        quota.change(30, 20);
        assert!(waiting.as_mut().now_or_never().is_none(), "not enough");
        quota.change(60, 0);
        assert!(waiting.as_mut().now_or_never().is_some());
    }
}
