//! Copies of segments that a read found missing or damaged while another cloud had them: work for whoever repairs.

use std::{cell::RefCell, collections::BTreeSet};

use tokio::sync::Notify;
use velum_protocol::format::metadata::CloudName;

use crate::keyring::ObjectId;

/// Holes remembered; what is found beyond that is found again by the next read of it.
const HOLES_MAX: usize = 1024;

/// One copy that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hole {
    /// Where.
    pub cloud: CloudName,
    /// Of which segment.
    pub id: ObjectId,
}

/// All that wait for repair.
#[derive(Debug, Default)]
pub struct Holes {
    waiting: RefCell<BTreeSet<Hole>>,
    found: Notify,
}

impl Holes {
    /// Remembers a hole, unless there are too many already.
    pub fn report(&self, hole: Hole) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < HOLES_MAX {
            waiting.insert(hole);
            self.found.notify_one();
        }
    }

    /// Takes the next one, once there is one.
    pub async fn next(&self) -> Hole {
        loop {
            let first = self.waiting.borrow_mut().pop_first();
            match first {
                Some(hole) => return hole,
                None => self.found.notified().await,
            }
        }
    }
}
