//! How much of the metadata's history a recovery would find: the newest change that enough clouds show.

use std::cell::Cell;

use tokio::sync::Notify;

/// The newest change that enough clouds show. Zero after a start, until the clouds were looked at again.
#[derive(Default)]
pub(crate) struct Shown {
    change: Cell<u64>,
    changed: Notify,
}

impl Shown {
    /// Enough clouds show everything up to `change`.
    pub(super) fn set(&self, change: u64) {
        self.change.set(change);
        self.changed.notify_waiters();
    }

    /// True when enough clouds show a change.
    pub(crate) fn has(&self, change: u64) -> bool {
        self.change.get() >= change
    }

    /// Completes when enough clouds show a change.
    pub(crate) async fn reaches(&self, change: u64) {
        loop {
            let changed = self.changed.notified();
            if self.has(change) {
                return;
            }
            changed.await;
        }
    }
}
